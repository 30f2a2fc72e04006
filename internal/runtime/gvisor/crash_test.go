package gvisor

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"carrel.dev/carrel/internal/failpoint"
	"carrel.dev/carrel/internal/runtime"
)

// childVariable holds what a child process of a crash test is to do: a childTask in JSON.
const childVariable = "CARREL_GVISOR_CHILD"

type childTask struct {
	Config Config
	Method string // start, freeze, thaw, save, destroy
	Spec   runtime.Spec
	Dir    string // of save
}

// child does the task and ends with code 3 if it fails.
func child() int {
	var task childTask
	if err := json.Unmarshal([]byte(os.Getenv(childVariable)), &task); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	task.Config.Logger = slog.New(slog.DiscardHandler)
	r, err := New(task.Config)
	if err == nil {
		err = task.do(context.Background(), r)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 3
	}
	return 0
}

func (task childTask) do(ctx context.Context, r runtime.Runtime) error {
	switch task.Method {
	case "start":
		return r.Start(ctx, task.Spec)
	case "freeze":
		return r.Freeze(ctx, task.Spec.Run)
	case "thaw":
		return r.Thaw(ctx, task.Spec.Run)
	case "save":
		return r.Save(ctx, task.Spec.Run, task.Dir, runtime.SaveOptions{Memory: true})
	}
	return r.Destroy(ctx, task.Spec.Run)
}

// command is a process that does the task, with failpoints.
func (task childTask) command(t *testing.T, failpoints string) *exec.Cmd {
	task.Config.Logger = nil
	data, err := json.Marshal(task)
	require.NoError(t, err)
	self, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), childVariable+"="+string(data), failpoint.Variable+"="+failpoints)
	return cmd
}

// failpoints finds every step in the source.
func failpoints(t *testing.T) []string {
	files, err := filepath.Glob("*.go")
	require.NoError(t, err)
	var out []string
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		data, err := os.ReadFile(file)
		require.NoError(t, err)
		for _, m := range regexp.MustCompile(`failpoint\.Hit\("([^"]+)"\)`).FindAllStringSubmatch(string(data), -1) {
			out = append(out, m[1])
		}
	}
	require.Greater(t, len(out), 10)
	return out
}

// At every step of every method, the process is killed or the step fails. Then the method is called
// again by another process, as after a restart, and everything goes on; nothing is left at the end.
func TestEveryStepCanFail(t *testing.T) {
	if testing.Short() {
		return
	}
	for _, point := range failpoints(t) {
		method := strings.Split(point, "/")[1]
		for _, action := range []string{"kill", "error"} {
			t.Run(strings.ReplaceAll(point, "/", "-")+"-"+action, func(t *testing.T) {
				h := newHarness(t)
				rt, ctx := h.open(t), context.Background()
				spec := h.spec(t)
				t.Cleanup(func() { require.NoError(t, rt.Destroy(ctx, spec.Run)) })
				if method != "start" {
					require.NoError(t, rt.Start(ctx, spec))
				}
				if method == "thaw" || method == "save" {
					require.NoError(t, rt.Freeze(ctx, spec.Run))
				}
				task := childTask{Config: h.cfg, Method: method, Spec: spec, Dir: t.TempDir()}
				out, err := task.command(t, point+"="+action).CombinedOutput()
				require.Error(t, err, "the step %s was not reached", point)
				if action == "error" {
					require.Contains(t, string(out), "failpoint "+point)
				}
				list, err := rt.List(ctx)
				require.NoError(t, err)
				switch {
				case method == "start" && action == "error":
					require.Empty(t, list, "a failed start left something")
				case method == "start":
					// It began whole only if the last step was reached.
					want := runtime.StateExited
					if point == "gvisor/start/marked" {
						want = runtime.StateRunning
					}
					require.Equal(t, []runtime.Sandbox{{Run: spec.Run, State: want}}, list)
				}
				if method == "start" && action == "kill" {
					// Both ways to go on: Start takes the half-made one away itself, or the caller does.
					if point != "gvisor/start/marked" {
						h.renew(t, spec)
						require.NoError(t, rt.Start(ctx, spec))
					}
					require.NoError(t, rt.Destroy(ctx, spec.Run))
				}
				h.renewIf(t, method == "start", spec)
				task.Dir = t.TempDir()
				require.NoError(t, task.do(ctx, rt))
				require.NoError(t, rt.Destroy(ctx, spec.Run))
				// And the same box begins again.
				h.renew(t, spec)
				require.NoError(t, rt.Start(ctx, spec))
			})
		}
	}
}

func (h *harness) renewIf(t *testing.T, yes bool, spec runtime.Spec) {
	if yes {
		h.renew(t, spec)
	}
}

