package store_test

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/store"
)

// pages reads a whole list page by page, and does something between the pages.
func (w *world) pages(list store.ListBoxes, between func(page int)) []string {
	w.t.Helper()
	var names []string
	for page := 0; ; page++ {
		boxes, next, err := w.ListBoxes(w.t.Context(), w.scope, list)
		require.NoError(w.t, err)
		require.LessOrEqual(w.t, len(boxes), list.Page.Size)
		names = append(names, namesOf(boxes)...)
		if next == "" {
			return names
		}
		list.Page.Token = next
		if between != nil {
			between(page)
		}
	}
}

func TestPagesNeitherRepeatNorSkip(t *testing.T) {
	for _, order := range []string{"", "name", "name desc", "create_time", "create_time desc"} {
		t.Run(order, func(t *testing.T) {
			w := newWorld(t)
			want := map[string]bool{}
			for i := range 23 {
				name := fmt.Sprintf("m%02d", i)
				w.create(name)
				want[name] = true
			}
			got := w.pages(store.ListBoxes{Org: w.org, OrderBy: order, Page: store.Page{Size: 5}}, func(page int) {
				w.create(fmt.Sprintf("a%d", page)) // before and after the cursor
				w.create(fmt.Sprintf("z%d", page))
				gone := w.create(fmt.Sprintf("n%d", page))
				w.ask(gone.ID, carrel.VerbDelete)
				require.NoError(t, w.PurgeBox(t.Context(), w.lease, gone.ID))
			})
			seen := map[string]bool{}
			for _, name := range got {
				require.False(t, seen[name], "%s twice", name)
				seen[name] = true
			}
			for name := range want {
				require.True(t, seen[name], "%s is left out", name)
			}
		})
	}
}

func TestListFilters(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	w.running("running")
	w.paused("paused")
	w.create("new")
	labels := map[string]string{"team": "a", "quote": `"';--`}
	box := w.newBox("labelled")
	box.Labels = labels
	_, err := w.CreateBox(ctx, w.scope, box)
	require.NoError(t, err)
	gone := w.create("gone")
	w.ask(gone.ID, carrel.VerbDelete)
	require.NoError(t, w.PurgeBox(ctx, w.lease, gone.ID))

	for name, c := range map[string]struct {
		list store.ListBoxes
		want []string
	}{
		"all":       {store.ListBoxes{OrderBy: "name"}, []string{"labelled", "new", "paused", "running"}},
		"deleted":   {store.ListBoxes{OrderBy: "name", ShowDeleted: true}, []string{"gone", "labelled", "new", "paused", "running"}},
		"state":     {store.ListBoxes{State: []carrel.State{carrel.StatePaused}}, []string{"paused"}},
		"states":    {store.ListBoxes{OrderBy: "name", State: []carrel.State{carrel.StateRunning, carrel.StatePaused}}, []string{"paused", "running"}},
		"name":      {store.ListBoxes{Name: "new"}, []string{"new"}},
		"label":     {store.ListBoxes{Labels: map[string]string{"team": "a"}}, []string{"labelled"}},
		"two":       {store.ListBoxes{Labels: labels}, []string{"labelled"}},
		"no label":  {store.ListBoxes{Labels: map[string]string{"team": "b"}}, nil},
		"template":  {store.ListBoxes{Template: "base", Name: "paused"}, []string{"paused"}},
		"no one's":  {store.ListBoxes{Template: "python"}, nil},
		"owner":     {store.ListBoxes{Owner: w.scope.User, Name: "new"}, []string{"new"}},
		"no owner":  {store.ListBoxes{Owner: carrel.NewUserID()}, nil},
		"injection": {store.ListBoxes{Name: "' or 1=1 --"}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			c.list.Page.Size = 2
			require.Equal(t, c.want, w.pages(c.list, nil))
		})
	}
	for _, token := range []string{"x", "e30", "bm9uc2Vuc2U"} {
		_, _, err = w.ListBoxes(ctx, w.scope, store.ListBoxes{Page: store.Page{Token: token}})
		requireCode(t, err, carrel.CodeInvalid, "bad_page_token")
	}
	_, next, err := w.ListBoxes(ctx, w.scope, store.ListBoxes{Page: store.Page{Size: 1}})
	require.NoError(t, err)
	_, _, err = w.ListBoxes(ctx, w.scope, store.ListBoxes{OrderBy: "name", Page: store.Page{Token: next}})
	requireCode(t, err, carrel.CodeInvalid, "bad_page_token")
	_, _, err = w.ListBoxes(ctx, w.scope, store.ListBoxes{OrderBy: "b.id; drop table boxes"})
	requireCode(t, err, carrel.CodeInvalid, "bad_order")
	_, _, err = w.ListBoxes(ctx, w.scope, store.ListBoxes{Page: store.Page{Size: -1}})
	requireCode(t, err, carrel.CodeInvalid, "bad_page_size")
}

