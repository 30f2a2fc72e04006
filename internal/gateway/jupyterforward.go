package gateway

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"
	"time"

	"carrel.dev/carrel/internal/carrel"
)

type jupyterCallKey struct{}

func jupyterCallOf(ctx context.Context) *jupyterCall {
	call, _ := ctx.Value(jupyterCallKey{}).(*jupyterCall)
	return call
}

// newJupyterForward passes requests on to the agents of boxes. Connections are kept for the next request of the same user to the same run.
func newJupyterForward(g *Gateway) http.Handler {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	transport := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			call := jupyterCallOf(ctx)
			if call == nil {
				return nil, errors.New("a connection to a Jupyter server without a request")
			}
			return g.reach(ctx, call.pass, targetJupyter)
		},
		Protocols: protocols, DisableCompression: true, MaxIdleConns: 1024, MaxIdleConnsPerHost: 16, IdleConnTimeout: 90 * time.Second,
		ReadBufferSize: 32 << 10, WriteBufferSize: 32 << 10, MaxResponseHeaderBytes: 64 << 10, ExpectContinueTimeout: time.Second,
	}
	return &httputil.ReverseProxy{
		Transport: roundTripper(func(r *http.Request) (*http.Response, error) {
			return transport.RoundTrip(r.WithContext(untraced{r.Context()}))
		}),
		FlushInterval: 20 * time.Millisecond,
		BufferPool:    &buffers{},
		ErrorLog:      slog.NewLogLogger(g.log.Handler(), slog.LevelDebug),
		Rewrite:       func(pr *httputil.ProxyRequest) { jupyterCallOf(pr.In.Context()).rewrite(pr) },
		ModifyResponse: func(resp *http.Response) error {
			jupyterCallOf(resp.Request.Context()).clean(resp)
			return nil
		},
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			call := jupyterCallOf(r.Context())
			if cause := context.Cause(r.Context()); cause != nil && carrel.CodeOf(cause) != 0 {
				err = cause // the right ended
			}
			var tooLarge *http.MaxBytesError
			var known *carrel.Error
			switch {
			case errors.As(err, &tooLarge):
				err = carrel.Errorf(carrel.CodeInvalid, "request_too_large", "the request has more than %d MiB; copy such a file in another way", tooLarge.Limit>>20)
			case errors.As(err, &known), errors.Is(err, context.Canceled):
			default:
				err = errUnavailable("jupyter_broke_off", err, "the Jupyter server of box %s broke the connection off; try again", call.pass.Box)
			}
			call.server.fail(w, r, err)
		},
	}
}

// jupyterHeaders are those of a request that a Jupyter server has a use for. All others stay here: who the client is and what it shows is
// the gateway's business.
var jupyterHeaders = []string{
	"Accept", "Content-Type", "Content-Length", "If-None-Match", "If-Modified-Since", "If-Range", "Range", "User-Agent",
	"Connection", "Upgrade", "Sec-Websocket-Key", "Sec-Websocket-Version",
}

// rewrite makes the request that the box sees: without token, cookie or address of the client.
func (c *jupyterCall) rewrite(pr *httputil.ProxyRequest) {
	in, out := pr.In, pr.Out
	out.URL.Scheme = "http"
	// The name under which connections are kept: whoever shares one has the same rights in the same run.
	out.URL.Host = fmt.Sprintf("%s.%d.%s", c.pass.Box, c.pass.Epoch, c.pass.User)
	out.URL.Path, out.URL.RawPath = "", ""
	if u, err := url.ParseRequestURI(c.path); err == nil {
		out.URL.Path, out.URL.RawPath = u.Path, u.RawPath
	}
	out.URL.RawQuery = withoutParameter(in.URL.RawQuery, parameterJupyter)
	out.Host = "jupyter"
	kept := http.Header{}
	for _, name := range jupyterHeaders {
		if values := out.Header.Values(name); len(values) > 0 {
			kept[http.CanonicalHeaderKey(name)] = values
		}
	}
	if protocols := withoutTokens(in.Header.Values("Sec-WebSocket-Protocol")); protocols != "" {
		kept.Set("Sec-WebSocket-Protocol", protocols)
	}
	kept.Set("X-Forwarded-Prefix", strings.TrimSuffix(jupyterPrefix+c.box, "/"))
	kept.Set(headerUser, string(c.pass.User))
	out.Header = kept
}

