package store_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/store"
)

func TestTemplatesAreVersioned(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	tpl := store.Template{Org: w.org, Name: "mine", Description: "one", Image: "base", ImageDigest: digest, Resources: carrel.DefaultResources, Env: map[string]string{"A": "b"}}
	push := func(r store.Request, tpl store.Template, ifChanged bool) store.Template {
		t.Helper()
		got, err := w.PushTemplate(ctx, w.scope, r, tpl, ifChanged)
		require.NoError(t, err)
		return got
	}
	first := push(request("p1", "one"), tpl, false)
	require.Equal(t, int32(1), first.Version)
	require.Equal(t, first, push(request("p1", "one"), tpl, false), "a repeated request gives the first version")
	_, err := w.PushTemplate(ctx, w.scope, request("p1", "two"), tpl, false)
	requireCode(t, err, carrel.CodeInvalid, "request_id_reused")
	require.Equal(t, first, push(store.Request{}, tpl, true), "nothing changed")
	tpl.Description = "two"
	require.Equal(t, int32(2), push(store.Request{}, tpl, true).Version)
	errs := together(10, func(int) error {
		_, err := w.PushTemplate(ctx, w.scope, store.Request{}, tpl, false)
		return err
	})
	require.NoError(t, errors.Join(errs...))
	newest, err := w.GetTemplate(ctx, w.scope, w.org, "mine", 0)
	require.NoError(t, err)
	require.Equal(t, int32(12), newest.Version, "versions have no gaps")
	old, err := w.GetTemplate(ctx, w.scope, w.org, "mine", 1)
	require.NoError(t, err)
	require.Equal(t, first, old, "a version never changes")
	_, err = w.GetTemplate(ctx, w.scope, w.org, "mine", 13)
	requireCode(t, err, carrel.CodeNotFound, "template_not_found")
	shipped, err := w.GetTemplate(ctx, w.scope, w.org, "base", 0)
	require.NoError(t, err)
	require.Equal(t, w.template.ID, shipped.ID)
	own := tpl
	own.Name = "base"
	push(store.Request{}, own, false)
	shadow, err := w.GetTemplate(ctx, w.scope, w.org, "base", 0)
	require.NoError(t, err)
	require.Equal(t, w.org, shadow.Org, "one's own comes first")

	var all []string
	page := store.Page{Size: 3}
	for {
		list, next, err := w.ListTemplates(ctx, w.scope, w.org, true, page)
		require.NoError(t, err)
		for _, v := range list {
			all = append(all, fmt.Sprintf("%s%v %d", v.Name, v.Org == w.org, v.Version))
		}
		if next == "" {
			break
		}
		page.Token = next
	}
	require.Len(t, all, 14)
	require.Equal(t, []string{"minetrue 12", "minetrue 11"}, all[2:4])
	list, _, err := w.ListTemplates(ctx, w.scope, w.org, false, store.Page{})
	require.NoError(t, err)
	require.Len(t, list, 3)
}

