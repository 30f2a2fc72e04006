package carreltest_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/carreltest"
	"carrel.dev/carrel/internal/client"
)

const (
	chaosBoxes = 30
	chaosHands = 6 // boxes that live at the same time
	chaosVerbs = 5 // of each box
	// chaosPace is after how many steps of all boxes together, on average, some part of the ring dies.
	chaosPace = 4
)

// chaosSeed is that of every random choice; CARREL_TEST_SEED takes its place. What the choices meet depends on time nevertheless.
func chaosSeed(t *testing.T) uint64 {
	t.Helper()
	text := os.Getenv("CARREL_TEST_SEED")
	if text == "" {
		return 20260731
	}
	seed, err := strconv.ParseUint(text, 10, 64)
	require.NoError(t, err)
	return seed
}

// chaos is what the boxes' drivers share.
type chaos struct {
	s     *carreltest.Stack
	ctx   context.Context
	seed  uint64
	steps chan struct{} // one for each step of any box
}

// life drives one box. What it writes into the box's home must be there whatever happens, what it writes into its memory as long as
// memory is said to be kept.
type life struct {
	*chaos
	name         string
	random       *rand.Rand
	box          *carrelv1.Box
	home, memory string
	// doubtful: two things were asked for at once. The box may be called running while the first is still under way, and what it
	// would be given then would rightly be lost.
	doubtful bool
	log      []string
}

func (l *life) note(format string, args ...any) { l.log = append(l.log, fmt.Sprintf(format, args...)) }

// call repeats a request under one id until somebody answers it. Now and then it is repeated although it was answered.
func (l *life) call(f func(requestID string) (*carrelv1.Operation, error)) (*carrelv1.Operation, error) {
	id := fmt.Sprintf("%s-%d", l.name, len(l.log))
	var op *carrelv1.Operation
	ask := func() error {
		var err error
		op, err = f(id)
		if err != nil && carrel.CodeOf(err) != carrel.CodeUnavailable {
			return nil //nolint:nilerr // it was answered
		}
		return err
	}
	var last error
	first := f
	f = func(id string) (*carrelv1.Operation, error) {
		var op *carrelv1.Operation
		op, last = first(id)
		return op, last
	}
	if err := carreltest.Until(l.ctx, ask); err != nil {
		return nil, err
	}
	if last != nil {
		return nil, last
	}
	if answered := op.GetId(); l.random.IntN(3) == 0 {
		if err := carreltest.Until(l.ctx, ask); err != nil {
			return nil, err
		}
		if last != nil || op.GetId() != answered {
			return nil, fmt.Errorf("request %s gave operation %s, and repeated %s, %w", id, answered, op.GetId(), last)
		}
	}
	return op, nil
}

// settle waits until the operation is done and looks at the box. What was overtaken or failed for a reason that was brought about
// is fine.
func (l *life) settle(op *carrelv1.Operation) error {
	ctx, cancel := context.WithTimeout(l.ctx, carreltest.Patience)
	defer cancel()
	done, err := l.s.Admin.WaitOperation(ctx, op, carreltest.Patience, nil)
	l.note("%s done: %v", op.GetVerb(), err)
	if err != nil && (!done.GetDone() || !slices.Contains([]string{"superseded", carrel.ReasonSandboxDied, carrel.ReasonNotRunning}, carrel.ReasonOf(err))) {
		return fmt.Errorf("wait for %s: %w", op.GetVerb(), err)
	}
	return l.look()
}

