package node

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/node/proxy"
)

const (
	// routesAgain is how often the whole table is told, whatever the proxy knows.
	routesAgain = 30 * time.Second
	proxyTime   = 5 * time.Second
)

// routes keeps the proxy's table as it should be. Nobody waits for it: a proxy that is away is told everything when
// it is back. It is safe for concurrent use.
type routes struct {
	d    *Daemon
	wake chan struct{}

	// sending is held from the look at the table to the proxy's answer: else an older route could come after a newer.
	sending sync.Mutex

	mu      sync.Mutex // guards what follows
	table   map[carrel.RunID]proxy.Route
	changed map[carrel.RunID]bool
	all     bool // the proxy's state is not known
	heard   bool // the proxy has been told who it is
}

func newRoutes(d *Daemon) *routes {
	return &routes{d: d, wake: make(chan struct{}, 1), table: map[carrel.RunID]proxy.Route{}, changed: map[carrel.RunID]bool{}, all: true}
}

// set changes one route, soon.
func (r *routes) set(route proxy.Route) {
	r.mu.Lock()
	r.table[route.Run] = route
	r.changed[route.Run] = true
	r.mu.Unlock()
	r.poke()
}

// setNow changes one route and answers when the proxy has it.
func (r *routes) setNow(ctx context.Context, route proxy.Route) error {
	r.mu.Lock()
	r.table[route.Run] = route
	delete(r.changed, route.Run)
	r.mu.Unlock()
	r.sending.Lock()
	defer r.sending.Unlock()
	ctx, cancel := context.WithTimeout(ctx, proxyTime)
	defer cancel()
	err := r.d.proxy.SetRoute(ctx, route)
	if err != nil {
		r.again()
	}
	return err
}

// remove takes a route away, soon. It may be missing.
func (r *routes) remove(run carrel.RunID) {
	r.mu.Lock()
	delete(r.table, run)
	r.changed[run] = true
	r.mu.Unlock()
	r.poke()
}

// told says why the proxy does not know everything, nil if it does.
func (r *routes) told(context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.all || !r.heard {
		return errors.New("the proxy does not answer")
	}
	return nil
}

// again has everything told once more.
func (r *routes) again() {
	r.mu.Lock()
	r.all = true
	r.mu.Unlock()
	r.poke()
}

func (r *routes) poke() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

func (r *routes) run(ctx context.Context) error {
	again := time.NewTicker(routesAgain)
	defer again.Stop()
	pause := retryMin
	silent := false
	for {
		err := r.push(ctx)
		var retry <-chan time.Time
		if err != nil && ctx.Err() == nil {
			if !silent {
				r.d.log.Warn("the proxy does not take its routes; it is tried again", "error", err)
			}
			silent = true
			retry = time.After(pause)
			pause = min(2*pause, time.Second)
		} else {
			if silent {
				r.d.log.Info("the proxy has its routes")
			}
			pause, silent = retryMin, false
		}
		select {
		case <-r.wake:
		case <-retry:
		case <-again.C:
			r.mu.Lock()
			r.all = true
			r.mu.Unlock()
		case <-ctx.Done():
			return nil
		}
	}
}

// push tells the proxy what it does not know.
func (r *routes) push(ctx context.Context) error {
	r.sending.Lock()
	defer r.sending.Unlock()
	ctx, cancel := context.WithTimeout(ctx, proxyTime)
	defer cancel()
	r.mu.Lock()
	all := r.all
	whole := slices.Collect(maps.Values(r.table))
	changed := r.changed
	var some []proxy.Route
	for run := range changed {
		some = append(some, r.table[run]) // empty if it was taken away
	}
	gone := slices.Collect(maps.Keys(changed))
	r.all, r.changed = false, map[carrel.RunID]bool{}
	r.mu.Unlock()
	err := func() error {
		if all {
			if identity, ok := r.d.link.proxyIdentity(); ok {
				if err := r.d.proxy.SetIdentity(ctx, identity); err != nil {
					return err
				}
				r.mu.Lock()
				r.heard = true
				r.mu.Unlock()
			}
			return r.d.proxy.SetRoutes(ctx, whole)
		}
		for i, run := range gone {
			var err error
			if some[i].Run == "" {
				err = r.d.proxy.RemoveRoute(ctx, run)
			} else {
				err = r.d.proxy.SetRoute(ctx, some[i])
			}
			if err != nil {
				return err
			}
		}
		return nil
	}()
	if err != nil {
		r.mu.Lock()
		r.all = true
		r.mu.Unlock()
	}
	return err
}
