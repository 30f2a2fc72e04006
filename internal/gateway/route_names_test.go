package gateway

import (
	"log/slog"
	"testing"

	"github.com/stretchr/testify/require"

	linkv1 "carrel.dev/carrel/api/carrel/link/v1"
	"carrel.dev/carrel/internal/auth"
	"carrel.dev/carrel/internal/carrel"
)

// What was found by a name is used for as long as the name leads there: boxes are deleted, made and renamed.
func TestANameLeadsToTheBoxThatHasItNow(t *testing.T) {
	routes := openRoutes(t.TempDir(), "", slog.New(slog.DiscardHandler))
	node := string(carrel.NewNodeID())
	tell := func(box carrel.BoxID, name string, gone bool) {
		routes.apply(&linkv1.RoutesUpdate{Routes: []*linkv1.Route{{
			BoxId: string(box), RunId: string(carrel.NewRunID()), Epoch: 1, NodeId: node, ProxyAddress: "127.0.0.1:1", OrgId: "o1", BoxName: name, Gone: gone,
		}}})
	}
	leads := func(name string, box carrel.BoxID) bool { return routes.leadsTo(name, auth.Ticket{Box: box, Epoch: 1}) }
	old, fresh := carrel.NewBoxID(), carrel.NewBoxID()
	tell(old, "lab", false)
	require.True(t, leads("lab", old))
	require.True(t, leads(string(old), old))
	require.False(t, routes.leadsTo("lab", auth.Ticket{Box: old, Epoch: 2}), "of another run")

	tell(fresh, "lab", false) // the old one is on its way out
	require.False(t, leads("lab", old))
	require.True(t, leads("lab", fresh))
	require.True(t, leads(string(old), old), "by its id it is still there")
	tell(old, "lab", false)
	require.True(t, leads("lab", fresh), "news of the old one change nothing")
	tell(old, "lab", true)
	require.True(t, leads("lab", fresh))

	tell(fresh, "other", false)
	require.False(t, leads("lab", fresh), "renamed")
	require.True(t, leads("other", fresh))
	require.NotContains(t, routes.names, boxName{"o1", "lab"})
	tell(fresh, "other", true)
	require.Empty(t, routes.names)
}