// A process that dies while runsc works for it leaves a runsc that goes on: it must not get in the way.
func TestTheCallerDiesAnyMoment(t *testing.T) {
	if testing.Short() {
		return
	}
	h := newHarness(t)
	rt, ctx := h.open(t), context.Background()
	for _, method := range []string{"start", "freeze", "save", "destroy"} {
		for _, after := range []int{20, 40, 60, 80, 120, 160} {
			spec := h.spec(t)
			if method != "start" {
				require.NoError(t, rt.Start(ctx, spec))
			}
			if method == "save" {
				require.NoError(t, rt.Freeze(ctx, spec.Run))
			}
			cmd := childTask{Config: h.cfg, Method: method, Spec: spec, Dir: t.TempDir()}.command(t, "")
			require.NoError(t, cmd.Start())
			kill := time.AfterFunc(time.Duration(after)*time.Millisecond, func() { _ = cmd.Process.Kill() })
			_ = cmd.Wait()
			kill.Stop()
			if method == "freeze" || method == "save" {
				require.NoError(t, rt.Freeze(ctx, spec.Run))
				require.NoError(t, rt.Save(ctx, spec.Run, t.TempDir(), runtime.SaveOptions{Memory: true}))
				require.NoError(t, rt.Thaw(ctx, spec.Run))
			}
			require.NoError(t, rt.Destroy(ctx, spec.Run))
			h.renew(t, spec)
			require.NoError(t, rt.Start(ctx, spec))
			require.NoError(t, rt.Destroy(ctx, spec.Run))
		}
	}
}

// What Destroy finds may be only a part: each thing that belongs to a sandbox is taken away by itself.
func TestDestroyTakesAwayWhatIsLeft(t *testing.T) {
	if testing.Short() {
		return
	}
	h := newHarness(t)
	rt, ctx := h.open(t), context.Background()
	for what, remove := range map[string]func(t *testing.T, run string){
		"the state file": func(t *testing.T, run string) { require.NoError(t, os.Remove(rt.stateFile(run, "state"))) },
		"a half-written state file": func(t *testing.T, run string) {
			require.NoError(t, os.Truncate(rt.stateFile(run, "state"), 100))
		},
		"run.json":   func(t *testing.T, run string) { require.NoError(t, os.Remove(rt.path(run, fileRun))) },
		"the bundle": func(t *testing.T, run string) { require.NoError(t, os.RemoveAll(rt.path(run, dirBundle))) },
		"the mark":   func(t *testing.T, run string) { require.NoError(t, os.Remove(rt.path(run, fileStarted))) },
		"the logs": func(t *testing.T, run string) {
			require.NoError(t, unix.Unmount(rt.path(run, dirLog), unix.MNT_DETACH))
			require.NoError(t, os.Remove(rt.path(run, dirLog)))
		},
		"the sandbox": func(t *testing.T, run string) { h.kill(t, run) },
	} {
		t.Run(what, func(t *testing.T) {
			spec := h.spec(t)
			t.Cleanup(func() { require.NoError(t, rt.Destroy(ctx, spec.Run)) })
			require.NoError(t, rt.Start(ctx, spec))
			remove(t, spec.Run)
			require.NoError(t, rt.Destroy(ctx, spec.Run))
			list, err := rt.List(ctx)
			require.NoError(t, err)
			require.Empty(t, list)
			require.Empty(t, rt.commands(spec.Run))
			loops, err := loopsOf(resolve(spec.Home))
			require.NoError(t, err)
			require.Empty(t, loops)
		})
	}
	t.Run("an overlay file with a name", func(t *testing.T) {
		old, young := filepath.Join(h.cfg.OverlayDir, "runsc-filestore-1"), filepath.Join(h.cfg.OverlayDir, "runsc-filestore-2")
		for _, path := range []string{old, young} {
			require.NoError(t, os.WriteFile(path, nil, 0o600))
		}
		past := time.Now().Add(-time.Hour)
		require.NoError(t, os.Chtimes(old, past, past))
		spec := h.spec(t)
		require.NoError(t, rt.Destroy(ctx, spec.Run))
		entries, err := os.ReadDir(h.cfg.OverlayDir)
		require.NoError(t, err)
		require.True(t, len(entries) == 1 && entries[0].Name() == "runsc-filestore-2", "one that another start makes just now must stay")
		require.NoError(t, os.Remove(young))
	})
}

func TestTheLimitsAreSet(t *testing.T) {
	if testing.Short() {
		return
	}
	h := newHarness(t)
	rt, ctx := h.open(t), context.Background()
	spec := h.spec(t)
	require.NoError(t, rt.Start(ctx, spec))
	t.Cleanup(func() { require.NoError(t, rt.Destroy(ctx, spec.Run)) })
	require.NotEmpty(t, rt.cgroups, "this machine has no cgroups: %v", rt.Capabilities().Limitations)
	for _, group := range rt.cgroups {
		for _, c := range group.controllers {
			for _, w := range limitWrites(c, group.v2, spec.Limits) {
				data, err := os.ReadFile(filepath.Join(group.parent, spec.Run, w.file))
				if w.optional && os.IsNotExist(err) {
					continue
				}
				require.NoError(t, err)
				require.Equal(t, w.value, strings.TrimSpace(string(data)), w.file)
			}
		}
	}
	st, err := rt.state(spec.Run)
	require.NoError(t, err)
	procs := rt.cgroups.procs(spec.Run)
	require.Contains(t, procs, st.pid)
	require.Contains(t, procs, st.gofer)
	// This process is in none of them, with none of its threads.
	for _, group := range rt.cgroups {
		data, err := os.ReadFile(filepath.Join(group.parent, spec.Run, "tasks"))
		if os.IsNotExist(err) {
			continue
		}
		require.NoError(t, err)
		threads, err := os.ReadDir("/proc/self/task")
		require.NoError(t, err)
		for _, thread := range threads {
			require.False(t, slices.Contains(strings.Fields(string(data)), thread.Name()), "a thread of this process stayed in the sandbox's cgroup")
		}
	}
}
