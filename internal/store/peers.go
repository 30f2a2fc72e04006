package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/store/db"
)

// TopicPeers is woken when a node or gateway was removed.
const TopicPeers = "peers"

// RemoveNode takes a node (id or name) out of the cluster for ever: nothing is placed there any more, its id is among
// RevokedPeers, and another machine may join under its name. While boxes have their files there it is refused with
// CodePrecondition, node_has_boxes, unless forced. It may be called again with the id.
func (s *Store) RemoveNode(ctx context.Context, scope Scope, ref string, force bool) (Node, error) {
	if err := platformOnly(scope, "node", ref); err != nil {
		return Node{}, err
	}
	var node Node
	err := s.write(ctx, "RemoveNode", systemFor(scope), func(t *tx) (err error) {
		if node, err = t.node(ctx, ref); err != nil {
			return err
		}
		if !node.RemovedAt.IsZero() {
			return nil
		}
		boxes, err := t.CountBoxesAt(ctx, string(node.ID))
		if err != nil {
			return fmt.Errorf("count the boxes of the node: %w", err)
		}
		if boxes > 0 && !force {
			return carrel.Errorf(carrel.CodePrecondition, "node_has_boxes", "%d boxes have their files on node %s and would be out of reach for ever; delete them first, or remove it with --force when the machine is lost", boxes, node.Name)
		}
		if _, err := t.RemoveNode(ctx, t.now, node.ID); err != nil {
			return fmt.Errorf("remove the node: %w", err)
		}
		node.RemovedAt, node.Schedulable = t.now, false
		return t.revoked(ctx, string(node.ID), node.Name)
	})
	return node, err
}

// revoked tells everybody that a peer was removed.
func (t *tx) revoked(ctx context.Context, id, name string) error {
	// The ids of removed peers are part of every node's desired set.
	if err := t.RaiseAllRevisions(ctx); err != nil {
		return fmt.Errorf("raise the revisions of all nodes: %w", err)
	}
	t.wake(topicAll)
	return t.audit(ctx, "", id, name)
}

// RevokedPeers gives the ids of the nodes and gateways that were removed after a time, sorted.
func (s *Store) RevokedPeers(ctx context.Context, since time.Time) ([]string, error) {
	var ids []string
	err := s.read(ctx, "RevokedPeers", SystemScope(), func(t *tx) (err error) {
		ids, err = t.RevokedPeers(ctx, since)
		return err
	})
	return ids, err
}

// ListGateways gives the gateways of the cluster, by name. The scope must be a platform one.
func (s *Store) ListGateways(ctx context.Context, scope Scope) ([]Gateway, error) {
	if err := platformOnly(scope, "gateway", ""); err != nil {
		return nil, err
	}
	var gateways []Gateway
	err := s.read(ctx, "ListGateways", systemFor(scope), func(t *tx) error {
		gateways = nil
		rows, err := t.ListGateways(ctx)
		for _, r := range rows {
			gateways = append(gateways, gatewayOf(gatewayRow(r)))
		}
		return err
	})
	return gateways, err
}

type gatewayRow db.ListGatewaysRow

func gatewayOf(r gatewayRow) Gateway {
	return Gateway{ID: r.ID, Name: r.Name, Region: r.Region, CreatedAt: r.CreatedAt.UTC(), LastSeen: r.LastSeen.UTC()}
}

// RemoveGateway takes a gateway (id or name) out of the cluster for ever: its id is among RevokedPeers, and another
// machine may join under its name.
func (s *Store) RemoveGateway(ctx context.Context, scope Scope, ref string) (Gateway, error) {
	if err := platformOnly(scope, "gateway", ref); err != nil {
		return Gateway{}, err
	}
	var gateway Gateway
	err := s.write(ctx, "RemoveGateway", systemFor(scope), func(t *tx) error {
		r, err := t.FindGateway(ctx, ref)
		if errors.Is(err, pgx.ErrNoRows) {
			return carrel.NotFound("gateway", ref)
		}
		if err != nil {
			return fmt.Errorf("find the gateway: %w", err)
		}
		gateway = gatewayOf(gatewayRow(r))
		if err := t.RemoveGateway(ctx, t.now, gateway.ID); err != nil {
			return fmt.Errorf("remove the gateway: %w", err)
		}
		return t.revoked(ctx, string(gateway.ID), gateway.Name)
	})
	return gateway, err
}

// TouchGateway notes that a gateway is connected.
func (s *Store) TouchGateway(ctx context.Context, id carrel.GatewayID) error {
	return s.write(ctx, "TouchGateway", SystemScope(), func(t *tx) error {
		return t.TouchGateway(ctx, id, t.now)
	})
}
