package control_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	linkv1 "carrel.dev/carrel/api/carrel/link/v1"
	"carrel.dev/carrel/api/carrel/link/v1/linkv1connect"
	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/auth"
	"carrel.dev/carrel/internal/carrel"
)

func TestARemovedGatewayIsRefusedEverywhere(t *testing.T) {
	c := newCluster(t)
	r, other := c.replica(), c.replica()
	ctx := within(t)
	admin := r.asAdmin()
	m := r.newMachine("one")
	cert, joined, err := r.joinAs("gateway", joinText, "edge")
	require.NoError(t, err)
	stays, _, err := r.joinAs("gateway", joinText, "other-edge")
	require.NoError(t, err)
	link := linkv1connect.NewGatewayLinkClient(r.httpClient(&cert), r.http.URL)
	elsewhere := linkv1connect.NewGatewayLinkClient(other.httpClient(&cert), other.http.URL)
	ask := func(l linkv1connect.GatewayLinkClient) error {
		_, err := l.ExchangeToken(ctx, req(&linkv1.ExchangeTokenRequest{Token: r.admin, Box: "none"}))
		return err
	}
	require.Equal(t, carrel.CodeNotFound, code(ask(link)), "it may ask")
	routes, err := elsewhere.WatchRoutes(ctx, req(&linkv1.WatchRoutesRequest{}))
	require.NoError(t, err)
	require.True(t, routes.Receive(), routes.Err())
	require.Empty(t, routes.Msg().GetRevokedPeers())
	theirs, err := linkv1connect.NewGatewayLinkClient(other.httpClient(&stays), other.http.URL).WatchRoutes(ctx, req(&linkv1.WatchRoutesRequest{}))
	require.NoError(t, err)
	require.True(t, theirs.Receive(), theirs.Err())
	desired, err := m.link.WatchDesired(ctx, req(&linkv1.WatchDesiredRequest{}))
	require.NoError(t, err)
	require.True(t, desired.Receive(), desired.Err())

	list, err := admin.nodes.ListGateways(ctx, req(&carrelv1.ListGatewaysRequest{}))
	require.NoError(t, err)
	require.Len(t, list.Msg.GetGateways(), 2)
	_, err = r.newUser("ada", "default", auth.RoleOwner).nodes.RemoveGateway(ctx, req(&carrelv1.RemoveGatewayRequest{Id: "edge"}))
	require.Equal(t, carrel.CodeDenied, code(err))
	_, err = admin.nodes.RemoveGateway(ctx, req(&carrelv1.RemoveGatewayRequest{Id: "edge"}))
	require.NoError(t, err)

	require.Equal(t, "peer_revoked", reason(ask(link)), "at once, over the connection that it has")
	_, err = linkv1connect.NewGatewayLinkClient(r.httpClient(&cert), r.http.URL).Renew(ctx, req(&linkv1.RenewRequest{}))
	require.Equal(t, "peer_revoked", reason(err))
	for routes.Receive() { // nothing it may hear any more
		require.NotContains(t, routes.Msg().GetRevokedPeers(), joined.GetId())
	}
	require.Equal(t, "peer_revoked", reason(routes.Err()), "its open stream at the other replica ends")
	require.Equal(t, "peer_revoked", reason(ask(elsewhere)))
	for len(theirs.Msg().GetRevokedPeers()) == 0 {
		require.True(t, theirs.Receive(), theirs.Err())
	}
	require.Equal(t, []string{joined.GetId()}, theirs.Msg().GetRevokedPeers())
	for len(desired.Msg().GetRevokedPeers()) == 0 {
		require.True(t, desired.Receive(), desired.Err())
	}
	require.Equal(t, []string{joined.GetId()}, checked(t, desired.Msg()).GetRevokedPeers())

	list, err = admin.nodes.ListGateways(ctx, req(&carrelv1.ListGatewaysRequest{}))
	require.NoError(t, err)
	require.Len(t, list.Msg.GetGateways(), 1)
	_, again, err := r.joinAs("gateway", joinText, "edge")
	require.NoError(t, err)
	require.NotEqual(t, joined.GetId(), again.GetId(), "the name is free, for another one")
	_, err = admin.nodes.RemoveGateway(ctx, req(&carrelv1.RemoveGatewayRequest{Id: "none"}))
	require.Equal(t, carrel.CodeNotFound, code(err))
}

func TestARemovedNodeIsRefused(t *testing.T) {
	r := newReplica(t)
	r.catalogue()
	ctx := within(t)
	admin := r.asAdmin()
	m, other := r.newMachine("one"), r.newMachine("two")
	id := admin.create("dev")
	m.run(id)
	desired, err := m.link.WatchDesired(ctx, req(&linkv1.WatchDesiredRequest{}))
	require.NoError(t, err)
	require.True(t, desired.Receive(), desired.Err())

	_, err = admin.nodes.RemoveNode(ctx, req(&carrelv1.RemoveNodeRequest{Id: "one"}))
	require.Equal(t, "node_has_boxes", reason(err))
	_, err = m.link.Report(ctx, req(&linkv1.ReportRequest{}))
	require.NoError(t, err, "nothing happened")
	_, err = admin.nodes.RemoveNode(ctx, req(&carrelv1.RemoveNodeRequest{Id: "one", Force: true}))
	require.NoError(t, err)
	_, err = admin.nodes.RemoveNode(ctx, req(&carrelv1.RemoveNodeRequest{Id: string(m.id)}))
	require.NoError(t, err, "it may be asked again")
	_, err = m.link.Report(ctx, req(&linkv1.ReportRequest{}))
	require.Equal(t, "peer_revoked", reason(err))
	for desired.Receive() {
	}
	require.Equal(t, "peer_revoked", reason(desired.Err()))
	_, err = other.link.Report(ctx, req(&linkv1.ReportRequest{}))
	require.NoError(t, err, "others go on")

	node, err := admin.nodes.GetNode(ctx, req(&carrelv1.GetNodeRequest{Id: string(m.id)}))
	require.NoError(t, err)
	require.Equal(t, "removed", node.Msg.GetState())
	require.False(t, node.Msg.GetSchedulable())
	_, err = admin.nodes.UpdateNode(ctx, req(&carrelv1.UpdateNodeRequest{Id: string(m.id), Schedulable: true}))
	require.Equal(t, "node_removed", reason(err))
	list, err := admin.nodes.ListNodes(ctx, req(&carrelv1.ListNodesRequest{}))
	require.NoError(t, err)
	require.Len(t, list.Msg.GetNodes(), 2, "as long as it holds something")
	_, again, err := r.joinAs("node", joinText, "one")
	require.NoError(t, err)
	require.NotEqual(t, string(m.id), again.GetId())
}
