package reconcile

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/store"
)

var update = flag.Bool("update", false, "write the golden files anew")

var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

const digest = "sha256:1111111111111111111111111111111111111111111111111111111111111111"

// node makes an idle node of 4 cores (over-committed 4x), 8 GiB of memory and 100 GiB of disk.
func node(name string, change ...func(*store.Node)) store.Node {
	n := store.Node{
		ID: carrel.NodeID("n-" + name), Name: name, Schedulable: true, LastSeen: now.Add(-time.Second), FactsAt: now.Add(-time.Second),
		Facts:         store.NodeFacts{CPUMillis: 4000, MemoryBytes: 8 * carrel.GiB, DiskBytes: 100 * carrel.GiB, Images: []string{digest}},
		FreeCPUMillis: 16000, FreeMemoryBytes: 8 * carrel.GiB, FreeDiskBytes: 100 * carrel.GiB,
	}
	for _, c := range change {
		c(&n)
	}
	return n
}

func silent(n *store.Node) { n.LastSeen = now.Add(-time.Minute) }
func closed(n *store.Node) { n.Schedulable = false }
func empty(n *store.Node)  { n.Facts.Images = nil }
func mute(n *store.Node)   { n.FactsAt = time.Time{} }
func in(region string) func(*store.Node) {
	return func(n *store.Node) { n.Region = region }
}

func used(cpu, memory, disk int64) func(*store.Node) {
	return func(n *store.Node) {
		n.FreeCPUMillis, n.UsedCPUMillis = n.FreeCPUMillis-cpu, cpu
		n.FreeMemoryBytes, n.UsedMemoryBytes = n.FreeMemoryBytes-memory, memory
		n.FreeDiskBytes, n.ReservedDiskBytes = n.FreeDiskBytes-disk, disk
	}
}

// box makes a box that is wanted running and never was.
func box(change ...func(*store.Box)) *store.Box {
	b := &store.Box{Org: "o1", Name: "box", ImageDigest: digest, Resources: carrel.DefaultResources, Touched: 1}
	b.BoxView = carrel.BoxView{ID: "b1", Intent: carrel.IntentRunning, Generation: 1, BootGeneration: 1}
	for _, c := range change {
		c(b)
	}
	return b
}

func wants(i carrel.Intent) func(*store.Box) { return func(b *store.Box) { b.Intent = i } }
func boxGeneration(g, boot int64) func(*store.Box) {
	return func(b *store.Box) { b.Generation, b.BootGeneration = g, boot }
}

func run(on string, phase carrel.Phase, ran bool) func(*store.Box) {
	return func(b *store.Box) {
		b.Epoch = 1
		b.HomeNode = carrel.NodeID("n-" + on)
		b.Run = &carrel.RunView{
			ID: "r1", NodeID: b.HomeNode, Epoch: 1, BootGeneration: 1, Phase: phase, Generation: b.Generation,
			Phases: []carrel.PhaseAt{{Phase: carrel.PhaseAssigned, At: now.Add(-time.Minute), Generation: 1}},
		}
		if ran {
			b.Run.Phases = append(b.Run.Phases, carrel.PhaseAt{Phase: carrel.PhaseRunning, At: now.Add(-30 * time.Second), Generation: 1})
		}
	}
}

func because(reason, message string) func(*store.Box) {
	return func(b *store.Box) { b.Run.Reason, b.Run.Message, b.Run.Transient = reason, message, true }
}

func files(on string, kind carrel.SnapshotKind) func(*store.Box) {
	return func(b *store.Box) {
		b.HomeNode = carrel.NodeID("n-" + on)
		b.Snapshot = &carrel.SnapshotView{ID: "s1", NodeID: b.HomeNode, Kind: kind, BootGeneration: 1, At: now.Add(-10 * time.Second)}
	}
}

func failed(reason string, transient bool, retryIn time.Duration, attempts int) func(*store.Box) {
	return func(b *store.Box) {
		b.Failure = &carrel.Failure{Reason: reason, Message: "it was so", Transient: transient, Attempts: attempts, Generation: b.Generation}
		if transient {
			b.Failure.RetryAt = now.Add(retryIn)
		}
		if b.Run != nil {
			b.Failure.RunID = b.Run.ID
		}
	}
}

