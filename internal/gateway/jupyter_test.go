package gateway_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/stretchr/testify/require"

	"carrel.dev/carrel/internal/gateway"
)

// jupyterGateway is one more gateway of a real stack whose whole log is kept.
func jupyterGateway(t *testing.T, s *stack) (url string, log *lockedLog) {
	t.Helper()
	log = &lockedLog{}
	logger := slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	g, err := gateway.New(gateway.Config{
		ControlURL: "https://" + s.controlAt, DataDir: t.TempDir(), CAFile: s.caFile, JoinTokenFile: s.joinFile, Name: "jupyter", Version: "1.2.3", Logger: logger,
	})
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- g.Run(ctx) }()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	server := gateway.NewServer(g.Handler(), logger)
	served := make(chan struct{})
	go func() { defer close(served); _ = server.Serve(listener) }()
	t.Cleanup(func() {
		server.Close()
		<-served
		cancel()
		require.NoError(t, <-ended)
	})
	require.Eventually(t, func() bool { return g.Ready(ctx) == nil }, within, 10*time.Millisecond)
	return "http://" + listener.Addr().String(), log
}

type lockedLog struct {
	mu  sync.Mutex // guards buf
	buf bytes.Buffer
}

func (l *lockedLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *lockedLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// jupyterAsk makes a request with headers and gives the answer with its body.
func jupyterAsk(t *testing.T, method, url string, header http.Header) (*http.Response, string) {
	t.Helper()
	request, err := http.NewRequestWithContext(testContext(t), method, url, nil)
	require.NoError(t, err)
	for name, values := range header {
		request.Header[http.CanonicalHeaderKey(name)] = values
	}
	transport := &http.Transport{DisableKeepAlives: true}
	response, err := transport.RoundTrip(request)
	require.NoError(t, err)
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	return response, string(body)
}

const jupyterToken = "v1.token.websocket.jupyter.org"

func TestJupyterTakesTokensAsItsClientsShowThem(t *testing.T) {
	s, _, _ := newRealStack(t)
	front, log := jupyterGateway(t, s)
	const wrong = "carrel_wrong-and-secret"
	for _, box := range []string{"mybox", string(s.box)} {
		base := front + "/jupyter/" + box + "/"
		for name, c := range map[string]struct {
			query  string
			header http.Header
		}{
			"token":  {"", http.Header{"Authorization": {"token %"}}},
			"Bearer": {"", http.Header{"Authorization": {"Bearer %"}}},
			"query":  {"?token=%&1=2", nil},
		} {
			for _, path := range []string{"api", "api/status", "api/contents", "api/kernels", ""} {
				for _, token := range []string{testToken, wrong} {
					header := http.Header{"Cookie": {"carrel_session=x; _xsrf=y"}, "X-Forwarded-Prefix": {"/evil"}, "Carrel-User": {"somebody"}}
					for key, value := range c.header {
						header[key] = []string{strings.ReplaceAll(value[0], "%", token)}
					}
					response, body := jupyterAsk(t, "GET", base+path+strings.ReplaceAll(c.query, "%", token), header)
					want := http.StatusOK
					if token == wrong {
						want = http.StatusForbidden
						require.Contains(t, body, `"message"`)
					}
					require.Equal(t, want, response.StatusCode, "%s %s %s: %s", name, path, token, body)
					require.NotContains(t, body, token)
					require.Empty(t, response.Header["Set-Cookie"])
					require.Equal(t, "sandbox", response.Header.Get("Content-Security-Policy"))
					require.Equal(t, "nosniff", response.Header.Get("X-Content-Type-Options"))
					require.Equal(t, "no-referrer", response.Header.Get("Referrer-Policy"))
				}
			}
		}
	}
	// WebSockets, also with the token as a subprotocol.
	for _, token := range []string{testToken, wrong} {
		for _, c := range []struct{ query, protocols, answer string }{
			{"?token=" + token, "", ""},
			{"", jupyterToken + "," + jupyterToken + "." + token, jupyterToken},
			{"", jupyterToken + "." + token, ""},
		} {
			address := "ws" + strings.TrimPrefix(front, "http") + "/jupyter/mybox/api/events/subscribe" + c.query
			options := &websocket.DialOptions{}
			if c.protocols != "" {
				options.Subprotocols = strings.Split(c.protocols, ",")
			}
			conn, response, err := websocket.Dial(testContext(t), address, options)
			if token == wrong {
				require.Error(t, err)
				require.Equal(t, http.StatusForbidden, response.StatusCode)
				continue
			}
			require.NoError(t, err)
			require.Equal(t, c.answer, conn.Subprotocol())
			require.NoError(t, conn.CloseNow())
		}
	}
	require.Contains(t, log.String(), "msg=", "there is a log to look at")
	require.NotContains(t, log.String(), testToken)
	require.NotContains(t, log.String(), wrong)
}

func TestJupyterIsClosedToStrangers(t *testing.T) {
	s, _, _ := newRealStack(t)
	front, _ := jupyterGateway(t, s)
	for path, want := range map[string]int{
		"/jupyter/mybox/api": 403, "/jupyter/mybox": 403, "/jupyter/mybox/": 403, "/jupyter/": 404, "/jupyter/%2e%2e/api": 400, "/jupyter/a b/api": 404,
		"/jupyter/mybox/../x": 400, "/jupyter/mybox/api/../../other": 400,
	} {
		response, body := jupyterAsk(t, "GET", front+strings.ReplaceAll(path, " ", "%20"), nil)
		require.Equal(t, want, response.StatusCode, "%s: %s", path, body)
		require.Empty(t, response.Header.Get("Access-Control-Allow-Origin"))
	}
	token := http.Header{"Authorization": {"token " + testToken}}
	// A body that is too large goes no further.
	request, err := http.NewRequestWithContext(testContext(t), http.MethodPut, front+"/jupyter/mybox/api/contents/x", strings.NewReader("x"))
	require.NoError(t, err)
	request.Header, request.ContentLength = token.Clone(), -1
	request.Body = io.NopCloser(io.LimitReader(zeros{}, 200<<20))
	answer, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(request)
	if err == nil {
		require.GreaterOrEqual(t, answer.StatusCode, 400)
		answer.Body.Close()
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = ' '
	}
	return len(p), nil
}

func TestJupyterAllowsOtherOriginsByTokenAlone(t *testing.T) {
	s, _, _ := newRealStack(t)
	front, _ := jupyterGateway(t, s)
	origin := http.Header{"Origin": {"https://elsewhere.example"}}
	response, _ := jupyterAsk(t, "OPTIONS", front+"/jupyter/mybox/api/kernels", origin)
	require.Equal(t, http.StatusNoContent, response.StatusCode)
	require.Equal(t, "*", response.Header.Get("Access-Control-Allow-Origin"))
	require.Contains(t, response.Header.Get("Access-Control-Allow-Headers"), "Authorization")
	require.Empty(t, response.Header.Get("Access-Control-Allow-Credentials"), "never with what a browser adds by itself")

	shown := origin.Clone()
	shown.Set("Authorization", "token "+testToken)
	response, _ = jupyterAsk(t, "GET", front+"/jupyter/mybox/api", shown)
	require.Equal(t, 200, response.StatusCode)
	require.Equal(t, "*", response.Header.Get("Access-Control-Allow-Origin"))
	response, _ = jupyterAsk(t, "GET", front+"/jupyter/mybox/api", origin)
	require.Equal(t, 403, response.StatusCode)
	require.Empty(t, response.Header.Get("Access-Control-Allow-Origin"))
}

func TestJupyterServesFilesAsNoPages(t *testing.T) {
	s, _, _ := newRealStack(t)
	front, _ := jupyterGateway(t, s)
	base := front + "/jupyter/mybox/"
	body, err := json.Marshal(map[string]any{"type": "file", "format": "text", "content": "<script>alert(1)</script>"})
	require.NoError(t, err)
	request, err := http.NewRequestWithContext(testContext(t), http.MethodPut, base+"api/contents/page.html", bytes.NewReader(body))
	require.NoError(t, err)
	request.Header.Set("Authorization", "token "+testToken)
	response, err := http.DefaultClient.Do(request)
	require.NoError(t, err)
	response.Body.Close()
	require.Equal(t, 201, response.StatusCode)
	require.Equal(t, "/jupyter/mybox/api/contents/page.html", response.Header.Get("Location"))
	page, text := jupyterAsk(t, "GET", base+"files/page.html?token="+testToken, nil)
	require.Equal(t, 200, page.StatusCode)
	require.Contains(t, text, "<script>")
	require.Equal(t, []string{"sandbox"}, page.Header["Content-Security-Policy"], "ours, and not the box's")
	require.Equal(t, "nosniff", page.Header.Get("X-Content-Type-Options"))
}
