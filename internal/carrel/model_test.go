package carrel

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// model is a whole Carrel with one box in memory: control that sets intents, reconcile that follows the
// table, and a node that does what it is ordered, in random steps and with random faults.
type model struct {
	t      *testing.T
	rng    *rand.Rand
	now    time.Time
	faults bool
	v      BoxView
	runs   []RunView
	ops    []OperationView
	last   []OperationStatus // of each operation, to see that an end never changes
	trace  []string
	// excuse is set when a user asked for what gives up memory.
	excuse bool
	// nodeGeneration is that of the order which the node of the live run has.
	order           Order
	orderGeneration int64
	orderSince      time.Time // use after it undoes the order; zero: nothing does
	// Of the policy: it is tried in some runs of the test.
	idle     IdlePolicy
	intentAt time.Time
	used     time.Time // when somebody used the box last
}

func newModel(t *testing.T, seed uint64) *model {
	m := &model{t: t, rng: rand.New(rand.NewPCG(seed, 1)), now: time.Unix(1_700_000_000, 0), faults: true}
	m.v = BoxView{ID: NewBoxID(), Intent: IntentRunning, IntentBy: "user:u", Generation: 1, BootGeneration: 1}
	m.intentAt = m.now
	m.idle = IdlePolicy{After: 5 * time.Second, Action: []IdleAction{IdlePause, IdleStop, IdleNothing}[seed%3], MaxRun: Never}
	if seed%5 == 0 {
		m.idle.MaxRun = 20 * time.Second
	}
	if seed%11 == 0 {
		m.idle.TTL = 3 * time.Minute
	}
	if seed%2 == 0 {
		m.idle = IdlePolicy{After: 30 * day}
	}
	m.ops = append(m.ops, OperationView{Verb: VerbCreate, Generation: 1, CreatedAt: m.now})
	m.last = append(m.last, OperationStatus{})
	return m
}

func (m *model) note(format string, args ...any) {
	m.trace = append(m.trace, fmt.Sprintf(format, args...))
	m.check()
}

func (m *model) chance(percent int) bool { return m.rng.IntN(100) < percent }
func (m *model) fault(percent int) bool  { return m.faults && m.chance(percent) }

// verb is what control does in one transaction.
func (m *model) verb(verb Verb, cold bool) {
	if m.v.Intent == IntentDeleted {
		return
	}
	for n := range m.ops {
		if status, end := Settle(m.ops[n], &m.v, m.runs, verb, m.now); end {
			m.ops[n].Settled = &status
		}
	}
	m.v.Intent, m.v.IntentBy, m.v.IdleSince, m.intentAt = IntentOf(verb), "user:u", time.Time{}, m.now
	m.v.Generation++
	op := OperationView{Verb: verb, Generation: m.v.Generation, CreatedAt: m.now}
	if verb == VerbRestart || cold {
		m.v.BootGeneration++
		op.BootGeneration = m.v.BootGeneration
	}
	if status := StatusOf(op, &m.v, m.runs); status.Done {
		op.Settled = &status // nothing has to be done
	}
	m.ops = append(m.ops, op)
	m.last = append(m.last, OperationStatus{})
	m.note("user: %s (cold %v) generation %d", verb, cold, m.v.Generation)
}

func (m *model) idleView() *IdleView {
	return &IdleView{
		Box: &m.v, CreatedAt: time.Unix(1_700_000_000, 0), IntentAt: m.intentAt, Sources: IdleSources{Box: m.idle}, NodeSeen: m.now,
		Signals: []Signal{{Kind: SignalInput, At: m.used}}, SignalEpoch: m.v.Epoch,
	}
}

// policy is what reconcile does for the policy in one transaction.
func (m *model) policy() {
	d := DecideIdle(m.idleView(), m.now)
	if d.Act == nil {
		return
	}
	if d.Act.Mark {
		m.v.IdleSince = d.Act.IdleSince
		m.note("policy: %s", d.Act.Message)
		return
	}
	verb := map[Intent]Verb{IntentRunning: VerbStart, IntentPaused: VerbPause, IntentStopped: VerbStop, IntentDeleted: VerbDelete}[d.Act.Intent]
	for n := range m.ops {
		if status, end := Settle(m.ops[n], &m.v, m.runs, verb, m.now); end {
			m.ops[n].Settled = &status
		}
	}
	m.v.Intent, m.v.IntentBy, m.v.IdleSince, m.intentAt = d.Act.Intent, d.Act.Rule.Actor(), d.Act.IdleSince, m.now
	m.v.Generation++
	m.note("policy: %s, generation %d", d.Act.Message, m.v.Generation)
}

// use is what somebody does in a box that can be reached.
func (m *model) use() {
	if m.v.Live() && m.v.Run.Phase == PhaseRunning {
		m.used = m.now
	}
}

