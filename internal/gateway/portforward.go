package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/http/httputil"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"carrel.dev/carrel/internal/carrel"
)

// portJob is one request on its way to a port.
type portJob struct {
	visitor
	ports  *ports
	ref    portRef
	path   string // escaped, as the box shall see it
	host   string // as the client wrote it
	byPath bool   // under /p/, at the platform's own origin
}

type portJobKey struct{}

func jobOf(ctx context.Context) *portJob {
	job, _ := ctx.Value(portJobKey{}).(*portJob)
	return job
}

// buffers are for copying bodies; without them every request would make one of 32 KiB.
type buffers struct{ pool sync.Pool }

func (b *buffers) Get() []byte {
	if buf, ok := b.pool.Get().(*[]byte); ok {
		return *buf
	}
	return make([]byte, 64<<10)
}

func (b *buffers) Put(buf []byte) { b.pool.Put(&buf) }

// newPortForward passes requests on to boxes. Connections are kept for the next request of the same user to the same port of the same run.
func newPortForward(g *Gateway) http.Handler {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		job := jobOf(ctx)
		if job == nil {
			return nil, errors.New("a connection to a port without a request")
		}
		return g.reach(ctx, job.pass, job.ref.target())
	}
	transport := func(h2 bool) *http.Transport {
		protocols := new(http.Protocols)
		protocols.SetHTTP1(!h2)
		protocols.SetUnencryptedHTTP2(h2)
		return &http.Transport{
			DialContext: dial, Protocols: protocols,
			DisableCompression: true, // bodies are the box's and the browser's
			MaxIdleConns:       4096, MaxIdleConnsPerHost: 64, IdleConnTimeout: 90 * time.Second,
			ReadBufferSize: 32 << 10, WriteBufferSize: 32 << 10, MaxResponseHeaderBytes: 256 << 10,
			ExpectContinueTimeout: time.Second,
		}
	}
	h1, h2 := transport(false), transport(true)
	return &httputil.ReverseProxy{
		Transport: roundTripper(func(r *http.Request) (*http.Response, error) {
			r = r.WithContext(untraced{r.Context()})
			if r.ProtoMajor == 2 && strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc") {
				return h2.RoundTrip(r)
			}
			return h1.RoundTrip(r)
		}),
		FlushInterval: 20 * time.Millisecond, // streams of unknown length are flushed at once anyway
		BufferPool:    &buffers{},
		ErrorLog:      slog.NewLogLogger(g.log.Handler(), slog.LevelDebug),
		Rewrite:       func(pr *httputil.ProxyRequest) { jobOf(pr.In.Context()).rewrite(pr) },
		ModifyResponse: func(resp *http.Response) error {
			jobOf(resp.Request.Context()).clean(resp.Header)
			return nil
		},
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			job := jobOf(r.Context())
			if cause := context.Cause(r.Context()); cause != nil && carrel.CodeOf(cause) != 0 {
				err = cause // the right ended
			}
			if e := (*carrel.Error)(nil); !errors.As(err, &e) && !errors.Is(err, context.Canceled) {
				err = errUnavailable("port_broke_off", err, "the program on port %d of box %s broke the connection off", job.ref.Port, job.ref.Box)
			}
			job.ports.answer(w, r, err)
		},
	}
}

// untraced hides what listens for interim answers (1xx). ReverseProxy would pass those of a box on with headers that nobody has looked at, and
// forget the headers that are set for the answer itself, among them those that keep it from being a page of the platform's.
type untraced struct{ context.Context }

