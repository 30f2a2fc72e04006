package gateway

import (
	"log/slog"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	linkv1 "carrel.dev/carrel/api/carrel/link/v1"
	"carrel.dev/carrel/internal/auth"
	"carrel.dev/carrel/internal/carrel"
)

func routeTo(box carrel.BoxID, ports ...*linkv1.PortRule) *linkv1.Route {
	return &linkv1.Route{
		BoxId: string(box), RunId: string(carrel.NewRunID()), Epoch: 1, NodeId: string(carrel.NewNodeID()), ProxyAddress: "127.0.0.1:1", Ports: ports,
	}
}

func TestStreamsEndWhenAPortIsOpenToFewer(t *testing.T) {
	box := carrel.NewBoxID()
	g := &Gateway{now: time.Now, grants: &grantTable{}, routes: openRoutes(t.TempDir(), "", slog.New(slog.DiscardHandler))}
	nobody := pass{Ticket: auth.Ticket{Box: box, Epoch: 1}, header: headerPortPass, openPort: 80}
	member := nobody
	member.User = carrel.NewUserID()
	for _, row := range []struct{ visibility, nobody, member string }{
		{visibilityPublic, "", ""}, {visibilityOrg, "port_closed", ""}, {"", "port_closed", "port_closed"},
	} {
		var rules []*linkv1.PortRule
		if row.visibility != "" {
			rules = append(rules, &linkv1.PortRule{Port: 80, Visibility: row.visibility})
		}
		g.routes.apply(&linkv1.RoutesUpdate{Routes: []*linkv1.Route{routeTo(box, rules...)}})
		require.Equal(t, row.nobody, carrel.ReasonOf(g.ended(nobody)), row.visibility)
		require.Equal(t, row.member, carrel.ReasonOf(g.ended(member)), row.visibility)
	}
}

func TestALateAnswerOpensNoPortAgain(t *testing.T) {
	box := carrel.NewBoxID()
	routes := openRoutes(t.TempDir(), "", slog.New(slog.DiscardHandler))
	public := routeTo(box, &linkv1.PortRule{Port: 80, Visibility: visibilityPublic})
	routes.learn(public)
	_, open := routes.port(box, 80)
	require.True(t, open, "of a run that is new")
	routes.setLive(true)
	routes.apply(&linkv1.RoutesUpdate{Routes: []*linkv1.Route{routeTo(box)}})
	routes.learn(public)
	_, open = routes.port(box, 80)
	require.False(t, open)
}

func TestASignedURLEndsWithItsTimeAndAPublicPortDoesNot(t *testing.T) {
	now := time.Now()
	g := &Gateway{now: func() time.Time { return now }, grants: &grantTable{}, routes: &routeTable{}}
	p := pass{Ticket: auth.Ticket{Box: carrel.NewBoxID(), Epoch: 1, Expires: now.Add(time.Minute)}, header: headerPortPass}
	require.NoError(t, g.ended(p))
	now = now.Add(time.Minute)
	require.Equal(t, "url_expired", carrel.ReasonOf(g.ended(p)))
	p.openPort = 80 // its pass is told again and again
	require.NoError(t, g.ended(p))
}
