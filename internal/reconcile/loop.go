package reconcile

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"carrel.dev/carrel/internal/store"
)

// Config of a Reconciler.
type Config struct {
	Store *store.Store
	// Holder names this process in leases, such as "control-1/reconcile". A process that comes back under the same name
	// takes its leases back at once; two processes must not have the same.
	Holder string
	// Shards is into how many parts the boxes are divided, each under a lease of its own; the same in every replica. Default 2: more
	// let more replicas share the work, and cost one query each for every wake-up.
	Shards int
	// LeaseTTL is how long a replica that died keeps others from its shards; default 10 s.
	LeaseTTL time.Duration
	// Poll is how often a shard looks without having been woken; default 1 s.
	Poll time.Duration
	// Batch is how many boxes one tick takes on; default 64.
	Batch int
	// Retention is how long deleted boxes can still be seen; default 30 days.
	Retention time.Duration
	// Now is the clock, the same as the store's; default time.Now.
	Now func() time.Time
	// Logger; default slog.Default().
	Logger *slog.Logger
	// Registerer gets the metrics; nil: nobody does.
	Registerer prometheus.Registerer
}

// Reconciler works on the shards whose leases it can get.
type Reconciler struct {
	cfg     Config
	store   *store.Store
	metrics *metrics
	fleets  fleetCache
}

// New checks the configuration.
func New(cfg Config) (*Reconciler, error) {
	switch {
	case cfg.Store == nil:
		return nil, errors.New("reconcile: a store is needed")
	case cfg.Holder == "":
		return nil, errors.New("reconcile: a name for the leases' holder is needed")
	}
	if cfg.Shards == 0 {
		cfg.Shards = 2
	}
	if cfg.Shards < 1 || cfg.Shards > 256 {
		return nil, fmt.Errorf("reconcile: %d shards; there can be 1 to 256", cfg.Shards)
	}
	cfg.LeaseTTL = orDefault(cfg.LeaseTTL, 10*time.Second)
	cfg.Poll = orDefault(cfg.Poll, time.Second)
	cfg.Retention = orDefault(cfg.Retention, 30*24*time.Hour)
	if cfg.Batch <= 0 {
		cfg.Batch = 64
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	m, err := newMetrics(cfg.Registerer)
	if err != nil {
		return nil, fmt.Errorf("reconcile: registering metrics: %w", err)
	}
	return &Reconciler{cfg: cfg, store: cfg.Store, metrics: m}, nil
}

func orDefault(d, fallback time.Duration) time.Duration {
	if d <= 0 {
		return fallback
	}
	return d
}

// Run works until ctx ends, then gives its leases back and answers nil.
func (r *Reconciler) Run(ctx context.Context) error {
	var g errgroup.Group
	for n := range r.cfg.Shards {
		d := &duty{r: r, name: fmt.Sprintf("boxes/%d/%d", n, r.cfg.Shards), label: "boxes", every: r.cfg.Poll, topics: []string{store.TopicBoxes}}
		// Replicas that start together each begin with what the other ends with, and so share the shards.
		rank := n
		if odd(r.cfg.Holder) {
			rank = r.cfg.Shards - 1 - n
		}
		d.patience = time.Duration(rank) * min(r.cfg.LeaseTTL/200, 50*time.Millisecond)
		d.tick = func(ctx context.Context, lease store.Lease) (bool, error) { return r.tickBoxes(ctx, lease, n) }
		g.Go(func() error { d.run(ctx); return nil })
	}
	nodes := &nodeWatch{r: r}
	g.Go(func() error {
		(&duty{r: r, name: "nodes", label: "nodes", every: 2 * r.cfg.Poll, begin: nodes.begin, tick: nodes.tick}).run(ctx)
		return nil
	})
	g.Go(func() error {
		(&duty{r: r, name: "chores", label: "chores", every: r.cfg.Poll, topics: []string{store.TopicImages}, tick: r.tickChores}).run(ctx)
		return nil
	})
	g.Go(func() error {
		(&duty{r: r, name: "policies", label: "policies", every: r.cfg.Poll, topics: []string{store.TopicPolicy}, tick: r.tickPolicies}).run(ctx)
		return nil
	})
	g.Go(func() error {
		(&duty{r: r, name: "prepare", label: "prepare", every: r.cfg.Poll, topics: []string{store.TopicPrepare, store.TopicImages}, tick: r.tickPrepare}).run(ctx)
		return nil
	})
	g.Go(func() error {
		(&duty{r: r, name: "prune", label: "prune", every: 60 * r.cfg.Poll, tick: r.tickPrune}).run(ctx)
		return nil
	})
	return g.Wait()
}

func odd(s string) bool {
	sum := 0
	for _, b := range []byte(s) {
		sum += int(b)
	}
	return sum%2 == 1
}

// duty is work that one replica at a time does under a lease.
type duty struct {
	r        *Reconciler
	name     string // of the lease
	label    string // in metrics
	every    time.Duration
	patience time.Duration // before the first try to get the lease
	topics   []string
	begin    func() // called with each new lease
	// tick does what is to be done, and reports whether there is more.
	tick func(context.Context, store.Lease) (more bool, err error)
}

// run gets the lease, works under it, and begins again when it is lost.
func (d *duty) run(ctx context.Context) {
	log := d.r.cfg.Logger.With("lease", d.name, "holder", d.r.cfg.Holder)
	var wake <-chan struct{}
	if len(d.topics) > 0 {
		sub := d.r.store.Listen(ctx, d.topics...)
		defer sub.Close()
		wake = sub.C
	}
	wait(ctx, d.patience)
	for ctx.Err() == nil {
		asked := time.Now()
		lease, ok, err := d.acquire(ctx)
		if err != nil && ctx.Err() == nil {
			log.Warn("lease not acquired", "error", err)
		}
		if err != nil || !ok {
			wait(ctx, d.r.cfg.LeaseTTL/10)
			continue
		}
		log.Debug("lease acquired", "term", lease.Term)
		d.r.metrics.held.Inc()
		d.hold(ctx, lease, asked, wake, log)
		d.r.metrics.held.Dec()
	}
}

// acquire asks for the lease and hears the answer even when ctx ends meanwhile: a lease that was given unheard would be given back by nobody.
func (d *duty) acquire(ctx context.Context) (store.Lease, bool, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), d.r.cfg.LeaseTTL/5)
	defer cancel()
	return d.r.store.AcquireLease(ctx, d.name, d.r.cfg.Holder, d.r.cfg.LeaseTTL)
}

