package proxy

import (
	"context"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"

	"carrel.dev/carrel/internal/carrel"
)

const (
	// directTry is how long a box has to answer at its own address before its agent is asked instead.
	directTry = 500 * time.Millisecond
	// inwardTime is how long the agent is asked at once for a port that did not answer from outside, and maxInward of how many that is remembered.
	inwardTime = time.Minute
	maxInward  = 4096
)

// halfConn is a connection into a box: to its agent after the preface, or to a port.
type halfConn interface {
	net.Conn
	CloseWrite() error
}

// portOf reads port/PORT, the target of whoever wants what is served there, wherever in the box it listens.
func portOf(target string) (port uint16, ok bool) {
	text, ok := strings.CutPrefix(target, "port/")
	n, err := strconv.ParseUint(text, 10, 16)
	return uint16(n), ok && err == nil && n > 0
}

// PortTarget is the target that a pass of a port allows.
func PortTarget(port int) string { return "port/" + strconv.Itoa(port) }

// dial connects to a target in a box. Errors that say why are *refusal.
func (p *Proxy) dial(ctx context.Context, r Route, target string) (halfConn, error) {
	port, ok := portOf(target)
	if !ok {
		return dialAgent(ctx, r, target, dialTry)
	}
	agent, err := netip.ParseAddrPort(r.Address)
	if err != nil {
		return nil, err
	}
	if port == agent.Port() {
		return nil, refuse(http.StatusBadGateway, "target_refused", "port %d is the agent's own; nothing is forwarded to it", port)
	}
	if !p.inward.has(r.Run, port, p.cfg.Now()) {
		// Past the agent: what goes through it crosses the sandbox's network twice.
		dialer := net.Dialer{Timeout: directTry, KeepAlive: 15 * time.Second}
		conn, err := dialer.DialContext(ctx, "tcp", netip.AddrPortFrom(agent.Addr(), port).String())
		if err == nil {
			return conn.(*net.TCPConn), nil //nolint:forcetypeassert // what a dialer of tcp gives
		}
		if ctx.Err() != nil {
			return nil, err
		}
	}
	conn, err := dialAgent(ctx, r, "tcp/localhost:"+strconv.Itoa(int(port)), dialTry)
	if err == nil {
		p.inward.add(r.Run, port, p.cfg.Now())
	}
	return conn, err
}

// inwardPort is a port of a run that is served on the box's loopback interface alone.
type inwardPort struct {
	run  carrel.RunID
	port uint16
}

// inward remembers such ports for a while. A stale entry costs time and nothing else. It is safe for concurrent use.
type inward struct {
	mu    sync.Mutex // guards until
	until map[inwardPort]time.Time
}

func (i *inward) has(run carrel.RunID, port uint16, now time.Time) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return now.Before(i.until[inwardPort{run, port}])
}

func (i *inward) add(run carrel.RunID, port uint16, now time.Time) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.until == nil || len(i.until) >= maxInward {
		i.until = map[inwardPort]time.Time{}
	}
	if now.After(i.until[inwardPort{run, port}]) {
		i.until[inwardPort{run, port}] = now.Add(inwardTime)
	}
}
