package image

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"carrel.dev/carrel/images"
	"carrel.dev/carrel/internal/carrel"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/stretchr/testify/require"
)

// fakeDebian is a program in the place of mmdebstrap: the script sees the tar file to write as $out and the
// work directory as $work.
func fakeDebian(t testing.TB, script string) Config {
	t.Helper()
	dir := t.TempDir()
	root := filepath.Join(dir, "root.tar")
	require.NoError(t, os.WriteFile(root, makeTar(t, "./", "etc/", "etc/os-release=Debian", "var/lib/dpkg/status=Package: a\nStatus: install ok installed\nVersion: 1\n"), 0o644))
	program := filepath.Join(dir, "mmdebstrap")
	text := "#!/bin/bash\nset -eu\nwork=$PWD; root=" + root + "; out=$work/root.tar\n" + script + "\n"
	require.NoError(t, os.WriteFile(program, []byte(text), 0o755))
	writeTree(t, dir, map[string]string{"apt/sources.list": "deb http://archive.example/debian bookworm main\n"})
	return Config{Mmdebstrap: program, AptDir: filepath.Join(dir, "apt")}
}

func definition(t testing.TB, yaml string) *Definition {
	t.Helper()
	d, err := ParseDefinition([]byte(yaml))
	require.NoError(t, err)
	return d
}

const small = "name: small\nsuite: bookworm\nenvironment: {LANG: C.UTF-8}\n"

// within waits until a condition holds, and fails after ten seconds.
func within(t testing.TB, what string, holds func() bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !holds() {
		require.True(t, time.Now().Before(deadline), "after 10 seconds not yet: %s", what)
		<-tick.C
	}
}

