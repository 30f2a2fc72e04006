// Package runtime is the contract between the node daemon and whatever isolates a box: gVisor, a
// microVM, and for tests a fake. It must not know PostgreSQL, HTTP, IP addresses or what a user wants.
// Words: a sandbox is one live run; an image is an immutable root file system; a home is an ext4 image
// file; a capture is a directory that Save fills and from which Start begins again.
package runtime

import (
	"context"
	"net"
	"time"
)

// Runtime isolates boxes.
//
// # The contract
//
// A sandbox is named by its run id and is in one of four states: absent, running, frozen, exited.
//
//	absent --Start--> running --Freeze--> frozen --Thaw--> running
//	frozen --Save--> frozen (as often as one likes)
//	any --Destroy--> absent        running or frozen --(it dies)--> exited
//
// Every method may be called again after any failure or kill, of itself or of the machine, and either
// finishes the work or answers with the same error: the caller has no other way to recover. No method
// keeps state in this process that List cannot find again: a new process sees the sandboxes of the old.
// Calls for different sandboxes run in parallel; the caller makes at most one call at a time for one
// sandbox, List, Wait and Dial apart, which may be called at any moment.
//
// Start makes a sandbox and begins its PID 1, the agent; it answers when the sandbox runs, which may be
// before the agent answers. With From set it begins from a capture: with memory if WithMemory, else
// from the capture's root file system. The home image is always the caller's business: Start mounts the
// image that it is given, which for memory must be byte for byte the clone that belongs to it.
// A Start that fails leaves the sandbox absent and no mount, loop device, process, cgroup or file
// behind; one that was killed half-way is listed as exited, and another Start of the same run takes that away
// first. A Start of a sandbox that began whole, also of one that has exited since, is refused with ErrExists.
// A damaged capture is refused with ErrCorrupt before anything of it runs: a file that is missing, not regular or of
// another size, and the small files also by their hash. The content of memory pages is not looked at: the caller
// keeps the hashes of all files. A capture that belongs to another runtime version, CPU or spec is refused with
// ErrIncompatible. The capture is never changed, and may be removed once Start has answered.
//
// A machine may have several versions of a runtime at once, as after an upgrade. A sandbox stays with the version that
// began it until it ends, whoever asks for what is done with it, and so do the captures that are made of it. A Start with memory
// begins with the version of the capture for as long as that is on the machine (Capabilities.Former), every other Start with
// Capabilities.Version. The memory of a sandbox whose version is not on the machine any more cannot be saved: ErrIncompatible.
//
// Freeze stops every process in the sandbox between two instructions, and nothing of it writes to the
// home image any more when it answers: what was written is in the image file (it is synced).
// Thaw undoes it. Both are idempotent. With Save they answer ErrNotFound for an absent sandbox and ErrDied for
// one that has exited.
//
// Save writes a frozen sandbox into an empty directory that exists: always the root file system's
// changes, and with memory also everything needed to go on. It leaves the sandbox frozen, whether it
// succeeds or fails. The caller clones the home image after Save, and syncs, hashes and commits the files; after
// success the directory holds regular files and directories only. A Save of a sandbox that is not frozen
// is refused with ErrState; one that fails leaves the directory as empty as it was. What only a Start with memory
// needs lies below the directory memory: a copy of a capture without it is good for a Start without memory.
//
// Destroy ends the sandbox in any state, also a half-made one, unmounts its home and removes
// everything of it but the home image and captures. It is idempotent, and answers only when nothing is left:
// the home image is complete then, and free for others. From Start to there nobody else writes to it.
//
// Wait answers when a sandbox that ran has ended by itself or was killed, with why; it may be asked again.
//
// If ctx ends, a method answers with its error as soon as it can; Start takes away what it made. What another
// method had begun may still go on: the next call for the same sandbox waits for it.
//
// Dial connects to the agent. Nothing that an agent says can harm the caller's process; still the node
// daemon lets its unprivileged proxy do it.
//
// # A worked session
//
//	rt.Start(ctx, Spec{Run: r1, Image: img, Home: h1, …})        // a new box
//	rt.Freeze(ctx, r1)
//	rt.Save(ctx, r1, tmp, SaveOptions{Memory: true})             // caller: clone h1, fsync, hash, rename, commit
//	rt.Destroy(ctx, r1)                                          // paused
//	rt.Start(ctx, Spec{Run: r2, From: dir, WithMemory: true, Home: clone of h1, …})   // resumed
//
// The conformance suite in runtimetest checks all of this against every implementation.
type Runtime interface {
	Capabilities() Capabilities
	Start(ctx context.Context, spec Spec) error
	Freeze(ctx context.Context, run string) error
	Thaw(ctx context.Context, run string) error
	Save(ctx context.Context, run string, dir string, opts SaveOptions) error
	Destroy(ctx context.Context, run string) error
	List(ctx context.Context) ([]Sandbox, error)
	Wait(ctx context.Context, run string) (Exit, error)
	Dial(ctx context.Context, run string) (net.Conn, error)
}

