// Package runtimetest checks the contract of runtime.Runtime against an implementation, sentence by sentence, and
// has the leak check that other tests with real sandboxes use. It must know no implementation. Words: a
// harness makes what an implementation needs around it; the probe is the agent that the tests talk to.
package runtimetest

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"carrel.dev/carrel/internal/runtime"
	"carrel.dev/carrel/internal/runtime/runtimetest/probe"
)

// Harness makes what an implementation needs. Its functions fail the test themselves.
type Harness struct {
	// Open returns a Runtime that shares all state with those that it returned before, as after a restart
	// of the process.
	Open func(t *testing.T) runtime.Runtime
	// Upgrade is Open by a newer version, beside which that of Open is still on the machine; nil: the implementation is no Keeper.
	Upgrade func(t *testing.T) runtime.Runtime
	// Spec is for a new box: a new id, an image with the file ImageFile, an empty home, a network where
	// there are any, the probe as agent. What it made is taken away at the end of the test.
	Spec func(t *testing.T) runtime.Spec
	// Renew makes the network of a spec whose sandbox was destroyed ready for another, if that is needed.
	Renew func(t *testing.T, spec runtime.Spec)
	// ReadHome reads a file (relative to the home) from an image that no sandbox uses; nil if it is not there.
	ReadHome func(t *testing.T, image, name string) []byte
	// Kill ends a sandbox as the machine would: without asking the runtime.
	Kill func(t *testing.T, run string)
	// BadSpecs are specifications with which Start must fail, by what is wrong with them.
	BadSpecs func(t *testing.T) map[string]runtime.Spec
}

// ImageFile is in every image that a harness makes.
const ImageFile = "/etc/from-the-image"

// patience is for one step on a busy machine.
const patience = time.Minute

// bench is one test's tools.
type bench struct {
	*testing.T
	h  Harness
	rt runtime.Runtime
}

// Run checks the whole contract. open makes a harness for each test.
func Run(t *testing.T, open func(t *testing.T) Harness) {
	for _, test := range []struct {
		name string
		run  func(b *bench)
	}{
		{"ASandboxLivesAndEnds", lives},
		{"FreezingStopsItAndSyncsTheHome", freezes},
		{"MemoryGoesOn", memoryGoesOn},
		{"OneCaptureBeginsManySandboxes", manyFromOne},
		{"AColdStartKeepsTheRootOnly", cold},
		{"SavingLeavesItFrozen", saves},
		{"WrongCallsAreRefused", refuses},
		{"ADamagedCaptureIsRefused", damagedCapture},
		{"AForeignCaptureIsRefused", foreignCapture},
		{"AFailedStartLeavesNothing", failedStart},
		{"ACancelledStartLeavesNothing", cancelledStart},
		{"AKilledSandboxIsSeen", killed},
		{"AnAgentThatEndsIsSeen", ended},
		{"ANewProcessGoesOn", newProcess},
		{"AnUpgradeLeavesSandboxesAndMemoryAlone", upgraded},
		{"WaitingCanBeGivenUp", waitCancelled},
		{"SandboxesDoNotWaitForEachOther", parallel},
		{"TheMemoryLimitHolds", memoryLimit},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := open(t)
			test.run(&bench{T: t, h: h, rt: h.Open(t)})
		})
	}
}

func (b *bench) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	b.Cleanup(cancel)
	return ctx
}

// start starts spec, and destroys it at the end of the test.
func (b *bench) start(spec runtime.Spec) {
	b.Helper()
	b.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		require.NoError(b, b.rt.Destroy(ctx, spec.Run))
	})
	require.NoError(b, b.rt.Start(b.ctx(), spec))
}

func (b *bench) ask(run string, req probe.Request) probe.Response {
	b.Helper()
	resp, err := b.tryAsk(b.ctx(), run, req)
	require.NoError(b, err)
	return resp
}

func (b *bench) tryAsk(ctx context.Context, run string, req probe.Request) (probe.Response, error) {
	return probe.Ask(ctx, func(ctx context.Context) (net.Conn, error) { return b.rt.Dial(ctx, run) }, req)
}

