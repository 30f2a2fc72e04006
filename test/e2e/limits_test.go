package e2e

import (
	"os"
	"path/filepath"
	"sort"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/client"
)

// latency is the median time of a small command in a box.
func (s *stack) latency(box string) time.Duration {
	var times []time.Duration
	for range 15 {
		began := time.Now()
		require.Equal(s.t, "", s.sh(box, "true"))
		times = append(times, time.Since(began))
	}
	sort.Slice(times, func(i, j int) bool { return times[i] < times[j] })
	return times[len(times)/2]
}

// TestNoisyNeighbour: what one box does to itself is a clear error there; another box does not notice.
func TestNoisyNeighbour(t *testing.T) {
	s := newStack(t, options{})
	small := func(r *carrelv1.CreateBoxRequest) {
		r.Resources = &carrelv1.Resources{CpuMillis: 1000, MemoryBytes: 256 << 20, HomeBytes: 128 << 20, RootBytes: 128 << 20, Processes: 64, TmpBytes: 32 << 20, ShmBytes: 16 << 20}
	}
	s.create("noisy", small)
	s.create("quiet", small)
	s.sh("quiet", "head -c 20000000 /dev/urandom > ~/data; sync")
	sum := s.sh("quiet", "sha256sum < ~/data")
	alone := s.latency("quiet")
	quiet := func(what string) {
		t.Helper()
		// The machine has few cores, so a neighbour's load costs something; what it must not do is starve. That others have much to do just
		// then is not the neighbour's doing, and passes.
		s.eventually("no starving "+what, func() bool { return s.latency("quiet") < 10*alone+200*time.Millisecond })
		require.Equal(t, sum, s.sh("quiet", "sha256sum < ~/data"), what)
		require.Equal(t, "alive", s.sh("noisy", "echo alive"), what)
	}

	// A memory hog is killed, and it is said why; the box lives on.
	r := s.exec("noisy", "python3", "-c", "b=[]\nwhile True: b.append(bytearray(8<<20))")
	require.Equal(t, 137, r.code, "%s%s", r.stdout, r.stderr)
	processes, err := s.client.ListProcesses(s.ctx(), "noisy")
	require.NoError(t, err)
	ended := ""
	for _, p := range processes {
		if strings.HasPrefix(strings.Join(p.GetArgs(), " "), "python3") {
			ended = p.GetEndedBy()
		}
	}
	require.Equal(t, "memory", ended)
	quiet("after a memory hog")

	// A fork bomb meets its own limit.
	id := s.background("noisy", `sh -c 'f() { f | f & }; f' 2>/dev/null; sleep 2`)
	s.eventually("no starving during a fork bomb", func() bool { return s.latency("quiet") < 10*alone+500*time.Millisecond })
	_ = s.client.Signal(s.ctx(), "noisy", id, "KILL")
	s.eventually("the box can be used again", func() bool {
		r := s.execWith(client.ExecOptions{Box: "noisy", User: "root", Args: []string{"sh", "-c", "kill -9 -1 2>/dev/null; echo ok"}})
		return strings.Contains(r.stdout, "ok") || r.code == 137
	})
	quiet("after a fork bomb")

	// Full home, root and /tmp: no space for the one who writes.
	for _, dir := range []string{"/home/carrel", "/var/tmp", "/tmp", "/dev/shm"} {
		r := s.execWith(client.ExecOptions{Box: "noisy", User: "root", Args: []string{"sh", "-c", "head -c 400000000 /dev/zero > " + dir + "/big"}})
		require.NotZero(t, r.code, dir)
		require.Contains(t, r.stderr, "No space left", dir)
		s.execWith(client.ExecOptions{Box: "noisy", User: "root", Args: []string{"rm", "-f", dir + "/big"}})
		quiet("after " + dir + " was full")
	}

	// It can still be stopped and started, paused and resumed.
	s.pause("noisy")
	s.resume("noisy")
	require.Equal(t, "alive", s.sh("noisy", "echo alive"))
}

// TestNoWayOut: nothing outside the box can be reached from it.
func TestNoWayOut(t *testing.T) {
	s := newStack(t, options{})
	s.create("one")
	s.create("two")
	script := `
import socket, sys
for host, port in %s:
    s = socket.socket(); s.settimeout(0.7)
    try:
        s.connect((host, port)); print("reached", host, port)
    except OSError as e:
        pass
print("done")
`
	addresses := s.networks()
	require.NotEmpty(t, addresses)
	var targets []string
	seen := map[string]bool{}
	for _, line := range addresses {
		address := strings.TrimPrefix(line, "address ")
		if !strings.Contains(address, "/") && !seen[address] && len(targets) < 8 {
			seen[address] = true
			targets = append(targets, `("`+address+`",1)`, `("`+address+`",22)`)
		}
	}
	targets = append(targets, `("1.1.1.1",53)`, `("169.254.169.254",80)`)
	out := s.exec("one", "python3", "-c", strings.ReplaceAll(script, "%s", "["+strings.Join(targets, ",")+"]"))
	require.Zero(t, out.code, out.stderr)
	// Its own address answers: that is the agent, which asks for a key that only root in the box can read.
	reached := 0
	for line := range strings.Lines(out.stdout) {
		if strings.HasPrefix(line, "reached") {
			reached++
			require.True(t, strings.HasSuffix(strings.TrimSpace(line), " 1"), line)
		}
	}
	require.LessOrEqual(t, reached, 1, out.stdout)
	require.Contains(t, out.stdout, "done")
	r := s.exec("one", "sh", "-c", "cat /.carrel/identity/identity.json")
	require.NotZero(t, r.code, "the key to the agent is for root alone")
}