// look reads the box until it is in a state to stay in, and checks what must have been kept.
func (l *life) look() error {
	err := carreltest.Until(l.ctx, func() error {
		answer, err := l.s.Admin.Boxes.GetBox(l.ctx, request(&carrelv1.GetBoxRequest{Id: l.name}))
		if err != nil {
			return err
		}
		if before := l.box; before != nil && (answer.Msg.GetEpoch() < before.GetEpoch() || answer.Msg.GetGeneration() < before.GetGeneration()) {
			return fmt.Errorf("the box went back, from epoch %d to %d", before.GetEpoch(), answer.Msg.GetEpoch())
		}
		switch l.box = answer.Msg; l.box.GetState() {
		case carrelv1.State_STATE_RUNNING, carrelv1.State_STATE_PAUSED, carrelv1.State_STATE_STOPPED, carrelv1.State_STATE_FAILED:
			return nil
		}
		return fmt.Errorf("box %s is %s: %v", l.name, l.box.GetState(), l.box.GetFailure())
	})
	if err != nil || l.box.GetState() != carrelv1.State_STATE_RUNNING || l.doubtful {
		return err
	}
	return l.remember()
}

const homeFile = "/home/carrel/file"

// remember checks what the running box remembers, and gives it something new.
func (l *life) remember() error {
	at := slices.IndexFunc(l.s.Nodes, func(n *carreltest.Node) bool {
		_, err := n.Runtime.Machine(l.box.GetRunId()).ReadFile(homeFile)
		return err == nil || errors.Is(err, fs.ErrNotExist)
	})
	if at < 0 {
		return fmt.Errorf("box %s is called running, and no node has its run %s", l.name, l.box.GetRunId())
	}
	machine := l.s.Nodes[at].Runtime.Machine(l.box.GetRunId())
	if l.home != "" {
		kept, err := machine.ReadFile(homeFile)
		if err != nil || string(kept) != l.home {
			return fmt.Errorf("box %s has %q in its home and not %q: %w", l.name, kept, l.home, err)
		}
	}
	kept, err := machine.Memory("m", func(old []byte) []byte { return old })
	if err != nil {
		return err
	}
	if l.box.GetStartedFrom() == "memory" && l.memory != "" && string(kept) != l.memory {
		return fmt.Errorf("box %s was resumed and has %q in memory and not %q", l.name, kept, l.memory)
	}
	l.home, l.memory = fmt.Sprint("home ", len(l.log)), fmt.Sprint("memory ", len(l.log))
	if err := machine.WriteFile(homeFile, []byte(l.home)); err != nil {
		return err
	}
	_, err = machine.Memory("m", func([]byte) []byte { return []byte(l.memory) })
	return err
}

// crash ends the sandbox of the running box, and waits until the box is back.
func (l *life) crash() error {
	run := l.box.GetRunId()
	for _, n := range l.s.Nodes {
		if n.KillSandbox(run) == nil {
			l.note("crash of %s", run)
			l.memory = ""
			err := carreltest.Until(l.ctx, func() error {
				answer, err := l.s.Admin.Boxes.GetBox(l.ctx, request(&carrelv1.GetBoxRequest{Id: l.name}))
				if err == nil && answer.Msg.GetRunId() == run {
					err = errors.New("the crash is not noticed")
				}
				return err
			})
			return errors.Join(err, l.look())
		}
	}
	if l.doubtful {
		return nil
	}
	return fmt.Errorf("no node has the sandbox of run %s", run)
}

func (l *life) verb(name string) (*carrelv1.Operation, error) {
	op, err := l.call(func(id string) (*carrelv1.Operation, error) {
		answer, err := ask(l.ctx, l.s.Admin, name, l.name, id)
		if err != nil {
			return nil, err
		}
		return answer.Msg, nil
	})
	l.note("%s asked: %v", name, err)
	return op, err
}

// step does one thing that fits the state of the box, sometimes two at once.
func (l *life) step() error {
	fits := map[carrelv1.State][]string{
		carrelv1.State_STATE_RUNNING: {"pause", "pause", "pause", "stop", "stop", "restart", "crash"},
		carrelv1.State_STATE_PAUSED:  {"resume", "resume", "start", "stop"},
		carrelv1.State_STATE_STOPPED: {"start"},
		carrelv1.State_STATE_FAILED:  {"start"},
	}[l.box.GetState()]
	name := fits[l.random.IntN(len(fits))]
	if name == "crash" {
		return l.crash()
	}
	op, err := l.verb(name)
	if err != nil {
		return err
	}
	if l.random.IntN(5) == 0 {
		// The user changes their mind at once. What does not fit at that moment is refused.
		next, err := l.verb([]string{"start", "stop", "pause", "restart", "resume"}[l.random.IntN(5)])
		if carrel.CodeOf(err) != carrel.CodePrecondition {
			if err != nil {
				return err
			}
			op, l.doubtful, l.memory = next, true, ""
			return l.settle(op)
		}
	}
	l.doubtful = false
	return l.settle(op)
}

