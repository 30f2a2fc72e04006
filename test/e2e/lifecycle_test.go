package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/client"
)

// holder is a Python process that holds 256 MB and counts; it says where it is in a file.
const holder = `
import os, time
block = bytearray(os.urandom(1 << 20) * 256)
n = 0
while True:
    n += 1
    with open("/tmp/state.new", "w") as f:
        f.write("%d %d %d" % (os.getpid(), n, len(block)))
    os.replace("/tmp/state.new", "/tmp/state")
    time.sleep(0.05)
`

// readState prints the state of what counts; it is empty for the moment in which it is written.
const readState = `until state=$(cat /tmp/state 2>/dev/null); [ -n "$state" ]; do sleep 0.05; done; echo "$state"`

// progressOf reads pid and count of a counting process.
func (s *stack) progressOf(box string) (pid, count int) {
	s.t.Helper()
	fields := strings.Fields(s.sh(box, readState))
	require.GreaterOrEqual(s.t, len(fields), 2)
	pid, err := strconv.Atoi(fields[0])
	require.NoError(s.t, err)
	count, err = strconv.Atoi(fields[1])
	require.NoError(s.t, err)
	return pid, count
}

// counter is the small one: it costs no memory, and hardly any time, since it starts no processes to wait with.
const counter = `exec bash -c 'mkfifo /tmp/never; exec 9<>/tmp/never; n=0; while :; do n=$((n+1)); echo "$$ $n" > /tmp/state; read -rt 0.1 -u 9; done'`

func TestLifecycle(t *testing.T) {
	s := newStack(t, options{})
	box := s.create("dev")
	require.Equal(t, "fresh", box.GetStartedFrom())

	// Commands: output apart, exit codes, binary safety, the user and root.
	r := s.exec("dev", "sh", "-c", "echo out; echo err >&2; exit 7")
	require.Equal(t, result{"out\n", "err\n", 7}, r)
	require.Equal(t, "1000 /home/carrel", s.sh("dev", `echo "$(id -u) $PWD"`))
	require.Equal(t, "0", s.sh("dev", "sudo id -u"))
	payload := make([]byte, 3<<20)
	for i := range payload {
		payload[i] = byte(rand.Uint32())
	}
	var back bytes.Buffer
	status, err := s.client.Exec(s.ctx(), client.ExecOptions{Box: "dev", Args: []string{"cat"}, Streams: client.Streams{Stdin: bytes.NewReader(payload), Stdout: &back}})
	require.NoError(t, err)
	require.Zero(t, status.Code)
	require.Equal(t, sha256.Sum256(payload), sha256.Sum256(back.Bytes()))

	// Pause and resume: the same process, still counting.
	s.background("dev", counter)
	pid, before := s.progressOf("dev")
	s.sh("dev", "echo kept > ~/file; sudo sh -c 'echo tool > /usr/local/bin/tool; rm /usr/bin/awk'")
	s.pause("dev")
	resumed := s.resume("dev")
	require.Equal(t, "memory", resumed.GetStartedFrom())
	again, after := s.progressOf("dev")
	require.Equal(t, pid, again)
	require.GreaterOrEqual(t, after, before)

	// Stop and start: files and packages stay, processes do not.
	s.stopBox("dev")
	started := s.startBox("dev")
	require.Equal(t, "disk", started.GetStartedFrom())
	require.Equal(t, "kept\ntool", s.sh("dev", "cat ~/file /usr/local/bin/tool"))
	require.Equal(t, "gone", s.sh("dev", "[ -e /usr/bin/awk ] || echo gone"))
	require.Equal(t, "no", s.sh("dev", "[ -e /tmp/state ] && echo yes || echo no"))

	// Restart is a stop and a start.
	epoch := started.GetEpoch()
	_, err = s.client.Boxes.RestartBox(s.ctx(), connect.NewRequest(&carrelv1.RestartBoxRequest{Id: "dev"}))
	require.NoError(t, err)
	s.eventually("a newer run", func() bool {
		b, err := s.client.Boxes.GetBox(s.ctx(), connect.NewRequest(&carrelv1.GetBoxRequest{Id: "dev"}))
		return err == nil && b.Msg.GetState() == running && b.Msg.GetEpoch() > epoch
	})
	require.Equal(t, "kept", s.sh("dev", "cat ~/file"))

	// Pause, then give up the memory and start from its files.
	s.pause("dev")
	_, err = s.client.Boxes.StartBox(s.ctx(), connect.NewRequest(&carrelv1.StartBoxRequest{Id: "dev", Cold: true}))
	require.NoError(t, err)
	cold := s.await("dev", running)
	require.Equal(t, "disk", cold.GetStartedFrom())
	require.Equal(t, "kept\ntool", s.sh("dev", "cat ~/file /usr/local/bin/tool"))

	// A paused box can be stopped, and deleted in every state.
	s.pause("dev")
	s.stopBox("dev")
	s.startBox("dev")
	s.remove("dev")
	_, err = s.client.Boxes.GetBox(s.ctx(), connect.NewRequest(&carrelv1.GetBoxRequest{Id: "dev"}))
	require.Equal(t, carrel.CodeNotFound, carrel.CodeOf(client.Error(err)))
}

