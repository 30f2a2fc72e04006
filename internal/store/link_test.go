package store_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/store"
)

func TestCommitSnapshotTakesOnlyTheCurrentEpochOfALiveRun(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	propose := func(node carrel.NodeID, c store.CommitSnapshot) (bool, string) {
		t.Helper()
		ok, reason, err := w.CommitSnapshot(ctx, node, c)
		require.NoError(t, err)
		return ok, reason
	}
	refused := func(want string, node carrel.NodeID, c store.CommitSnapshot) {
		t.Helper()
		ok, reason := propose(node, c)
		require.False(t, ok)
		require.Equal(t, want, reason)
	}
	b := w.running("box")
	good := proposal(b, carrel.SnapshotMemory)
	refused(store.RefusedStaleEpoch, w.join("n2"), good)
	old := proposal(b, carrel.SnapshotMemory)
	old.Epoch--
	refused(store.RefusedStaleEpoch, w.node, old)
	foreign := proposal(b, carrel.SnapshotMemory)
	foreign.Run = carrel.NewRunID()
	refused(store.RefusedStaleEpoch, w.node, foreign)
	unknown := proposal(b, carrel.SnapshotMemory)
	unknown.Box = carrel.NewBoxID()
	refused(store.RefusedBoxDeleted, w.node, unknown)
	require.Nil(t, w.box(b.ID).Snapshot, "a refusal leaves nothing")
	for range 3 {
		ok, _ := propose(w.node, good)
		require.True(t, ok, "the same proposal is accepted again and again")
	}
	stolen := good
	stolen.Box = w.running("thief").ID
	refused(store.RefusedStaleEpoch, w.node, stolen)
	w.report(b.ID, carrel.PhasePaused)
	refused(store.RefusedRunEnded, w.node, proposal(w.box(b.ID), carrel.SnapshotMemory))
	ok, _ := propose(w.node, good)
	require.True(t, ok, "what was accepted stays accepted, also after the run")

	w.ask(b.ID, carrel.VerbResume)
	w.assign(b.ID)
	w.report(b.ID, carrel.PhaseRunning)
	second := w.commit(b.ID, carrel.SnapshotDisk)
	require.Equal(t, []carrel.SnapshotID{good.ID}, w.desired().DropSnapshots)
	require.Equal(t, second, w.box(b.ID).Snapshot.ID)
	ok, _ = propose(w.node, good)
	require.True(t, ok)
	require.Equal(t, second, w.box(b.ID).Snapshot.ID, "an old answer repeated changes nothing")

	w.ask(b.ID, carrel.VerbDelete)
	for _, run := range w.desired().Runs {
		if run.Box == b.ID {
			require.Equal(t, carrel.OrderDestroy, run.Order)
		}
	}
	refused(store.RefusedBoxDeleted, w.node, proposal(w.box(b.ID), carrel.SnapshotDisk))
	_, _, err := w.CommitSnapshot(ctx, w.node, store.CommitSnapshot{ID: "nonsense", Box: b.ID, Run: b.Run.ID, Kind: "memory"})
	requireCode(t, err, carrel.CodeInvalid, "bad_snapshot")
}

func TestIncarnationPutsNewEpochsAboveAllOldOnes(t *testing.T) {
	w := newWorld(t)
	b := w.paused("box")
	revision := w.desired().Revision
	c, err := w.RaiseIncarnation(t.Context())
	require.NoError(t, err)
	require.Equal(t, int64(2), c.Incarnation)
	require.Equal(t, int64(2), w.desired().Incarnation)
	require.Greater(t, w.desired().Revision, revision)
	w.ask(b.ID, carrel.VerbResume)
	w.assign(b.ID)
	require.Equal(t, int64(1)<<40+1, w.box(b.ID).Epoch)
	fresh := w.create("fresh")
	w.assign(fresh.ID)
	require.Equal(t, int64(1)<<40+1, w.box(fresh.ID).Epoch)
}