func (l *life) live() error {
	made, err := l.call(func(id string) (*carrelv1.Operation, error) {
		answer, err := l.s.Admin.Boxes.CreateBox(l.ctx, request(&carrelv1.CreateBoxRequest{Name: l.name, RequestId: id}))
		if err != nil {
			return nil, err
		}
		return answer.Msg, nil
	})
	if err == nil {
		err = l.settle(made)
	}
	for i := 0; i < chaosVerbs && err == nil; i++ {
		err = l.step()
		l.steps <- struct{}{}
	}
	if err != nil {
		return fmt.Errorf("%s: %w\n%s", l.name, err, strings.Join(l.log, "\n"))
	}
	return nil
}

// TestNothingActsTwiceWhileReplicasDie: boxes live through random verbs and crashes, while two replicas of control, of reconcile and of the
// gateway, two nodes and their proxies die and come back at random moments, by signal or at once. Every request is answered, every box ends
// as it was wanted with all that it must have kept, no box ever has two sandboxes, no run ends twice, and in the end nothing is left.
func TestNothingActsTwiceWhileReplicasDie(t *testing.T) {
	if testing.Short() {
		return // nodes need root
	}
	s := carreltest.Start(t, carreltest.Options{Controls: 2, Reconcilers: 2, Gateways: 2, Nodes: 2})
	ctx, cancel := context.WithTimeout(t.Context(), 4*carreltest.Patience)
	defer cancel()
	c := &chaos{s: s, ctx: ctx, seed: chaosSeed(t), steps: make(chan struct{}, chaosBoxes*chaosVerbs)}
	names, results := make(chan int, chaosBoxes), make(chan error, chaosBoxes)
	for i := range chaosBoxes {
		names <- i
	}
	close(names)
	var hands sync.WaitGroup
	for range chaosHands {
		hands.Go(func() {
			for i := range names {
				l := &life{chaos: c, name: fmt.Sprintf("box-%d", i), random: rand.New(rand.NewPCG(c.seed, uint64(i)))}
				err := l.live()
				if err != nil {
					cancel()
				}
				results <- err
			}
		})
	}
	over := make(chan struct{})
	go func() { hands.Wait(); close(over) }()
	kills := c.disturb(t, over)
	<-over
	for range chaosBoxes {
		require.NoError(t, <-results)
	}
	t.Logf("%d boxes, %d deaths of parts, seed %d", chaosBoxes, kills, c.seed)
	require.Greater(t, kills, 10)
	s.Eventually("everything is ready", func() error { return s.Ready(ctx) })
	checkHistory(t, s)
	deleteAll(t, s)
}

// disturb ends parts and starts them again, in random order at random moments, until over.
func (c *chaos) disturb(t *testing.T, over <-chan struct{}) (kills int) {
	random := rand.New(rand.NewPCG(c.seed, 1<<32))
	parts := slices.Clone(c.s.Reconcilers)
	for _, p := range c.s.Controls {
		parts = append(parts, p.Part)
	}
	for _, p := range c.s.Gateways {
		parts = append(parts, p.Part)
	}
	for _, p := range c.s.Nodes {
		parts = append(parts, p.Part, p.Proxy)
	}
	for {
		for range 1 + random.IntN(2*chaosPace-1) {
			select {
			case <-c.steps:
			case <-over:
				return kills
			}
		}
		// Some way into the next step.
		moment := time.NewTimer(time.Duration(random.IntN(200)) * time.Millisecond)
		select {
		case <-moment.C:
		case <-over:
			moment.Stop()
			return kills
		}
		p := parts[random.IntN(len(parts))]
		if random.IntN(3) == 0 {
			require.NoError(t, p.Stop())
		} else {
			require.NoError(t, p.Kill())
		}
		require.NoError(t, p.Start())
		kills++
	}
}

