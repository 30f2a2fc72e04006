package node

import (
	"context"
	"maps"
	"slices"
	"sync"

	"golang.org/x/sync/semaphore"

	linkv1 "carrel.dev/carrel/api/carrel/link/v1"
	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/runtime"
)

// manager has one worker for each run that the ledger knows.
type manager struct {
	d     *Daemon
	heavy *semaphore.Weighted // starts and captures at once

	mu         sync.Mutex // guards the rest
	workers    map[carrel.RunID]*worker
	quarantine map[carrel.RunID]bool // sandboxes that no ledger entry explains
	started    bool
	ctx        context.Context // of run
	group      sync.WaitGroup
	drops      map[carrel.SnapshotID]bool // being removed
	doomed     []string                   // that control named last
}

func newManager(d *Daemon, content ledgerContent, sandboxes []runtime.Sandbox, quarantine map[carrel.RunID]bool) *manager {
	m := &manager{
		d: d, heavy: semaphore.NewWeighted(int64(startsAtOnce())), workers: map[carrel.RunID]*worker{},
		quarantine: quarantine, drops: map[carrel.SnapshotID]bool{},
	}
	for _, e := range content.entries {
		w := newWorker(d, e)
		w.sandbox = stateOf(sandboxes, e.Run)
		w.restarted = true
		m.workers[e.Run] = w
	}
	if content.desired != nil {
		m.apply(content.desired)
	}
	return m
}

// run starts the workers and waits for the end of ctx and of theirs.
func (m *manager) run(ctx context.Context) error {
	m.mu.Lock()
	m.ctx, m.started = ctx, true
	for _, w := range m.workers {
		m.launch(w)
	}
	m.mu.Unlock()
	<-ctx.Done()
	// No worker is launched any more: apply looks at ctx under the mutex.
	m.mu.Lock()
	m.started = false
	m.mu.Unlock()
	m.group.Wait()
	return nil
}

// launch needs mu.
func (m *manager) launch(w *worker) {
	ctx := m.ctx
	m.group.Go(func() {
		w.run(ctx)
		if w.forgotten {
			m.mu.Lock()
			delete(m.workers, w.e.Run)
			m.mu.Unlock()
		}
	})
}

// apply gives the orders of a desired set to the workers. The set is in the ledger already.
func (m *manager) apply(set *linkv1.DesiredSet) {
	m.mu.Lock()
	defer m.mu.Unlock()
	named := map[carrel.RunID]bool{}
	for _, run := range set.GetRuns() {
		id := carrel.RunID(run.GetRunId())
		named[id] = true
		w := m.workers[id]
		if w == nil {
			if w = m.newRun(run); w == nil {
				continue
			}
		} else if w.epoch != run.GetEpoch() {
			m.d.log.Error("an order names another epoch of a run; it is refused", "run", id, "epoch", run.GetEpoch(), "known", w.epoch)
			continue
		}
		w.policy(run)
		w.handOver(run)
		w.order(order{orderOf(run.GetOrder()), run.GetGeneration()})
	}
	for id, w := range m.workers {
		w.named(named[id])
	}
	m.doomed = set.GetDropSnapshots()
	m.dropDoomed()
	m.d.chores.apply(set.GetChores(), set.GetDropImages())
}

// newRun makes the worker of a run that was not known; it needs mu.
func (m *manager) newRun(run *linkv1.DesiredRun) *worker {
	id := carrel.RunID(run.GetRunId())
	destroy := orderOf(run.GetOrder()) == carrel.OrderDestroy
	e, err := m.d.newEntry(run, m.quarantine[id] && !destroy)
	if err != nil {
		m.d.log.Error("an order for an unknown run cannot be followed", "run", id, "error", err)
		return nil
	}
	w := newWorker(m.d, e)
	if m.quarantine[id] {
		m.d.log.Warn("a sandbox in quarantine is taken over by an order", "run", id, "order", e.Order)
		w.unknown, w.restarted = true, true
		delete(m.quarantine, id)
	}
	m.workers[id] = w
	if m.started && m.ctx.Err() == nil {
		m.launch(w)
	}
	return w
}

// tidy tries again what could not be removed.
func (m *manager) tidy() {
	m.mu.Lock()
	m.dropDoomed()
	m.mu.Unlock()
	m.d.chores.poke()
}

// whoNeeds says what on this node needs an image, whatever control knows of it: a run, a snapshot, or a sandbox of which nothing is known. Empty: nothing.
func (m *manager) whoNeeds(digest string) string {
	if id := m.d.snapshots.withImage(digest); id != "" {
		return "snapshot " + string(id)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for id, w := range m.workers {
		if w.usesImage(digest) {
			return "run " + string(id)
		}
	}
	for id := range m.quarantine {
		return "sandbox " + string(id) + " in quarantine"
	}
	return ""
}

// dropDoomed needs mu.
func (m *manager) dropDoomed() {
	for _, id := range m.doomed {
		m.drop(carrel.SnapshotID(id))
	}
}

// drop removes a snapshot that control names, in the background, and reports it; it needs mu.
func (m *manager) drop(id carrel.SnapshotID) {
	if carrel.IDKind(string(id)) != 's' || m.drops[id] || !m.started {
		return // before run, control's next desired set names it again
	}
	for _, w := range m.workers {
		if w.uses(id) {
			m.d.log.Info("a snapshot that a run begins from is to be dropped; it is kept until the run ends", "snapshot", id)
			return
		}
	}
	m.drops[id] = true
	m.group.Go(func() {
		err := m.d.snapshots.drop(id)
		m.mu.Lock()
		delete(m.drops, id)
		m.mu.Unlock()
		if err != nil {
			m.d.log.Error("a snapshot could not be removed; it is tried again", "snapshot", id, "error", err)
			return
		}
		m.mu.Lock()
		m.doomed = slices.DeleteFunc(slices.Clone(m.doomed), func(d string) bool { return d == string(id) })
		m.mu.Unlock()
		m.d.reporter.dropped(id)
	})
}

// quarantined lists the runs that are left alone: sandboxes without a ledger entry, and runs that
// control does not name any more although they live.
func (m *manager) quarantined() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var list []string
	for id := range maps.Keys(m.quarantine) {
		list = append(list, string(id))
	}
	for id, w := range m.workers {
		if w.lost() {
			list = append(list, string(id))
		}
	}
	slices.Sort(list)
	return list
}

// measured lists the runs that live.
func (m *manager) measured() []measured {
	m.mu.Lock()
	defer m.mu.Unlock()
	var live []measured
	for id, w := range m.workers {
		w.mu.Lock()
		if w.alive {
			live = append(live, measured{id, w.epoch, w.busy})
		}
		w.mu.Unlock()
	}
	return live
}

// finishing lists the workers of a box's runs that are over and of which something is left.
func (m *manager) finishing(box carrel.BoxID) []*worker {
	m.mu.Lock()
	defer m.mu.Unlock()
	var list []*worker
	for _, w := range m.workers {
		if w.box == box && w.finishing() {
			list = append(list, w)
		}
	}
	return list
}

// told lets workers know that control has their reports up to a sequence.
func (m *manager) told(run carrel.RunID, sequence int64) {
	m.mu.Lock()
	w := m.workers[run]
	m.mu.Unlock()
	if w != nil {
		w.told(sequence)
	}
}
