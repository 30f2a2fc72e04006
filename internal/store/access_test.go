package store_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/store"
	"carrel.dev/carrel/internal/store/storetest"
)

// person is a user without organisations, and what they may see.
func person(t *testing.T, s *store.Store, name string) (carrel.UserID, store.Scope) {
	t.Helper()
	u, err := s.CreateUser(t.Context(), store.SystemScope(), name, false)
	require.NoError(t, err)
	return u.ID, store.Scope{User: u.ID}
}

func sshKey(user carrel.UserID, n int) store.SSHKey {
	return store.SSHKey{User: user, Name: "laptop", PublicKey: fmt.Sprint("ssh-ed25519 key", n), Fingerprint: fmt.Sprint("SHA256:", n)}
}

func TestAnSSHKeyBelongsToOneUser(t *testing.T) {
	s := storetest.New(t)
	ctx := t.Context()
	ada, hers := person(t, s, "ada")
	bob, his := person(t, s, "bob")
	wake := s.Listen(ctx, store.TopicAccess)
	defer wake.Close()
	first, err := s.AddSSHKey(ctx, hers, sshKey(ada, 1))
	require.NoError(t, err)
	require.Equal(t, byte('k'), carrel.IDKind(first.ID))
	requireWoken(t, wake)
	again, err := s.AddSSHKey(ctx, hers, sshKey(ada, 1))
	require.NoError(t, err)
	require.Equal(t, first, again, "a key that is there already stays as it is")
	_, err = s.AddSSHKey(ctx, his, sshKey(bob, 1))
	require.Equal(t, "ssh_key_taken", carrel.ReasonOf(err))
	_, err = s.AddSSHKey(ctx, his, sshKey(ada, 2))
	require.Error(t, err, "nobody adds keys for others")
	keys, err := s.SSHKeys(ctx, his, ada)
	require.NoError(t, err)
	require.Empty(t, keys, "nobody sees those of others")
	_, err = s.RemoveSSHKey(ctx, his, ada, first.ID)
	require.Equal(t, carrel.CodeNotFound, carrel.CodeOf(err))
	second, err := s.AddSSHKey(ctx, hers, sshKey(ada, 2))
	require.NoError(t, err)
	_, err = s.RemoveSSHKey(ctx, hers, ada, "laptop")
	require.Equal(t, "ssh_key_ambiguous", carrel.ReasonOf(err))
	for _, ref := range []string{first.ID, second.Fingerprint} {
		_, err = s.RemoveSSHKey(ctx, hers, ada, ref)
		require.NoError(t, err)
	}
	keys, err = s.SSHKeys(ctx, hers, ada)
	require.NoError(t, err)
	require.Empty(t, keys)
	for i := range store.MaxSSHKeys {
		_, err = s.AddSSHKey(ctx, hers, sshKey(ada, i+10))
		require.NoError(t, err)
	}
	_, err = s.AddSSHKey(ctx, hers, sshKey(ada, 9))
	require.Equal(t, "too_many_ssh_keys", carrel.ReasonOf(err))
}

func requireWoken(t *testing.T, wake *store.Subscription) {
	t.Helper()
	select {
	case <-wake.C:
	case <-time.After(patience):
		t.Fatal("nobody was woken")
	}
}

func TestAccessSaysWhoMayReachWhat(t *testing.T) {
	s := storetest.New(t)
	ctx := t.Context()
	cluster, err := s.Cluster(ctx)
	require.NoError(t, err)
	ada, hers := person(t, s, "ada")
	_, err = s.SetMember(ctx, store.SystemScope(), cluster.DefaultOrg, "ada", "viewer")
	require.NoError(t, err)
	_, err = s.AddSSHKey(ctx, hers, sshKey(ada, 1))
	require.NoError(t, err)
	begun := time.Now().Add(-time.Minute)
	kept, err := s.CreateToken(ctx, hers, store.NewToken{ID: carrel.NewTokenID(), User: ada, Hash: hash(1)})
	require.NoError(t, err)
	revoked, err := s.CreateToken(ctx, hers, store.NewToken{ID: carrel.NewTokenID(), User: ada, Hash: hash(2)})
	require.NoError(t, err)
	_, err = s.RevokeToken(ctx, hers, revoked.ID)
	require.NoError(t, err)
	expired, err := s.CreateToken(ctx, hers, store.NewToken{ID: carrel.NewTokenID(), User: ada, Hash: hash(3), ExpiresAt: time.Now().Add(-time.Second)})
	require.NoError(t, err)
	_, err = s.CreateToken(ctx, hers, store.NewToken{ID: carrel.NewTokenID(), User: ada, Hash: hash(4), ExpiresAt: begun.Add(-time.Hour)})
	require.NoError(t, err)

	access, err := s.Access(ctx, begun)
	require.NoError(t, err)
	require.ElementsMatch(t, []carrel.TokenID{revoked.ID, expired.ID}, access.EndedTokens)
	require.NotContains(t, access.EndedTokens, kept.ID)
	found := false
	for _, u := range access.Users {
		if u.User == ada {
			found = true
			require.Equal(t, store.UserAccess{
				User: ada, Name: "ada", Members: []store.OrgMember{{Org: cluster.DefaultOrg, OrgName: "default", Role: "viewer"}}, Keys: []string{"ssh-ed25519 key1"},
			}, u)
		}
	}
	require.True(t, found)
}

func hash(n byte) []byte {
	h := make([]byte, 32)
	h[0] = n
	return h
}

func TestTheAuditOfAGatewayIsKeptWithItsOrganisation(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	box := w.create("a")
	user := carrel.NewUserID()
	at := time.Now().UTC().Truncate(time.Microsecond)
	require.NoError(t, w.AuditGateway(ctx, "g0000000000000000001", []store.GatewayAudit{
		{At: at, User: user, Box: box.ID, Action: "ssh_login", Detail: "from 192.0.2.1\x00"},
		{At: at, Action: "ssh_refused", Box: carrel.NewBoxID(), Detail: "\xff"},
		{At: at, Action: "ssh_refused", Box: "nonsense", Detail: "x"},
	}))
	entries, err := w.ListAudit(ctx, store.SystemScope(), box.Org, 1)
	require.NoError(t, err)
	require.Equal(t, store.AuditEntry{At: at, Org: box.Org, Actor: "user:" + string(user), Method: "ssh_login", Target: string(box.ID), Detail: "from 192.0.2.1"}, entries[0])
	entries, err = w.ListAudit(ctx, store.SystemScope(), "", 1)
	require.NoError(t, err)
	require.Equal(t, "gateway:g0000000000000000001", entries[0].Actor)
}
