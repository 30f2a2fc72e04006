// Package gvisor implements runtime.Runtime with gVisor's command line tool, runsc. It must not know
// boxes, users or IP addresses, and talks to a sandbox only through runsc, so that nothing which a
// sandbox says is parsed here.
//
// Words: the run directory (ROOT/runs/RUN) holds all that is known of one sandbox: its bundle, its
// logs, the point where its home is mounted, and a file "started" once it began whole. The state root (ROOT/runsc) is
// runsc's own. A capture is described by its file capture.json. A program is one binary of runsc; after an upgrade there are
// several, and a sandbox keeps to the one that began it.
//
// A sandbox is made in this order, so that each thing is found again by the run directory alone: run
// directory, cgroups, log file system, loop device, bundle, home and sandbox, "started". Destroy takes them
// away in the opposite order, each whether or not it is there. The processes of a sandbox do not depend on
// the process that started them; which ones they are is known from the cgroup, from runsc's state file
// and, for what was left half made, from /proc.
package gvisor

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/runtime"
)

// Config of New. Every path is absolute.
type Config struct {
	// Runsc is the binary for new sandboxes.
	Runsc string
	// Programs is a directory in which binaries of former versions lie, each as runsc- and its SHA-256 in hex; Runsc may be one of them. Sandboxes
	// and captures go on with theirs for as long as it is there. Empty: there is no other than Runsc.
	Programs string
	// Root is where this runtime makes the directories "runs" and "runsc" of its own, best on a tmpfs such as
	// /run/carrel: after a reboot nothing of them means anything. At most 60 bytes, since sockets lie below it.
	Root string
	// OverlayDir holds the files with the root file systems' changes. They are unlinked as soon as they are made and
	// need real disk space: a symbolic link into the pool is fine.
	OverlayDir string
	// CgroupParent is the cgroup under which every sandbox gets its own, such as /carrel.
	CgroupParent string
	Logger       *slog.Logger
}

// Runtime runs sandboxes with gVisor. Its methods are safe for concurrent use as far as the contract says.
type Runtime struct {
	root, overlayDir, cgroupParent string
	log                            *slog.Logger
	programs                       programs
	cgroups                        cgroupSet
	limitations                    []string
}

var (
	_ runtime.Runtime = (*Runtime)(nil)
	_ runtime.Keeper  = (*Runtime)(nil)
)

// New checks the machine and the binaries. It changes nothing but the directories and cgroup that it was
// given, and finds the sandboxes that another process made with the same Config.
func New(cfg Config) (*Runtime, error) {
	paths := map[string]string{"Runsc": cfg.Runsc, "Root": cfg.Root, "OverlayDir": cfg.OverlayDir, "CgroupParent": cfg.CgroupParent}
	if cfg.Programs != "" {
		paths["Programs"] = cfg.Programs
	}
	for name, path := range paths {
		if !filepath.IsAbs(path) || filepath.Clean(path) != path || strings.ContainsAny(path, ",\n") {
			return nil, fmt.Errorf("gvisor: %s is %q; it must be a clean absolute path without commas", name, path)
		}
	}
	if len(cfg.Root) > 60 {
		return nil, fmt.Errorf("gvisor: Root %q is longer than 60 bytes, which leaves no room for runsc's socket names", cfg.Root)
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	r := &Runtime{root: cfg.Root, overlayDir: cfg.OverlayDir, cgroupParent: cfg.CgroupParent, log: cfg.Logger}
	for _, dir := range []string{r.stateRoot(), filepath.Join(r.root, "runs"), r.overlayDir} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return nil, fmt.Errorf("gvisor: making a directory: %w", err)
		}
	}
	var err error
	if err := r.programs.find(cfg.Runsc, cfg.Programs, cfg.Logger); err != nil {
		return nil, fmt.Errorf("gvisor: %w", err)
	}
	r.cgroups, r.limitations, err = findCgroups(cfg.CgroupParent)
	if err != nil {
		return nil, fmt.Errorf("gvisor: looking for cgroups: %w", err)
	}
	if !strings.HasPrefix(r.programs.newest().Version, ownVersionPrefix) {
		r.limitations = append(r.limitations, fmt.Sprintf("%s is not Carrel's build of runsc, so programs in a sandbox see the memory and CPUs of the whole machine; the limits hold all the same", cfg.Runsc))
	}
	return r, nil
}

// ownVersionPrefix begins the versions of runsc built from tools/runsc, which advertises a sandbox's own sizes.
const ownVersionPrefix = "carrel-"

// Capabilities implements runtime.Runtime.
func (r *Runtime) Capabilities() runtime.Capabilities {
	enforced := append([]string{}, r.cgroups.enforced()...)
	enforced = append(enforced, "home", "root", "tmp", "shm")
	return runtime.Capabilities{
		Name: "gvisor", Version: r.programs.newest().Version, Former: r.programs.formerVersions(), Memory: true,
		Enforced: enforced, Limitations: append([]string{}, r.limitations...),
	}
}

// The paths of a run.

func (r *Runtime) stateRoot() string                { return filepath.Join(r.root, "runsc") }
func (r *Runtime) runDir(run string) string         { return filepath.Join(r.root, "runs", run) }
func (r *Runtime) path(run string, n string) string { return filepath.Join(r.root, "runs", run, n) }
func (r *Runtime) stateFile(run, kind string) string { // kind is state or lock
	return filepath.Join(r.stateRoot(), run+"_sandbox:"+run+"."+kind)
}

const (
	fileLock    = "lock"     // held by whoever acts on the sandbox, runsc included
	fileRun     = "run.json" // what Destroy, Dial and Wait need to know
	fileLoop    = "loop"     // the loop device of its home
	fileStarted = "started"  // it began whole
	dirBundle   = "bundle"
	dirHome     = "home" // where the home image is mounted, in the sandbox's own mount namespaces only
	dirLog      = "log"  // a small file system of its own
	logRunsc    = "log/runsc.log"
	logPanic    = "log/panic.log"
	logConsole  = "log/console"
)

// checkRun refuses names that are not ids: runsc takes an id for every id that begins with it, so
// they must all have one length.
func checkRun(run string) error {
	if carrel.IDKind(run) == 0 {
		return fmt.Errorf("%q is not an id of %d characters", run, carrel.IDLength)
	}
	return nil
}
