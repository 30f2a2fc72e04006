package gateway

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/coder/websocket"
	"golang.org/x/sys/unix"

	"carrel.dev/carrel/internal/auth"
	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/client"
)

const (
	// ticketProtocol is how a browser, which can set no header of a WebSocket, shows a ticket: as a subprotocol that is offered and never
	// chosen.
	ticketProtocol = "carrel.ticket."
	// socketWrite is how long a client may take nothing of what is written to it.
	socketWrite = time.Minute
	// socketQuiet is after how long without anything else a keep-alive is sent.
	socketQuiet = 20 * time.Second
	// socketPiece is how much of a frame is written at once, in bytes.
	socketPiece = 64 << 10
	// kernelUnsent is how much may wait in the kernel to be sent to one client, in bytes.
	kernelUnsent = 128 << 10
	// flushTime is how long a socket that is to be closed waits for what was to be said before.
	flushTime = time.Second
	// maxCloseReason is what fits into the frame that closes a WebSocket, in bytes.
	maxCloseReason = 123
)

// Close codes of our own, beside those of RFC 6455: a client begins anew with a new ticket after closeRight, and does not come back
// by itself after closeRefused.
const (
	closeRight   websocket.StatusCode = 4401
	closeRefused websocket.StatusCode = 4403
)

// closeEnded says that the run of the box which the socket was for has ended: a client comes back, with a new ticket, when the box runs again.
const closeEnded websocket.StatusCode = 4410

// socketPath is every WebSocket of a box: the terminal, the dial and the stream, which has another form too.
var socketPath = regexp.MustCompile(`^/v1/boxes/([^/]+)/(terminal|dial|stream)$`)

// serveSocket answers requests at socketPath.
func (g *Gateway) serveSocket(w http.ResponseWriter, r *http.Request) {
	parts := socketPath.FindStringSubmatch(r.URL.Path)
	serve := g.serveTerminal
	switch parts[2] {
	case "dial":
		serve = g.serveDial
	case "stream":
		serve = g.serveStream
	}
	if err := serve(w, r, parts[1]); err != nil {
		writeError(w, r, own(r.Context(), g.log, r.Header.Get(headerRequestID), err))
	}
}

// isSocket reports whether a request asks for a WebSocket.
func isSocket(r *http.Request) bool {
	return r.Method == http.MethodGet && r.ProtoMajor == 1 && strings.EqualFold(r.Header.Get("Upgrade"), "websocket")
}

// socketPass finds what the caller of a WebSocket may do in a box, at least scope.
func (g *Gateway) socketPass(r *http.Request, box, scope string) (pass, error) {
	if !isSocket(r) {
		return pass{}, carrel.Errorf(carrel.CodeInvalid, "not_a_websocket", "this is a WebSocket: ask for it over HTTP/1.1 with `Upgrade: websocket`")
	}
	return g.streamPass(r, box, scope)
}

// streamPass finds what the caller of a WebSocket or of server-sent events may do in a box, at least scope. Pages of other hosts are refused: a
// browser would send nothing of its own accord that lets them in, but a page that got hold of a ticket shall not use it from elsewhere.
func (g *Gateway) streamPass(r *http.Request, box, scope string) (pass, error) {
	header, err := streamCredentials(r)
	if err != nil {
		return pass{}, err
	}
	return g.allow(r.Context(), header, box, r.URL.Query().Get("org"), scope)
}

// streamCredentials finds what a request of a browser, which can set no headers, shows to be let in, as the header of a request that can.
func streamCredentials(r *http.Request) (http.Header, error) {
	if bearer := r.Header.Get("Authorization"); bearer != "" {
		return http.Header{"Authorization": {bearer}}, nil
	}
	if origin := r.Header.Get("Origin"); origin != "" {
		if u, err := url.Parse(origin); err != nil || !strings.EqualFold(u.Host, r.Host) {
			return nil, carrel.Errorf(carrel.CodeDenied, "other_origin", "a page of another host may not open this")
		}
	}
	ticket := cmp.Or(offeredTicket(r), r.URL.Query().Get("ticket"))
	if strings.HasPrefix(ticket, apiTokenPrefix) {
		return nil, carrel.Errorf(carrel.CodeUnauthorized, "token_in_url", "an API token is never a part of a URL or a subprotocol; get a ticket with it")
	}
	if ticket == "" {
		return http.Header{}, nil
	}
	return http.Header{"Authorization": {"Bearer " + ticket}}, nil
}

func offeredTicket(r *http.Request) string {
	for _, line := range r.Header.Values("Sec-WebSocket-Protocol") {
		for protocol := range strings.SplitSeq(line, ",") {
			if ticket, ok := strings.CutPrefix(strings.TrimSpace(protocol), ticketProtocol); ok {
				return ticket
			}
		}
	}
	return ""
}

// acceptSocket makes a WebSocket of a request that socketPass let in, with the first of protocols that the client offers. limit is of a frame from
// the client, in bytes. It has answered when it gives nil.
func acceptSocket(w http.ResponseWriter, r *http.Request, limit int64, protocols ...string) *websocket.Conn {
	conn, err := websocket.Accept(w, r, &websocket.AcceptOptions{
		Subprotocols: protocols, CompressionMode: websocket.CompressionDisabled,
		InsecureSkipVerify: true, // socketPass has looked at the origin
	})
	if err != nil {
		return nil
	}
	conn.SetReadLimit(limit)
	return conn
}

