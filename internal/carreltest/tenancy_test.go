package carreltest_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/carreltest"
	"carrel.dev/carrel/internal/client"
)

// curl makes plain HTTP requests as somebody.
type curl struct {
	t     *testing.T
	s     *carreltest.Stack
	token string
	http  *http.Client
}

func newCurl(t *testing.T, s *carreltest.Stack, token string) *curl {
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	return &curl{t: t, s: s, token: token, http: &http.Client{Transport: transport}}
}

// document is a JSON object.
type document map[string]any

func (d document) text(key string) string { text, _ := d[key].(string); return text }

func (d document) list(key string) []document {
	list, _ := d[key].([]any)
	out := make([]document, len(list))
	for i, e := range list {
		out[i] = e.(map[string]any)
	}
	return out
}

// open makes a request and gives its answer, whose body the caller reads.
func (c *curl) open(ctx context.Context, method, path string, body any) *http.Response {
	c.t.Helper()
	var text []byte
	if body != nil {
		var err error
		text, err = json.Marshal(body)
		require.NoError(c.t, err)
	}
	r, err := http.NewRequestWithContext(ctx, method, c.s.URL+path, bytes.NewReader(text))
	require.NoError(c.t, err)
	if body != nil {
		r.Header.Set("Content-Type", "application/json")
	}
	if c.token != "" {
		r.Header.Set("Authorization", "Bearer "+c.token)
	}
	answer, err := c.http.Do(r)
	require.NoError(c.t, err)
	c.t.Cleanup(func() { answer.Body.Close() })
	return answer
}

// do makes a request and gives status and JSON of its answer.
func (c *curl) do(method, path string, body any) (int, document) {
	c.t.Helper()
	answer := c.open(bounded(c.t), method, path, body)
	text, err := io.ReadAll(answer.Body)
	require.NoError(c.t, err)
	answer.Body.Close()
	out := document{}
	require.NoError(c.t, json.Unmarshal(text, &out), "%s %s: %d %s", method, path, answer.StatusCode, text)
	return answer.StatusCode, out
}

// ok is do for a request that must succeed.
func (c *curl) ok(method, path string, body any) document {
	c.t.Helper()
	status, out := c.do(method, path, body)
	require.Equal(c.t, http.StatusOK, status, "%s %s: %v", method, path, out)
	return out
}

// every calls all methods that are about one box, one run, or one operation.
func every(ctx context.Context, c *client.Client, box, run, operation string) map[string]error {
	calls := map[string]error{
		"get":    failed(c.Boxes.GetBox(ctx, request(&carrelv1.GetBoxRequest{Id: box}))),
		"update": failed(c.Boxes.UpdateBox(ctx, request(&carrelv1.UpdateBoxRequest{Id: box, Box: &carrelv1.Box{Name: "mine"}, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"name"}}}))),
		"wait":   failed(c.Boxes.WaitBox(ctx, request(&carrelv1.WaitBoxRequest{Id: box, Timeout: durationpb.New(time.Millisecond)}))),
		"events": failed(c.Boxes.ListBoxEvents(ctx, request(&carrelv1.ListBoxEventsRequest{Id: box}))),
		"ticket": failed(c.Boxes.CreateTicket(ctx, request(&carrelv1.CreateTicketRequest{Id: box}))),
		"cold":   failed(c.Boxes.StartBox(ctx, request(&carrelv1.StartBoxRequest{Id: box, Cold: true}))),

		"processes": failed(c.Processes.ListProcesses(ctx, request(&carrelv1.ListProcessesRequest{Box: box}))),
		"process":   failed(c.Processes.GetProcess(ctx, request(&carrelv1.GetProcessRequest{Box: box, Process: "p1"}))),
		"run":       failed(c.Processes.StartProcess(ctx, request(&carrelv1.StartProcessRequest{Box: box, Args: []string{"true"}}))),
		"input":     failed(c.Processes.WriteInput(ctx, request(&carrelv1.WriteInputRequest{Box: box, Process: "p1"}))),
		"signal":    failed(c.Processes.SignalProcess(ctx, request(&carrelv1.SignalProcessRequest{Box: box, Process: "p1", Signal: "KILL"}))),
		"resize":    failed(c.Processes.ResizeProcess(ctx, request(&carrelv1.ResizeProcessRequest{Box: box, Process: "p1", Size: &carrelv1.TerminalSize{Rows: 1, Cols: 1}}))),
	}
	for _, name := range []string{"start", "stop", "pause", "resume", "restart", "delete"} {
		calls[name] = failed(ask(ctx, c, name, box, ""))
	}
	if run != "" {
		calls["get run"] = failed(c.Boxes.GetRun(ctx, request(&carrelv1.GetRunRequest{Id: run})))
		calls["get by run"] = failed(c.Boxes.GetBox(ctx, request(&carrelv1.GetBoxRequest{Id: run})))
		calls["stop by run"] = failed(ask(ctx, c, "stop", run, ""))
		calls["get operation"] = failed(c.Operations.GetOperation(ctx, request(&carrelv1.GetOperationRequest{Id: operation})))
	}
	watch, err := c.Boxes.WatchBoxes(ctx, request(&carrelv1.WatchBoxesRequest{Id: box}))
	if err == nil {
		watch.Receive()
		err = watch.Err()
		watch.Close()
	}
	calls["watch"] = err
	stream, err := c.Processes.RunProcess(ctx, request(&carrelv1.StartProcessRequest{Box: box, Args: []string{"true"}}))
	if err == nil {
		stream.Receive()
		err = stream.Err()
		stream.Close()
	}
	calls["exec"] = err
	return calls
}

