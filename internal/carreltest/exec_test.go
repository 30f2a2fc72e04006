package carreltest_test

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/carreltest"
	"carrel.dev/carrel/internal/client"
)

func TestACommandRunsThroughGatewayProxyAndAgent(t *testing.T) {
	if testing.Short() {
		return // nodes need root
	}
	t.Parallel()
	s := carreltest.Start(t, carreltest.Options{})
	box := create(t, s.Admin, "dev")
	var out, errs buffer
	status, err := s.Admin.Exec(bounded(t), client.ExecOptions{
		Box: "dev", Args: []string{"sh", "-c", `cat; echo "$WHO in $(basename $PWD) as $(id -u)" >&2; exit 42`}, Env: map[string]string{"WHO": "me"},
		Streams: client.Streams{Stdin: strings.NewReader(strings.Repeat("line\n", 100_000)), Stdout: &out, Stderr: &errs},
	})
	require.NoError(t, err)
	require.Equal(t, client.ExitStatus{Process: status.Process, Code: 42}, status)
	require.Equal(t, strings.Repeat("line\n", 100_000), out.String())
	uid := 1000
	if os.Getuid() != 0 {
		uid = os.Getuid()
	}
	require.Equal(t, fmt.Sprintf("me in %s as %d\n", box.GetId(), uid), errs.String())
	said, _, _ := exec(t, s.Admin, "dev", "echo $OF_THE_IMAGE, $WHOSE")
	require.Equal(t, "yes, the image's\n", said)
	op, err := s.Admin.Boxes.CreateBox(bounded(t), request(&carrelv1.CreateBoxRequest{Name: "own", Env: map[string]string{"WHOSE": "the box's"}}))
	require.NoError(t, err)
	finish(t, s.Admin, op)
	said, _, _ = exec(t, s.Admin, "own", "echo $OF_THE_IMAGE, $WHOSE")
	require.Equal(t, "yes, the box's\n", said)
	_, err = s.Admin.Exec(bounded(t), client.ExecOptions{Box: "dev", Args: []string{"no-such-command"}})
	require.Equal(t, "command_not_found", carrel.ReasonOf(err), "%v", err)

	verb(t, s.Admin, "pause", "dev")
	_, err = s.Admin.Exec(bounded(t), client.ExecOptions{Box: "dev", Args: []string{"true"}})
	require.NoError(t, err, "who uses a paused box wakes it")
	deleteAll(t, s)
	_, err = s.Admin.Exec(bounded(t), client.ExecOptions{Box: box.GetId(), Args: []string{"true"}})
	require.Equal(t, client.ReasonBoxNotRunning, carrel.ReasonOf(err), "%v", err)
	require.ErrorContains(t, err, "deleted")
}

// TestASessionOutlivesEveryPartBetween: while a command writes and reads, each part between the client and the agent, and those beside,
// are killed and started again, one after the other. Nothing that it wrote or was sent is lost or comes twice.
func TestASessionOutlivesEveryPartBetween(t *testing.T) {
	if testing.Short() {
		return // nodes need root
	}
	t.Parallel()
	s := carreltest.Start(t, carreltest.Options{Gateways: 2})
	create(t, s.Admin, "dev")
	ctx := bounded(t)
	in, typing := io.Pipe()
	var out buffer
	var links atomic.Int64 // how often the connection broke or was back
	type end struct {
		status client.ExitStatus
		err    error
	}
	ended := make(chan end, 1)
	go func() {
		status, err := s.Admin.Exec(ctx, client.ExecOptions{
			Box: "dev", Args: []string{"sh", "-c", `while read x; do echo "got $x"; done; exit 9`},
			Streams: client.Streams{Stdin: in, Stdout: &out, OnLink: func(client.Link, error) { links.Add(1) }},
		})
		ended <- end{status, err}
		_ = in.CloseWithError(fmt.Errorf("the session ended: %w", errors.Join(err, io.ErrClosedPipe)))
	}()
	want, sent := "", 0
	say := func() {
		t.Helper()
		for range 20 {
			sent++
			_, err := fmt.Fprintf(typing, "%d\n", sent)
			require.NoError(t, err)
			want += fmt.Sprintf("got %d\n", sent)
		}
	}
	heard := func(after string) {
		t.Helper()
		s.Eventually("everything is heard after "+after, func() error {
			if got := out.String(); got != want {
				return fmt.Errorf("got %d bytes of %d", len(got), len(want))
			}
			return nil
		})
	}
	say()
	heard("the start")
	restarts := []*carreltest.Part{s.Nodes[0].Part, s.Controls[0].Part, s.Reconcilers[0], s.Nodes[0].Proxy, s.Gateways[0].Part, s.Gateways[1].Part}
	for _, kill := range []bool{false, true} {
		for _, p := range restarts {
			if kill {
				require.NoError(t, p.Kill())
			} else {
				require.NoError(t, p.Stop())
			}
			said := make(chan struct{})
			go func() { defer close(said); say() }()
			require.NoError(t, p.Start())
			<-said
			heard(p.Name())
		}
	}
	for _, p := range []*carreltest.Wire{s.Front, s.Nodes[0].ToProxy} {
		p.Cut()
		say()
		heard("a cut")
	}
	require.NoError(t, typing.Close())
	last := <-ended
	require.NoError(t, last.err)
	require.Equal(t, 9, last.status.Code)
	require.Zero(t, last.status.Lost)
	require.Equal(t, want, out.String())
	require.Positive(t, links.Load(), "the session was never cut, so this test tests nothing")
	s.Eventually("everything is ready again", func() error { return s.Ready(ctx) })
	deleteAll(t, s)
}