func TestReportsThatDoNotCountChangeNothing(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	b := w.create("box")
	w.assign(b.ID)
	w.report(b.ID, carrel.PhaseStarting)
	good := w.saw(b.ID, carrel.PhaseRunning)
	require.NoError(t, w.RecordReport(ctx, w.node, []store.Report{good}))
	after := w.box(b.ID)
	require.Equal(t, carrel.PhaseRunning, after.Run.Phase)
	ignored := func(node carrel.NodeID, change func(*store.RunReport)) {
		t.Helper()
		r := w.saw(b.ID, carrel.PhaseFailed, change)
		require.NoError(t, w.RecordReport(ctx, node, []store.Report{r}))
		require.Equal(t, after.Touched, w.box(b.ID).Touched)
	}
	ignored(w.node, func(r *store.RunReport) { r.Sequence = good.Runs[0].Sequence })
	ignored(w.node, func(r *store.RunReport) { r.Sequence = 1 })
	ignored(w.node, func(r *store.RunReport) { r.Epoch++ })
	ignored(w.node, func(r *store.RunReport) { r.Epoch-- })
	ignored(w.node, func(r *store.RunReport) { r.Run = carrel.NewRunID() })
	ignored(w.node, func(r *store.RunReport) { r.Phase = "invented" })
	ignored(w.node, func(r *store.RunReport) { r.Phase = carrel.PhaseAssigned })
	ignored(w.join("n2"), func(*store.RunReport) {})
	err := w.RecordReport(ctx, carrel.NewNodeID(), []store.Report{{}})
	requireCode(t, err, carrel.CodeNotFound, "node_not_found")

	w.report(b.ID, carrel.PhaseFailed)
	after = w.box(b.ID)
	require.False(t, after.RunEndedAt.IsZero())
	ignored(w.node, func(r *store.RunReport) { r.Phase = carrel.PhaseRunning })
}

func TestReportIsCleanedAndItsHistoryBounded(t *testing.T) {
	w := newWorld(t)
	b := w.running("box")
	var reports []store.Report
	for i := range 500 {
		phase := carrel.PhaseRunning
		if i%2 == 0 {
			phase = carrel.PhasePausing
		}
		reports = append(reports, w.saw(b.ID, phase))
	}
	reports = append(reports, w.saw(b.ID, carrel.PhaseRunning, func(r *store.RunReport) {
		r.Reason, r.Message = "a\x00b", strings.Repeat("x", 10_000)+"\xff\xfe"
		r.Notice, r.Snapshot, r.At = "bad \xff text", "not an id", w.clock.Now().Add(100*time.Hour)
		r.Generation = 7
	}))
	require.NoError(t, w.RecordReport(t.Context(), w.node, reports))
	run := w.box(b.ID).Run
	require.Equal(t, "ab", run.Reason)
	require.Len(t, run.Message, 4096)
	require.LessOrEqual(t, len(run.Phases), 200)
	require.Equal(t, carrel.PhaseAssigned, run.Phases[0].Phase, "the beginning is kept")
	last := run.Phases[len(run.Phases)-1]
	require.Equal(t, int64(7), last.Generation, "and the end")
	require.True(t, last.At.Before(w.clock.Now().Add(time.Hour)), "a node's clock cannot be far ahead")
	require.Equal(t, "bad ? text", w.box(b.ID).Notice)
}

func TestPhasesKeepTheirGeneration(t *testing.T) {
	w := newWorld(t)
	b := w.running("box")
	w.ask(b.ID, carrel.VerbStart)
	w.report(b.ID, carrel.PhaseRunning)
	w.report(b.ID, carrel.PhaseRunning)
	var got []string
	for _, p := range w.box(b.ID).Run.Phases {
		got = append(got, fmt.Sprint(p.Phase, p.Generation))
	}
	require.Equal(t, []string{"assigned1", "running1", "running2"}, got)
}