func TestBuildIsFoundAgain(t *testing.T) {
	if testing.Short() {
		return // namespaces need root
	}
	cfg := fakeDebian(t, "echo run >> $(dirname $0)/runs; cp $root $out")
	cfg.Dir = t.TempDir()
	b := newBuilder(t, cfg)
	runs := func() int {
		data, err := os.ReadFile(filepath.Join(filepath.Dir(cfg.Mmdebstrap), "runs"))
		require.NoError(t, err)
		return strings.Count(string(data), "run")
	}
	first, err := b.Build(t.Context(), definition(t, small), nil)
	require.NoError(t, err)
	require.False(t, first.Cached)
	require.Equal(t, []string{"a=1"}, first.Description.Packages)
	require.Equal(t, []string{"LANG=C.UTF-8"}, first.Description.Config.Env)
	require.Equal(t, "small", first.Description.Name)
	requireClean(t, b)

	// Another process, and no way to build.
	cfg.AptDir = "/does/not/exist"
	again, err := newBuilder(t, cfg).Build(t.Context(), definition(t, small), nil)
	require.NoError(t, err)
	require.True(t, again.Cached)
	require.Equal(t, first.Digest, again.Digest)
	require.Equal(t, 1, runs())

	refreshed, err := b.Build(t.Context(), definition(t, small), nil, Refresh())
	require.NoError(t, err)
	require.False(t, refreshed.Cached)
	require.Equal(t, first.Digest, refreshed.Digest, "the same files are the same image")
	require.Equal(t, 2, runs())

	// A damaged image is not used: it is built again, and the damaged file is kept to be looked at.
	require.NoError(t, os.Chmod(first.Path, 0o644))
	file, err := os.OpenFile(first.Path, os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = file.WriteAt([]byte("damage"), 2000)
	require.NoError(t, err)
	require.NoError(t, file.Close())
	_, err = b.Find(t.Context(), first.Digest)
	require.Equal(t, "image_corrupt", carrel.ReasonOf(err))
	_, err = b.Find(t.Context(), first.Digest)
	require.Equal(t, "image_missing", carrel.ReasonOf(err))
	rebuilt, err := b.Build(t.Context(), definition(t, small), nil)
	require.NoError(t, err)
	require.Equal(t, first.Digest, rebuilt.Digest)
	require.Equal(t, 3, runs())

	all, err := b.List()
	require.NoError(t, err)
	require.Len(t, all, 1)
	require.NoError(t, b.Remove(first.Digest))
	require.NoError(t, b.Remove(first.Digest))
	all, err = b.List()
	require.NoError(t, err)
	require.Empty(t, all)
	_, err = b.Find(t.Context(), "sha256:../../etc/passwd")
	require.Equal(t, "bad_digest", carrel.ReasonOf(err))
}

func TestBuildsOfTheSameDefinitionAreOne(t *testing.T) {
	if testing.Short() {
		return
	}
	cfg := fakeDebian(t, "echo run >> $(dirname $0)/runs; echo 'I: running apt-get update...'; read < $(dirname $0)/gate; cp $root $out")
	gate := filepath.Join(filepath.Dir(cfg.Mmdebstrap), "gate")
	require.NoError(t, syscall.Mkfifo(gate, 0o600))
	b := newBuilder(t, cfg)
	var group sync.WaitGroup
	heard, results := make([]chan struct{}, 5), make([]Result, 5)
	for i := range 5 {
		heard[i] = make(chan struct{})
		group.Go(func() {
			var once sync.Once
			got, err := b.Build(t.Context(), definition(t, small), func(line string) {
				if strings.Contains(line, "package lists") {
					once.Do(func() { close(heard[i]) })
				}
			})
			if err == nil {
				results[i] = got
			}
		})
	}
	for i := range heard {
		<-heard[i]
	}
	// One of many leaves: the others go on.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := b.Build(ctx, definition(t, small), nil)
	require.ErrorIs(t, err, context.Canceled)
	require.NoError(t, os.WriteFile(gate, []byte("go\n"), 0o600))
	group.Wait()
	for _, r := range results {
		require.Equal(t, results[0].Digest, r.Digest)
		require.NotEmpty(t, r.Digest)
	}
	data, err := os.ReadFile(filepath.Join(filepath.Dir(cfg.Mmdebstrap), "runs"))
	require.NoError(t, err)
	require.Equal(t, "run\n", string(data))
	requireClean(t, b)
}

func TestCancellingABuildKillsEverything(t *testing.T) {
	if testing.Short() {
		return
	}
	// A child that ignores signals, in a session of its own, with a mount.
	cfg := fakeDebian(t, `mkdir $work/m; mount -t tmpfs none $work/m
setsid bash -c 'trap "" TERM INT HUP; echo "I: running apt-get update..." >&2; while :; do sleep 3977; done' &
wait`)
	b := newBuilder(t, cfg)
	ctx, cancel := context.WithCancel(t.Context())
	_, err := b.Build(ctx, definition(t, small), func(line string) {
		if strings.Contains(line, "package lists") {
			cancel()
		}
	})
	require.ErrorIs(t, err, context.Canceled)
	requireClean(t, b)
	mounts, err := os.ReadFile("/proc/mounts")
	require.NoError(t, err)
	require.NotContains(t, string(mounts), b.cfg.Dir)
	within(t, "no process of the build is left", func() bool {
		commands, err := filepath.Glob("/proc/[0-9]*/cmdline")
		require.NoError(t, err)
		for _, c := range commands {
			if data, err := os.ReadFile(c); err == nil && strings.Contains(string(data), "sleep\x003977") {
				return false
			}
		}
		return true
	})
}

func TestBuildErrorsInWords(t *testing.T) {
	if testing.Short() {
		return
	}
	for _, c := range []struct{ script, reason, words string }{
		{"echo 'E: Unable to locate package gitt' >&2; exit 1", "package_not_found", `there is no package "gitt" in Debian bookworm; correct packages in the image definition`},
		{"echo \"E: Version '9' for 'git' was not found\" >&2; exit 1", "package_not_found", `there is no package "9" in Debian bookworm`},
		{"echo 'Err:1 http://archive.example bookworm InRelease' >&2; echo \"  Could not resolve 'archive.example'\" >&2; echo 'E: mmdebstrap failed to run' >&2; exit 1", "packages_unreachable", "Could not resolve 'archive.example'. Check this machine's network and apt sources, then build again"},
		{"echo 'E: Unable to correct problems, you have held broken packages.' >&2; exit 1", "packages_conflict", "held broken packages"},
		{"echo 'tar: ./x: Cannot write: No space left on device' >&2; exit 2", "disk_full", "there is no room left on the disk for the image"},
		{"echo 'carrel: command 1 of 2' >&2; echo 'make: nothing to do' >&2; echo 'carrel: command 1 ended with an error' >&2; exit 1", "image_command_failed", "command 1 under run of the image small ended with an error: carrel: command 1 of 2; make: nothing to do"},
		{"echo 'dpkg: error processing package x (--configure):' >&2; printf 'E: bad \\033[31mcolour\\n' >&2; exit 1", "image_build_failed", "dpkg: error processing package x (--configure):; E: bad  [31mcolour"},
		{"kill -9 $$", "image_build_failed", ""},
		{"echo 'not a tar file at all' > $out; truncate -s 4096 $out", "image_layer_invalid", ""},
	} {
		b := newBuilder(t, fakeDebian(t, c.script))
		_, err := b.Build(t.Context(), definition(t, small), nil)
		require.Equal(t, c.reason, carrel.ReasonOf(err), "%s: %v", c.script, err)
		require.ErrorContains(t, err, c.words)
		requireClean(t, b)
	}
	b := newBuilder(t, Config{Mmdebstrap: "/does/not/exist"})
	_, err := b.Build(t.Context(), definition(t, small), nil)
	require.Equal(t, "program_missing", carrel.ReasonOf(err))
}

func TestDiskFull(t *testing.T) {
	if testing.Short() {
		return
	}
	for name, run := range map[string]func(b *Builder) error{
		"build": func(b *Builder) error {
			_, err := b.Build(t.Context(), definition(t, small), nil)
			return err
		},
		"import": func(b *Builder) error {
			r := newRegistry(t)
			r.push(t, r.ref("app:1"), imageOf(t, "amd64", layerOf(t, types.OCILayer, makeTar(t, "big="+strings.Repeat("x", 12<<20)))))
			_, err := b.Import(t.Context(), ImportRequest{Reference: r.ref("app:1"), Platform: "linux/amd64", Insecure: true, Trusted: true}, nil)
			return err
		},
		"import, at the end": func(b *Builder) error {
			r := newRegistry(t)
			r.push(t, r.ref("app:1"), imageOf(t, "amd64", layerOf(t, types.OCILayer, makeTar(t, "big="+strings.Repeat("x", 5<<20)))))
			_, err := b.Import(t.Context(), ImportRequest{Reference: r.ref("app:1"), Platform: "linux/amd64", Insecure: true, Trusted: true}, nil)
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=8m", "none", dir).CombinedOutput()
			require.NoError(t, err, string(out))
			defer func() { require.NoError(t, exec.Command("umount", dir).Run()) }()
			cfg := fakeDebian(t, "cp $root $out; head -c 10000000 /dev/zero >> $out")
			cfg.Dir = dir
			b := newBuilder(t, cfg)
			err = run(b)
			require.Equal(t, "disk_full", carrel.ReasonOf(err), "%v", err)
			require.Equal(t, carrel.CodeExhausted, carrel.CodeOf(err))
			requireClean(t, b)
			left, err := b.List()
			require.NoError(t, err)
			require.Empty(t, left)
		})
	}
}

