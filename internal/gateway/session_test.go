package gateway

import (
	"net/http"
	"net/http/httptest"
	"net/url"
	"testing"

	"github.com/stretchr/testify/require"
)

// Browsers send the session's cookie by themselves; only what our own pages ask for may use it.
func TestOnlyOurOwnPagesUseASignIn(t *testing.T) {
	const own = "http://localhost:7070"
	ui := []string{headerUI, "1"}
	same := []string{"Sec-Fetch-Site", "same-origin"}
	cases := []struct {
		what    string
		method  string
		headers []string
		own     bool
	}{
		{"a call of our page", "POST", append([]string{"Origin", own, "Sec-Fetch-Site", "same-origin"}, ui...), true},
		{"a call of our page, from a browser that tells no site", "POST", append([]string{"Origin", own}, ui...), true},
		{"what our page reads", "GET", append(same[:2:2], ui...), true},
		{"a picture or download of our page", "GET", same, true},
		{"a download opened by hand", "GET", []string{"Sec-Fetch-Site", "none"}, true},
		{"our page's WebSocket", "GET", []string{"Upgrade", "websocket", "Origin", own}, true},

		{"a form of our own origin, without what only scripts add", "POST", []string{"Origin", own, "Sec-Fetch-Site", "same-origin"}, false},
		{"a form of another site", "POST", []string{"Origin", "https://evil.example", "Sec-Fetch-Site", "cross-site"}, false},
		{"a script of another site that sets the header", "POST", append([]string{"Origin", "https://evil.example", "Sec-Fetch-Site", "cross-site"}, ui...), false},
		{"another site that lies about its site, which browsers let none do", "POST", append([]string{"Origin", "https://evil.example", "Sec-Fetch-Site", "same-origin"}, ui...), false},
		{"a page of a box", "POST", append([]string{"Origin", "http://8000-b2345678901234567890.localhost:7070", "Sec-Fetch-Site", "same-site"}, ui...), false},
		{"a page of a box that reads", "GET", append([]string{"Sec-Fetch-Site", "same-site"}, ui...), false},
		{"a page of a box, from a browser that tells no site", "GET", append([]string{"Origin", "http://8000-b2345678901234567890.localhost:7070"}, ui...), false},
		{"a sandboxed page", "POST", append([]string{"Origin", "null", "Sec-Fetch-Site", "cross-site"}, ui...), false},
		{"no origin at all", "POST", ui, false},
		{"no origin at all, reading", "GET", nil, false},
		{"a link of another site", "GET", []string{"Sec-Fetch-Site", "cross-site", "Sec-Fetch-Mode", "navigate"}, false},
		{"deleting by hand", "DELETE", append([]string{"Sec-Fetch-Site", "none"}, ui...), false},
		{"a WebSocket of another site", "GET", []string{"Upgrade", "websocket", "Origin", "https://evil.example"}, false},
		{"a WebSocket of a box's page", "GET", []string{"Upgrade", "websocket", "Origin", "http://8000-b2345678901234567890.localhost:7070", "Sec-Fetch-Site", "same-site"}, false},
		{"a WebSocket of a sandboxed page", "GET", []string{"Upgrade", "websocket", "Origin", "null"}, false},
		{"a WebSocket without an origin", "GET", []string{"Upgrade", "websocket", "Sec-Fetch-Site", "same-origin"}, false},
		{"our name at another port", "POST", append([]string{"Origin", "http://localhost:7071"}, ui...), false},
		{"a file", "POST", append([]string{"Origin", "file://"}, ui...), false},
		{"nonsense", "POST", append([]string{"Origin", "%%"}, ui...), false},
	}
	p := &ports{gateway: &Gateway{}}
	for _, c := range cases {
		r := httptest.NewRequest(c.method, own+"/v1/boxes", nil)
		for i := 0; i < len(c.headers); i += 2 {
			r.Header.Set(c.headers[i], c.headers[i+1])
		}
		require.Equal(t, c.own, p.ownRequest(r), c.what)
	}
	p.gateway.public = &url.URL{Scheme: "https", Host: "carrel.example"}
	for origin, want := range map[string]bool{"https://carrel.example": true, "http://carrel.example": false, "https://localhost:7070": true, own: false} {
		r := httptest.NewRequest(http.MethodPost, own+"/v1/boxes", nil)
		r.Header.Set("Origin", origin)
		r.Header.Set(headerUI, "1")
		require.Equal(t, want, p.ownRequest(r), "behind TLS: %s", origin)
	}
}

// What shows a right of its own is judged by that, whatever cookies come along.
func TestARightThatIsShownCountsBeforeTheCookie(t *testing.T) {
	for what, change := range map[string]func(*http.Request){
		"a header":      func(r *http.Request) { r.Header.Set("Authorization", "token x") },
		"a ticket":      func(r *http.Request) { r.URL.RawQuery = "ticket=x" },
		"Jupyter's way": func(r *http.Request) { r.URL.RawQuery = "a=b&token=x" },
		"a subprotocol": func(r *http.Request) { r.Header.Set("Sec-WebSocket-Protocol", "carrel.terminal.v1, carrel.ticket.x") },
	} {
		r := httptest.NewRequest(http.MethodGet, "http://localhost/v1/boxes", nil)
		require.False(t, showsRight(r))
		change(r)
		require.True(t, showsRight(r), what)
	}
}

func TestPagesAreUnderstoodWithAndWithoutCompression(t *testing.T) {
	for text, want := range map[string]bool{"": false, "gzip": true, "gzip, deflate, br": true, "br;q=1, GZIP;q=0.5": true, "*": true, "gzip;q=0": false, "gzip; q=0.0, br": false, "identity": false, "gzip;q=x": false} {
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		if text != "" {
			r.Header.Set("Accept-Encoding", text)
		}
		require.Equal(t, want, acceptsGzip(r), text)
	}
}

func TestPathsOfThePages(t *testing.T) {
	for path, want := range map[string]bool{
		"/": true, "/new": true, "/nodes": true, "/account": true, "/boxes/b1": true, "/boxes/b1/files": true,
		"/boxes": false, "/boxes/": false, "/new/x": false, "/v1/boxes": false, "/signin": false, "/jupyter/b1": false, "/carrel.v1.BoxService/ListBoxes": false,
	} {
		require.Equal(t, want, webPath.MatchString(path), path)
	}
}
