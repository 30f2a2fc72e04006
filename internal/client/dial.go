package client

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/coder/websocket"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/encoding/protojson"

	"carrel.dev/carrel/internal/carrel"
)

const (
	dialProtocol = "carrel.dial.v1"
	dialEnd      = "end" // the text frame that ends one direction
	// dialFrame is the largest frame that is sent, dialReadLimit the largest that is taken, in bytes.
	dialFrame     = 64 << 10
	dialReadLimit = 1 << 20
	// dialPatience is how long a ticket that was refused is replaced and a gateway that is away tried again.
	dialPatience = 20 * time.Second
	dialTimeout  = time.Minute
)

// Dial connects to a target in a box (an id or a name) through the gateway: "tcp/HOST:PORT", "unix/PATH" or "udp/HOST:PORT", where each
// datagram is a frame of its length in two bytes, the high one first, and its data. ctx bounds the dial, not the connection.
// The connection has CloseWrite, and knows no deadlines (os.ErrNoDeadline). Errors are *carrel.Error.
func (c *Client) Dial(ctx context.Context, box, target string) (net.Conn, error) {
	return c.dialBox(Arriving(ctx), box, target)
}

// dialBox is Dial by one who may come to use the box or not.
func (c *Client) dialBox(ctx context.Context, box, target string) (net.Conn, error) {
	var conn net.Conn
	err := newSession(c, box, Streams{}).call(ctx, dialPatience, func(ctx context.Context, ticket Ticket) (err error) {
		conn, err = c.dial(ctx, ticket, target)
		return err
	})
	if err != nil {
		return nil, err
	}
	return conn, nil
}

func (c *Client) dial(ctx context.Context, ticket Ticket, target string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	address := c.url + "/v1/boxes/" + url.PathEscape(ticket.Box) + "/dial?target=" + url.QueryEscape(target)
	header := http.Header{}
	if ticket.show(header); ticket.Token == "" {
		header.Set("Authorization", "Bearer "+c.token)
		address += "&org=" + url.QueryEscape(c.org)
	}
	ws, resp, err := websocket.Dial(ctx, address, &websocket.DialOptions{ //nolint:bodyclose // the library closes it
		HTTPClient: c.sockets, Subprotocols: []string{dialProtocol},
		HTTPHeader: header,
	})
	if err != nil {
		return nil, socketError(c.url, resp, err)
	}
	ws.SetReadLimit(dialReadLimit)
	life, end := context.WithCancel(context.Background())
	return &socketConn{ws: ws, life: life, end: end, target: target}, nil
}

// socketError says why a WebSocket was not opened.
func socketError(gateway string, resp *http.Response, cause error) error {
	if resp == nil || resp.StatusCode < 400 {
		if errors.Is(cause, context.Canceled) {
			return context.Canceled
		}
		return &carrel.Error{Code: carrel.CodeUnavailable, Reason: ReasonUnreachable, Message: "no connection to " + gateway, Cause: cause}
	}
	said := &status.Status{}
	body, _ := io.ReadAll(io.LimitReader(resp.Body, 4<<10))
	if protojson.Unmarshal(body, said) != nil || said.GetCode() == 0 {
		return &carrel.Error{Code: carrel.CodeUnavailable, Reason: "bad_answer", Message: "the gateway answered " + resp.Status, Cause: cause}
	}
	e := &carrel.Error{Code: carrel.Code(said.GetCode()), Message: said.GetMessage(), Cause: cause}
	for _, detail := range said.GetDetails() {
		info := &errdetails.ErrorInfo{}
		if detail.UnmarshalTo(info) == nil {
			e.Reason, e.Metadata = info.GetReason(), info.GetMetadata()
		}
	}
	return e
}

// socketConn is a WebSocket as a connection.
type socketConn struct {
	ws     *websocket.Conn
	life   context.Context // ends with Close
	end    context.CancelFunc
	target string

	reading sync.Mutex // guards from and over
	from    io.Reader  // of the frame that is being read
	over    bool       // the other side ended its direction
}

func (c *socketConn) Read(p []byte) (int, error) {
	c.reading.Lock()
	defer c.reading.Unlock()
	for !c.over {
		if c.from == nil {
			kind, from, err := c.ws.Reader(c.life)
			if err != nil {
				return 0, c.explain(err)
			}
			if kind == websocket.MessageText {
				text, err := io.ReadAll(io.LimitReader(from, 16))
				if err != nil || string(text) != dialEnd {
					return 0, errors.Join(errors.New("a frame that makes no sense"), err)
				}
				c.over = true
				break
			}
			c.from = from
		}
		n, err := c.from.Read(p)
		if errors.Is(err, io.EOF) {
			c.from, err = nil, nil
		}
		if n > 0 || err != nil {
			return n, c.explain(err)
		}
	}
	return 0, io.EOF
}

// explain gives what the gateway said when it closed the connection.
func (c *socketConn) explain(err error) error {
	var closed websocket.CloseError
	switch {
	case err == nil:
		return nil
	case c.life.Err() != nil:
		return net.ErrClosed
	case errors.As(err, &closed) && closed.Reason != "":
		reason, message, _ := strings.Cut(closed.Reason, ": ")
		return &carrel.Error{Code: carrel.CodeUnavailable, Reason: reason, Message: message, Cause: err}
	}
	return &carrel.Error{Code: carrel.CodeUnavailable, Reason: "connection_lost", Message: "the connection to the gateway was lost", Cause: err}
}

func (c *socketConn) Write(p []byte) (int, error) {
	written := 0
	for len(p) > 0 {
		part := p[:min(len(p), dialFrame)]
		if err := c.ws.Write(c.life, websocket.MessageBinary, part); err != nil {
			return written, c.explain(err)
		}
		written += len(part)
		p = p[len(part):]
	}
	return written, nil
}

// CloseWrite tells the other end that nothing more comes; what it sends can still be read.
func (c *socketConn) CloseWrite() error {
	return c.explain(c.ws.Write(c.life, websocket.MessageText, []byte(dialEnd)))
}

func (c *socketConn) Close() error {
	c.end()
	_ = c.ws.CloseNow() // it may be closed already
	return nil
}

func (c *socketConn) LocalAddr() net.Addr              { return socketAddr("client") }
func (c *socketConn) RemoteAddr() net.Addr             { return socketAddr(c.target) }
func (c *socketConn) SetDeadline(time.Time) error      { return os.ErrNoDeadline }
func (c *socketConn) SetReadDeadline(time.Time) error  { return os.ErrNoDeadline }
func (c *socketConn) SetWriteDeadline(time.Time) error { return os.ErrNoDeadline }

type socketAddr string

func (a socketAddr) Network() string { return "carrel" }
func (a socketAddr) String() string  { return string(a) }
