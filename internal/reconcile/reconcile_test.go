package reconcile

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/leftover"
	"carrel.dev/carrel/internal/store"
	"carrel.dev/carrel/internal/store/storetest"
)

func TestNewChecksItsConfiguration(t *testing.T) {
	_, err := New(Config{})
	require.ErrorContains(t, err, "store")
	_, err = New(Config{Store: &store.Store{}})
	require.ErrorContains(t, err, "holder")
	_, err = New(Config{Store: &store.Store{}, Holder: "a", Shards: 257})
	require.ErrorContains(t, err, "shards")
	reg := prometheus.NewRegistry()
	_, err = New(Config{Store: &store.Store{}, Holder: "a", Registerer: reg})
	require.NoError(t, err)
	_, err = New(Config{Store: &store.Store{}, Holder: "a", Registerer: reg})
	require.ErrorContains(t, err, "metrics")
}

// start plays a node until the test ends.
func (w *world) start(p *player) {
	ctx, stop := context.WithCancel(w.ctx)
	done := make(chan struct{})
	go func() { defer close(done); p.play(ctx) }()
	w.t.Cleanup(func() { stop(); <-done })
}

// A box goes through its whole life, and only reconcile and its node do it.
func TestLife(t *testing.T) {
	w := newWorld(t, storetest.New(t))
	w.start(w.join("a", 1))
	w.reconciler()

	id := w.create("box")
	b := w.state(id, carrel.StateRunning)
	require.EqualValues(t, 1, b.Epoch)
	require.False(t, b.Run.WithMemory)

	require.NoError(t, w.set(id, carrel.VerbPause, false))
	w.state(id, carrel.StatePaused)
	require.NoError(t, w.set(id, carrel.VerbResume, false))
	b = w.state(id, carrel.StateRunning)
	require.True(t, b.Run.WithMemory)
	require.EqualValues(t, 2, b.Epoch)

	require.NoError(t, w.set(id, carrel.VerbPause, false))
	w.state(id, carrel.StatePaused)
	require.NoError(t, w.set(id, carrel.VerbStop, false))
	b = w.state(id, carrel.StateStopped)
	require.False(t, b.HasMemory(), "a stop gives the memory up")
	require.NotNil(t, b.Snapshot, "and keeps the files")
	require.NoError(t, w.set(id, carrel.VerbStart, false))
	b = w.state(id, carrel.StateRunning)
	require.False(t, b.Run.WithMemory)

	require.NoError(t, w.set(id, carrel.VerbRestart, false))
	b = w.eventually(id, "restarted", func(b *store.Box) bool {
		return carrel.StateOf(&b.BoxView) == carrel.StateRunning && b.Epoch == 4
	})
	require.Equal(t, b.BootGeneration, b.Run.BootGeneration)

	require.NoError(t, w.set(id, carrel.VerbDelete, false))
	w.state(id, carrel.StateDeleted)
	require.Empty(t, w.wrong)
}

// A life costs the reconciler one commit for each run that it makes, and what a node does by its order costs it none.
func TestCommits(t *testing.T) {
	w := newWorld(t, storetest.New(t))
	w.start(w.join("a", 1))
	w.reconciler()
	id := w.create("box")
	w.state(id, carrel.StateRunning)
	require.NoError(t, w.set(id, carrel.VerbPause, false))
	w.state(id, carrel.StatePaused)
	require.NoError(t, w.set(id, carrel.VerbResume, false))
	w.state(id, carrel.StateRunning)
	require.NoError(t, w.set(id, carrel.VerbStop, false))
	w.state(id, carrel.StateStopped)
	got := w.store.Commits()
	for _, method := range []string{"Settle", "RecordFailure", "RetireMemory"} {
		require.Zero(t, got[method], method)
	}
	require.EqualValues(t, 2, got["AssignRun"])
}

