package reconcile

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/store"
)

// world is a store with an organisation, a template and nodes that a test plays.
type world struct {
	t        *testing.T
	ctx      context.Context
	store    *store.Store
	org      carrel.OrgID
	scope    store.Scope
	template store.Template

	mu     sync.Mutex // guards what follows
	alive  map[carrel.BoxID]carrel.RunID
	wrong  []string
	begun  int
	enough int    // that many runs begun end the chaos
	tired  func() // ends it; nil: there is none
}

var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

func newWorld(t *testing.T, s *store.Store) *world {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	t.Cleanup(cancel)
	boot, err := s.Bootstrap(ctx, store.Bootstrap{})
	require.NoError(t, err)
	w := &world{
		t: t, ctx: ctx, store: s, org: boot.Cluster.DefaultOrg, alive: map[carrel.BoxID]carrel.RunID{},
		scope: store.Scope{User: boot.Admin, Orgs: []carrel.OrgID{boot.Cluster.DefaultOrg}, Platform: true},
	}
	w.template, err = s.PushTemplate(ctx, w.scope, store.Request{}, store.Template{
		Org: w.org, Name: "test", Image: digest, ImageDigest: digest, Resources: carrel.MinResources,
	}, false)
	require.NoError(t, err)
	return w
}

// player is a node that a test plays. It keeps its runs in memory, as a node daemon's would stay over its restarts.
type player struct {
	w     *world
	node  store.Node
	rng   *rand.Rand
	fault func(percent int) bool
	runs  map[carrel.RunID]*played
	gone  map[carrel.RunID]bool // ended here: never to be started again
	inUse func() bool           // somebody uses its boxes; nil: nobody does

	beating sync.Mutex // a heartbeat with older facts never comes after one with newer
	facts   store.NodeFacts
}

type played struct {
	desired  store.DesiredRun
	phase    carrel.Phase
	sequence int64
	undone   int64 // generation whose order was tried and undone
	told     int64 // newest generation that was reported
}

func (w *world) join(name string, seed uint64) *player {
	n, err := w.store.JoinNode(w.ctx, store.Join{Name: name})
	require.NoError(w.t, err)
	p := &player{
		w: w, node: n, rng: rand.New(rand.NewPCG(seed, 7)), fault: func(int) bool { return false }, runs: map[carrel.RunID]*played{}, gone: map[carrel.RunID]bool{},
		facts: store.NodeFacts{CPUMillis: 64_000, MemoryBytes: 64 * carrel.GiB, DiskBytes: 1000 * carrel.GiB, DiskFreeBytes: 1000 * carrel.GiB, Images: []string{digest}},
	}
	p.beat()
	return p
}

// beat is a heartbeat with facts, which are changed before.
func (p *player) beat(change ...func(*store.NodeFacts)) {
	p.beating.Lock()
	defer p.beating.Unlock()
	for _, f := range change {
		f(&p.facts)
	}
	require.NoError(p.w.t, p.touch(p.w.ctx))
}

// touch sends a heartbeat. p.beating is held.
func (p *player) touch(ctx context.Context) error {
	facts := p.facts
	return p.w.store.TouchNodes(ctx, []store.NodeBeat{{Node: p.node.ID, Facts: &facts}})
}

func (w *world) create(name string) carrel.BoxID {
	op, err := w.store.CreateBox(w.ctx, w.scope, store.NewBox{Org: w.org, Name: name, TemplateID: w.template.ID, ImageDigest: digest, Resources: w.template.Resources})
	require.NoError(w.t, err)
	return carrel.BoxID(op.TargetID)
}

func (w *world) set(box carrel.BoxID, verb carrel.Verb, cold bool) error {
	_, err := w.store.SetIntent(w.ctx, w.scope, store.SetIntent{Box: box, Verb: verb, Intent: carrel.IntentOf(verb), Restart: verb == carrel.VerbRestart, Cold: cold})
	return err
}

