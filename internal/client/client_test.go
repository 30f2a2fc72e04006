package client

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/api/carrel/v1/carrelv1connect"
	"carrel.dev/carrel/internal/carrel"
)

func TestContextsAreKeptStrictlyAndPrivately(t *testing.T) {
	path := filepath.Join(t.TempDir(), "carrel", "config.yaml")
	file, err := LoadContexts(path)
	require.NoError(t, err, "no file is an empty one")
	file.Contexts["local"] = Context{URL: "http://127.0.0.1:7070", Token: "carrel_x", Org: "default"}
	file.Current = "local"
	require.NoError(t, file.Save(path))
	if runtime.GOOS != "windows" {
		info, err := os.Stat(path)
		require.NoError(t, err)
		require.Equal(t, os.FileMode(0o600), info.Mode().Perm())
	}
	again, err := LoadContexts(path)
	require.NoError(t, err)
	require.Equal(t, file, again)
	left, err := filepath.Glob(filepath.Join(filepath.Dir(path), ".*"))
	require.NoError(t, err)
	require.Empty(t, left, "nothing is left of writing it")

	for name, text := range map[string]string{
		"unknown field":     "current: a\nsurprise: 1\n",
		"unknown in a part": "contexts:\n  a: {url: \"http://x\", pasword: y}\n",
		"bad URL":           "contexts:\n  a: {url: \"ftp://x\"}\n",
		"bad name":          "contexts:\n  \"A B\": {url: \"http://x\"}\n",
		"not YAML":          "{",
	} {
		require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
		_, err := LoadContexts(path)
		require.Equal(t, "bad_contexts_file", carrel.ReasonOf(err), name)
	}
}

func TestWhichContextIsUsed(t *testing.T) {
	file := &Contexts{Current: "a", Contexts: map[string]Context{
		"a": {URL: "http://a", Token: "ta", Org: "oa"}, "b": {URL: "http://b", Token: "tb"},
	}}
	for name, row := range map[string]struct {
		flags, env Choice
		want       Context
		context    string
	}{
		"the current one":          {Choice{}, Choice{}, Context{URL: "http://a", Token: "ta", Org: "oa"}, "a"},
		"the environment's":        {Choice{}, Choice{Context: "b"}, Context{URL: "http://b", Token: "tb"}, "b"},
		"flags before environment": {Choice{Context: "a"}, Choice{Context: "b"}, Context{URL: "http://a", Token: "ta", Org: "oa"}, "a"},
		"a context named by flag wins over a URL of the environment": {Choice{Context: "b"}, Choice{URL: "http://z"}, Context{URL: "http://b", Token: "tb"}, "b"},
		"organisation and token on top":                              {Choice{Org: "o2"}, Choice{Token: "t2"}, Context{URL: "http://a", Token: "t2", Org: "o2"}, "a"},
		"a token is not sent elsewhere":                              {Choice{URL: "http://z"}, Choice{}, Context{URL: "http://z"}, ""},
	} {
		got, used, err := file.Resolve(row.flags, row.env)
		require.NoError(t, err, name)
		require.Equal(t, row.want, got, name)
		require.Equal(t, row.context, used, name)
	}
	_, _, err := file.Resolve(Choice{Context: "c"})
	require.Equal(t, "context_not_found", carrel.ReasonOf(err))
	_, _, err = (&Contexts{}).Resolve()
	require.Equal(t, "not_logged_in", carrel.ReasonOf(err))
}

func FuzzParseURL(f *testing.F) {
	f.Add("http://127.0.0.1:7070")
	f.Add("https://user@host/path?q#f")
	f.Fuzz(func(t *testing.T, s string) {
		u, err := ParseURL(s)
		if err == nil {
			require.Contains(t, []string{"http", "https"}, u.Scheme)
			require.Nil(t, u.User)
			require.Empty(t, u.RawQuery)
		}
	})
}

// boxes answers as a test says.
type boxes struct {
	carrelv1connect.UnimplementedBoxServiceHandler
	calls  atomic.Int64
	get    func(n int64, req *connect.Request[carrelv1.GetBoxRequest]) (*carrelv1.Box, error)
	ticket func(n int64) (*carrelv1.Ticket, error)
	update func(n int64) error
	create func(n int64, req *carrelv1.CreateBoxRequest) error
}

func (b *boxes) GetBox(_ context.Context, req *connect.Request[carrelv1.GetBoxRequest]) (*connect.Response[carrelv1.Box], error) {
	box, err := b.get(b.calls.Add(1), req)
	return connect.NewResponse(box), err
}

func (b *boxes) CreateTicket(context.Context, *connect.Request[carrelv1.CreateTicketRequest]) (*connect.Response[carrelv1.Ticket], error) {
	ticket, err := b.ticket(b.calls.Add(1))
	return connect.NewResponse(ticket), err
}

func (b *boxes) UpdateBox(context.Context, *connect.Request[carrelv1.UpdateBoxRequest]) (*connect.Response[carrelv1.Box], error) {
	return connect.NewResponse(&carrelv1.Box{}), b.update(b.calls.Add(1))
}

