package gvisor

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"carrel.dev/carrel/internal/runtime"
	"carrel.dev/carrel/internal/runtime/runtimetest"
)

func TestHierarchiesAreFoundInAnyLayout(t *testing.T) {
	for _, c := range []struct {
		name, mountinfo string
		want            []hierarchy
	}{
		{"version 1, one each", `30 24 0:26 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
31 24 0:27 / /sys/fs/cgroup/cpu,cpuacct rw shared:3 - cgroup cgroup rw,cpu,cpuacct
32 24 0:28 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids
33 24 0:29 / /sys/fs/cgroup/freezer rw - cgroup cgroup rw,freezer
`, []hierarchy{
			{mount: "/sys/fs/cgroup/memory", controllers: []string{"memory"}},
			{mount: "/sys/fs/cgroup/cpu,cpuacct", controllers: []string{"cpu"}},
			{mount: "/sys/fs/cgroup/pids", controllers: []string{"pids"}},
		}},
		{"version 2", "30 24 0:26 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw,nsdelegate\n",
			[]hierarchy{{mount: "/sys/fs/cgroup", v2: true}}},
		{"version 1 comes first in a mixture", `30 24 0:26 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
31 24 0:27 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids
`, []hierarchy{{mount: "/sys/fs/cgroup/pids", controllers: []string{"pids"}}, {mount: "/sys/fs/cgroup/unified", v2: true}}},
		{"the same hierarchy twice counts once", `31 24 0:27 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids
32 24 0:27 / /mnt/pids rw - cgroup cgroup rw,pids
`, []hierarchy{{mount: "/sys/fs/cgroup/pids", controllers: []string{"pids"}}}},
		{"a part of one does not count", "31 24 0:27 /docker/1 /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n", nil},
		{"none", "1 0 8:1 / / rw - ext4 /dev/sda rw\n\nrubbish\n", nil},
	} {
		t.Run(c.name, func(t *testing.T) { require.Equal(t, c.want, parseHierarchies([]byte(c.mountinfo))) })
	}
}

func TestLimitsForBothVersions(t *testing.T) {
	l := runtime.Limits{CPUMillis: 1500, Memory: 1 << 30, Headroom: 1 << 20, Processes: 100}
	require.Equal(t, []limitWrite{{"cpu.max", "150000 100000", false}}, limitWrites("cpu", true, l))
	require.Equal(t, []limitWrite{{"cpu.cfs_period_us", "100000", false}, {"cpu.cfs_quota_us", "150000", false}}, limitWrites("cpu", false, l))
	require.Equal(t, limitWrite{"memory.max", "1074790400", false}, limitWrites("memory", true, l)[0])
	require.Equal(t, limitWrite{"memory.limit_in_bytes", "1074790400", false}, limitWrites("memory", false, l)[0])
	require.Equal(t, []limitWrite{{"pids.max", "712", false}}, limitWrites("pids", true, l))
	require.EqualValues(t, 1000, cpuQuota(runtime.Limits{CPUMillis: 1}), "the kernel takes no less")
}

func TestTheLastMeaningfulLine(t *testing.T) {
	for in, want := range map[string]string{
		"":           "",
		"one\ntwo\n": "two",
		"it broke\n\ngoroutine 1 []:\nmain.main()\n":                              "it broke",
		`{"msg":"first","level":"error"}{"msg":"second","level":"error"}`:         "second",
		`{"msg":"failed to load kernel: x:\ngoroutine 1","level":"error"}` + "\n": "failed to load kernel: x:",
		"\xff\x00 binary": "?\x00 binary",
	} {
		require.Equal(t, want, lastLine([]byte(in)), "%q", in)
	}
	require.LessOrEqual(t, len(lastLine([]byte(strings.Repeat("x", 100_000)))), 1010)
}

func TestWhatRunscSaysHasAKind(t *testing.T) {
	for message, want := range map[string]error{
		`checkpoint failed: write: no space left on device`:                                    runtime.ErrNoSpace,
		`"Args" does not match across checkpoint restore for container`:                        runtime.ErrIncompatible,
		`runsc version does not match across checkpoint restore, checkpoint: a current: b`:     runtime.ErrIncompatible,
		`failed to load kernel: main MF start failed: failed to read metadata: unexpected EOF`: runtime.ErrCorrupt,
		`starting sandbox: something else`:                                                     nil,
	} {
		require.Equal(t, want, classify(message), message)
	}
}

