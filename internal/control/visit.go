package control

import (
	"context"
	"errors"
	"fmt"

	"connectrpc.com/connect"

	linkv1 "carrel.dev/carrel/api/carrel/link/v1"
	"carrel.dev/carrel/internal/auth"
	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/store"
)

const (
	// maxNamesakes is how many boxes of one name are looked at.
	maxNamesakes = 50
	// maxAuditEntries is how many entries one request of a gateway may have.
	maxAuditEntries = 1000
)

// visitor is a user for whom a gateway asks, after it has made sure who they are.
func (s *Server) visitor(ctx context.Context, user string) (auth.Principal, error) {
	id := carrel.UserID(user)
	if carrel.IDKind(user) != 'u' {
		return auth.Principal{}, carrel.Errorf(carrel.CodeInvalid, "bad_user", "%q is no id of a user", short(user))
	}
	before := s.now()
	members, err := s.store.UserMembers(ctx, id)
	if err != nil {
		return auth.Principal{}, fmt.Errorf("read the user's roles: %w", err)
	}
	p := auth.Principal{User: id, Seen: before, Roles: make(map[carrel.OrgID]auth.Role, len(members))}
	for _, m := range members {
		p.Roles[m.Org] = auth.Role(m.Role)
	}
	return p, s.limiter.take(p.Actor())
}

// seek finds the box that a visitor means. Whatever the reason why there is none for them, the answer is the same.
func (s *Server) seek(ctx context.Context, p auth.Principal, ref, org string) (*store.Box, error) {
	unknown := carrel.NotFound("box", short(ref))
	box, err := s.seekAny(ctx, p, ref, org)
	switch {
	case carrel.CodeOf(err) == carrel.CodeNotFound:
		return nil, unknown
	case err != nil:
		return nil, err
	case carrel.StateOf(&box.BoxView) == carrel.StateDeleted, auth.AllowScope(p, auth.ScopeView, box.Org) != nil:
		return nil, unknown
	}
	return box, nil
}

func (s *Server) seekAny(ctx context.Context, p auth.Principal, ref, org string) (*store.Box, error) {
	scope := store.Scope{User: p.User, Orgs: p.Orgs()}
	if len(scope.Orgs) == 0 || ref == "" {
		return nil, carrel.NotFound("box", ref)
	}
	var in carrel.OrgID
	if org != "" {
		found, err := s.store.GetOrg(ctx, scope, org)
		if err != nil {
			return nil, fmt.Errorf("find organisation: %w", err)
		}
		in = found.ID
	}
	if carrel.IDKind(ref) == 'b' {
		box, err := s.store.GetBox(ctx, scope, carrel.BoxID(ref))
		if err == nil && in != "" && box.Org != in {
			return nil, carrel.NotFound("box", ref)
		}
		return box, err
	}
	if carrel.ValidateName("box", ref) != nil {
		return nil, carrel.NotFound("box", ref)
	}
	boxes, _, err := s.store.ListBoxes(ctx, scope, store.ListBoxes{Org: in, Name: ref, Page: store.Page{Size: maxNamesakes}})
	if err != nil {
		return nil, fmt.Errorf("find box: %w", err)
	}
	return s.choose(ctx, scope, ref, boxes)
}

// choose picks the box that is meant by a name alone: the only one, or the only one that has a run. Those that are being
// deleted are meant only if there is no other.
func (s *Server) choose(ctx context.Context, scope store.Scope, name string, boxes []*store.Box) (*store.Box, error) {
	var wanted, live []*store.Box
	for _, b := range boxes {
		if b.Intent != carrel.IntentDeleted {
			wanted = append(wanted, b)
		}
		if b.Live() {
			live = append(live, b)
		}
	}
	for _, some := range [][]*store.Box{wanted, live, boxes} {
		if len(some) == 1 {
			return some[0], nil
		}
	}
	if len(boxes) == 0 {
		return nil, carrel.NotFound("box", name)
	}
	example := string(boxes[0].Org)
	if org, err := s.store.GetOrg(ctx, scope, example); err == nil {
		example = org.Name
	}
	return nil, carrel.Errorf(carrel.CodeInvalid, "organisation_needed", "several of your organisations have a box %q; say which one is meant, such as %s.%s", name, name, example)
}

// FindBox resolves a name for a user whom the gateway knows.
func (l gatewayLink) FindBox(ctx context.Context, req *connect.Request[linkv1.FindBoxRequest]) (*connect.Response[linkv1.FindBoxResponse], error) {
	p, err := l.s.visitor(ctx, req.Msg.GetUserId())
	if err != nil {
		return nil, err
	}
	box, err := l.s.seek(ctx, p, req.Msg.GetBox(), req.Msg.GetOrg())
	if err != nil {
		return nil, err
	}
	route, err := l.s.store.RouteOf(ctx, box.ID)
	if err != nil {
		return nil, fmt.Errorf("find route of box: %w", err)
	}
	return reply(&linkv1.FindBoxResponse{Route: l.s.routeProto(route), State: string(carrel.StateOf(&box.BoxView))})
}

