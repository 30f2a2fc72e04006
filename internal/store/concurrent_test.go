package store_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/store"
	"carrel.dev/carrel/internal/store/db"
	"carrel.dev/carrel/internal/store/storetest"
)

// together calls fn n times at once and gives the errors.
func together(n int, fn func(i int) error) []error {
	errs := make([]error, n)
	var wg sync.WaitGroup
	start := make(chan struct{})
	for i := range n {
		wg.Go(func() {
			<-start
			errs[i] = fn(i)
		})
	}
	close(start)
	wg.Wait()
	return errs
}

func TestFiftyAssignmentsAtOnceNeverOvercommit(t *testing.T) {
	for _, limit := range []string{"memory", "cpu", "disk"} {
		t.Run(limit, func(t *testing.T) {
			w := newWorld(t)
			ctx := t.Context()
			const room = 7
			f := facts(100)
			switch limit {
			case "memory":
				f.MemoryBytes = room*carrel.DefaultResources.MemoryBytes + 1
			case "cpu":
				f.CPUMillis = (room*carrel.DefaultResources.CPUMillis + 3) / 4
			case "disk":
				f.DiskBytes = room * carrel.DefaultResources.DiskBytes()
			}
			require.NoError(t, w.RecordReport(ctx, w.node, []store.Report{{Facts: f}}))
			var boxes []*store.Box
			for i := range 50 {
				boxes = append(boxes, w.create(fmt.Sprintf("b%d", i)))
			}
			other := w.db.Open(t, store.Config{Now: w.clock.Now})
			errs := together(50, func(i int) error {
				s := w.Store
				if i%2 == 0 {
					s = other
				}
				_, err := s.AssignRun(ctx, w.lease, assignment(boxes[i], w.node))
				return err
			})
			placed := 0
			for _, err := range errs {
				if err == nil {
					placed++
					continue
				}
				require.ErrorIs(t, err, store.ErrNoRoom)
			}
			require.Equal(t, room, placed)
			nodes, err := w.Nodes(ctx)
			require.NoError(t, err)
			require.Equal(t, room, nodes[0].Runs)
			require.GreaterOrEqual(t, nodes[0].FreeMemoryBytes, int64(0))
			require.GreaterOrEqual(t, nodes[0].FreeCPUMillis, int64(0))
			require.GreaterOrEqual(t, nodes[0].FreeDiskBytes, int64(0))
			require.Len(t, w.desired().Runs, room)
		})
	}
}

func TestAssignRunsInOneTransactionShareTheRoom(t *testing.T) {
	w := newWorld(t)
	require.NoError(t, w.RecordReport(t.Context(), w.node, []store.Report{{Facts: facts(2)}}))
	var as []store.AssignRun
	for i := range 4 {
		as = append(as, assignment(w.create(fmt.Sprintf("b%d", i)), w.node))
	}
	as = append(as, as[0])
	before := w.Commits()["AssignRun"]
	results, err := w.AssignRuns(t.Context(), w.lease, as)
	require.NoError(t, err)
	require.Equal(t, before+1, w.Commits()["AssignRun"])
	require.NoError(t, results[0].Err)
	require.NoError(t, results[1].Err)
	require.ErrorIs(t, results[2].Err, store.ErrNoRoom)
	require.ErrorIs(t, results[3].Err, store.ErrNoRoom)
	require.ErrorIs(t, results[4].Err, store.ErrChanged)
	require.Len(t, w.desired().Runs, 2)
}

func TestOneBoxIsAssignedOnce(t *testing.T) {
	w := newWorld(t)
	b := w.create("box")
	errs := together(10, func(int) error {
		_, err := w.AssignRun(t.Context(), w.lease, assignment(b, w.node))
		return err
	})
	ok := 0
	for _, err := range errs {
		if err == nil {
			ok++
			continue
		}
		require.ErrorIs(t, err, store.ErrChanged)
	}
	require.Equal(t, 1, ok)
}

