package gateway

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"

	"carrel.dev/carrel/internal/carrel"
)

// The algorithms that are offered: those that ssh-audit finds no fault with, the fastest first.
var (
	sshKeyExchanges = []string{ssh.KeyExchangeMLKEM768X25519, ssh.KeyExchangeCurve25519}
	sshCiphers      = []string{ssh.CipherAES128GCM, ssh.CipherAES256GCM, ssh.CipherChaCha20Poly1305}
	sshMACs         = []string{ssh.HMACSHA256ETM, ssh.HMACSHA512ETM}
	sshUserKeys     = []string{
		ssh.KeyAlgoED25519, ssh.KeyAlgoSKED25519, ssh.KeyAlgoSKECDSA256, ssh.KeyAlgoECDSA256, ssh.KeyAlgoECDSA384, ssh.KeyAlgoECDSA521,
		ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256,
	}
)

const (
	// sshHandshakeTime is what a client has from its connection to the end of its login.
	sshHandshakeTime = 20 * time.Second
	// sshAliveEvery is how often a client is asked whether it is there, and sshAliveTime how long an answer may take.
	sshAliveEvery = 30 * time.Second
	sshAliveTime  = time.Minute
	// sshMaxTries is how many keys a client may offer in one login.
	sshMaxTries = 12
	// sshMaxPerUser is how many connections a user may have.
	sshMaxPerUser = 200
	// sshMaxChannels is how many channels one connection may have, and sshMaxChannelsPerUser how many a user may open in all: up to 2 MiB
	// wait in each that nobody reads.
	sshMaxChannels        = 256
	sshMaxChannelsPerUser = 512
)

// sshServer speaks SSH with the outside world. Every login is for one box; what the client then asks for goes to
// that box's agent.
type sshServer struct {
	g     *Gateway
	doors *sshDoors
	parts sync.WaitGroup // connections

	mu       sync.Mutex // guards what follows
	users    map[carrel.UserID]int
	channels map[carrel.UserID]int // that users opened
}

// ServeSSH answers SSH on a listener until ctx ends; then it closes the listener and every connection. Sessions that were
// open are as after any loss of their transport: shells are kept for a while.
func (g *Gateway) ServeSSH(ctx context.Context, listener net.Listener) error {
	s := &sshServer{g: g, doors: newSSHDoors(g.now), users: map[carrel.UserID]int{}, channels: map[carrel.UserID]int{}}
	stop := context.AfterFunc(ctx, func() { _ = listener.Close() })
	defer stop()
	defer s.parts.Wait()
	for {
		raw, err := listener.Accept()
		if ctx.Err() != nil {
			if err == nil {
				_ = raw.Close()
			}
			return nil
		}
		if errors.Is(err, net.ErrClosed) {
			return err
		}
		if err != nil { // no files left, or the peer is gone already
			g.log.Warn("an SSH connection could not be accepted", "error", err)
			select {
			case <-time.After(10 * time.Millisecond):
			case <-ctx.Done():
			}
			continue
		}
		pass, err := s.doors.enter(raw)
		if err != nil {
			g.metrics.sshLogins.WithLabelValues(carrel.ReasonOf(err)).Inc()
			go refuseSSH(raw, err)
			continue
		}
		s.parts.Go(func() { s.serve(ctx, pass) })
	}
}

// refuseSSH says in a line why there is no login: clients show it, or at least log it.
func refuseSSH(raw net.Conn, err error) {
	defer raw.Close()
	_ = raw.SetDeadline(time.Now().Add(time.Second))
	var known *carrel.Error
	if errors.As(err, &known) {
		_, _ = io.WriteString(raw, known.Message+"\r\n")
	}
}

// config makes what a handshake needs; the host key may have been rotated since the last.
func (s *sshServer) config(login *sshLogin) (*ssh.ServerConfig, error) {
	keys := s.g.secrets().SSHHostKeys
	if len(keys) == 0 {
		return nil, carrel.Errorf(carrel.CodeUnavailable, "no_host_key", "this gateway has not got its host key from the control plane yet; try again in a moment")
	}
	config := &ssh.ServerConfig{
		Config:                  ssh.Config{KeyExchanges: sshKeyExchanges, Ciphers: sshCiphers, MACs: sshMACs},
		PublicKeyAuthAlgorithms: sshUserKeys,
		MaxAuthTries:            sshMaxTries,
		PublicKeyCallback:       login.checkKey,
		ServerVersion:           "SSH-2.0-Carrel",
	}
	// Each key type once, the newest: AddHostKey would replace it by an older one.
	seen := map[string]bool{}
	for _, key := range keys {
		if kind := key.PublicKey().Type(); !seen[kind] && kind == ssh.KeyAlgoED25519 {
			seen[kind] = true
			config.AddHostKey(key)
		}
	}
	if len(seen) == 0 {
		return nil, errors.New("none of the SSH host keys is of a type that is offered")
	}
	return config, nil
}

// serve goes with one connection to its end.
func (s *sshServer) serve(ctx context.Context, door *sshDoor) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := context.AfterFunc(ctx, func() { _ = door.Close() })
	defer stop()
	defer door.Close()
	login := &sshLogin{g: s.g, peer: door.RemoteAddr()}
	config, err := s.config(login)
	if err != nil {
		s.doors.leave(door, false)
		s.g.log.Warn("an SSH connection was refused", "error", err)
		refuseSSH(door, err)
		return
	}
	_ = door.SetDeadline(time.Now().Add(sshHandshakeTime))
	conn, channels, requests, err := ssh.NewServerConn(door, config)
	if err != nil {
		tried := login.refused(err)
		s.doors.leave(door, tried)
		return
	}
	s.doors.leave(door, false)
	_ = door.SetDeadline(time.Time{})
	user, _ := conn.Permissions.ExtraData[sshProof{}].(sshProof)
	c := &sshConn{
		s: s, g: s.g, conn: conn, proof: user, cancel: cancel, peer: door.RemoteAddr(), local: door.LocalAddr(),
		located: make(chan struct{}), forwards: map[string]context.CancelFunc{},
	}
	c.login = conn.User()
	if door.box != "" {
		c.login = door.box
	}
	c.name, c.org = splitLogin(c.login)
	c.serve(ctx, channels, requests)
}

// enterUser counts a user's connections.
func (s *sshServer) enterUser(user carrel.UserID) (leave func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.users[user] >= sshMaxPerUser {
		return func() {}, carrel.Errorf(carrel.CodeExhausted, "too_many_connections", "you have %d SSH connections open through this gateway; close some", sshMaxPerUser)
	}
	s.users[user]++
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.users[user]--; s.users[user] == 0 {
			delete(s.users, user)
		}
	}, nil
}

// enterChannel counts a channel that a user opens; false when there are too many.
func (s *sshServer) enterChannel(user carrel.UserID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.channels[user] >= sshMaxChannelsPerUser {
		return false
	}
	s.channels[user]++
	return true
}

func (s *sshServer) leaveChannel(user carrel.UserID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.channels[user]--; s.channels[user] == 0 {
		delete(s.channels, user)
	}
}
