package gateway

import (
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"carrel.dev/carrel/internal/auth"
	"carrel.dev/carrel/internal/carrel"
)

func TestABoxSeesNothingOfAClientsCredentials(t *testing.T) {
	const token = "carrel_secret"
	in := httptest.NewRequest(http.MethodGet, "http://front/jupyter/lab.org/api/kernels/1/channels?session_id=s&token="+token+"&%74oken="+token+"&x=a%20b", nil)
	in.Header = http.Header{
		"Authorization": {"token " + token}, "Cookie": {"carrel_session=" + token}, "Referer": {"http://front/?token=" + token}, "Origin": {"http://front"},
		"Sec-Websocket-Protocol": {"v1.kernel.websocket.jupyter.org, v1.token.websocket.jupyter.org", "v1.token.websocket.jupyter.org." + token},
		"Upgrade":                {"websocket"}, "Connection": {"Upgrade"}, "Sec-Websocket-Key": {"k"}, "X-Forwarded-For": {"1.2.3.4"}, "X-Xsrftoken": {token}, "Carrel-Ticket": {token},
	}
	require.Equal(t, token, jupyterToken(in))
	call := &jupyterCall{box: "lab.org", path: "/api/kernels/1/channels", pass: pass{Ticket: auth.Ticket{Box: "b1", Epoch: 7, User: "u1"}}}
	out := in.Clone(in.Context())
	call.rewrite(&httputil.ProxyRequest{In: in, Out: out})
	require.Equal(t, "session_id=s&x=a%20b", out.URL.RawQuery)
	require.Equal(t, "/api/kernels/1/channels", out.URL.Path)
	require.Equal(t, http.Header{
		"Sec-Websocket-Protocol": {"v1.kernel.websocket.jupyter.org"}, "Upgrade": {"websocket"}, "Connection": {"Upgrade"}, "Sec-Websocket-Key": {"k"},
		"X-Forwarded-Prefix": {"/jupyter/lab.org"}, "Carrel-User": {"u1"},
	}, out.Header)
}

func TestABoxTellsABrowserNothingOfItsOwn(t *testing.T) {
	response := &http.Response{StatusCode: http.StatusOK, Header: http.Header{
		"Set-Cookie": {"carrel_session=stolen"}, "Content-Security-Policy": {"default-src *"}, "Access-Control-Allow-Origin": {"*"}, "Clear-Site-Data": {"*"},
		"Location": {"//elsewhere.example/"}, "Content-Type": {"text/html"}, "Etag": {"x"}, "Refresh": {"0"}, "Link": {"</x>; rel=preload"},
	}}
	(&jupyterCall{}).clean(response)
	require.Equal(t, http.Header{"Content-Type": {"text/html"}, "Etag": {"x"}}, response.Header)
	response = &http.Response{StatusCode: http.StatusSwitchingProtocols, Header: http.Header{}}
	(&jupyterCall{bare: true}).clean(response)
	require.Equal(t, "v1.token.websocket.jupyter.org", response.Header.Get("Sec-WebSocket-Protocol"))
}

func TestPollingIsNoSignOfAnybody(t *testing.T) {
	now := time.Unix(1e9, 0)
	g := &Gateway{now: func() time.Time { return now }}
	g.ports = &ports{gateway: g, recent: newRecent()}
	j := &jupyterServer{gateway: g}
	asks := func(method, path string, upgrade bool) bool {
		r := httptest.NewRequest(method, "http://front"+path, nil)
		if upgrade {
			r.Header.Set("Upgrade", "websocket")
		}
		return j.counts(r, "u1", carrel.BoxID("b1"), path)
	}
	for _, path := range []string{"/api", "/api/", "/api/kernels", "/api/kernels/1", "/api/status", "/api/sessions", "/api/terminals", "/api/kernelspecs", "/api/me", "/kernelspecs/python3/logo-64x64.png", "/lab", "/"} {
		require.False(t, asks("GET", path, false), path)
	}
	require.False(t, asks("GET", "/api/events/subscribe", true))
	for _, path := range []string{"/api/kernels", "/api/kernels/1/interrupt", "/api/sessions", "/api/terminals"} {
		require.True(t, asks("POST", path, false), path)
	}
	require.True(t, asks("GET", "/api/contents/a", false))
	for range 100 { // JupyterLab looks at its folder every ten seconds
		now = now.Add(10 * time.Second)
		require.False(t, asks("GET", "/api/contents/a", false))
	}
	require.True(t, asks("GET", "/api/kernels/1/channels", true))
	now = now.Add(5 * time.Hour)
	require.True(t, asks("GET", "/api/kernels/1/channels", true), "the connection of hours ago ends, and that is noted")
	now = now.Add(time.Minute)
	require.False(t, asks("GET", "/api/kernels/1/channels", true), "a client that comes back by itself")
	now = now.Add(pollWindow)
	require.True(t, asks("GET", "/api/kernels/1/channels", true), "somebody opened a laptop")
}

func TestMessagesAreToldFromPongs(t *testing.T) {
	text := []byte{0x81, 0x83, 1, 2, 3, 4, 'a', 'b', 'c'}
	pong := []byte{0x8a, 0x80, 1, 2, 3, 4}
	medium := append([]byte{0x82, 0xfe, 0x01, 0x00, 1, 2, 3, 4}, make([]byte, 256)...)
	large := append([]byte{0x82, 0xff, 0, 0, 0, 0, 0, 1, 0, 0, 1, 2, 3, 4}, make([]byte, 65536)...)
	for size := 1; size < 40; size += 7 {
		var scan frameScan
		count := func(frame []byte) (n int) {
			for len(frame) > 0 {
				part := frame[:min(size, len(frame))]
				if scan.look(part) {
					n++
				}
				frame = frame[len(part):]
			}
			return n
		}
		require.Equal(t, 1, count(text))
		require.Zero(t, count(pong))
		require.Equal(t, 1, count(medium))
		require.Zero(t, count(pong))
		require.Equal(t, 1, count(large))
		require.Zero(t, count(pong))
		require.Equal(t, 1, count(text))
	}
}

func FuzzFrameScan(f *testing.F) {
	f.Add([]byte{0x81, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 2, 3, 4}, 3)
	f.Fuzz(func(t *testing.T, data []byte, size int) {
		size = max(1, size&0xff)
		var whole, parts frameScan
		want := whole.look(data)
		got := false
		for rest := data; len(rest) > 0; rest = rest[min(size, len(rest)):] {
			got = parts.look(rest[:min(size, len(rest))]) || got
		}
		require.Equal(t, want, got)
		require.Equal(t, whole, parts)
	})
}