func (b *bench) write(run, path, data string) {
	b.Helper()
	b.ask(run, probe.Request{Op: "write", Path: path, Data: []byte(data)})
}

func (b *bench) read(run, path string) string {
	b.Helper()
	return string(b.ask(run, probe.Request{Op: "read", Path: path}).Data)
}

func (b *bench) nonce(run string) string {
	b.Helper()
	return string(b.ask(run, probe.Request{Op: "nonce"}).Data)
}

// state is that which List shows, "" if it shows none.
func (b *bench) state(run string) runtime.SandboxState {
	b.Helper()
	list, err := b.rt.List(b.ctx())
	require.NoError(b, err)
	for _, s := range list {
		if s.Run == run {
			return s.State
		}
	}
	return ""
}

// capture freezes and saves a sandbox, copies its home and destroys it: a pause.
func (b *bench) capture(spec runtime.Spec, memory bool) (dir, home string) {
	b.Helper()
	dir = b.TempDir()
	require.NoError(b, b.rt.Freeze(b.ctx(), spec.Run))
	require.NoError(b, b.rt.Save(b.ctx(), spec.Run, dir, runtime.SaveOptions{Memory: memory}))
	home = copyFile(b, spec.Home)
	require.NoError(b, b.rt.Destroy(b.ctx(), spec.Run))
	return dir, home
}

// next is the specification of the run after spec: a resume.
func (b *bench) next(spec runtime.Spec, dir, home string, memory bool) runtime.Spec {
	b.Helper()
	b.h.Renew(b.T, spec)
	spec.Run = NewRun()
	spec.Home, spec.From, spec.WithMemory = copyFile(b, home), dir, memory
	return spec
}

func copyFile(b *bench, path string) string {
	b.Helper()
	in, err := os.Open(path)
	require.NoError(b, err)
	defer in.Close()
	out, err := os.CreateTemp(b.TempDir(), "copy-")
	require.NoError(b, err)
	defer out.Close()
	_, err = io.Copy(out, in)
	require.NoError(b, err)
	return out.Name()
}

func lives(b *bench) {
	spec := b.h.Spec(b.T)
	require.Empty(b, b.state(spec.Run))
	b.start(spec)
	nonce := b.nonce(spec.Run)
	require.Equal(b, "from the image", b.read(spec.Run, ImageFile))
	require.Equal(b, runtime.StateRunning, b.state(spec.Run))
	for range 2 {
		require.NoError(b, b.rt.Freeze(b.ctx(), spec.Run))
		require.Equal(b, runtime.StateFrozen, b.state(spec.Run))
	}
	for range 2 {
		require.NoError(b, b.rt.Thaw(b.ctx(), spec.Run))
		require.Equal(b, runtime.StateRunning, b.state(spec.Run))
	}
	require.Equal(b, nonce, b.nonce(spec.Run))
	for range 2 {
		require.NoError(b, b.rt.Destroy(b.ctx(), spec.Run))
		require.Empty(b, b.state(spec.Run))
	}
	require.Contains(b, b.rt.Capabilities().Enforced, "home")
	require.NotEmpty(b, b.rt.Capabilities().Version)
}

func freezes(b *bench) {
	spec := b.h.Spec(b.T)
	b.start(spec)
	b.write(spec.Run, "/home/carrel/notes", "before")
	require.NoError(b, b.rt.Freeze(b.ctx(), spec.Run))
	require.Equal(b, "before", string(b.h.ReadHome(b.T, copyFile(b, spec.Home), "notes")))

	ctx, cancel := context.WithTimeout(b.ctx(), 300*time.Millisecond)
	defer cancel()
	_, err := b.tryAsk(ctx, spec.Run, probe.Request{Op: "next"})
	require.Error(b, err, "a frozen sandbox answered")
	require.NoError(b, b.rt.Thaw(b.ctx(), spec.Run))
	b.write(spec.Run, "/home/carrel/notes", "after")
	require.NoError(b, b.rt.Destroy(b.ctx(), spec.Run))
	require.Equal(b, "after", string(b.h.ReadHome(b.T, spec.Home, "notes")), "the home image lost what was written before Destroy")
}

