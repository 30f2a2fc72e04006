package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/client"
	"carrel.dev/carrel/internal/failpoint"
)

// verbs are what a box goes through in a life, in this order. patience is how many errors one of them is to meet.
var verbs = []struct {
	name     string
	do       func(*life)
	patience int
}{
	{"create", (*life).create, 1}, // each failed start is waited out longer than the one before
	{"pause", (*life).pause, 4},
	{"resume", (*life).resume, 1},
	{"undone", (*life).undone, 4},
	{"overtaken", (*life).overtaken, 4},
	{"stop", (*life).stop, 4},
	{"start", (*life).start, 1},
	{"died", (*life).died, 3},
	{"delete", (*life).delete, 4},
}

// life takes one box through everything, asking again when a request was undone, as a person would.
type life struct {
	*stack
	t    testing.TB
	n    int
	name string
	id   string

	pid, count int // of the process that counts
	files      string
}

func newLife(s *stack, n int) *life {
	return &life{stack: s, t: s.t, n: n, name: fmt.Sprintf("life-%d", n)}
}

// live goes through all verbs with the faults of a plan.
func (l *life) live(p plan) {
	for _, v := range verbs {
		l.arm(p[v.name])
		began := time.Now()
		armed := fmt.Sprint(l.armed)
		v.do(l)
		l.reap()
		l.t.Logf("%s: %s took %s with %s", l.name, v.name, time.Since(began).Round(time.Millisecond), armed)
	}
}

// small is a box that costs little.
func small(r *carrelv1.CreateBoxRequest) {
	r.Resources = &carrelv1.Resources{MemoryBytes: 128 << 20, HomeBytes: 32 << 20, RootBytes: 64 << 20, TmpBytes: 16 << 20}
}

func (l *life) create() {
	request := &carrelv1.CreateBoxRequest{Name: l.name, Template: "tiny", RequestId: l.name}
	small(request)
	request.Resources.HomeBytes += int64(l.n) << 20 // no other box has had a home of this size
	l.succeed(func() (*carrelv1.Operation, error) {
		return answer(l.client.Boxes.CreateBox(l.ctx(), connect.NewRequest(request)))
	})
	l.look(running)
	l.try("echo kept > ~/file; sudo sh -c 'echo tool > /usr/local/bin/tool'")
	l.files = "kept\ntool"
	l.begin()
}

// begin starts the process that counts, once.
func (l *life) begin() {
	l.eventually("a process is started", func() bool {
		_, err := l.client.Exec(l.ctx(), client.ExecOptions{Box: l.id, Args: []string{"sh", "-c", "mkdir /tmp/once || exit 0; " + counter}, Detach: true})
		return err == nil
	})
	l.pid, l.count = l.progress()
}

// goesOn checks that the process counts on, and the files.
func (l *life) goesOn() {
	l.t.Helper()
	pid, count := l.progress()
	require.Equal(l.t, l.pid, pid, "the same process goes on")
	require.GreaterOrEqual(l.t, count, l.count)
	l.count = count
	l.hasFiles()
	if _, count := l.progress(); count == l.count {
		l.eventually("the process counts on", func() bool { _, count := l.progress(); return count > l.count })
	}
}

func (l *life) hasFiles() {
	l.t.Helper()
	require.Equal(l.t, l.files, l.try("cat ~/file /usr/local/bin/tool"))
}

func (l *life) pause() {
	l.succeed(l.askPause)
	l.look(paused)
}

func (l *life) askPause() (*carrelv1.Operation, error) {
	return answer(l.client.Boxes.PauseBox(l.ctx(), connect.NewRequest(&carrelv1.PauseBoxRequest{Id: l.id})))
}

func (l *life) askResume() (*carrelv1.Operation, error) {
	return answer(l.client.Boxes.ResumeBox(l.ctx(), connect.NewRequest(&carrelv1.ResumeBoxRequest{Id: l.id})))
}

func (l *life) resume() {
	l.succeed(l.askResume)
	require.Equal(l.t, "memory", l.look(running).GetStartedFrom())
	l.goesOn()
}

