package gateway_test

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/auth"
	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/client"
)

func request[T any](m *T) *connect.Request[T] { return connect.NewRequest(m) }

func TestWhatATicketAllows(t *testing.T) {
	s := newStack(t)
	other := carrel.NewBoxID()
	view := func(t *auth.Ticket) { t.Scopes = []string{auth.ScopeView} }
	for name, row := range map[string]struct {
		bearer string
		start  bool
		code   carrel.Code
		reason string
	}{
		"exec ticket starts":         {s.ticket(nil), true, 0, ""},
		"exec ticket lists":          {s.ticket(nil), false, 0, ""},
		"view ticket lists":          {s.ticket(view), false, 0, ""},
		"view ticket does not start": {s.ticket(view), true, carrel.CodeDenied, "view_only"},
		"token starts":               {testToken, true, 0, ""},
		"expired ticket":             {s.ticket(func(t *auth.Ticket) { t.Expires = time.Now().Add(-time.Second) }), false, carrel.CodeUnauthorized, "ticket_expired"},
		"ticket of another box":      {s.ticket(func(t *auth.Ticket) { t.Box = other }), false, carrel.CodeDenied, "ticket_of_another_box"},
		"ticket of an earlier run":   {s.ticket(func(t *auth.Ticket) { t.Epoch = 1 }), false, 0, ""},
		"forged":                     {s.ticket(nil) + "x", false, carrel.CodeUnauthorized, "bad_ticket"},
		"garbage":                    {"garbage", false, carrel.CodeUnauthorized, "bad_ticket"},
		"nothing":                    {"", false, carrel.CodeUnauthorized, "no_credentials"},
		"unknown token":              {"carrel_bad", false, carrel.CodeUnauthorized, "unauthenticated"},
	} {
		t.Run(name, func(t *testing.T) {
			processes := s.processes(row.bearer)
			var err error
			if row.start {
				_, err = processes.StartProcess(testContext(t), request(&carrelv1.StartProcessRequest{Box: string(s.box), Args: []string{"exit", "0"}}))
			} else {
				_, err = processes.ListProcesses(testContext(t), request(&carrelv1.ListProcessesRequest{Box: string(s.box)}))
			}
			require.Equal(t, row.code, carrel.CodeOf(err), "%v", err)
			if row.code != 0 {
				require.Equal(t, row.reason, carrel.ReasonOf(err))
			}
		})
	}
}

func TestTokenIsExchangedOnceForAMoment(t *testing.T) {
	s := newStack(t)
	processes := s.processes(testToken)
	for range 5 {
		_, err := processes.ListProcesses(testContext(t), request(&carrelv1.ListProcessesRequest{Box: "mybox"}))
		require.NoError(t, err)
	}
	require.Equal(t, 1, s.control.exchanges)
	s.stopControl()
	_, err := processes.ListProcesses(testContext(t), request(&carrelv1.ListProcessesRequest{Box: "mybox"}))
	require.NoError(t, err, "what is known goes on while control is away")
}

func TestStaleTicketAsksForANewOne(t *testing.T) {
	s := newStack(t)
	s.proxy.epoch.Store(2)
	s.control.setRoute(s.route(2))
	require.Eventually(t, func() bool {
		_, err := s.processes(s.ticket(nil)).ListProcesses(testContext(t), request(&carrelv1.ListProcessesRequest{Box: string(s.box)}))
		return carrel.ReasonOf(err) == client.ReasonTicketStale
	}, within, 5*time.Millisecond)
}

func TestRouteThatIsBehindIsLookedAtAgain(t *testing.T) {
	s := newStack(t)
	s.proxy.epoch.Store(2) // the node runs epoch 2 already; control tells a little later
	ended := make(chan error, 1)
	go func() {
		_, err := s.processes(s.ticket(func(t *auth.Ticket) { t.Epoch = 2 })).ListProcesses(testContext(t), request(&carrelv1.ListProcessesRequest{Box: string(s.box)}))
		ended <- err
	}()
	s.control.setRoute(s.route(2))
	require.NoError(t, <-ended)
}

func TestBoxThatDoesNotRunSaysWhatToDo(t *testing.T) {
	s := newStack(t)
	gone := s.route(1)
	gone.Gone = true
	s.control.mu.Lock()
	s.control.state = carrelv1.State_STATE_PAUSED
	s.control.mu.Unlock()
	s.control.setRoute(gone)
	_, err := s.processes(testToken).ListProcesses(testContext(t), request(&carrelv1.ListProcessesRequest{Box: "mybox"}))
	require.Equal(t, carrel.CodePrecondition, carrel.CodeOf(err))
	require.ErrorContains(t, err, "is paused: `carrel resume")
}

