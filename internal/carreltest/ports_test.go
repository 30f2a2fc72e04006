package carreltest_test

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/coder/websocket"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/durationpb"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/carreltest"
	"carrel.dev/carrel/internal/client"
)

// seenRequest is what the program in the box was asked.
type seenRequest struct {
	Method, Path, Query, Host, Body string
	Header                          http.Header
}

// boxServer is a program that listens on a port in a box. In this ring a box's localhost is the test's.
func boxServer(t *testing.T) (port int, server *httptest.Server) {
	pages := map[string]http.HandlerFunc{}
	echo := func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		h := w.Header()
		h.Add("Set-Cookie", "app=1; Path=/; Domain=localhost")
		h.Add("Set-Cookie", "carrel_port=stolen; Path=/")
		h.Set("Clear-Site-Data", `"cookies"`)
		h.Set("Content-Type", "application/json")
		h.Set("Content-Security-Policy", "default-src *")
		_ = json.NewEncoder(w).Encode(seenRequest{r.Method, r.URL.EscapedPath(), r.URL.RawQuery, r.Host, string(body), r.Header})
	}
	pages["/hints"] = func(w http.ResponseWriter, _ *http.Request) {
		h := w.Header()
		h.Set("Set-Cookie", "carrel_port=stolen; Path=/")
		h.Set("Link", "</style.css>; rel=preload")
		w.WriteHeader(http.StatusEarlyHints)
		h.Set("Content-Type", "text/html")
		h.Set("Nel", `{"report_to":"a","max_age":1000}`)
		h.Set("Strict-Transport-Security", "max-age=0")
		_, _ = io.WriteString(w, "<script>alert(1)</script>")
	}
	pages["/hash"] = func(w http.ResponseWriter, r *http.Request) {
		hash := sha256.New()
		n, _ := io.Copy(hash, r.Body)
		_, _ = fmt.Fprintf(w, "%d %x", n, hash.Sum(nil))
	}
	pages["/big"] = func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.CopyN(w, rand.NewChaCha8([32]byte{1}), 64<<20)
	}
	pages["/events"] = func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		_, _ = io.WriteString(w, "data: first\n\n")
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	}
	pages["/ws"] = func(w http.ResponseWriter, r *http.Request) {
		conn, err := websocket.Accept(w, r, nil)
		if err != nil {
			return
		}
		defer func() { _ = conn.CloseNow() }()
		for {
			kind, data, err := conn.Read(r.Context())
			if err != nil || conn.Write(r.Context(), kind, data) != nil {
				return
			}
		}
	}
	server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { // no mux: it would tidy paths up
		if page := pages[r.URL.Path]; page != nil {
			page(w, r)
			return
		}
		echo(w, r)
	}))
	t.Cleanup(server.Close)
	u, err := url.Parse(server.URL)
	require.NoError(t, err)
	_, err = fmt.Sscan(u.Port(), &port)
	require.NoError(t, err)
	return port, server
}

// browser is an HTTP client with cookies for which every name under localhost is the front door.
type browser struct {
	t    *testing.T
	s    *carreltest.Stack
	http *http.Client
	port string // of the front door
}

func newBrowser(t *testing.T, s *carreltest.Stack) *browser {
	t.Helper()
	u, err := url.Parse(s.URL)
	require.NoError(t, err)
	jar, err := cookiejar.New(nil)
	require.NoError(t, err)
	transport := &http.Transport{DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, u.Host)
	}}
	t.Cleanup(transport.CloseIdleConnections)
	return &browser{t: t, s: s, port: u.Port(), http: &http.Client{Transport: transport, Jar: jar}}
}

func (b *browser) home() string { return "http://localhost:" + b.port }

func (b *browser) at(box *carrelv1.Box, port int) string {
	return fmt.Sprintf("http://%d-%s.localhost:%s", port, box.GetId(), b.port)
}

// ask sends a request and does not follow redirects; the headers are pairs of name and value.
func (b *browser) ask(method, target string, body io.Reader, headers ...string) *http.Response {
	b.t.Helper()
	req, err := http.NewRequestWithContext(bounded(b.t), method, target, body)
	require.NoError(b.t, err)
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	client := *b.http
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	resp, err := client.Do(req)
	require.NoError(b.t, err)
	b.t.Cleanup(func() { _ = resp.Body.Close() })
	return resp
}