func (w *world) box(id carrel.BoxID) *store.Box {
	b, err := w.store.GetBox(w.ctx, w.scope, id)
	require.NoError(w.t, err)
	return b
}

// patience bounds every wait, on a machine that has much else to do.
const patience = 3 * time.Minute

// eventually waits until a box is as it should be.
func (w *world) eventually(id carrel.BoxID, what string, ok func(*store.Box) bool) *store.Box {
	w.t.Helper()
	var b *store.Box
	require.Eventually(w.t, func() bool { b = w.box(id); return ok(b) }, patience, 5*time.Millisecond, "the box should be %s", what)
	return b
}

func (w *world) state(id carrel.BoxID, want carrel.State) *store.Box {
	w.t.Helper()
	return w.eventually(id, string(want), func(b *store.Box) bool { return carrel.StateOf(&b.BoxView) == want })
}

// reconciler starts one that runs until the test ends.
func (w *world) reconciler(change ...func(*Config)) {
	r := w.reconcilerOf("test", change...)
	ctx, stop := context.WithCancel(w.ctx)
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	w.t.Cleanup(func() {
		stop()
		require.NoError(w.t, <-done)
	})
}

func (w *world) reconcilerOf(holder string, change ...func(*Config)) *Reconciler {
	cfg := Config{Store: w.store, Holder: holder, Logger: quiet}
	for _, c := range change {
		c(&cfg)
	}
	r, err := New(cfg)
	require.NoError(w.t, err)
	return r
}

func (w *world) accuse(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.wrong = append(w.wrong, fmt.Sprintf(format, args...))
}

// begin and end keep the truth about what lives anywhere: two runs of one box at a time would be the worst that can happen.
func (w *world) begin(box carrel.BoxID, run carrel.RunID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if other, lives := w.alive[box]; lives && other != run {
		w.wrong = append(w.wrong, fmt.Sprintf("box %s lives twice: as %s and as %s", box, other, run))
	}
	w.alive[box] = run
	w.begun++
	if w.tired != nil && w.begun > w.enough {
		w.tired()
	}
}

func (w *world) end(box carrel.BoxID, run carrel.RunID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.alive[box] == run {
		delete(w.alive, box)
	}
}

// play works until ctx ends: it does what is desired, one step of each run at a time.
func (p *player) play(ctx context.Context) {
	sub := p.w.store.Listen(ctx, store.TopicNode(p.node.ID))
	defer sub.Close()
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	beats := time.NewTicker(2 * time.Second)
	defer beats.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-beats.C:
			p.beating.Lock()
			_ = p.touch(ctx)
			p.beating.Unlock()
		case <-sub.C:
		case <-ticker.C:
		}
		p.step(ctx)
	}
}

func (p *player) step(ctx context.Context) {
	set, err := p.w.store.DesiredSet(ctx, p.node.ID)
	if err != nil {
		return
	}
	for _, d := range set.Runs {
		if p.gone[d.Run] {
			continue
		}
		r := p.runs[d.Run]
		if r == nil {
			r = &played{phase: carrel.PhaseAssigned}
			p.runs[d.Run] = r
			for _, other := range p.runs {
				if other.desired.Box == d.Box && other.desired.Epoch >= d.Epoch {
					p.w.accuse("box %s: run %s has epoch %d, not above %d", d.Box, d.Run, d.Epoch, other.desired.Epoch)
				}
			}
		}
		r.desired = d
		if !p.fault(20) {
			p.advance(ctx, r)
		}
	}
	if len(set.DropSnapshots) > 0 {
		_ = p.w.store.RecordReport(ctx, p.node.ID, []store.Report{{Dropped: set.DropSnapshots}})
	}
}