func TestAgentCannotSpeakForThePlatform(t *testing.T) {
	s := newStack(t)
	s.agent.refuse.Store(connect.NewError(connect.CodeUnauthenticated, io.EOF))
	_, err := s.processes(s.ticket(nil)).StartProcess(testContext(t), request(&carrelv1.StartProcessRequest{Box: string(s.box), Args: []string{"exit", "0"}}))
	require.Equal(t, carrel.CodeUnavailable, carrel.CodeOf(err))
	require.ErrorContains(t, err, "the agent in the box failed")
}

func TestRESTServesProcesses(t *testing.T) {
	s := newStack(t)
	req, err := http.NewRequest(http.MethodPost, s.url+"/v1/boxes/"+string(s.box)+"/processes", strings.NewReader(`{"args":["exit","3"]}`))
	require.NoError(t, err)
	req.Header.Set("Authorization", "Bearer "+s.ticket(nil))
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	require.NoError(t, err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, resp.StatusCode, string(body))
	require.Contains(t, string(body), `"id":"p1"`)

	resp, err = http.Get(s.url + "/v1/boxes/" + string(s.box) + "/processes")
	require.NoError(t, err)
	defer resp.Body.Close()
	require.Equal(t, http.StatusUnauthorized, resp.StatusCode)
	var shape struct {
		Code    int              `json:"code"`
		Message string           `json:"message"`
		Details []map[string]any `json:"details"`
	}
	require.NoError(t, json.NewDecoder(resp.Body).Decode(&shape))
	require.Equal(t, 16, shape.Code)
	require.Equal(t, "no_credentials", shape.Details[0]["reason"])
}

