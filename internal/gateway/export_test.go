package gateway

import (
	"context"
	"time"

	"carrel.dev/carrel/internal/carrel"
)

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

// Epoch is that of the box's run that the gateway knows of.
func (g *Gateway) Epoch(box carrel.BoxID) int64 { return g.routes.epoch(box) }

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

// HoldMemory takes all that is left for large messages on somebody's account, and has others wait for it only so long.
func (g *Gateway) HoldMemory(org carrel.OrgID, patience time.Duration) (leave func()) {
	g.memory.patience = patience
	leave, _ = g.memory.take(holder{org: org}, g.memory.total-g.memory.held())
	return leave
}

// Held is how much of what is divided is taken: shares of streams, and bytes of large messages.
func (g *Gateway) Held() (streams, memory int64) { return g.streams.held(), g.memory.held() }

// BodyPatience is how long bodies of nobody may take.
func (g *Gateway) BodyPatience(d time.Duration) { g.people.patience = d }
