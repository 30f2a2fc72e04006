// Package fake implements runtime.Runtime without isolating anything, for tests of what lies above a runtime.
// It starts no process and needs no root. Words: a machine is what the fake keeps of one sandbox: memory, root and
// home, all in files, so that another Runtime with the same Root finds the sandboxes of the first as after a
// restart. The home image keeps its size; its beginning holds the files of the home.
package fake

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/runtime"
)

// AgentHandler serves one connection to the agent of run, and returns when conn is closed.
type AgentHandler func(run string, conn net.Conn)

// Config of New.
type Config struct {
	// Root is a directory of this fake alone.
	Root string
	// Agent answers connections. Without one they are closed at once.
	Agent AgentHandler
	// Fault is asked at every step and fails it if it returns an error: METHOD before anything was done and
	// METHOD/done after all was, such as "save" and "save/done". It may block. It may be nil.
	Fault func(step, run string) error
	// Version is that of Capabilities; empty: "fake-1". Former are versions that are on the machine beside it.
	Version string
	Former  []string
	// CPU is what CPUTime answers; nil: always 0.
	CPU func(run string) time.Duration
}

// Runtime is the fake. Its methods are safe for concurrent use.
type Runtime struct {
	root, version string
	agent         AgentHandler
	fault         func(step, run string) error
	cpu           func(run string) time.Duration

	mu       sync.Mutex // guards the files below root, and what follows
	former   []string
	gates    map[string]*gate
	changed  chan struct{} // closed and replaced at every change
	closed   bool
	handlers sync.WaitGroup
}

var (
	_ runtime.Runtime = (*Runtime)(nil)
	_ runtime.Meter   = (*Runtime)(nil)
	_ runtime.Keeper  = (*Runtime)(nil)
)

// record is run.json.
type record struct {
	Spec    runtime.Spec
	State   runtime.SandboxState
	Exit    runtime.Exit
	Version string // that began it
}

// New finds the sandboxes that are in Root and serves their agents.
func New(cfg Config) (*Runtime, error) {
	if cfg.Version == "" {
		cfg.Version = "fake-1"
	}
	if err := os.MkdirAll(filepath.Join(cfg.Root, "runs"), 0o755); err != nil {
		return nil, fmt.Errorf("fake: %w", err)
	}
	r := &Runtime{root: cfg.Root, version: cfg.Version, former: slices.Sorted(slices.Values(cfg.Former)), agent: cfg.Agent, fault: cfg.Fault, cpu: cfg.CPU, gates: map[string]*gate{}, changed: make(chan struct{})}
	list, err := r.List(context.Background())
	if err != nil {
		return nil, err
	}
	for _, s := range list {
		if s.State == runtime.StateExited {
			continue
		}
		if err := r.open(s.Run, s.State == runtime.StateFrozen); err != nil {
			return nil, errors.Join(err, r.Close())
		}
	}
	return r, nil
}

// Close ends this fake as the death of its process would: connections break, the sandboxes stay. Every method
// but Close fails from then on.
func (r *Runtime) Close() error {
	r.mu.Lock()
	r.closed = true
	for run := range r.gates {
		r.shut(run)
	}
	r.notify()
	r.mu.Unlock()
	r.handlers.Wait()
	return nil
}

// Capabilities implements runtime.Runtime.
func (r *Runtime) Capabilities() runtime.Capabilities {
	r.mu.Lock()
	defer r.mu.Unlock()
	return runtime.Capabilities{
		Name: "fake", Version: r.version, Former: slices.Clone(r.former), Memory: true,
		Enforced:    []string{"home"},
		Limitations: []string{"the fake isolates nothing and is for tests"},
	}
}

// VersionOf implements runtime.Keeper.
func (r *Runtime) VersionOf(run string) (string, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	rec, err := r.load(run)
	return rec.Version, err
}

// Sweep implements runtime.Keeper.
func (r *Runtime) Sweep(captures []string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	needed := map[string]bool{}
	entries, err := os.ReadDir(filepath.Join(r.root, "runs"))
	if err != nil {
		return fmt.Errorf("sweep: %w", err)
	}
	for _, e := range entries {
		rec, err := r.load(e.Name())
		if err != nil {
			return fmt.Errorf("sweep: %w", err)
		}
		needed[rec.Version] = true
	}
	for _, dir := range captures {
		var c capture
		if err := readJSON(filepath.Join(dir, "capture.json"), &c); err != nil {
			return fmt.Errorf("sweep: %w", err)
		}
		needed[c.Version] = needed[c.Version] || c.Files["memory/pages.img"] != ""
	}
	r.former = slices.DeleteFunc(r.former, func(version string) bool { return !needed[version] })
	return nil
}

// CPUTime implements runtime.Meter.
func (r *Runtime) CPUTime(run string) (time.Duration, error) {
	if r.cpu == nil {
		return 0, nil
	}
	return r.cpu(run), nil
}

