package control_test

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/types/known/anypb"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/auth"
	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/store"
)

func TestRESTSpeaksTheIDEsNames(t *testing.T) {
	r := newReplica(t)
	r.catalogue()
	u, m := r.asAdmin(), r.newMachine("one")
	status, _, op := u.rest("POST", "/v1/workspaces", jsonOf("name", "dev", "labels", map[string]string{"a": "b"}))
	require.Equal(t, 200, status, op)
	require.Equal(t, "create", op["verb"])
	id, _ := op["targetId"].(string)
	m.run(id)
	status, _, box := u.rest("GET", "/v1/workspaces/dev", "")
	require.Equal(t, 200, status)
	require.Equal(t, "STATE_RUNNING", box["state"])
	run, _ := box["runId"].(string)

	status, _, session := u.rest("GET", "/v1/sessions/"+run, "")
	require.Equal(t, 200, status)
	require.Equal(t, id, session["boxId"])
	status, _, op = u.rest("POST", "/v1/sessions/"+run+":suspend", "{}")
	require.Equal(t, 200, status, op)
	require.Equal(t, "pause", op["verb"])
	m.pause(id)
	status, _, op = u.rest("POST", "/v1/workspaces/dev:resume", "")
	require.Equal(t, 200, status, op)
	require.Equal(t, "resume", op["verb"])
	m.run(id)
	status, _, op = u.rest("POST", "/v1/workspaces/dev:terminate", "{}")
	require.Equal(t, 200, status, op)
	require.Equal(t, "stop", op["verb"])
	m.halt(id)
	status, _, op = u.rest("POST", "/v1/workspaces/dev/sessions", "{}")
	require.Equal(t, 200, status, op)
	require.Equal(t, "start", op["verb"])
	status, _, box = u.rest("PATCH", "/v1/boxes/dev", jsonOf("box", map[string]any{"labels": map[string]string{"c": "d"}}, "update_mask", "labels"))
	require.Equal(t, 200, status, box)
	require.Equal(t, map[string]any{"c": "d"}, box["labels"])
	status, _, list := u.rest("GET", "/v1/boxes?filter=label.c%3Dd&page_size=5", "")
	require.Equal(t, 200, status)
	require.Len(t, list["boxes"], 1)
	status, _, op = u.rest("DELETE", "/v1/boxes/dev?request_id=x", "")
	require.Equal(t, 200, status, op)
	require.Equal(t, "delete", op["verb"])
}

func TestRESTErrorsHaveOneShape(t *testing.T) {
	r := newReplica(t)
	r.catalogue()
	u := r.asAdmin()
	check := func(method, path, body string, wantStatus int, wantCode float64, wantReason string) map[string]any {
		t.Helper()
		status, header, e := u.rest(method, path, body)
		require.Equal(t, wantStatus, status, e)
		require.Equal(t, wantCode, e["code"])
		require.NotEmpty(t, e["message"])
		require.NotEmpty(t, header.Get("X-Request-Id"))
		details, _ := e["details"].([]any)
		require.NotEmpty(t, details, e)
		info, _ := details[0].(map[string]any)
		require.Equal(t, "type.googleapis.com/google.rpc.ErrorInfo", info["@type"])
		require.Equal(t, wantReason, info["reason"])
		return info
	}
	check("GET", "/v1/boxes/none", "", 404, 5, "box_not_found")
	check("POST", "/v1/boxes", `{"name":"Bad Name"}`, 400, 3, "bad_name")
	check("POST", "/v1/boxes", `{"name":`, 400, 3, "bad_request")
	for _, c := range []struct{ method, path, body, field string }{
		{"POST", "/v1/boxes", `{"title":"dev"}`, "title"},
		{"POST", "/v1/boxes", `{"resources":{"memmory_bytes":"1"}}`, "memmory_bytes"},
		{"POST", "/v1/boxes/dev:pause", `{"colour":"red"}`, "colour"},
		{"POST", "/v1/tokens", `{"comment":"x"}`, "comment"},
		{"GET", "/v1/boxes?pagesize=5", "", "pagesize"},
		{"DELETE", "/v1/boxes/dev?farce=true", "", "farce"},
		{"GET", "/v1/boxes:watch?box=dev", "", "box"},
	} {
		info := check(c.method, c.path, c.body, 400, 3, "unknown_field")
		require.Equal(t, map[string]any{"field": c.field}, info["metadata"], "%s %s", c.method, c.path)
	}
	check("GET", "/v1/nonsense", "", 404, 5, "route_not_found")
	check("GET", "/nonsense", "", 404, 5, "route_not_found")
	check("GET", "/v1/boxes:watch?id=none", "", 404, 5, "box_not_found")
	id := u.create("dev")
	r.newMachine("one").run(id)
	_, err := u.boxes.StopBox(t.Context(), req(&carrelv1.StopBoxRequest{Id: id}))
	require.NoError(t, err)
	info := check("POST", "/v1/boxes/dev:pause", "{}", 400, 9, "wrong_state")
	require.Equal(t, map[string]any{"box": id, "name": "dev", "state": "STOPPING"}, info["metadata"])

	for _, path := range []string{"/v1/boxes", "/carrel.v1.BoxService/CreateBox"} {
		status, _, e := u.rest("POST", path, `{"name":`)
		require.Equal(t, 400, status, e)
		require.Regexp(t, `the request can't be read: [^p]`, e["message"], "in our words, not the library's")
	}
	check("POST", "/v1/boxes", `{"name":"`+strings.Repeat("x", 5<<20)+`"}`, 400, 3, "request_too_large")
}