func (p *player) report(ctx context.Context, r *played, phase carrel.Phase, change func(*store.RunReport)) {
	d := r.desired
	r.phase = phase
	r.sequence++
	r.told = d.Generation
	if phase.Ended() {
		p.w.end(d.Box, d.Run)
		p.gone[d.Run] = true
	}
	report := store.RunReport{Run: d.Run, Epoch: d.Epoch, Sequence: r.sequence, Phase: phase, Generation: d.Generation, At: time.Now()}
	if change != nil {
		change(&report)
	}
	// A node repeats a report until it is accepted.
	for ctx.Err() == nil {
		if err := p.w.store.RecordReport(ctx, p.node.ID, []store.Report{{Runs: []store.RunReport{report}}}); err == nil {
			return
		}
		wait(ctx, time.Millisecond)
	}
}

func (p *player) commit(ctx context.Context, r *played, kind carrel.SnapshotKind) (carrel.SnapshotID, bool) {
	d := r.desired
	id := carrel.NewSnapshotID()
	for ctx.Err() == nil {
		accepted, reason, err := p.w.store.CommitSnapshot(ctx, p.node.ID, store.CommitSnapshot{
			ID: id, Box: d.Box, Run: d.Run, Epoch: d.Epoch, Kind: kind, SizeBytes: 1, ManifestSHA256: "0", RuntimeVersion: "play", At: time.Now(), Generation: d.Generation,
		})
		if err == nil {
			if !accepted && reason != store.RefusedBoxDeleted {
				p.w.accuse("the snapshot of live run %s was refused: %s", d.Run, reason)
			}
			return id, accepted
		}
		wait(ctx, time.Millisecond)
	}
	return id, false
}

func (p *player) advance(ctx context.Context, r *played) {
	d := r.desired
	fail := func(reason string) {
		p.report(ctx, r, carrel.PhaseFailed, func(f *store.RunReport) { f.Reason, f.Message, f.Transient = reason, "the test wanted it", true })
	}
	if d.Order == carrel.OrderDestroy {
		p.report(ctx, r, carrel.PhaseDestroyed, nil)
		return
	}
	switch r.phase {
	case carrel.PhaseAssigned:
		if d.Order == carrel.OrderStop {
			p.report(ctx, r, carrel.PhaseDestroyed, nil)
			return
		}
		p.w.begin(d.Box, d.Run)
		if p.fault(10) {
			fail(carrel.ReasonRuntimeError)
			return
		}
		p.report(ctx, r, carrel.PhaseRunning, nil)
	case carrel.PhaseRunning:
		switch {
		case p.fault(3):
			if _, ok := p.commit(ctx, r, carrel.SnapshotDisk); ok {
				fail(carrel.ReasonSandboxDied)
			}
		case r.undone == d.Generation:
		case d.Order == carrel.OrderPause, d.Order == carrel.OrderStop:
			if !d.IdleSince.IsZero() && p.inUse != nil && p.inUse() {
				r.undone = d.Generation
				p.report(ctx, r, carrel.PhaseRunning, func(f *store.RunReport) {
					f.FailedOrder, f.Reason, f.Message, f.Transient = d.Order, carrel.ReasonActive, "somebody used it", true
				})
				return
			}
			if p.fault(10) {
				r.undone = d.Generation
				p.report(ctx, r, carrel.PhaseRunning, func(f *store.RunReport) {
					f.FailedOrder, f.Reason, f.Message, f.Transient = d.Order, carrel.ReasonDiskFull, "the disk is full", true
				})
				return
			}
			kind, phase := carrel.SnapshotMemory, carrel.PhasePaused
			if d.Order == carrel.OrderStop {
				kind, phase = carrel.SnapshotDisk, carrel.PhaseStopped
			}
			if id, ok := p.commit(ctx, r, kind); ok {
				p.report(ctx, r, phase, func(f *store.RunReport) { f.Snapshot = id })
			}
		case r.told < d.Generation: // a node says that it heard of a newer intent, though it has nothing to do
			p.report(ctx, r, carrel.PhaseRunning, nil)
		}
	}
}
