package gvisor

import (
	"context"
	"encoding/json"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"carrel.dev/carrel/internal/runtime"
	"carrel.dev/carrel/internal/runtime/runtimetest"
	"carrel.dev/carrel/internal/runtime/runtimetest/probe"
)

// useless says that it is another version of runsc, and fails whatever else it is asked for.
func useless(t *testing.T) string {
	path := filepath.Join(t.TempDir(), "runsc")
	script := "#!/bin/sh\n[ \"$1\" = --version ] && echo runsc version carrel-useless && exit\necho 'this runsc is useless' >&2\nexit 9\n"
	require.NoError(t, os.WriteFile(path, []byte(script), 0o755))
	return path
}

func nonce(t *testing.T, rt *Runtime, runID string) string {
	t.Helper()
	answer, err := probe.Ask(t.Context(), func(ctx context.Context) (net.Conn, error) { return rt.Dial(ctx, runID) }, probe.Request{Op: "nonce"})
	require.NoError(t, err)
	return string(answer.Data)
}

// begin starts a sandbox that is destroyed at the end of the test.
func (h *harness) begin(t *testing.T, rt *Runtime, spec runtime.Spec) {
	t.Helper()
	t.Cleanup(func() { require.NoError(t, rt.Destroy(context.Background(), spec.Run)) })
	require.NoError(t, rt.Start(t.Context(), spec))
}

// pause saves a sandbox with its memory and destroys it; it returns the specification of its next run.
func (h *harness) pause(t *testing.T, rt *Runtime, spec runtime.Spec) runtime.Spec {
	t.Helper()
	dir, home := t.TempDir(), filepath.Join(t.TempDir(), "home")
	require.NoError(t, rt.Freeze(t.Context(), spec.Run))
	require.NoError(t, rt.Save(t.Context(), spec.Run, dir, runtime.SaveOptions{Memory: true}))
	run(t, "cp --sparse=always "+spec.Home+" "+home)
	require.NoError(t, rt.Destroy(t.Context(), spec.Run))
	h.renew(t, spec)
	spec.Run, spec.Home, spec.From, spec.WithMemory = runtimetest.NewRun(), home, dir, true
	return spec
}

// Everything that is done with a sandbox is done by the binary that began it. A new one that could do nothing at all
// would not be noticed, but by what begins anew.
func TestTheNewBinaryTouchesNoOldSandbox(t *testing.T) {
	if testing.Short() {
		return
	}
	for what, forget := range map[string]func(t *testing.T, rt *Runtime, run string){
		"as ever": func(*testing.T, *Runtime, string) {},
		"begun by a Carrel that did not write down with which": func(t *testing.T, rt *Runtime, run string) {
			file, err := rt.readRunFile(run)
			require.NoError(t, err)
			file.Runsc = program{}
			data, err := json.Marshal(file)
			require.NoError(t, err)
			require.NotContains(t, string(data), "runsc")
			require.NoError(t, os.WriteFile(rt.path(run, fileRun), data, 0o600))
		},
	} {
		t.Run(what, func(t *testing.T) {
			h := newHarness(t)
			spec := h.spec(t)
			old := h.open(t)
			h.begin(t, old, spec)
			first := nonce(t, old, spec.Run)
			forget(t, old, spec.Run)

			rt := h.upgraded(t, useless(t)).open(t)
			version, err := rt.VersionOf(spec.Run)
			require.NoError(t, err)
			require.Equal(t, old.Capabilities().Version, version)
			require.NoError(t, rt.Freeze(t.Context(), spec.Run))
			require.NoError(t, rt.Thaw(t.Context(), spec.Run))
			require.NoError(t, rt.Sweep(nil))
			spec = h.pause(t, rt, spec)
			require.NoError(t, rt.Sweep([]string{spec.From}))
			h.begin(t, rt, spec)
			require.Equal(t, first, nonce(t, rt, spec.Run))
			require.NoError(t, rt.Destroy(t.Context(), spec.Run))

			cold := h.coldFrom(t, spec)
			require.ErrorContains(t, rt.Start(t.Context(), cold), "useless", "what begins anew has the new binary")
		})
	}
}