func TestImagesAreMadeByChores(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	build := func(id, name string) *store.Operation {
		t.Helper()
		op, err := w.CreateImage(ctx, w.scope, store.NewImage{
			Org: w.org, Name: name, Source: "build", Request: request(id, name), Chore: store.Chore{Kind: store.ChoreImageBuild, Definition: "yaml"},
		})
		require.NoError(t, err)
		return op
	}
	op := build("i1", "img")
	require.Equal(t, op.ID, build("i1", "img").ID)
	require.False(t, w.status(op).Done)
	due := func() []store.Chore {
		t.Helper()
		chores, err := w.DueChores(ctx, w.clock.Now().Add(-time.Minute))
		require.NoError(t, err)
		return chores
	}
	require.Len(t, due(), 1)
	chore := due()[0]
	require.Equal(t, "yaml", chore.Definition)
	revision := w.desired().Revision
	require.ErrorIs(t, w.AssignChore(ctx, w.lease, chore.ID, w.node, w.node), store.ErrChanged)
	require.NoError(t, w.AssignChore(ctx, w.lease, chore.ID, "", w.node))
	require.ErrorIs(t, w.AssignChore(ctx, w.lease, chore.ID, "", w.node), store.ErrChanged)
	require.ErrorIs(t, w.AssignChore(ctx, w.lease, carrel.NewChoreID(), "", w.node), store.ErrChanged)
	require.Empty(t, due())
	require.Greater(t, w.desired().Revision, revision)
	require.Equal(t, chore.ID, w.desired().Chores[0].ID)
	w.clock.Advance(time.Hour)
	require.Len(t, due(), 1, "its node is silent")
	second := w.join("n2")
	require.NoError(t, w.AssignChore(ctx, w.lease, chore.ID, w.node, second))
	require.Empty(t, w.desired().Chores)
	tell := func(node carrel.NodeID, c store.ChoreReport) {
		t.Helper()
		c.Chore = chore.ID
		require.NoError(t, w.RecordReport(ctx, node, []store.Report{{Chores: []store.ChoreReport{c}}}))
	}
	tell(second, store.ChoreReport{Progress: "half"})
	require.Equal(t, "half", w.status(op).Progress)
	tell(w.node, store.ChoreReport{Done: true, Digest: "sha256:wrong"})
	require.False(t, w.status(op).Done, "another node has the chore")
	tell(second, store.ChoreReport{Done: true, Digest: "sha256:new", SizeBytes: 42})
	tell(second, store.ChoreReport{Done: true, ErrorReason: "late"})
	status := w.status(op)
	require.True(t, status.Done)
	require.Nil(t, status.Failure)
	for _, ref := range []string{"img", "sha256:new", op.TargetID} {
		image, err := w.GetImage(ctx, w.scope, w.org, ref)
		require.NoError(t, err)
		require.Equal(t, "sha256:new", image.Digest)
		require.Equal(t, int64(42), image.SizeBytes)
		require.Equal(t, []carrel.NodeID{second}, image.Nodes, "a box of it can be placed at once")
	}

	failing := build("i2", "img")
	chore = due()[0]
	require.NoError(t, w.AssignChore(ctx, w.lease, chore.ID, "", second))
	tell(second, store.ChoreReport{Done: true, ErrorReason: "disk_full", ErrorMessage: "no space"})
	require.Equal(t, "no space", w.status(failing).Failure.Message)
	image, err := w.GetImage(ctx, w.scope, w.org, "img")
	require.NoError(t, err)
	require.Equal(t, "sha256:new", image.Digest, "a name means the newest that is ready")
	lost := build("i3", "lost")
	require.NoError(t, w.FailChore(ctx, w.lease, due()[0].ID, carrel.Failure{Reason: "no_node", Message: "none", NextStep: "add one"}))
	require.Equal(t, "add one", w.status(lost).Failure.NextStep)
	require.Empty(t, due())

	ready, err := w.CreateImage(ctx, store.SystemScope(), store.NewImage{Org: w.cluster.SystemOrg, Name: "shipped", Digest: "sha256:s", SizeBytes: 1})
	require.NoError(t, err)
	require.True(t, ready.Status().Done)
	_, err = w.GetImage(ctx, w.otherOrg("others"), w.org, "shipped")
	require.NoError(t, err)
	var names []string
	page := store.Page{Size: 2}
	for {
		list, next, err := w.ListImages(ctx, w.scope, w.org, page)
		require.NoError(t, err)
		for _, i := range list {
			names = append(names, i.Name)
		}
		if next == "" {
			break
		}
		page.Token = next
	}
	require.Equal(t, []string{"shipped", "lost", "img", "img"}, names)

	// Who tries again does not see the attempt before.
	listed := func() (states []string) {
		t.Helper()
		list, _, err := w.ListImages(ctx, w.scope, w.org, store.Page{})
		require.NoError(t, err)
		for _, i := range list {
			states = append(states, i.Name+" "+i.State)
		}
		return states
	}
	again := build("i4", "img")
	require.Equal(t, []string{"img building", "shipped ready", "lost failed", "img ready"}, listed())
	require.Equal(t, "no space", w.status(failing).Failure.Message)
	require.NoError(t, w.FailChore(ctx, w.lease, due()[0].ID, carrel.Failure{Reason: "no_node", Message: "none", NextStep: "add one"}))
	require.Equal(t, []string{"img failed", "shipped ready", "lost failed", "img ready"}, listed())

	// What failed is forgotten after a day; what was asked for is still told.
	prune := func() {
		t.Helper()
		_, err := w.Prune(ctx, w.lease, w.clock.Now().Add(-30*24*time.Hour), 100)
		require.NoError(t, err)
	}
	prune()
	require.Len(t, listed(), 4)
	w.clock.Advance(25 * time.Hour)
	w.lease = w.take("prune", "test")
	prune()
	require.Equal(t, []string{"shipped ready", "img ready"}, listed())
	for op, why := range map[*store.Operation]string{failing: "no space", again: "none", lost: "none"} {
		require.True(t, w.status(op).Done)
		require.Equal(t, why, w.status(op).Failure.Message)
	}
	require.Equal(t, lost.ID, build("i3", "lost").ID, "a repeat is still one")
	f := facts(1)
	f.Images = nil
	require.NoError(t, w.RecordReport(ctx, second, []store.Report{{Facts: f}}))
	image, err = w.GetImage(ctx, w.scope, w.org, "img")
	require.NoError(t, err)
	require.Empty(t, image.Nodes, "the node does not hold it any more")
}