func memoryGoesOn(b *bench) {
	spec := b.h.Spec(b.T)
	b.start(spec)
	nonce := b.nonce(spec.Run)
	for i := range 3 {
		require.EqualValues(b, i+1, b.ask(spec.Run, probe.Request{Op: "next"}).N)
	}
	sum := b.ask(spec.Run, probe.Request{Op: "hog", N: 8 << 20}).N
	b.write(spec.Run, "/home/carrel/a", "home")
	b.write(spec.Run, "/opt/b", "root")
	b.ask(spec.Run, probe.Request{Op: "remove", Path: ImageFile})
	for round := range 2 {
		dir, home := b.capture(spec, true)
		spec = b.next(spec, dir, home, true)
		b.start(spec)
		require.Equal(b, nonce, b.nonce(spec.Run), "process 1 is another")
		require.EqualValues(b, 4+round, b.ask(spec.Run, probe.Request{Op: "next"}).N)
		require.Equal(b, sum, b.ask(spec.Run, probe.Request{Op: "checksum"}).N)
		require.Equal(b, "home", b.read(spec.Run, "/home/carrel/a"))
		require.Equal(b, "root", b.read(spec.Run, "/opt/b"))
		_, err := b.tryAsk(b.ctx(), spec.Run, probe.Request{Op: "read", Path: ImageFile})
		require.Error(b, err, "a removed file came back")
	}
}

func manyFromOne(b *bench) {
	spec := b.h.Spec(b.T)
	b.start(spec)
	nonce := b.nonce(spec.Run)
	dir, home := b.capture(spec, true)
	before := tree(b, dir)
	for range 2 {
		spec = b.next(spec, dir, home, true)
		b.start(spec)
		require.Equal(b, nonce, b.nonce(spec.Run))
		require.EqualValues(b, 1, b.ask(spec.Run, probe.Request{Op: "next"}).N)
		require.NoError(b, b.rt.Destroy(b.ctx(), spec.Run))
		require.Equal(b, before, tree(b, dir), "the capture was changed")
	}
}

func cold(b *bench) {
	spec := b.h.Spec(b.T)
	b.start(spec)
	nonce := b.nonce(spec.Run)
	for _, memory := range []bool{false, true} { // from either kind of capture
		b.ask(spec.Run, probe.Request{Op: "next"})
		b.write(spec.Run, "/opt/b", "root")
		b.write(spec.Run, "/home/carrel/a", "home")
		if !memory {
			b.ask(spec.Run, probe.Request{Op: "remove", Path: ImageFile})
		}
		dir, home := b.capture(spec, memory)
		spec = b.next(spec, dir, home, false)
		b.start(spec)
		require.NotEqual(b, nonce, b.nonce(spec.Run), "the memory came back")
		require.EqualValues(b, 1, b.ask(spec.Run, probe.Request{Op: "next"}).N)
		require.Equal(b, "root", b.read(spec.Run, "/opt/b"))
		require.Equal(b, "home", b.read(spec.Run, "/home/carrel/a"))
		_, err := b.tryAsk(b.ctx(), spec.Run, probe.Request{Op: "read", Path: ImageFile})
		require.Error(b, err, "a removed file came back")
	}
	// What began cold from a capture can be captured with memory and go on.
	nonce = b.nonce(spec.Run)
	dir, home := b.capture(spec, true)
	spec = b.next(spec, dir, home, true)
	b.start(spec)
	require.Equal(b, nonce, b.nonce(spec.Run))
	require.Equal(b, "root", b.read(spec.Run, "/opt/b"))
}