// reconcile is one tick.
func (m *model) reconcile() {
	v := &m.v
	needed, before := v.NeedsReconcile(), len(m.trace)
	defer func() {
		require.True(m.t, needed || len(m.trace) == before, "it acted on a box that did not need it: %v", m.trace)
	}()
	switch action := v.Next(); action {
	case ActAssign, ActRetry:
		if v.Unrecorded() {
			f := NewFailure(v, v.Run.Reason, v.Run.Message, v.Run.Transient, m.now)
			v.Failure = &f
			m.note("reconcile: failure %s transient %v", f.Reason, f.Transient)
			return
		}
		if f := v.CurrentFailure(); f != nil && (!f.Transient || m.now.Before(f.RetryAt)) {
			return
		}
		require.False(m.t, v.Live(), "assigned beside a live run")
		v.Epoch++
		m.runs = append(m.runs, RunView{
			ID: NewRunID(), NodeID: "n", Epoch: v.Epoch, BootGeneration: v.BootGeneration, WithMemory: v.StartsWithMemory(), Phase: PhaseAssigned,
			Generation: v.Generation, Phases: []PhaseAt{{PhaseAssigned, m.now, v.Generation}},
		})
		m.v.Run = &m.runs[len(m.runs)-1]
		m.order, m.orderGeneration = OrderRun, v.Generation
		m.note("reconcile: assigned epoch %d with memory %v", v.Epoch, v.Run.WithMemory)
	case ActRetireMemory:
		require.True(m.t, m.excuse || v.EffectiveIntent() == intentRestarting || v.Intent == IntentStopped, "memory was given up though nobody asked")
		v.Snapshot.MemoryRetired = true
		m.note("reconcile: memory retired")
	case ActFail:
		if f := v.CurrentFailure(); f == nil || f.Transient {
			f := NewFailure(v, ReasonNotRunning, "not running", false, m.now)
			v.Failure = &f
			m.note("reconcile: failed")
		}
	case ActPurge:
		require.False(m.t, v.Live())
		v.Deleted, v.Snapshot = true, nil
		m.note("reconcile: purged")
	}
}

func (m *model) report(phase Phase) {
	r := m.v.Run
	r.Phase, r.Generation = phase, m.orderGeneration
	r.FailedOrder, r.Reason, r.Message, r.Transient = OrderNone, "", "", false
	r.Phases = append(r.Phases, PhaseAt{phase, m.now, m.orderGeneration})
	m.note("node: %s", phase)
}

func (m *model) die(reason string) {
	if m.v.Run.Ran() && !m.fault(20) {
		m.commit(SnapshotDisk) // salvage
	}
	m.report(PhaseFailed)
	m.v.Run.Reason, m.v.Run.Message, m.v.Run.Transient = reason, "it died", true
}

func (m *model) commit(kind SnapshotKind) {
	m.v.Snapshot = &SnapshotView{ID: NewSnapshotID(), NodeID: "n", Kind: kind, BootGeneration: m.v.Run.BootGeneration, At: m.now}
}

// node does one step for the live run. Its order may be older than what control would say now.
func (m *model) node() {
	if !m.v.Live() {
		return
	}
	if !m.fault(30) { // else the link is down
		if order := m.v.OrderOf(); order != OrderNone {
			m.order, m.orderGeneration, m.orderSince = order, m.v.Generation, time.Time{}
			if order == OrderPause || order == OrderStop {
				m.orderSince = m.v.IdleSince
			}
		}
	}
	pointless := !m.orderSince.IsZero() && m.used.After(m.orderSince)
	r := m.v.Run
	if m.order == OrderDestroy {
		m.report(PhaseDestroyed)
		return
	}
	switch r.Phase {
	case PhaseAssigned:
		switch {
		case m.order == OrderStop && m.chance(50):
			m.report(PhaseDestroyed) // it never began
		case m.fault(10):
			m.die(ReasonRuntimeError)
		default:
			m.report(PhaseStarting)
		}
	case PhaseStarting:
		if m.fault(20) {
			m.die(ReasonAgentSilent)
			return
		}
		m.report(PhaseRunning)
	case PhaseRunning:
		switch {
		case m.fault(5):
			m.die(ReasonSandboxDied)
		case r.FailedOrder != OrderNone && r.Generation == m.orderGeneration:
			// It tried once for this generation.
		case pointless:
			failed := m.order
			m.report(PhaseRunning)
			r.FailedOrder, r.Reason, r.Message, r.Transient = failed, ReasonActive, "somebody used it", true
		case m.order == OrderPause:
			m.report(PhasePausing)
		case m.order == OrderStop:
			m.report(PhaseStopping)
		case r.Generation != m.orderGeneration:
			m.report(PhaseRunning)
		}
	case PhasePausing, PhaseStopping:
		switch {
		case m.fault(5):
			m.die(ReasonSandboxDied)
		case pointless && m.order != OrderRun:
			failed := m.order
			m.report(PhaseRunning)
			r.FailedOrder, r.Reason, r.Message, r.Transient = failed, ReasonActive, "somebody used it", true
		case m.fault(20): // undone
			failed := OrderStop
			if r.Phase == PhasePausing {
				failed = OrderPause
			}
			if m.order == OrderRun {
				m.report(PhaseRunning)
				return
			}
			m.report(PhaseRunning)
			r.FailedOrder, r.Reason, r.Message, r.Transient = failed, ReasonDiskFull, "the disk is full", true
		case m.order == OrderRun && m.chance(50):
			m.report(PhaseRunning)
		case r.Phase == PhasePausing:
			m.commit(SnapshotMemory)
			m.report(PhasePaused)
		default:
			m.commit(SnapshotDisk)
			m.report(PhaseStopped)
		}
	}
}