// What is refused is not done: the transcoder ends a body that it can't read as if that had been all of it.
func TestRESTDoesNothingOfWhatItRefuses(t *testing.T) {
	r := newReplica(t)
	r.catalogue()
	u := r.asAdmin()
	tokens := func() int {
		_, _, list := u.rest("GET", "/v1/tokens", "")
		all, ok := list["tokens"].([]any)
		require.True(t, ok, list)
		return len(all)
	}
	before := tokens()
	for _, body := range []string{`{"nam":"dev"}`, `{"name"`, `[]`, `"`, `{"resources":{"cpu_millis":"many"}}`, "\xff"} {
		for _, path := range []string{"/v1/boxes", "/v1/tokens"} {
			status, _, e := u.rest("POST", path, body)
			require.Equal(t, 400, status, "%s: %v", body, e)
		}
	}
	check := func() {
		t.Helper()
		_, _, list := u.rest("GET", "/v1/boxes", "")
		require.Empty(t, list["boxes"])
		require.Equal(t, before, tokens())
	}
	check()
	status, _, data := u.raw("POST", "/v1/boxes", "this is no gzip", map[string]string{"Content-Type": "application/json", "Content-Encoding": "gzip"})
	require.GreaterOrEqual(t, status, 400, string(data))
	check()
}

// curl calls what it posts a form; people mean the JSON that they wrote.
func TestRESTTakesWhatCurlSends(t *testing.T) {
	r := newReplica(t)
	r.catalogue()
	u := r.asAdmin()
	status, _, data := u.raw("POST", "/v1/boxes", `{"name":"dev"}`, map[string]string{"Content-Type": "application/x-www-form-urlencoded"})
	require.Equal(t, 200, status, string(data))
	for _, c := range []struct {
		method, contentType, reason string
		status                      int
	}{
		{"POST", "text/csv", "content_type", 415},
		{"PUT", "application/json", "method_not_allowed", 405},
	} {
		status, header, data := u.raw(c.method, "/v1/boxes", `{"name":"dev"}`, map[string]string{"Content-Type": c.contentType})
		require.Equal(t, c.status, status, string(data))
		require.Equal(t, "application/json", header.Get("Content-Type"))
		require.Contains(t, string(data), `"reason":"`+c.reason+`"`)
	}
}

