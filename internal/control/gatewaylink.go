package control

import (
	"context"
	"fmt"
	"time"

	"connectrpc.com/connect"

	linkv1 "carrel.dev/carrel/api/carrel/link/v1"
	"carrel.dev/carrel/api/carrel/link/v1/linkv1connect"
	"carrel.dev/carrel/internal/auth"
	"carrel.dev/carrel/internal/store"
)

const (
	routesPoll = time.Second
	// maxRoutes is how many routes go into one message.
	maxRoutes = 5000
)

type gatewayLink struct {
	linkv1connect.UnimplementedGatewayLinkHandler
	s *Server
}

// WatchRoutes sends every route, then what changed. Only the first message of the first answer is full; the rest of
// it follows as changes.
func (l gatewayLink) WatchRoutes(ctx context.Context, _ *connect.Request[linkv1.WatchRoutesRequest], stream *connect.ServerStream[linkv1.RoutesUpdate]) error {
	wake := l.s.store.Listen(ctx, store.TopicWatch)
	defer wake.Close()
	poll := time.NewTicker(routesPoll)
	defer poll.Stop()
	keys, changed := l.s.watchKeys()
	routes, mark, err := l.s.store.Routes(ctx)
	if err != nil {
		return fmt.Errorf("read routes: %w", err)
	}
	if err := l.s.sendRoutes(ctx, stream, routes, keys.ticketKeys, true); err != nil {
		return err
	}
	for {
		rekeyed := false
		select {
		case <-wake.C:
		case <-poll.C:
		case <-changed:
			rekeyed = true
		case <-ctx.Done():
			return ctx.Err()
		}
		if rekeyed {
			keys, changed = l.s.watchKeys()
		}
		routes, mark, err = l.s.store.RoutesSince(ctx, mark)
		if err != nil {
			return fmt.Errorf("read routes: %w", err)
		}
		if len(routes) == 0 && !rekeyed {
			continue
		}
		if err := l.s.sendRoutes(ctx, stream, routes, keys.ticketKeys, false); err != nil {
			return err
		}
	}
}

func (s *Server) sendRoutes(ctx context.Context, stream *connect.ServerStream[linkv1.RoutesUpdate], routes []store.Route, keys [][]byte, full bool) error {
	for {
		n := min(len(routes), maxRoutes)
		update := &linkv1.RoutesUpdate{Full: full, Routes: each(routes[:n], routeProto), TicketKeys: keys}
		if err := s.guardWrite(ctx, func() error { return stream.Send(update) }); err != nil {
			return fmt.Errorf("send routes: %w", err)
		}
		routes, full = routes[n:], false
		if len(routes) == 0 {
			return nil
		}
	}
}

// ExchangeToken gives the gateway a ticket for what the user of a token may do with a box.
func (l gatewayLink) ExchangeToken(ctx context.Context, req *connect.Request[linkv1.ExchangeTokenRequest]) (*connect.Response[linkv1.ExchangeTokenResponse], error) {
	m := req.Msg
	user, err := l.s.principalOf(ctx, m.GetToken())
	if err != nil {
		return nil, err
	}
	if err := l.s.limiter.take(user.Actor()); err != nil {
		return nil, err
	}
	scope := m.GetScope()
	if scope == "" {
		scope = auth.ScopeExec
	}
	// From here on the user asks, as if for a ticket of their own.
	ctx = asUser(ctx, user)
	box, err := l.s.find(ctx, m.GetOrg(), m.GetBox())
	if err != nil {
		return nil, err
	}
	text, ticket, err := l.s.ticket(user, box, []string{scope})
	if err != nil {
		return nil, err
	}
	node, err := l.s.store.GetNode(ctx, store.SystemScope(), string(box.Run.NodeID))
	if err != nil {
		return nil, fmt.Errorf("find node of box: %w", err)
	}
	route := store.Route{Box: box.ID, Run: box.Run.ID, Epoch: box.Run.Epoch, Node: box.Run.NodeID, Phase: box.Run.Phase, ProxyAddress: node.Facts.ProxyAddress}
	return reply(&linkv1.ExchangeTokenResponse{Ticket: text, BoxId: string(box.ID), ExpireTime: timeProto(ticket.Expires), Route: routeProto(route)})
}

func (l gatewayLink) Renew(ctx context.Context, req *connect.Request[linkv1.RenewRequest]) (*connect.Response[linkv1.JoinResponse], error) {
	return l.s.renew(ctx, req.Msg)
}

// asUser makes a context in which a user, for whom a gateway asks, calls CreateTicket.
func asUser(ctx context.Context, user auth.Principal) context.Context {
	const method = "/carrel.v1.BoxService/CreateTicket"
	rule, _ := auth.RuleOf(method)
	return context.WithValue(ctx, accessKey, &access{principal: user, method: method, rule: rule})
}