// A chore goes to a node that is there, moves when that falls silent, and is given up when none comes.
func TestChores(t *testing.T) {
	var mu sync.Mutex
	var ahead time.Duration
	clock := func() time.Time {
		mu.Lock()
		defer mu.Unlock()
		return time.Now().Add(ahead)
	}
	w := newWorld(t, storetest.NewAt(t, clock))
	build := func(name string) *store.Operation {
		op, err := w.store.CreateImage(w.ctx, w.scope, store.NewImage{Org: w.org, Name: name, Source: "build", Chore: store.Chore{Kind: store.ChoreImageBuild, Name: name, Definition: "x"}})
		require.NoError(t, err)
		return op
	}
	chores := func(p *player) int {
		set, err := w.store.DesiredSet(w.ctx, p.node.ID)
		require.NoError(t, err)
		return len(set.Chores)
	}
	given := func(p *player) bool { // it is there, however long this takes
		p.beat()
		return chores(p) == 1
	}
	first := w.join("a", 1)
	w.reconciler(func(c *Config) { c.Now = clock; c.Poll = 50 * time.Millisecond; c.LeaseTTL = 24 * time.Hour })
	build("one")
	require.Eventually(t, func() bool { return given(first) }, patience, 5*time.Millisecond)

	mu.Lock()
	ahead = time.Minute
	mu.Unlock()
	second := w.join("b", 2)
	require.Eventually(t, func() bool { return given(second) && chores(first) == 0 }, patience, 5*time.Millisecond)

	mu.Lock()
	ahead = time.Hour
	mu.Unlock()
	lost := build("two") // nobody is there
	mu.Lock()
	ahead = 2*time.Hour + time.Minute
	mu.Unlock()
	require.Eventually(t, func() bool {
		op, err := w.store.GetOperation(w.ctx, w.scope, lost.ID)
		require.NoError(t, err)
		status := op.Status()
		return status.Done && status.Failure != nil && status.Failure.Reason == carrel.ReasonNoNode
	}, patience, 5*time.Millisecond)
}

// A box created and paused at once comes to rest paused, whoever is faster.
func TestPauseBeforeItBegan(t *testing.T) {
	w := newWorld(t, storetest.New(t))
	id := w.create("box")
	require.NoError(t, w.set(id, carrel.VerbPause, false))
	w.start(w.join("a", 1))
	w.reconciler()
	b := w.state(id, carrel.StatePaused)
	require.True(t, b.HasMemory())
}

func TestWaitsForRoomAndSaysSo(t *testing.T) {
	w := newWorld(t, storetest.New(t))
	p := w.join("a", 1)
	p.facts.MemoryBytes = carrel.MinResources.MemoryBytes // room for one
	p.beat()
	w.start(p)
	w.reconciler()

	first := w.create("first")
	w.state(first, carrel.StateRunning)
	second := w.create("second")
	b := w.eventually(second, "waiting for room", func(b *store.Box) bool { return b.CurrentFailure() != nil })
	require.Equal(t, carrel.StateProvisioning, carrel.StateOf(&b.BoxView))
	require.Equal(t, carrel.ReasonNoRoom, b.Failure.Reason)
	require.True(t, b.Failure.Transient)
	require.Equal(t, "no node has room for 128 MiB of memory: a has no memory free", b.Failure.Message)
	require.Contains(t, b.Failure.NextStep, "Stop or delete a box")

	require.NoError(t, w.set(first, carrel.VerbStop, false))
	b = w.state(second, carrel.StateRunning)
	require.Nil(t, b.CurrentFailure())
}

func TestTooLargeIsFinalUntilAskedAgain(t *testing.T) {
	w := newWorld(t, storetest.New(t))
	p := w.join("a", 1)
	p.facts.MemoryBytes = carrel.MiB
	p.beat()
	w.start(p)
	w.reconciler()
	id := w.create("box")
	b := w.state(id, carrel.StateFailed)
	require.Equal(t, carrel.ReasonTooLarge, b.Failure.Reason)
	require.False(t, b.Failure.Transient)

	// The node grows; nothing happens by itself, and everything with the next request.
	p.beat(func(f *store.NodeFacts) { f.MemoryBytes = carrel.GiB })
	require.NoError(t, w.set(id, carrel.VerbStart, false))
	w.state(id, carrel.StateRunning)
}

