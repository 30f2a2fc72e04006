package node

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	linkv1 "carrel.dev/carrel/api/carrel/link/v1"
	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/node/proxy"
	"carrel.dev/carrel/internal/runtime"
)

const (
	retryMin = 50 * time.Millisecond
	retryMax = 5 * time.Second
	// cleanupTime bounds what is done after the cause of a step is gone: undoing, destroying.
	cleanupTime = 2 * time.Minute
	// exitTime is how long is waited to hear how a sandbox ended that is known to have ended.
	exitTime = 2 * time.Second
)

// errSuperseded is the cause with which a step is cancelled because another order came.
var errSuperseded = errors.New("another order came")

// worker brings one run to where its order wants it, one step after the other. Only its goroutine touches
// what is not guarded by mu.
type worker struct {
	d     *Daemon
	log   *slog.Logger
	box   carrel.BoxID
	epoch int64
	image string // digest

	e       *entry
	sandbox sandboxState
	unknown bool // sandbox is not known: look before the next step
	// restarted: what is there was made by a former process.
	restarted bool
	forgotten bool
	watch     *watch
	life      context.Context // of run: what outlives a step depends on it
	// strange is since when the agent was told in vain whose the box is; zero: it was not.
	strange time.Time

	wake chan struct{}
	over chan struct{} // closed when nothing of the run is left on this machine
	// hurried ends when somebody waits for over, or nobody needs the run's snapshot.
	hurried context.Context
	hurry   context.CancelFunc

	mu       sync.Mutex // guards what follows
	current  order
	desired  bool                    // the newest desired set names the run
	doing    step                    // the step that is being done
	doingFor order                   // for which order
	cancel   context.CancelCauseFunc // of that step
	toldTo   int64                   // control has the reports up to this sequence
	alive    bool                    // for lost
	base     carrel.SnapshotID       // that it begins from, while it may be needed
	// Of the policy: for an order of the generation unusedFor, the time after which use undoes it; and the CPU above which the box counts
	// as used.
	unusedSince time.Time
	unusedFor   int64
	busy        int64
	owner       owner // whose the box is
}

// watch waits for the end of a sandbox.
type watch struct {
	cancel context.CancelFunc
	over   context.Context // ends when the sandbox has ended, or the watch
	done   <-chan struct{} // of over
	exit   runtime.Exit    // read after done is closed; empty: none was seen
}

func newWorker(d *Daemon, e *entry) *worker {
	w := &worker{
		d: d, log: d.log.With("run", e.Run, "box", e.Box), box: e.Box, epoch: e.Epoch, image: e.Spec.ImageDigest, e: e, sandbox: sandboxAbsent, wake: make(chan struct{}, 1), over: make(chan struct{}),
		current: order{e.Order, e.OrderGeneration}, desired: true, alive: e.Stage != stageEnded,
	}
	w.hurried, w.hurry = context.WithCancel(context.Background())
	switch e.Stage {
	case stageEnded:
		close(w.over)
	case stageClearing:
		w.alive = false
	default:
		w.base = e.Spec.SnapshotID
	}
	return w
}

// order takes a newer order, and interrupts a step that it makes pointless.
func (w *worker) order(o order) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if o.kind == carrel.OrderNone || o == w.current {
		return
	}
	w.current = o
	if w.cancel != nil && interrupts(w.doing, w.doingFor, o) {
		w.cancel(errSuperseded)
	}
	w.poke()
}

// interrupts reports whether a step that is done for one order has to be cut short for the next.
func interrupts(doing step, during, next order) bool {
	switch doing {
	case stepStart, stepSalvage, stepCommit, stepClear:
		return next.kind == carrel.OrderDestroy
	case stepCapture, stepIdentify:
		return next.kind != during.kind
	}
	return false
}

// policy takes what the policy has to do with an order; it is told before the order.
func (w *worker) policy(run *linkv1.DesiredRun) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.busy, w.unusedFor, w.unusedSince = run.GetBusyCpuMillis(), run.GetGeneration(), time.Time{}
	if run.GetIdleSince() != nil {
		w.unusedSince = run.GetIdleSince().AsTime()
	}
}

// stillUnused fails with errActive if an order that was given because nobody uses the box has become pointless, and with another error
// if that cannot be found out. Orders of users are never pointless.
func (w *worker) stillUnused(ctx context.Context, o order) error {
	w.mu.Lock()
	since, is := w.unusedSince, w.unusedFor == o.generation
	m := measured{w.e.Run, w.epoch, w.busy}
	w.mu.Unlock()
	if !is || since.IsZero() {
		return nil
	}
	if w.sandbox == sandboxRunning {
		w.d.use.measure(m)
	}
	used, err := w.d.use.usedSince(ctx, m, since)
	if err == nil && used {
		return errActive
	}
	return err
}

// named says whether the newest desired set names the run.
func (w *worker) named(is bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.desired != is {
		w.desired = is
		w.poke()
	}
}

