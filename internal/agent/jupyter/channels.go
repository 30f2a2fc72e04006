package jupyter

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/coder/websocket"

	"carrel.dev/carrel/internal/agent/kernel"
	"carrel.dev/carrel/internal/carrel"
)

const (
	// maxFrame is the largest frame from a client, in bytes.
	maxFrame = 64 << 20
	// pingEvery is how often a client is tried; one that does not answer in that time is gone.
	pingEvery = 30 * time.Second
	// writeTime is how long a client may take nothing of what is sent to it.
	writeTime = 30 * time.Second
	maxName   = 256
)

// Clients of Jupyter come back by themselves after every close but 1000 and 1001: these are only for what is over for good.

// socket is one client's WebSocket.
type socket struct {
	*websocket.Conn
	cancel context.CancelCauseFunc
}

// cut ends a socket, and tells its client why.
func (c *socket) cut(why error) { c.cancel(why) }

func droppedText(n int) string {
	return fmt.Sprintf("[%d messages of the kernel were dropped while no client was there to take them; the rest follows]\n", n)
}

// accept makes a WebSocket of a request. It has answered when it gives nil. ctx ends when the server does or the socket is cut.
// The caller calls s.sockets.Done in the end.
func (s *Server) accept(in *request, protocols ...string) (c *socket, ctx context.Context) {
	if !s.enter() {
		in.fail(http.StatusServiceUnavailable, "the box is being stopped", "")
		return nil, nil
	}
	conn, err := websocket.Accept(in.w, in.Request, &websocket.AcceptOptions{
		Subprotocols: protocols, CompressionMode: websocket.CompressionDisabled,
		InsecureSkipVerify: true, // who reaches this may
	})
	if err != nil {
		s.sockets.Done()
		return nil, nil
	}
	conn.SetReadLimit(maxFrame)
	ctx, cancel := context.WithCancelCause(s.ctx)
	return &socket{conn, cancel}, ctx
}

// finish closes a socket with the reason for it.
func (c *socket) finish(why error) {
	c.cancel(why)
	code, reason := websocket.StatusServiceRestart, "try again"
	var own *carrel.Error
	switch {
	case websocket.CloseStatus(why) != -1:
		code, reason = websocket.StatusNormalClosure, ""
	case errors.Is(why, errSlow), errors.Is(why, errStale):
		code, reason = websocket.StatusTryAgainLater, why.Error()
	case errors.Is(why, errFrame), errors.Is(why, errMessage):
		code, reason = websocket.StatusUnsupportedData, why.Error()
	case errors.As(why, &own) && own.Code == carrel.CodeNotFound:
		code, reason = websocket.StatusNormalClosure, own.Message
	case errors.Is(why, errOver):
		code, reason = websocket.StatusNormalClosure, ""
	}
	_ = c.Close(code, reason[:min(len(reason), 120)])
}

var errOver = errors.New("the program has ended")

// keep tries the client from time to time until ctx ends.
func (c *socket) keep(ctx context.Context) {
	tick := time.NewTicker(pingEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			limited, stop := context.WithTimeout(ctx, pingEvery)
			err := c.Ping(limited)
			stop()
			if err != nil && ctx.Err() == nil {
				c.cut(errGone)
				return
			}
		case <-ctx.Done():
			return
		}
	}
}

var errGone = errors.New("the client does not answer")

func (c *socket) send(kind websocket.MessageType, data []byte) error {
	ctx, cancel := context.WithTimeout(context.Background(), writeTime)
	defer cancel()
	return c.Write(ctx, kind, data)
}

func isUpgrade(r *http.Request) bool {
	return r.Method == http.MethodGet && strings.EqualFold(r.Header.Get("Upgrade"), "websocket")
}

var errNoUpgrade = refuse(http.StatusBadRequest, "Can \"Upgrade\" only to \"WebSocket\".")