func TestARareStateIsLookedForInBoundedSteps(t *testing.T) {
	w := newWorld(t)
	w.paused("needle")
	w.create("hay")
	w.sql(`insert into boxes (id, org_id, created_at, template_id, name, owner_id, image_digest, resources, disk_bytes, labels, env, region, intent,
			intent_at, generation, boot_generation, updated_at)
		select 'b' || lpad(i::text, 19, '0'), org_id, created_at, template_id, 'hay' || i, owner_id, image_digest, resources, disk_bytes, labels, env,
			region, intent, intent_at, generation, boot_generation, updated_at
		from boxes, generate_series(1, 5500) i where name = 'hay'`)
	list := store.ListBoxes{OrderBy: "create_time desc", State: []carrel.State{carrel.StatePaused}, Page: store.Page{Size: 3}}
	boxes, next, err := w.ListBoxes(t.Context(), w.scope, list)
	require.NoError(t, err)
	require.Empty(t, boxes)
	require.NotEmpty(t, next, "there is more to look at")
	require.Equal(t, []string{"needle"}, w.pages(list, nil))
}

func TestNamesAreFreeOnceDeletionIsAskedFor(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	first := w.running("name")
	found := func(ref string) carrel.BoxID {
		t.Helper()
		b, err := w.ResolveBox(ctx, w.scope, w.org, ref)
		require.NoError(t, err)
		return b.ID
	}
	require.Equal(t, first.ID, found("name"))
	require.Equal(t, first.ID, found(string(first.ID)))
	require.Equal(t, first.ID, found(string(first.Run.ID)))
	w.ask(first.ID, carrel.VerbDelete)
	require.Equal(t, first.ID, found("name"), "a box that is being deleted is still found")
	_, err := w.SetIntent(ctx, w.scope, store.SetIntent{Box: first.ID, Verb: carrel.VerbStart, Intent: carrel.IntentRunning})
	requireCode(t, err, carrel.CodePrecondition, "box_deleted")
	second := w.create("name")
	require.Equal(t, second.ID, found("name"), "the name is the new box's")
	other := w.create("other")
	name := "name"
	_, err = w.UpdateBox(ctx, w.scope, store.UpdateBox{Box: other.ID, Name: &name})
	requireCode(t, err, carrel.CodeExists, "box_name_taken")
	w.report(first.ID, carrel.PhaseDestroyed)
	require.NoError(t, w.PurgeBox(ctx, w.lease, first.ID))
	require.Equal(t, second.ID, found("name"))
	_, err = w.ResolveBox(ctx, w.scope, w.org, "nothing")
	requireCode(t, err, carrel.CodeNotFound, "box_not_found")
}

func TestETagsRefuseWhatWasNotSeen(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	b := w.create("box")
	labels := map[string]string{"a": "b"}
	changed, err := w.UpdateBox(ctx, w.scope, store.UpdateBox{Box: b.ID, ETag: b.ETag, Labels: &labels})
	require.NoError(t, err)
	require.NotEqual(t, b.ETag, changed.ETag)
	require.Equal(t, labels, changed.Labels)
	_, err = w.UpdateBox(ctx, w.scope, store.UpdateBox{Box: b.ID, ETag: b.ETag, Labels: &labels})
	requireCode(t, err, carrel.CodeAborted, "box_changed")
	_, err = w.SetIntent(ctx, w.scope, store.SetIntent{Box: b.ID, Verb: carrel.VerbDelete, Intent: carrel.IntentDeleted, ETag: b.ETag})
	requireCode(t, err, carrel.CodeAborted, "box_changed")
	w.assign(b.ID)
	require.Equal(t, changed.ETag, w.box(b.ID).ETag, "what machines do changes no etag")
	w.ask(b.ID, carrel.VerbStop)
	require.NotEqual(t, changed.ETag, w.box(b.ID).ETag)
}

func TestOperationsAndEventsInPages(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	b := w.create("box")
	for range 6 {
		w.ask(b.ID, carrel.VerbStop)
		w.ask(b.ID, carrel.VerbStart)
	}
	w.create("another")
	var verbs []carrel.Verb
	page := store.Page{Size: 5}
	for {
		ops, next, err := w.ListOperations(ctx, w.scope, store.ListOperations{Org: w.org, Target: string(b.ID), Page: page})
		require.NoError(t, err)
		for _, op := range ops {
			verbs = append(verbs, op.Verb)
			require.NotNil(t, op.Box)
			require.Equal(t, "box", op.TargetName)
			require.Equal(t, w.scope.User, op.CreatedBy)
		}
		if next == "" {
			break
		}
		page.Token = next
	}
	require.Len(t, verbs, 13)
	require.Equal(t, carrel.VerbStart, verbs[0], "newest first")
	require.Equal(t, carrel.VerbCreate, verbs[12])
	all, _, err := w.ListOperations(ctx, w.scope, store.ListOperations{})
	require.NoError(t, err)
	require.Len(t, all, 14)
	superseded := all[len(all)-1].Status()
	require.True(t, superseded.Done)
	require.Equal(t, "superseded", superseded.Failure.Reason, "a request that was overtaken says so")
	n := 0
	for page = (store.Page{Size: 4}); ; {
		events, next, err := w.ListEvents(ctx, w.scope, b.ID, page)
		require.NoError(t, err)
		n += len(events)
		if next == "" {
			break
		}
		page.Token = next
	}
	require.Equal(t, 13, n)
}