func (w *worker) told(sequence int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.toldTo = max(w.toldTo, sequence)
	w.poke()
}

// lost reports whether the run lives and control does not name it.
func (w *worker) lost() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.alive && !w.desired
}

// finishing reports whether the run is over and not yet gone.
func (w *worker) finishing() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	select {
	case <-w.over:
		return false
	default:
		return !w.alive
	}
}

// usesImage reports whether the run was begun with an image and something of it is left.
func (w *worker) usesImage(digest string) bool {
	if w.image != digest {
		return false
	}
	select {
	case <-w.over:
		return false
	default:
		return true
	}
}

// uses reports whether the run still needs the snapshot that it begins from.
func (w *worker) uses(id carrel.SnapshotID) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.base == id
}

func (w *worker) poke() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

func (w *worker) wanted() order {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.current
}

// run works until ctx ends or the run is forgotten.
func (w *worker) run(ctx context.Context) {
	w.life = ctx
	defer w.stopWatching()
	pause := retryMin
	for w.restarted && ctx.Err() == nil {
		if err := w.adopt(ctx); err != nil {
			w.log.Error("the runtime does not say what it has", "error", err)
			w.sleep(ctx, &pause)
		}
	}
	for ctx.Err() == nil {
		if w.unknown {
			if err := w.look(ctx); err != nil {
				w.log.Error("the runtime does not say what it has", "error", err)
				w.sleep(ctx, &pause)
				continue
			}
			if _, ended := w.exit(); w.live() && (w.watch == nil || ended) {
				// It is there although its end was told, or nobody waits for its end.
				w.watchExit()
				w.sleep(ctx, &pause)
			}
		}
		o := w.wanted()
		s := seen{sandbox: w.sandbox, identity: w.newOwner().identity}
		if m := w.d.snapshots.of(w.e.Run); m != nil {
			s.sealed = m.Kind
		}
		next := nextStep(w.e, s, o)
		if next == stepNothing {
			pause = retryMin
			if w.forget() {
				return
			}
			w.rest(ctx)
			continue
		}
		if err := w.do(ctx, next, o); err != nil {
			w.unknown = true
			if ctx.Err() != nil {
				return
			}
			w.log.Warn("a step of a run did not succeed; it is tried again if it is still wanted", "step", next, "error", err)
			w.sleep(ctx, &pause)
			continue
		}
		pause = retryMin
	}
}

// do does one step, which another order may cut short.
func (w *worker) do(ctx context.Context, next step, o order) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	w.mu.Lock()
	if w.current != o {
		w.mu.Unlock()
		return nil // look again
	}
	w.doing, w.doingFor, w.cancel = next, o, cancel
	w.mu.Unlock()
	defer func() {
		w.mu.Lock()
		w.cancel = nil
		w.alive = w.e.Stage != stageEnded && w.e.Stage != stageClearing
		if !w.alive {
			w.base = ""
		}
		w.mu.Unlock()
		if w.e.Stage == stageEnded {
			close(w.over) // there is no step after it
		}
	}()
	began := w.d.now()
	var err error
	switch next {
	case stepStart:
		err = w.start(ctx, o)
	case stepCapture:
		err = w.capture(ctx, o)
	case stepUndo:
		err = w.undo(ctx)
	case stepCommit:
		err = w.commit(ctx, o)
	case stepClear:
		err = w.finish(ctx)
	case stepSalvage:
		err = w.salvage(ctx)
	case stepDestroy:
		err = w.destroy(ctx, o)
	case stepIdentify:
		err = w.identify(ctx, o)
	case stepAnnounce:
		err = w.announce(o)
	}
	w.d.metrics.step(next, w.d.now().Sub(began), err)
	return err
}

// rest waits until there may be something to do.
func (w *worker) rest(ctx context.Context) {
	var died <-chan struct{}
	if w.watch != nil {
		died = w.watch.done
	}
	select {
	case <-w.wake:
	case <-died:
		w.unknown = true
	case <-ctx.Done():
	}
}

// sleep waits before another try, longer each time; a new order cuts it short.
func (w *worker) sleep(ctx context.Context, pause *time.Duration) {
	timer := time.NewTimer(*pause)
	defer timer.Stop()
	*pause = min(2**pause, retryMax)
	select {
	case <-timer.C:
	case <-w.wake:
	case <-ctx.Done():
	}
}

func (w *worker) live() bool { return w.sandbox == sandboxRunning || w.sandbox == sandboxFrozen }

// look asks the runtime what there is of the run.
func (w *worker) look(ctx context.Context) error {
	list, err := w.d.runtime.List(ctx)
	if err != nil {
		return err
	}
	w.sandbox = stateOf(list, w.e.Run)
	w.unknown = false
	return nil
}