// coldFrom is the specification of a cold start from the same capture.
func (h *harness) coldFrom(t *testing.T, spec runtime.Spec) runtime.Spec {
	h.renew(t, spec)
	spec.Run, spec.WithMemory = runtimetest.NewRun(), false
	return spec
}

// A box whose binary somebody removed is not stuck: it can be stopped. Its memory is not saved by another binary, which might write
// what none can read, and is once its own is there again.
func TestABinaryThatIsGone(t *testing.T) {
	if testing.Short() {
		return
	}
	h := newHarness(t)
	spec := h.spec(t)
	old := h.open(t)
	h.begin(t, old, spec)
	first := nonce(t, old, spec.Run)
	next := h.upgraded(t, nextPath(t))
	require.NoError(t, os.Remove(h.cfg.Runsc))

	rt := next.open(t)
	require.Empty(t, rt.Capabilities().Former)
	require.NoError(t, rt.Freeze(t.Context(), spec.Run))
	dir := t.TempDir()
	require.ErrorIs(t, rt.Save(t.Context(), spec.Run, dir, runtime.SaveOptions{Memory: true}), runtime.ErrIncompatible)
	require.NoError(t, rt.Save(t.Context(), spec.Run, dir, runtime.SaveOptions{}))
	require.NoError(t, rt.Thaw(t.Context(), spec.Run))
	require.Equal(t, first, nonce(t, rt, spec.Run))

	h.install(t, runscPath(t))
	rt = next.open(t)
	spec = h.pause(t, rt, spec)
	require.NoError(t, os.Remove(h.cfg.Runsc))
	require.ErrorIs(t, next.open(t).Start(t.Context(), spec), runtime.ErrIncompatible)
	h.install(t, runscPath(t))
	h.begin(t, rt, spec)
	require.Equal(t, first, nonce(t, rt, spec.Run))
	require.NoError(t, rt.Destroy(t.Context(), spec.Run))

	// What was saved of the files alone is good for a cold start with any.
	h.renew(t, spec)
	spec.Run, spec.From, spec.WithMemory = runtimetest.NewRun(), dir, false
	h.begin(t, rt, spec)
	require.NotEqual(t, first, nonce(t, rt, spec.Run))
}

// Captures of Carrel's first versions name the version alone.
func TestACaptureThatNamesNoBinary(t *testing.T) {
	if testing.Short() {
		return
	}
	h := newHarness(t)
	spec := h.spec(t)
	old := h.open(t)
	h.begin(t, old, spec)
	first := nonce(t, old, spec.Run)
	spec = h.pause(t, old, spec)
	c, err := readCapture(spec.From)
	require.NoError(t, err)
	require.NotEmpty(t, c.Files[captureProgram])
	delete(c.Files, captureProgram)
	data, err := json.Marshal(c)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(spec.From, captureFile), data, 0o600))
	require.NoError(t, os.Remove(filepath.Join(spec.From, captureProgram)))

	rt := h.upgraded(t, nextPath(t)).open(t)
	require.NoError(t, rt.Sweep([]string{spec.From}))
	h.begin(t, rt, spec)
	require.Equal(t, first, nonce(t, rt, spec.Run))
}