func saves(b *bench) {
	spec := b.h.Spec(b.T)
	b.start(spec)
	nonce := b.nonce(spec.Run)
	require.NoError(b, b.rt.Freeze(b.ctx(), spec.Run))
	full := b.TempDir()
	require.NoError(b, os.WriteFile(filepath.Join(full, "mine"), []byte("x"), 0o600))
	require.Error(b, b.rt.Save(b.ctx(), spec.Run, full, runtime.SaveOptions{Memory: true}), "saving into a directory that is not empty")
	require.Equal(b, []string{"mine"}, names(b, full), "a refused Save changed the directory")
	for _, memory := range []bool{true, false, true} {
		dir := b.TempDir()
		require.NoError(b, b.rt.Save(b.ctx(), spec.Run, dir, runtime.SaveOptions{Memory: memory}))
		require.NotEmpty(b, names(b, dir))
		require.Equal(b, runtime.StateFrozen, b.state(spec.Run))
	}
	require.NoError(b, b.rt.Thaw(b.ctx(), spec.Run))
	require.Equal(b, nonce, b.nonce(spec.Run))
}

func refuses(b *bench) {
	absent := NewRun()
	require.ErrorIs(b, b.rt.Freeze(b.ctx(), absent), runtime.ErrNotFound)
	require.ErrorIs(b, b.rt.Thaw(b.ctx(), absent), runtime.ErrNotFound)
	require.ErrorIs(b, b.rt.Save(b.ctx(), absent, b.TempDir(), runtime.SaveOptions{}), runtime.ErrNotFound)
	_, err := b.rt.Wait(b.ctx(), absent)
	require.ErrorIs(b, err, runtime.ErrNotFound)
	_, err = b.rt.Dial(b.ctx(), absent)
	require.ErrorIs(b, err, runtime.ErrNotFound)
	require.NoError(b, b.rt.Destroy(b.ctx(), absent))
	for _, name := range []string{"", "..", "r/../../x", "short"} {
		require.Error(b, b.rt.Destroy(b.ctx(), name), "%q is no id", name)
		require.Error(b, b.rt.Freeze(b.ctx(), name), "%q is no id", name)
	}

	spec := b.h.Spec(b.T)
	b.start(spec)
	nonce := b.nonce(spec.Run)
	require.ErrorIs(b, b.rt.Start(b.ctx(), spec), runtime.ErrExists)
	require.ErrorIs(b, b.rt.Save(b.ctx(), spec.Run, b.TempDir(), runtime.SaveOptions{}), runtime.ErrState)
	require.Equal(b, nonce, b.nonce(spec.Run), "a refused call disturbed the sandbox")
}

func damagedCapture(b *bench) {
	spec := b.h.Spec(b.T)
	b.start(spec)
	b.nonce(spec.Run)
	dir, home := b.capture(spec, true)
	files := slices.Sorted(mapKeys(tree(b, dir)))
	require.NotEmpty(b, files)
	for _, memory := range []bool{true, false} {
		for _, file := range files {
			if used := filepath.Base(file) == "capture.json" || memory == (filepath.Dir(file) == "memory"); !used {
				continue
			}
			for how, damage := range map[string]func(path string) error{
				"shorter": func(path string) error { return os.Truncate(path, size(b, path)/2) },
				"empty":   func(path string) error { return os.Truncate(path, 0) },
				"missing": os.Remove,
				"a link":  func(path string) error { return errors.Join(os.Remove(path), os.Symlink("/dev/zero", path)) },
			} {
				broken := filepath.Join(b.TempDir(), "capture")
				require.NoError(b, os.CopyFS(broken, os.DirFS(dir)))
				require.NoError(b, damage(filepath.Join(broken, file)))
				before := tree(b, broken)
				next := b.next(spec, broken, home, memory)
				require.ErrorIs(b, b.rt.Start(b.ctx(), next), runtime.ErrCorrupt, "%s %s, memory %v", file, how, memory)
				require.Empty(b, b.state(next.Run))
				require.Equal(b, before, tree(b, broken), "the capture was changed")
			}
		}
	}
	good := b.next(spec, dir, home, true)
	b.start(good)
	b.nonce(good.Run)
}

