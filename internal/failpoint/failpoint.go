// Package failpoint lets a test stop, fail or kill a process between two named steps. A step is one
// call of Hit with a literal name; the crash tests find every name by reading the source, so a new step is
// covered by itself. Without CARREL_FAILPOINTS in the environment Hit costs one comparison.
package failpoint

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"syscall"
)

// Variable is the environment variable with the failpoints of a process: NAME=ACTION, separated by
// commas. ACTION is "error" (the first Hit returns an error), "errors" (every Hit does) or "kill"
// (the first Hit ends the process with SIGKILL). "@FILE" instead reads the same text from a file at every Hit, and
// removes the entry of an action that happens once, so that a restarted process does not do it again.
const Variable = "CARREL_FAILPOINTS"

// Error is what Hit returns where a test asked for it. It is like a fault of the machine: transient.
type Error string

func (e Error) Error() string { return "failpoint " + string(e) }

var (
	setting = os.Getenv(Variable)
	mu      sync.Mutex // guards done and the file
	done    = map[string]bool{}
)

// Hit marks the step called name, such as "node/pause/saved". It is safe for concurrent use.
func Hit(name string) error {
	if setting == "" {
		return nil
	}
	mu.Lock()
	defer mu.Unlock()
	text, file := setting, ""
	if rest, ok := strings.CutPrefix(setting, "@"); ok {
		file = rest
		data, err := os.ReadFile(file)
		if err != nil {
			return nil
		}
		text = strings.TrimSpace(string(data))
	}
	var rest []string
	action := ""
	for entry := range strings.SplitSeq(text, ",") {
		key, value, _ := strings.Cut(strings.TrimSpace(entry), "=")
		if key == name && action == "" {
			action = value
			if value == "errors" {
				rest = append(rest, entry)
			}
			continue
		}
		rest = append(rest, entry)
	}
	if action == "" {
		return nil
	}
	if action != "errors" {
		if done[name] {
			return nil
		}
		done[name] = true
		if file != "" {
			if err := os.WriteFile(file, []byte(strings.Join(rest, ",")), 0o600); err != nil {
				return fmt.Errorf("failpoint file: %w", err)
			}
			delete(done, name) // the file remembers, so that a test can ask again
		}
	}
	if action == "kill" {
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	}
	return Error(name)
}