func show(s step) string {
	switch s.kind {
	case stepAssign:
		return fmt.Sprintf("assign to %s, epoch after %d, generation %d, snapshot %q, memory %v\n    %s", s.assign.Node, s.assign.Epoch, s.assign.Generation, s.assign.Snapshot, s.assign.WithMemory, s.assign.Message)
	case stepFail:
		again := "permanent"
		if s.failure.Transient {
			again = fmt.Sprintf("again in %s", s.failure.RetryAt.Sub(now))
		}
		return fmt.Sprintf("fail %s, attempt %d, %s, after run %q\n    %s\n    %s", s.failure.Reason, s.failure.Attempts, again, s.failure.RunID, s.failure.Message, s.failure.NextStep)
	case stepSettle:
		due := "the next change"
		if !s.due.IsZero() {
			due = s.due.Sub(now).String()
		}
		return fmt.Sprintf("settle until %s, clear %v", due, s.clear)
	}
	return string(s.kind)
}

// The golden file shows what is done for a box in every kind of situation, in the words that a person reads.
func TestPlanGolden(t *testing.T) {
	one := []store.Node{node("a")}
	rows := []struct {
		name  string
		box   *store.Box
		nodes []store.Node
	}{
		{"a new box", box(), one},
		{"a new box, three nodes: the emptiest is taken", box(), []store.Node{node("a", used(2000, 4*carrel.GiB, 0)), node("b", used(0, carrel.GiB, 0)), node("c", used(12000, 0, 0))}},
		{"a new box that shall be paused runs first", box(wants(carrel.IntentPaused)), one},
		{"a new box that shall be stopped", box(wants(carrel.IntentStopped)), one},
		{"a new box that shall be deleted", box(wants(carrel.IntentDeleted)), one},
		{"no node at all", box(), nil},
		{"every node silent", box(), []store.Node{node("a", silent)}},
		{"every node closed", box(), []store.Node{node("a", closed), node("b", closed)}},
		{"a node that said nothing yet", box(), []store.Node{node("a", mute)}},
		{"no room for memory", box(), []store.Node{node("a", used(0, 7*carrel.GiB+100*carrel.MiB, 0))}},
		{"no room for CPU", box(), []store.Node{node("a", used(15500, 0, 0))}},
		{"no room on disk", box(), []store.Node{node("a", used(0, 0, 95*carrel.GiB))}},
		{"no room anywhere, each for its reason", box(), []store.Node{node("a", used(0, 8*carrel.GiB, 0)), node("b", used(16000, 0, 0)), node("c", silent), node("d", closed), node("e", empty), node("f", silent), node("g", silent)}},
		{"too large for every node", box(func(b *store.Box) { b.Resources.MemoryBytes = 64 * carrel.GiB }), []store.Node{node("a"), node("b")}},
		{"an image that nobody has", box(), []store.Node{node("a", empty), node("b", empty)}},
		{"an image that only a silent node has", box(), []store.Node{node("a", empty), node("b", silent)}},
		{"another region", box(func(b *store.Box) { b.Region = "north" }), []store.Node{node("a", in("south")), node("b", in("north"))}},
		{"a region where there is no node", box(func(b *store.Box) { b.Region = "north" }), one},
		{"no room for the fourth time", box(failed(carrel.ReasonNoRoom, true, -time.Second, 3)), []store.Node{node("a", used(0, 8*carrel.GiB, 0))}},
		{"waiting for the next attempt", box(failed(carrel.ReasonNoRoom, true, 3*time.Second, 3)), one},
		{"an attempt that is due", box(failed(carrel.ReasonNoRoom, true, 0, 3)), one},
		{"a permanent failure waits for a person", box(failed(carrel.ReasonTooLarge, false, 0, 1)), one},
		{"a permanent failure of an older request", box(boxGeneration(1, 1), failed(carrel.ReasonTooLarge, false, 0, 1), boxGeneration(2, 1)), one},
		{"resume", box(boxGeneration(2, 1), run("a", carrel.PhasePaused, true), files("a", carrel.SnapshotMemory)), []store.Node{node("a", used(0, 6*carrel.GiB, 0)), node("b")}},
		{"resume where there is no room", box(boxGeneration(2, 1), run("a", carrel.PhasePaused, true), files("a", carrel.SnapshotMemory)), []store.Node{node("a", used(0, 7*carrel.GiB, 0)), node("b")}},
		{"resume on a silent node", box(boxGeneration(2, 1), run("a", carrel.PhasePaused, true), files("a", carrel.SnapshotMemory)), []store.Node{node("a", silent), node("b")}},
		{"resume on a closed node", box(boxGeneration(2, 1), run("a", carrel.PhasePaused, true), files("a", carrel.SnapshotMemory)), []store.Node{node("a", closed), node("b")}},
		{"resume on a node that is gone", box(boxGeneration(2, 1), run("a", carrel.PhasePaused, true), files("a", carrel.SnapshotMemory)), []store.Node{node("b")}},
		{"start from files", box(boxGeneration(2, 1), run("a", carrel.PhaseStopped, true), files("a", carrel.SnapshotDisk)), one},
		{"a cold start of a paused box gives the memory up first", box(boxGeneration(2, 2), run("a", carrel.PhasePaused, true), files("a", carrel.SnapshotMemory)), one},
		{"stop of a paused box", box(wants(carrel.IntentStopped), run("a", carrel.PhasePaused, true), files("a", carrel.SnapshotMemory)), one},
		{"paused", box(wants(carrel.IntentPaused), run("a", carrel.PhasePaused, true), files("a", carrel.SnapshotMemory)), one},
		{"delete of a stopped box", box(wants(carrel.IntentDeleted), run("a", carrel.PhaseStopped, true), files("a", carrel.SnapshotDisk)), one},
		{"delete of a running box waits for its node", box(wants(carrel.IntentDeleted), run("a", carrel.PhaseRunning, true)), one},
		{"the sandbox died", box(run("a", carrel.PhaseFailed, true), files("a", carrel.SnapshotDisk), because(carrel.ReasonSandboxDied, "the sandbox ended by itself (signal: killed)")), one},
		{"and again", box(run("a", carrel.PhaseFailed, true), files("a", carrel.SnapshotDisk), because(carrel.ReasonSandboxDied, "the sandbox ended by itself"), failed(carrel.ReasonSandboxDied, true, 0, 4), func(b *store.Box) { b.Failure.RunID = "r0" }), one},
		{"and for the last time", box(run("a", carrel.PhaseFailed, true), files("a", carrel.SnapshotDisk), because(carrel.ReasonSandboxDied, "the sandbox ended by itself"), failed(carrel.ReasonSandboxDied, true, 0, 11), func(b *store.Box) { b.Failure.RunID = "r0" }), one},
		{"it was written down, now it is tried again", box(run("a", carrel.PhaseFailed, true), files("a", carrel.SnapshotDisk), because(carrel.ReasonSandboxDied, "it died"), failed(carrel.ReasonSandboxDied, true, 0, 1)), one},
		{"a damaged snapshot", box(boxGeneration(2, 1), run("a", carrel.PhaseFailed, false), files("a", carrel.SnapshotMemory), because(carrel.ReasonSnapshotCorrupt, "block 7 of the memory is damaged")), one},
		{"a run that failed without a word", box(run("a", carrel.PhaseFailed, false)), one},
		{"a box that died while it was paused", box(wants(carrel.IntentPaused), run("a", carrel.PhaseFailed, true), files("a", carrel.SnapshotDisk), because(carrel.ReasonSandboxDied, "the sandbox ended by itself")), one},
		{"a stopped box cannot be paused", box(wants(carrel.IntentPaused), run("a", carrel.PhaseStopped, true), files("a", carrel.SnapshotDisk)), one},
		{"running", box(run("a", carrel.PhaseRunning, true)), one},
		{"running on a node that was silent and is back", box(run("a", carrel.PhaseRunning, true), failed(carrel.ReasonNodeLost, true, 0, 1)), one},
		{"running on a node that is still silent", box(run("a", carrel.PhaseRunning, true), failed(carrel.ReasonNodeLost, true, 0, 1)), []store.Node{node("a", silent)}},
	}
	var out strings.Builder
	for _, row := range rows {
		fmt.Fprintf(&out, "%s\n    %s\n\n", row.name, show(planBox(row.box, now, newFleet(row.nodes))))
	}
	const golden = "testdata/plan.golden"
	if *update {
		require.NoError(t, os.MkdirAll("testdata", 0o755))
		require.NoError(t, os.WriteFile(golden, []byte(out.String()), 0o644))
	}
	want, err := os.ReadFile(golden)
	require.NoError(t, err)
	require.Equal(t, string(want), out.String(), "the plan changed: look at it, then run go test ./internal/reconcile -run Golden -update")
}