func (c untraced) Value(key any) any {
	value := c.Context.Value(key)
	if _, ok := value.(*httptrace.ClientTrace); ok {
		return nil
	}
	return value
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// rewrite makes the request that the box sees: without anything that is the platform's, and with what it needs to know of the client.
func (j *portJob) rewrite(pr *httputil.ProxyRequest) {
	in, out := pr.In, pr.Out
	out.URL.Scheme = "http"
	// The name under which connections are kept: whoever shares one has the same rights in the same run.
	out.URL.Host = fmt.Sprintf("%s.%d.%d.%s", j.ref.Box, j.pass.Epoch, j.ref.Port, j.user)
	out.URL.Path, out.URL.RawPath = "", ""
	if u, err := url.ParseRequestURI(j.path); err == nil {
		out.URL.Path, out.URL.RawPath = u.Path, u.RawPath
	}
	out.Host = in.Host
	out.URL.RawQuery = withoutToken(in.URL.RawQuery)

	h := out.Header
	for name := range h {
		if strings.HasPrefix(name, "Carrel-") {
			h.Del(name)
		}
	}
	if j.ports.ours(in.Header.Get("Authorization")) {
		h.Del("Authorization")
	}
	h.Del("Forwarded")
	pr.SetXForwarded()
	if public := j.ports.gateway.public; public != nil {
		h.Set("X-Forwarded-Proto", public.Scheme)
	}
	if j.byPath {
		h.Del("Cookie")
		h.Set("X-Forwarded-Prefix", strings.TrimSuffix(in.URL.EscapedPath(), j.path))
		return
	}
	if cookies := in.Header.Values("Cookie"); len(cookies) > 0 {
		h.Del("Cookie")
		if rest := withoutOwnCookies(cookies); rest != "" {
			h.Set("Cookie", rest)
		}
	}
}

// withoutToken takes the token of a signed URL out of a query and leaves the rest as it was written.
func withoutToken(query string) string {
	if query == "" {
		return ""
	}
	var kept []string
	for part := range strings.SplitSeq(query, "&") {
		name, _, _ := strings.Cut(part, "=")
		if unescaped, err := url.QueryUnescape(name); err == nil && unescaped == parameterToken {
			continue
		}
		kept = append(kept, part)
	}
	return strings.Join(kept, "&")
}

// ownCookie reports whether a cookie's name is the platform's.
func ownCookie(name string) bool {
	name = strings.TrimPrefix(strings.TrimPrefix(strings.TrimSpace(name), "__Host-"), "__Secure-")
	return strings.HasPrefix(strings.ToLower(name), cookiePrefix)
}

// withoutOwnCookies takes the platform's cookies out and leaves the rest as it was written.
func withoutOwnCookies(lines []string) string {
	var kept []string
	for _, line := range lines {
		for part := range strings.SplitSeq(line, ";") {
			name, _, _ := strings.Cut(part, "=")
			if part = strings.TrimSpace(part); part != "" && !ownCookie(name) {
				kept = append(kept, part)
			}
		}
	}
	return strings.Join(kept, "; ")
}

// clean takes from an answer what a box may not tell a browser: cookies for more than its own host or with the platform's names, other ways to
// be reached, and the order to forget what belongs to the whole site.
func (j *portJob) clean(h http.Header) {
	for _, name := range []string{"Clear-Site-Data", "Alt-Svc"} {
		h.Del(name)
	}
	lines := h.Values("Set-Cookie")
	h.Del("Set-Cookie")
	if j.byPath {
		j.keepWithin(h)
		// The headers that keep the answer from being a page are ours already; the others would hold for all of the platform's origin.
		for _, name := range []string{
			"Content-Security-Policy", "X-Content-Type-Options", "Service-Worker-Allowed",
			"Strict-Transport-Security", "Nel", "Report-To", "Reporting-Endpoints",
			// A client must not be led to show the platform's own origin, or another one, what it knows.
			"Www-Authenticate", "Proxy-Authenticate", "Refresh",
			// What would hold for other requests to the origin, or have pages load more of it.
			"Secure-Session-Registration", "Sec-Session-Registration", "Use-As-Dictionary", "Accept-Ch", "Critical-Ch", "Origin-Agent-Cluster", "Speculation-Rules", "Link",
		} {
			h.Del(name)
		}
		return
	}
	for _, line := range lines {
		if line, ok := hostOnly(line); ok {
			h.Add("Set-Cookie", line)
		}
	}
	if h.Get(headerRequestID) != "" {
		h.Del(headerRequestID) // ours is set already
	}
	if h.Get("Server") != "" {
		h.Del("Server")
	}
}

// keepWithin lets an answer lead to nothing but the same port under /p/: a client that follows it sends its token along, and the box shall
// choose neither another origin nor another page of the platform's for that. Paths as the box knows them get the prefix.
func (j *portJob) keepWithin(h http.Header) {
	for _, name := range []string{"Location", "Content-Location"} {
		text := h.Get(name)
		if text == "" {
			continue
		}
		h.Del(name)
		to, err := url.Parse(text)
		if err != nil || to.Opaque != "" || to.Host != "" && to.Host != j.host || to.Scheme != "" && to.Host == "" || to.User != nil {
			continue
		}
		prefix := pathPrefix + string(j.ref.Box) + "/" + strconv.Itoa(j.ref.Port)
		if rest, ok := strings.CutPrefix(to.EscapedPath(), prefix+"/"); ok { // it knows where it is
			to.Path, to.RawPath = "", ""
			if to, err = to.Parse("/" + rest); err != nil {
				continue
			}
		}
		here, err := url.ParseRequestURI(j.path)
		if err != nil {
			continue
		}
		// Dots are taken out before the prefix comes: they lead no further up than the port's own root.
		within := here.ResolveReference(&url.URL{Path: to.Path, RawPath: to.RawPath, RawQuery: to.RawQuery, Fragment: to.Fragment})
		if parts := strings.Split(within.Path, "/"); slices.Contains(parts, "..") || slices.Contains(parts, ".") {
			continue // written as %2e, which browsers take out later
		}
		value := prefix + within.EscapedPath()
		if within.RawQuery != "" {
			value += "?" + within.RawQuery
		}
		if within.Fragment != "" {
			value += "#" + within.EscapedFragment()
		}
		h.Set(name, value)
	}
}

// hostOnly takes the Domain out of a Set-Cookie line, so that the cookie is for its own host alone; false for a cookie of the platform's.
func hostOnly(line string) (string, bool) {
	name, _, _ := strings.Cut(line, "=")
	if ownCookie(name) {
		return "", false
	}
	parts := strings.Split(line, ";")
	kept := parts[:1]
	for _, part := range parts[1:] {
		key, _, _ := strings.Cut(part, "=")
		if !strings.EqualFold(strings.TrimSpace(key), "Domain") {
			kept = append(kept, part)
		}
	}
	return strings.Join(kept, ";"), true
}