func TestNewRemovesWhatAKilledProcessLeft(t *testing.T) {
	dir := t.TempDir()
	first := newBuilder(t, Config{Dir: dir})
	busy, err := first.store.newWork()
	require.NoError(t, err)
	hex := strings.Repeat("a", 64)
	writeTree(t, dir, map[string]string{
		"tmp/leftover/root.tar":   "x",
		"tmp/json-123":            "{",
		"sha256-" + hex + ".json": "{}",
		"keys/" + hex + ".json":   `{"digest": "sha256:` + hex + `"}`,
	})
	second := newBuilder(t, Config{Dir: dir})
	left, err := os.ReadDir(filepath.Join(dir, "tmp"))
	require.NoError(t, err)
	require.Len(t, left, 1, "what another process works on stays")
	require.Equal(t, filepath.Base(busy.path), left[0].Name())
	require.NoFileExists(t, filepath.Join(dir, "sha256-"+hex+".json"))
	_, ok, err := second.store.findKey(t.Context(), hex)
	require.NoError(t, err)
	require.False(t, ok, "an index entry without its image is nothing")
	require.NoError(t, busy.close())
	requireClean(t, second)
}

// helperVariable makes this test program, started again, a process that is killed in the middle of a build.
const helperVariable = "CARREL_IMAGE_TEST_HELPER"

func TestMain(m *testing.M) {
	if dir := os.Getenv(helperVariable); dir != "" {
		b, err := New(Config{Dir: dir, Mmdebstrap: filepath.Join(dir, "mmdebstrap"), AptDir: filepath.Join(dir, "apt"), Log: quiet()})
		if err == nil {
			d, parseErr := ParseDefinition([]byte(small))
			if err = parseErr; err == nil {
				_, err = b.Build(context.Background(), d, nil)
			}
		}
		fmt.Println(err)
		os.Exit(3)
	}
	os.Exit(m.Run())
}