func TestOrganisationsDoNotSeeEachOther(t *testing.T) {
	if testing.Short() {
		return // nodes need root
	}
	t.Parallel()
	s := carreltest.Start(t, carreltest.Options{})
	ctx := bounded(t)
	_, err := s.Admin.Orgs.CreateOrg(ctx, request(&carrelv1.CreateOrgRequest{Name: "theirs"}))
	require.NoError(t, err)
	oursToken, theirsToken := s.NewUser("ours", carreltest.Org, "member"), s.NewUser("theirs", "theirs", "owner")
	ours, theirs := s.Client(oursToken, ""), s.Client(theirsToken, "")

	op, err := ours.Boxes.CreateBox(ctx, request(&carrelv1.CreateBoxRequest{Name: "dev"}))
	require.NoError(t, err)
	box := finish(t, ours, op)
	other := create(t, theirs, "dev") // the same name, in another organisation
	require.NotEqual(t, box.GetId(), other.GetId())

	for name, err := range every(ctx, theirs, box.GetId(), box.GetRunId(), op.Msg.GetId()) {
		require.Equal(t, carrel.CodeNotFound, codeOf(err), "%s: %v", name, err)
	}
	for name, err := range every(ctx, s.Client(theirsToken, carreltest.Org), "dev", "", "") {
		require.Equal(t, carrel.CodeNotFound, codeOf(err), "%s by name in the organisation: %v", name, err)
	}
	list := func(c *client.Client) []string {
		answer, err := c.Boxes.ListBoxes(ctx, request(&carrelv1.ListBoxesRequest{ShowDeleted: true}))
		require.NoError(t, err)
		var ids []string
		for _, b := range answer.Msg.GetBoxes() {
			ids = append(ids, b.GetId())
		}
		return ids
	}
	require.Equal(t, []string{box.GetId()}, list(ours))
	require.Equal(t, []string{other.GetId()}, list(theirs))
	operations, err := theirs.Operations.ListOperations(ctx, request(&carrelv1.ListOperationsRequest{Target: box.GetId()}))
	if err == nil {
		require.Empty(t, operations.Msg.GetOperations())
	} else {
		require.Equal(t, carrel.CodeNotFound, codeOf(err))
	}

	stranger := newCurl(t, s, theirsToken)
	id, run := box.GetId(), box.GetRunId()
	for _, path := range []string{
		"GET /v1/boxes/" + id, "PATCH /v1/boxes/" + id, "DELETE /v1/boxes/" + id, "POST /v1/boxes/" + id + ":start", "POST /v1/boxes/" + id + ":stop",
		"POST /v1/boxes/" + id + ":pause", "POST /v1/boxes/" + id + ":resume", "POST /v1/boxes/" + id + ":restart", "POST /v1/boxes/" + id + ":wait",
		"GET /v1/boxes/" + id + "/events", "POST /v1/boxes/" + id + "/tickets", "GET /v1/runs/" + run, "GET /v1/operations/" + op.Msg.GetId(),
		"GET /v1/boxes:watch?id=" + id, "GET /v1/boxes/" + id + "?org=default", "GET /v1/boxes/dev?org=default",
		"GET /v1/workspaces/" + id, "PATCH /v1/workspaces/" + id, "DELETE /v1/workspaces/" + id, "POST /v1/workspaces/" + id + "/sessions",
		"POST /v1/workspaces/" + id + ":terminate", "POST /v1/workspaces/" + id + ":suspend", "POST /v1/workspaces/" + id + ":resume",
		"POST /v1/workspaces/" + id + ":restart", "GET /v1/sessions/" + run, "POST /v1/sessions/" + run + ":terminate",
		"POST /v1/sessions/" + run + ":suspend", "POST /v1/sessions/" + run + ":resume",
		"GET /v1/boxes/" + id + "/processes", "GET /v1/boxes/" + id + "/processes/p1", "POST /v1/boxes/" + id + "/processes",
		"POST /v1/boxes/" + id + "/processes/p1:input", "POST /v1/boxes/" + id + "/processes/p1:signal", "POST /v1/boxes/" + id + "/processes/p1:resize",
	} {
		method, path, _ := strings.Cut(path, " ")
		body := document{}
		switch {
		case strings.HasSuffix(path, "/processes"):
			body["args"] = []string{"true"}
		case method == http.MethodPatch:
			body = document{"box": document{"name": "mine"}, "updateMask": "name"}
		}
		var sent any = body
		if method == http.MethodGet || method == http.MethodDelete {
			sent = nil
		}
		status, answer := stranger.do(method, path, sent)
		require.Equal(t, http.StatusNotFound, status, "%s %s: %v", method, path, answer)
		require.EqualValues(t, carrel.CodeNotFound, answer["code"], "%s %s: %v", method, path, answer)
		require.NotContains(t, answer.text("message"), "route", "%s %s is no route", method, path)
	}
	now, err := ours.Boxes.GetBox(ctx, request(&carrelv1.GetBoxRequest{Id: id}))
	require.NoError(t, err)
	require.Equal(t, box.GetEtag(), now.Msg.GetEtag(), "a stranger changed it")
	require.Equal(t, box.GetGeneration(), now.Msg.GetGeneration())

	// A ticket is for one box.
	ticket, err := theirs.Boxes.CreateTicket(ctx, request(&carrelv1.CreateTicketRequest{Id: other.GetId()}))
	require.NoError(t, err)
	steal := request(&carrelv1.ListProcessesRequest{Box: id})
	steal.Header().Set("Authorization", "Bearer "+ticket.Msg.GetTicket())
	_, err = theirs.Processes.ListProcesses(ctx, steal)
	require.Error(t, err)
	require.Contains(t, []carrel.Code{carrel.CodeNotFound, carrel.CodeDenied, carrel.CodeUnauthorized}, codeOf(err), "%v", err)

	verb(t, theirs, "delete", "dev")
	deleteAll(t, s)
}

