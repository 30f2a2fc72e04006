package control_test

import (
	"context"
	"strconv"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/timestamppb"

	linkv1 "carrel.dev/carrel/api/carrel/link/v1"
	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/auth"
	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/control"
	"carrel.dev/carrel/internal/store"
)

func TestATokenMakesNoneThatOutlivesIt(t *testing.T) {
	r := newReplica(t)
	ctx := t.Context()
	member := r.newUser("ada", "default", auth.RoleMember)
	end := time.Now().Add(time.Hour).Truncate(time.Second)
	short, err := member.tokens.CreateToken(ctx, req(&carrelv1.CreateTokenRequest{ExpireTime: timestamppb.New(end)}))
	require.NoError(t, err)
	u := r.as(short.Msg.GetSecret())
	for name, c := range map[string]struct{ asked, want *timestamppb.Timestamp }{
		"without an end": {nil, timestamppb.New(end)},
		"a later one":    {timestamppb.New(end.Add(time.Hour)), timestamppb.New(end)},
		"an earlier one": {timestamppb.New(end.Add(-time.Minute)), timestamppb.New(end.Add(-time.Minute))},
	} {
		made, err := u.tokens.CreateToken(ctx, req(&carrelv1.CreateTokenRequest{ExpireTime: c.asked}))
		require.NoError(t, err, name)
		require.Equal(t, c.want.AsTime(), made.Msg.GetToken().GetExpireTime().AsTime(), name)
	}
	endless, err := member.tokens.CreateToken(ctx, req(&carrelv1.CreateTokenRequest{}))
	require.NoError(t, err)
	require.Nil(t, endless.Msg.GetToken().GetExpireTime(), "one without an end may make one")

	_, err = u.tokens.CreateToken(ctx, req(&carrelv1.CreateTokenRequest{User: "admin"}))
	require.Equal(t, carrel.CodeNotFound, code(err), "nobody makes a token for another user")
	_, err = member.tokens.CreateToken(ctx, req(&carrelv1.CreateTokenRequest{Description: store.AdminTokenDescription}))
	require.Equal(t, "bad_description", reason(err))
	list, err := u.tokens.ListTokens(ctx, req(&carrelv1.ListTokensRequest{}))
	require.NoError(t, err)
	require.Len(t, list.Msg.GetTokens(), 6)
	_, err = u.tokens.RevokeToken(ctx, req(&carrelv1.RevokeTokenRequest{Id: endless.Msg.GetToken().GetId()}))
	require.NoError(t, err, "it may still end others of its user")
}

func TestANewAdministratorsTokenEndsTheFormer(t *testing.T) {
	r := newReplica(t)
	ctx := t.Context()
	own, err := r.asAdmin().tokens.CreateToken(ctx, req(&carrelv1.CreateTokenRequest{Description: "mine"}))
	require.NoError(t, err)
	second, _, err := control.Bootstrap(ctx, r.store, "")
	require.NoError(t, err)
	_, err = r.asAdmin().users.WhoAmI(ctx, req(&carrelv1.WhoAmIRequest{}))
	require.Equal(t, carrel.CodeUnauthorized, code(err), "the former one ended")
	for _, token := range []string{second, own.Msg.GetSecret()} {
		_, err = r.as(token).users.WhoAmI(ctx, req(&carrelv1.WhoAmIRequest{}))
		require.NoError(t, err)
	}
	_, _, err = control.Bootstrap(ctx, r.store, second)
	require.NoError(t, err)
	_, err = r.as(second).users.WhoAmI(ctx, req(&carrelv1.WhoAmIRequest{}))
	require.NoError(t, err, "the same one stays")
	_, _, err = control.Bootstrap(ctx, r.store, r.admin)
	require.Equal(t, "admin_token_revoked", carrel.ReasonOf(err), "one that has ended does not come back")
	_, err = r.as(second).users.WhoAmI(ctx, req(&carrelv1.WhoAmIRequest{}))
	require.NoError(t, err)
}