// withoutParameter takes a parameter out of a query and leaves the rest as it was written.
func withoutParameter(query, parameter string) string {
	var kept []string
	for part := range strings.SplitSeq(query, "&") {
		name, _, _ := strings.Cut(part, "=")
		if unescaped, err := url.QueryUnescape(name); part == "" || err == nil && unescaped == parameter {
			continue
		}
		kept = append(kept, part)
	}
	return strings.Join(kept, "&")
}

// withoutTokens takes those subprotocols out that are about tokens.
func withoutTokens(lines []string) string {
	var kept []string
	for _, line := range lines {
		for one := range strings.SplitSeq(line, ",") {
			if one = strings.TrimSpace(one); one != "" && one != protocolJupyter && !strings.HasPrefix(one, protocolJupyter+".") {
				kept = append(kept, one)
			}
		}
	}
	return strings.Join(kept, ", ")
}

// jupyterAnswers are the headers of an answer that a client of Jupyter has a use for. The others could tell a browser something about
// the platform's origin.
var jupyterAnswers = []string{
	"Content-Type", "Content-Length", "Content-Disposition", "Content-Range", "Accept-Ranges", "Last-Modified", "Etag", "Location", "Allow", "Date",
	"Connection", "Upgrade", "Sec-Websocket-Accept", "Sec-Websocket-Protocol", "Transfer-Encoding",
}

// clean takes from an answer what a box may not tell a browser.
func (c *jupyterCall) clean(resp *http.Response) {
	kept := http.Header{}
	for _, name := range jupyterAnswers {
		if values := resp.Header.Values(name); len(values) > 0 {
			kept[http.CanonicalHeaderKey(name)] = values
		}
	}
	if location := kept.Get("Location"); location != "" && !strings.HasPrefix(location, jupyterPrefix) {
		kept.Del("Location") // it leads nowhere else
	}
	if resp.StatusCode == http.StatusSwitchingProtocols && kept.Get("Sec-WebSocket-Protocol") == "" && c.bare {
		kept.Set("Sec-WebSocket-Protocol", protocolJupyter)
	}
	resp.Header = kept
}

// watchedWriter tells of the messages that come over a WebSocket for which its request is taken over.
type watchedWriter struct {
	http.ResponseWriter
	data func()
}

func (w *watchedWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *watchedWriter) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, buffered, err := http.NewResponseController(w.ResponseWriter).Hijack()
	if err != nil {
		return nil, nil, err
	}
	return &watchedConn{Conn: conn, data: w.data}, buffered, nil
}

// watchedConn looks at the frames that a client sends. It changes nothing.
type watchedConn struct {
	net.Conn
	scan frameScan
	data func()
}

func (c *watchedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if c.scan.look(p[:n]) {
		c.data()
	}
	return n, err
}

// CloseWrite tells the client that nothing more comes.
func (c *watchedConn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return c.Close()
}

// frameScan follows the frames of a WebSocket (RFC 6455, section 5.2) in the bytes of one direction. Control frames, with which a client that is left alone
// answers pings, are told from those that carry messages. The zero value begins with a frame.
type frameScan struct {
	head [14]byte
	have int
	body uint64 // bytes of the payload that are still to come
}

// look reports whether a frame of a message begins in data.
func (s *frameScan) look(data []byte) (message bool) {
	for len(data) > 0 {
		if s.body > 0 {
			n := min(s.body, uint64(len(data)))
			s.body -= n
			data = data[n:]
			continue
		}
		s.head[s.have] = data[0]
		s.have++
		data = data[1:]
		if s.have < 2 {
			continue
		}
		need := 2
		length := uint64(s.head[1] & 0x7f)
		switch length {
		case 126:
			need += 2
		case 127:
			need += 8
		}
		lengthEnd := need
		if s.head[1]&0x80 != 0 {
			need += 4
		}
		if s.have < need {
			continue
		}
		switch lengthEnd {
		case 4:
			length = uint64(binary.BigEndian.Uint16(s.head[2:]))
		case 10:
			length = binary.BigEndian.Uint64(s.head[2:])
		}
		message = message || s.head[0]&0x08 == 0
		s.have, s.body = 0, length
	}
	return message
}