// undone is a pause that fails when its snapshot is complete: the box goes on. It is asked for again as long as a fault
// has it succeed in a roundabout way, or waits for one more.
func (l *life) undone() {
	const sealed = "node/capture/sealed"
	for range 8 {
		if left, err := l.faults.Armed(sealed); err == nil && left == "" {
			require.NoError(l.t, l.faults.Arm(sealed, failpoint.ActionError))
		}
		op := l.request(l.askPause)
		if op.GetError() == nil {
			l.resume()
			continue
		}
		l.look(running)
		l.goesOn()
		if !l.waits("gvisor/thaw/", "node/snapshot/") {
			break
		}
	}
	if l.reap(); l.armed[sealed] == "" {
		_, err := l.faults.Disarm(sealed)
		require.NoError(l.t, err)
	}
}

// waits says whether a fault at one of these steps has not happened yet.
func (l *life) waits(prefixes ...string) bool {
	l.reap()
	for step := range l.armed {
		for _, prefix := range prefixes {
			if strings.HasPrefix(step, prefix) {
				return true
			}
		}
	}
	return false
}

// overtaken is a pause whose node dies when the snapshot is complete and nobody knows of it, and which learns only then
// that the box is to run after all: the snapshot is nothing, and the box goes on.
func (l *life) overtaken() {
	const sealed, desired = "node/capture/sealed", "node/desired/received"
	l.lift(sealed)
	l.lift(desired)
	require.NoError(l.t, l.faults.Arm(sealed, failpoint.ActionWait))
	held := func() bool {
		is, err := l.faults.Held(sealed)
		require.NoError(l.t, err)
		return is
	}
	for !held() {
		op := l.ask(l.askPause)
		l.eventually("the snapshot is complete, or a fault undid the pause", func() bool { return held() || l.operation(op).GetDone() })
	}
	require.NoError(l.t, l.faults.Arm(desired, failpoint.ActionErrors))
	require.NoError(l.t, l.faults.Arm(sealed, failpoint.ActionKill))
	l.eventually("the node is killed", func() bool { left, err := l.faults.Armed(sealed); return err == nil && left == "" })
	l.ask(l.askResume)
	_, err := l.faults.Disarm(desired)
	require.NoError(l.t, err)
	l.succeed(l.askResume)
	l.look(running)
	l.goesOn()
}

func (l *life) stop() {
	l.succeed(func() (*carrelv1.Operation, error) {
		return answer(l.client.Boxes.StopBox(l.ctx(), connect.NewRequest(&carrelv1.StopBoxRequest{Id: l.id})))
	})
	l.look(stopped)
}

func (l *life) askStart() (*carrelv1.Operation, error) {
	return answer(l.client.Boxes.StartBox(l.ctx(), connect.NewRequest(&carrelv1.StartBoxRequest{Id: l.id})))
}

func (l *life) start() {
	l.succeed(l.askStart)
	require.Equal(l.t, "disk", l.look(running).GetStartedFrom())
	l.hasFiles()
	l.begin()
}

// died is the death of the sandbox: the box starts again by itself, with its home as it was then.
func (l *life) died() {
	l.try("echo newer > ~/file; sync ~/file")
	l.files = "newer\ntool"
	box := l.look(running)
	l.killSandbox(box.GetRunId())
	l.eventually("another run", func() bool {
		b, err := answer(l.client.Boxes.GetBox(l.ctx(), connect.NewRequest(&carrelv1.GetBoxRequest{Id: l.id})))
		return err == nil && b.GetState() == running && b.GetEpoch() > box.GetEpoch()
	})
	require.Equal(l.t, "disk", l.look(running).GetStartedFrom())
	l.hasFiles()
	require.Equal(l.t, "no", l.try("[ -e /tmp/state ] && echo yes || echo no"))
}

func (l *life) delete() {
	l.succeed(func() (*carrelv1.Operation, error) {
		return answer(l.client.Boxes.DeleteBox(l.ctx(), connect.NewRequest(&carrelv1.DeleteBoxRequest{Id: l.id})))
	})
	l.nothingLeft()
}

