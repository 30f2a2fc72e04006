package gateway

import (
	"context"
	"fmt"
	"net"
	"sync"
	"time"

	"carrel.dev/carrel/internal/carrel"
)

// revokedNodes are the nodes that were removed from the cluster: this gateway speaks to them no more. It is safe for
// concurrent use.
type revokedNodes struct {
	mu  sync.RWMutex // guards ids
	ids map[carrel.NodeID]bool
}

// set replaces what is known and reports whether a node was added.
func (v *revokedNodes) set(peers []string) (more bool) {
	ids := map[carrel.NodeID]bool{}
	for _, id := range peers {
		if carrel.IDKind(id) == 'n' {
			ids[carrel.NodeID(id)] = true
		}
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	for id := range ids {
		more = more || !v.ids[id]
	}
	v.ids = ids
	return more
}

func (v *revokedNodes) has(id carrel.NodeID) bool {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.ids[id]
}

func errNodeRemoved(r route) error {
	return carrel.Errorf(carrel.CodePrecondition, "node_removed", "the node of box %s was removed from the cluster, and the box with it; ask an operator", r.Box)
}

// nodeConn is a connection to a proxy that its pool can cut.
type nodeConn struct {
	*net.TCPConn
	forget func()
}

// Close is part of net.Conn.
func (c *nodeConn) Close() error {
	c.forget()
	return c.TCPConn.Close()
}

// dialNode dials the proxy of a node, and keeps the connection where revoke finds it.
func (p *proxyPool) dialNode(node carrel.NodeID) func(context.Context, string, string) (net.Conn, error) {
	dialer := net.Dialer{Timeout: 5 * time.Second, KeepAlive: 15 * time.Second}
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := dialer.DialContext(ctx, network, address)
		if err != nil {
			return nil, err
		}
		tcp, ok := conn.(*net.TCPConn)
		if !ok {
			_ = conn.Close()
			return nil, fmt.Errorf("dial %s: %T is no TCP connection", address, conn)
		}
		c := &nodeConn{TCPConn: tcp}
		c.forget = func() {
			p.mu.Lock()
			defer p.mu.Unlock()
			delete(p.conns, c)
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		p.conns[c] = node
		return c, nil
	}
}

// revoke cuts every connection to nodes that were removed.
func (p *proxyPool) revoke(removed *revokedNodes) {
	p.mu.Lock()
	var cut []*nodeConn
	for c, node := range p.conns {
		if removed.has(node) {
			cut = append(cut, c)
		}
	}
	p.mu.Unlock()
	for _, c := range cut {
		_ = c.Close() // it is given up
	}
}
