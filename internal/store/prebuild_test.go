package store_test

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/store"
)

// workshop is a world with a template that has a prebuild.
type workshop struct {
	*world
	tpl   store.Template
	facts store.NodeFacts
}

func newWorkshop(t *testing.T) *workshop {
	w := &workshop{world: newWorld(t)}
	w.facts = store.NodeFacts{CPUMillis: 8000, MemoryBytes: 32 * carrel.GiB, DiskBytes: 400 * carrel.GiB, DiskFreeBytes: 400 * carrel.GiB, Images: []string{digest}, RuntimeVersion: "fake r1", AgentSHA256: "a1"}
	require.NoError(t, w.RecordReport(t.Context(), w.node, []store.Report{{Facts: &w.facts}}))
	w.tpl = w.push("first", "pip install x")
	return w
}

// push makes a version with one set-up command.
func (w *workshop) push(description, setup string) store.Template {
	w.t.Helper()
	tpl, err := w.PushTemplate(w.t.Context(), store.SystemScope(), store.Request{}, store.Template{
		Org: w.cluster.SystemOrg, Name: "warm", Description: description, Image: "base", ImageDigest: digest, Resources: carrel.DefaultResources,
		Env: map[string]string{"FROM": "template"}, Prebuild: &carrel.Prebuild{Setup: []string{setup}},
	}, false)
	require.NoError(w.t, err)
	return tpl
}

func (w *workshop) preparation() store.Preparation {
	w.t.Helper()
	p, err := w.Preparation(w.t.Context())
	require.NoError(w.t, err)
	return p
}

func (w *workshop) hidden(purpose carrel.Purpose) *store.Box {
	w.t.Helper()
	var tpl *store.PreparedTemplate
	for _, each := range w.preparation().Templates {
		if each.Name == "warm" {
			tpl = &each
		}
	}
	require.NotNil(w.t, tpl)
	h := store.NewHidden{Purpose: purpose, Template: *tpl}
	if purpose == carrel.PurposePrebuild {
		h.Node, h.RuntimeVersion, h.AgentSHA256 = w.node, w.facts.RuntimeVersion, w.facts.AgentSHA256
	}
	id, err := w.CreateHidden(w.t.Context(), w.lease, h)
	require.NoError(w.t, err)
	return w.box(id)
}

// prebuilt makes a prebuild that is ready.
func (w *workshop) prebuilt() (*store.Box, carrel.SnapshotID) {
	w.t.Helper()
	b := w.hidden(carrel.PurposePrebuild)
	w.assign(b.ID)
	w.report(b.ID, carrel.PhaseRunning)
	require.NoError(w.t, w.SetHidden(w.t.Context(), w.lease, w.box(b.ID), carrel.IntentPaused, "prepared"))
	id := w.commit(b.ID, carrel.SnapshotMemory)
	w.report(b.ID, carrel.PhasePaused)
	return w.box(b.ID), id
}

// waiting makes a box that waits to be taken.
func (w *workshop) waiting() *store.Box {
	w.t.Helper()
	b := w.hidden(carrel.PurposePool)
	w.assign(b.ID)
	w.report(b.ID, carrel.PhaseRunning)
	return w.box(b.ID)
}

func (w *workshop) warmBox(name string) store.NewBox {
	return store.NewBox{
		Org: w.org, Name: name, TemplateID: w.tpl.ID, ImageDigest: digest, Resources: carrel.DefaultResources, Env: map[string]string{"FROM": "user"},
		Labels: map[string]string{"team": "one"},
	}
}

func TestHiddenBoxesAreNobodys(t *testing.T) {
	w := newWorkshop(t)
	ctx := t.Context()
	b, _ := w.prebuilt()
	pool := w.waiting()
	require.Equal(t, w.cluster.SystemOrg, b.Org)
	require.Empty(t, b.Owner)
	for _, scope := range []store.Scope{w.scope, w.operator, store.SystemScope()} {
		for _, hidden := range []*store.Box{b, pool} {
			for _, ref := range []string{string(hidden.ID), string(hidden.Run.ID), hidden.Name} {
				_, err := w.ResolveBox(ctx, scope, hidden.Org, ref)
				requireCode(t, err, carrel.CodeNotFound, "box_not_found")
			}
		}
		boxes, _, err := w.ListBoxes(ctx, scope, store.ListBoxes{})
		require.NoError(t, err)
		require.Empty(t, boxes)
		boxes, _, err = w.ChangedBoxes(ctx, scope, "", "", 0)
		require.NoError(t, err)
		require.Empty(t, boxes, "watchers hear nothing of them")
	}
	routes, _, err := w.Routes(ctx)
	require.NoError(t, err)
	require.Empty(t, routes, "gateways lead nobody to them")
	w.clock.Advance(1000 * time.Hour)
	due, err := w.DuePolicies(ctx, 100)
	require.NoError(t, err)
	require.Empty(t, due, "no policy is about them")
	first := w.newBox("first")
	first.MaxBoxes = 1
	_, err = w.CreateBox(ctx, w.scope, first)
	require.NoError(t, err, "they are in no quota")

	// A prebuild that is ready takes the room of its snapshot, and no other.
	nodes, err := w.Nodes(ctx)
	require.NoError(t, err)
	require.Equal(t, carrel.DefaultResources.DiskBytes()+1<<20, nodes[0].ReservedDiskBytes, "the pool's box and the snapshot")
	require.Len(t, nodes[0].Prebuilds, 1)
}