// Planning reads a box and never changes it: repeating it gives the same answer.
func TestPlanIsRepeatable(t *testing.T) {
	b := box(boxGeneration(2, 1), run("a", carrel.PhasePaused, true), files("a", carrel.SnapshotMemory))
	before := *b
	first := show(planBox(b, now, newFleet([]store.Node{node("a")})))
	require.Equal(t, first, show(planBox(b, now, newFleet([]store.Node{node("a")}))))
	require.Equal(t, before, *b)
}

func TestBoxesOfOneTickDoNotShareRoom(t *testing.T) {
	f := newFleet([]store.Node{node("a", used(0, 4*carrel.GiB, 0)), node("b", used(0, 5*carrel.GiB, 0))})
	got := map[carrel.NodeID]int{}
	unplaced := 0
	for range 5 { // of 2 GiB each: two fit on a, one on b
		s := planBox(box(), now, f)
		if s.unplaced {
			unplaced++
			continue
		}
		got[s.assign.Node]++
	}
	require.Equal(t, map[carrel.NodeID]int{"n-a": 2, "n-b": 1}, got)
	require.Equal(t, 2, unplaced)
}

func TestBoxesOfOneOrganisationSpread(t *testing.T) {
	small := func(b *store.Box) {
		b.Resources = carrel.MinResources
	}
	f := newFleet([]store.Node{node("a"), node("b"), node("c")})
	got := map[carrel.NodeID]int{}
	for range 9 {
		got[planBox(box(small), now, f).assign.Node]++
	}
	require.Equal(t, map[carrel.NodeID]int{"n-a": 3, "n-b": 3, "n-c": 3}, got)
}