// hold works under a lease until it is lost, can no longer be trusted, or ctx ends. What runs under it ends before it answers.
func (d *duty) hold(ctx context.Context, lease store.Lease, asked time.Time, wake <-chan struct{}, log *slog.Logger) {
	held, lose := context.WithCancel(ctx)
	var renewing sync.WaitGroup
	renewing.Add(1)
	go func() {
		defer renewing.Done()
		defer lose()
		d.renew(held, lease, asked, log)
	}()
	if d.begin != nil {
		d.begin()
	}
	d.work(held, lease, wake, log)
	lose()
	renewing.Wait()

	release, cancel := context.WithTimeout(context.WithoutCancel(ctx), d.r.cfg.LeaseTTL/5)
	defer cancel()
	if err := d.r.store.ReleaseLease(release, lease); err != nil {
		log.Debug("lease not released", "error", err)
	}
}

// renew keeps the lease and answers when it is lost or must not be trusted any longer: a fifth before its end, as counted from before
// it was asked for, so that neither a slow answer nor another machine's clock lets two replicas believe that they hold it.
func (d *duty) renew(ctx context.Context, lease store.Lease, asked time.Time, log *slog.Logger) {
	ttl := d.r.cfg.LeaseTTL
	trusted := asked.Add(ttl * 4 / 5)
	next := asked.Add(ttl / 3)
	for {
		if !wait(ctx, time.Until(next)) {
			return
		}
		asked := time.Now()
		attempt, cancel := context.WithDeadline(ctx, trusted)
		_, err := d.r.store.RenewLease(attempt, lease, ttl)
		cancel()
		switch {
		case err == nil:
			trusted, next = asked.Add(ttl*4/5), asked.Add(ttl/3)
		case errors.Is(err, store.ErrLeaseLost):
			log.Info("lease lost", "term", lease.Term)
			return
		case time.Now().Before(trusted):
			next = time.Now().Add(ttl / 20)
		default:
			if ctx.Err() == nil {
				log.Warn("lease not renewed in time", "term", lease.Term, "error", err)
			}
			return
		}
	}
}

// work ticks when woken, at least every so often, and again at once while there is more.
func (d *duty) work(ctx context.Context, lease store.Lease, wake <-chan struct{}, log *slog.Logger) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-wake:
		case <-timer.C:
		}
		for more := true; more && ctx.Err() == nil; {
			began := time.Now()
			var err error
			more, err = d.tick(ctx, lease)
			d.r.metrics.duration.WithLabelValues(d.label).Observe(time.Since(began).Seconds())
			switch {
			case errors.Is(err, store.ErrLeaseLost):
				log.Info("lease lost", "term", lease.Term)
				return
			case err != nil && ctx.Err() == nil:
				d.r.metrics.ticks.WithLabelValues(d.label, "error").Inc()
				log.Warn("tick", "error", err)
				more = false
			default:
				d.r.metrics.ticks.WithLabelValues(d.label, "ok").Inc()
			}
		}
		timer.Reset(d.every)
	}
}

// wait answers after a while, or with false when ctx ends.
func wait(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
