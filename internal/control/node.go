package control

import (
	"context"
	"fmt"
	"slices"
	"time"

	"connectrpc.com/connect"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	carrelv1connect "carrel.dev/carrel/api/carrel/v1/carrelv1connect"
	"carrel.dev/carrel/internal/auth"
	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/store"
)

const (
	// nodeSilence is after how long without a heartbeat (they come every 5 s) a node is shown as offline.
	nodeSilence       = 20 * time.Second
	joinTokenLifetime = time.Hour
)

type nodeService struct {
	carrelv1connect.UnimplementedNodeServiceHandler
	s *Server
}

func (n nodeService) proto(node store.Node) *carrelv1.Node { return nodeProto(node, n.s.now()) }

func (n nodeService) GetNode(ctx context.Context, req *connect.Request[carrelv1.GetNodeRequest]) (*connect.Response[carrelv1.Node], error) {
	node, err := n.s.store.GetNode(ctx, scopeOf(ctx), req.Msg.GetId())
	if err != nil {
		return nil, fmt.Errorf("get node: %w", err)
	}
	return reply(n.proto(node))
}

func (n nodeService) ListNodes(ctx context.Context, _ *connect.Request[carrelv1.ListNodesRequest]) (*connect.Response[carrelv1.ListNodesResponse], error) {
	nodes, err := n.s.store.Nodes(ctx)
	if err != nil {
		return nil, fmt.Errorf("list nodes: %w", err)
	}
	// Of a removed node only what it still holds is of interest.
	nodes = slices.DeleteFunc(nodes, func(node store.Node) bool {
		return !node.RemovedAt.IsZero() && node.Runs == 0 && node.ReservedDiskBytes == 0
	})
	return reply(&carrelv1.ListNodesResponse{Nodes: each(nodes, n.proto)})
}

func (n nodeService) UpdateNode(ctx context.Context, req *connect.Request[carrelv1.UpdateNodeRequest]) (*connect.Response[carrelv1.Node], error) {
	node, err := n.s.store.SetNodeSchedulable(ctx, scopeOf(ctx), req.Msg.GetId(), req.Msg.GetSchedulable())
	if err != nil {
		return nil, fmt.Errorf("update node: %w", err)
	}
	return reply(n.proto(node))
}

func (n nodeService) CreateJoinToken(ctx context.Context, req *connect.Request[carrelv1.CreateJoinTokenRequest]) (*connect.Response[carrelv1.CreateJoinTokenResponse], error) {
	role := auth.PeerRole(req.Msg.GetRole())
	if role != auth.PeerNode && role != auth.PeerGateway {
		return nil, carrel.Errorf(carrel.CodeInvalid, "bad_role", "%q can't join: make a token for a node or a gateway", role)
	}
	secret, expires := auth.NewJoinToken(), n.s.now().Add(joinTokenLifetime)
	if err := n.s.store.CreateJoinToken(ctx, scopeOf(ctx), string(role), secret.Hash[:], expires); err != nil {
		return nil, fmt.Errorf("create join token: %w", err)
	}
	return reply(&carrelv1.CreateJoinTokenResponse{Token: secret.Text, ExpireTime: timeProto(expires)})
}
