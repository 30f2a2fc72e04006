package client

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"carrel.dev/carrel/internal/carrel"
)

const (
	// maxForwarded is how many connections, or senders of datagrams, one forward carries at once.
	maxForwarded = 512
	// datagramIdle is after how long without a datagram a sender is forgotten.
	datagramIdle = time.Minute
	maxDatagram  = 1<<16 - 1
)

// Forward is a local port whose connections go to one in a box.
type Forward struct {
	Box  string // id or name
	Port int    // in the box, on its loopback
	// OnError hears of connections that did not come to be; it may be called from several goroutines. nil: nobody does.
	OnError func(error)
}

func (f Forward) failed(err error) {
	if f.OnError != nil && !errors.Is(err, context.Canceled) {
		f.OnError(err)
	}
}

// ForwardTCP carries the connections of a listener into a box until ctx ends, and closes the listener. It returns when all are over.
func (c *Client) ForwardTCP(ctx context.Context, listener net.Listener, f Forward) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { listener.Close() })
	defer stop()
	var open sync.WaitGroup
	defer open.Wait()
	defer cancel()
	slots := make(chan struct{}, maxForwarded)
	var arrived atomic.Bool
	for {
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return nil
		}
		local, err := listener.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("accept a connection: %w", err)
		}
		open.Go(func() {
			defer func() { <-slots }()
			defer local.Close()
			inner, err := c.dialBox(first(ctx, &arrived), f.Box, fmt.Sprintf("tcp/localhost:%d", f.Port))
			if err != nil {
				f.failed(err)
				return
			}
			defer inner.Close()
			join(ctx, local, inner)
		})
	}
}

// first makes the first connection of a forward that of somebody who comes to use the box. Later ones are not: programs such as a browser that was left
// open make them by themselves, and would wake the box again and again.
func first(ctx context.Context, arrived *atomic.Bool) context.Context {
	if arrived.CompareAndSwap(false, true) {
		return Arriving(ctx)
	}
	return ctx
}

type halfCloser interface{ CloseWrite() error }

// join carries both directions until both have ended, one is broken, or ctx ends.
func join(ctx context.Context, local, inner net.Conn) {
	both := sync.OnceFunc(func() {
		local.Close()
		inner.Close()
	})
	stop := context.AfterFunc(ctx, both)
	defer stop()
	carry := func(to, from net.Conn) {
		if _, err := io.Copy(struct{ io.Writer }{to}, struct{ io.Reader }{from}); err != nil {
			both()
			return
		}
		if half, ok := to.(halfCloser); ok {
			_ = half.CloseWrite()
		}
	}
	var up sync.WaitGroup
	up.Go(func() { carry(inner, local) })
	carry(local, inner)
	// The end of what the box sends is the end of the connection.
	both()
	up.Wait()
}

// ForwardUDP carries the datagrams of a socket into a box until ctx ends, and closes the socket. Answers go back to where the
// question came from; a sender that is silent for a minute is forgotten.
func (c *Client) ForwardUDP(ctx context.Context, socket net.PacketConn, f Forward) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { socket.Close() })
	defer stop()
	u := &datagramForward{client: c, socket: socket, forward: f, senders: map[string]*datagramSender{}}
	defer u.open.Wait()
	defer cancel()
	frame := make([]byte, 2+maxDatagram)
	for {
		n, from, err := socket.ReadFrom(frame[2:])
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("receive a datagram: %w", err)
		}
		binary.BigEndian.PutUint16(frame, uint16(n))
		u.take(ctx, from, append([]byte(nil), frame[:2+n]...))
	}
}

type datagramForward struct {
	client  *Client
	socket  net.PacketConn
	forward Forward
	open    sync.WaitGroup

	mu      sync.Mutex // guards senders
	senders map[string]*datagramSender
	arrived atomic.Bool // there was a sender
}

// datagramSender is one address from which datagrams come.
type datagramSender struct {
	from   net.Addr
	frames chan []byte
	idle   *time.Timer
	cancel context.CancelFunc
}

// take gives a datagram to its sender's connection. It waits for nothing: what there is no room for is lost.
func (u *datagramForward) take(ctx context.Context, from net.Addr, frame []byte) {
	u.mu.Lock()
	defer u.mu.Unlock()
	s := u.senders[from.String()]
	if s == nil {
		if len(u.senders) >= maxForwarded {
			return
		}
		s = &datagramSender{from: from, frames: make(chan []byte, 64)}
		ctx, s.cancel = context.WithCancel(ctx)
		s.idle = time.AfterFunc(datagramIdle, s.cancel)
		u.senders[from.String()] = s
		u.open.Go(func() {
			u.carry(ctx, s)
			u.mu.Lock()
			delete(u.senders, from.String())
			u.mu.Unlock()
		})
	}
	s.idle.Reset(datagramIdle)
	select {
	case s.frames <- frame:
	default:
	}
}

// carry connects a sender, both ways.
func (u *datagramForward) carry(ctx context.Context, s *datagramSender) {
	defer s.cancel()
	defer s.idle.Stop()
	conn, err := u.client.dialBox(first(ctx, &u.arrived), u.forward.Box, fmt.Sprintf("udp/localhost:%d", u.forward.Port))
	if err != nil {
		u.forward.failed(err)
		return
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	var back sync.WaitGroup
	defer back.Wait()
	defer conn.Close()
	back.Go(func() {
		defer s.cancel()
		frame := make([]byte, 2+maxDatagram)
		for {
			if _, err := io.ReadFull(conn, frame[:2]); err != nil {
				return
			}
			n := int(binary.BigEndian.Uint16(frame))
			if _, err := io.ReadFull(conn, frame[:n]); err != nil {
				return
			}
			s.idle.Reset(datagramIdle)
			_, _ = u.socket.WriteTo(frame[:n], s.from) // datagrams may be lost
		}
	})
	for {
		select {
		case frame := <-s.frames:
			if _, err := conn.Write(frame); err != nil {
				u.forward.failed(carrel.Errorf(carrel.CodeUnavailable, "connection_lost", "the connection for datagrams from %s was lost", s.from))
				return
			}
		case <-ctx.Done():
			return
		}
	}
}