func TestAssignRunRefusesWhatIsNotAsItWasSeen(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	refused := func(want error, a store.AssignRun) {
		t.Helper()
		_, err := w.AssignRun(ctx, w.lease, a)
		require.ErrorIs(t, err, want)
	}
	b := w.create("box")
	stale := assignment(b, w.node)
	stale.Generation--
	refused(store.ErrChanged, stale)
	stale = assignment(b, w.node)
	stale.Epoch++
	refused(store.ErrChanged, stale)
	stale = assignment(b, w.node)
	stale.Snapshot = carrel.NewSnapshotID()
	refused(store.ErrChanged, stale)
	refused(store.ErrChanged, assignment(&store.Box{BoxView: carrel.BoxView{ID: carrel.NewBoxID()}}, w.node))
	refused(store.ErrNoRoom, assignment(b, carrel.NewNodeID()))
	seen := assignment(b, w.node)
	w.ask(b.ID, carrel.VerbStop)
	refused(store.ErrChanged, seen)

	b = w.create("box2")
	_, err := w.SetNodeSchedulable(ctx, w.operator, "n1", false)
	require.NoError(t, err)
	refused(store.ErrNoRoom, assignment(b, w.node))
	_, err = w.SetNodeSchedulable(ctx, w.operator, "n1", true)
	require.NoError(t, err)
	f := facts(16)
	f.Images = []string{"sha256:other"}
	require.NoError(t, w.RecordReport(ctx, w.node, []store.Report{{Facts: f}}))
	refused(store.ErrNoRoom, assignment(b, w.node))

	p := newWorld(t)
	paused := p.paused("paused")
	p.ask(paused.ID, carrel.VerbResume)
	elsewhere := assignment(p.box(paused.ID), p.join("n2"))
	_, err = p.AssignRun(ctx, p.lease, elsewhere)
	require.ErrorIs(t, err, store.ErrChanged, "the snapshot is on another node")
}

func TestLeaseHasOneHolderAndStaleOnesCannotWrite(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	const ttl = time.Minute
	old, ok, err := w.AcquireLease(ctx, "x", "one", ttl)
	require.NoError(t, err)
	require.True(t, ok)
	held, ok, err := w.AcquireLease(ctx, "x", "two", ttl)
	require.NoError(t, err)
	require.False(t, ok)
	require.Equal(t, "one", held.Holder)
	old, err = w.RenewLease(ctx, old, ttl)
	require.NoError(t, err)
	w.clock.Advance(2 * ttl)
	_, err = w.RenewLease(ctx, old, ttl)
	require.ErrorIs(t, err, store.ErrLeaseLost, "an ended lease cannot be renewed")
	fresh, ok, err := w.AcquireLease(ctx, "x", "two", ttl)
	require.NoError(t, err)
	require.True(t, ok)
	require.Greater(t, fresh.Term, old.Term)

	b := w.create("box")
	doomed := w.paused("doomed")
	w.ask(doomed.ID, carrel.VerbDelete)
	f := carrel.Failure{Reason: "x", Generation: 1}
	for name, write := range map[string]func(store.Lease) error{
		"AssignRun": func(l store.Lease) error {
			_, err := w.AssignRun(ctx, l, assignment(b, w.node))
			return err
		},
		"RecordFailure": func(l store.Lease) error { return w.RecordFailure(ctx, l, b.ID, b.Touched, f) },
		"Settle":        func(l store.Lease) error { return w.Settle(ctx, l, b.ID, b.Touched, true, time.Time{}) },
		"RetireMemory":  func(l store.Lease) error { return w.RetireMemory(ctx, l, doomed.ID, doomed.Snapshot.ID) },
		"PurgeBox":      func(l store.Lease) error { return w.PurgeBox(ctx, l, doomed.ID) },
		"AssignChore":   func(l store.Lease) error { return w.AssignChore(ctx, l, carrel.NewChoreID(), "", w.node) },
		"FailChore":     func(l store.Lease) error { return w.FailChore(ctx, l, carrel.NewChoreID(), f) },
		"Prune": func(l store.Lease) error {
			_, err := w.Prune(ctx, l, time.Now(), 1)
			return err
		},
	} {
		require.ErrorIs(t, write(old), store.ErrLeaseLost, name)
		require.ErrorIs(t, write(store.Lease{Name: "x", Holder: "two", Term: fresh.Term + 1}), store.ErrLeaseLost, name)
		require.ErrorIs(t, write(store.Lease{Name: "unknown", Holder: "two", Term: 1}), store.ErrLeaseLost, name)
	}
	require.Equal(t, b.Touched, w.box(b.ID).Touched, "nothing was written")
	require.NoError(t, w.ReleaseLease(ctx, old), "to release a lost lease is no error and changes nothing")
	_, err = w.RenewLease(ctx, fresh, ttl)
	require.NoError(t, err)
	require.NoError(t, w.ReleaseLease(ctx, fresh))
	_, err = w.AssignRun(ctx, fresh, assignment(b, w.node))
	require.ErrorIs(t, err, store.ErrLeaseLost, "a lease that was given back is not held")
	again, ok, err := w.AcquireLease(ctx, "x", "one", ttl)
	require.NoError(t, err)
	require.True(t, ok)
	same, ok, err := w.AcquireLease(ctx, "x", "one", ttl)
	require.NoError(t, err)
	require.True(t, ok)
	require.Greater(t, same.Term, again.Term, "a holder that comes back gets a new term")
}

