package agent

import (
	"context"
	"sync"
	"time"

	"carrel.dev/carrel/internal/carrel"
)

// gate lets starts of processes pass, or keeps them out for a time. It is safe for concurrent use.
type gate struct {
	mu     sync.Mutex
	inside int
	shut   bool
	lease  *time.Timer   // opens a shut gate
	empty  chan struct{} // closed when nobody is inside; nil: nobody waits for that
}

// enter is followed by leave, unless it refuses.
func (g *gate) enter() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.shut {
		err := carrel.Errorf(carrel.CodeUnavailable, "box_quiesced", "the box is being paused or stopped and starts nothing now; try again in a moment")
		err.RetryAfter = time.Second
		return err
	}
	g.inside++
	return nil
}

func (g *gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.inside--
	if g.inside == 0 && g.empty != nil {
		close(g.empty)
		g.empty = nil
	}
}

// close refuses starts until open or the end of the lease, and waits until those under way are done.
func (g *gate) close(ctx context.Context, lease time.Duration) error {
	g.mu.Lock()
	g.shut = true
	if g.lease != nil {
		g.lease.Stop()
	}
	var timer *time.Timer
	timer = time.AfterFunc(lease, func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		if g.lease == timer {
			g.shut, g.lease = false, nil
		}
	})
	g.lease = timer
	if g.inside == 0 {
		g.mu.Unlock()
		return nil
	}
	if g.empty == nil {
		g.empty = make(chan struct{})
	}
	empty := g.empty
	g.mu.Unlock()
	select {
	case <-empty:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (g *gate) open() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.shut = false
	if g.lease != nil {
		g.lease.Stop()
		g.lease = nil
	}
}