func (b *boxes) CreateBox(_ context.Context, req *connect.Request[carrelv1.CreateBoxRequest]) (*connect.Response[carrelv1.Operation], error) {
	return connect.NewResponse(&carrelv1.Operation{}), b.create(b.calls.Add(1), req.Msg)
}

func serve(t *testing.T, b *boxes, now func() time.Time) *Client {
	_, handler := carrelv1connect.NewBoxServiceHandler(b)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	server := &http.Server{Handler: handler, Protocols: protocols}
	done := make(chan struct{})
	go func() { defer close(done); _ = server.Serve(listener) }()
	t.Cleanup(func() { server.Close(); <-done })
	c, err := New(Config{Context: Context{URL: "http://" + listener.Addr().String(), Token: "carrel_t", Org: "research"}, Now: now})
	require.NoError(t, err)
	t.Cleanup(c.Close)
	return c
}

func wireError(code connect.Code, reason string) error {
	e := connect.NewError(code, errors.New("said so"))
	if d, err := connect.NewErrorDetail(&errdetails.ErrorInfo{Reason: reason, Domain: "carrel.dev", Metadata: map[string]string{"k": "v"}}); err == nil {
		e.AddDetail(d)
	}
	return e
}

func TestCallsAreRepeatedOnlyWhenThatIsSafe(t *testing.T) {
	unavailable := wireError(connect.CodeUnavailable, "restarting")
	b := &boxes{
		get: func(n int64, _ *connect.Request[carrelv1.GetBoxRequest]) (*carrelv1.Box, error) {
			if n < 3 {
				return &carrelv1.Box{}, unavailable
			}
			return &carrelv1.Box{Name: "here"}, nil
		},
		update: func(int64) error { return unavailable },
	}
	c := serve(t, b, nil)
	resp, err := c.Boxes.GetBox(t.Context(), connect.NewRequest(&carrelv1.GetBoxRequest{Id: "x"}))
	require.NoError(t, err)
	require.Equal(t, "here", resp.Msg.GetName())
	require.EqualValues(t, 3, b.calls.Load())

	b.calls.Store(0)
	_, err = c.Boxes.UpdateBox(t.Context(), connect.NewRequest(&carrelv1.UpdateBoxRequest{}))
	require.Equal(t, carrel.CodeUnavailable, carrel.CodeOf(err))
	require.EqualValues(t, 1, b.calls.Load(), "what may have happened is not done twice")

	var ids []string
	b.calls.Store(0)
	b.create = func(_ int64, req *carrelv1.CreateBoxRequest) error {
		ids = append(ids, req.GetRequestId())
		require.Equal(t, "research", req.GetOrg())
		return unavailable
	}
	_, err = c.Boxes.CreateBox(t.Context(), connect.NewRequest(&carrelv1.CreateBoxRequest{}))
	require.Error(t, err)
	require.Len(t, ids, maxTries, "a request with an id is repeated, a few times")
	require.NotEmpty(t, ids[0])
	require.Equal(t, ids[0], ids[maxTries-1])
}

func TestErrorsComeBackTyped(t *testing.T) {
	b := &boxes{get: func(_ int64, req *connect.Request[carrelv1.GetBoxRequest]) (*carrelv1.Box, error) {
		require.Equal(t, "Bearer carrel_t", req.Header().Get("Authorization"))
		require.NotEmpty(t, req.Header().Get("X-Request-Id"))
		e := wireError(connect.CodeFailedPrecondition, "box_deleting")
		var ce *connect.Error
		require.ErrorAs(t, e, &ce)
		d, err := connect.NewErrorDetail(&errdetails.RetryInfo{RetryDelay: durationpb.New(3 * time.Second)})
		require.NoError(t, err)
		ce.AddDetail(d)
		return nil, e
	}}
	c := serve(t, b, nil)
	_, err := c.Boxes.GetBox(t.Context(), connect.NewRequest(&carrelv1.GetBoxRequest{Id: "x"}))
	var e *carrel.Error
	require.ErrorAs(t, err, &e)
	require.Equal(t, carrel.CodePrecondition, e.Code)
	require.Equal(t, "box_deleting", e.Reason)
	require.Equal(t, "said so", e.Message)
	require.Equal(t, map[string]string{"k": "v"}, e.Metadata)
	require.Equal(t, 3*time.Second, e.RetryAfter)

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = c.Boxes.GetBox(ctx, connect.NewRequest(&carrelv1.GetBoxRequest{Id: "x"}))
	require.ErrorIs(t, err, context.Canceled)

	nobody, err := New(Config{Context: Context{URL: "http://127.0.0.1:1"}})
	require.NoError(t, err)
	_, err = nobody.Boxes.GetBox(t.Context(), connect.NewRequest(&carrelv1.GetBoxRequest{Id: "x"}))
	require.Equal(t, ReasonUnreachable, carrel.ReasonOf(err))
	require.True(t, strings.Contains(err.Error(), "refused"))
}