var navigating = []string{"Sec-Fetch-Mode", "navigate", "Sec-Fetch-Dest", "document", "Sec-Fetch-User", "?1", "Accept", "text/html"}

// visit goes to a page as a person does, following redirects, and gives what is there.
func (b *browser) visit(target string) (*http.Response, string) {
	b.t.Helper()
	for range 10 {
		resp := b.ask(http.MethodGet, target, nil, append([]string{"Sec-Fetch-Site", "none"}, navigating...)...)
		location, err := resp.Location()
		if err != nil {
			return resp, text(b.t, resp)
		}
		_ = resp.Body.Close()
		target = location.String()
	}
	b.t.Fatal("redirected for ever")
	return nil, ""
}

func text(t *testing.T, resp *http.Response) string {
	t.Helper()
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	_ = resp.Body.Close()
	return string(body)
}

func seen(t *testing.T, body string) seenRequest {
	t.Helper()
	var got seenRequest
	require.NoError(t, json.Unmarshal([]byte(body), &got), body)
	return got
}

func reasonIn(t *testing.T, body string) string {
	t.Helper()
	var status struct{ Details []struct{ Reason string } }
	require.NoError(t, json.Unmarshal([]byte(body), &status), body)
	require.NotEmpty(t, status.Details, body)
	return status.Details[0].Reason
}

func open(t *testing.T, c *client.Client, box *carrelv1.Box, port int, path string) *carrelv1.OpenPortResponse {
	t.Helper()
	link, err := c.Ports.OpenPort(bounded(t), request(&carrelv1.OpenPortRequest{Box: box.GetId(), Port: int32(port), Path: path}))
	require.NoError(t, err)
	return link.Msg
}