func (r *Runtime) hit(step, run string) error {
	if r.fault == nil {
		return nil
	}
	return r.fault(step, run)
}

// do runs one method: fault, work under the mutex, fault.
func (r *Runtime) do(ctx context.Context, step, run string, work func() error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if carrel.IDKind(run) == 0 {
		return fmt.Errorf("%s: %q is not an id", step, run)
	}
	err := r.hit(step, run)
	if err == nil {
		r.mu.Lock()
		if r.closed {
			err = errors.New("this fake was closed")
		} else {
			err = work()
		}
		r.notify()
		r.mu.Unlock()
	}
	if err == nil {
		err = r.hit(step+"/done", run)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", step, err)
	}
	return nil
}

func (r *Runtime) notify() {
	close(r.changed)
	r.changed = make(chan struct{})
}

func (r *Runtime) path(run, name string) string { return filepath.Join(r.root, "runs", run, name) }

// load reads run.json; r.mu is held.
func (r *Runtime) load(run string) (record, error) {
	var rec record
	if _, err := os.Stat(r.path(run, "")); errors.Is(err, fs.ErrNotExist) {
		return rec, runtime.ErrNotFound
	}
	err := readJSON(r.path(run, "run.json"), &rec)
	if errors.Is(err, fs.ErrNotExist) {
		return record{State: runtime.StateExited, Exit: runtime.Exit{Reason: "unknown", Code: -1}}, nil // half made
	}
	return rec, err
}

func (r *Runtime) live(run string) (record, error) {
	rec, err := r.load(run)
	if err == nil && rec.State == runtime.StateExited {
		err = runtime.ErrDied
	}
	return rec, err
}

// Start implements runtime.Runtime.
func (r *Runtime) Start(ctx context.Context, spec runtime.Spec) error {
	made := false
	err := r.do(ctx, "start", spec.Run, func() error {
		if _, err := os.Stat(r.path(spec.Run, "run.json")); err == nil {
			return runtime.ErrExists
		}
		for _, path := range []string{spec.Image, spec.Home} {
			if _, err := os.Stat(path); err != nil {
				return err
			}
		}
		var root, memory files
		version := r.version
		if spec.From != "" {
			var saved string
			var err error
			if root, memory, saved, err = r.readCapture(spec); err != nil {
				return err
			}
			if spec.WithMemory {
				version = saved
			}
		}
		made = true
		if err := os.MkdirAll(r.path(spec.Run, ""), 0o755); err != nil {
			return err
		}
		return errors.Join(
			writeJSON(r.path(spec.Run, "root.json"), root),
			writeJSON(r.path(spec.Run, "memory.json"), memory),
			writeJSON(r.path(spec.Run, "run.json"), record{Spec: spec, State: runtime.StateRunning, Version: version}),
			r.open(spec.Run, false),
		)
	})
	if err != nil && made {
		// A Start that fails leaves nothing, also where the fault came after the work.
		r.mu.Lock()
		defer r.mu.Unlock()
		return errors.Join(err, r.remove(spec.Run))
	}
	return err
}

// Freeze implements runtime.Runtime.
func (r *Runtime) Freeze(ctx context.Context, run string) error {
	return r.do(ctx, "freeze", run, func() error { return r.setState(run, runtime.StateFrozen) })
}

// Thaw implements runtime.Runtime.
func (r *Runtime) Thaw(ctx context.Context, run string) error {
	return r.do(ctx, "thaw", run, func() error { return r.setState(run, runtime.StateRunning) })
}

func (r *Runtime) setState(run string, state runtime.SandboxState) error {
	rec, err := r.live(run)
	if err != nil {
		return err
	}
	rec.State = state
	if err := writeJSON(r.path(run, "run.json"), rec); err != nil {
		return err
	}
	if g := r.gates[run]; g != nil {
		g.set(state == runtime.StateFrozen)
	}
	return nil
}

// Save implements runtime.Runtime.
func (r *Runtime) Save(ctx context.Context, run string, dir string, opts runtime.SaveOptions) error {
	return r.do(ctx, "save", run, func() error {
		rec, err := r.live(run)
		if err != nil {
			return err
		}
		if rec.State != runtime.StateFrozen {
			return runtime.ErrState
		}
		if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
			return errors.Join(fmt.Errorf("the directory %s is not empty", dir), err)
		}
		c := capture{Version: rec.Version, Image: rec.Spec.Image, Files: map[string]string{}}
		from := map[string]string{"upper.tar": "root.json"}
		if opts.Memory {
			from["memory/pages.img"] = "memory.json"
			if err := os.Mkdir(filepath.Join(dir, "memory"), 0o755); err != nil {
				return err
			}
		}
		for name, source := range from {
			data, err := os.ReadFile(r.path(run, source))
			if err != nil {
				return err
			}
			if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
				return err
			}
			c.Files[name] = sum(data)
		}
		return writeJSON(filepath.Join(dir, "capture.json"), c)
	})
}

type capture struct {
	Version string
	Image   string
	Files   map[string]string // SHA-256
}