func TestKilledAtEveryStepItConverges(t *testing.T) {
	if testing.Short() {
		return
	}
	for _, step := range []string{"image/build/bootstrapped", "image/build/written", "image/put/hashed", "image/put/described", "image/put/renamed", "image/build/indexed"} {
		t.Run(step, func(t *testing.T) {
			cfg := fakeDebian(t, "cp $root $out")
			cfg.Dir = filepath.Dir(cfg.Mmdebstrap)
			killed := exec.Command(os.Args[0])
			killed.Env = append(os.Environ(), helperVariable+"="+cfg.Dir, "CARREL_FAILPOINTS="+step+"=kill")
			out, err := killed.CombinedOutput()
			require.ErrorContains(t, err, "signal: killed", string(out))
			b := newBuilder(t, cfg)
			requireClean(t, b)
			got, err := b.Build(t.Context(), definition(t, small), nil)
			require.NoError(t, err)
			found, err := b.Find(t.Context(), got.Digest)
			require.NoError(t, err)
			require.Equal(t, got.Digest, found.Digest)
			all, err := b.List()
			require.NoError(t, err)
			require.Len(t, all, 1)
			requireClean(t, b)
		})
	}
}

func TestKillingTheProcessEndsItsBuild(t *testing.T) {
	if testing.Short() {
		return
	}
	cfg := fakeDebian(t, "touch $(dirname $0)/started; while :; do sleep 3979; done")
	dir := filepath.Dir(cfg.Mmdebstrap)
	process := exec.Command(os.Args[0])
	process.Env = append(os.Environ(), helperVariable+"="+dir)
	require.NoError(t, process.Start())
	within(t, "the build has begun", func() bool {
		_, err := os.Stat(filepath.Join(dir, "started"))
		return err == nil
	})
	require.NoError(t, process.Process.Kill())
	require.Error(t, process.Wait())
	within(t, "no process of the build is left", func() bool {
		commands, err := filepath.Glob("/proc/[0-9]*/cmdline")
		require.NoError(t, err)
		for _, c := range commands {
			if data, err := os.ReadFile(c); err == nil && strings.Contains(string(data), "sleep\x003979") {
				return false
			}
		}
		return true
	})
	cfg.Dir = dir
	requireClean(t, newBuilder(t, cfg))
}

// TestTinyIsRealDebian builds from Debian's packages: it needs what the machine's apt needs.
func TestTinyIsRealDebian(t *testing.T) {
	if testing.Short() {
		return
	}
	data, err := images.Files.ReadFile("tiny.yaml")
	require.NoError(t, err)
	extra := `
files:
  - path: /etc/test's file
    mode: "0600"
    content: "it's here\n"
run:
  - id carrel > /run-saw
  - test "$(cat "/etc/test's file")" = "it's here"
  - "grep -c : /proc/net/dev > /network"
`
	b := newBuilder(t, Config{})
	var lines []string
	got, err := b.Build(t.Context(), definition(t, string(data)+extra), func(line string) { lines = append(lines, line) })
	require.NoError(t, err)
	requireClean(t, b)
	require.Condition(t, func() bool {
		for _, line := range lines {
			if strings.HasPrefix(line, "installing packages: ") && strings.Contains(line, " of ") {
				return true
			}
		}
		return false
	}, "progress has counts: %q", lines)
	require.Condition(t, func() bool {
		for _, p := range got.Description.Packages {
			if strings.HasPrefix(p, "python3-minimal=") {
				return true
			}
		}
		return false
	})
	out, err := exec.Command("fsck.erofs", got.Path).CombinedOutput()
	require.NoError(t, err, string(out))
	withMount(t, got.Path, func(dir string) {
		read := func(name string) string {
			data, err := os.ReadFile(filepath.Join(dir, name))
			require.NoError(t, err)
			return string(data)
		}
		require.Contains(t, read("etc/os-release"), "bookworm")
		require.Equal(t, "uid=1000(carrel) gid=1000(carrel) groups=1000(carrel)\n", read("run-saw"))
		require.Equal(t, "carrel ALL=(ALL) NOPASSWD:ALL\n", read("etc/sudoers.d/carrel"))
		require.Equal(t, "LANG=\"C.UTF-8\"\n", read("etc/environment"))
		require.Equal(t, "1\n", read("network"), "commands see loopback and nothing else")
		require.Empty(t, read("etc/resolv.conf"))
		require.NoDirExists(t, filepath.Join(dir, "usr/share/man/man1"))
		require.NoFileExists(t, filepath.Join(dir, "etc/apt/preferences.d/carrel-build"))
		files := describe(t, dir)
		require.Contains(t, files["usr/bin/sudo"], "urwxr-xr-x")
		out, err := exec.Command("chroot", dir, "python3", "-c", "print(6*7)").CombinedOutput()
		require.NoError(t, err, string(out))
		require.Equal(t, "42\n", string(out))
		out, err = exec.Command("chroot", dir, "localedef", "--list-archive").CombinedOutput()
		require.NoError(t, err, string(out))
		require.Equal(t, "C.utf8\n", string(out), "the locale is one file to open")
	})
}