func foreignCapture(b *bench) {
	spec := b.h.Spec(b.T)
	b.start(spec)
	b.nonce(spec.Run)
	dir, home := b.capture(spec, true)
	other := b.next(spec, dir, home, true)
	other.Image = copyFile(b, spec.Image) // another path
	require.ErrorIs(b, b.rt.Start(b.ctx(), other), runtime.ErrIncompatible)
	require.Empty(b, b.state(other.Run))

	spec = b.next(spec, dir, home, true)
	b.start(spec)
	dir, home = b.capture(spec, false)
	without := b.next(spec, dir, home, true)
	require.ErrorIs(b, b.rt.Start(b.ctx(), without), runtime.ErrIncompatible, "memory from a capture that has none")
	require.Empty(b, b.state(without.Run))
}

func failedStart(b *bench) {
	for what, spec := range b.h.BadSpecs(b.T) {
		for range 2 {
			require.Error(b, b.rt.Start(b.ctx(), spec), what)
			require.Empty(b, b.state(spec.Run), what)
		}
	}
}

func cancelledStart(b *bench) {
	spec := b.h.Spec(b.T)
	for _, limit := range []time.Duration{0, time.Millisecond, 20 * time.Millisecond, 60 * time.Millisecond} {
		ctx, cancel := context.WithTimeout(b.ctx(), limit)
		err := b.rt.Start(ctx, spec)
		cancel()
		if err == nil {
			require.NoError(b, b.rt.Destroy(b.ctx(), spec.Run))
		}
		require.Empty(b, b.state(spec.Run))
		b.h.Renew(b.T, spec)
	}
	b.start(spec)
	b.nonce(spec.Run)
}

func killed(b *bench) {
	for _, frozen := range []bool{false, true} {
		spec := b.h.Spec(b.T)
		b.start(spec)
		b.nonce(spec.Run)
		if frozen {
			require.NoError(b, b.rt.Freeze(b.ctx(), spec.Run))
		}
		exit := make(chan runtime.Exit, 1)
		go func() {
			e, err := b.rt.Wait(b.ctx(), spec.Run)
			if err != nil {
				e.Message = err.Error()
			}
			exit <- e
		}()
		b.h.Kill(b.T, spec.Run)
		e := <-exit
		require.Contains(b, []string{"killed", "unknown"}, e.Reason, e.Message)
		require.NotEmpty(b, e.Message)
		require.Equal(b, -1, e.Code)
		require.Equal(b, runtime.StateExited, b.state(spec.Run))
		again, err := b.rt.Wait(b.ctx(), spec.Run)
		require.NoError(b, err)
		require.Contains(b, []string{"killed", "unknown"}, again.Reason)
		require.ErrorIs(b, b.rt.Freeze(b.ctx(), spec.Run), runtime.ErrDied)
		require.ErrorIs(b, b.rt.Thaw(b.ctx(), spec.Run), runtime.ErrDied)
		require.ErrorIs(b, b.rt.Save(b.ctx(), spec.Run, b.TempDir(), runtime.SaveOptions{}), runtime.ErrDied)
		require.ErrorIs(b, b.rt.Start(b.ctx(), spec), runtime.ErrExists)
		require.NoError(b, b.rt.Destroy(b.ctx(), spec.Run))
		require.Empty(b, b.state(spec.Run))
	}
}

func ended(b *bench) {
	spec := b.h.Spec(b.T)
	b.start(spec)
	b.nonce(spec.Run)
	_, err := b.tryAsk(b.ctx(), spec.Run, probe.Request{Op: "exit", N: 7})
	require.Error(b, err, "process 1 ended and answered")
	e, err := b.rt.Wait(b.ctx(), spec.Run)
	require.NoError(b, err)
	if e.Reason != "unknown" { // where nobody can know the exit code
		require.Equal(b, "exited", e.Reason, e.Message)
		require.Equal(b, 7, e.Code)
	}
	require.Equal(b, runtime.StateExited, b.state(spec.Run))
}

