package gateway

import (
	"bytes"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"carrel.dev/carrel/internal/carrel"
)

func TestAPortHasOneNameAsHostAndOneAsPath(t *testing.T) {
	box := carrel.NewBoxID()
	want := portRef{Box: box, Port: 8000}
	for _, host := range []string{"8000-" + string(box) + ".localhost", "8000-" + string(box) + ".localhost:7070", strings.ToUpper("8000-" + string(box) + ".localhost."), "8000-" + string(box) + ".LOCALHOST:1"} {
		ref, ok := portOfHost(host, "localhost")
		require.True(t, ok, host)
		require.Equal(t, want, ref)
	}
	for _, host := range []string{
		"localhost", "8000.localhost", "-" + string(box) + ".localhost", "08000-" + string(box) + ".localhost", "+80-" + string(box) + ".localhost",
		"0-" + string(box) + ".localhost", "65536-" + string(box) + ".localhost", "8000-" + string(box)[1:] + ".localhost", "8000-" + string(box) + ".x.localhost",
		"8000-" + string(box) + ".localhost.evil.example", "8000-" + string(box) + "localhost", "8000-" + string(carrel.NewRunID()) + ".localhost", "",
	} {
		_, ok := portOfHost(host, "localhost")
		require.False(t, ok, host)
	}

	ref, rest, ok := portOfPath("/p/" + string(box) + "/8000/a/../b%2fc")
	require.True(t, ok)
	require.Equal(t, want, ref)
	require.Equal(t, "/a/../b%2fc", rest)
	for _, path := range []string{"/p/", "/p/" + string(box), "/p/" + string(box) + "/8000", "/p/" + string(box) + "//", "/p/x/8000/", "/q/" + string(box) + "/8000/", ""} {
		_, _, ok := portOfPath(path)
		require.False(t, ok, path)
	}
}

func FuzzPortNames(f *testing.F) {
	box := string(carrel.NewBoxID())
	f.Add("8000-" + box + ".localhost:7070")
	f.Add("/p/" + box + "/8000/x")
	f.Fuzz(func(t *testing.T, text string) {
		for _, ref := range []func() (portRef, bool){
			func() (portRef, bool) { return portOfHost(text, "localhost") },
			func() (portRef, bool) { ref, _, ok := portOfPath(text); return ref, ok },
		} {
			if ref, ok := ref(); ok {
				require.Equal(t, byte('b'), carrel.IDKind(string(ref.Box)))
				require.True(t, ref.Port >= 1 && ref.Port <= 65535)
			}
		}
	})
}

func TestASealedValueOpensForItsPurposeAlone(t *testing.T) {
	old, fresh := bytes.Repeat([]byte{1}, 32), bytes.Repeat([]byte{2}, 32)
	text, err := seal([][]byte{old}, "a", portSession{Box: "b", Port: 1})
	require.NoError(t, err)
	require.NotContains(t, text, "box")
	var got portSession
	require.NoError(t, unseal([][]byte{fresh, old}, "a", text, &got), "an older key still opens")
	require.Equal(t, carrel.BoxID("b"), got.Box)
	require.Error(t, unseal([][]byte{old}, "b", text, &got))
	require.Error(t, unseal([][]byte{fresh}, "a", text, &got))
	require.Error(t, unseal(nil, "a", text, &got))
	require.Error(t, unseal([][]byte{old}, "a", text[:len(text)-2]+"AA", &got))
	_, err = seal(nil, "a", 1)
	require.Error(t, err)
}

func FuzzUnseal(f *testing.F) {
	keys := [][]byte{bytes.Repeat([]byte{1}, 32)}
	text, err := seal(keys, "a", portSession{Box: "b"})
	require.NoError(f, err)
	f.Add(text)
	f.Add("")
	f.Fuzz(func(t *testing.T, other string) {
		var got portSession
		if unseal(keys, "a", other, &got) == nil {
			require.Equal(t, text, other)
		}
	})
}

func TestABoxSetsCookiesForItsOwnHostAlone(t *testing.T) {
	for line, want := range map[string]string{
		"a=b; Path=/; Domain=localhost; HttpOnly": "a=b; Path=/; HttpOnly",
		"a=b;domain = .example.org;Secure":        "a=b;Secure",
		"a=b":                                     "a=b",
	} {
		got, ok := hostOnly(line)
		require.True(t, ok)
		require.Equal(t, want, got)
	}
	for _, line := range []string{"carrel_port=x", "__Host-carrel_session=x; Secure", "CARREL_port=x", " carrel_x=y"} {
		_, ok := hostOnly(line)
		require.False(t, ok, line)
	}
}