func TestGRPCClientsAreServedAndPassedOn(t *testing.T) {
	s := newStack(t)
	conn, err := grpc.NewClient(strings.TrimPrefix(s.url, "http://"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(t, err)
	defer conn.Close()
	who := &carrelv1.WhoAmIResponse{}
	ctx := metadata.AppendToOutgoingContext(testContext(t), "authorization", "Bearer "+testToken)
	require.NoError(t, conn.Invoke(ctx, "/carrel.v1.UserService/WhoAmI", &carrelv1.WhoAmIRequest{}, who))
	require.Equal(t, "ada", who.GetUser().GetName())
	s.stopControl()
	err = conn.Invoke(ctx, "/carrel.v1.UserService/WhoAmI", &carrelv1.WhoAmIRequest{}, who)
	require.ErrorContains(t, err, "the control plane does not answer")
}

func TestControlIsPassedOnTo(t *testing.T) {
	s := newStack(t)
	c := s.client()
	who, err := c.Users.WhoAmI(testContext(t), request(&carrelv1.WhoAmIRequest{}))
	require.NoError(t, err)
	require.Equal(t, "ada", who.Msg.GetUser().GetName())
	require.Equal(t, "127.0.0.1", s.control.headers.Get("X-Forwarded-For"))
	require.NotEmpty(t, s.control.headers.Get("X-Request-Id"))
	version, err := c.ServerVersion(testContext(t))
	require.NoError(t, err)
	require.Equal(t, "1.2.3", version)
}

func TestStreamsArePassedOnAtOnce(t *testing.T) {
	s := newStack(t)
	resp, err := http.Get(s.url + "/v1/slow")
	require.NoError(t, err)
	defer resp.Body.Close()
	lines := bufio.NewReader(resp.Body)
	first, err := lines.ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, "one\n", first, "seen before the handler has ended")
	close(s.control.goOn)
	rest, err := io.ReadAll(lines)
	require.NoError(t, err)
	require.Equal(t, "two\n", string(rest))
	require.Equal(t, "yes", resp.Trailer.Get("X-End"))
}

func TestControlAwayIsSaidInOneShape(t *testing.T) {
	s := newStack(t)
	s.stopControl()
	resp, err := http.Get(s.url + "/v1/boxes")
	require.NoError(t, err)
	defer resp.Body.Close()
	require.Equal(t, http.StatusServiceUnavailable, resp.StatusCode)
	require.NotEmpty(t, resp.Header.Get("Retry-After"))
	var shape map[string]any
	require.NoError(t, json.NewDecoder(resp.Body).Decode(&shape))
	require.EqualValues(t, 14, shape["code"])

	_, err = s.processes(testToken).ListProcesses(testContext(t), request(&carrelv1.ListProcessesRequest{Box: "mybox"}))
	require.Equal(t, "control_unavailable", carrel.ReasonOf(err))
}

func TestPrivateLinksAreNotPassedOn(t *testing.T) {
	s := newStack(t)
	for _, path := range []string{"/carrel.link.v1.GatewayLink/ExchangeToken", "/carrel.link.v1.JoinService/Join", "/%63arrel.link.v1.NodeLink/Report", "//carrel.link.v1.NodeLink/Report", "/v1/../carrel.link.v1.NodeLink/Report"} {
		req := httptest.NewRequest(http.MethodPost, "/", strings.NewReader("{}"))
		req.URL, _ = req.URL.Parse("http://front")
		req.URL.Path = path
		if strings.Contains(path, "%") {
			parsed, err := req.URL.Parse("http://front" + path)
			require.NoError(t, err)
			req.URL = parsed
		}
		req.Header.Set("Content-Type", "application/json")
		w := httptest.NewRecorder()
		s.gateway.Handler().ServeHTTP(w, req)
		require.Contains(t, []int{http.StatusNotFound, http.StatusBadRequest}, w.Code, path)
	}
	require.Equal(t, 0, s.control.exchanges)
}

// Whatever becomes of the test of paths before it: control cannot take what users send for the gateway's own words.
func TestUsersRequestsShowNoCertificate(t *testing.T) {
	s := newStack(t)
	resp, err := http.Get(s.url + "/v1/peer")
	require.NoError(t, err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.Equal(t, "0", string(body), "certificates that control saw")
}

func TestIdentityAndRoutesAreKept(t *testing.T) {
	s := newStack(t)
	require.Eventually(t, func() bool {
		data, err := os.ReadFile(filepath.Join(s.dir, "routes.json"))
		return err == nil && strings.Contains(string(data), string(s.box))
	}, within, 5*time.Millisecond)
	for _, name := range []string{"key.pem", "identity.json", "routes.json"} {
		info, err := os.Stat(filepath.Join(s.dir, name))
		require.NoError(t, err)
		require.Equal(t, os.FileMode(0o600), info.Mode().Perm(), name)
	}
	s.stopGateway()
	s.startGateway()
	require.Equal(t, 1, s.control.joins, "a gateway joins once")

	// A cache that cannot be read is as none: control tells again.
	s.stopGateway()
	require.NoError(t, os.WriteFile(filepath.Join(s.dir, "routes.json"), []byte(`{"version":1,"surprise":true}`), 0o600))
	s.startGateway()
	_, err := s.processes(s.ticket(nil)).ListProcesses(testContext(t), request(&carrelv1.ListProcessesRequest{Box: string(s.box)}))
	require.NoError(t, err)
}

func TestFrontPage(t *testing.T) {
	s := newStack(t)
	resp, err := http.Get(s.url + "/")
	require.NoError(t, err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, resp.StatusCode, "the pages are built with `make build`: %s", body)
	require.Contains(t, string(body), `<div id="root">`)
	require.Regexp(t, `script-src [0-9.:]+/assets/ localhost:[0-9]+/assets/;`, resp.Header.Get("Content-Security-Policy"))
	require.NotRegexp(t, `(?i)<script|\son\w+=|javascript:`, regexp.MustCompile(`<script[^>]* src="/assets/[^"]+"[^>]*></script>`).ReplaceAllString(string(body), ""), "no script stands in the page")
	for _, path := range []string{"/metrics", "/readyz"} {
		resp, err := http.Get(s.url + path)
		require.NoError(t, err)
		resp.Body.Close()
		require.Equal(t, http.StatusNotFound, resp.StatusCode, "control's own must not be shown")
	}
}

func TestDialRefusesBeforeItConnects(t *testing.T) {
	s := newStack(t)
	_, err := s.gateway.Dial(context.Background(), carrel.NewBoxID(), "agent", s.ticket(nil))
	require.Equal(t, carrel.CodeDenied, carrel.CodeOf(err))
	conn, err := s.gateway.Dial(testContext(t), s.box, "agent", s.ticket(nil))
	require.NoError(t, err)
	require.NoError(t, conn.Close())
	_, err = conn.Read(make([]byte, 1))
	require.Error(t, err)
}

func TestCertificateIsRenewedAndKept(t *testing.T) {
	s := newStack(t)
	before := s.gateway.Certificate()
	require.NoError(t, s.gateway.Renew(testContext(t)))
	after := s.gateway.Certificate()
	require.NotEqual(t, before, after)
	_, err := s.client().Users.WhoAmI(testContext(t), request(&carrelv1.WhoAmIRequest{}))
	require.NoError(t, err)
	s.stopGateway()
	s.startGateway()
	require.Equal(t, after, s.gateway.Certificate())
	require.Equal(t, 1, s.control.joins)
}

func TestWrongPeersAreNotSpokenTo(t *testing.T) {
	s := newStack(t)
	// The route says another node than the one whose proxy answers there.
	r := s.route(2)
	r.NodeId = string(carrel.NewNodeID())
	s.proxy.epoch.Store(2)
	s.control.setRoute(r)
	_, err := s.gateway.Dial(testContext(t), s.box, "agent", s.ticket(func(t *auth.Ticket) { t.Epoch = 2 }))
	require.Equal(t, "node_unreachable", carrel.ReasonOf(err))
}