func TestVersions(t *testing.T) {
	require.Equal(t, "carrel-1", parseVersion("runsc version carrel-1\nspec: 1.2.1\n"))
	require.Empty(t, parseVersion("something else\n"))
	runsc := filepath.Join(t.TempDir(), "runsc")
	require.NoError(t, os.WriteFile(runsc, []byte("#!/bin/sh\necho runsc version VERSION_MISSING\n"), 0o755))
	dir := t.TempDir()
	cfg := Config{Runsc: runsc, Root: filepath.Join(dir, "r"), OverlayDir: filepath.Join(dir, "o"), CgroupParent: "/x"}
	_, err := New(cfg)
	require.ErrorContains(t, err, "names no version", "captures of such a build could be restored by any other")
	cfg.OverlayDir = "relative"
	_, err = New(cfg)
	require.ErrorContains(t, err, "OverlayDir")
}

func TestWaitingForAProcessThatIsNotOurs(t *testing.T) {
	cmd := exec.Command("sleep", "60")
	require.NoError(t, cmd.Start())
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	always := func() bool { return true }
	_, err := waitPid(ctx, cmd.Process.Pid, always)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	_, err = waitPid(context.Background(), cmd.Process.Pid, func() bool { return false })
	require.NoError(t, err, "a process that took the number must not be waited for")
	require.NoError(t, cmd.Process.Kill())
	st, err := waitPid(context.Background(), cmd.Process.Pid, always) // a zombie of ours now
	require.NoError(t, err)
	require.Equal(t, exitStatus{known: true, code: -1, signal: 9}, st)
	require.Error(t, cmd.Wait())
	st, err = waitPid(context.Background(), cmd.Process.Pid, always)
	require.NoError(t, err)
	require.False(t, st.known)
}

func TestACaptureIsChecked(t *testing.T) {
	made := program{Path: "/runsc", SHA256: "1234", Version: "carrel-1"}
	r := &Runtime{programs: programs{newer: made}}
	newDir := func() string {
		dir := t.TempDir()
		require.NoError(t, os.Mkdir(filepath.Join(dir, captureMemory), 0o700))
		for _, name := range []string{captureUpper, captureState, captureMeta, capturePages} {
			require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(name), 0o600))
		}
		require.NoError(t, describe(dir, true, made))
		return dir
	}
	for _, memory := range []bool{true, false} {
		chosen, err := r.checkCapture(newDir(), memory)
		require.NoError(t, err)
		require.Equal(t, made, chosen)
	}
	write := func(dir, name, content string) {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600))
	}
	for what, c := range map[string]struct {
		change func(dir string)
		memory error // of a check with memory
		disk   error
	}{
		"a bit of the kernel's state": {func(dir string) { write(dir, captureState, "memory/checkpoint.imG") }, runtime.ErrCorrupt, nil},
		"a bit of the page table":     {func(dir string) { write(dir, captureMeta, "memory/pages_meta.imG") }, runtime.ErrCorrupt, nil},
		"the size of the pages":       {func(dir string) { write(dir, capturePages, "short") }, runtime.ErrCorrupt, nil},
		"which runsc it was":          {func(dir string) { write(dir, captureProgram, `{"sha256":"4321"}`) }, runtime.ErrCorrupt, nil},
		"the size of the root":        {func(dir string) { write(dir, captureUpper, "short") }, nil, runtime.ErrCorrupt},
		"an unknown field":            {func(dir string) { write(dir, captureFile, `{"format":1,"runtime":"gvisor","x":1}`) }, runtime.ErrCorrupt, runtime.ErrCorrupt},
		"another runtime":             {func(dir string) { write(dir, captureFile, `{"format":1,"runtime":"other"}`) }, runtime.ErrIncompatible, runtime.ErrIncompatible},
		"another version": {func(dir string) {
			write(dir, captureFile, `{"format":1,"runtime":"gvisor","version":"carrel-0","memory":true,"files":{"upper.tar":{"size":9}}}`)
		}, runtime.ErrIncompatible, nil},
		"no files": {func(dir string) {
			write(dir, captureFile, `{"format":1,"runtime":"gvisor","version":"carrel-1","memory":true}`)
		}, runtime.ErrCorrupt, runtime.ErrCorrupt},
	} {
		t.Run(what, func(t *testing.T) {
			dir := newDir()
			c.change(dir)
			for _, check := range []struct {
				memory bool
				want   error
			}{{true, c.memory}, {false, c.disk}} {
				_, err := r.checkCapture(dir, check.memory)
				require.True(t, errors.Is(err, check.want) && (err == nil) == (check.want == nil), "memory %v: %v", check.memory, err)
			}
		})
	}
}

func TestOnlyIdsName(t *testing.T) {
	require.NoError(t, checkRun(runtimetest.NewRun()))
	for _, bad := range []string{"", "r", "../../../../etc/xxxx", strings.Repeat("r", 21)} {
		require.Error(t, checkRun(bad))
	}
}