// A Carrel that is put back in the place of a newer one refuses a capture.json with anything that it does not know.
func TestTheFormOfACaptureStays(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.Mkdir(filepath.Join(dir, captureMemory), 0o700))
	for name := range captureNames(true) {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), nil, 0o600))
	}
	require.NoError(t, describe(dir, true, program{Path: "/runsc", SHA256: "1234", Version: "carrel-1"}))
	data, err := os.ReadFile(filepath.Join(dir, captureFile))
	require.NoError(t, err)
	var all struct {
		Files map[string]map[string]any `json:"files"`
	}
	fields := map[string]any{}
	require.NoError(t, json.Unmarshal(data, &fields))
	require.NoError(t, json.Unmarshal(data, &all))
	for name := range fields {
		require.Contains(t, []string{"format", "runtime", "version", "memory", "files"}, name)
	}
	for _, item := range all.Files {
		for name := range item {
			require.Contains(t, []string{"size", "sha256"}, name)
		}
	}
}

func TestWhichBinaryIsChosen(t *testing.T) {
	p := programs{
		newer:  program{Path: "new", SHA256: "3", Version: "v2"},
		former: []program{{Path: "a", SHA256: "1", Version: "v1"}, {Path: "b", SHA256: "2", Version: "v1"}, {Path: "c", SHA256: "4", Version: "v2"}},
	}
	for _, c := range []struct{ sum, version, want string }{
		{"2", "v1", "b"},   // the very one
		{"4", "v2", "c"},   // also if the new one is of the same version
		{"9", "v1", "a"},   // it is gone; another of its version
		{"", "v2", "new"},  // it is not known which; that of new sandboxes comes first
		{"9", "v3", ""},    // nothing
		{"", "", ""},       // nothing
		{"3", "v2", "new"}, // no upgrade
	} {
		got, ok := p.choose(c.sum, c.version)
		require.Equal(t, c.want, got.Path, "%+v", c)
		require.Equal(t, c.want != "", ok)
	}
	require.Equal(t, []string{"v1"}, p.formerVersions())
}

// Sweep removes nothing while it does not know what is needed, and nothing but binaries of runsc ever.
func TestSweepingKeepsWhatItDoesNotKnow(t *testing.T) {
	root := t.TempDir()
	binary := func(name, version string) string {
		path := filepath.Join(root, "bin", name)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, []byte("#!/bin/sh\n"+version+"\n"), 0o755))
		return path
	}
	sum := func(digit byte) string { return string(slices.Repeat([]byte{digit}, 64)) }
	newest := binary("runsc-"+sum('a'), "echo runsc version carrel-3")
	former := binary("runsc-"+sum('b'), "echo runsc version carrel-2")
	broken := binary("runsc-"+sum('c'), "exit 1")
	others := []string{binary("agent-"+sum('d'), "echo runsc version carrel-1"), binary("runsc-abc", "echo runsc version carrel-1"), binary("runsc", "echo runsc version carrel-1")}
	rt := &Runtime{root: root, log: slog.New(slog.NewTextHandler(t.Output(), nil))}
	require.NoError(t, os.Mkdir(filepath.Join(root, "runs"), 0o700))
	require.NoError(t, rt.programs.find(newest, filepath.Dir(newest), rt.log))
	require.Equal(t, []string{"carrel-2"}, rt.programs.formerVersions())
	capture := filepath.Join(root, "capture")
	require.NoError(t, os.MkdirAll(filepath.Join(capture, captureMemory), 0o700))
	for name := range captureNames(true) {
		require.NoError(t, os.WriteFile(filepath.Join(capture, name), nil, 0o600))
	}
	require.NoError(t, describe(capture, true, program{SHA256: sum('b'), Version: "carrel-2"}))
	whole, err := os.ReadFile(filepath.Join(capture, captureFile))
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(capture, captureFile), whole[:20], 0o600))
	require.ErrorIs(t, rt.Sweep([]string{capture}), runtime.ErrCorrupt)
	require.FileExists(t, former)
	require.NoError(t, os.WriteFile(filepath.Join(capture, captureFile), whole, 0o600))
	require.NoError(t, rt.Sweep([]string{capture}))
	require.FileExists(t, former)
	require.NoError(t, rt.Sweep(nil))
	require.NoFileExists(t, former)
	for _, path := range append(others, newest, broken) {
		require.FileExists(t, path)
	}
}