// checkHistory looks at what was written down about every box.
func checkHistory(t *testing.T, s *carreltest.Stack) {
	t.Helper()
	require.Empty(t, s.Problems())
	for name, query := range map[string]string{
		"a box with a gap between epochs": `select b.name from boxes b where b.epoch <> (select count(*) from runs r where r.box_id = b.id)
			or b.epoch <> (select coalesce(max(epoch), 0) from runs r where r.box_id = b.id)`,
		"a run that began before the one with the epoch before was over": `select r.id from runs r join runs p on p.box_id = r.box_id and p.epoch = r.epoch - 1
			where p.ended_at is null or r.created_at < p.ended_at`,
		"a box that was not created once":    `select b.name from boxes b where (select count(*) from events e where e.box_id = b.id and e.kind = 'created') <> 1`,
		"a run that was not placed once":     `select r.id from runs r where (select count(*) from events e where e.run_id = r.id and e.kind = 'placed') <> 1`,
		"a run that did not end once":        `select r.id from runs r where r.ended_at is not null and (select count(*) from events e where e.run_id = r.id and e.kind in ('paused', 'stopped', 'failed', 'destroyed')) <> 1`,
		"a run that ended and lives":         `select r.id from runs r where r.ended_at is null and exists (select 1 from events e where e.run_id = r.id and e.kind in ('paused', 'stopped', 'failed', 'destroyed'))`,
		"two snapshots that are the newest":  `select box_id from snapshots where doomed_at is null group by box_id having count(*) > 1`,
		"two snapshots of one run":           `select run_id from snapshots group by run_id having count(*) > 1`,
		"a box that is not as it is wanted":  `select b.name || ' is to be ' || b.intent || ' and is ' || r.phase from boxes b join runs r on r.box_id = b.id and r.epoch = b.epoch where b.deleted_at is null and b.failure is null and b.intent <> r.phase and not (b.intent = 'stopped' and r.phase in ('paused', 'failed', 'destroyed'))`,
		"a request that made two operations": `select request_id from operations where request_id <> '' group by method, request_id having count(*) > 1`,
		// A start that failed before the box ran leaves nothing that would bind it to the node.
		"a run of a node that is not its home": `select r.id || ' ' || r.reason from runs r join boxes b on b.id = r.box_id where r.node_id <> b.home_node
			and (r.phases @> '[{"phase": "running"}]' or exists (select from snapshots s where s.run_id = r.id))`,
	} {
		require.Empty(t, rows[string](t, s, query), name)
	}
	// Sandboxes began in the order of the epochs, each once.
	for _, box := range rows[string](t, s, `select id from boxes`) {
		began, live := s.Sandboxes(box)
		order := rows[string](t, s, `select id from runs where box_id = $1 order by epoch`, box)
		at := -1
		for _, run := range began {
			next := slices.Index(order, run)
			require.Greater(t, next, at, "box %s: sandboxes began as %v, epochs are %v", box, began, order)
			at = next
		}
		require.LessOrEqual(t, len(live), 1)
	}
	operations, err := allOperations(bounded(t), s.Admin)
	require.NoError(t, err)
	for _, op := range operations {
		require.True(t, op.GetDone(), "%v", op)
	}
}

func allOperations(ctx context.Context, c *client.Client) (all []*carrelv1.Operation, err error) {
	for token := ""; ; {
		answer, err := c.Operations.ListOperations(ctx, request(&carrelv1.ListOperationsRequest{PageSize: 100, PageToken: token}))
		if err != nil {
			return nil, err
		}
		all = append(all, answer.Msg.GetOperations()...)
		if token = answer.Msg.GetNextPageToken(); token == "" {
			return all, nil
		}
	}
}