// Whoever takes a lease over waits until the write that the holder before has begun is over, and none of that holder's comes after.
func TestTakeoverWaitsForTheWriteUnderTheLease(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	lease, _, err := w.AcquireLease(ctx, "x", "one", time.Minute)
	require.NoError(t, err)
	locked, release := make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		_ = w.Transact(ctx, store.SystemScope(), func(tx db.DBTX) error {
			_, err := tx.Exec(ctx, "select term from leases where name = 'x' and term = $1 for share", lease.Term)
			close(locked)
			<-release
			return err
		})
	})
	<-locked
	w.clock.Advance(time.Hour)
	taken := make(chan error, 1)
	wg.Go(func() {
		_, ok, err := w.AcquireLease(ctx, "x", "two", time.Minute)
		if err == nil && !ok {
			err = errors.New("not taken")
		}
		taken <- err
	})
	awaitBlocked(t, w.db)
	select {
	case err := <-taken:
		require.Fail(t, "the lease was taken during a write under it", "%v", err)
	default:
	}
	close(release)
	require.NoError(t, <-taken)
}

// awaitBlocked waits until a process of PostgreSQL waits for a lock of another.
func awaitBlocked(t *testing.T, db storetest.Database) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), db.OwnerURL)
	require.NoError(t, err)
	defer func() { _ = conn.Close(context.Background()) }()
	require.Eventually(t, func() bool {
		var blocked bool
		err := conn.QueryRow(t.Context(), "select exists (select 1 from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock')").Scan(&blocked)
		return err == nil && blocked
	}, patience, 5*time.Millisecond)
}

func TestCompetingHoldersNeverBothHold(t *testing.T) {
	w := newWorld(t)
	other := w.db.Open(t, store.Config{Now: w.clock.Now})
	stores := []*store.Store{w.Store, other}
	leases := make([]store.Lease, 20)
	errs := together(20, func(i int) error {
		lease, ok, err := stores[i%2].AcquireLease(t.Context(), "y", fmt.Sprint("holder", i), time.Hour)
		if ok {
			leases[i] = lease
		}
		return err
	})
	require.NoError(t, errors.Join(errs...))
	holders := 0
	for _, l := range leases {
		if l.Term > 0 {
			holders++
		}
	}
	require.Equal(t, 1, holders)
}

func TestRepeatedRequestsGiveTheFirstAnswer(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	ids := make([]string, 20)
	errs := together(20, func(i int) error {
		box := w.newBox("same")
		box.Request = request("create-1", "same")
		op, err := w.CreateBox(ctx, w.scope, box)
		if err == nil {
			ids[i] = string(op.ID) + op.TargetID
		}
		return err
	})
	require.NoError(t, errors.Join(errs...))
	for _, id := range ids {
		require.Equal(t, ids[0], id)
	}
	boxes, _, err := w.ListBoxes(ctx, w.scope, store.ListBoxes{})
	require.NoError(t, err)
	require.Len(t, boxes, 1)
	b := boxes[0]
	changed := w.newBox("other")
	changed.Request = request("create-1", "other")
	_, err = w.CreateBox(ctx, w.scope, changed)
	requireCode(t, err, carrel.CodeInvalid, "request_id_reused")
	_, err = w.CreateBox(ctx, w.scope, w.newBox("same"))
	requireCode(t, err, carrel.CodeExists, "box_name_taken")

	checked := 0
	set := store.SetIntent{
		Box: b.ID, Verb: carrel.VerbStop, Intent: carrel.IntentStopped, Request: request("stop-1", "stop"),
		Check: func(*store.Box) error { checked++; return nil },
	}
	first, err := w.SetIntent(ctx, w.scope, set)
	require.NoError(t, err)
	require.False(t, first.Replayed)
	second, err := w.SetIntent(ctx, w.scope, set)
	require.NoError(t, err)
	require.True(t, second.Replayed)
	require.Equal(t, first.ID, second.ID)
	require.Equal(t, 1, checked, "a repeated request is not checked again")
	require.Equal(t, b.Generation+1, w.box(b.ID).Generation)
	set.Request.Hash = request("", "start").Hash
	_, err = w.SetIntent(ctx, w.scope, set)
	requireCode(t, err, carrel.CodeInvalid, "request_id_reused")
	set.Request = store.Request{ID: string(make([]byte, 200))}
	_, err = w.SetIntent(ctx, w.scope, set)
	requireCode(t, err, carrel.CodeInvalid, "bad_request_id")

	// The same id is another request for another principal, and a refused request does not use it up.
	refused := store.SetIntent{
		Box: b.ID, Verb: carrel.VerbStart, Intent: carrel.IntentRunning, Request: request("start-1", "start"),
		Check: func(*store.Box) error { return carrel.Errorf(carrel.CodePrecondition, "wrong_state", "no") },
	}
	_, err = w.SetIntent(ctx, w.scope, refused)
	requireCode(t, err, carrel.CodePrecondition, "wrong_state")
	refused.Check = nil
	started, err := w.SetIntent(ctx, w.scope, refused)
	require.NoError(t, err)
	require.False(t, started.Replayed)
	elsewhere := w.otherOrg("elsewhere")
	box := w.newBox("same")
	box.Org, box.Request = elsewhere.Orgs[0], request("create-1", "same")
	op, err := w.CreateBox(ctx, elsewhere, box)
	require.NoError(t, err)
	require.False(t, op.Replayed)
}

