package gateway

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/ssh"

	"carrel.dev/carrel/internal/auth"
	"carrel.dev/carrel/internal/carrel"
)

const (
	// sshMaxRequests of a connection may wait to be answered.
	sshMaxRequests = 128
	// sshArriveTime bounds how long a login waits for its box to come up.
	sshArriveTime = 3 * time.Minute
	// sshLostTime is how long the end of a channel may precede the news that the whole transport was lost.
	sshLostTime = 200 * time.Millisecond
)

// sshConn is one login: one user, one box, any number of channels.
type sshConn struct {
	s      *sshServer
	g      *Gateway
	conn   *ssh.ServerConn
	proof  sshProof
	login  string // the box as it was asked for
	name   string
	org    string
	peer   net.Addr
	local  net.Addr
	cancel context.CancelCauseFunc
	parts  sync.WaitGroup // of the connection

	channels atomic.Int32
	closed   atomic.Bool // no more sessions (no-more-sessions@openssh.com)
	first    atomic.Bool // something was asked for: the login itself is over

	located chan struct{} // closed when ref and locateErr are there
	ref     boxRef
	missing error

	over    chan struct{} // closed when the transport has ended
	overErr error

	mu       sync.Mutex // guards what follows
	release  func()     // of the guard
	forwards map[string]context.CancelFunc
}

// serve goes with the connection to its end.
func (c *sshConn) serve(ctx context.Context, channels <-chan ssh.NewChannel, requests <-chan *ssh.Request) {
	c.over = make(chan struct{})
	c.g.metrics.sshConns.Inc()
	defer c.g.metrics.sshConns.Dec()
	leave, crowded := c.s.enterUser(c.proof.user)
	defer leave()
	ctx, cancel := context.WithCancelCause(ctx)
	c.cancel = cancel
	stop := context.AfterFunc(ctx, func() { _ = c.conn.Close() })
	defer stop()
	c.parts.Go(func() {
		c.overErr = c.conn.Wait()
		close(c.over)
	})
	if crowded != nil {
		c.missing = crowded
		close(c.located)
	} else {
		c.parts.Go(func() { c.locate(ctx) })
	}
	c.parts.Go(func() { c.requests(ctx, requests) })
	c.parts.Go(func() { c.stayAlive(ctx) })
	for channel := range channels {
		c.open(ctx, channel)
	}
	<-c.over
	cancel(c.overErr)
	c.parts.Wait()
	c.mu.Lock()
	if c.release != nil {
		c.release()
	}
	c.mu.Unlock()
}

// locate finds the box that the login is for and has it started if need be, whatever the client will ask for.
func (c *sshConn) locate(ctx context.Context) {
	defer close(c.located)
	c.ref, c.missing = c.g.findBox(ctx, c.proof.user, c.name, c.org)
	result := "ok"
	if c.missing != nil {
		result = "no_box"
	}
	c.g.metrics.sshLogins.WithLabelValues(result).Inc()
	c.g.audit(auditEntry{User: c.proof.user, Box: c.ref.Box, Action: "ssh_login", Detail: fmt.Sprintf("%s as %q with %s: %s", c.peer, clip(c.login), c.proof.fingerprint, result)})
}

// pass gives the right to the box's present run. A box that does not run is started, if wake says so and its policy
// does; progress is told what one waits for.
func (c *sshConn) pass(ctx context.Context, wake bool, progress func(string)) (pass, error) {
	select {
	case <-c.located:
	case <-ctx.Done():
		return pass{}, context.Cause(ctx)
	}
	if c.missing != nil {
		return pass{}, c.missing
	}
	p, err := c.g.passOf(c.proof.user, c.ref.Box, auth.ScopeExec)
	if wake && (carrel.CodeOf(err) == carrel.CodePrecondition || carrel.CodeOf(err) == carrel.CodeNotFound) {
		p, err = c.wake(ctx, progress)
	}
	if err != nil {
		return pass{}, err
	}
	c.guard(p)
	return p, nil
}

// wake has the box brought up and waits for it.
func (c *sshConn) wake(ctx context.Context, progress func(string)) (pass, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, sshArriveTime, carrel.Errorf(carrel.CodeDeadline, "box_not_up", "box %s did not come up within %s; `carrel show %s` says why", c.ref.Name, sshArriveTime, c.ref.Name))
	defer cancel()
	return c.g.wake(ctx, c.proof.user, c.ref, "ssh", progress)
}