// JSON is written by people, whichever protocol it is for. What programs send may be newer than we are.
func TestConnectRefusesFieldsThatDoNotExist(t *testing.T) {
	r := newReplica(t)
	r.catalogue()
	u := r.asAdmin()
	call := func(contentType, body string) (int, map[string]any) {
		t.Helper()
		status, _, data := u.raw("POST", "/carrel.v1.BoxService/ListBoxes", body, map[string]string{"Content-Type": contentType})
		answer := map[string]any{}
		if strings.Contains(contentType, "json") {
			require.NoError(t, json.Unmarshal(data, &answer), "%s", data)
		}
		return status, answer
	}
	for _, contentType := range []string{"application/json", "application/json; charset=utf-8"} {
		status, e := call(contentType, `{"pageSiez":5}`)
		require.Equal(t, 400, status, e)
		require.Equal(t, "invalid_argument", e["code"])
		require.Contains(t, e["message"], `"pageSiez"`)
		status, e = call(contentType, `{"pageSize":5}`)
		require.Equal(t, 200, status, e)
	}
	newer := protowire.AppendString(protowire.AppendTag(nil, 9999, protowire.BytesType), "of a later version")
	status, _ := call("application/proto", string(newer))
	require.Equal(t, 200, status)
}

func TestRetryAfterIsAHeaderToo(t *testing.T) {
	r := newReplica(t)
	r.catalogue()
	u, m := r.asAdmin(), r.newMachine("one")
	id := u.create("dev")
	m.run(id)
	u.rest("POST", "/v1/boxes/dev:stop", "{}")
	m.halt(id)
	u.rest("POST", "/v1/boxes/dev:start", "{}")
	status, header, e := u.rest("POST", "/v1/boxes/dev:pause", "{}")
	require.Equal(t, 503, status, e)
	require.Equal(t, "1", header.Get("Retry-After"))
}

func TestPlainJSONPostsToMethodsWork(t *testing.T) {
	r := newReplica(t)
	r.catalogue()
	u := r.asAdmin()
	status, header, data := u.raw("POST", "/carrel.v1.BoxService/CreateBox", `{"name":"dev"}`, map[string]string{"X-Request-Id": "mine-1"})
	require.Equal(t, 200, status, string(data))
	require.Equal(t, "mine-1", header.Get("X-Request-Id"), "a client's name for its request is kept")
	status, header, data = u.raw("POST", "/carrel.v1.BoxService/GetBox", `{"id":"none"}`, map[string]string{"X-Request-Id": "two words"})
	require.Equal(t, 404, status)
	require.NotEqual(t, "two words", header.Get("X-Request-Id"))
	require.NotEmpty(t, header.Get("X-Request-Id"))
	require.Contains(t, string(data), `"not_found"`)
}

func TestOpenAPIIsServed(t *testing.T) {
	u := newReplica(t).as("")
	status, header, doc := u.rest("GET", "/openapi.json", "")
	require.Equal(t, 200, status, "without a token")
	require.Equal(t, "application/json", header.Get("Content-Type"))
	require.Contains(t, doc["openapi"], "3.1.")
}

func TestGRPCClientsAreServed(t *testing.T) {
	r := newReplica(t)
	r.catalogue()
	pool := x509.NewCertPool()
	require.True(t, pool.AppendCertsFromPEM(r.server.CAPEM()))
	conn, err := grpc.NewClient(r.http.Listener.Addr().String(), grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{RootCAs: pool, ServerName: "localhost"})))
	require.NoError(t, err)
	defer conn.Close()
	ctx := metadata.AppendToOutgoingContext(within(t), "authorization", "Bearer "+r.admin)
	invoke := func(ctx context.Context, method string, in, out any) error { return conn.Invoke(ctx, method, in, out) }
	op := &carrelv1.Operation{}
	require.NoError(t, invoke(ctx, "/carrel.v1.BoxService/CreateBox", &carrelv1.CreateBoxRequest{Name: "dev"}, op))
	require.Equal(t, "dev", op.GetTargetName())
	err = invoke(ctx, "/carrel.v1.BoxService/GetBox", &carrelv1.GetBoxRequest{Id: "none"}, &carrelv1.Box{})
	require.Equal(t, codes.NotFound, status.Code(err))
	require.Len(t, status.Convert(err).Details(), 1)
	err = invoke(within(t), "/carrel.v1.BoxService/GetBox", &carrelv1.GetBoxRequest{Id: "dev"}, &carrelv1.Box{})
	require.Equal(t, codes.Unauthenticated, status.Code(err))

	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, "/carrel.v1.BoxService/WatchBoxes")
	require.NoError(t, err)
	require.NoError(t, stream.SendMsg(&carrelv1.WatchBoxesRequest{}))
	require.NoError(t, stream.CloseSend())
	first := &carrelv1.WatchBoxesResponse{}
	require.NoError(t, stream.RecvMsg(first))
	require.Equal(t, "dev", first.GetBox().GetName())

	reflection, err := conn.NewStream(within(t), &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo")
	require.NoError(t, err, "the schema can be asked for")
	require.NoError(t, reflection.CloseSend())
	require.ErrorIs(t, reflection.RecvMsg(&anypb.Any{}), io.EOF)
}