// answer opens a response.
func answer[T any](r *connect.Response[T], err error) (*T, error) {
	if err != nil {
		return nil, client.Error(err)
	}
	return r.Msg, nil
}

// look reads the box, which is in a state that a finished request led to.
func (l *life) look(state carrelv1.State) *carrelv1.Box {
	l.t.Helper()
	var box *carrelv1.Box
	l.eventually("the box is "+state.String(), func() bool {
		b, err := answer(l.client.Boxes.GetBox(l.ctx(), connect.NewRequest(&carrelv1.GetBoxRequest{Id: l.id})))
		if err == nil {
			box = b
		}
		return err == nil && b.GetState() == state
	})
	return box
}

// ask makes a request, again while nobody answers.
func (l *life) ask(request func() (*carrelv1.Operation, error)) *carrelv1.Operation {
	l.t.Helper()
	var op *carrelv1.Operation
	var err error
	l.eventually("the request is taken", func() bool { op, err = request(); return err == nil })
	l.id = op.GetTargetId()
	return op
}

func (l *life) operation(op *carrelv1.Operation) *carrelv1.Operation {
	now, err := answer(l.client.Operations.GetOperation(l.ctx(), connect.NewRequest(&carrelv1.GetOperationRequest{Id: op.GetId()})))
	if err != nil {
		return op
	}
	return now
}

// request makes a request and waits for its end, whatever it is.
func (l *life) request(request func() (*carrelv1.Operation, error)) *carrelv1.Operation {
	l.t.Helper()
	op := l.ask(request)
	l.eventually("the request ends", func() bool { op = l.operation(op); return op.GetDone() })
	return op
}

// succeed makes a request again and again until it is done as wanted.
func (l *life) succeed(request func() (*carrelv1.Operation, error)) {
	l.t.Helper()
	var op *carrelv1.Operation
	for range 20 {
		if op = l.request(request); op.GetError() == nil {
			return
		}
		require.True(l.t, op.GetError().GetTransient(), "%v\n%s", op, lazy(l.logs))
	}
	require.FailNow(l.t, "the request does not succeed", "%v\n%s", op, lazy(l.logs))
}

// try runs a script that may be repeated, again while its answer gets lost.
func (l *life) try(script string) string {
	l.t.Helper()
	var out *lockedBuffer
	var status client.ExitStatus
	l.eventually("a command is run: "+script, func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), tryTime)
		defer cancel()
		out = &lockedBuffer{}
		var err error
		status, err = l.client.Exec(ctx, client.ExecOptions{Box: l.id, Args: []string{"sh", "-c", script}, Streams: client.Streams{Stdout: out, Stderr: out}})
		return err == nil
	})
	require.Zero(l.t, status.Code, "%s: %s", script, out)
	return strings.TrimSpace(out.String())
}

// progress is where the process that counts is.
func (l *life) progress() (pid, count int) {
	l.t.Helper()
	fields := strings.Fields(l.try(readState))
	require.Len(l.t, fields, 2)
	pid, err := strconv.Atoi(fields[0])
	require.NoError(l.t, err)
	count, err = strconv.Atoi(fields[1])
	require.NoError(l.t, err)
	return pid, count
}

// killSandbox ends the sandbox of a run as the kernel does when there is no memory left.
func (s *stack) killSandbox(run string) {
	s.t.Helper()
	killed := 0
	processes, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range processes {
		data, _ := os.ReadFile(path)
		line := strings.ReplaceAll(string(data), "\x00", " ")
		if !strings.Contains(line, s.runDir) || !strings.Contains(line, " boot ") || !strings.Contains(line, run) {
			continue
		}
		var pid int
		_, err := fmt.Sscanf(path, "/proc/%d/", &pid)
		require.NoError(s.t, err)
		if err := syscall.Kill(pid, syscall.SIGKILL); !errors.Is(err, syscall.ESRCH) {
			require.NoError(s.t, err)
			killed++
		}
	}
	require.NotZero(s.t, killed, "run %s has no sandbox", run)
}