// reach connects to a target of the box. A box whose route is there but that does not answer any more is looked at
// again by wake.
func (c *sshConn) reach(ctx context.Context, target string, wake bool, progress func(string)) (net.Conn, pass, error) {
	p, err := c.pass(ctx, wake, progress)
	if err != nil {
		return nil, pass{}, err
	}
	conn, err := c.g.reach(ctx, p, target)
	switch carrel.CodeOf(err) {
	case carrel.CodeUnavailable, carrel.CodePrecondition, carrel.CodeUnauthorized:
		if !wake {
			break
		}
		if p, err = c.wake(ctx, progress); err == nil {
			c.guard(p)
			conn, err = c.g.reach(ctx, p, target)
		}
	}
	return conn, p, err
}

// guard has the connection cut when the user's right ends.
func (c *sshConn) guard(p pass) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p.Token, p.key = c.proof.token, c.proof.key
	if c.release == nil {
		c.release = c.g.guard(p, func(err error) { c.cancel(err) })
	}
}

// lost reports, after the end of a channel, whether the whole transport was lost, as opposed to a client that
// closed the channel or said good-bye.
func (c *sshConn) lost() bool {
	select {
	case <-c.over:
	case <-time.After(sshLostTime):
		return false
	}
	return c.overErr == nil || !strings.HasPrefix(c.overErr.Error(), "ssh: disconnect")
}

// stayAlive asks the client now and then whether it is there, and ends the connection when it is not.
func (c *sshConn) stayAlive(ctx context.Context) {
	ticker := time.NewTicker(sshAliveEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
		case <-c.over:
			return
		}
		dead := time.AfterFunc(sshAliveTime, func() { _ = c.conn.Close() })
		_, _, err := c.conn.SendRequest("keepalive@openssh.com", true, nil)
		dead.Stop()
		if err != nil || ctx.Err() != nil {
			return
		}
	}
}

// requests answers the connection's own requests in their order. Reading them never waits for an answer: the library
// would stop every channel.
func (c *sshConn) requests(ctx context.Context, requests <-chan *ssh.Request) {
	waiting := make(chan *ssh.Request, sshMaxRequests)
	var answering sync.WaitGroup
	answering.Go(func() {
		for request := range waiting {
			ok, answer := c.request(ctx, request)
			_ = request.Reply(ok, answer)
		}
	})
	for request := range requests {
		select {
		case waiting <- request:
		default: // it does not wait for its answers
			_ = c.conn.Close()
		}
	}
	close(waiting)
	answering.Wait()
}

func (c *sshConn) request(ctx context.Context, request *ssh.Request) (bool, []byte) {
	switch request.Type {
	case "keepalive@openssh.com":
		return true, nil
	case "no-more-sessions@openssh.com":
		c.closed.Store(true)
		return true, nil
	case "tcpip-forward", "cancel-tcpip-forward":
		p, err := parsePayload[listenPayload](request.Payload)
		if err != nil || c.proof.noPorts {
			return false, nil
		}
		if request.Type == "cancel-tcpip-forward" {
			return c.unlisten(tcpForwardKey(p)), nil
		}
		return c.listenTCP(ctx, p)
	case "streamlocal-forward@openssh.com", "cancel-streamlocal-forward@openssh.com":
		p, err := parsePayload[socketPayload](request.Payload)
		if err != nil || c.proof.noPorts {
			return false, nil
		}
		if request.Type == "cancel-streamlocal-forward@openssh.com" {
			return c.unlisten(p.Path), nil
		}
		return c.listenSocket(ctx, p.Path), nil
	}
	return false, nil
}

// open answers the opening of a channel.
func (c *sshConn) open(ctx context.Context, channel ssh.NewChannel) {
	if c.channels.Add(1) > sshMaxChannels {
		c.channels.Add(-1)
		_ = channel.Reject(ssh.ResourceShortage, fmt.Sprintf("a connection may have %d channels", sshMaxChannels))
		return
	}
	if !c.s.enterChannel(c.proof.user) {
		c.channels.Add(-1)
		_ = channel.Reject(ssh.ResourceShortage, fmt.Sprintf("you may have %d channels open through this gateway", sshMaxChannelsPerUser))
		return
	}
	handle := func(ctx context.Context, channel ssh.NewChannel) {
		_ = channel.Reject(ssh.UnknownChannelType, "channels of this type are not served")
	}
	switch channel.ChannelType() {
	case "session":
		handle = c.session
	case "direct-tcpip":
		handle = c.directTCP
	case "direct-streamlocal@openssh.com":
		handle = c.directSocket
	}
	c.parts.Go(func() {
		defer c.channels.Add(-1)
		defer c.s.leaveChannel(c.proof.user)
		handle(ctx, channel)
	})
}

// sayError is what a person is told of an error.
func (c *sshConn) sayError(err error) string {
	return own(context.Background(), c.g.log, "ssh "+c.peer.String(), unwrapCause(err)).Message
}

// unwrapCause finds the error for a person in one that a context gives.
func unwrapCause(err error) error {
	var known *carrel.Error
	if errors.As(err, &known) {
		return known
	}
	return err
}
