package store_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/store"
)

// app is the digest of an image that tests delete, other of one that they keep.
const (
	app   = "sha256:00000000000000000000000000000000000000000000000000000000000000aa"
	other = "sha256:00000000000000000000000000000000000000000000000000000000000000bb"
)

// image keeps an image of a digest that the world's node holds.
func (w *world) image(org carrel.OrgID, name, digest string) *store.Operation {
	w.t.Helper()
	op, err := w.CreateImage(w.t.Context(), store.SystemScope(), store.NewImage{Org: org, Name: name, Source: "build", Digest: digest, SizeBytes: 1})
	require.NoError(w.t, err)
	w.holds(digest)
	return op
}

// holds has the world's node tell that it holds these images, and that of the world's template.
func (w *world) holds(digests ...string) {
	w.t.Helper()
	f := facts(16)
	f.Images = append(f.Images, digests...)
	require.NoError(w.t, w.RecordReport(w.t.Context(), w.node, []store.Report{{Facts: f}}))
}

func (w *world) push(org carrel.OrgID, name, digest string) store.Template {
	w.t.Helper()
	tpl, err := w.PushTemplate(w.t.Context(), store.SystemScope(), store.Request{}, store.Template{
		Org: org, Name: name, Image: name, ImageDigest: digest, Resources: carrel.DefaultResources,
	}, false)
	require.NoError(w.t, err)
	return tpl
}

func (w *world) boxOf(tpl store.Template, scope store.Scope, name string) (*store.Operation, error) {
	return w.CreateBox(w.t.Context(), scope, store.NewBox{
		Org: scope.Orgs[0], Name: name, TemplateID: tpl.ID, ImageDigest: tpl.ImageDigest, Resources: carrel.DefaultResources,
	})
}

func (w *world) deleteImage(org carrel.OrgID, ref string) (*store.Operation, error) {
	return w.DeleteImage(w.t.Context(), w.scope, store.DeleteImage{Org: org, Ref: ref})
}

// away deletes a box that never ran.
func (w *world) away(id string, scope store.Scope) {
	w.t.Helper()
	_, err := w.SetIntent(w.t.Context(), scope, store.SetIntent{Box: carrel.BoxID(id), Verb: carrel.VerbDelete, Intent: carrel.IntentDeleted})
	require.NoError(w.t, err)
}

func TestImagesAreDeletedWhenNothingNeedsThem(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	made := w.image(w.org, "app", app)
	w.image(w.org, "app", other)
	_, err := w.deleteImage(w.org, "nothing")
	requireCode(t, err, carrel.CodeNotFound, "image_not_found")
	_, err = w.deleteImage(w.otherOrg("others").Orgs[0], "app")
	requireCode(t, err, carrel.CodeNotFound, "image_not_found")

	first := w.push(w.org, "web", app)
	_, err = w.deleteImage(w.org, "app")
	requireCode(t, err, carrel.CodePrecondition, "image_in_use")
	require.ErrorContains(t, err, "the template web")
	var boxes []*store.Operation
	for i := range 5 {
		op, err := w.boxOf(first, w.scope, fmt.Sprintf("box-%d", i))
		require.NoError(t, err)
		boxes = append(boxes, op)
	}
	w.push(w.org, "web", digest)
	_, err = w.deleteImage(w.org, app)
	requireCode(t, err, carrel.CodePrecondition, "image_in_use")
	require.ErrorContains(t, err, "the boxes box-0, box-1, box-2 and 2 more")
	require.NotContains(t, err.Error(), "template web", "an older version needs nothing")
	images, _, err := w.ListImages(ctx, w.scope, w.org, store.Page{})
	require.NoError(t, err)
	require.Len(t, images, 2, "nothing was deleted")
	require.Empty(t, w.desired().DropImages)
	for _, op := range boxes {
		w.away(op.TargetID, w.scope)
	}

	del := store.DeleteImage{Org: w.org, Ref: "app", Request: request("d1", "app")}
	op, err := w.DeleteImage(ctx, w.scope, del)
	require.NoError(t, err)
	require.True(t, op.Status().Done)
	require.Nil(t, op.Status().Failure)
	again, err := w.DeleteImage(ctx, w.scope, del)
	require.NoError(t, err)
	require.Equal(t, op.ID, again.ID, "a repeated request gives the first operation")
	require.True(t, again.Replayed)
	del.Request = request("d1", "another")
	_, err = w.DeleteImage(ctx, w.scope, del)
	requireCode(t, err, carrel.CodeInvalid, "request_id_reused")
	_, err = w.deleteImage(w.org, "app")
	requireCode(t, err, carrel.CodeNotFound, "image_not_found")
	images, _, err = w.ListImages(ctx, w.scope, w.org, store.Page{})
	require.NoError(t, err)
	require.Empty(t, images, "a name means every image that has it")
	require.Equal(t, "deleted", w.status(op).Progress)
	require.Equal(t, "ready", w.status(made).Progress, "what was before is still told")

	// What the older version of the template would need is gone.
	_, err = w.boxOf(first, w.scope, "late")
	requireCode(t, err, carrel.CodePrecondition, "image_deleted")
	_, err = w.PushTemplate(ctx, w.scope, store.Request{}, store.Template{Org: w.org, Name: "new", ImageDigest: app, Resources: carrel.DefaultResources}, false)
	requireCode(t, err, carrel.CodePrecondition, "image_deleted")
	w.image(w.org, "app", app)
	_, err = w.boxOf(first, w.scope, "late")
	require.NoError(t, err, "the image is there again")
}