// check holds after every step.
func (m *model) check() {
	live, epoch := 0, int64(0)
	for _, r := range m.runs {
		require.Greater(m.t, r.Epoch, epoch, "epochs must rise")
		epoch = r.Epoch
		if !r.Phase.Ended() {
			live++
		}
	}
	require.LessOrEqual(m.t, live, 1, "more than one live run: %v", m.trace)
	require.NotEmpty(m.t, StateOf(&m.v))
	if m.v.Live() && !m.v.Deleted {
		require.NotEqual(m.t, OrderNone, m.v.OrderOf(), "a live run without an order: %v", m.trace)
	}
	for n, op := range m.ops {
		status := StatusOf(op, &m.v, m.runs)
		if m.last[n].Done {
			require.True(m.t, status.Done, "operation %s of generation %d was done and is open again: %v", op.Verb, op.Generation, m.trace)
			require.Equal(m.t, m.last[n].Progress, status.Progress, "the end of operation %s of generation %d changed: %v", op.Verb, op.Generation, m.trace)
		}
		m.last[n] = status
	}
}

func (m *model) user() {
	verbs := []Verb{VerbStart, VerbPause, VerbStop, VerbResume, VerbRestart}
	verb := verbs[m.rng.IntN(len(verbs))]
	if m.chance(2) {
		verb = VerbDelete
	}
	m.verb(verb, verb == VerbStart && m.chance(30))
}

// A box that users, reconcile and a faulty node treat in any order comes to rest where its last intent
// wants it, or says why not, as soon as the faults end.
func TestModelConverges(t *testing.T) {
	seeds := uint64(3000)
	if testing.Short() {
		seeds = 300
	}
	seen := map[State]int{}
	for seed := range seeds {
		m := newModel(t, seed)
		for range m.rng.IntN(150) {
			m.now = m.now.Add(time.Duration(m.rng.IntN(2000)) * time.Millisecond)
			switch p := m.rng.IntN(100); {
			case p < 8:
				m.user()
			case p < 16:
				m.policy()
			case p < 22:
				m.use()
			case p < 50:
				m.reconcile()
			default:
				m.node()
			}
		}
		m.faults = false
		for range 60 {
			m.now = m.now.Add(MaxDelay)
			m.policy()
			m.reconcile()
			m.node()
		}
		require.Nil(t, DecideIdle(m.idleView(), m.now).Act, "seed %d: the policy would go on for ever: %v", seed, m.trace)
		require.False(t, m.v.NeedsReconcile(), "seed %d: reconcile would go on for ever: %v", seed, m.trace)
		state := StateOf(&m.v)
		seen[state]++
		want, _ := Goal(map[Intent]Verb{IntentRunning: VerbStart, IntentPaused: VerbPause, IntentStopped: VerbStop, IntentDeleted: VerbDelete}[m.v.Intent])
		undone := m.v.Observe() == ObservedUndone
		failed := state == StateFailed && m.v.CurrentFailure() != nil && !m.v.CurrentFailure().Transient
		require.True(t, reached(state, want) || undone && state == StateRunning || failed, "seed %d: intent %s ended in %s: %v", seed, m.v.Intent, state, m.trace)
		if state == StateStopped {
			require.False(t, m.v.HasMemory(), "seed %d: stopped, yet memory is kept: %v", seed, m.trace)
		}
		if reached(state, StateRunning) && !undone {
			require.Equal(t, m.v.BootGeneration, m.v.Run.BootGeneration, "seed %d: a restart did not happen: %v", seed, m.trace)
		}
		for n, op := range m.ops {
			status := StatusOf(op, &m.v, m.runs)
			require.True(t, status.Done, "seed %d: operation %d %s is open for ever (%s): %v", seed, n, op.Verb, status.Progress, m.trace)
		}
	}
	for _, state := range []State{StateRunning, StateIdle, StatePaused, StateStopped, StateFailed, StateDeleted} {
		require.NotZero(t, seen[state], "the model never came to %s: it tests too little", state)
	}
}