// closeSocket tells why. It does not wait for an answer for long.
func closeSocket(conn *websocket.Conn, err error) {
	code, reason := closing(err)
	if code == 0 {
		_ = conn.CloseNow() // the client is gone
		return
	}
	if len(reason) > maxCloseReason {
		reason = strings.ToValidUTF8(reason[:maxCloseReason-len("…")], "") + "…"
	}
	_ = conn.Close(code, reason)
}

// closing is how a socket is closed that ends with err; 0: there is nobody to tell.
func closing(err error) (code websocket.StatusCode, reason string) {
	var e *carrel.Error
	switch {
	case err == nil:
		return websocket.StatusNormalClosure, ""
	case errors.As(err, &e):
	case errors.Is(err, context.Canceled):
		return websocket.StatusGoingAway, "the gateway is stopping"
	default:
		return 0, ""
	}
	reason = e.Reason + ": " + e.Message
	switch e.Code {
	case carrel.CodeUnauthorized:
		return closeRight, reason
	case carrel.CodeDenied, carrel.CodeNotFound:
		return closeRefused, reason
	case carrel.CodeInvalid:
		return websocket.StatusPolicyViolation, reason
	case carrel.CodeUnavailable, carrel.CodeExhausted:
		return websocket.StatusTryAgainLater, reason
	case carrel.CodePrecondition:
		if e.Reason == client.ReasonBoxNotRunning {
			return closeEnded, reason
		}
	}
	return websocket.StatusInternalError, reason
}

// view reports whether a pass lets its user look only.
func (p pass) view() bool { return !p.Has(auth.ScopeExec) }

// socket is a WebSocket that carries the messages of many channels, each of which waits for its own turn.
type socket struct {
	conn *websocket.Conn
	kind websocket.MessageType // of the frames in both directions
	ctx  context.Context       // ends with the socket
	out  *outbox
	// parts are the goroutines of what the socket carries; serve waits for them. They end with ctx.
	parts sync.WaitGroup
	quiet *time.Timer
}

// newSocket makes a socket; keepAlive is the frame that is sent after socketQuiet without any other.
func newSocket(ctx context.Context, conn *websocket.Conn, kind websocket.MessageType, keepAlive []byte) *socket {
	s := &socket{conn: conn, kind: kind, ctx: ctx, out: newOutbox()}
	alive := s.out.lane(true)
	s.quiet = time.AfterFunc(socketQuiet, func() { alive.offer(keepAlive) })
	return s
}

// serve gives each frame of the client to take until the client closes the socket, take gives an error or s.ctx ends; then it says why, and waits for
// everything that belongs to the socket. cancel ends s.ctx.
func (s *socket) serve(cancel context.CancelCauseFunc, take func([]byte) error) {
	s.parts.Go(func() { s.out.run(s.write) })
	closed := make(chan struct{})
	stop := context.AfterFunc(s.ctx, func() {
		defer close(closed)
		s.out.flush(flushTime)
		closeSocket(s.conn, context.Cause(s.ctx))
	})
	err := s.read(take)
	if stop() {
		cancel(nil)
		if err != nil {
			s.out.flush(flushTime)
		}
		closeSocket(s.conn, err)
	} else {
		<-closed
	}
	s.quiet.Stop()
	s.out.close()
	s.parts.Wait()
}

// read takes frames until the client closes the socket, which gives nil.
func (s *socket) read(take func([]byte) error) error {
	for {
		kind, data, err := s.conn.Read(context.Background()) // a context that ends would end the connection without a word
		if err != nil {
			if websocket.CloseStatus(err) != -1 {
				return nil
			}
			return err
		}
		if kind != s.kind {
			return carrel.Errorf(carrel.CodeInvalid, "bad_frame", "frames of this subprotocol are %s", map[websocket.MessageType]string{
				websocket.MessageBinary: "binary", websocket.MessageText: "text",
			}[s.kind])
		}
		if err := take(data); err != nil {
			return err
		}
	}
}

// write writes one frame. A client that takes nothing for socketWrite is given up; one that is slow is not.
func (s *socket) write(data []byte) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	patience := time.AfterFunc(socketWrite, cancel)
	defer patience.Stop()
	if len(data) <= socketPiece {
		if err := s.conn.Write(ctx, s.kind, data); err != nil {
			return err
		}
		s.quiet.Reset(socketQuiet)
		return nil
	}
	w, err := s.conn.Writer(ctx, s.kind)
	if err != nil {
		return err
	}
	for len(data) > 0 {
		n, err := w.Write(data[:min(len(data), socketPiece)])
		if err != nil {
			return err
		}
		data = data[n:]
		patience.Reset(socketWrite)
	}
	if err := w.Close(); err != nil {
		return err
	}
	s.quiet.Reset(socketQuiet)
	return nil
}

// promptly lets what is written to a connection wait here and not in the kernel, which would put a key's echo behind megabytes of what a slow client
// has still to take. It is for http.ResponseWriters that are about to be hijacked.
type promptly struct{ http.ResponseWriter }

// Unwrap is for http.ResponseController.
func (p promptly) Unwrap() http.ResponseWriter { return p.ResponseWriter }

// Hijack implements http.Hijacker.
func (p promptly) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := http.NewResponseController(p.ResponseWriter).Hijack()
	if err == nil {
		limitUnsent(conn)
	}
	return conn, rw, err
}

// limitUnsent lets at most kernelUnsent bytes wait that were not sent yet. Where that cannot be done more wait.
func limitUnsent(conn net.Conn) {
	if inner, ok := conn.(interface{ NetConn() net.Conn }); ok { // of TLS
		conn = inner.NetConn()
	}
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, kernelUnsent)
	})
}