func TestRoomForFilesIsCountedOnce(t *testing.T) {
	full := node("a", used(0, 0, 100*carrel.GiB))
	b := box(boxGeneration(2, 1), run("a", carrel.PhaseStopped, true), files("a", carrel.SnapshotDisk))
	require.Equal(t, stepAssign, planBox(b, now, newFleet([]store.Node{full})).kind, "its room on the disk is reserved already")
}

func TestJudge(t *testing.T) {
	var many []store.Node
	for n := range 30 {
		change := func(*store.Node) {}
		if n < 4 {
			change = silent
		}
		many = append(many, node(fmt.Sprintf("n%02d", n), change))
	}
	healthy := now.Add(-time.Hour)
	require.Empty(t, judge(newFleet([]store.Node{node("a")}), now, healthy).silent)

	v := judge(newFleet([]store.Node{node("a", silent)}), now, healthy)
	require.Len(t, v.silent, 1)
	require.False(t, v.mass, "one machine alone can fall silent")

	v = judge(newFleet([]store.Node{node("a", silent)}), now, now.Add(-OfflineAfter/2))
	require.Empty(t, v.silent, "its own reads have not succeeded for a whole window")

	require.True(t, judge(newFleet(many), now, healthy).mass, "4 of 30 at once")
	require.False(t, judge(newFleet(many[2:]), now, healthy).mass, "2 of 28")
	for i := range many[:3] {
		many[i].RemovedAt = now
	}
	v = judge(newFleet(many), now, healthy)
	require.False(t, v.mass, "silence of those that were removed was to be expected")
	require.Len(t, v.silent, 4, "and their boxes are out of reach all the same")
	require.Empty(t, judge(newFleet([]store.Node{node("a", mute)}), now, healthy).silent, "it never spoke")
}

func TestPlanSilent(t *testing.T) {
	n := node("a", silent)
	m := newFleet([]store.Node{n}).byID[n.ID]
	b := box(run("a", carrel.PhaseRunning, true))
	s := planSilent(b, now, m)
	require.NotNil(t, s)
	require.Equal(t, carrel.ReasonNodeLost, s.failure.Reason)
	require.Contains(t, s.failure.Message, "node a has not been heard from since 2026-03-01 11:59:00 UTC")
	b.Failure = &s.failure
	require.Nil(t, planSilent(b, now, m), "said once")
	require.Equal(t, carrel.StateRunning, carrel.StateOf(&b.BoxView), "it stays where its files are")
	require.NotNil(t, b.CurrentFailure())
	require.Nil(t, planSilent(box(run("a", carrel.PhaseStopped, true)), now, m))
}

func TestPlanChore(t *testing.T) {
	f := newFleet([]store.Node{node("a", used(0, 0, 50*carrel.GiB)), node("b"), node("c", silent), node("d", closed)})
	require.Equal(t, "b", planChore(store.Chore{}, now, f).Name)
	require.Equal(t, "a", planChore(store.Chore{Node: "n-b"}, now, f).Name, "it moves away from where it was")
	require.Nil(t, planChore(store.Chore{}, now, newFleet([]store.Node{node("c", silent)})))
}