func TestOneUserWatchesOnlySoOften(t *testing.T) {
	c := newCluster(t)
	r := c.replicaWith(control.Quotas{UserWatchers: 2, Watchers: 3})
	ada, bob := r.newUser("ada", "default", auth.RoleViewer), r.newUser("bob", "default", auth.RoleViewer)
	watch := func(u *user) (stop func(), err error) {
		ctx, cancel := context.WithCancel(within(t))
		stream, err := u.boxes.WatchBoxes(ctx, req(&carrelv1.WatchBoxesRequest{}))
		require.NoError(t, err)
		if !stream.Receive() {
			cancel()
			return nil, stream.Err()
		}
		return func() { cancel(); _ = stream.Close() }, nil
	}
	first, err := watch(ada)
	require.NoError(t, err)
	_, err = watch(ada)
	require.NoError(t, err)
	_, err = watch(ada)
	require.Equal(t, "too_many_watchers", reason(err))
	require.Equal(t, carrel.CodeExhausted, code(err))
	status, header, _ := ada.rest("GET", "/v1/boxes:watch", "")
	require.Equal(t, 429, status, "server-sent events count too")
	require.NotEmpty(t, header.Get("Retry-After"))
	_, err = watch(bob)
	require.NoError(t, err, "another user is not held up")
	_, err = watch(bob)
	require.Equal(t, "too_many_watchers", reason(err), "until the replica has as many as it serves")
	first()
	require.Eventually(t, func() bool {
		_, err := watch(bob)
		return err == nil
	}, patience, 10*time.Millisecond, "a stream that ended makes room")
}

func TestAnOrganisationHasOnlySoManyBoxes(t *testing.T) {
	c := newCluster(t)
	r := c.replicaWith(control.Quotas{Boxes: 2})
	r.catalogue()
	ctx := t.Context()
	u := r.asAdmin()
	first, _ := u.create("one"), u.create("two")
	ask := &carrelv1.CreateBoxRequest{Name: "three", RequestId: "r"}
	_, err := u.boxes.CreateBox(ctx, req(ask))
	require.Equal(t, carrel.CodeExhausted, code(err))
	require.Equal(t, "too_many_boxes", reason(err))
	ops, err := u.ops.ListOperations(ctx, req(&carrelv1.ListOperationsRequest{Org: "default"}))
	require.NoError(t, err)
	require.Len(t, ops.Msg.GetOperations(), 2, "nothing half made")

	_, err = u.orgs.CreateOrg(ctx, req(&carrelv1.CreateOrgRequest{Name: "other"}))
	require.NoError(t, err)
	_, err = u.boxes.CreateBox(ctx, req(&carrelv1.CreateBoxRequest{Name: "one", Org: "other"}))
	require.NoError(t, err, "another organisation has its own")
	_, err = u.boxes.DeleteBox(ctx, req(&carrelv1.DeleteBoxRequest{Id: first}))
	require.NoError(t, err)
	_, err = u.boxes.CreateBox(ctx, req(ask))
	require.NoError(t, err, "a box that is deleted makes room")
}

func TestAnOrganisationImportsOnlySoManyImagesAtOnce(t *testing.T) {
	c := newCluster(t)
	r := c.replicaWith(control.Quotas{Imports: 2})
	ctx := t.Context()
	admin := r.newUser("ada", "default", auth.RoleAdmin)
	ask := func(u *user, n int) error {
		_, err := u.images.ImportImage(ctx, req(&carrelv1.ImportImageRequest{Name: "app" + strconv.Itoa(n), Reference: "registry.example/app:1"}))
		return err
	}
	require.NoError(t, ask(admin, 1))
	require.NoError(t, ask(r.asAdmin(), 2))
	err := ask(admin, 3)
	require.Equal(t, carrel.CodeExhausted, code(err))
	require.Equal(t, "too_many_imports", reason(err))

	chores, err := r.store.DueChores(ctx, time.Now())
	require.NoError(t, err)
	trusted := map[string]bool{}
	for _, c := range chores {
		trusted[c.Name] = c.Trusted
	}
	require.Equal(t, map[string]bool{"app1": false, "app2": true}, trusted, "only what an operator asked for may reach the inside")

	m := r.newMachine("one")
	lease, ok, err := r.store.AcquireLease(ctx, "chores", "test", time.Minute)
	require.NoError(t, err)
	require.True(t, ok)
	for _, c := range chores {
		require.NoError(t, r.store.AssignChore(ctx, lease, c.ID, "", m.id))
	}
	stream, err := m.link.WatchDesired(within(t), req(&linkv1.WatchDesiredRequest{}))
	require.NoError(t, err)
	require.True(t, stream.Receive(), "%v", stream.Err())
	for _, c := range stream.Msg().GetChores() {
		require.Equal(t, trusted[c.GetName()], c.GetTrusted(), "the node is told who asked")
	}
	require.Len(t, stream.Msg().GetChores(), 2)
}