// errAwake ends a wake-up that came too late: the box is wanted to run already.
var errAwake = errors.New("the box is awake")

// WakeBox starts or resumes a box for a user who came for it, unless its policy says no.
func (l gatewayLink) WakeBox(ctx context.Context, req *connect.Request[linkv1.WakeBoxRequest]) (*connect.Response[linkv1.WakeBoxResponse], error) {
	m := req.Msg
	p, err := l.s.visitor(ctx, m.GetUserId())
	if err != nil {
		return nil, err
	}
	box, err := l.s.seek(ctx, p, m.GetBoxId(), "")
	if err != nil {
		return nil, err
	}
	if err := auth.AllowScope(p, auth.ScopeExec, box.Org); err != nil {
		return nil, seen(err, "box", m.GetBoxId())
	}
	route, err := l.s.store.RouteOf(ctx, box.ID)
	if err != nil {
		return nil, fmt.Errorf("read policy of box: %w", err)
	}
	answer := func(state carrel.State) (*connect.Response[linkv1.WakeBoxResponse], error) {
		return reply(&linkv1.WakeBoxResponse{State: string(state)})
	}
	check := func(box *store.Box) error {
		switch state := carrel.StateOf(&box.BoxView); {
		case state == carrel.StateDeleted, state == carrel.StateDeleting, state == carrel.StateFailed:
			return notRunning(box)
		case box.Intent == carrel.IntentRunning:
			return errAwake
		case !route.Wake:
			e := notRunning(box)
			e.Reason = "wake_refused"
			e.Message += " (its policy does not let logins and requests do that)"
			return e
		}
		return nil
	}
	if err := check(box); errors.Is(err, errAwake) {
		return answer(carrel.StateOf(&box.BoxView))
	} else if err != nil {
		return nil, err
	}
	scope := store.Scope{User: p.User, Orgs: p.Orgs()}
	op, err := l.s.store.SetIntent(ctx, scope, store.SetIntent{Box: box.ID, Verb: carrel.VerbStart, Intent: carrel.IntentRunning, Check: check})
	if errors.Is(err, errAwake) {
		box, err = l.s.store.GetBox(ctx, scope, box.ID)
		if err != nil {
			return nil, err
		}
		return answer(carrel.StateOf(&box.BoxView))
	}
	if err != nil {
		return nil, fmt.Errorf("wake box: %w", err)
	}
	peer := accessOf(ctx).principal.Peer
	entry := store.GatewayAudit{At: l.s.now(), User: p.User, Box: box.ID, Action: "wake", Detail: "for " + short(m.GetCause()) + " by gateway " + peer.ID}
	if err := l.s.store.AuditGateway(ctx, carrel.GatewayID(peer.ID), []store.GatewayAudit{entry}); err != nil {
		l.s.log.WarnContext(ctx, "a wake-up is not in the audit", "box", box.ID, "user", p.User, "error", err) // the start is
	}
	return answer(carrel.StateOf(&op.Box.BoxView))
}

// Audit keeps what a gateway decided by itself.
func (l gatewayLink) Audit(ctx context.Context, req *connect.Request[linkv1.AuditRequest]) (*connect.Response[linkv1.AuditResponse], error) {
	if len(req.Msg.GetEntries()) > maxAuditEntries {
		return nil, carrel.Errorf(carrel.CodeInvalid, "too_many_entries", "at most %d entries are taken at once", maxAuditEntries)
	}
	entries := make([]store.GatewayAudit, 0, len(req.Msg.GetEntries()))
	for _, e := range req.Msg.GetEntries() {
		at := l.s.now()
		if t := e.GetTime(); t.IsValid() && t.AsTime().Before(at) {
			at = t.AsTime()
		}
		entries = append(entries, store.GatewayAudit{
			At: at, User: carrel.UserID(short(e.GetUserId())), Box: carrel.BoxID(short(e.GetBoxId())), Action: short(e.GetAction()), Detail: e.GetDetail(),
		})
	}
	if err := l.s.store.AuditGateway(ctx, carrel.GatewayID(accessOf(ctx).principal.Peer.ID), entries); err != nil {
		return nil, fmt.Errorf("keep audit of gateway: %w", err)
	}
	return reply(&linkv1.AuditResponse{})
}

// GetSecrets gives what all gateways share.
func (l gatewayLink) GetSecrets(context.Context, *connect.Request[linkv1.GetSecretsRequest]) (*connect.Response[linkv1.GetSecretsResponse], error) {
	k := l.s.keys.Load()
	return reply(&linkv1.GetSecretsResponse{SshHostKeys: k.sshHostKeys, CookieKeys: k.cookieKeys})
}