func TestTheBoxSeesNoCookieAndNoTokenOfThePlatform(t *testing.T) {
	require.Equal(t, "a=1; b=\"2\"", withoutOwnCookies([]string{"a=1; carrel_session=s; __Host-carrel_port=p", "b=\"2\";carrel_port=x"}))
	require.Empty(t, withoutOwnCookies([]string{"carrel_session=s"}))
	require.Equal(t, "a=1&b=%20", withoutToken("a=1&carrel_token=x&b=%20"))
	require.Equal(t, "a", withoutToken("a&carrel%5ftoken=x"))
	require.Equal(t, "x=carrel_tokens", withoutToken("x=carrel_tokens"))
}

func FuzzCookiesOfABox(f *testing.F) {
	f.Add("a=b; Domain=x")
	f.Add("carrel_port=x")
	f.Fuzz(func(t *testing.T, line string) {
		got, ok := hostOnly(line)
		if !ok {
			return
		}
		h := http.Header{"Set-Cookie": {got}}
		for _, c := range (&http.Response{Header: h}).Cookies() {
			require.Empty(t, c.Domain)
			require.False(t, ownCookie(c.Name))
		}
	})
}

func TestOnlyALocalPathIsGoneOnTo(t *testing.T) {
	for _, next := range []string{"/", "/signin/port?url=http%3A%2F%2Fx", "/a/b#c"} {
		require.Equal(t, next, localPath(next))
	}
	for _, next := range []string{"", "//evil.example", "http://evil.example/", "/\\evil.example", "javascript:alert(1)", "evil", "/%zz", "\t//evil.example"} {
		require.Empty(t, localPath(next), next)
	}
}

func TestACodeIsGoodOnce(t *testing.T) {
	o, now := newOnceOnly(), time.Now()
	require.True(t, o.first("n", now.Add(time.Minute), now))
	require.False(t, o.first("n", now.Add(time.Minute), now))
	require.False(t, o.first("", now.Add(time.Minute), now))
	require.True(t, o.first("m", now.Add(time.Minute), now.Add(2*time.Minute)))
	require.Len(t, o.used, 1, "what has ended is forgotten")
}

func TestWhoGoesToAPageIsAPerson(t *testing.T) {
	request := func(method string, headers ...string) *http.Request {
		r := &http.Request{Method: method, Header: http.Header{}}
		for i := 0; i < len(headers); i += 2 {
			r.Header.Set(headers[i], headers[i+1])
		}
		return r
	}
	require.True(t, navigation(request("GET", "Sec-Fetch-Mode", "navigate")))
	require.True(t, navigation(request("GET", "Accept", "text/html,*/*")), "an old browser")
	for name, r := range map[string]*http.Request{
		"fetch":     request("GET", "Sec-Fetch-Mode", "cors", "Accept", "text/html"),
		"websocket": request("GET", "Sec-Fetch-Mode", "websocket", "Upgrade", "websocket"),
		"post":      request("POST", "Sec-Fetch-Mode", "navigate"),
		"preflight": request("OPTIONS", "Sec-Fetch-Mode", "cors"),
		"curl":      request("GET", "Accept", "*/*"),
		"old XHR":   request("GET", "Accept", "text/html", "X-Requested-With", "XMLHttpRequest"),
	} {
		require.False(t, navigation(r), name)
	}
}

func TestAnswersUnderAPathLeadNowhereElse(t *testing.T) {
	box := carrel.NewBoxID()
	prefix := "/p/" + string(box) + "/8000"
	j := &portJob{ref: portRef{Box: box, Port: 8000}, path: "/app/page", host: "carrel.example:7070", byPath: true}
	for location, want := range map[string]string{
		"/login?next=%2Fx#there":               prefix + "/login?next=%2Fx#there",
		"other":                                prefix + "/app/other",
		"?page=2":                              prefix + "/app/page?page=2",
		"../../../v1/boxes":                    prefix + "/v1/boxes",
		prefix + "/app/":                       prefix + "/app/",
		prefix + "/../../../v1/boxes":          prefix + "/v1/boxes",
		"http://carrel.example:7070/v1/tokens": prefix + "/v1/tokens",
		"/%2e%2E/.%2e/%2e%2e/v1":               "",
		"/..//elsewhere.example/":              prefix + "/elsewhere.example/",
		"//elsewhere.example/":                 "",
		"https://elsewhere.example/":           "",
		"http://user@carrel.example:7070/":     "",
		"http://carrel.example:7070.evil/":     "",
		"javascript:alert(1)":                  "",
		"http:/v1":                             "",
		"http://carrel.example:7070:bad/%zz":   "",
	} {
		h := http.Header{"Location": {location}, "Www-Authenticate": {"Basic"}, "Proxy-Authenticate": {"Basic"}, "Refresh": {"0; url=//x"}, "Content-Type": {"text/html"}}
		j.clean(h)
		require.Equal(t, want, h.Get("Location"), location)
		h.Del("Location")
		require.Equal(t, http.Header{"Content-Type": {"text/html"}}, h)
	}
}