// Meter is implemented by runtimes that know how much CPU a sandbox uses.
type Meter interface {
	// CPUTime is the CPU time that a sandbox has used, all its processes together, since it was started. It may be called at any time,
	// also while another method is at work, and does not wait for that. The value may fall when processes end.
	CPUTime(run string) (time.Duration, error)
}

// Keeper is implemented by runtimes that keep former versions of themselves on the machine for what still needs them.
type Keeper interface {
	// VersionOf is the version that began a sandbox: ErrNotFound if it is absent.
	VersionOf(run string) (string, error)
	// Sweep removes the former versions that neither a sandbox on this machine nor a Start with memory from one of captures, which are
	// directories, would use. What else is removed is nothing: while something cannot be read that may name a version, all stay. No Start
	// may be under way.
	Sweep(captures []string) error
}

// Capabilities say what a runtime can do on this machine.
type Capabilities struct {
	Name    string // gvisor, fake, …
	Version string // of new sandboxes; memory goes on only with the version that saved it
	// Former are other versions with which the memory of captures can go on here, sorted; see Keeper.
	Former []string
	Memory bool // Save with memory works
	// Enforced lists the limits that hold: cpu, memory, processes, home, root, tmp, shm.
	Enforced []string
	// Limitations say in words what does not, and why.
	Limitations []string
}

// Spec is all that a runtime is told of a run.
type Spec struct {
	Run      string // id; names the sandbox
	Hostname string
	// Image is the path of the EROFS file. The string is a part of what a capture with memory remembers:
	// it must be the same for every Start from it.
	Image string
	// Home is the path of the ext4 image, mounted at /home/carrel in the sandbox.
	Home string
	// Agent is the path of the agent's binary and Identity that of a directory that only root in the
	// sandbox can read; both are mounted read-only under /.carrel. A capture with memory goes on with
	// the agent that it was made with: the caller gives the same file.
	Agent    string
	Identity string
	Network  Network
	Limits   Limits
	// Env is that of PID 1.
	Env []string
	// Sudo lets set-user-id programs work in the sandbox.
	Sudo bool
	// From is the directory of a capture, or empty.
	From       string
	WithMemory bool
}

// Network is prepared by the caller; a runtime does not know what addresses are.
type Network struct {
	// Namespace is the path of a network namespace with everything configured; empty: none but loopback.
	Namespace string
	// Agent is where the agent will answer, in the form that net.Dial takes ("tcp", "10.0.0.2:1")
	AgentNetwork, AgentAddress string
}

// Limits of a sandbox, in bytes where nothing else is said.
type Limits struct {
	CPUMillis int64 // thousandths of a core
	Memory    int64 // advertised in the sandbox
	// Headroom is how far the host's hard limit lies above Memory: the runtime's own needs.
	Headroom  int64
	Processes int64
	Root      int64
	Tmp       int64
	Shm       int64
}

// SaveOptions of Save.
type SaveOptions struct {
	Memory bool
}

// SandboxState is what List sees.
type SandboxState string

const (
	StateRunning SandboxState = "running"
	StateFrozen  SandboxState = "frozen"
	// StateExited: it died, or was half made; only Destroy is left.
	StateExited SandboxState = "exited"
)

// Sandbox is one entry of List.
type Sandbox struct {
	Run   string
	State SandboxState
}

// Exit says how a sandbox ended.
type Exit struct {
	// Reason is memory (killed for it), killed, exited (PID 1 ended by itself) or unknown.
	Reason  string
	Message string
	Code    int // of PID 1, if it exited and that is known; else -1
	At      time.Time
}

// Error is what a runtime refuses, by kind. Errors of other types are faults of the machine: transient.
type Error string

func (e Error) Error() string { return string(e) }

const (
	ErrNotFound     = Error("there is no such sandbox")
	ErrExists       = Error("the sandbox exists")
	ErrState        = Error("the sandbox is not in the right state")
	ErrCorrupt      = Error("the capture is damaged")
	ErrIncompatible = Error("the capture does not fit this runtime, machine or spec")
	ErrNoSpace      = Error("no space is left on the disk")
	ErrDied         = Error("the sandbox died")
)