func newProcess(b *bench) {
	spec := b.h.Spec(b.T)
	b.start(spec)
	nonce := b.nonce(spec.Run)
	b.rt = b.h.Open(b.T)
	require.Equal(b, runtime.StateRunning, b.state(spec.Run))
	require.Equal(b, nonce, b.nonce(spec.Run))
	require.NoError(b, b.rt.Freeze(b.ctx(), spec.Run))
	b.rt = b.h.Open(b.T)
	require.Equal(b, runtime.StateFrozen, b.state(spec.Run))
	dir, home := b.capture(spec, true)
	require.Empty(b, b.state(spec.Run))
	spec = b.next(spec, dir, home, true)
	b.start(spec)
	require.Equal(b, nonce, b.nonce(spec.Run))
	b.rt = b.h.Open(b.T)
	exit := make(chan error, 1)
	go func() {
		_, err := b.rt.Wait(b.ctx(), spec.Run)
		exit <- err
	}()
	b.h.Kill(b.T, spec.Run)
	require.NoError(b, <-exit)
	require.NoError(b, b.rt.Destroy(b.ctx(), spec.Run))
}

func waitCancelled(b *bench) {
	spec := b.h.Spec(b.T)
	b.start(spec)
	ctx, cancel := context.WithTimeout(b.ctx(), 50*time.Millisecond)
	defer cancel()
	_, err := b.rt.Wait(ctx, spec.Run)
	require.ErrorIs(b, err, context.DeadlineExceeded)
	b.nonce(spec.Run)
}

func parallel(b *bench) {
	const n = 4
	specs := make([]runtime.Spec, n)
	for i := range specs {
		specs[i] = b.h.Spec(b.T)
	}
	results := make(chan error, n)
	for _, spec := range specs {
		b.Cleanup(func() {
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			require.NoError(b, b.rt.Destroy(ctx, spec.Run))
		})
		go func() {
			results <- func() error {
				if err := b.rt.Start(b.ctx(), spec); err != nil {
					return err
				}
				if _, err := b.tryAsk(b.ctx(), spec.Run, probe.Request{Op: "nonce"}); err != nil {
					return err
				}
				if err := b.rt.Freeze(b.ctx(), spec.Run); err != nil {
					return err
				}
				return b.rt.Destroy(b.ctx(), spec.Run)
			}()
		}()
	}
	for range specs {
		require.NoError(b, <-results)
	}
}

func memoryLimit(b *bench) {
	spec := b.h.Spec(b.T)
	b.start(spec)
	b.nonce(spec.Run)
	if !slices.Contains(b.rt.Capabilities().Enforced, "memory") {
		return
	}
	require.Equal(b, spec.Limits.Memory, b.ask(spec.Run, probe.Request{Op: "memory"}).N, "memory as advertised")
	// A sandbox that died says nothing more, not even that the connection is closed.
	ctx, cancel := context.WithCancel(b.ctx())
	answer := make(chan error, 1)
	go func() {
		_, err := b.tryAsk(ctx, spec.Run, probe.Request{Op: "hog", N: spec.Limits.Memory + 2*spec.Limits.Headroom})
		answer <- err
	}()
	e, err := b.rt.Wait(b.ctx(), spec.Run)
	cancel()
	require.Error(b, <-answer, "it has more memory than its limit")
	require.NoError(b, err)
	require.Equal(b, "memory", e.Reason, e.Message)
}

// tree maps the files below dir to what they are: size and time of change.
func tree(b *bench, dir string) map[string]string {
	b.Helper()
	out := map[string]string{}
	require.NoError(b, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		out[rel] = info.Mode().String() + " " + info.ModTime().String() + " " + time.Duration(info.Size()).String()
		return err
	}))
	return out
}

func mapKeys[V any](m map[string]V) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

func names(b *bench, dir string) []string {
	entries, err := os.ReadDir(dir)
	require.NoError(b, err)
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

func size(b *bench, path string) int64 {
	info, err := os.Stat(path)
	require.NoError(b, err)
	return info.Size()
}
