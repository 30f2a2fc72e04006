package store_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/store"
	"carrel.dev/carrel/internal/store/db"
)

// tenantTables are every table with an organisation in it. TestEveryTenantTableIsGuarded finds one that is missing here.
var tenantTables = []string{"memberships", "templates", "images", "boxes", "runs", "snapshots", "operations", "events", "audit", "chores", "box_ports", "box_activity"}

// Row-level security holds for statements that forget the organisation: this is what it is for.
func TestRowsOfOthersAreNeitherSeenNorWritten(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	b := w.paused("mine")
	_, err := w.CreateImage(ctx, w.scope, store.NewImage{Org: w.org, Name: "img", Chore: store.Chore{Kind: store.ChoreImageBuild}})
	require.NoError(t, err)
	_, err = w.PushTemplate(ctx, w.scope, store.Request{}, store.Template{Org: w.org, Name: "tpl", ImageDigest: digest}, false)
	require.NoError(t, err)
	theirs := w.otherOrg("theirs")
	nobody := store.Scope{}
	require.NoError(t, w.Transact(ctx, w.scope, func(tx db.DBTX) error {
		_, err := tx.Exec(ctx, "insert into box_ports (org_id, box_id, port, visibility, set_by, set_at) values ($1, $2, 8000, 'org', 'me', now())", w.org, b.ID)
		return err
	}))

	count := func(scope store.Scope, table, where string) (n int) {
		require.NoError(t, w.Transact(ctx, scope, func(tx db.DBTX) error {
			return tx.QueryRow(ctx, "select count(*) from "+table+" where "+where).Scan(&n)
		}))
		return n
	}
	for _, table := range tenantTables {
		mine := fmt.Sprintf("org_id = '%s'", w.org)
		require.Positive(t, count(w.scope, table, mine), "%s has something to guard", table)
		require.Zero(t, count(theirs, table, mine), "%s seen by another organisation", table)
		require.Zero(t, count(nobody, table, mine), "%s seen by nobody", table)
		require.Positive(t, count(w.operator, table, mine), "%s seen by an operator", table)
		require.Zero(t, count(w.scope, table, fmt.Sprintf("org_id not in ('%s', '%s')", w.org, w.cluster.SystemOrg)), "%s shows others", table)
	}
	require.Zero(t, count(theirs, "orgs", fmt.Sprintf("id = '%s'", w.org)))
	require.Positive(t, count(theirs, "templates", "name = 'base'"), "what is shipped can be read by all")
	require.Zero(t, count(theirs, "memberships", fmt.Sprintf("org_id = '%s'", w.cluster.SystemOrg)), "but not who owns it")

	denied := func(scope store.Scope, statement string, args ...any) {
		t.Helper()
		err := w.Transact(ctx, scope, func(tx db.DBTX) error {
			tag, err := tx.Exec(ctx, statement, args...)
			if err == nil {
				require.Zero(t, tag.RowsAffected(), statement)
				return carrel.Errorf(carrel.CodeDenied, "not_allowed", "nothing was touched")
			}
			return err
		})
		requireCode(t, err, carrel.CodeDenied, "not_allowed")
	}
	denied(theirs, "update boxes set name = 'stolen'")
	denied(theirs, "update boxes set name = 'stolen' where id = $1", b.ID)
	denied(w.scope, "update boxes set org_id = $1", theirs.Orgs[0])
	denied(theirs, "delete from memberships where org_id = $1", w.org)
	denied(theirs, "insert into memberships (org_id, user_id, role) values ($1, $2, 'owner')", w.org, theirs.User)
	denied(theirs, "insert into templates (id, org_id, name, version, description, image, image_digest, resources, env, labels, sudo, startup, created_by, created_at, request_id) values ('x', $1, 'base', 9, '', '', '', '{}', '{}', '{}', false, '[]', '', now(), '')", w.cluster.SystemOrg)
	denied(theirs, "update snapshots set memory_retired_at = now()")
	denied(theirs, "insert into users (id, name, operator, created_at) values ('x', 'x', true, now())")
	denied(theirs, "update users set operator = true")
	denied(theirs, "insert into orgs (id, name, created_at) values ('x', 'x', now())")
	for _, statement := range []string{
		"select * from tokens, leases", "select * from root_keys", "select * from join_tokens", "select facts from nodes", "select * from gateways",
		"delete from audit", "update audit set actor = ''", "update runs set phase = 'running'", "delete from boxes", "insert into nodes (id) values ('x')",
		"set role carrel_owner", "set role carrel_system", "update nodes set schedulable = false", "insert into runs (id) values ('x')",
		"create table x (y int)", "alter table boxes disable row level security",
	} {
		denied(w.operator, statement)
	}
	// What the store answers is the same as if there were nothing.
	_, err = w.GetBox(ctx, theirs, b.ID)
	requireCode(t, err, carrel.CodeNotFound, "box_not_found")
	_, err = w.ResolveBox(ctx, theirs, w.org, "mine")
	requireCode(t, err, carrel.CodeNotFound, "box_not_found")
	_, err = w.ResolveBox(ctx, theirs, theirs.Orgs[0], string(b.Run.ID))
	requireCode(t, err, carrel.CodeNotFound, "box_not_found")
	_, err = w.GetRun(ctx, theirs, b.Run.ID)
	requireCode(t, err, carrel.CodeNotFound, "run_not_found")
	_, _, err = w.ListEvents(ctx, theirs, b.ID, store.Page{})
	requireCode(t, err, carrel.CodeNotFound, "box_not_found")
	_, err = w.SetIntent(ctx, theirs, store.SetIntent{Box: b.ID, Verb: carrel.VerbDelete, Intent: carrel.IntentDeleted})
	requireCode(t, err, carrel.CodeNotFound, "box_not_found")
	_, err = w.UpdateBox(ctx, theirs, store.UpdateBox{Box: b.ID})
	requireCode(t, err, carrel.CodeNotFound, "box_not_found")
	_, err = w.CreateBox(ctx, theirs, w.newBox("smuggled"))
	requireCode(t, err, carrel.CodeDenied, "not_allowed")
	_, err = w.GetImage(ctx, theirs, w.org, "img")
	requireCode(t, err, carrel.CodeNotFound, "image_not_found")
	_, err = w.GetOrg(ctx, theirs, "default")
	requireCode(t, err, carrel.CodeNotFound, "organisation_not_found")
	boxes, _, err := w.ListBoxes(ctx, theirs, store.ListBoxes{Org: w.org})
	require.NoError(t, err)
	require.Empty(t, boxes)
	ops, _, err := w.ListOperations(ctx, theirs, store.ListOperations{Target: string(b.ID)})
	require.NoError(t, err)
	require.Empty(t, ops)
	changed, _, err := w.ChangedBoxes(ctx, theirs, "", "", 0)
	require.NoError(t, err)
	require.Empty(t, changed)
	for _, scope := range []store.Scope{w.scope, theirs} {
		_, err = w.GetNode(ctx, scope, "n1")
		requireCode(t, err, carrel.CodeNotFound, "node_not_found")
	}
}