func TestWatchSendsWhatIsThereAndThenChanges(t *testing.T) {
	r := newReplica(t)
	r.catalogue()
	u, m := r.asAdmin(), r.newMachine("one")
	a, b := u.create("a"), u.create("b")
	ctx, cancel := context.WithCancel(within(t))
	defer cancel()
	stream, err := u.boxes.WatchBoxes(ctx, req(&carrelv1.WatchBoxesRequest{}))
	require.NoError(t, err)
	seen := map[string]bool{}
	for stream.Receive() && !stream.Msg().GetSynced() {
		seen[stream.Msg().GetBox().GetId()] = true
	}
	require.NoError(t, stream.Err())
	require.Equal(t, map[string]bool{a: true, b: true}, seen)
	m.run(b)
	for stream.Receive() {
		require.Equal(t, b, stream.Msg().GetBox().GetId(), "only what changed")
		if stream.Msg().GetBox().GetState() == carrelv1.State_STATE_RUNNING {
			break
		}
	}
	require.NoError(t, stream.Err())

	one, err := u.boxes.WatchBoxes(ctx, req(&carrelv1.WatchBoxesRequest{Id: "a"}))
	require.NoError(t, err)
	require.True(t, one.Receive())
	require.Equal(t, a, one.Msg().GetBox().GetId())
	require.True(t, one.Receive())
	require.True(t, one.Msg().GetSynced())

	r.stop()
	require.False(t, one.Receive())
	require.Equal(t, carrel.CodeUnavailable, code(one.Err()), "a server that stops sends its watchers to another")
}

// sse is a stream of server-sent events.
type sse struct {
	body    io.ReadCloser
	scanner *bufio.Scanner
	lastID  string
}

func (u *user) watch(ctx context.Context, path, lastID string) *sse {
	t := u.r.t
	t.Helper()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, u.r.http.URL+path, nil)
	require.NoError(t, err)
	if lastID != "" {
		request.Header.Set("Last-Event-ID", lastID)
	}
	resp, err := u.http.Do(request)
	require.NoError(t, err)
	require.Equal(t, 200, resp.StatusCode)
	require.Equal(t, "text/event-stream", resp.Header.Get("Content-Type"))
	return &sse{body: resp.Body, scanner: bufio.NewScanner(resp.Body)}
}

// next gives the next event's kind and data.
func (s *sse) next() (kind string, data map[string]any, err error) {
	for s.scanner.Scan() {
		field, value, _ := strings.Cut(s.scanner.Text(), ": ")
		switch field {
		case "id":
			s.lastID = value
		case "event":
			kind = value
		case "data":
			if err := json.Unmarshal([]byte(value), &data); err != nil {
				return "", nil, err
			}
		case "":
			if kind != "" {
				return kind, data, nil
			}
		}
	}
	return "", nil, errors.Join(s.scanner.Err(), io.EOF)
}

