package e2e

import (
	"context"
	"io"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/durationpb"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/client"
)

// quickIdle is how long a box of the template quick may be unused.
const quickIdle = 5 * time.Second

// quick makes boxes of a template that are idle soon.
func (s *stack) quick() func(*carrelv1.CreateBoxRequest) {
	s.t.Helper()
	_, err := s.client.Templates.PushTemplate(s.ctx(), connect.NewRequest(&carrelv1.PushTemplateRequest{
		Yaml: "name: quick\nimage: tiny\nresources: {cpu: 1, memory: 256MiB, home: 64MiB, root: 64MiB}\nidle: {after: 5s}\n",
	}))
	require.NoError(s.t, err)
	return func(r *carrelv1.CreateBoxRequest) { r.Template = "quick" }
}

func (s *stack) activity(box string) *carrelv1.BoxActivity {
	s.t.Helper()
	answer, err := s.client.Boxes.GetBoxActivity(s.ctx(), connect.NewRequest(&carrelv1.GetBoxActivityRequest{Id: box}))
	require.NoError(s.t, err)
	return answer.Msg
}

// signal is the newest of a kind, nil if it was not seen.
func signal(a *carrelv1.BoxActivity, kind string) *carrelv1.Signal {
	for _, s := range a.GetSignals() {
		if s.GetKind() == kind {
			return s
		}
	}
	return nil
}

// staysAwake watches a box for three times as long as it could be unused. It must run for all that time.
func (s *stack) staysAwake(box, why string) {
	s.t.Helper()
	began := time.Now()
	s.eventually("watch "+box, func() bool {
		answer, err := s.client.Boxes.GetBox(s.ctx(), connect.NewRequest(&carrelv1.GetBoxRequest{Id: box}))
		require.NoError(s.t, err)
		require.Equal(s.t, running, answer.Msg.GetState(), "%s: %s", why, answer.Msg.GetStateReason())
		return time.Since(began) > 3*quickIdle
	})
}

// foreground has a command go on in the foreground, until it ends or is left alone.
func (s *stack) foreground(options client.ExecOptions) (end func()) {
	ctx, cancel := context.WithCancel(s.ctx())
	done := make(chan struct{})
	options.Stdout, options.Stderr = io.Discard, io.Discard
	go func() {
		defer close(done)
		_, _ = s.client.Exec(ctx, options) // it is cut short
	}()
	return func() {
		cancel()
		<-done
	}
}

func TestIdleBoxPausesAndGoesOn(t *testing.T) {
	s := newStack(t, options{pool: "4GiB"})
	s.create("one", s.quick())
	s.background("one", counter)
	pid, count := s.progressOf("one")
	s.await("one", paused)
	a := s.activity("one")
	require.Equal(t, "paused because nobody used it for 5s (policy of template quick@1)", a.GetLastStopReason())
	require.Equal(t, "policy:idle", a.GetLastStopActor())
	require.Empty(t, a.GetDeadlines())
	text := s.carrel("activity", "one")
	require.Zero(t, text.code, text.stderr)
	require.Contains(t, text.stdout, "nobody used it for 5s")

	s.resume("one")
	again, further := s.progressOf("one")
	require.Equal(t, pid, again, "the process is the one from before")
	require.GreaterOrEqual(t, further, count, "and went on where it was")
	next := s.activity("one").GetDeadlines()
	require.NotEmpty(t, next)
	require.Equal(t, "idle", next[0].GetRule())
	require.Equal(t, "pause", next[0].GetAction())
	require.Equal(t, "template quick@1", next[0].GetSetBy())
	s.await("one", paused) // time began anew, and ended again

	// A box says otherwise, and it holds at once.
	s.resume("one")
	endWork := s.foreground(client.ExecOptions{Box: "one", Args: []string{"sleep", "1000"}}) // until then it is used
	s.eventually("the command is seen", func() bool { return signal(s.activity("one"), "command").GetActive() })
	r := s.carrel("update", "one", "--idle", "2s", "--idle-action", "stop")
	require.Zero(t, r.code, r.stderr)
	s.sh("one", "pkill sleep || kill $(pidof sleep)")
	endWork()
	s.await("one", stopped)
	require.Equal(t, "stopped because nobody used it for 2s (policy of box)", s.activity("one").GetLastStopReason())
}