func TestAVersionWithTheSameRecipeSharesThePrebuild(t *testing.T) {
	w := newWorkshop(t)
	same, other := w.push("said otherwise", "pip install x"), w.push("another", "pip install y")
	require.Equal(t, w.tpl.Recipe, same.Recipe)
	require.NotEqual(t, w.tpl.Recipe, other.Recipe)
	p := w.preparation()
	require.Len(t, p.Templates, 1, "the newest, and only of templates that prepare something")
	require.Equal(t, other.ID, p.Templates[0].ID)
}

func TestOnlyAFittingPrebuildIsCloned(t *testing.T) {
	w := newWorkshop(t)
	ctx := t.Context()
	made, snapshot := w.prebuilt()
	create := func(box store.NewBox) *store.Box {
		op, err := w.CreateBox(ctx, w.scope, box)
		require.NoError(t, err)
		return w.box(carrel.BoxID(op.TargetID))
	}
	clone := func(b *store.Box, from carrel.SnapshotID) (carrel.RunID, error) {
		a := assignment(b, w.node)
		a.Clone = from
		return w.AssignRun(ctx, w.lease, a)
	}
	good := create(w.warmBox("good"))
	require.True(t, good.Cloneable)
	run, err := clone(good, snapshot)
	require.NoError(t, err)
	desired := w.desired().Runs
	var mine *store.DesiredRun
	for i := range desired {
		if desired[i].Run == run {
			mine = &desired[i]
		}
	}
	require.NotNil(t, mine)
	require.True(t, mine.Spec.Clone && mine.WithMemory)
	require.Equal(t, snapshot, mine.Snapshot)
	require.Equal(t, map[string]string{"FROM": "user"}, mine.Spec.Env)
	require.Equal(t, []string{"pip install x"}, mine.Spec.Prepare.Setup, "for when it must begin afresh")
	require.Equal(t, carrel.StateProvisioning, w.state(good.ID), "it is new, and resumes nothing")

	faster := w.warmBox("faster")
	faster.Resources.CPUMillis *= 2
	require.True(t, create(faster).Cloneable, "CPU can be another")
	larger := w.warmBox("larger")
	larger.Resources.MemoryBytes *= 2
	big := create(larger)
	require.False(t, big.Cloneable)
	_, err = clone(big, snapshot)
	require.ErrorIs(t, err, store.ErrChanged)
	_, err = clone(create(w.newBox("of-another-template")), snapshot)
	require.ErrorIs(t, err, store.ErrChanged)
	_, err = clone(create(w.warmBox("of-nothing")), carrel.NewSnapshotID())
	require.ErrorIs(t, err, store.ErrChanged)
	fresh, err := clone(big, "")
	require.NoError(t, err)
	for _, r := range w.desired().Runs {
		if r.Run == fresh {
			require.False(t, r.Spec.Clone || r.WithMemory)
			require.Equal(t, []string{"pip install x"}, r.Spec.Prepare.Setup, "set-up belongs to the template, however the box begins")
		}
	}

	// A clone's own memory is a box's like any other.
	w.report(good.ID, carrel.PhaseRunning, func(r *store.RunReport) { r.StartedFrom = "prebuild" })
	w.ask(good.ID, carrel.VerbPause)
	own := w.commit(good.ID, carrel.SnapshotMemory)
	w.report(good.ID, carrel.PhasePaused)
	w.ask(good.ID, carrel.VerbResume)
	again := w.assign(good.ID)
	for _, r := range w.desired().Runs {
		if r.Run == again {
			require.Equal(t, own, r.Snapshot)
			require.False(t, r.Spec.Clone)
			require.Nil(t, r.Spec.Prepare)
		}
	}

	// One that is given up is not begun from, and is dropped.
	late := create(w.warmBox("late"))
	require.NoError(t, w.SetHidden(ctx, w.lease, w.box(made.ID), carrel.IntentDeleted, "replaced"))
	require.NoError(t, w.PurgeBox(ctx, w.lease, made.ID))
	_, err = clone(late, snapshot)
	require.ErrorIs(t, err, store.ErrChanged)
	require.Equal(t, []carrel.SnapshotID{snapshot}, w.desired().DropSnapshots)
}