func TestARepeatMayNameTheBoxDifferently(t *testing.T) {
	r := newReplica(t)
	r.catalogue()
	ctx := t.Context()
	u, m := r.asAdmin(), r.newMachine("one")
	org, err := u.orgs.GetOrg(ctx, req(&carrelv1.GetOrgRequest{Org: "default"}))
	require.NoError(t, err)
	ask := &carrelv1.CreateBoxRequest{Name: "dev", RequestId: "c"}
	created, err := u.boxes.CreateBox(ctx, req(ask))
	require.NoError(t, err)
	ask.Org = "default"
	again, err := u.boxes.CreateBox(ctx, req(ask))
	require.NoError(t, err)
	require.Equal(t, created.Msg.GetId(), again.Msg.GetId(), "the organisation named, or left out")

	id := created.Msg.GetTargetId()
	m.run(id)
	run := u.get(id).GetRunId()
	var first *connect.Response[carrelv1.Operation]
	for _, name := range []*carrelv1.StopBoxRequest{{Id: "dev"}, {Id: id}, {Id: run}, {Id: "dev", Org: "default"}, {Id: id, Org: org.Msg.GetId()}} {
		name.RequestId = "s"
		op, err := u.boxes.StopBox(ctx, req(name))
		require.NoError(t, err, "%v", name)
		if first == nil {
			first = op
		}
		require.Equal(t, first.Msg.GetId(), op.Msg.GetId(), "%v", name)
	}
	u.create("other")
	_, err = u.boxes.StopBox(ctx, req(&carrelv1.StopBoxRequest{Id: "other", RequestId: "s"}))
	require.Error(t, err, "another box is another request")
}

// A client that lost the answer to its delete asks again, by the only name it knows.
func TestARepeatIsAboutTheBoxThatHadTheName(t *testing.T) {
	r := newReplica(t)
	r.catalogue()
	ctx := t.Context()
	u, m := r.asAdmin(), r.newMachine("one")
	id := u.create("dev")
	m.run(id)
	ask := &carrelv1.DeleteBoxRequest{Id: "dev", RequestId: "d"}
	first, err := u.boxes.DeleteBox(ctx, req(ask))
	require.NoError(t, err)
	m.says(id, carrel.PhaseDestroyed)
	m.purge(id)
	require.Equal(t, carrel.StateDeleted, carrel.StateOf(&m.box(id).BoxView))

	again, err := u.boxes.DeleteBox(ctx, req(ask))
	require.NoError(t, err)
	require.Equal(t, first.Msg.GetId(), again.Msg.GetId())
	require.True(t, again.Msg.GetDone())
	_, err = u.boxes.DeleteBox(ctx, req(&carrelv1.DeleteBoxRequest{Id: "dev", RequestId: "another"}))
	require.Equal(t, carrel.CodeNotFound, code(err))
	_, err = u.boxes.StopBox(ctx, req(&carrelv1.StopBoxRequest{Id: "dev", RequestId: "d"}))
	require.Equal(t, carrel.CodeNotFound, code(err), "another verb is another request")
	_, err = u.boxes.DeleteBox(ctx, req(&carrelv1.DeleteBoxRequest{Id: "other", RequestId: "d"}))
	require.Equal(t, carrel.CodeNotFound, code(err), "it had another name")

	second := u.create("dev")
	again, err = u.boxes.DeleteBox(ctx, req(ask))
	require.NoError(t, err)
	require.Equal(t, first.Msg.GetId(), again.Msg.GetId())
	require.Equal(t, carrel.IntentRunning, m.box(second).Intent, "the new box of that name is left alone")
}

func TestOperationsOfAnImageByItsName(t *testing.T) {
	r := newReplica(t)
	r.catalogue()
	ctx := t.Context()
	u := r.asAdmin()
	u.create("base") // boxes come first
	u.create("dev")
	for range 2 {
		_, err := u.images.ImportImage(ctx, req(&carrelv1.ImportImageRequest{Name: "app", Reference: "registry.example/app:1"}))
		require.NoError(t, err)
	}
	list := func(target string) []string {
		ops, err := u.ops.ListOperations(ctx, req(&carrelv1.ListOperationsRequest{Target: target}))
		require.NoError(t, err)
		var verbs []string
		for _, op := range ops.Msg.GetOperations() {
			verbs = append(verbs, op.GetVerb()+" "+op.GetTargetName())
		}
		return verbs
	}
	require.Equal(t, []string{"import_image app", "import_image app"}, list("app"))
	require.Equal(t, []string{"create base"}, list("base"))
	_, err := u.ops.ListOperations(ctx, req(&carrelv1.ListOperationsRequest{Target: "none"}))
	require.Equal(t, "target_not_found", reason(err))
}
