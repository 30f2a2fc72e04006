package agent

import "context"

// Warmer keeps a kernel that runs before anybody asks for one, so that the first notebook of a box need not wait for its start and
// imports. It is handed to the agent as Config.Warmer.
type Warmer interface {
	// Warm starts the kernel with this name, has it run code, and answers when it is idle again, or with why that did not succeed. The next
	// session that wants a kernel of this name takes this one. It is called at most once, at a fresh start, and ctx bounds it.
	Warm(ctx context.Context, kernel, code string) error
	// Adopt is called when the box became another one (it was cloned from memory, or handed to a user), before anybody gets into it: every warm
	// kernel gets new keys and random seeds, and env is added to its environment. It may be called without a warm kernel, and more than once.
	Adopt(ctx context.Context, env map[string]string) error
}
