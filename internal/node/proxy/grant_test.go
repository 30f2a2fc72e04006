package proxy_test

import (
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"carrel.dev/carrel/internal/auth"
	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/node/proxy"
)

func TestAGrantOpensTheBoxesOfItsOrganisations(t *testing.T) {
	w := newWorld(t)
	a := newAgent(t, w.run)
	org := carrel.NewOrgID()
	r := w.route(a)
	r.Org = org
	require.NoError(t, w.client.SetRoute(t.Context(), r))
	status := func(target, epoch string, change func(*auth.Grant)) int {
		t.Helper()
		g := auth.Grant{User: carrel.NewUserID(), Orgs: map[carrel.OrgID]string{org: auth.ScopeExec}, Issued: time.Now(), Expires: time.Now().Add(time.Hour)}
		if change != nil {
			change(&g)
		}
		text, err := w.signer.SignGrant(g)
		require.NoError(t, err)
		s, err := w.connectWith(http.Header{proxy.HeaderTarget: {target}, proxy.HeaderGrant: {text}, proxy.HeaderEpoch: {epoch}})
		require.NoError(t, err)
		return s.status
	}
	view := func(g *auth.Grant) { g.Orgs[org] = auth.ScopeView }
	require.Equal(t, 200, status("agent", "1", nil))
	require.Equal(t, 200, status("tcp/localhost:80", "1", nil))
	require.Equal(t, 200, status("agent", "1", view), "what a call may do, the gateway sees to")
	require.Equal(t, 403, status("tcp/localhost:80", "1", view))
	require.Equal(t, 403, status("agent", "1", func(g *auth.Grant) { g.Orgs = map[carrel.OrgID]string{carrel.NewOrgID(): auth.ScopeExec} }))
	require.Equal(t, 401, status("agent", "1", func(g *auth.Grant) { g.Expires = time.Now().Add(-time.Minute) }))
	require.Equal(t, 409, status("agent", "2", nil), "another run")
	for _, epoch := range []string{"", "0", "-1", "x"} {
		require.Equal(t, 400, status("agent", epoch, nil), epoch)
	}
	r.Org = ""
	require.NoError(t, w.client.SetRoute(t.Context(), r))
	require.Equal(t, 403, status("agent", "1", nil), "a box of which nobody said whose it is")
}