// TestFilesOfImagesAreRemovedInTheEnd: by the nodes that hold them, when no image and no box is left of them.
func TestFilesOfImagesAreRemovedInTheEnd(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	team := w.otherOrg("team")
	w.image(w.org, "app", app)
	w.image(team.Orgs[0], "app", app)
	tpl := w.push(w.org, "web", app)
	op, err := w.boxOf(tpl, w.scope, "box")
	require.NoError(t, err)
	w.push(w.org, "web", digest)
	w.holds(app)

	_, err = w.deleteImage(team.Orgs[0], "app")
	require.NoError(t, err, "nothing of that organisation needs it")
	require.Empty(t, w.desired().DropImages, "another organisation has an image of the same digest")
	w.away(op.TargetID, w.scope)
	_, err = w.deleteImage(w.org, "app")
	require.NoError(t, err)
	require.Empty(t, w.desired().DropImages, "the box is not gone yet")
	revision := w.desired().Revision
	require.NoError(t, w.PurgeBox(ctx, w.lease, carrel.BoxID(op.TargetID)))
	require.Equal(t, []string{app}, w.desired().DropImages)
	require.Greater(t, w.desired().Revision, revision, "the node is told")

	// A chore may be making the image anew.
	_, err = w.CreateImage(ctx, w.scope, store.NewImage{Org: w.org, Name: "again", Source: "build", Chore: store.Chore{Kind: store.ChoreImageBuild}})
	require.NoError(t, err)
	_, err = w.deleteImage(w.org, "again")
	requireCode(t, err, carrel.CodePrecondition, "image_building")
	chores, err := w.DueChores(ctx, w.clock.Now().Add(-time.Minute))
	require.NoError(t, err)
	require.Equal(t, []string{app}, w.desired().DropImages)
	require.NoError(t, w.AssignChore(ctx, w.lease, chores[0].ID, "", w.node))
	require.Empty(t, w.desired().DropImages)
	done := store.ChoreReport{Chore: chores[0].ID, Done: true, Digest: app, SizeBytes: 1}
	require.NoError(t, w.RecordReport(ctx, w.node, []store.Report{{Chores: []store.ChoreReport{done}}}))
	require.Empty(t, w.desired().DropImages, "there is an image of it again")

	_, err = w.deleteImage(w.org, "again")
	require.NoError(t, err)
	require.Equal(t, []string{app}, w.desired().DropImages)
	w.holds()
	require.Empty(t, w.desired().DropImages, "it is removed")
	w.holds(app)
	revision = w.desired().Revision
	_, err = w.Prune(ctx, w.lease, w.clock.Now().Add(-time.Hour), 10)
	require.NoError(t, err)
	require.Greater(t, w.desired().Revision, revision, "a node that comes with an old file is told, too")
}

// TestShippedImagesAreNeededByEverybody: and who deletes one learns only of what they may see.
func TestShippedImagesAreNeededByEverybody(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	system, team := w.cluster.SystemOrg, w.otherOrg("team")
	w.image(system, "tools", app)
	tpl := w.push(system, "tools", app)
	w.push(system, "tools", digest)
	op, err := w.boxOf(tpl, team, "secret")
	require.NoError(t, err)
	_, err = w.DeleteImage(ctx, store.Scope{User: w.scope.User, Orgs: []carrel.OrgID{system}}, store.DeleteImage{Org: system, Ref: "tools"})
	requireCode(t, err, carrel.CodePrecondition, "image_in_use")
	require.NotContains(t, err.Error(), "secret")
	require.ErrorContains(t, err, "1 box of other organisations")
	_, err = w.DeleteImage(ctx, w.operator, store.DeleteImage{Org: system, Ref: "tools"})
	require.ErrorContains(t, err, "the box secret")

	// The organisation's own image is as good.
	w.image(team.Orgs[0], "mine", app)
	_, err = w.deleteImage(system, "tools")
	require.NoError(t, err)
	_, err = w.deleteImage(team.Orgs[0], "mine")
	requireCode(t, err, carrel.CodePrecondition, "image_in_use")
	_, err = w.boxOf(tpl, w.scope, "mine")
	requireCode(t, err, carrel.CodePrecondition, "image_deleted")
	w.away(op.TargetID, team)
	_, err = w.deleteImage(team.Orgs[0], "mine")
	require.NoError(t, err)
}

// TestABoxIsMadeOrItsImageIsDeleted: never both, whoever comes first.
func TestABoxIsMadeOrItsImageIsDeleted(t *testing.T) {
	w := newWorld(t)
	for i := range 12 {
		name := fmt.Sprintf("app-%d", i)
		digest := fmt.Sprintf("sha256:%064d", 1000+i)
		w.image(w.org, name, digest)
		tpl := w.push(w.org, name, digest)
		w.push(w.org, name, other)
		errs := together(5, func(n int) error {
			if n == 0 {
				_, err := w.deleteImage(w.org, name)
				return err
			}
			_, err := w.boxOf(tpl, w.scope, fmt.Sprintf("%s-%d", name, n))
			return err
		})
		made := 0
		for _, err := range errs[1:] {
			if err == nil {
				made++
				continue
			}
			requireCode(t, err, carrel.CodePrecondition, "image_deleted")
		}
		if errs[0] == nil {
			require.Zero(t, made, "a box was made of a deleted image")
			continue
		}
		requireCode(t, errs[0], carrel.CodePrecondition, "image_in_use")
		require.Equal(t, 4, made)
	}
}