func TestJoining(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	hash := func(s string) []byte { return request("", s).Hash }
	expires := w.clock.Now().Add(time.Hour)
	require.NoError(t, w.CreateJoinToken(ctx, w.operator, "node", hash("n"), expires))
	require.NoError(t, w.CreateJoinToken(ctx, w.operator, "gateway", hash("g"), expires))
	err := w.CreateJoinToken(ctx, w.scope, "node", hash("x"), expires)
	requireCode(t, err, carrel.CodeNotFound, "join token_not_found")

	_, err = w.JoinNode(ctx, store.Join{TokenHash: hash("g"), Name: "n9"})
	requireCode(t, err, carrel.CodeUnauthorized, "bad_join_token")
	_, err = w.JoinNode(ctx, store.Join{TokenHash: hash("unknown"), Name: "n9"})
	requireCode(t, err, carrel.CodeUnauthorized, "bad_join_token")
	node, err := w.JoinNode(ctx, store.Join{TokenHash: hash("n"), Name: "n9", Region: "r"})
	require.NoError(t, err)
	require.True(t, node.FactsAt.IsZero())
	again, err := w.JoinNode(ctx, store.Join{TokenHash: hash("n"), Name: "n9"})
	require.NoError(t, err)
	require.Equal(t, node.ID, again.ID, "a machine whose answer was lost may ask again")
	_, err = w.JoinNode(ctx, store.Join{TokenHash: hash("n"), Name: "n10"})
	requireCode(t, err, carrel.CodeUnauthorized, "bad_join_token")
	require.NoError(t, w.TouchNodes(ctx, []store.NodeBeat{{Node: node.ID, Facts: facts(1)}}))
	_, err = w.JoinNode(ctx, store.Join{Name: "n9"})
	requireCode(t, err, carrel.CodeExists, "node_name_taken")
	same, err := w.JoinNode(ctx, store.Join{Name: "n9", ID: string(node.ID)})
	require.NoError(t, err)
	require.Equal(t, node.ID, same.ID)
	_, err = w.JoinNode(ctx, store.Join{Name: string(node.ID)})
	requireCode(t, err, carrel.CodeExists, "node_name_taken")

	g, err := w.JoinGateway(ctx, store.Join{TokenHash: hash("g"), Name: "edge"})
	require.NoError(t, err)
	g2, err := w.JoinGateway(ctx, store.Join{Name: "edge"})
	require.NoError(t, err)
	require.Equal(t, g.ID, g2.ID)
	require.NoError(t, w.CreateJoinToken(ctx, w.operator, "node", hash("old"), w.clock.Now().Add(time.Second)))
	w.clock.Advance(time.Minute)
	_, err = w.JoinNode(ctx, store.Join{TokenHash: hash("old"), Name: "late"})
	requireCode(t, err, carrel.CodeUnauthorized, "bad_join_token")

	names := make([]carrel.NodeID, 10)
	errs := together(10, func(i int) error {
		n, err := w.JoinNode(ctx, store.Join{Name: "same"})
		names[i] = n.ID
		return err
	})
	require.NoError(t, errors.Join(errs...))
	for _, id := range names {
		require.Equal(t, names[0], id)
	}
}

func TestNodesShowWhatIsUsedAndFree(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	b := w.paused("paused")
	w.running("running")
	n, err := w.GetNode(ctx, w.operator, "n1")
	require.NoError(t, err)
	r := carrel.DefaultResources
	require.Equal(t, 1, n.Runs)
	require.Equal(t, r.MemoryBytes, n.UsedMemoryBytes)
	require.Equal(t, 15*r.MemoryBytes, n.FreeMemoryBytes)
	require.Equal(t, 16*4*r.CPUMillis-r.CPUMillis, n.FreeCPUMillis, "cores are given out several times")
	require.Equal(t, 2*r.DiskBytes(), n.ReservedDiskBytes, "a paused box keeps its room on the disk")
	require.Equal(t, []string{digest}, n.Facts.Images)
	w.ask(b.ID, carrel.VerbDelete)
	require.NoError(t, w.PurgeBox(ctx, w.lease, b.ID))
	n, err = w.GetNode(ctx, w.operator, string(n.ID))
	require.NoError(t, err)
	require.Equal(t, r.DiskBytes()+1<<20, n.ReservedDiskBytes, "until it is dropped, the doomed snapshot counts")
	f := facts(16)
	f.DiskFreeBytes = 5
	require.NoError(t, w.RecordReport(ctx, w.node, []store.Report{{Facts: f}}))
	n, err = w.GetNode(ctx, w.operator, "n1")
	require.NoError(t, err)
	require.Equal(t, int64(5), n.FreeDiskBytes, "what the disk really has counts too")
	_, err = w.AssignRun(ctx, w.lease, assignment(w.create("new"), w.node))
	require.ErrorIs(t, err, store.ErrNoRoom)
}