func TestWatchAsServerSentEvents(t *testing.T) {
	r := newReplica(t)
	r.catalogue()
	u, m := r.asAdmin(), r.newMachine("one")
	id := u.create("dev")
	ctx, cancel := context.WithCancel(within(t))
	defer cancel()
	s := u.watch(ctx, "/v1/boxes:watch", "")
	kind, box, err := s.next()
	require.NoError(t, err)
	require.Equal(t, "box", kind)
	require.Equal(t, "dev", box["name"])
	kind, _, err = s.next()
	require.NoError(t, err)
	require.Equal(t, "synced", kind)
	require.NotEmpty(t, s.lastID)
	m.run(id)
	for box["state"] != "STATE_RUNNING" {
		_, box, err = s.next()
		require.NoError(t, err)
	}
	cancel()
	last := s.lastID

	// Another box comes while nobody looks: going on from the last id shows it.
	other := u.create("other")
	ctx, cancel = context.WithCancel(within(t))
	defer cancel()
	s = u.watch(ctx, "/v1/boxes:watch?org=default", last)
	found := false
	for {
		kind, box, err = s.next()
		require.NoError(t, err)
		if kind == "synced" {
			break
		}
		found = found || box["id"] == other
	}
	require.True(t, found)
	s = u.watch(ctx, "/v1/boxes:watch?id=dev", "nonsense")
	_, box, err = s.next()
	require.NoError(t, err)
	require.Equal(t, id, box["id"], "an id that makes no sense: from the beginning")
}

func TestAnIdleWatcherIsNotCutOff(t *testing.T) {
	r := newReplica(t)
	r.catalogue()
	u := r.asAdmin()
	r.server.SetStreamWrite(2 * time.Second)
	id := u.create("dev")
	stream, err := u.boxes.WatchBoxes(within(t), req(&carrelv1.WatchBoxesRequest{Id: "dev"}))
	require.NoError(t, err)
	for range 2 {
		require.True(t, stream.Receive())
	}
	// Nothing is sent for much longer than a message may take.
	<-time.After(3 * time.Second)
	_, err = u.boxes.StopBox(t.Context(), req(&carrelv1.StopBoxRequest{Id: id}))
	require.NoError(t, err)
	require.True(t, stream.Receive(), stream.Err())
}

func TestAWatcherThatDoesNotReadIsCutOff(t *testing.T) {
	r := newReplica(t)
	r.catalogue()
	u := r.asAdmin()
	cl, err := r.store.Cluster(t.Context())
	require.NoError(t, err)
	template, err := r.store.GetTemplate(t.Context(), store.SystemScope(), cl.SystemOrg, "base", 0)
	require.NoError(t, err)
	who, err := u.users.WhoAmI(t.Context(), req(&carrelv1.WhoAmIRequest{}))
	require.NoError(t, err)
	scope := store.Scope{User: carrel.UserID(who.Msg.GetUser().GetId()), Orgs: []carrel.OrgID{cl.DefaultOrg}}
	// More than the buffers on the way hold, and nothing that compression makes small.
	for i := range 250 {
		raw := make([]byte, 30<<10)
		_, _ = rand.Read(raw)
		_, err := r.store.CreateBox(t.Context(), scope, store.NewBox{
			Org: cl.DefaultOrg, Name: "box-" + strconv.Itoa(i), TemplateID: template.ID, ImageDigest: testDigest, Resources: carrel.DefaultResources,
			Env: map[string]string{"LARGE": hex.EncodeToString(raw)},
		})
		require.NoError(t, err)
	}
	r.server.SetStreamWrite(200 * time.Millisecond)
	stream, err := u.boxes.WatchBoxes(t.Context(), req(&carrelv1.WatchBoxesRequest{}))
	require.NoError(t, err)
	require.Eventually(t, func() bool { return r.server.Watchers() == 0 }, patience, 10*time.Millisecond)
	received := 0
	for stream.Receive() {
		received++
	}
	require.Error(t, stream.Err())
	require.Less(t, received, 250)
}

func TestASlowWatcherGetsFewerNewerStates(t *testing.T) {
	r := newReplica(t)
	r.catalogue()
	u := r.asAdmin()
	id := u.create("dev")
	ctx, cancel := context.WithCancel(within(t))
	defer cancel()
	stream, err := u.boxes.WatchBoxes(ctx, req(&carrelv1.WatchBoxesRequest{Id: "dev"}))
	require.NoError(t, err)
	for range 2 {
		require.True(t, stream.Receive())
	}
	// A hundred changes in one go; the last one must be seen, not each of them.
	labels := map[string]string{}
	for i := range 100 {
		labels["n"] = time.Duration(i).String()
		_, err := r.store.UpdateBox(ctx, store.SystemScope(), store.UpdateBox{Box: carrel.BoxID(id), Labels: &labels})
		require.NoError(t, err)
	}
	messages := 0
	for stream.Receive() {
		messages++
		if stream.Msg().GetBox().GetLabels()["n"] == labels["n"] {
			break
		}
	}
	require.NoError(t, stream.Err())
	require.LessOrEqual(t, messages, 100)
}