// A run that fails at once is tried again after a pause that grows.
func TestFailedRunsAreTriedAgain(t *testing.T) {
	w := newWorld(t, storetest.New(t))
	p := w.join("a", 1)
	left := 2
	p.fault = func(percent int) bool {
		if percent == 10 && left > 0 {
			left--
			return true
		}
		return false
	}
	w.start(p)
	w.reconciler()
	began := time.Now()
	b := w.state(w.create("box"), carrel.StateRunning)
	require.EqualValues(t, 3, b.Epoch)
	require.GreaterOrEqual(t, time.Since(began), 3*time.Second, "1 s, then 2 s")
	require.Nil(t, b.CurrentFailure())
}

func TestSilentNodeIsSaidAndForgotten(t *testing.T) {
	var mu sync.Mutex
	var ahead time.Duration
	clock := func() time.Time {
		mu.Lock()
		defer mu.Unlock()
		return time.Now().Add(ahead)
	}
	w := newWorld(t, storetest.NewAt(t, clock))
	p := w.join("a", 1)
	ctx, stop := context.WithCancel(w.ctx)
	done := make(chan struct{})
	go func() { defer close(done); p.play(ctx) }()
	w.reconciler(func(c *Config) { c.Now = clock; c.Poll = 50 * time.Millisecond; c.LeaseTTL = 24 * time.Hour })
	id := w.create("box")
	w.state(id, carrel.StateRunning)
	stop()
	<-done

	mu.Lock()
	ahead = time.Minute
	mu.Unlock()
	b := w.eventually(id, "known to be out of reach", func(b *store.Box) bool { return b.CurrentFailure() != nil })
	require.Equal(t, carrel.ReasonNodeLost, b.Failure.Reason)
	require.Contains(t, b.Failure.Message, "node a has not been heard from since")
	require.Equal(t, carrel.StateRunning, carrel.StateOf(&b.BoxView), "it is not moved: its files are there")

	// A box that was paused there cannot be started, and says why.
	p.beat()
	mu.Lock()
	ahead += 10 * time.Second
	mu.Unlock()
	w.eventually(id, "back", func(b *store.Box) bool {
		p.beat() // it is there, however long this takes
		return b.CurrentFailure() == nil
	})
}