func TestRolesAndTokensHoldAtTheFrontDoor(t *testing.T) {
	if testing.Short() {
		return // nodes need root
	}
	t.Parallel()
	s := carreltest.Start(t, carreltest.Options{})
	ctx := bounded(t)
	box := create(t, s.Admin, "dev")
	viewer := s.Client(s.NewUser("viewer", carreltest.Org, "viewer"), "")
	member := s.Client(s.NewUser("member", carreltest.Org, "member"), "")

	looks := map[string]bool{"get": true, "wait": true, "events": true, "processes": true, "watch": true, "get run": true, "get by run": true, "get operation": true}
	operations, err := viewer.Operations.ListOperations(ctx, request(&carrelv1.ListOperationsRequest{Target: box.GetId()}))
	require.NoError(t, err)
	for name, err := range every(ctx, viewer, box.GetId(), box.GetRunId(), operations.Msg.GetOperations()[0].GetId()) {
		switch {
		case looks[name]:
			require.NoError(t, err, name)
		case name == "process": // it may look, and there is none
			require.Equal(t, carrel.CodeNotFound, codeOf(err), "%s: %v", name, err)
		default:
			require.Equal(t, carrel.CodeDenied, codeOf(err), "%s: %v", name, err)
		}
	}
	_, err = viewer.Boxes.CreateBox(ctx, request(&carrelv1.CreateBoxRequest{}))
	require.Equal(t, carrel.CodeDenied, codeOf(err))
	view, err := viewer.Boxes.CreateTicket(ctx, request(&carrelv1.CreateTicketRequest{Id: "dev", Scopes: []string{"view"}}))
	require.NoError(t, err)
	act := request(&carrelv1.StartProcessRequest{Box: box.GetId(), Args: []string{"true"}})
	act.Header().Set("Authorization", "Bearer "+view.Msg.GetTicket())
	_, err = viewer.Processes.StartProcess(ctx, act)
	require.Equal(t, carrel.CodeDenied, codeOf(err), "a ticket to look is not one to act: %v", err)

	for _, c := range []*client.Client{viewer, member} {
		_, err = c.Nodes.ListNodes(ctx, request(&carrelv1.ListNodesRequest{}))
		require.Equal(t, carrel.CodeDenied, codeOf(err))
	}
	nodes, err := s.Admin.Nodes.ListNodes(ctx, request(&carrelv1.ListNodesRequest{}))
	require.NoError(t, err)
	require.Len(t, nodes.Msg.GetNodes(), 1)
	require.Equal(t, "node-0", nodes.Msg.GetNodes()[0].GetName())
	require.Equal(t, "online", nodes.Msg.GetNodes()[0].GetState())

	// Tokens that are expired, revoked, or nonsense.
	var soon time.Time
	var short *connect.Response[carrelv1.CreateTokenResponse]
	for life := 300 * time.Millisecond; short == nil; life *= 2 { // a slow machine asks for it when that is over
		soon = time.Now().Add(life)
		short, err = member.Tokens.CreateToken(ctx, request(&carrelv1.CreateTokenRequest{ExpireTime: timestamppb.New(soon)}))
		if err != nil {
			require.Equal(t, carrel.CodeInvalid, codeOf(err), "%v", err)
			require.False(t, time.Now().Before(soon), "%v", err)
			short = nil
		}
	}
	brief := s.Client(short.Msg.GetSecret(), "")
	s.Eventually("the token expires", func() error {
		if _, err := brief.Users.WhoAmI(ctx, request(&carrelv1.WhoAmIRequest{})); err == nil {
			return io.ErrNoProgress
		} else {
			require.Equal(t, carrel.CodeUnauthorized, codeOf(err))
			require.False(t, time.Now().Before(soon), "it expired early")
		}
		return nil
	})
	long, err := member.Tokens.CreateToken(ctx, request(&carrelv1.CreateTokenRequest{}))
	require.NoError(t, err)
	held := s.Client(long.Msg.GetSecret(), "")
	out, _, _ := exec(t, held, "dev", "echo in")
	require.Equal(t, "in\n", out)
	_, err = member.Tokens.RevokeToken(ctx, request(&carrelv1.RevokeTokenRequest{Id: long.Msg.GetToken().GetId()}))
	require.NoError(t, err)
	_, err = held.Boxes.GetBox(ctx, request(&carrelv1.GetBoxRequest{Id: "dev"}))
	require.Equal(t, carrel.CodeUnauthorized, codeOf(err))
	_, err = held.Boxes.CreateTicket(ctx, request(&carrelv1.CreateTicketRequest{Id: "dev"}))
	require.Equal(t, carrel.CodeUnauthorized, codeOf(err))
	for _, token := range []string{"", "nonsense", s.AdminToken[:len(s.AdminToken)-1] + "x", long.Msg.GetSecret()} {
		status, answer := newCurl(t, s, token).do(http.MethodGet, "/v1/boxes", nil)
		require.Equal(t, http.StatusUnauthorized, status, "%v", answer)
	}
	deleteAll(t, s)
}
