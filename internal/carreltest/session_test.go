package carreltest_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/carreltest"
)

// form sends a form of the sign-in pages.
func (b *browser) form(path string, data url.Values, headers ...string) *http.Response {
	b.t.Helper()
	return b.ask(http.MethodPost, b.home()+path, strings.NewReader(data.Encode()), append(headers, "Content-Type", "application/x-www-form-urlencoded")...)
}

// call is what a script of our own pages asks for.
func (b *browser) call(method, path, body string, headers ...string) (int, string) {
	b.t.Helper()
	if len(headers) == 0 {
		headers = []string{"Origin", b.home(), "Sec-Fetch-Site", "same-origin", "X-Carrel-UI", "1"}
	}
	resp := b.ask(method, b.home()+path, strings.NewReader(body), append(headers, "Content-Type", "application/json")...)
	return resp.StatusCode, text(b.t, resp)
}

func TestABrowserWorksWithItsSignInAlone(t *testing.T) {
	if testing.Short() {
		return // nodes need root
	}
	t.Parallel()
	s := carreltest.Start(t, carreltest.Options{})
	signedIn := func(token string) *browser {
		b := newBrowser(t, s)
		resp := b.form("/signin", url.Values{"token": {token}}, "Origin", b.home(), "Sec-Fetch-Site", "same-origin")
		require.Equal(t, http.StatusSeeOther, resp.StatusCode)
		require.Equal(t, "/", resp.Header.Get("Location"))
		for _, c := range resp.Cookies() {
			require.Equal(t, http.SameSiteStrictMode, c.SameSite)
			require.True(t, c.HttpOnly)
		}
		return b
	}

	t.Run("at control and in the data plane", func(t *testing.T) {
		b := signedIn(s.AdminToken)
		status, body := b.call(http.MethodGet, "/v1/whoami", "")
		require.Equal(t, http.StatusOK, status, body)
		require.Contains(t, body, `"admin"`)
		status, body = b.call(http.MethodPost, "/carrel.v1.BoxService/CreateBox", `{"name":"by-cookie","template":"base"}`)
		require.Equal(t, http.StatusOK, status, body)
		box := create(t, s.Admin, "lives")
		status, body = b.call(http.MethodGet, "/v1/boxes/"+box.GetId()+"/processes", "")
		require.Equal(t, http.StatusOK, status, body)
		status, _ = b.call(http.MethodPost, "/v1/boxes/by-cookie:stop", "{}", "Origin", "https://evil.example", "Sec-Fetch-Site", "cross-site")
		require.Equal(t, http.StatusForbidden, status)
		status, body = b.call(http.MethodGet, "/v1/whoami", "", "Sec-Fetch-Site", "same-site")
		require.Equal(t, http.StatusForbidden, status)
		require.Equal(t, "other_origin", reasonIn(t, body))
	})

	t.Run("until it is signed out", func(t *testing.T) {
		b := signedIn(s.AdminToken)
		stream := b.ask(http.MethodGet, b.home()+"/v1/boxes:watch", nil, "Sec-Fetch-Site", "same-origin", "Accept", "text/event-stream")
		require.Equal(t, http.StatusOK, stream.StatusCode)
		keep, err := url.Parse(b.home())
		require.NoError(t, err)
		old := b.http.Jar.Cookies(keep)
		require.Equal(t, http.StatusForbidden, b.form("/signout", nil, "Origin", "https://evil.example").StatusCode, "nobody signs others out")
		require.Equal(t, http.StatusSeeOther, b.form("/signout", nil, "Origin", b.home()).StatusCode)
		_, err = io.Copy(io.Discard, stream.Body)
		require.Error(t, err, "what is open ends with the sign-in")
		b.http.Jar.SetCookies(keep, old)
		s.Eventually("the cookie is good for nothing, even when it was kept", func() error {
			if status, body := b.call(http.MethodGet, "/v1/whoami", ""); status != http.StatusUnauthorized {
				return io.EOF
			} else if strings.Contains(body, "admin") {
				return io.ErrUnexpectedEOF
			}
			return nil
		})
	})

	t.Run("until the token that it came from is revoked", func(t *testing.T) {
		made, err := s.Admin.Tokens.CreateToken(bounded(t), request(&carrelv1.CreateTokenRequest{Description: "lost"}))
		require.NoError(t, err)
		b := signedIn(made.Msg.GetSecret())
		stream := b.ask(http.MethodGet, b.home()+"/v1/boxes:watch", nil, "Sec-Fetch-Site", "same-origin", "Accept", "text/event-stream")
		require.Equal(t, http.StatusOK, stream.StatusCode)

		// A sign-in that comes from that one, as by opening a port, lives no longer.
		status, body := b.call(http.MethodPost, "/v1/web:open", "{}")
		require.Equal(t, http.StatusOK, status, body)
		var opened struct{ URL string }
		require.NoError(t, json.Unmarshal([]byte(body), &opened))
		link, err := url.Parse(opened.URL)
		require.NoError(t, err)
		next := newBrowser(t, s)
		resp := next.ask(http.MethodGet, next.home()+link.RequestURI(), nil, append([]string{"Sec-Fetch-Site", "none"}, navigating...)...)
		require.Equal(t, http.StatusSeeOther, resp.StatusCode)
		status, body = next.call(http.MethodGet, "/v1/whoami", "")
		require.Equal(t, http.StatusOK, status, body)

		_, err = s.Admin.Tokens.RevokeToken(bounded(t), request(&carrelv1.RevokeTokenRequest{Id: made.Msg.GetToken().GetId()}))
		require.NoError(t, err)
		_, err = io.Copy(io.Discard, stream.Body)
		require.Error(t, err)
		status, _ = b.call(http.MethodGet, "/v1/whoami", "")
		require.Equal(t, http.StatusUnauthorized, status)
		status, _ = next.call(http.MethodGet, "/v1/whoami", "")
		require.Equal(t, http.StatusUnauthorized, status, "a sign-in that came from the one that ended")
	})

	t.Run("and nobody is signed in as somebody else without knowing", func(t *testing.T) {
		link := func(token string) string {
			made, err := s.Client(token, "").Ports.OpenWeb(bounded(t), request(&carrelv1.OpenWebRequest{Path: "/new"}))
			require.NoError(t, err)
			u, err := url.Parse(made.Msg.GetUrl())
			require.NoError(t, err)
			return "?" + u.RawQuery
		}
		guest := s.NewUser("guest", carreltest.Org, "member")
		who := func(b *browser) string {
			_, body := b.call(http.MethodGet, "/v1/whoami", "")
			return body
		}
		b := newBrowser(t, s)
		first := link(s.AdminToken)
		resp := b.ask(http.MethodGet, b.home()+"/signin"+first, nil, navigating...)
		require.Contains(t, text(t, resp), "Sign in with this link?", "a link of which the browser does not say where it was")
		require.Empty(t, resp.Cookies())
		resp = b.ask(http.MethodGet, b.home()+"/signin"+first, nil, append([]string{"Sec-Fetch-Site", "none"}, navigating...)...)
		require.Equal(t, http.StatusSeeOther, resp.StatusCode, "a link that was opened by hand")
		require.Equal(t, "/new", resp.Header.Get("Location"))
		require.Contains(t, who(b), `"admin"`)

		other := link(guest)
		var page string
		s.Eventually("the gateway knows the guest's name", func() error {
			if resp, page = b.visit(b.home() + "/signin" + other); resp.StatusCode != http.StatusOK || !strings.Contains(page, "signs this browser in as <strong>guest</strong>") {
				return fmt.Errorf("%s: %s", resp.Status, page)
			}
			return nil
		})
		require.Contains(t, page, "You are signed in as <strong>admin</strong>")
		require.Contains(t, who(b), `"admin"`, "asking changes nothing")
		query, err := url.ParseQuery(strings.TrimPrefix(other, "?"))
		require.NoError(t, err)
		require.Equal(t, http.StatusForbidden, b.form("/signin/link", query, "Origin", "https://evil.example").StatusCode)
		require.Contains(t, who(b), `"admin"`, "another site cannot answer")
		require.Equal(t, http.StatusSeeOther, b.form("/signin/link", query, "Origin", b.home()).StatusCode)
		require.Contains(t, who(b), `"guest"`)
		require.Equal(t, http.StatusUnauthorized, b.form("/signin/link", query, "Origin", b.home()).StatusCode, "once")

		stranger := newBrowser(t, s)
		resp = stranger.ask(http.MethodGet, stranger.home()+"/signin"+first, nil, append([]string{"Sec-Fetch-Site", "none"}, navigating...)...)
		require.Contains(t, text(t, resp), "used already")
		resp = stranger.ask(http.MethodGet, stranger.home()+"/signin"+link(guest), nil, append([]string{"Sec-Fetch-Site", "cross-site"}, navigating...)...)
		require.Contains(t, text(t, resp), "Sign in with this link?", "a link on another site's page")
		require.Empty(t, resp.Cookies())
		_, err = s.Admin.Ports.OpenWeb(bounded(t), request(&carrelv1.OpenWebRequest{Path: "//evil.example"}))
		require.ErrorContains(t, err, "must begin with one /")
	})
}