func TestMemoryOutlivesEveryProcessOfCarrel(t *testing.T) {
	s := newStack(t, options{})
	s.create("dev", func(r *carrelv1.CreateBoxRequest) { r.Resources = &carrelv1.Resources{MemoryBytes: 1 << 30} })
	s.create("awake")
	status, err := s.client.Exec(s.ctx(), client.ExecOptions{Box: "dev", Args: []string{"python3", "-c", holder}, Detach: true})
	require.NoError(t, err)
	require.NotEmpty(t, status.Process)
	pid, before := s.progressOf("dev")
	s.background("awake", counter)
	awakePID, _ := s.progressOf("awake")
	s.pause("dev")

	s.kill()
	s.start()

	// The one that ran was adopted, the one that slept wakes with its memory.
	s.await("awake", running)
	again, _ := s.progressOf("awake")
	require.Equal(t, awakePID, again, "the running box went on")
	s.resume("dev")
	again, after := s.progressOf("dev")
	require.Equal(t, pid, again)
	require.GreaterOrEqual(t, after, before)
	_, later := s.progressOf("dev")
	require.Equal(t, "268435456", strings.Fields(s.sh("dev", "cat /tmp/state"))[2])
	s.eventually("it counts on", func() bool { _, now := s.progressOf("dev"); return now > later })
}

func TestStoppingCarrelLeavesBoxesRunning(t *testing.T) {
	s := newStack(t, options{})
	s.create("dev")
	s.background("dev", counter)
	pid, before := s.progressOf("dev")
	s.stop()
	s.start()
	s.await("dev", running)
	again, after := s.progressOf("dev")
	require.Equal(t, pid, again)
	require.Greater(t, after, before)
}

// TestKillingAnyRole ends each role while a box is being used; everything converges and the box is where it was.
func TestKillingAnyRole(t *testing.T) {
	s := newStack(t, options{})
	s.create("dev")
	s.background("dev", counter)
	pid, _ := s.progressOf("dev")
	for _, role := range []string{"control", "reconcile", "gateway", "node", "proxy", "postgres"} {
		old := s.rolePID(role)
		require.NoError(t, syscall.Kill(old, syscall.SIGKILL))
		s.eventually(role+" is back and a box can be made", func() bool {
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			defer cancel()
			_, err := s.client.Boxes.CreateBox(ctx, connect.NewRequest(&carrelv1.CreateBoxRequest{Name: "after-" + role, Template: "tiny", RequestId: "after-" + role}))
			return err == nil
		})
		s.await("after-"+role, running)
		require.Equal(t, "hello", s.sh("after-"+role, "echo hello"), role)
		again, _ := s.progressOf("dev")
		require.Equal(t, pid, again, "the box went on while %s died", role)
		s.remove("after-" + role)
	}
}

// TestSandboxKilled: a box whose sandbox dies starts again with its files, and says what was lost.
func TestSandboxKilled(t *testing.T) {
	s := newStack(t, options{})
	box := s.create("dev")
	s.sh("dev", "echo kept > ~/file; sync")
	s.killSandbox(box.GetRunId())
	s.eventually("a new run", func() bool {
		b, err := s.client.Boxes.GetBox(s.ctx(), connect.NewRequest(&carrelv1.GetBoxRequest{Id: "dev"}))
		return err == nil && b.Msg.GetState() == running && b.Msg.GetEpoch() > box.GetEpoch()
	})
	require.Equal(t, "kept", s.sh("dev", "cat ~/file"))
	events, err := s.client.Boxes.ListBoxEvents(s.ctx(), connect.NewRequest(&carrelv1.ListBoxEventsRequest{Id: "dev"}))
	require.NoError(t, err)
	require.Contains(t, fmt.Sprint(events.Msg.GetEvents()), "sandbox")
}

// TestTheControlPlaneMayDie: with control, reconcile and PostgreSQL stopped, an open exec goes on.
func TestTheControlPlaneMayDie(t *testing.T) {
	s := newStack(t, options{})
	s.create("dev")
	out := &lockedBuffer{}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var group errgroup.Group
	group.Go(func() error {
		_, err := s.client.Exec(ctx, client.ExecOptions{Box: "dev", Args: []string{"sh", "-c", "n=0; while read -r x; do n=$((n+1)); echo line $n $x; done"},
			Streams: client.Streams{Stdin: &ticker{ctx: ctx}, Stdout: out}})
		if errors.Is(err, context.Canceled) {
			err = nil // the test is over
		}
		return err
	})
	lines := func() int { return strings.Count(out.String(), "line") }
	s.eventually("output", func() bool { return lines() > 3 })
	frozen := []int{s.rolePID("control"), s.rolePID("reconcile"), s.rolePID("postgres")}
	for _, pid := range frozen {
		require.NoError(t, syscall.Kill(pid, syscall.SIGSTOP))
	}
	before := lines()
	s.eventually("output while the control plane is away", func() bool { return lines() > before+50 })
	for _, pid := range frozen {
		require.NoError(t, syscall.Kill(pid, syscall.SIGCONT))
	}
	s.eventually("the control plane is back", func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_, err := s.client.Boxes.GetBox(ctx, connect.NewRequest(&carrelv1.GetBoxRequest{Id: "dev"}))
		return err == nil
	})
	before = lines()
	s.eventually("output after it", func() bool { return lines() > before+5 })
	cancel()
	require.NoError(t, group.Wait())
}

