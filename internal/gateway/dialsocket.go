package gateway

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/coder/websocket"

	"carrel.dev/carrel/internal/auth"
	"carrel.dev/carrel/internal/carrel"
)

const (
	dialProtocol = "carrel.dial.v1"
	// maxDialFrame is the largest frame from a client, in bytes; dialBuffer is how much is read from the box at once.
	maxDialFrame = 256 << 10
	dialBuffer   = 64 << 10
	// dialPing is how often a socket is tried, so that nothing between takes it for dead, and a dead client is noticed.
	dialPing = 25 * time.Second
	// endOfData is the one text frame: nothing more comes from this side.
	endOfData = "end"
)

var dialBuffers = sync.Pool{New: func() any { return new([dialBuffer]byte) }}

// serveDial serves GET /v1/boxes/{box}/dial?target=…: a connection to a target in the box, whose bytes are carried by binary
// frames of a WebSocket, whatever their borders. The text frame "end" is the end of one direction. What is refused is refused before the
// WebSocket begins. An error is for the answer; nil: there has been one.
func (g *Gateway) serveDial(w http.ResponseWriter, r *http.Request, box string) error {
	target := r.URL.Query().Get("target")
	if kind, rest, ok := strings.Cut(target, "/"); !ok || rest == "" || kind != "tcp" && kind != "unix" && kind != "udp" {
		return carrel.Errorf(carrel.CodeInvalid, "bad_target", "the target is tcp/HOST:PORT, unix/PATH or udp/HOST:PORT")
	}
	p, err := g.socketPass(r, box, auth.ScopeExec)
	if activity := r.Header.Get(headerActivity); err != nil && (activity == activityExec || activity != activityNone && !g.looksAgain(r.Header, box, target)) {
		if err = g.rouse(r.Context(), r.Header, box, r.URL.Query().Get("org"), err); err == nil {
			p, err = g.socketPass(r, box, auth.ScopeExec)
		}
	}
	if err != nil {
		return err
	}
	inner, err := g.reach(r.Context(), p, target)
	if err != nil {
		return err
	}
	defer inner.Close()
	conn := acceptSocket(w, r, maxDialFrame, dialProtocol)
	if conn == nil {
		return nil
	}
	if conn.Subprotocol() != dialProtocol {
		closeSocket(conn, carrel.Errorf(carrel.CodeInvalid, "no_subprotocol", "offer the subprotocol %s", dialProtocol))
		return nil
	}
	ctx, cancel := context.WithCancelCause(r.Context())
	defer cancel(nil)
	defer g.guard(p, cancel)()
	defer g.session(p)()
	g.metrics.dialled.Inc()
	defer g.metrics.dialled.Dec()
	g.touch(p, activityPort)

	var parts sync.WaitGroup
	defer parts.Wait()
	ended := make(chan error, 2) // by what comes first; the box's end is the end of both directions
	parts.Go(func() { ended <- g.dialUp(p, inner, conn) })
	parts.Go(func() { ended <- dialDown(p, conn, inner) })
	pings := time.NewTicker(dialPing)
	defer pings.Stop()
	for {
		select {
		case err = <-ended:
		case <-ctx.Done():
			err = context.Cause(ctx)
		case <-pings.C:
			pingCtx, stop := context.WithTimeout(context.Background(), dialPing)
			err = conn.Ping(pingCtx)
			stop()
			if err == nil {
				continue
			}
		}
		break
	}
	_ = inner.Close()
	closeSocket(conn, err)
	return nil
}

// dialUp carries what the client sends into the box, until the client closes the socket. What the box does not take any more is dropped: what
// it sent before is still on its way.
func (g *Gateway) dialUp(p pass, inner net.Conn, conn *websocket.Conn) error {
	buf := dialBuffers.Get().(*[dialBuffer]byte)
	defer dialBuffers.Put(buf)
	over := false
	for {
		kind, from, err := conn.Reader(context.Background())
		if err != nil {
			return err
		}
		if kind == websocket.MessageText {
			text, err := io.ReadAll(io.LimitReader(from, 16))
			if err != nil {
				return err
			}
			if string(text) != endOfData {
				return carrel.Errorf(carrel.CodeInvalid, "bad_frame", "the only text frame is %q", endOfData)
			}
			if half, ok := inner.(interface{ CloseWrite() error }); ok && !over {
				_ = half.CloseWrite()
			}
			over = true
			continue
		}
		g.touch(p, activityPort)
		for {
			n, err := from.Read(buf[:])
			if n > 0 && !over {
				_, wrong := inner.Write(buf[:n])
				over = wrong != nil
			}
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return err
			}
		}
	}
}

// dialDown carries what the box sends to the client, to the end of it.
func dialDown(p pass, conn *websocket.Conn, inner net.Conn) error {
	write := func(kind websocket.MessageType, data []byte) error {
		ctx, cancel := context.WithTimeout(context.Background(), socketWrite)
		defer cancel()
		return conn.Write(ctx, kind, data)
	}
	buf := dialBuffers.Get().(*[dialBuffer]byte)
	defer dialBuffers.Put(buf)
	for {
		n, err := inner.Read(buf[:])
		if n > 0 {
			if err := write(websocket.MessageBinary, buf[:n]); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return write(websocket.MessageText, []byte(endOfData))
		}
		if err != nil {
			return errUnavailable("box_connection_lost", err, "the connection into box %s was lost", p.Box)
		}
	}
}
