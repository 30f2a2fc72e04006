package main

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"carrel.dev/carrel/internal/auth"
	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/store"
	"carrel.dev/carrel/internal/store/storetest"
)

// crowded is a database with boxes for which there is no room.
type crowded struct {
	*store.Store
	t        *testing.T
	scope    store.Scope
	org      carrel.OrgID
	template store.Template
	lease    store.Lease
}

func newCrowded(t *testing.T) *crowded {
	ctx := t.Context()
	c := &crowded{Store: storetest.New(t), t: t}
	token := auth.NewToken()
	boot, err := c.Bootstrap(ctx, store.Bootstrap{AdminToken: store.NewToken{ID: token.ID, Hash: token.Hash[:]}})
	require.NoError(t, err)
	c.scope = store.Scope{User: boot.Admin, Platform: true}
	ada, err := c.CreateUser(ctx, c.scope, "ada", false)
	require.NoError(t, err)
	org, err := c.CreateOrg(ctx, c.scope, "research", ada.ID) // the administrator is no member of it
	require.NoError(t, err)
	c.org = org.ID
	digest := "sha256:" + strings.Repeat("1", 64)
	c.template, err = c.PushTemplate(ctx, store.SystemScope(), store.Request{}, store.Template{
		Org: boot.Cluster.SystemOrg, Name: "base", Image: "base", ImageDigest: digest, Resources: carrel.DefaultResources,
	}, false)
	require.NoError(t, err)
	var held bool
	c.lease, held, err = c.AcquireLease(ctx, "boxes/0/1", "test", time.Hour)
	require.NoError(t, err)
	require.True(t, held)
	return c
}

func (c *crowded) box(id carrel.BoxID) *store.Box {
	c.t.Helper()
	box, err := c.GetBox(c.t.Context(), store.SystemScope(), id)
	require.NoError(c.t, err)
	return box
}

func (c *crowded) create(name string) *store.Box {
	c.t.Helper()
	op, err := c.CreateBox(c.t.Context(), c.scope, store.NewBox{
		Org: c.org, Name: name, TemplateID: c.template.ID, ImageDigest: c.template.ImageDigest, Resources: carrel.DefaultResources,
	})
	require.NoError(c.t, err)
	return c.box(carrel.BoxID(op.TargetID))
}

func (c *crowded) findsNoRoom(id carrel.BoxID) {
	c.t.Helper()
	box := c.box(id)
	require.NoError(c.t, c.RecordFailure(c.t.Context(), c.lease, id, box.Touched, carrel.Failure{
		Reason: "no_room", Message: "no node has room", Transient: true, Attempts: 1, Generation: box.Generation, At: time.Now(), RetryAt: time.Now().Add(time.Minute),
	}))
}

// A box that waits for room must not keep Carrel from being stopped: nothing of it runs, and it may wait for ever. It makes no difference whose it is.
func TestDownDoesNotWaitForABoxThatWaits(t *testing.T) {
	c := newCrowded(t)
	late := c.create("late")
	c.findsNoRoom(late.ID)
	var said bytes.Buffer
	require.NoError(t, (&quieting{store: c.Store, out: newProgress(&said)}).run(t.Context()))
	require.Equal(t, late.Generation, c.box(late.ID).Generation, "what waits already is not asked to pause, which would be for later")
	require.Contains(t, said.String(), "late has not started")
	require.Contains(t, said.String(), "no node has room")

	// One of which that turns out when it is asked already.
	fresh := c.create("fresh")
	ended := make(chan error, 1)
	said.Reset()
	go func() { ended <- (&quieting{store: c.Store, out: newProgress(&said)}).run(t.Context()) }()
	require.Eventually(t, func() bool { return c.box(fresh.ID).Intent == carrel.IntentPaused }, time.Minute, time.Millisecond)
	c.findsNoRoom(fresh.ID)
	require.NoError(t, <-ended)
	require.Contains(t, said.String(), "fresh has not started")
}