// Two replicas, and more that come and go, are paused at any moment, robbed of their leases and killed in the middle of a tick, while users and
// faulty nodes do what they like. Nothing ever lives twice, epochs rise, and in the end every box is as it is wanted.
func TestReplicasNeverActTwice(t *testing.T) {
	w := newWorld(t, storetest.New(t))
	boxes, enough := 12, 60
	if testing.Short() {
		boxes, enough = 6, 12
	}
	players := []*player{w.join("a", 1), w.join("b", 2), w.join("c", 3)}
	var calm sync.Map
	for _, p := range players {
		p.fault = func(percent int) bool {
			_, quiet := calm.Load("calm")
			return !quiet && p.rng.IntN(100) < percent
		}
		w.start(p)
	}
	ttl := time.Second
	config := func(c *Config) { c.LeaseTTL, c.Poll, c.Shards, c.Batch = ttl, 50*time.Millisecond, 4, 3 }

	var ids []carrel.BoxID
	for n := range boxes {
		ids = append(ids, w.create(fmt.Sprintf("box-%d", n)))
	}

	// It goes on until enough has happened, however slow the machine is.
	ctx, stop := context.WithTimeout(w.ctx, 3*time.Minute)
	defer stop()
	w.mu.Lock()
	w.enough, w.tired = enough, stop
	w.mu.Unlock()
	var busy sync.WaitGroup
	// Replicas: each lives for a random while and comes back, sometimes while what it began is still going on.
	for n := range 3 {
		busy.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(n), 99))
			for ctx.Err() == nil {
				life, end := context.WithTimeout(ctx, time.Duration(20+rng.IntN(3000))*time.Millisecond)
				if err := w.reconcilerOf(fmt.Sprintf("replica-%d", n), config).Run(life); err != nil {
					w.accuse("a reconciler ended with %v", err)
				}
				end()
				wait(ctx, time.Duration(rng.IntN(200))*time.Millisecond)
			}
		})
	}
	// The thief takes leases under the name of their holders, so that these work on with a term that is over.
	busy.Go(func() {
		rng := rand.New(rand.NewPCG(5, 5))
		for wait(ctx, time.Duration(100+rng.IntN(400))*time.Millisecond) {
			name := fmt.Sprintf("boxes/%d/4", rng.IntN(4))
			for n := range 3 {
				_, _, _ = w.store.AcquireLease(ctx, name, fmt.Sprintf("replica-%d", n), ttl)
			}
		}
	})
	// The users.
	verbs := []carrel.Verb{carrel.VerbStart, carrel.VerbPause, carrel.VerbStop, carrel.VerbRestart}
	busy.Go(func() {
		rng := rand.New(rand.NewPCG(6, 6))
		for wait(ctx, time.Duration(5+rng.IntN(40))*time.Millisecond) {
			id := ids[rng.IntN(len(ids))]
			_ = w.set(id, verbs[rng.IntN(len(verbs))], rng.IntN(5) == 0)
		}
	})
	busy.Wait()

	calm.Store("calm", true)
	w.reconciler(config)
	wants := map[carrel.BoxID]carrel.State{}
	for n, id := range ids {
		verb := verbs[n%3]
		if n%4 == 3 {
			verb = carrel.VerbDelete
		}
		if verb == carrel.VerbPause { // only what runs can be paused
			require.NoError(t, w.set(id, carrel.VerbStart, false))
			w.state(id, carrel.StateRunning)
		}
		require.NoError(t, w.set(id, verb, false))
		wants[id], _ = carrel.Goal(verb)
	}
	assigned := 0
	for _, id := range ids {
		b := w.state(id, wants[id])
		assigned += int(b.Epoch)
		w.ended(id)
	}
	require.Empty(t, w.wrong)
	require.Greater(t, assigned, enough, "the test did too little")
	t.Logf("%d runs of %d boxes", assigned, boxes)
}

// ended: every request about the box has come to an end, one way or the other.
func (w *world) ended(id carrel.BoxID) {
	w.t.Helper()
	ops, _, err := w.store.ListOperations(w.ctx, w.scope, store.ListOperations{Org: w.org, Target: string(id), Page: store.Page{Size: carrel.MaxPageSize}})
	require.NoError(w.t, err)
	require.NotEmpty(w.t, ops)
	for _, op := range ops {
		status := op.Status()
		require.True(w.t, status.Done, "%s of generation %d is open for ever: %s", op.Verb, op.Generation, status.Progress)
	}
}

func TestRunLeavesNothingBehind(t *testing.T) {
	s := storetest.New(t)
	w := newWorld(t, s)
	ignore := goleak.IgnoreCurrent()
	ctx, stop := context.WithCancel(w.ctx)
	done := make(chan error, 1)
	r := w.reconcilerOf("one")
	go func() { done <- r.Run(ctx) }()
	require.Eventually(t, func() bool {
		_, ok, err := s.AcquireLease(ctx, "nodes", "other", time.Millisecond)
		return err == nil && !ok
	}, patience, 5*time.Millisecond)
	stop()
	require.NoError(t, <-done)
	_, ok, err := s.AcquireLease(w.ctx, "nodes", "other", time.Second)
	require.NoError(t, err)
	require.True(t, ok, "leases are given back")
	leftover.None(t, ignore)
}