func TestWhoOneIs(t *testing.T) {
	r := newReplica(t)
	r.catalogue()
	ctx := t.Context()
	who, err := r.asAdmin().users.WhoAmI(ctx, req(&carrelv1.WhoAmIRequest{}))
	require.NoError(t, err)
	require.Equal(t, "admin", who.Msg.GetUser().GetName())
	require.True(t, who.Msg.GetUser().GetOperator())
	require.Len(t, who.Msg.GetMemberships(), 2)
	require.Len(t, who.Msg.GetOrgs(), 2)

	for name, token := range map[string]string{
		"none": "", "nonsense": "x", "unknown": auth.NewToken().Text, "join token": auth.NewJoinToken().Text,
		"another id": "carrel_t1111111111111111111_" + r.admin[len(r.admin)-43:],
	} {
		_, err := r.as(token).users.WhoAmI(ctx, req(&carrelv1.WhoAmIRequest{}))
		require.Equal(t, carrel.CodeUnauthorized, code(err), name)
	}
	status, _, _ := r.as("").raw("GET", "/v1/whoami", "", map[string]string{"Authorization": "Basic eDp5"})
	require.Equal(t, 401, status)
}

func TestTokensEnd(t *testing.T) {
	r := newReplica(t)
	admin := r.asAdmin()
	ctx := t.Context()
	made, err := admin.tokens.CreateToken(ctx, req(&carrelv1.CreateTokenRequest{Description: "laptop"}))
	require.NoError(t, err)
	u := r.as(made.Msg.GetSecret())
	_, err = u.users.WhoAmI(ctx, req(&carrelv1.WhoAmIRequest{}))
	require.NoError(t, err)
	list, err := u.tokens.ListTokens(ctx, req(&carrelv1.ListTokensRequest{}))
	require.NoError(t, err)
	require.Len(t, list.Msg.GetTokens(), 2)
	require.NotContains(t, list.Msg.String(), made.Msg.GetSecret())
	_, err = u.tokens.RevokeToken(ctx, req(&carrelv1.RevokeTokenRequest{Id: made.Msg.GetToken().GetId()}))
	require.NoError(t, err)
	_, err = u.users.WhoAmI(ctx, req(&carrelv1.WhoAmIRequest{}))
	require.Equal(t, "bad_token", reason(err), "at once")
	require.NotContains(t, r.logs.String(), made.Msg.GetSecret()[30:], "no secret is logged")
}