func TestADamagedPrebuildIsGivenUp(t *testing.T) {
	w := newWorkshop(t)
	ctx := t.Context()
	_, snapshot := w.prebuilt()
	for i, reason := range []string{carrel.ReasonAgentSilent, carrel.ReasonSnapshotCorrupt} {
		op, err := w.CreateBox(ctx, w.scope, w.warmBox(fmt.Sprint("box", i)))
		require.NoError(t, err)
		b := w.box(carrel.BoxID(op.TargetID))
		a := assignment(b, w.node)
		a.Clone = snapshot
		_, err = w.AssignRun(ctx, w.lease, a)
		require.NoError(t, err)
		w.report(b.ID, carrel.PhaseRunning, func(r *store.RunReport) { r.CloneFailure, r.StartedFrom, r.Notice = reason, "fresh", "afresh" })
		want := ""
		if reason == carrel.ReasonSnapshotCorrupt {
			want = reason
		}
		require.Equal(t, want, w.preparation().Prebuilds[0].Condemned, "after %s", reason)
		require.Equal(t, "afresh", w.box(b.ID).Notice)
	}
	op, err := w.CreateBox(ctx, w.scope, w.warmBox("late"))
	require.NoError(t, err)
	a := assignment(w.box(carrel.BoxID(op.TargetID)), w.node)
	a.Clone = snapshot
	_, err = w.AssignRun(ctx, w.lease, a)
	require.ErrorIs(t, err, store.ErrChanged)
}

func TestAPreparedBoxIsTaken(t *testing.T) {
	w := newWorkshop(t)
	ctx := t.Context()
	require.NoError(t, w.SetPool(ctx, w.operator, w.tpl.Org, "warm", 1))
	requireCode(t, w.SetPool(ctx, w.scope, w.tpl.Org, "warm", 1), carrel.CodeNotFound, "template_not_found")
	waiting := w.waiting()
	pools, err := w.Pools(ctx)
	require.NoError(t, err)
	require.Equal(t, []store.Pool{{Org: w.tpl.Org, Name: "warm", Size: 1, Ready: 1}}, pools)

	larger := w.warmBox("larger")
	larger.Resources.MemoryBytes *= 2
	op, err := w.TakeBox(ctx, w.scope, w.tpl.Recipe, larger)
	require.NoError(t, err)
	require.Nil(t, op, "none of that size waits")
	op, err = w.TakeBox(ctx, w.scope, "another recipe", w.warmBox("other"))
	require.NoError(t, err)
	require.Nil(t, op)

	box := w.warmBox("mine")
	box.Request = store.Request{ID: "once", Method: "CreateBox", Hash: []byte("x")}
	before := w.desired()
	op, err = w.TakeBox(ctx, w.scope, w.tpl.Recipe, box)
	require.NoError(t, err)
	require.Equal(t, string(waiting.ID), op.TargetID)
	require.False(t, w.status(op).Done, "its node has not told the agent yet")
	got := w.box(waiting.ID)
	require.Equal(t, w.org, got.Org)
	require.Equal(t, w.scope.User, got.Owner)
	require.Equal(t, "mine", got.Name)
	require.Equal(t, carrel.PurposeUser, got.Purpose)
	require.Equal(t, box.Env, got.Env)
	require.Equal(t, box.Labels, got.Labels)
	require.True(t, got.CreatedAt.After(waiting.CreatedAt))
	require.Equal(t, waiting.Run.ID, got.Run.ID, "the run goes on")
	require.Equal(t, carrel.StateProvisioning, w.state(got.ID))
	seen, err := w.ResolveBox(ctx, w.scope, w.org, "mine")
	require.NoError(t, err)
	require.Equal(t, got.ID, seen.ID)
	events, _, err := w.ListEvents(ctx, w.scope, got.ID, store.Page{})
	require.NoError(t, err)
	require.Len(t, events, 2, "what was before is nobody's business")
	require.Equal(t, "taken from the warm pool of its template", events[0].Message)
	after := w.desired()
	require.Greater(t, after.Revision, before.Revision, "the node hears of it")
	require.Len(t, after.Runs, 1)
	require.Equal(t, int64(1), after.Runs[0].Identity)
	require.Equal(t, w.org, after.Runs[0].Org)
	require.Equal(t, "mine", after.Runs[0].Spec.BoxName)
	require.Equal(t, box.Env, after.Runs[0].Spec.Env)
	require.Equal(t, carrel.OrderRun, after.Runs[0].Order)

	again, err := w.CreateBox(ctx, w.scope, box)
	require.NoError(t, err)
	require.Equal(t, op.ID, again.ID, "a repeated request gives the same box, whether or not another waits")
	second := w.waiting()
	again, err = w.TakeBox(ctx, w.scope, w.tpl.Recipe, box)
	require.NoError(t, err)
	require.Equal(t, op.ID, again.ID)
	require.Equal(t, carrel.PurposePool, w.box(second.ID).Purpose, "and takes no other")
	_, err = w.TakeBox(ctx, w.scope, w.tpl.Recipe, w.warmBox("mine"))
	requireCode(t, err, carrel.CodeExists, "box_name_taken")
	require.Equal(t, carrel.PurposePool, w.box(second.ID).Purpose)

	w.report(got.ID, carrel.PhaseRunning, func(r *store.RunReport) { r.StartedFrom = "pool" })
	require.True(t, w.status(op).Done)
	require.Equal(t, carrel.StateRunning, w.state(got.ID))
	require.ErrorIs(t, w.SetHidden(ctx, w.lease, waiting, carrel.IntentDeleted, "too late"), store.ErrChanged, "who decided before it was taken does it no harm")
	w.ask(got.ID, carrel.VerbPause)
	w.commit(got.ID, carrel.SnapshotMemory)
	w.report(got.ID, carrel.PhasePaused)
	w.ask(got.ID, carrel.VerbResume)
	run := w.assign(got.ID)
	for _, r := range w.desired().Runs {
		if r.Run == run {
			require.Equal(t, "mine", r.Spec.BoxName)
			require.Equal(t, box.Env, r.Spec.Env)
			require.Equal(t, int64(1), r.Identity)
		}
	}
}

