package control

import (
	"context"
	"fmt"
	"time"

	"connectrpc.com/connect"

	linkv1 "carrel.dev/carrel/api/carrel/link/v1"
	"carrel.dev/carrel/api/carrel/link/v1/linkv1connect"
	"carrel.dev/carrel/internal/auth"
	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/store"
)

const (
	routesPoll = time.Second
	// maxRoutes is how many routes go into one message.
	maxRoutes = 5000
	// The pass of a public port is told again long before it ends, so that ports stay open while control is away.
	portPassLifetime = 3 * 24 * time.Hour
	portPassAgain    = 12 * time.Hour
)

type gatewayLink struct {
	linkv1connect.UnimplementedGatewayLinkHandler
	s *Server
}

// WatchRoutes sends every route and every user's grant, then what changed. Only the first message of the first answer is full, and it has
// all grants; the rest of the routes follow as changes.
func (l gatewayLink) WatchRoutes(ctx context.Context, _ *connect.Request[linkv1.WatchRoutesRequest], stream *connect.ServerStream[linkv1.RoutesUpdate]) error {
	wake := l.s.store.Listen(ctx, store.TopicWatch)
	defer wake.Close()
	poll := time.NewTicker(routesPoll)
	defer poll.Stop()
	peer := connectionOf(ctx).peer
	if err := l.s.store.TouchGateway(ctx, carrel.GatewayID(peer.ID)); err != nil {
		return fmt.Errorf("note the gateway: %w", err)
	}
	keys, rekeyed := l.s.watchKeys()
	grants, err := l.s.grants.since(ctx, 0)
	if err != nil {
		return err
	}
	routes, mark, err := l.s.store.Routes(ctx)
	if err != nil {
		return fmt.Errorf("read routes: %w", err)
	}
	first := &linkv1.RoutesUpdate{Full: true, Grants: grants.grants, RevokedTokens: grants.ended, SshUserCaKeys: keys.sshUserCAs}
	if err := l.s.sendRoutes(ctx, stream, first, routes, keys); err != nil {
		return err
	}
	again := time.NewTicker(portPassAgain)
	defer again.Stop()
	for {
		next, all := &linkv1.RoutesUpdate{}, false
		select {
		case <-wake.C:
		case <-poll.C:
		case <-grants.next:
		case <-again.C:
			all = true
		case <-rekeyed:
			keys, rekeyed = l.s.watchKeys()
			next.SshUserCaKeys, all = keys.sshUserCAs, true
		case <-ctx.Done():
			return ctx.Err()
		}
		if grants, err = l.s.grants.since(ctx, grants.version); err != nil {
			return err
		}
		next.Grants, next.RevokedTokens = grants.grants, grants.ended
		routes, mark, err = l.s.store.RoutesSince(ctx, mark)
		if err != nil {
			return fmt.Errorf("read routes: %w", err)
		}
		if all { // the passes of public ports end, and some may be signed by a key that is gone
			if routes, mark, err = l.s.store.Routes(ctx); err != nil {
				return fmt.Errorf("read routes: %w", err)
			}
		}
		if len(routes) == 0 && len(next.Grants) == 0 && len(next.RevokedTokens) == 0 && !all {
			continue
		}
		if err := l.s.sendRoutes(ctx, stream, next, routes, keys); err != nil {
			return err
		}
	}
}

// sendRoutes sends an update with routes, in several messages where one would be too long. A gateway that was removed meanwhile gets none.
func (s *Server) sendRoutes(ctx context.Context, stream *connect.ServerStream[linkv1.RoutesUpdate], update *linkv1.RoutesUpdate, routes []store.Route, keys *keys) error {
	for {
		n := min(len(routes), maxRoutes)
		update.Routes, update.TicketKeys = each(routes[:n], s.routeProto), keys.ticketKeys
		update.RevokedPeers = s.revokedPeers()
		if err := refusedIfAmong(update.RevokedPeers, connectionOf(ctx).peer); err != nil {
			return err
		}
		if err := s.guardWrite(ctx, func() error { return stream.Send(update) }); err != nil {
			return fmt.Errorf("send routes: %w", err)
		}
		routes, update = routes[n:], &linkv1.RoutesUpdate{}
		if len(routes) == 0 {
			return nil
		}
	}
}

// routeProto is a route with the passes of its public ports.
func (s *Server) routeProto(r store.Route) *linkv1.Route {
	out := &linkv1.Route{
		BoxId: string(r.Box), RunId: string(r.Run), Epoch: r.Epoch, NodeId: string(r.Node), ProxyAddress: r.ProxyAddress, Gone: r.Gone,
		OrgId: string(r.Org), BoxName: r.Name, Wake: r.Wake, KeepShellSeconds: int64(r.KeepShell.Seconds()),
	}
	for _, port := range r.Ports {
		rule := &linkv1.PortRule{Port: int32(port.Port), Visibility: port.Visibility}
		// Also for the members of the organisation who may not use the box itself.
		pass := auth.PortPass{Box: r.Box, Org: r.Org, Port: port.Port, Expires: s.now().Add(portPassLifetime)}
		text, err := s.keys.Load().signer.SignPort(pass)
		if err != nil {
			s.log.Error("the pass of a port can't be signed", "box", r.Box, "port", port.Port, "error", err)
			continue
		}
		rule.Jwt = text
		out.Ports = append(out.Ports, rule)
	}
	return out
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
	route, err := l.s.store.RouteOf(ctx, box.ID)
	if err != nil {
		return nil, fmt.Errorf("find route of box: %w", err)
	}
	return reply(&linkv1.ExchangeTokenResponse{Ticket: text, BoxId: string(box.ID), ExpireTime: timeProto(ticket.Expires), Route: l.s.routeProto(route)})
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
