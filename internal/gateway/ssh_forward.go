package gateway

import (
	"context"
	"fmt"
	"io"
	"net"
	"strconv"
	"sync"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/crypto/ssh"

	agentv1 "carrel.dev/carrel/api/carrel/agent/v1"
	"carrel.dev/carrel/internal/carrel"
)

const (
	// sshMaxForwards is how many listeners one connection may have in its box.
	sshMaxForwards = 32
	// listenTime bounds the wait for a listener to be there.
	listenTime = 10 * time.Second
	// sshPortTraffic is how many bytes from the client at once count as use of the box; less is taken for a heartbeat.
	sshPortTraffic = 128
)

func (c *sshConn) directTCP(ctx context.Context, channel ssh.NewChannel) {
	p, err := parsePayload[tcpChannel](channel.ExtraData())
	if err != nil {
		_ = channel.Reject(ssh.ConnectionFailed, "the request is malformed")
		return
	}
	target, err := tcpTarget(p.Host, p.Port)
	c.direct(ctx, channel, target, err)
}

func (c *sshConn) directSocket(ctx context.Context, channel ssh.NewChannel) {
	p, err := parsePayload[socketChannel](channel.ExtraData())
	if err != nil {
		_ = channel.Reject(ssh.ConnectionFailed, "the request is malformed")
		return
	}
	target, err := socketTarget(p.Path)
	c.direct(ctx, channel, target, err)
}

// direct joins a channel with a target in the box. It starts a box only for the login itself: what a tool connects to in the
// background later is no reason to bring a box back.
func (c *sshConn) direct(ctx context.Context, channel ssh.NewChannel, target string, err error) {
	if c.proof.noPorts {
		_ = channel.Reject(ssh.Prohibited, "your certificate does not permit forwarding")
		return
	}
	var conn net.Conn
	var p pass
	if err == nil {
		conn, p, err = c.reach(ctx, target, c.first.CompareAndSwap(false, true), nil)
	}
	if err != nil {
		_ = channel.Reject(ssh.ConnectionFailed, printableLine(c.sayError(err)))
		return
	}
	c.first.Store(true)
	defer conn.Close()
	ch, requests, err := channel.Accept()
	if err != nil {
		return
	}
	go ssh.DiscardRequests(requests) // it ends with the channel
	c.g.touch(p, activityPort)
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	c.splice(ch, conn, p)
}

// splice joins a channel and a connection until both directions have ended.
func (c *sshConn) splice(ch ssh.Channel, conn net.Conn, p pass) {
	var up sync.WaitGroup
	up.Go(func() {
		buf := sessionBuffers.Get().(*[sessionRead]byte)
		defer sessionBuffers.Put(buf)
		for {
			n, err := ch.Read(buf[:])
			if n >= sshPortTraffic {
				c.g.touch(p, activityPort)
			}
			if n > 0 {
				if _, err := conn.Write(buf[:n]); err != nil {
					_ = conn.Close()
					break
				}
			}
			if err != nil {
				break
			}
		}
		if half, ok := conn.(interface{ CloseWrite() error }); ok {
			_ = half.CloseWrite()
		}
	})
	buf := sessionBuffers.Get().(*[sessionRead]byte)
	_, err := io.CopyBuffer(struct{ io.Writer }{ch}, struct{ io.Reader }{conn}, buf[:])
	sessionBuffers.Put(buf)
	if err == nil {
		_ = ch.CloseWrite()
	}
	_ = ch.Close()
	_ = conn.Close()
	up.Wait()
}

func tcpForwardKey(p listenPayload) string {
	return net.JoinHostPort(p.Host, strconv.Itoa(int(p.Port)))
}

// listenTCP is ssh -R with a port.
func (c *sshConn) listenTCP(ctx context.Context, p listenPayload) (bool, []byte) {
	if p.Port > 65535 || len(p.Host) > 255 {
		return false, nil
	}
	port := p.Port
	listening, err := c.listen(ctx, &agentv1.ListenRequest{Tcp: net.JoinHostPort(p.Host, strconv.Itoa(int(p.Port)))},
		func(l *agentv1.Listening) string {
			if port == 0 {
				port = l.GetPort()
			}
			return tcpForwardKey(listenPayload{Host: p.Host, Port: port})
		},
		func(a *agentv1.Accepted) (string, []byte) {
			return "forwarded-tcpip", ssh.Marshal(tcpChannel{Host: p.Host, Port: port, OriginHost: a.GetOriginHost(), OriginPort: a.GetOriginPort()})
		})
	if err != nil {
		c.g.log.Info("a remote forward was refused", "box", c.ref.Box, "error", err)
		return false, nil
	}
	if p.Port == 0 {
		return true, ssh.Marshal(listenAnswer{listening.GetPort()})
	}
	return true, nil
}

// listenSocket is ssh -R with a path.
func (c *sshConn) listenSocket(ctx context.Context, path string) bool {
	if _, err := socketTarget(path); err != nil {
		return false
	}
	_, err := c.listen(ctx, &agentv1.ListenRequest{Unix: path}, func(*agentv1.Listening) string { return path }, func(*agentv1.Accepted) (string, []byte) {
		return "forwarded-streamlocal@openssh.com", ssh.Marshal(forwardedSocket{Path: path})
	})
	if err != nil {
		c.g.log.Info("a remote forward was refused", "box", c.ref.Box, "error", err)
	}
	return err == nil
}

