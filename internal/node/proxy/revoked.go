package proxy

import (
	"context"
	"net/http"
	"sync"

	"carrel.dev/carrel/internal/auth"
)

// gateways knows what is open to each gateway, and which of them were removed from the cluster. It is safe for
// concurrent use.
type gateways struct {
	mu      sync.Mutex // guards what follows
	revoked map[string]bool
	open    map[string]map[*stream]struct{} // by gateway
}

func newGateways() *gateways {
	return &gateways{open: map[string]map[*stream]struct{}{}}
}

// revoke replaces the removed ones and cuts what is open to them.
func (g *gateways) revoke(ids []string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.revoked = make(map[string]bool, len(ids))
	for _, id := range ids {
		g.revoked[id] = true
		for s := range g.open[id] {
			s.cancel()
		}
	}
}

// enter notes a request of a gateway, which cancel ends; leave must be called at its end. It is false for one that was
// removed.
func (g *gateways) enter(id string, cancel context.CancelFunc) (leave func(), ok bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.revoked[id] {
		return nil, false
	}
	s := &stream{cancel: cancel}
	if g.open[id] == nil {
		g.open[id] = map[*stream]struct{}{}
	}
	g.open[id][s] = struct{}{}
	return func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		delete(g.open[id], s)
		if len(g.open[id]) == 0 {
			delete(g.open, id)
		}
	}, true
}

// fromGateways lets requests of gateways of the cluster through and cuts them when their gateway is removed.
func (p *Proxy) fromGateways(next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		peer, err := auth.PeerIdentity(r.TLS)
		if err != nil || peer.Role != auth.PeerGateway {
			p.answer(w, r, refuse(http.StatusForbidden, "not_a_gateway", "only gateways may connect"))
			return
		}
		ctx, cancel := context.WithCancel(r.Context())
		defer cancel()
		leave, ok := p.table.gateways.enter(peer.ID, cancel)
		if !ok {
			p.answer(w, r, refuse(http.StatusForbidden, "gateway_revoked", "this gateway was removed from the cluster"))
			return
		}
		defer leave()
		next(w, r.WithContext(ctx))
	}
}