func sum(data []byte) string {
	hash := sha256.Sum256(data)
	return hex.EncodeToString(hash[:])
}

// readCapture reads the capture that spec begins from.
func (r *Runtime) readCapture(spec runtime.Spec) (root, memory files, version string, err error) {
	corrupt := func(err error) error { return fmt.Errorf("%w: %w", runtime.ErrCorrupt, err) }
	var c capture
	for _, name := range []string{"capture.json", "upper.tar", "memory/pages.img"} {
		info, err := os.Lstat(filepath.Join(spec.From, name))
		if err == nil && !info.Mode().IsRegular() {
			return nil, nil, "", corrupt(fmt.Errorf("%s is not a regular file", name))
		}
	}
	if err := readJSON(filepath.Join(spec.From, "capture.json"), &c); err != nil {
		return nil, nil, "", corrupt(err)
	}
	for name, want := range c.Files {
		if !filepath.IsLocal(name) {
			return nil, nil, "", corrupt(fmt.Errorf("it names the file %q", name))
		}
		if !spec.WithMemory && strings.HasPrefix(name, "memory/") {
			continue // not needed, and perhaps not there any more
		}
		data, err := os.ReadFile(filepath.Join(spec.From, name))
		if err != nil {
			return nil, nil, "", corrupt(err)
		}
		if sum(data) != want {
			return nil, nil, "", corrupt(fmt.Errorf("%s is not what was saved", name))
		}
	}
	if err := readJSON(filepath.Join(spec.From, "upper.tar"), &root); err != nil {
		return nil, nil, "", corrupt(err)
	}
	if !spec.WithMemory {
		return root, nil, "", nil
	}
	if c.Version != r.version && !slices.Contains(r.former, c.Version) || c.Image != spec.Image || c.Files["memory/pages.img"] == "" {
		return nil, nil, "", runtime.ErrIncompatible
	}
	if err := readJSON(filepath.Join(spec.From, "memory", "pages.img"), &memory); err != nil {
		return nil, nil, "", corrupt(err)
	}
	return root, memory, c.Version, nil
}

// Destroy implements runtime.Runtime.
func (r *Runtime) Destroy(ctx context.Context, run string) error {
	return r.do(ctx, "destroy", run, func() error { return r.remove(run) })
}

func (r *Runtime) remove(run string) error {
	r.shut(run)
	// run.json last but one: what is left of a Destroy that was cut off is half made.
	return errors.Join(os.RemoveAll(r.path(run, "run.json")), os.RemoveAll(r.path(run, "")))
}

// List implements runtime.Runtime.
func (r *Runtime) List(ctx context.Context) ([]runtime.Sandbox, error) {
	if err := r.hit("list", ""); err != nil {
		return nil, fmt.Errorf("list: %w", err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	entries, err := os.ReadDir(filepath.Join(r.root, "runs"))
	if err != nil {
		return nil, err
	}
	var out []runtime.Sandbox
	for _, e := range entries {
		rec, err := r.load(e.Name())
		if err != nil {
			rec.State = runtime.StateExited
		}
		out = append(out, runtime.Sandbox{Run: e.Name(), State: rec.State})
	}
	slices.SortFunc(out, func(a, b runtime.Sandbox) int { return bytes.Compare([]byte(a.Run), []byte(b.Run)) })
	return out, ctx.Err()
}

// Wait implements runtime.Runtime.
func (r *Runtime) Wait(ctx context.Context, run string) (runtime.Exit, error) {
	for seen := false; ; seen = true {
		r.mu.Lock()
		rec, err := r.load(run)
		changed, closed := r.changed, r.closed
		r.mu.Unlock()
		switch {
		case errors.Is(err, runtime.ErrNotFound) && seen:
			return runtime.Exit{Reason: "killed", Message: "it was destroyed", Code: -1, At: time.Now()}, nil
		case err != nil:
			return runtime.Exit{}, fmt.Errorf("wait: %w", err)
		case closed:
			return runtime.Exit{}, errors.New("wait: this fake was closed")
		case rec.State == runtime.StateExited:
			return rec.Exit, nil
		}
		// Another Runtime on the same files does not close the channel.
		timer := time.NewTimer(100 * time.Millisecond)
		select {
		case <-ctx.Done():
			timer.Stop()
			return runtime.Exit{}, ctx.Err()
		case <-changed:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// Kill ends a sandbox as a crash would. A zero exit says that it was killed.
func (r *Runtime) Kill(run string, exit runtime.Exit) error {
	if exit.Reason == "" {
		exit = runtime.Exit{Reason: "killed", Message: "a test killed it", Code: -1}
	}
	if exit.At.IsZero() {
		exit.At = time.Now()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	rec, err := r.live(run)
	if err != nil {
		return err
	}
	rec.State, rec.Exit = runtime.StateExited, exit
	r.shut(run)
	defer r.notify()
	return writeJSON(r.path(run, "run.json"), rec)
}