// A scope ends with its transaction: the next one on the same connection sees nothing of it.
func TestScopeDoesNotLeakThroughThePool(t *testing.T) {
	w := newWorld(t)
	s := w.db.Open(t, store.Config{MaxConns: 1})
	b := w.create("mine")
	for range 3 {
		_, err := s.GetBox(t.Context(), w.operator, b.ID)
		require.NoError(t, err)
		_, err = s.GetBox(t.Context(), store.Scope{}, b.ID)
		requireCode(t, err, carrel.CodeNotFound, "box_not_found")
	}
	_, err := s.GetBox(t.Context(), store.Scope{Orgs: []carrel.OrgID{"x', true); drop table boxes; --"}}, b.ID)
	require.ErrorContains(t, err, "is no id")
}

func TestEveryTenantTableIsGuarded(t *testing.T) {
	w := newWorld(t)
	conn, err := pgx.Connect(t.Context(), w.db.OwnerURL)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	rows, err := conn.Query(t.Context(), `select c.relname::text from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attname = 'org_id'
		where c.relkind = 'r' and c.relnamespace = 'public'::regnamespace and c.relrowsecurity and c.relforcerowsecurity`)
	require.NoError(t, err)
	guarded, err := pgx.CollectRows(rows, pgx.RowTo[string])
	require.NoError(t, err)
	rows, err = conn.Query(t.Context(), `select table_name::text from information_schema.columns where column_name = 'org_id' and table_schema = 'public'`)
	require.NoError(t, err)
	all, err := pgx.CollectRows(rows, pgx.RowTo[string])
	require.NoError(t, err)
	require.ElementsMatch(t, all, guarded)
	require.ElementsMatch(t, all, tenantTables)
}