func TestTicketsAreKeptUntilTheyAreNearlyOver(t *testing.T) {
	var clock atomic.Int64
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	now := func() time.Time { return start.Add(time.Duration(clock.Load())) }
	away := atomic.Bool{}
	b := &boxes{ticket: func(n int64) (*carrelv1.Ticket, error) {
		if away.Load() {
			return nil, wireError(connect.CodeUnavailable, "away")
		}
		return &carrelv1.Ticket{Ticket: string(rune('a' + n)), BoxId: "box", ExpireTime: timestamppb.New(now().Add(10 * time.Minute))}, nil
	}}
	c := serve(t, b, now)
	first, err := c.Ticket(t.Context(), "x")
	require.NoError(t, err)
	same, err := c.Ticket(t.Context(), "x")
	require.NoError(t, err)
	require.Equal(t, first, same)

	clock.Store(int64(9*time.Minute + time.Second))
	away.Store(true)
	same, err = c.Ticket(t.Context(), "x")
	require.NoError(t, err, "an old one that is still good does while control is away")
	require.Equal(t, first, same)
	clock.Store(int64(11 * time.Minute))
	_, err = c.Ticket(t.Context(), "x")
	require.Equal(t, carrel.CodeUnavailable, carrel.CodeOf(err))
	away.Store(false)
	fresh, err := c.Ticket(t.Context(), "x")
	require.NoError(t, err)
	require.NotEqual(t, first.Token, fresh.Token)
	c.forget("x", first) // somebody was refused an older one meanwhile
	again, err := c.Ticket(t.Context(), "x")
	require.NoError(t, err)
	require.Equal(t, fresh, again)
}

func (b *boxes) ResumeBox(context.Context, *connect.Request[carrelv1.ResumeBoxRequest]) (*connect.Response[carrelv1.Operation], error) {
	return connect.NewResponse(&carrelv1.Operation{}), nil
}

// Who resumes a box does not try the ticket of its former run first.
func TestATicketEndsWithItsRun(t *testing.T) {
	b := &boxes{ticket: func(n int64) (*carrelv1.Ticket, error) {
		return &carrelv1.Ticket{Ticket: fmt.Sprint(n), BoxId: "box", ExpireTime: timestamppb.New(time.Now().Add(10 * time.Minute))}, nil
	}}
	c := serve(t, b, nil)
	tokens := map[string]string{}
	for _, box := range []string{"x", "y"} {
		ticket, err := c.Ticket(t.Context(), box)
		require.NoError(t, err)
		tokens[box] = ticket.Token
	}
	_, err := c.Boxes.ResumeBox(t.Context(), connect.NewRequest(&carrelv1.ResumeBoxRequest{Id: "x"}))
	require.NoError(t, err)
	fresh, err := c.Ticket(t.Context(), "x")
	require.NoError(t, err)
	require.NotEqual(t, tokens["x"], fresh.Token)
	same, err := c.Ticket(t.Context(), "y")
	require.NoError(t, err)
	require.Equal(t, tokens["y"], same.Token)
}

// After each resume the ticket of the former run is refused: nobody shall wait for a new one.
func TestRefusedTicketIsRenewedAtOnce(t *testing.T) {
	stale := carrel.Errorf(carrel.CodeUnauthorized, ReasonTicketStale, "of an earlier run")
	away := carrel.Errorf(carrel.CodeUnavailable, "away", "nobody answers")
	waits := newRetries()
	require.Zero(t, waits.after(stale))
	require.NotZero(t, waits.after(stale), "a new ticket was refused, too")
	require.NotZero(t, waits.after(away))
	require.Zero(t, waits.after(stale), "what was wrong since then was something else")
	waits.Reset()
	require.Zero(t, waits.after(stale))
	waits.Reset()
	require.Zero(t, waits.after(stale), "it got somewhere since then")
	require.NotZero(t, waits.after(away))
}

func TestOperationErrorSaysWhatToDo(t *testing.T) {
	err := OperationError(&carrelv1.Operation{Done: true, Error: &carrelv1.Failure{Reason: "no_room", Message: "no node has room", NextStep: "Stop a box."}})
	var e *carrel.Error
	require.ErrorAs(t, err, &e)
	require.Equal(t, "no node has room. Stop a box.", e.Message)
	require.Equal(t, carrel.CodeExhausted, e.Code)
	require.NoError(t, OperationError(&carrelv1.Operation{Done: true}))
}

func TestAClientKnowsWhichTokenItShows(t *testing.T) {
	for token, want := range map[string]string{
		"carrel_t0000000000000000001_abc_def": "t0000000000000000001", "carrel_sesame": "", "": "", "carrel_u0000000000000000001_abc": "",
	} {
		c, err := New(Config{Context: Context{URL: "http://127.0.0.1:1", Token: token}})
		require.NoError(t, err)
		require.Equal(t, want, c.TokenID(), token)
		c.Close()
	}
}