func TestRolesHoldInTheAPI(t *testing.T) {
	r := newReplica(t)
	r.catalogue()
	ctx := t.Context()
	viewer := r.newUser("viewer", "default", auth.RoleViewer)
	member := r.newUser("member", "default", auth.RoleMember)
	admin := r.newUser("admin2", "default", auth.RoleAdmin)
	lonely := r.newUser("lonely", "", auth.RoleNone)

	id := member.create("dev")
	require.Equal(t, id, viewer.get("dev").GetId())
	_, err := viewer.boxes.CreateBox(ctx, req(&carrelv1.CreateBoxRequest{}))
	require.Equal(t, "role_too_low", reason(err))
	_, err = viewer.boxes.StopBox(ctx, req(&carrelv1.StopBoxRequest{Id: "dev"}))
	require.Equal(t, carrel.CodeDenied, code(err))
	_, err = viewer.boxes.StopBox(ctx, req(&carrelv1.StopBoxRequest{Id: id}))
	require.Equal(t, carrel.CodeDenied, code(err), "by its id as by its name")
	_, err = lonely.boxes.CreateBox(ctx, req(&carrelv1.CreateBoxRequest{}))
	require.Equal(t, "no_organisation", reason(err))
	_, err = lonely.boxes.GetBox(ctx, req(&carrelv1.GetBoxRequest{Id: id}))
	require.Equal(t, carrel.CodeNotFound, code(err))
	boxes, err := lonely.boxes.ListBoxes(ctx, req(&carrelv1.ListBoxesRequest{}))
	require.NoError(t, err)
	require.Empty(t, boxes.Msg.GetBoxes())

	r.newMachine("one").run(id)
	_, err = viewer.boxes.CreateTicket(ctx, req(&carrelv1.CreateTicketRequest{Id: "dev"}))
	require.Equal(t, carrel.CodeDenied, code(err), "exec is the default")
	_, err = viewer.boxes.CreateTicket(ctx, req(&carrelv1.CreateTicketRequest{Id: "dev", Scopes: []string{"view"}}))
	require.NoError(t, err)
	_, err = viewer.boxes.CreateTicket(ctx, req(&carrelv1.CreateTicketRequest{Id: "dev", Scopes: []string{"fly"}}))
	require.Equal(t, "bad_scope", reason(err))

	_, err = member.orgs.SetMember(ctx, req(&carrelv1.SetMemberRequest{Org: "default", User: "lonely", Role: "viewer"}))
	require.Equal(t, carrel.CodeDenied, code(err))
	_, err = admin.orgs.SetMember(ctx, req(&carrelv1.SetMemberRequest{Org: "default", User: "lonely", Role: "owner"}))
	require.Equal(t, "owner_needed", reason(err))
	_, err = admin.orgs.SetMember(ctx, req(&carrelv1.SetMemberRequest{Org: "default", User: "admin", Role: "viewer"}))
	require.Equal(t, "owner_needed", reason(err))
	_, err = admin.orgs.RemoveMember(ctx, req(&carrelv1.RemoveMemberRequest{Org: "default", User: "admin"}))
	require.Equal(t, "owner_needed", reason(err))
	_, err = admin.orgs.SetMember(ctx, req(&carrelv1.SetMemberRequest{Org: "default", User: "lonely", Role: "king"}))
	require.Equal(t, "bad_role", reason(err))
	_, err = admin.orgs.SetMember(ctx, req(&carrelv1.SetMemberRequest{Org: "default", User: "lonely", Role: "viewer"}))
	require.NoError(t, err)
	require.Equal(t, id, lonely.get("dev").GetId())
	_, err = admin.orgs.RemoveMember(ctx, req(&carrelv1.RemoveMemberRequest{Org: "default", User: "lonely"}))
	require.NoError(t, err)
	_, err = lonely.boxes.GetBox(ctx, req(&carrelv1.GetBoxRequest{Id: id}))
	require.Equal(t, carrel.CodeNotFound, code(err), "at once")
	_, err = r.asAdmin().orgs.RemoveMember(ctx, req(&carrelv1.RemoveMemberRequest{Org: "default", User: "admin"}))
	require.Equal(t, carrel.CodePrecondition, code(err), "the last owner")

	for name, err := range map[string]error{
		"users":      second(admin.users.ListUsers(ctx, req(&carrelv1.ListUsersRequest{}))),
		"user":       second(admin.users.CreateUser(ctx, req(&carrelv1.CreateUserRequest{Name: "x"}))),
		"org":        second(admin.orgs.CreateOrg(ctx, req(&carrelv1.CreateOrgRequest{Name: "x"}))),
		"nodes":      second(admin.nodes.ListNodes(ctx, req(&carrelv1.ListNodesRequest{}))),
		"join token": second(admin.nodes.CreateJoinToken(ctx, req(&carrelv1.CreateJoinTokenRequest{Role: "node"}))),
		"build":      second(admin.images.BuildImage(ctx, req(&carrelv1.BuildImageRequest{Yaml: "x"}))),
		"node path":  second(admin.images.ImportImage(ctx, req(&carrelv1.ImportImageRequest{Name: "x", Reference: "tar:/etc"}))),
	} {
		require.Equal(t, "operator_needed", reason(err), name)
	}
	_, err = admin.tokens.CreateToken(ctx, req(&carrelv1.CreateTokenRequest{User: "viewer"}))
	require.Equal(t, carrel.CodeNotFound, code(err), "tokens of others are for operators")
	_, err = admin.tokens.ListTokens(ctx, req(&carrelv1.ListTokensRequest{User: "viewer"}))
	require.Equal(t, carrel.CodeNotFound, code(err))
	tokens, err := r.asAdmin().tokens.ListTokens(ctx, req(&carrelv1.ListTokensRequest{User: "viewer"}))
	require.NoError(t, err)
	_, err = admin.tokens.RevokeToken(ctx, req(&carrelv1.RevokeTokenRequest{Id: tokens.Msg.GetTokens()[0].GetId()}))
	require.Equal(t, carrel.CodeNotFound, code(err))
}

