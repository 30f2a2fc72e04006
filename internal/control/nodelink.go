package control

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"time"

	"connectrpc.com/connect"

	linkv1 "carrel.dev/carrel/api/carrel/link/v1"
	"carrel.dev/carrel/api/carrel/link/v1/linkv1connect"
	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/store"
)

// desiredPoll is how often a node's revision is looked at without a wake-up.
const desiredPoll = 5 * time.Second

type nodeLink struct {
	linkv1connect.UnimplementedNodeLinkHandler
	s *Server
}

func nodeOf(ctx context.Context) carrel.NodeID {
	return carrel.NodeID(accessOf(ctx).principal.Peer.ID)
}

// WatchDesired sends the whole desired set, and again whenever it is another one.
func (l nodeLink) WatchDesired(ctx context.Context, _ *connect.Request[linkv1.WatchDesiredRequest], stream *connect.ServerStream[linkv1.DesiredSet]) error {
	node := nodeOf(ctx)
	wake := l.s.store.Listen(ctx, store.TopicNode(node))
	defer wake.Close()
	poll := time.NewTicker(desiredPoll)
	defer poll.Stop()
	var sent *linkv1.DesiredSet
	for {
		keys, changed := l.s.watchKeys()
		revoked := l.s.revokedPeers()
		if err := refusedIfAmong(revoked, connectionOf(ctx).peer); err != nil {
			return err
		}
		current := false
		if sent != nil && sameKeys(sent.GetTicketKeys(), keys.ticketKeys) && slices.Equal(sent.GetRevokedPeers(), revoked) {
			revision, err := l.s.store.NodeRevision(ctx, node)
			if err != nil {
				return fmt.Errorf("read revision of node: %w", err)
			}
			current = revision == sent.GetRevision()
		}
		if !current {
			set, err := l.s.store.DesiredSet(ctx, node)
			if err != nil {
				return fmt.Errorf("read desired set: %w", err)
			}
			next, err := desiredProto(set, node, keys.ticketKeys, revoked)
			if err != nil {
				return err
			}
			if err := l.s.guardWrite(ctx, func() error { return stream.Send(next) }); err != nil {
				return fmt.Errorf("send desired set: %w", err)
			}
			sent = next
		}
		select {
		case <-wake.C:
		case <-poll.C:
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func sameKeys(a, b [][]byte) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if !bytes.Equal(a[i], b[i]) {
			return false
		}
	}
	return true
}

// Report answers when what the node told is committed.
func (l nodeLink) Report(ctx context.Context, req *connect.Request[linkv1.ReportRequest]) (*connect.Response[linkv1.ReportResponse], error) {
	node := nodeOf(ctx)
	report, refused := reportFromProto(req.Msg)
	if len(refused) > 0 {
		l.s.log.Warn("node reports what makes no sense", "node", node, "refused", refused[:min(len(refused), 10)], "count", len(refused))
	}
	if err := l.s.reports.submit(ctx, node, report); err != nil {
		return nil, fmt.Errorf("record report: %w", err)
	}
	return reply(&linkv1.ReportResponse{})
}

func (l nodeLink) CommitSnapshot(ctx context.Context, req *connect.Request[linkv1.CommitSnapshotRequest]) (*connect.Response[linkv1.CommitSnapshotResponse], error) {
	commit, err := snapshotFromProto(req.Msg)
	if err != nil {
		return nil, err
	}
	accepted, reason, err := l.s.store.CommitSnapshot(ctx, nodeOf(ctx), commit)
	if err != nil {
		return nil, fmt.Errorf("commit snapshot: %w", err)
	}
	if !accepted {
		l.s.log.Warn("snapshot refused", "node", nodeOf(ctx), "box", commit.Box, "run", commit.Run, "snapshot", commit.ID, "reason", reason)
	}
	return reply(&linkv1.CommitSnapshotResponse{Accepted: accepted, Reason: reason})
}

func (l nodeLink) Renew(ctx context.Context, req *connect.Request[linkv1.RenewRequest]) (*connect.Response[linkv1.JoinResponse], error) {
	return l.s.renew(ctx, req.Msg)
}