// Intents, reports, snapshots and assignments of many boxes on one node at once neither deadlock nor lose anything.
func TestEverythingAtOnce(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	require.NoError(t, w.RecordReport(ctx, w.node, []store.Report{{Facts: facts(64)}}))
	other := w.db.Open(t, store.Config{Now: w.clock.Now})
	const n = 16
	boxes := make([]*store.Box, n)
	var seq sync.Mutex
	errs := together(n, func(i int) error {
		s := []*store.Store{w.Store, other}[i%2]
		op, err := s.CreateBox(ctx, w.scope, w.newBox(fmt.Sprint("b", i)))
		if err != nil {
			return err
		}
		id := carrel.BoxID(op.TargetID)
		get := func() *store.Box {
			b, err := s.GetBox(ctx, w.scope, id)
			if err != nil {
				panic(err)
			}
			return b
		}
		tell := func(phase carrel.Phase) error {
			seq.Lock()
			w.sequence++
			number := w.sequence
			seq.Unlock()
			b := get()
			return s.RecordReport(ctx, w.node, []store.Report{{Facts: facts(64), Runs: []store.RunReport{{
				Run: b.Run.ID, Epoch: b.Epoch, Sequence: number, Phase: phase, Generation: b.Generation,
			}}}})
		}
		for round := range 3 {
			if round > 0 {
				if _, err := s.SetIntent(ctx, w.scope, store.SetIntent{Box: id, Verb: carrel.VerbResume, Intent: carrel.IntentRunning}); err != nil {
					return err
				}
			}
			if _, err := s.AssignRun(ctx, w.lease, assignment(get(), w.node)); err != nil {
				return err
			}
			if err := tell(carrel.PhaseRunning); err != nil {
				return err
			}
			if _, err := s.SetIntent(ctx, w.scope, store.SetIntent{Box: id, Verb: carrel.VerbPause, Intent: carrel.IntentPaused}); err != nil {
				return err
			}
			if ok, reason, err := s.CommitSnapshot(ctx, w.node, proposal(get(), carrel.SnapshotMemory)); err != nil || !ok {
				return fmt.Errorf("commit: %s: %w", reason, err)
			}
			if err := tell(carrel.PhasePaused); err != nil {
				return err
			}
		}
		boxes[i] = get()
		return nil
	})
	require.NoError(t, errors.Join(errs...))
	for _, b := range boxes {
		require.Equal(t, carrel.StatePaused, carrel.StateOf(&b.BoxView))
		require.Equal(t, int64(3), b.Epoch)
	}
	require.Len(t, w.desired().DropSnapshots, 2*n)
}

func TestDeadlocksAreTriedAgain(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	a, b := w.create("a").ID, w.create("b").ID
	orders := [][]carrel.BoxID{{a, b}, {b, a}}
	var once [2]sync.Once
	var met sync.WaitGroup
	met.Add(2)
	errs := together(2, func(i int) error {
		return w.Transact(ctx, w.scope, func(tx db.DBTX) error {
			if _, err := tx.Exec(ctx, "select 1 from boxes where id = $1 for update", orders[i][0]); err != nil {
				return err
			}
			once[i].Do(func() { met.Done(); met.Wait() })
			_, err := tx.Exec(ctx, "select 1 from boxes where id = $1 for update", orders[i][1])
			return err
		})
	})
	require.NoError(t, errors.Join(errs...))
}