// TestBadInput: what can't be is refused at once with words that help, and nothing is half made.
func TestBadInput(t *testing.T) {
	s := newStack(t, options{pool: "6GiB"})
	for _, c := range []struct {
		args []string
		says string
	}{
		{[]string{"create", "Bad_Name", "-t", "tiny"}, "lower case"},
		{[]string{"create", "x", "-t", "nothing"}, "nothing"},
		{[]string{"create", "x", "-t", "tiny", "--memory", "9000GiB"}, "memory"},
		{[]string{"create", "x", "-t", "tiny", "--home", "1KiB"}, "home"},
		{[]string{"start", "nobody"}, "nobody"},
		{[]string{"exec", "nobody", "--", "true"}, "nobody"},
		{[]string{"wait", "nobody", "--state", "asleep"}, "asleep"},
	} {
		r := s.carrel(c.args...)
		want := 1
		switch c.args[0] {
		case "exec":
			want = 255 // the codes below belong to the command
		case "wait":
			want = 2 // wrong words
		}
		require.Equal(t, want, r.code, "%v: %s", c.args, r.stderr)
		require.Contains(t, r.stderr, c.says, "%v", c.args)
		require.LessOrEqual(t, strings.Count(r.stderr, "\n"), 3, "%v: %s", c.args, r.stderr)
	}
	list := s.carrel("list", "-o", "name")
	require.Zero(t, list.code, list.stderr)
	require.Empty(t, strings.TrimSpace(list.stdout), "nothing half made")

	// Wrong state for a verb.
	s.create("dev")
	s.stopBox("dev")
	r := s.carrel("resume", "dev")
	require.Equal(t, 1, r.code)
	require.Contains(t, r.stderr, "start")
	_, err := s.client.Boxes.PauseBox(s.ctx(), connect.NewRequest(&carrelv1.PauseBoxRequest{Id: "dev"}))
	require.Equal(t, carrel.CodePrecondition, carrel.CodeOf(client.Error(err)))

	// Larger than any node: refused at once, with what there is, and nothing is made.
	big := &carrelv1.Resources{HomeBytes: 64 << 30}
	_, err = s.client.Boxes.CreateBox(s.ctx(), connect.NewRequest(&carrelv1.CreateBoxRequest{Name: "big", Template: "tiny", Resources: big}))
	require.Equal(t, carrel.ReasonTooLarge, carrel.ReasonOf(client.Error(err)), "%v", err)
	require.ErrorContains(t, err, "the largest node gives")
	_, err = s.client.Boxes.GetBox(s.ctx(), connect.NewRequest(&carrelv1.GetBoxRequest{Id: "big"}))
	require.Equal(t, carrel.CodeNotFound, carrel.CodeOf(client.Error(err)))

	// A foreign or ended token.
	bad, err := client.New(client.Config{Context: client.Context{URL: s.url, Token: s.token[:len(s.token)-2] + "xx"}})
	require.NoError(t, err)
	defer bad.Close()
	_, err = bad.Boxes.GetBox(s.ctx(), connect.NewRequest(&carrelv1.GetBoxRequest{Id: "dev"}))
	require.Equal(t, carrel.CodeUnauthorized, carrel.CodeOf(client.Error(err)))
}

// TestDiskFull: when the pool has no space, a pause is undone, the box goes on and says why; with space it works.
func TestDiskFull(t *testing.T) {
	s := newStack(t, options{pool: "4GiB"})
	s.create("dev", func(r *carrelv1.CreateBoxRequest) {
		r.Resources = &carrelv1.Resources{MemoryBytes: 1 << 30, HomeBytes: 256 << 20, RootBytes: 256 << 20}
	})
	s.background("dev", counter)
	pid, _ := s.progressOf("dev")
	status, err := s.client.Exec(s.ctx(), client.ExecOptions{Box: "dev", Detach: true, Args: []string{"python3", "-c", "import os,time\nb=os.urandom(200<<20)\nopen('/tmp/held','w').write('x')\ntime.sleep(1e6)"}})
	require.NoError(t, err)
	require.NotEmpty(t, status.Process)
	s.sh("dev", "until [ -e /tmp/held ]; do sleep 0.1; done")

	// Somebody else fills the pool.
	filler := filepath.Join(s.data, "node", "pool", "filler")
	f, err := os.Create(filler)
	require.NoError(t, err)
	block := make([]byte, 1<<20)
	for err == nil {
		_, err = f.Write(block)
	}
	require.NoError(t, f.Close())

	op, err := s.client.Boxes.PauseBox(s.ctx(), connect.NewRequest(&carrelv1.PauseBoxRequest{Id: "dev"}))
	require.NoError(t, err)
	var done *carrelv1.Operation
	s.eventually("the pause is undone", func() bool {
		answer, err := s.client.Operations.GetOperation(s.ctx(), connect.NewRequest(&carrelv1.GetOperationRequest{Id: op.Msg.GetId()}))
		require.NoError(t, err)
		done = answer.Msg
		return done.GetDone()
	})
	require.Equal(t, "disk_full", done.GetError().GetReason(), "%v", done)
	s.await("dev", running)
	again, _ := s.progressOf("dev")
	require.Equal(t, pid, again)

	require.NoError(t, os.Remove(filler))
	s.pause("dev")
	s.resume("dev")
	again, _ = s.progressOf("dev")
	require.Equal(t, pid, again)
}