// listenAgent makes a socket in the box behind which the client's SSH agent is, until ctx ends, and gives its name.
func (c *sshConn) listenAgent(ctx context.Context, p pass, parts *sync.WaitGroup) (string, error) {
	l := &sshListener{c: c, request: &agentv1.ListenRequest{AuthSocket: true}, channel: func(*agentv1.Accepted) (string, []byte) {
		return "auth-agent@openssh.com", nil
	}}
	listening, err := l.open(ctx, p)
	if err != nil {
		return "", err
	}
	parts.Go(func() { l.serve(ctx) })
	return listening.GetName(), nil
}

// listen listens in the box until the forward is cancelled or the connection ends.
func (c *sshConn) listen(ctx context.Context, request *agentv1.ListenRequest, key func(*agentv1.Listening) string, channel func(*agentv1.Accepted) (string, []byte)) (*agentv1.Listening, error) {
	c.mu.Lock()
	full := len(c.forwards) >= sshMaxForwards
	c.mu.Unlock()
	if full {
		return nil, carrel.Errorf(carrel.CodeExhausted, "too_many_listeners", "a connection may listen on %d addresses", sshMaxForwards)
	}
	p, err := c.pass(ctx, !c.first.Swap(true), nil)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	l := &sshListener{c: c, request: request, channel: channel}
	listening, err := l.open(ctx, p)
	if err != nil {
		cancel()
		return nil, err
	}
	name := key(listening)
	if request.GetTcp() != "" { // the port stays the same when the listener has to be made again
		host, _, _ := net.SplitHostPort(request.GetTcp())
		l.request = &agentv1.ListenRequest{Tcp: net.JoinHostPort(host, strconv.Itoa(int(listening.GetPort())))}
	}
	c.mu.Lock()
	if former := c.forwards[name]; former != nil {
		former()
	}
	c.forwards[name] = cancel
	c.mu.Unlock()
	c.parts.Go(func() {
		defer cancel()
		l.serve(ctx)
	})
	return listening, nil
}

func (c *sshConn) unlisten(name string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	cancel := c.forwards[name]
	delete(c.forwards, name)
	if cancel != nil {
		cancel()
	}
	return cancel != nil
}

// sshListener is one listener in the box and what comes in there.
type sshListener struct {
	c       *sshConn
	request *agentv1.ListenRequest
	channel func(*agentv1.Accepted) (kind string, extra []byte)

	pass   pass
	stream *connect.ServerStreamForClient[agentv1.ListenEvent]
	done   func()
}

// open makes the listener.
func (l *sshListener) open(ctx context.Context, p pass) (*agentv1.Listening, error) {
	agent, done := l.c.g.agents.get(p)
	ctx, cancel := context.WithCancel(ctx)
	late := time.AfterFunc(listenTime, cancel)
	stream, err := agent.forwards.Listen(ctx, connect.NewRequest(l.request))
	if err == nil && !stream.Receive() {
		if err = stream.Err(); err == nil {
			err = io.ErrUnexpectedEOF
		}
		_ = stream.Close()
	}
	late.Stop()
	if err != nil {
		cancel()
		done()
		return nil, fromAgent(ctx, p.Box, err)
	}
	listening := stream.Msg().GetListening()
	l.pass, l.stream = p, stream
	l.done = func() {
		cancel() // first: Close would else read what is still to come
		_ = stream.Close()
		done()
	}
	if listening == nil {
		l.done()
		return nil, errAgentSpeech
	}
	return listening, nil
}

// serve gives what comes in to the client, and makes the listener again when the connection to the box broke.
func (l *sshListener) serve(ctx context.Context) {
	var parts sync.WaitGroup
	defer parts.Wait()
	wait := 50 * time.Millisecond
	for {
		for l.stream.Receive() {
			accepted := l.stream.Msg().GetAccepted()
			if accepted == nil {
				continue
			}
			wait = 50 * time.Millisecond
			if l.c.channels.Add(1) > sshMaxChannels {
				l.c.channels.Add(-1)
				continue // it is closed in the box when nobody fetches it
			}
			p := l.pass
			parts.Go(func() {
				defer l.c.channels.Add(-1)
				l.take(ctx, p, accepted)
			})
		}
		l.done()
		if l.request.GetAuthSocket() {
			return // its path is another when it is made again
		}
		for {
			select {
			case <-time.After(wait):
			case <-ctx.Done():
				return
			}
			wait = min(2*wait, 10*time.Second)
			p, err := l.c.pass(ctx, false, nil)
			if err == nil {
				_, err = l.open(ctx, p)
			}
			if err == nil {
				break
			}
			l.c.g.log.Debug("a remote forward waits for its box", "box", l.c.ref.Box, "error", err)
		}
	}
}

// take joins one connection that came in with a channel to the client.
func (l *sshListener) take(ctx context.Context, p pass, accepted *agentv1.Accepted) {
	kind, extra := l.channel(accepted)
	ch, requests, err := l.c.conn.OpenChannel(kind, extra)
	if err != nil {
		return
	}
	go ssh.DiscardRequests(requests) // it ends with the channel
	conn, err := l.c.g.reach(ctx, p, fmt.Sprintf("accept/%s", accepted.GetId()))
	if err != nil {
		_ = ch.Close()
		return
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	l.c.splice(ch, conn, p)
}
