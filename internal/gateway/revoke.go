package gateway

import (
	"context"
	"sync"
	"time"

	"carrel.dev/carrel/internal/carrel"
)

// renewEvery is how often open streams are looked through for passes that want a new ticket.
const renewEvery = 15 * time.Second

// guarded is one open stream and the right by which it is open.
type guarded struct {
	pass   pass
	cancel func(error)
}

// guards has every open stream of every caller. It is safe for concurrent use.
type guards struct {
	mu   sync.Mutex // guards open
	open map[*guarded]struct{}
}

func newGuards() *guards { return &guards{open: map[*guarded]struct{}{}} }

func (s *guards) list() []*guarded {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]*guarded, 0, len(s.open))
	for one := range s.open {
		all = append(all, one)
	}
	return all
}

func (s *guards) has(one *guarded) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, open := s.open[one]
	return open
}

// guard registers an open stream: cancel is called, once at most, with what to tell its user when their right ends, within
// a second while control is there. It may be called from any goroutine, also before guard returns, and must not block.
// release ends the watch and must be called at the stream's end; it may be called again.
func (g *Gateway) guard(p pass, cancel func(error)) (release func()) {
	one := &guarded{pass: p, cancel: cancel}
	g.guards.mu.Lock()
	g.guards.open[one] = struct{}{}
	g.guards.mu.Unlock()
	// What came between the check of the pass and now would be missed else.
	if err := g.grants.good(p); err != nil {
		g.cut(one, err)
	}
	return func() {
		g.guards.mu.Lock()
		delete(g.guards.open, one)
		g.guards.mu.Unlock()
	}
}

// cut ends a stream, unless it has ended already.
func (g *Gateway) cut(one *guarded, err error) {
	g.guards.mu.Lock()
	_, open := g.guards.open[one]
	delete(g.guards.open, one)
	g.guards.mu.Unlock()
	if !open {
		return
	}
	g.metrics.cuts.WithLabelValues(carrel.ReasonOf(err)).Inc()
	g.log.Info("a stream was cut", "box", one.pass.Box, "user", one.pass.User, "reason", carrel.ReasonOf(err))
	one.cancel(err)
}

// sweep cuts the streams whose right has ended.
func (g *Gateway) sweep() {
	for _, one := range g.guards.list() {
		if err := g.grants.good(one.pass); err != nil {
			g.cut(one, err)
		}
	}
}

// keepRenewedTickets exchanges API tokens anew while streams are open by them: so control is asked, at least twice in the life of a ticket,
// whether the token still gives the right. A definite no cuts the stream; no answer changes nothing.
func (g *Gateway) keepRenewedTickets(ctx context.Context) error {
	ticker := time.NewTicker(renewEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			g.renewTickets(ctx)
		case <-ctx.Done():
			return nil
		}
	}
}

func (g *Gateway) renewTickets(ctx context.Context) {
	due := map[exchangeKey][]*guarded{}
	for _, one := range g.guards.list() {
		if x := one.pass.exchange; x != nil && one.pass.Expires.Sub(g.now()) < carrel.TicketLifetime/2 {
			due[x.key] = append(due[x.key], one)
		}
	}
	for _, streams := range due {
		fresh, err := g.tokens.renew(ctx, streams[0].pass)
		for _, one := range streams {
			switch {
			case err == nil:
				g.guards.mu.Lock()
				one.pass = fresh
				g.guards.mu.Unlock()
			case refused(err):
				g.cut(one, err)
			}
		}
	}
}

// refused reports whether control said no, as opposed to nothing, or that the box does not run.
func refused(err error) bool {
	switch carrel.CodeOf(err) {
	case carrel.CodeUnauthorized, carrel.CodeNotFound, carrel.CodeDenied:
		return true
	}
	return false
}