func TestRoutesFollowTheBoxes(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	a, b := w.running("a"), w.running("b")
	w.paused("c")
	routes, mark, err := w.Routes(ctx)
	require.NoError(t, err)
	expect := func(box *store.Box) store.Route {
		return store.Route{
			Box: box.ID, Org: box.Org, Name: box.Name, Run: box.Run.ID, Epoch: 1, Node: w.node, Phase: carrel.PhaseRunning,
			ProxyAddress: "127.0.0.1:7072", Wake: true, KeepShell: 10 * time.Minute,
		}
	}
	require.ElementsMatch(t, []store.Route{expect(a), expect(b)}, routes)
	since := func() map[carrel.BoxID]store.Route {
		t.Helper()
		var got []store.Route
		got, mark, err = w.RoutesSince(ctx, mark)
		require.NoError(t, err)
		byBox := map[carrel.BoxID]store.Route{}
		for _, r := range got {
			byBox[r.Box] = r
		}
		return byBox
	}
	since()
	w.report(a.ID, carrel.PhaseFailed)
	changed := since()
	require.Equal(t, store.Route{Box: a.ID, Org: a.Org, Name: "a", Epoch: 1, Gone: true, Wake: true, KeepShell: 10 * time.Minute}, changed[a.ID], "the epoch is that of the run that is over")
	name := "renamed"
	_, err = w.UpdateBox(ctx, w.scope, store.UpdateBox{Box: b.ID, Name: &name})
	require.NoError(t, err)
	require.Equal(t, "renamed", since()[b.ID].Name)
	require.NoError(t, w.SetBoxPort(ctx, w.scope, b.ID, store.BoxPort{Port: 8080, Visibility: store.PortOrg}, nil))
	require.NoError(t, w.SetBoxPort(ctx, w.scope, b.ID, store.BoxPort{Port: 80, Visibility: store.PortPublic}, nil))
	require.Equal(t, []store.BoxPort{{Port: 80, Visibility: "public"}, {Port: 8080, Visibility: "org"}}, since()[b.ID].Ports)
	require.NoError(t, w.SetBoxPort(ctx, w.scope, b.ID, store.BoxPort{Port: 80, Visibility: store.PortPrivate}, nil))
	require.Equal(t, []store.BoxPort{{Port: 8080, Visibility: "org"}}, since()[b.ID].Ports)
	one, err := w.RouteOf(ctx, a.ID)
	require.NoError(t, err)
	require.True(t, one.Gone)
	require.Equal(t, a.Org, one.Org)
	_, err = w.RouteOf(ctx, carrel.NewBoxID())
	require.Equal(t, carrel.CodeNotFound, carrel.CodeOf(err))
	f := facts(16)
	f.ProxyAddress = "127.0.0.1:9"
	require.NoError(t, w.TouchNodes(ctx, []store.NodeBeat{{Node: w.node, Facts: f}}))
	require.Equal(t, "127.0.0.1:9", since()[b.ID].ProxyAddress, "a proxy that moved changes the routes to it")
	_, all, err := w.RoutesSince(ctx, 1<<60)
	require.NoError(t, err, "a mark of before a restored database means everything")
	require.Less(t, all, int64(1)<<60)
}

// A transaction that was open while a mark was given and commits after it is found with that mark.
func TestChangedBoxesSkipsNoSlowWriter(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	slow, quick := w.create("slow").ID, w.create("quick").ID
	_, mark, err := w.ChangedBoxes(ctx, w.scope, "", "", 0)
	require.NoError(t, err)
	wrote, finish, done := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	go func() {
		name := "slow-renamed"
		_, err := w.UpdateBox(context.WithoutCancel(ctx), w.scope, store.UpdateBox{Box: slow, Name: &name, Check: func(*store.Box) error {
			close(wrote)
			<-finish
			return nil
		}})
		done <- err
	}()
	<-wrote
	w.ask(quick, carrel.VerbStop)
	boxes, mark, err := w.ChangedBoxes(ctx, w.scope, "", "", mark)
	require.NoError(t, err)
	require.Contains(t, namesOf(boxes), "quick")
	close(finish)
	require.NoError(t, <-done)
	boxes, _, err = w.ChangedBoxes(ctx, w.scope, "", "", mark)
	require.NoError(t, err)
	require.Contains(t, namesOf(boxes), "slow-renamed")
	boxes, _, err = w.ChangedBoxes(ctx, w.scope, w.org, quick, 0)
	require.NoError(t, err)
	require.Equal(t, []string{"quick"}, namesOf(boxes))
}

func namesOf(boxes []*store.Box) []string {
	var names []string
	for _, b := range boxes {
		names = append(names, b.Name)
	}
	return names
}

func TestRootKeys(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	used := make([]string, 10)
	errs := together(10, func(i int) error {
		k, err := w.EnsureRootKey(ctx, store.RootKey{ID: fmt.Sprint("k", i), Purpose: "ca", Public: []byte{1}, Wrapped: []byte{byte(i)}})
		used[i] = k.ID
		return err
	})
	require.NoError(t, errors.Join(errs...))
	for _, id := range used {
		require.Equal(t, used[0], id, "replicas that start at once agree")
	}
	require.NoError(t, w.RotateRootKey(ctx, store.RootKey{ID: "new", Purpose: "ca", Public: []byte{2}, Wrapped: []byte{2}}))
	keys, err := w.RootKeys(ctx, "ca")
	require.NoError(t, err)
	require.Len(t, keys, 2)
	require.Equal(t, "new", keys[0].ID)
	require.False(t, keys[1].RetiredAt.IsZero())
	other, err := w.EnsureRootKey(ctx, store.RootKey{ID: "t", Purpose: "ticket", Public: []byte{1}, Wrapped: []byte{1}})
	require.NoError(t, err)
	require.Equal(t, "t", other.ID)
}