// ticker is an input of one line every few milliseconds.
type ticker struct{ ctx context.Context }

func (r *ticker) Read(p []byte) (int, error) {
	select {
	case <-time.After(5 * time.Millisecond):
		return copy(p, "tick\n"), nil
	case <-r.ctx.Done():
		return 0, r.ctx.Err()
	}
}

// TestSnapshotOfAnotherAgentBuild: a box that was paused with one build of the agent is resumed by a Carrel that has
// another, with the agent that it was paused with; new boxes get the new one.
func TestSnapshotOfAnotherAgentBuild(t *testing.T) {
	s := newStack(t, options{})
	s.create("old")
	s.background("old", counter)
	pid, before := s.progressOf("old")
	was := s.sh("old", "/.carrel/bin/carrel-agent version")
	s.pause("old")
	s.stop()

	s.opts.agent = filepath.Join(t.TempDir(), "carrel-agent")
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w -X main.version=another", "-o", s.opts.agent, "../../cmd/carrel-agent")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := build.CombinedOutput()
	require.NoError(t, err, "%s", out)
	s.start()

	box := s.resume("old")
	require.Equal(t, "memory", box.GetStartedFrom())
	again, after := s.progressOf("old")
	require.Equal(t, pid, again)
	require.GreaterOrEqual(t, after, before)
	require.Equal(t, was, s.sh("old", "/.carrel/bin/carrel-agent version"))
	s.create("new")
	require.Equal(t, "another", s.sh("new", "/.carrel/bin/carrel-agent version"))
	// From its files it starts with the new one, too.
	s.stopBox("old")
	s.startBox("old")
	require.Equal(t, "another", s.sh("old", "/.carrel/bin/carrel-agent version"))
}

// TestDamagedMemoryIsRefusedAndFilesStay: resume says what is wrong, and a cold start works when asked for.
func TestDamagedMemoryIsRefusedAndFilesStay(t *testing.T) {
	s := newStack(t, options{})
	s.create("dev")
	s.sh("dev", "echo kept > ~/file")
	s.background("dev", counter)
	s.progressOf("dev")
	s.pause("dev")
	pages, err := filepath.Glob(filepath.Join(s.data, "node", "pool", "snapshots", "*", "memory", "pages.img"))
	require.NoError(t, err)
	require.Len(t, pages, 1)
	require.NoError(t, os.Chmod(pages[0], 0o600))
	f, err := os.OpenFile(pages[0], os.O_RDWR, 0)
	require.NoError(t, err)
	info, err := f.Stat()
	require.NoError(t, err)
	_, err = f.WriteAt([]byte("damage"), info.Size()/2)
	require.NoError(t, err)
	require.NoError(t, f.Close())

	_, err = s.client.Boxes.ResumeBox(s.ctx(), connect.NewRequest(&carrelv1.ResumeBoxRequest{Id: "dev"}))
	require.NoError(t, err)
	box := s.await("dev", failed)
	require.Equal(t, "snapshot_corrupt", box.GetFailure().GetReason())
	require.Contains(t, box.GetFailure().GetNextStep()+box.GetFailure().GetMessage(), "--cold")
	_, err = s.client.Boxes.StartBox(s.ctx(), connect.NewRequest(&carrelv1.StartBoxRequest{Id: "dev", Cold: true}))
	require.NoError(t, err)
	s.await("dev", running)
	require.Equal(t, "kept", s.sh("dev", "cat ~/file"))
}

// TestTwentyAtOnce: all of twenty boxes asked for at the same moment come up.
func TestTwentyAtOnce(t *testing.T) {
	s := newStack(t, options{pool: "24GiB"})
	var group errgroup.Group
	for i := range 20 {
		name := fmt.Sprintf("box-%d", i)
		group.Go(func() error {
			_, err := s.client.Boxes.CreateBox(s.ctx(), connect.NewRequest(&carrelv1.CreateBoxRequest{Name: name, Template: "tiny",
				Resources: &carrelv1.Resources{CpuMillis: 200, MemoryBytes: 256 << 20, HomeBytes: 256 << 20, RootBytes: 256 << 20, TmpBytes: 64 << 20}}))
			return err
		})
	}
	require.NoError(t, group.Wait())
	for i := range 20 {
		s.await(fmt.Sprintf("box-%d", i), running)
	}
	for i := range 20 {
		require.Equal(t, "hello", s.sh(fmt.Sprintf("box-%d", i), "echo hello"))
	}
}