func TestOrganisationsAndMembers(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	team := w.otherOrg("team")
	org := team.Orgs[0]
	_, err := w.CreateOrg(ctx, w.operator, "team", team.User)
	requireCode(t, err, carrel.CodeExists, "org_name_taken")
	_, err = w.CreateOrg(ctx, team, "own", team.User)
	requireCode(t, err, carrel.CodeDenied, "not_allowed")
	_, err = w.CreateUser(ctx, w.operator, "team-owner", false)
	requireCode(t, err, carrel.CodeExists, "user_name_taken")
	_, err = w.CreateUser(ctx, team, "self", true)
	requireCode(t, err, carrel.CodeDenied, "not_allowed")

	m, err := w.SetMember(ctx, team, org, "admin", "viewer")
	require.NoError(t, err)
	require.Equal(t, store.Member{Org: org, User: w.scope.User, UserName: "admin", Role: "viewer"}, m)
	members, err := w.ListMembers(ctx, team, org)
	require.NoError(t, err)
	require.Len(t, members, 2)
	_, err = w.SetMember(ctx, team, org, string(team.User), "member")
	requireCode(t, err, carrel.CodePrecondition, "last_owner")
	err = w.RemoveMember(ctx, team, org, string(team.User))
	requireCode(t, err, carrel.CodePrecondition, "last_owner")
	_, err = w.SetMember(ctx, team, org, "nobody", "member")
	requireCode(t, err, carrel.CodeNotFound, "user_not_found")
	_, err = w.SetMember(ctx, team, w.org, "admin", "viewer")
	requireCode(t, err, carrel.CodeNotFound, "organisation_not_found")
	_, err = w.SetMember(ctx, team, org, "admin", "owner")
	require.NoError(t, err)
	require.NoError(t, w.RemoveMember(ctx, team, org, string(team.User)))
	err = w.RemoveMember(ctx, w.operator, org, string(team.User))
	requireCode(t, err, carrel.CodeNotFound, "member_not_found")
	of, err := w.UserMembers(ctx, w.scope.User)
	require.NoError(t, err)
	require.Len(t, of, 3)

	orgs, err := w.ListOrgs(ctx, w.scope)
	require.NoError(t, err)
	require.Len(t, orgs, 1)
	orgs, err = w.ListOrgs(ctx, w.operator)
	require.NoError(t, err)
	require.Len(t, orgs, 3)
	found, err := w.GetOrg(ctx, w.operator, "team")
	require.NoError(t, err)
	require.Equal(t, org, found.ID)
	users, err := w.ListUsers(ctx, w.scope)
	require.NoError(t, err)
	require.Len(t, users, 2)
	user, err := w.GetUser(ctx, w.scope, "team-owner")
	require.NoError(t, err)
	require.Equal(t, team.User, user.ID)
	audit, err := w.ListAudit(ctx, w.operator, org, 100)
	require.NoError(t, err)
	require.Equal(t, "RemoveMember", audit[0].Method)
	require.Equal(t, "user:"+string(team.User), audit[0].Actor)
}

func TestTokens(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	team := w.otherOrg("team")
	token := func(scope store.Scope, user carrel.UserID, secret string) (store.NewToken, error) {
		n := store.NewToken{ID: carrel.NewTokenID(), User: user, Description: "d", Hash: request("", secret).Hash}
		_, err := w.CreateToken(ctx, scope, n)
		return n, err
	}
	mine, err := token(team, team.User, "one")
	require.NoError(t, err)
	_, err = token(team, w.scope.User, "two")
	requireCode(t, err, carrel.CodeDenied, "not_allowed")
	other, err := token(w.operator, team.User, "three")
	require.NoError(t, err)

	owner, err := w.LookupToken(ctx, mine.Hash)
	require.NoError(t, err)
	require.Equal(t, team.User, owner.User.ID)
	require.Equal(t, "owner", owner.Members[0].Role)
	_, err = w.LookupToken(ctx, request("", "no").Hash)
	requireCode(t, err, carrel.CodeUnauthorized, "bad_token")
	list, err := w.ListTokens(ctx, team, team.User)
	require.NoError(t, err)
	require.Len(t, list, 2)
	list, err = w.ListTokens(ctx, w.scope, team.User)
	require.NoError(t, err)
	require.Empty(t, list, "tokens of others cannot be seen")
	_, err = w.RevokeToken(ctx, w.scope, mine.ID)
	requireCode(t, err, carrel.CodeNotFound, "token_not_found")
	for range 2 {
		revoked, err := w.RevokeToken(ctx, team, mine.ID)
		require.NoError(t, err)
		require.False(t, revoked.RevokedAt.IsZero())
	}
	_, err = w.LookupToken(ctx, mine.Hash)
	requireCode(t, err, carrel.CodeUnauthorized, "token_revoked")
	short := store.NewToken{ID: carrel.NewTokenID(), User: team.User, Hash: request("", "short").Hash, ExpiresAt: w.clock.Now().Add(1000)}
	_, err = w.CreateToken(ctx, team, short)
	require.NoError(t, err)
	_, err = w.LookupToken(ctx, short.Hash)
	requireCode(t, err, carrel.CodeUnauthorized, "token_expired")
	_, err = w.LookupToken(ctx, other.Hash)
	require.NoError(t, err)
}

func TestBootstrapIsIdempotent(t *testing.T) {
	w := newWorld(t)
	admin := store.NewToken{ID: carrel.NewTokenID(), Description: "first", Hash: request("", "secret").Hash}
	for range 3 {
		b, err := w.Bootstrap(t.Context(), store.Bootstrap{AdminToken: admin})
		require.NoError(t, err)
		require.Equal(t, w.cluster, b.Cluster)
	}
	owner, err := w.LookupToken(t.Context(), admin.Hash)
	require.NoError(t, err)
	require.True(t, owner.User.Operator)
	require.Len(t, owner.Members, 2)
	tokens, err := w.ListTokens(t.Context(), w.operator, owner.User.ID)
	require.NoError(t, err)
	require.Len(t, tokens, 1)
}