func second[T any](_ *connect.Response[T], err error) error { return err }

func TestTemplatesAndImages(t *testing.T) {
	r := newReplica(t)
	r.catalogue()
	u := r.asAdmin()
	ctx := t.Context()
	push := func(yaml string) (*carrelv1.Template, error) {
		resp, err := u.templates.PushTemplate(ctx, req(&carrelv1.PushTemplateRequest{Yaml: yaml}))
		if err != nil {
			return nil, err
		}
		return resp.Msg, nil
	}
	one, err := push("name: mine\nimage: base\nsudo: true\nstartup: [\"echo hi\"]\n")
	require.NoError(t, err)
	require.EqualValues(t, 1, one.GetVersion())
	require.Equal(t, testDigest, one.GetImageDigest())
	two, err := push("name: mine\nimage: base\n")
	require.NoError(t, err)
	require.EqualValues(t, 2, two.GetVersion())
	got, err := u.templates.GetTemplate(ctx, req(&carrelv1.GetTemplateRequest{Name: "mine@1"}))
	require.NoError(t, err)
	require.True(t, got.Msg.GetSudo(), "a version never changes")
	_, err = push("name: mine\nimage: base\nimgae: x\n")
	require.Equal(t, carrel.CodeInvalid, code(err))
	_, err = push("name: mine\nimage: none\n")
	require.Equal(t, "image_not_found", reason(err))

	op, err := u.images.ImportImage(ctx, req(&carrelv1.ImportImageRequest{Name: "app", Reference: "registry.example/app:1"}))
	require.NoError(t, err)
	require.Equal(t, "import_image", op.Msg.GetVerb())
	require.False(t, op.Msg.GetDone())
	_, err = push("name: app\nimage: app\n")
	require.Equal(t, "image_not_ready", reason(err))
	image, err := u.images.GetImage(ctx, req(&carrelv1.GetImageRequest{Name: "app"}))
	require.NoError(t, err)
	require.Equal(t, "building", image.Msg.GetState())
	for name, m := range map[string]*carrelv1.ImportImageRequest{
		"bad_name": {Name: "A", Reference: "x"}, "bad_reference": {Name: "a", Reference: "x y"}, "bad_platform": {Name: "a", Reference: "x", Platform: "plan9/arm"},
	} {
		_, err := u.images.ImportImage(ctx, req(m))
		require.Equal(t, name, reason(err))
	}
	built, err := u.images.BuildImage(ctx, req(&carrelv1.BuildImageRequest{Yaml: "name: deb\nsuite: bookworm\n", RequestId: "b1"}))
	require.NoError(t, err)
	again, err := u.images.BuildImage(ctx, req(&carrelv1.BuildImageRequest{Yaml: "name: deb\nsuite: bookworm\n", RequestId: "b1"}))
	require.NoError(t, err)
	require.Equal(t, built.Msg.GetId(), again.Msg.GetId())
	_, err = u.images.BuildImage(ctx, req(&carrelv1.BuildImageRequest{Yaml: "suite: bookworm\n"}))
	require.Equal(t, carrel.CodeInvalid, code(err))
	images, err := u.images.ListImages(ctx, req(&carrelv1.ListImagesRequest{}))
	require.NoError(t, err)
	require.Len(t, images.Msg.GetImages(), 3)
}
