package control

import (
	"context"
	"fmt"
	"slices"
	"time"

	"connectrpc.com/connect"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/auth"
	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/store"
)

// revokedPoll is how often removed peers are looked for without a wake-up; revokedFor is how long an id is told to
// others: until every certificate that it had has ended.
const (
	revokedPoll = time.Second
	revokedFor  = auth.CertificateLifetime + 24*time.Hour
)

// refreshRevoked reads which peers were removed, and has everybody told when that changed.
func (s *Server) refreshRevoked(ctx context.Context) error {
	ids, err := s.store.RevokedPeers(ctx, s.now().Add(-revokedFor))
	if err != nil {
		return fmt.Errorf("read removed peers: %w", err)
	}
	if old := s.revoked.Swap(&ids); old == nil || !slices.Equal(*old, ids) {
		s.keysChanged()
	}
	return nil
}

func (s *Server) watchRevoked(ctx context.Context) {
	wake := s.store.Listen(ctx, store.TopicPeers)
	defer wake.Close()
	poll := time.NewTicker(revokedPoll)
	defer poll.Stop()
	for {
		select {
		case <-wake.C:
		case <-poll.C:
		case <-ctx.Done():
			return
		}
		if err := s.refreshRevoked(ctx); err != nil && ctx.Err() == nil {
			s.log.Warn("removed peers can't be read", "error", err)
		}
	}
}

// revokedPeers are the ids of removed peers, sorted.
func (s *Server) revokedPeers() []string {
	if ids := s.revoked.Load(); ids != nil {
		return *ids
	}
	return nil
}

// refuseRevoked refuses a peer that was removed, whatever its certificate says.
func (s *Server) refuseRevoked(peer auth.Peer) error {
	return refusedIfAmong(s.revokedPeers(), peer)
}

// refusedIfAmong is refuseRevoked by the ids of removed peers, sorted, that others are told next: who is among them is told nothing more.
func refusedIfAmong(revoked []string, peer auth.Peer) error {
	if peer.ID == "" {
		return nil
	}
	if _, found := slices.BinarySearch(revoked, peer.ID); !found {
		return nil
	}
	return carrel.Errorf(carrel.CodeUnauthorized, "peer_revoked", "%s %s was removed from the cluster; to use the machine again, empty its data directory and let it join anew", peer.Role, peer.ID)
}

func (n nodeService) RemoveNode(ctx context.Context, req *connect.Request[carrelv1.RemoveNodeRequest]) (*connect.Response[carrelv1.RemoveNodeResponse], error) {
	node, err := n.s.store.RemoveNode(ctx, scopeOf(ctx), req.Msg.GetId(), req.Msg.GetForce())
	if err != nil {
		return nil, fmt.Errorf("remove node: %w", err)
	}
	n.s.log.Info("node removed", "node", node.ID, "request", requestID(ctx))
	if err := n.s.refreshRevoked(ctx); err != nil {
		return nil, err
	}
	return reply(&carrelv1.RemoveNodeResponse{})
}

func (n nodeService) ListGateways(ctx context.Context, _ *connect.Request[carrelv1.ListGatewaysRequest]) (*connect.Response[carrelv1.ListGatewaysResponse], error) {
	gateways, err := n.s.store.ListGateways(ctx, scopeOf(ctx))
	if err != nil {
		return nil, fmt.Errorf("list gateways: %w", err)
	}
	return reply(&carrelv1.ListGatewaysResponse{Gateways: each(gateways, gatewayProto)})
}

func (n nodeService) RemoveGateway(ctx context.Context, req *connect.Request[carrelv1.RemoveGatewayRequest]) (*connect.Response[carrelv1.RemoveGatewayResponse], error) {
	gateway, err := n.s.store.RemoveGateway(ctx, scopeOf(ctx), req.Msg.GetId())
	if err != nil {
		return nil, fmt.Errorf("remove gateway: %w", err)
	}
	n.s.log.Info("gateway removed", "gateway", gateway.ID, "request", requestID(ctx))
	if err := n.s.refreshRevoked(ctx); err != nil {
		return nil, err
	}
	return reply(&carrelv1.RemoveGatewayResponse{})
}

func gatewayProto(g store.Gateway) *carrelv1.Gateway {
	return &carrelv1.Gateway{Id: string(g.ID), Name: g.Name, Region: g.Region, CreateTime: timeProto(g.CreatedAt), LastSeenTime: timeProto(g.LastSeen)}
}