// adopt takes over what a former process left running.
func (w *worker) adopt(ctx context.Context) error {
	if w.unknown {
		if err := w.look(ctx); err != nil {
			return err
		}
	}
	w.restarted = false
	if w.e.Report != nil {
		w.d.reporter.settle(w.e, *w.e.Report)
	}
	if w.e.Stage == stageRunning || w.e.Stage == stageCommitting {
		if w.live() {
			w.log.Info("a box is adopted", "state", w.sandbox)
			w.watchExit()
			if w.e.Key != "" {
				w.d.routes.set(w.route(w.sandbox == sandboxRunning))
			}
		}
	}
	return nil
}

func (w *worker) route(open bool) proxy.Route {
	return proxy.Route{Box: w.e.Box, Org: w.e.Org, Run: w.e.Run, Epoch: w.e.Epoch, Address: w.e.Network.Agent(), Key: w.e.Key, Open: open}
}

// watchExit begins to wait for the end of the sandbox.
func (w *worker) watchExit() {
	w.stopWatching()
	ctx, cancel := context.WithCancel(w.life)
	over, end := context.WithCancel(context.Background())
	v := &watch{cancel: cancel, over: over, done: over.Done()}
	w.watch = v
	go func() {
		defer end()
		pause := retryMin
		for {
			exit, err := w.d.runtime.Wait(ctx, string(w.e.Run))
			if err == nil {
				v.exit = exit
				return
			}
			if ctx.Err() != nil || errors.Is(err, runtime.ErrNotFound) {
				return
			}
			w.log.Warn("the end of a sandbox cannot be waited for; it is tried again", "error", err)
			timer := time.NewTimer(pause)
			select {
			case <-timer.C:
			case <-ctx.Done():
				timer.Stop()
			}
			pause = min(2*pause, retryMax)
		}
	}()
}

// stopWatching ends the wait. A watch that was ended by itself is kept for its exit until then.
func (w *worker) stopWatching() {
	if w.watch != nil {
		w.watch.cancel()
		<-w.watch.done
		w.watch = nil
	}
}

// lastExit says how a sandbox that is gone ended, as far as anybody knows.
func (w *worker) lastExit(ctx context.Context) runtime.Exit {
	ctx, cancel := context.WithTimeout(ctx, exitTime)
	defer cancel()
	if w.watch == nil {
		exit, err := w.d.runtime.Wait(ctx, string(w.e.Run))
		if err != nil {
			return runtime.Exit{}
		}
		return exit
	}
	select {
	case <-w.watch.done:
		return w.watch.exit
	case <-ctx.Done():
		return runtime.Exit{}
	}
}

// exit says how the sandbox ended, if the watch is over; the exit is empty if it was over without one.
func (w *worker) exit() (runtime.Exit, bool) {
	if w.watch == nil {
		return runtime.Exit{}, false
	}
	select {
	case <-w.watch.done:
		return w.watch.exit, true
	default:
		return runtime.Exit{}, false
	}
}

// put writes the entry with the newest order.
func (w *worker) put() error {
	o := w.wanted()
	w.e.Order, w.e.OrderGeneration = o.kind, o.generation
	return w.d.ledger.put(w.e)
}

// change changes the entry and writes it; when it cannot be written, it is as it was.
func (w *worker) change(f func(e *entry)) error {
	was := *w.e
	f(w.e)
	if err := w.put(); err != nil {
		*w.e = was
		return err
	}
	return nil
}

// report makes a report; the entry remembers it if it settles something.
func (w *worker) report(phase carrel.Phase, generation int64) report {
	w.e.Sequence++
	return report{
		Phase: phase, Generation: generation, Sequence: w.e.Sequence, Time: w.d.now(), StartedFrom: w.e.StartedFrom, Notice: w.e.Notice,
		CloneFailure: w.e.CloneFailure,
	}
}

// settle changes the entry, writes it with a report and sends that.
func (w *worker) settle(r report, f func(e *entry)) error {
	err := w.change(func(e *entry) {
		f(e)
		e.Report, e.Generation = &r, max(e.Generation, r.Generation)
	})
	if err != nil {
		return err
	}
	w.d.reporter.settle(w.e, r)
	return nil
}

// passing sends a report that nobody waits for.
func (w *worker) passing(phase carrel.Phase, generation int64) {
	w.d.reporter.passing(w.e, w.report(phase, generation))
}

// announce tells control that the box runs for a newer intent, too.
func (w *worker) announce(o order) error {
	return w.settle(w.report(carrel.PhaseRunning, o.generation), func(e *entry) { e.FailedOrder, e.FailedGeneration = "", 0 })
}

// forget removes an ended run from the ledger once control has its last report and does not name it any more.
func (w *worker) forget() bool {
	if w.e.Stage != stageEnded {
		return false
	}
	may := func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return !w.desired && w.e.Report != nil && w.toldTo >= w.e.Report.Sequence
	}
	if !may() {
		return false
	}
	if err := w.d.ledger.remove(w.e.Run); err != nil {
		w.log.Error("an ended run could not be forgotten", "error", err)
		return false
	}
	w.forgotten = true
	return true
}