// channels connects a client to a kernel.
func (s *Server) channels(in *request, k *kernel.Kernel) error {
	if !isUpgrade(in.Request) {
		return errNoUpgrade
	}
	session := in.URL.Query().Get("session_id")
	if len(session) > maxName {
		return refuse(http.StatusBadRequest, "the session_id is longer than %d bytes", maxName)
	}
	s.touch()
	// As at a Jupyter server a client gets through when the kernel can be talked to. One that is dead, or takes longer, is shown as it is.
	ready, stop := context.WithTimeout(in.Context(), readyTime)
	err := k.Ready(ready)
	stop()
	if carrel.CodeOf(err) == carrel.CodeNotFound || in.Context().Err() != nil {
		return refuse(http.StatusNotFound, "Kernel does not exist: %s", k.ID())
	}
	c, ctx := s.accept(in, protocolV1)
	if c == nil {
		return nil
	}
	defer s.sockets.Done()
	v, fresh, err := s.viewers.attach(k, session, c)
	if err != nil {
		c.finish(err)
		return nil
	}
	defer v.leave(c)
	s.log.Debug("a client of a kernel is connected", "kernel", k.ID(), "protocol", c.Subprotocol(), "fresh", fresh)
	var parts sync.WaitGroup
	parts.Go(func() { c.keep(ctx) })
	parts.Go(func() { c.cut(s.readKernel(ctx, c, v)) })
	why := s.writeKernel(ctx, c, v)
	c.finish(why)
	parts.Wait()
	return nil
}

// writeKernel gives the client what the kernel says.
func (s *Server) writeKernel(ctx context.Context, c *socket, v *viewer) error {
	for {
		one, err := v.next(ctx, c)
		if err != nil {
			return err
		}
		kind, frame := c.encode(one)
		if err := c.send(kind, frame); err != nil {
			return errors.Join(context.Cause(ctx), err)
		}
	}
}

// encode makes a frame of a message, in the way that the client chose.
func (c *socket) encode(one item) (websocket.MessageType, []byte) {
	if c.Subprotocol() == protocolV1 {
		return websocket.MessageBinary, encodeV1(one.channel, one.message)
	}
	frame, isBinary := encodeJSON(one.channel, one.message)
	if isBinary {
		return websocket.MessageBinary, frame
	}
	return websocket.MessageText, frame
}

// readKernel gives the kernel what the client says. Messages that make no sense are passed over, as Jupyter does; frames that cannot be
// read end the connection.
func (s *Server) readKernel(ctx context.Context, c *socket, v *viewer) error {
	for {
		kind, frame, err := c.Read(context.Background()) // a context that ends would end the connection without a word
		if err != nil {
			return err
		}
		s.touch()
		var channel kernel.Channel
		var message kernel.Message
		switch {
		case c.Subprotocol() == protocolV1:
			channel, message, err = decodeV1(frame)
		case kind == websocket.MessageBinary:
			channel, message, err = decodeBinary(frame)
		default:
			channel, message, err = decodeJSON(frame)
		}
		if errors.Is(err, errFrame) {
			return err
		}
		if err == nil {
			err = s.sendKernel(ctx, v, channel, message)
		}
		if err != nil {
			s.log.Debug("a message of a client was passed over", "kernel", v.key.kernel, "error", err)
		}
	}
}

// sendKernel waits for a kernel that is just being restarted.
func (s *Server) sendKernel(ctx context.Context, v *viewer, channel kernel.Channel, message kernel.Message) error {
	switch channel {
	case kernel.Shell, kernel.Control, kernel.Stdin:
	default:
		return fmt.Errorf("no such channel: %q", clip(string(channel)))
	}
	err := v.client.Send(channel, message)
	if carrel.ReasonOf(err) != "kernel_not_ready" {
		return err
	}
	limited, stop := context.WithTimeout(ctx, readyTime)
	defer stop()
	if err := v.kernel.Ready(limited); err != nil {
		return err
	}
	return v.client.Send(channel, message)
}

// events keeps a client that waits for events of the server, of which there are none, so that it need not ask again and again.
func (s *Server) events(in *request) error {
	if !isUpgrade(in.Request) {
		return errNoUpgrade
	}
	c, ctx := s.accept(in)
	if c == nil {
		return nil
	}
	defer s.sockets.Done()
	c.SetReadLimit(64 << 10)
	var parts sync.WaitGroup
	parts.Go(func() { c.keep(ctx) })
	parts.Go(func() {
		for {
			if _, _, err := c.Read(context.Background()); err != nil {
				c.cut(err)
				return
			}
		}
	})
	<-ctx.Done()
	c.finish(context.Cause(ctx))
	parts.Wait()
	return nil
}
