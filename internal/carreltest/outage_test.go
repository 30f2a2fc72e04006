package carreltest_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/api/carrel/v1/carrelv1connect"
	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/carreltest"
	"carrel.dev/carrel/internal/client"
)

// TestPostgreSQLIsAwayForAWhile: with PostgreSQL stopped, calls say so and when to come back, what runs goes on and can be worked with,
// and what happened meanwhile is known when it is back: a pause that was under way is committed, a crash is seen.
func TestPostgreSQLIsAwayForAWhile(t *testing.T) {
	if testing.Short() {
		return // nodes need root
	}
	t.Parallel()
	s := carreltest.Start(t, carreltest.Options{Controls: 2, Reconcilers: 2, OwnPostgres: true})
	ctx := bounded(t)
	create(t, s.Admin, "dev")
	pausing, dying := create(t, s.Admin, "pausing"), create(t, s.Admin, "dying")

	// A session that talks all the time.
	in, typing := io.Pipe()
	var out buffer
	type end struct {
		status client.ExitStatus
		err    error
	}
	ended := make(chan end, 1)
	go func() {
		status, err := s.Admin.Exec(ctx, client.ExecOptions{
			Box: "dev", Args: []string{"sh", "-c", `while read x; do echo "got $x"; done; exit 3`}, Streams: client.Streams{Stdin: in, Stdout: &out},
		})
		ended <- end{status, err}
		_ = in.CloseWithError(io.ErrClosedPipe)
	}()
	want := ""
	talk := func() {
		t.Helper()
		_, err := fmt.Fprintf(typing, "%d\n", len(want))
		require.NoError(t, err)
		want += fmt.Sprintf("got %d\n", len(want))
		s.Eventually("the session answers", func() error {
			if out.String() != want {
				return fmt.Errorf("%q", out.String())
			}
			return nil
		})
	}
	talk()

	// The pause has begun and waits at the node when PostgreSQL goes.
	reached, held := make(chan struct{}, 1), make(chan struct{})
	goOn := sync.OnceFunc(func() { close(held) })
	t.Cleanup(goOn)
	s.Nodes[0].SetFault(func(step, run string) error {
		if step == "save" && run == pausing.GetRunId() {
			reached <- struct{}{}
			<-held
		}
		return nil
	})
	pause, err := ask(ctx, s.Admin, "pause", "pausing", "")
	require.NoError(t, err)
	<-reached
	require.NoError(t, s.Postgres.Stop())
	talk()

	// Every call says so, in REST and in RPC, quickly.
	curl := newCurl(t, s, s.AdminToken)
	for _, path := range []string{"GET /v1/boxes", "GET /v1/boxes/dev", "POST /v1/boxes", "POST /v1/boxes/dev:stop", "GET /v1/nodes", "GET /v1/operations/" + pause.Msg.GetId()} {
		method, path := path[:4], path[4:]
		body := any(nil)
		if method == "POST" {
			body, path = document{}, path[1:]
		} else {
			method = "GET"
		}
		began := time.Now()
		answer := curl.open(ctx, method, path, body)
		text, err := io.ReadAll(answer.Body)
		require.NoError(t, err)
		require.Equal(t, http.StatusServiceUnavailable, answer.StatusCode, "%s %s: %s", method, path, text)
		seconds, err := strconv.Atoi(answer.Header.Get("Retry-After"))
		require.NoError(t, err, "%s %s has no Retry-After", method, path)
		require.Positive(t, seconds)
		said := document{}
		require.NoError(t, json.Unmarshal(text, &said))
		require.EqualValues(t, carrel.CodeUnavailable, said["code"])
		require.NotContains(t, said.text("message"), "SQL", "%s", text)
		require.Less(t, time.Since(began), 25*time.Second, "it is refused, not timed out")
	}
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	impatient := carrelv1connect.NewBoxServiceClient(&http.Client{Transport: bearer{s.AdminToken, transport}}, s.URL)
	_, err = impatient.GetBox(ctx, request(&carrelv1.GetBoxRequest{Id: "dev"}))
	var said *carrel.Error
	require.ErrorAs(t, client.Error(err), &said)
	require.Equal(t, carrel.CodeUnavailable, said.Code, "%v", err)
	require.Positive(t, said.RetryAfter)

	// Commands start, with the ticket that is there.
	text, _, code := exec(t, s.Admin, "dev", "echo in the dark; exit 7")
	require.Equal(t, "in the dark\n", text)
	require.Equal(t, 7, code)
	goOn() // the pause comes to its commit, which nobody can take
	require.NoError(t, s.Nodes[0].KillSandbox(dying.GetRunId()))
	talk()

	require.NoError(t, s.Postgres.Start())
	paused := finish(t, s.Admin, pause)
	require.Equal(t, carrelv1.State_STATE_PAUSED, paused.GetState())
	require.Equal(t, []int64{1}, rows[int64](t, s, "select count(*) from snapshots where box_id = $1", paused.GetId()))
	s.Eventually("the box whose sandbox died is back", func() error {
		box, err := s.Admin.Boxes.GetBox(ctx, request(&carrelv1.GetBoxRequest{Id: "dying"}))
		if err == nil && (box.Msg.GetEpoch() != 2 || box.Msg.GetState() != carrelv1.State_STATE_RUNNING) {
			err = fmt.Errorf("%v", box.Msg)
		}
		return err
	})
	talk()
	require.NoError(t, typing.Close())
	last := <-ended
	require.NoError(t, last.err)
	require.Equal(t, 3, last.status.Code)
	s.Nodes[0].SetFault(nil)
	verb(t, s.Admin, "resume", "pausing")
	s.Eventually("everything is ready", func() error { return s.Ready(ctx) })
	deleteAll(t, s)
}