func TestPortsOfABox(t *testing.T) {
	if testing.Short() {
		return // nodes need root
	}
	t.Parallel()
	s := carreltest.Start(t, carreltest.Options{})
	box, other := create(t, s.Admin, "dev"), create(t, s.Admin, "other")
	port, _ := boxServer(t)

	t.Run("what nobody is signed in for", func(t *testing.T) {
		b := newBrowser(t, s)
		resp := b.ask(http.MethodGet, b.at(box, port)+"/a?b=c", nil, navigating...)
		require.Equal(t, http.StatusFound, resp.StatusCode)
		require.Equal(t, b.home()+"/signin/port?url="+url.QueryEscape(b.at(box, port)+"/a?b=c"), resp.Header.Get("Location"))
		for name, ask := range map[string][]string{
			"fetch":     {http.MethodGet, "Sec-Fetch-Mode", "cors", "Origin", "http://x.example", "Accept", "text/html"},
			"preflight": {http.MethodOptions, "Sec-Fetch-Mode", "cors", "Origin", "http://x.example", "Access-Control-Request-Method", "PUT"},
			"form":      {http.MethodPost, "Sec-Fetch-Mode", "navigate", "Origin", "http://x.example"},
			"websocket": {http.MethodGet, "Connection", "Upgrade", "Upgrade", "websocket", "Origin", "http://x.example", "Sec-WebSocket-Key", "x"},
		} {
			resp := b.ask(ask[0], b.at(box, port)+"/", nil, ask[1:]...)
			require.Equal(t, http.StatusUnauthorized, resp.StatusCode, name)
			require.Equal(t, "application/json", resp.Header.Get("Content-Type"), name)
			require.Equal(t, "http://x.example", resp.Header.Get("Access-Control-Allow-Origin"), name)
			require.Equal(t, "no_credentials", reasonIn(t, text(t, resp)), name)
		}
		resp, page := b.visit(b.at(box, port) + "/")
		require.Equal(t, http.StatusOK, resp.StatusCode)
		require.Contains(t, page, "Sign in to Carrel")
	})

	t.Run("a browser is signed in by a link, once", func(t *testing.T) {
		b := newBrowser(t, s)
		link := open(t, s.Admin, box, port, "/lab?x=1")
		require.Equal(t, b.at(box, port)+"/lab?x=1", strings.Replace(link.GetPortUrl(), "127.0.0.1", "localhost", 1))
		resp, body := b.visit(link.GetUrl())
		require.Equal(t, http.StatusOK, resp.StatusCode, body)
		got := seen(t, body)
		require.Equal(t, "/lab", got.Path)
		require.Equal(t, "x=1", got.Query)
		require.Equal(t, strings.TrimPrefix(b.at(box, port), "http://"), got.Host)
		require.Equal(t, got.Host, got.Header.Get("X-Forwarded-Host"))
		require.Equal(t, "http", got.Header.Get("X-Forwarded-Proto"))
		require.NotEmpty(t, got.Header.Get("X-Forwarded-For"))
		require.Empty(t, got.Header.Get("Cookie"), "the platform's cookies do not reach the box")
		require.Empty(t, resp.Header.Get("Clear-Site-Data"))

		_, body = b.visit(b.at(box, port) + "/again")
		require.Equal(t, "app=1", seen(t, body).Header.Get("Cookie"), "its own cookie comes back, and the one with the platform's name was not set")
		at, err := url.Parse(b.at(other, port))
		require.NoError(t, err)
		require.Empty(t, b.http.Jar.Cookies(at), "a cookie is for its own host alone")

		thief := newBrowser(t, s)
		_, page := thief.visit(link.GetUrl())
		require.Contains(t, page, "used already")
		_, page = b.visit(b.home() + "/signin")
		require.Contains(t, page, "Signed in as")
		_, body = b.visit(b.at(other, port) + "/") // the session leads on without a word
		require.Equal(t, "/", seen(t, body).Path)
	})

	t.Run("a browser is signed in with a token, and out again", func(t *testing.T) {
		b := newBrowser(t, s)
		form := func(token string, headers ...string) *http.Response {
			data := url.Values{"token": {token}, "next": {"/signin/port?url=" + url.QueryEscape(b.at(box, port)+"/x")}}
			return b.ask(http.MethodPost, b.home()+"/signin", strings.NewReader(data.Encode()), append(headers, "Content-Type", "application/x-www-form-urlencoded")...)
		}
		require.Equal(t, http.StatusUnauthorized, form("nonsense").StatusCode)
		require.Equal(t, http.StatusUnauthorized, form(s.AdminToken[:len(s.AdminToken)-1]+"x").StatusCode)
		require.Equal(t, http.StatusForbidden, form(s.AdminToken, "Origin", b.at(box, port)).StatusCode, "a page of a box may not sign anybody in")
		resp := form(s.AdminToken, "Origin", b.home())
		require.Equal(t, http.StatusSeeOther, resp.StatusCode)
		for _, c := range resp.Cookies() {
			require.True(t, c.HttpOnly)
			require.NotContains(t, c.Value, s.AdminToken)
		}
		_, body := b.visit(b.home() + resp.Header.Get("Location"))
		require.Equal(t, "/x", seen(t, body).Path)

		stream := b.ask(http.MethodGet, b.at(box, port)+"/events", nil)
		require.Equal(t, http.StatusOK, stream.StatusCode)
		resp = b.ask(http.MethodPost, b.home()+"/signout", nil, "Origin", b.home())
		require.Equal(t, http.StatusSeeOther, resp.StatusCode)
		_, err := io.Copy(io.Discard, stream.Body)
		require.Error(t, err, "what is open ends with the session")
		require.NotErrorIs(t, err, context.DeadlineExceeded)
		s.Eventually("the port's cookie ends with the session", func() error {
			resp := b.ask(http.MethodGet, b.at(box, port)+"/", nil)
			text(t, resp)
			if resp.StatusCode != http.StatusUnauthorized {
				return fmt.Errorf("status %d", resp.StatusCode)
			}
			return nil
		})
	})

	t.Run("a sign-in ends with the token that was shown", func(t *testing.T) {
		made, err := s.Admin.Tokens.CreateToken(bounded(t), request(&carrelv1.CreateTokenRequest{Description: "lost"}))
		require.NoError(t, err)
		b := newBrowser(t, s)
		data := url.Values{"token": {made.Msg.GetSecret()}, "next": {"/signin/port?url=" + url.QueryEscape(b.at(box, port)+"/x")}}
		resp := b.ask(http.MethodPost, b.home()+"/signin", strings.NewReader(data.Encode()), "Origin", b.home(), "Content-Type", "application/x-www-form-urlencoded")
		_, body := b.visit(b.home() + resp.Header.Get("Location"))
		require.Equal(t, "/x", seen(t, body).Path)
		stream := b.ask(http.MethodGet, b.at(box, port)+"/events", nil)
		require.Equal(t, http.StatusOK, stream.StatusCode)
		_, err = s.Admin.Tokens.RevokeToken(bounded(t), request(&carrelv1.RevokeTokenRequest{Id: made.Msg.GetToken().GetId()}))
		require.NoError(t, err)
		_, err = io.Copy(io.Discard, stream.Body)
		require.Error(t, err)
		require.NotErrorIs(t, err, context.DeadlineExceeded)
		require.Equal(t, http.StatusUnauthorized, b.ask(http.MethodGet, b.at(box, port)+"/", nil).StatusCode)
		_, page := b.visit(b.home() + "/signin")
		require.NotContains(t, page, "Signed in as")
	})

	t.Run("pages of others do not use the sign-in", func(t *testing.T) {
		b := newBrowser(t, s)
		b.visit(open(t, s.Admin, box, port, "").GetUrl())
		status := func(headers ...string) int {
			return b.ask(http.MethodPost, b.at(box, port)+"/", nil, headers...).StatusCode
		}
		require.Equal(t, http.StatusOK, status("Origin", b.at(box, port)))
		require.Equal(t, http.StatusOK, status("Origin", b.at(box, port+1)), "another port of the same box")
		require.Equal(t, http.StatusForbidden, status("Origin", b.at(other, port)))
		require.Equal(t, http.StatusForbidden, status("Origin", "http://evil.example"))
		require.Equal(t, http.StatusForbidden, status("Origin", "null"))
		get := func(from, mode, dest string) int {
			headers := []string{"Sec-Fetch-Site", "same-site", "Sec-Fetch-Mode", mode, "Sec-Fetch-Dest", dest, "Referer", from + "/"}
			return b.ask(http.MethodGet, b.at(box, port)+"/", nil, headers...).StatusCode
		}
		require.Equal(t, http.StatusForbidden, get(b.at(other, port), "no-cors", "image"))
		require.Equal(t, http.StatusOK, get(b.at(other, port), "navigate", "document"), "a link is followed")
		require.Equal(t, http.StatusForbidden, get(b.at(other, port), "navigate", "iframe"), "a page of another box shows none of this one within itself")
		require.Equal(t, http.StatusOK, get(b.at(box, port+1), "navigate", "iframe"))
	})

	t.Run("programs show a token", func(t *testing.T) {
		b := newBrowser(t, s)
		bearer := "Bearer " + s.AdminToken
		resp := b.ask(http.MethodPut, b.at(box, port)+"/a//b%2Fc?q=%20", strings.NewReader("body"), "Authorization", bearer, "Carrel-Something", "x", "X-Forwarded-For", "1.2.3.4")
		got := seen(t, text(t, resp))
		require.Equal(t, "PUT /a//b%2Fc q=%20 body", got.Method+" "+got.Path+" "+got.Query+" "+got.Body)
		require.Empty(t, got.Header.Get("Authorization"), "the token does not reach the box")
		require.Empty(t, got.Header.Get("Carrel-Something"))
		require.NotContains(t, got.Header.Get("X-Forwarded-For"), "1.2.3.4", "what a client claims about itself is not passed on")
		got = seen(t, text(t, b.ask(http.MethodGet, b.at(box, port)+"/", nil, "Carrel-Authorization", bearer, "Authorization", "Basic YQ==")))
		require.Equal(t, "Basic YQ==", got.Header.Get("Authorization"), "what is the box's is left to it")
		require.Empty(t, got.Header.Get("Carrel-Authorization"))

		resp = b.ask(http.MethodGet, fmt.Sprintf("%s/p/%s/%d/x/y?z=1", b.home(), box.GetId(), port), nil, "Authorization", bearer, "Cookie", "a=b")
		require.Equal(t, "sandbox", resp.Header.Get("Content-Security-Policy"), "it cannot run as a page of the platform's origin")
		require.Empty(t, resp.Header.Values("Set-Cookie"))
		got = seen(t, text(t, resp))
		require.Equal(t, "/x/y?z=1", got.Path+"?"+got.Query)
		require.Empty(t, got.Header.Get("Cookie"))
		require.Equal(t, fmt.Sprintf("/p/%s/%d", box.GetId(), port), got.Header.Get("X-Forwarded-Prefix"))
		resp = b.ask(http.MethodGet, fmt.Sprintf("%s/p/%s/%d/hints", b.home(), box.GetId(), port), nil, "Authorization", bearer)
		require.Equal(t, http.StatusOK, resp.StatusCode)
		require.Equal(t, "sandbox", resp.Header.Get("Content-Security-Policy"), "also after an interim answer")
		require.Equal(t, "nosniff", resp.Header.Get("X-Content-Type-Options"))
		for _, name := range []string{"Set-Cookie", "Nel", "Strict-Transport-Security"} {
			require.Empty(t, resp.Header.Values(name), "%s would hold for the platform's origin", name)
		}
		resp = b.ask(http.MethodGet, fmt.Sprintf("%s/p/%s/%d/", b.home(), box.GetId(), port), nil, navigating...)
		require.Equal(t, http.StatusUnauthorized, resp.StatusCode, "a browser is not led to sign in there")
	})

	t.Run("a signed URL", func(t *testing.T) {
		made, err := s.Admin.Boxes.CreatePortURL(bounded(t), request(&carrelv1.CreatePortURLRequest{Id: "dev", Port: int32(port), Lifetime: durationpb.New(3600e9)}))
		require.NoError(t, err)
		u, err := url.Parse(made.Msg.GetUrl())
		require.NoError(t, err)
		token := "?" + u.RawQuery
		b := newBrowser(t, s)
		got := seen(t, text(t, b.ask(http.MethodGet, b.at(box, port)+"/p"+token+"&a=1", nil)))
		require.Equal(t, "/p a=1", got.Path+" "+got.Query, "the token does not reach the box")
		resp, body := b.visit(b.at(box, port) + "/q" + token)
		require.Equal(t, "/q", resp.Request.URL.RequestURI(), "it leaves the address bar")
		require.Empty(t, seen(t, body).Query)
		resp = b.ask(http.MethodGet, b.at(box, port)+"//evil.example/"+token, nil, navigating...)
		require.Equal(t, "/", resp.Header.Get("Location"), "nobody is led elsewhere")
		_, body = b.visit(b.at(box, port) + "/r")
		require.Equal(t, "/r", seen(t, body).Path, "a cookie has taken its place")
		require.Equal(t, http.StatusForbidden, b.ask(http.MethodGet, b.at(box, port+1)+"/"+token, nil).StatusCode, "another port")
		require.Equal(t, http.StatusForbidden, b.ask(http.MethodGet, b.at(other, port)+"/"+token, nil).StatusCode, "another box")
		require.Equal(t, http.StatusUnauthorized, b.ask(http.MethodGet, b.at(box, port)+"/"+token+"x", nil).StatusCode)
	})

	t.Run("what is in the box is streamed", func(t *testing.T) {
		b := newBrowser(t, s)
		bearer := "Bearer " + s.AdminToken
		const size = 64 << 20
		want := sha256.New()
		_, err := io.CopyN(want, rand.NewChaCha8([32]byte{1}), size)
		require.NoError(t, err)
		resp := b.ask(http.MethodPost, b.at(box, port)+"/hash", io.LimitReader(rand.NewChaCha8([32]byte{1}), size), "Authorization", bearer)
		require.Equal(t, fmt.Sprintf("%d %x", size, want.Sum(nil)), text(t, resp))
		resp = b.ask(http.MethodGet, b.at(box, port)+"/big", nil, "Authorization", bearer)
		down := sha256.New()
		_, err = io.Copy(down, resp.Body)
		require.NoError(t, err)
		require.Equal(t, want.Sum(nil), down.Sum(nil))

		resp = b.ask(http.MethodGet, b.at(box, port)+"/events", nil, "Authorization", bearer)
		first := make([]byte, len("data: first\n\n"))
		_, err = io.ReadFull(resp.Body, first)
		require.NoError(t, err, "an event comes when it is made")
		require.Equal(t, "data: first\n\n", string(first))

		conn, _, err := websocket.Dial(bounded(t), "ws"+strings.TrimPrefix(b.at(box, port), "http")+"/ws", &websocket.DialOptions{HTTPClient: b.http, HTTPHeader: http.Header{"Authorization": {bearer}}})
		require.NoError(t, err)
		defer func() { _ = conn.CloseNow() }()
		require.NoError(t, conn.Write(bounded(t), websocket.MessageText, []byte("hello")))
		_, data, err := conn.Read(bounded(t))
		require.NoError(t, err)
		require.Equal(t, "hello", string(data))
	})

	t.Run("who may reach a port", func(t *testing.T) {
		b := newBrowser(t, s)
		viewer := "Bearer " + s.NewUser("watcher", carreltest.Org, "viewer")
		_, err := s.Admin.Orgs.CreateOrg(bounded(t), request(&carrelv1.CreateOrgRequest{Name: "elsewhere"}))
		require.NoError(t, err)
		foreign := "Bearer " + s.NewUser("stranger", "elsewhere", "owner")
		status := func(bearer string) int {
			var headers []string
			if bearer != "" {
				headers = []string{"Authorization", bearer}
			}
			resp := b.ask(http.MethodGet, b.at(box, port)+"/", nil, headers...)
			text(t, resp)
			return resp.StatusCode
		}
		becomes := func(visibility string, viewerSees, nobodySees int) {
			t.Helper()
			_, err := s.Admin.Boxes.SetBoxPort(bounded(t), request(&carrelv1.SetBoxPortRequest{Id: "dev", Port: int32(port), Visibility: visibility}))
			require.NoError(t, err)
			s.Eventually("the port is "+visibility, func() error {
				if v, n := status(viewer), status(""); v != viewerSees || n != nobodySees {
					return fmt.Errorf("a viewer gets %d, nobody gets %d", v, n)
				}
				return nil
			})
		}
		require.Equal(t, http.StatusForbidden, status(viewer))
		require.Equal(t, http.StatusNotFound, status(foreign))
		becomes("org", http.StatusOK, http.StatusUnauthorized)
		require.Equal(t, http.StatusNotFound, status(foreign))
		becomes("public", http.StatusOK, http.StatusOK)
		require.Equal(t, http.StatusUnauthorized, b.ask(http.MethodGet, b.at(box, port+1)+"/", nil).StatusCode, "its other ports stay private")
		becomes("private", http.StatusForbidden, http.StatusUnauthorized)

		unknown := &carrelv1.Box{Id: string(carrel.NewBoxID())}
		answer := func(of *carrelv1.Box) string {
			resp := b.ask(http.MethodGet, b.at(of, port)+"/", nil, "Authorization", foreign)
			body := strings.ReplaceAll(text(t, resp), of.GetId(), "BOX")
			return fmt.Sprint(resp.StatusCode, body)
		}
		require.Equal(t, answer(unknown), answer(box), "a foreign box looks as one that is not there")
	})

	t.Run("a port nobody listens on", func(t *testing.T) {
		b := newBrowser(t, s)
		free, closed := boxServer(t)
		closed.Close()
		resp := b.ask(http.MethodGet, b.at(box, free)+"/", nil, "Authorization", "Bearer "+s.AdminToken)
		require.Equal(t, http.StatusServiceUnavailable, resp.StatusCode)
		require.Equal(t, "target_refused", reasonIn(t, text(t, resp)))
		resp = b.ask(http.MethodGet, b.at(box, 1)+"/", nil, "Authorization", "Bearer "+s.AdminToken)
		require.Equal(t, http.StatusServiceUnavailable, resp.StatusCode, "the agent's own port")
	})

	t.Run("an open stream ends with the right to it", func(t *testing.T) {
		b := newBrowser(t, s)
		token := s.NewUser("leaver", carreltest.Org, "member")
		resp := b.ask(http.MethodGet, b.at(box, port)+"/events", nil, "Authorization", "Bearer "+token)
		require.Equal(t, http.StatusOK, resp.StatusCode)
		_, err := s.Admin.Orgs.RemoveMember(bounded(t), request(&carrelv1.RemoveMemberRequest{Org: carreltest.Org, User: "leaver"}))
		require.NoError(t, err)
		_, err = io.Copy(io.Discard, resp.Body)
		require.Error(t, err)
		require.False(t, errors.Is(err, context.DeadlineExceeded), "it was cut, and not waited out: %v", err)
	})

	t.Run("a page wakes a box and polling does not", func(t *testing.T) {
		b := newBrowser(t, s)
		b.visit(open(t, s.Admin, other, port, "").GetUrl())
		b.ask(http.MethodGet, b.at(other, port)+"/poll", nil, "Sec-Fetch-Mode", "cors", "Sec-Fetch-Site", "same-origin")
		verb(t, s.Admin, "pause", "other")
		s.Eventually("the gateway has heard that the box sleeps", func() error {
			resp := b.ask(http.MethodGet, b.at(other, port)+"/poll", nil, "Sec-Fetch-Mode", "cors", "Sec-Fetch-Site", "same-origin")
			if text(t, resp); resp.StatusCode != http.StatusBadRequest {
				return errors.New(resp.Status)
			}
			return nil
		})
		for range 3 {
			resp := b.ask(http.MethodGet, b.at(other, port)+"/poll", nil, "Sec-Fetch-Mode", "cors", "Sec-Fetch-Site", "same-origin")
			require.Equal(t, http.StatusBadRequest, resp.StatusCode)
			require.Equal(t, client.ReasonBoxNotRunning, reasonIn(t, text(t, resp)))
		}
		foreign := b.ask(http.MethodPost, b.at(other, port)+"/", nil, "Origin", b.at(box, port))
		require.Equal(t, http.StatusForbidden, foreign.StatusCode, "a page of another box wakes nothing")
		got, err := s.Admin.Boxes.GetBox(bounded(t), request(&carrelv1.GetBoxRequest{Id: "other"}))
		require.NoError(t, err)
		require.Equal(t, carrelv1.State_STATE_PAUSED, got.Msg.GetState())
		// A gateway that was started since knows nothing of a box that does not run.
		require.NoError(t, s.Gateways[0].Kill())
		require.NoError(t, s.Gateways[0].Start())
		var body string
		s.Eventually("the page wakes the box", func() error {
			var resp *http.Response
			if resp, body = b.visit(b.at(other, port) + "/page"); resp.StatusCode != http.StatusOK {
				return fmt.Errorf("%s: %s", resp.Status, body)
			}
			return nil
		})
		require.Equal(t, "/page", seen(t, body).Path)
	})
	t.Run("ports go on while the control plane is away", func(t *testing.T) {
		b := newBrowser(t, s)
		b.visit(open(t, s.Admin, box, port, "").GetUrl())
		stream := b.ask(http.MethodGet, b.at(box, port)+"/events", nil)
		first := make([]byte, len("data: first\n\n"))
		_, err := io.ReadFull(stream.Body, first)
		require.NoError(t, err)
		require.NoError(t, s.Controls[0].Kill())
		require.NoError(t, s.Reconcilers[0].Kill())
		_, body := b.visit(b.at(box, port) + "/away")
		require.Equal(t, "/away", seen(t, body).Path)
		more := make(chan error, 1)
		go func() { _, err := stream.Body.Read(make([]byte, 1)); more <- err }()
		require.NoError(t, s.Gateways[0].Kill())
		require.Error(t, <-more, "until then the stream was open")
		require.NoError(t, s.Gateways[0].Start())
		s.Eventually("a gateway that was started anew lets in who is signed in", func() error {
			resp, err := b.http.Get(b.at(box, port) + "/anew")
			if err != nil {
				return err
			}
			defer func() { _ = resp.Body.Close() }()
			if resp.StatusCode != http.StatusOK {
				return fmt.Errorf("status %d", resp.StatusCode)
			}
			return nil
		})
		require.NoError(t, s.Controls[0].Start())
		require.NoError(t, s.Reconcilers[0].Start())
	})
	deleteAll(t, s)
}