func TestTwoNeverTakeTheSameBox(t *testing.T) {
	w := newWorkshop(t)
	const waiting, users = 3, 8
	for range waiting {
		w.waiting()
	}
	var mu sync.Mutex
	taken := map[string]int{}
	var all sync.WaitGroup
	for i := range users {
		all.Go(func() {
			op, err := w.TakeBox(t.Context(), w.scope, w.tpl.Recipe, w.warmBox(fmt.Sprint("user", i)))
			if err != nil {
				t.Errorf("take: %v", err)
			}
			if op != nil {
				mu.Lock()
				taken[op.TargetID]++
				mu.Unlock()
			}
		})
	}
	all.Wait()
	require.LessOrEqual(t, len(taken), waiting)
	require.NotEmpty(t, taken)
	for id, n := range taken {
		require.Equal(t, 1, n, id)
	}
	for i := len(taken); i < waiting; i++ { // those who came while another held the row were told that none waits
		op, err := w.TakeBox(t.Context(), w.scope, w.tpl.Recipe, w.warmBox(fmt.Sprint("late", i)))
		require.NoError(t, err)
		require.NotNil(t, op)
	}
}

func TestASilentNodesBoxIsNotTaken(t *testing.T) {
	w := newWorkshop(t)
	w.waiting()
	w.clock.Advance(time.Minute)
	op, err := w.TakeBox(t.Context(), w.scope, w.tpl.Recipe, w.warmBox("mine"))
	require.NoError(t, err)
	require.Nil(t, op)
}

// The rest that `down` has begun ends by itself, should it be killed.
func TestARestEndsByItself(t *testing.T) {
	w := newWorkshop(t)
	ctx := t.Context()
	require.False(t, w.preparation().Resting)
	require.NoError(t, w.Rest(ctx, time.Minute))
	require.True(t, w.preparation().Resting)
	w.clock.Advance(2 * time.Minute)
	require.False(t, w.preparation().Resting)
	require.NoError(t, w.Rest(ctx, time.Minute))
	require.NoError(t, w.Rest(ctx, time.Minute), "it may be said again")
	require.NoError(t, w.Rest(ctx, 0))
	require.False(t, w.preparation().Resting)
}
