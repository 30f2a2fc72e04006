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
	pass   pass // the table's lock guards it
	cancel func(error)
}

// guards has every open stream of every caller. It is safe for concurrent use.
type guards struct {
	mu   sync.Mutex // guards open
	open map[*guarded]struct{}
}

func newGuards() *guards { return &guards{open: map[*guarded]struct{}{}} }

// list is a copy of all that is open.
func (s *guards) list() []guardedNow {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]guardedNow, 0, len(s.open))
	for one := range s.open {
		all = append(all, guardedNow{one, one.pass})
	}
	return all
}

// guardedNow is an open stream with its pass of this moment.
type guardedNow struct {
	*guarded
	pass pass
}

// renewed gives a stream a newer pass.
func (s *guards) renewed(one *guarded, p pass) {
	s.mu.Lock()
	one.pass = p
	s.mu.Unlock()
}

// guard registers an open stream: cancel is called, once at most, with what to tell its user when their right ends, within
// a second while control is there, or when there is no room for the stream. It may be called from any goroutine, also before guard returns, and must
// not block. release ends the watch and must be called at the stream's end; it may be called again.
func (g *Gateway) guard(p pass, cancel func(error)) (release func()) {
	leave := func() {}
	if p.Box != "" {
		var room bool
		if leave, room = g.streams.take(p.holder(), 1); !room {
			g.noRoom(p)
			cancel(errTooManyStreams(p.Box))
			return leave
		}
	}
	one := &guarded{pass: p, cancel: cancel}
	g.guards.mu.Lock()
	g.guards.open[one] = struct{}{}
	g.guards.mu.Unlock()
	// What came between the check of the pass and now would be missed else.
	if err := g.ended(p); err != nil {
		g.cut(one, err)
	}
	return func() {
		g.guards.mu.Lock()
		delete(g.guards.open, one)
		g.guards.mu.Unlock()
		leave()
	}
}

// noRoom notes that a stream was refused.
func (g *Gateway) noRoom(p pass) {
	g.metrics.refusedStreams.Inc()
	g.log.Info("no room for a stream", "box", p.Box, "org", p.Org, "user", p.User)
}

// cut ends a stream, unless it has ended already.
func (g *Gateway) cut(one *guarded, err error) {
	g.guards.mu.Lock()
	_, open := g.guards.open[one]
	p := one.pass
	delete(g.guards.open, one)
	g.guards.mu.Unlock()
	if !open {
		return
	}
	g.metrics.cuts.WithLabelValues(carrel.ReasonOf(err)).Inc()
	g.log.Info("a stream was cut", "box", p.Box, "user", p.User, "reason", carrel.ReasonOf(err))
	one.cancel(err)
}

// ended says why a pass is good no more before its time; nil: it is.
func (g *Gateway) ended(p pass) error {
	if p.header == headerPortPass && p.openPort == 0 && !g.now().Before(p.Expires) {
		return carrel.Errorf(carrel.CodeUnauthorized, "url_expired", "the signed URL of this port of box %s has ended; ask for another one", p.Box)
	}
	if p.openPort != 0 {
		rule, _ := g.routes.port(p.Box, p.openPort)
		open := rule.Visibility == visibilityPublic || rule.Visibility == visibilityOrg && p.User != ""
		if !open && g.routes.epoch(p.Box) == p.Epoch {
			return carrel.Errorf(carrel.CodeUnauthorized, "port_closed", "port %d of box %s is not open to everybody now", p.openPort, p.Box)
		}
	}
	return g.grants.good(p)
}

// sweep cuts the streams whose right has ended.
func (g *Gateway) sweep() {
	for _, one := range g.guards.list() {
		if err := g.ended(one.pass); err != nil {
			g.cut(one.guarded, err)
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
			g.sweep() // signed URLs end by themselves
			g.renewTickets(ctx)
		case <-ctx.Done():
			return nil
		}
	}
}

func (g *Gateway) renewTickets(ctx context.Context) {
	due := map[exchangeKey][]guardedNow{}
	for _, one := range g.guards.list() {
		// Somebody of whom control told nothing may have got their right and lost it between two of its looks: then it will not tell.
		untold := one.pass.User != "" && !g.grants.heardOf(one.pass.User)
		if x := one.pass.exchange; x != nil && (untold || one.pass.Expires.Sub(g.now()) < carrel.TicketLifetime/2) {
			due[x.key] = append(due[x.key], one)
		}
	}
	for _, streams := range due {
		fresh, err := g.tokens.renew(ctx, streams[0].pass)
		for _, one := range streams {
			switch {
			case err == nil:
				g.guards.renewed(one.guarded, fresh)
			case refused(err):
				g.cut(one.guarded, err)
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
