package gateway

import "context"

// Renew is one renewal, which Run makes at half of the certificate's life.
func (g *Gateway) Renew(ctx context.Context) error { return g.renew(ctx) }

// Certificate is the one in use.
func (g *Gateway) Certificate() []byte { return g.identity.current().cert.Certificate[0] }

// CutAll ends the right to every open stream.
func (g *Gateway) CutAll(err error) {
	for _, one := range g.guards.list() {
		g.cut(one.guarded, err)
	}
}

// AgentCalls is how many calls to agents are counted as under way.
func (g *Gateway) AgentCalls() int {
	g.agents.mu.Lock()
	defer g.agents.mu.Unlock()
	calls := 0
	for _, conn := range g.agents.conns {
		conn.mu.Lock()
		calls += conn.used
		conn.mu.Unlock()
	}
	return calls
}