func TestWhatKeepsABoxAwake(t *testing.T) {
	s := newStack(t, options{pool: "4GiB"})
	quick := s.quick()
	s.create("work", quick)
	s.create("look", quick)
	s.create("burn", quick)
	s.create("kept", quick)

	var r result
	s.eventually("it is kept awake", func() bool { // a slow machine finds it asleep
		s.sh("kept", "true")
		r = s.carrel("keep-awake", "kept", "1h")
		return r.code == 0
	})
	require.Contains(t, r.stdout, "keep-awake: until")
	s.background("burn", "while :; do :; done")
	endWork := s.foreground(client.ExecOptions{Box: "work", Args: []string{"sleep", "1000"}})
	defer endWork()
	input, typing := io.Pipe() // nobody types
	defer typing.Close()
	endLook := s.foreground(client.ExecOptions{Box: "look", Args: []string{"sh"}, Pty: &client.TerminalSize{Rows: 24, Cols: 80}, Streams: client.Streams{Stdin: input}})
	defer endLook()

	// Somebody who only looks keeps nothing awake.
	s.await("look", paused)
	require.Equal(t, "policy:idle", s.activity("look").GetLastStopActor())

	s.eventually("the command is seen", func() bool { return signal(s.activity("work"), "command").GetActive() })
	a := s.activity("work")
	require.Contains(t, signal(a, "command").GetDetail(), "sleep 1000")
	require.True(t, signal(a, "command").GetCounts())
	require.Empty(t, a.GetDeadlines(), "none while it runs")
	s.eventually("the work is seen", func() bool { return signal(s.activity("burn"), "cpu").GetActive() })
	s.staysAwake("work", "a command runs in the foreground")
	s.staysAwake("burn", "it works")
	s.staysAwake("kept", "somebody asked for it")
	kept := s.activity("kept")
	require.NotNil(t, kept.GetAwakeUntil())
	require.Greater(t, kept.GetDeadlines()[0].GetTime().AsTime(), kept.GetAwakeUntil().AsTime(), "the time begins when it is not kept awake any more")

	// What kept it awake ends, and it sleeps.
	r = s.carrel("keep-awake", "kept", "off")
	require.Zero(t, r.code, r.stderr)
	s.await("kept", paused)
	s.sh("work", "pkill sleep || kill $(pidof sleep)")
	s.await("work", paused)
	r = s.carrel("keep-awake", "kept")
	require.NotZero(t, r.code, "what sleeps cannot be kept awake")
	require.Contains(t, r.stderr, "carrel start kept")
}

func TestLimitsOfRunsAndBoxes(t *testing.T) {
	s := newStack(t, options{pool: "4GiB"})
	quick := s.quick()
	with := func(p *carrelv1.IdlePolicy) func(*carrelv1.CreateBoxRequest) {
		return func(r *carrelv1.CreateBoxRequest) { quick(r); r.Idle = p }
	}
	short := durationpb.New(8 * time.Second)
	s.create("long", with(&carrelv1.IdlePolicy{MaxRun: short, Action: "stop"}))
	r := s.carrel("keep-awake", "long")
	require.Zero(t, r.code, r.stderr)
	made := &carrelv1.CreateBoxRequest{Name: "gone"}
	with(&carrelv1.IdlePolicy{Ttl: short})(made)
	gone, err := s.client.Boxes.CreateBox(s.ctx(), connect.NewRequest(made))
	require.NoError(t, err)
	s.create("calm", with(&carrelv1.IdlePolicy{Action: "nothing"}))

	s.await("calm", carrelv1.State_STATE_IDLE)
	list := s.carrel("list")
	require.True(t, strings.Contains(list.stdout, "idle") || strings.Contains(list.stdout, "IDLE"), list.stdout)
	s.eventually("it is used again", func() bool {
		s.sh("calm", "true")
		answer, err := s.client.Boxes.GetBox(s.ctx(), connect.NewRequest(&carrelv1.GetBoxRequest{Id: "calm"}))
		require.NoError(t, err)
		return answer.Msg.GetState() == running
	})
	s.await("long", stopped)
	require.Equal(t, "stopped because it ran for 8s, as long as one run may (policy of box)", s.activity("long").GetLastStopReason())
	s.await(gone.Msg.GetTargetId(), deleted)
	_, err = s.client.Boxes.GetBoxActivity(s.ctx(), connect.NewRequest(&carrelv1.GetBoxActivityRequest{Id: "gone"}))
	require.Equal(t, carrel.CodeNotFound, carrel.CodeOf(client.Error(err)))
}