// TestBoxesAreReachedWithoutControl: with control away, commands run in boxes that are known.
func TestBoxesAreReachedWithoutControl(t *testing.T) {
	if testing.Short() {
		return // nodes need root
	}
	t.Parallel()
	s := carreltest.Start(t, carreltest.Options{Controls: 2})
	create(t, s.Admin, "dev")
	exec(t, s.Admin, "dev", "true") // there is a ticket now
	for _, c := range s.Controls {
		require.NoError(t, c.Kill())
	}
	out, _, code := exec(t, s.Admin, "dev", "echo still here; exit 2")
	require.Equal(t, "still here\n", out)
	require.Equal(t, 2, code)
	_, err := s.Admin.Boxes.GetBox(bounded(t), request(&carrelv1.GetBoxRequest{Id: "dev"}))
	require.Error(t, err)
	require.Equal(t, carrel.CodeUnavailable, codeOf(err), "%v", err)
	// A gateway and a proxy that start now know from their files what they need.
	for _, p := range []*carreltest.Part{s.Gateways[0].Part, s.Nodes[0].Proxy, s.Nodes[0].Part} {
		require.NoError(t, p.Kill())
		require.NoError(t, p.Start())
	}
	out, _, _ = exec(t, s.Admin, "dev", "echo here again")
	require.Equal(t, "here again\n", out)
	for _, c := range s.Controls {
		require.NoError(t, c.Start())
	}
	verb(t, s.Admin, "pause", "dev")
	deleteAll(t, s)
}

// TestAPauseOutlivesTheProxy: a pause and a stop that find the proxy dead are done when it is back.
func TestAPauseOutlivesTheProxy(t *testing.T) {
	if testing.Short() {
		return // nodes need root
	}
	t.Parallel()
	s := carreltest.Start(t, carreltest.Options{})
	create(t, s.Admin, "dev")
	for _, state := range []carrelv1.State{carrelv1.State_STATE_PAUSED, carrelv1.State_STATE_STOPPED} {
		require.NoError(t, s.Nodes[0].Proxy.Kill())
		var err error
		if state == carrelv1.State_STATE_PAUSED {
			_, err = s.Admin.Boxes.PauseBox(bounded(t), request(&carrelv1.PauseBoxRequest{Id: "dev"}))
		} else {
			_, err = s.Admin.Boxes.StopBox(bounded(t), request(&carrelv1.StopBoxRequest{Id: "dev"}))
		}
		require.NoError(t, err)
		require.NoError(t, s.Nodes[0].Proxy.Start())
		answer, err := s.Admin.Boxes.WaitBox(bounded(t), request(&carrelv1.WaitBoxRequest{Id: "dev", States: []carrelv1.State{state}}))
		require.NoError(t, err)
		require.Equal(t, state, answer.Msg.GetState(), "%v", answer.Msg)
		require.Empty(t, answer.Msg.GetNotice(), "its processes were asked to end")
		verb(t, s.Admin, "start", "dev")
	}
	deleteAll(t, s)
}
