package control

import (
	"context"
	"time"

	"connectrpc.com/connect"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/auth"
	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/store"
)

const maxScopes = 8

func (b boxService) CreateTicket(ctx context.Context, req *connect.Request[carrelv1.CreateTicketRequest]) (*connect.Response[carrelv1.Ticket], error) {
	box, err := b.s.find(ctx, req.Msg.GetOrg(), req.Msg.GetId())
	if err != nil {
		return nil, err
	}
	text, ticket, err := b.s.ticket(accessOf(ctx).principal, box, req.Msg.GetScopes())
	if err != nil {
		return nil, err
	}
	return reply(&carrelv1.Ticket{Ticket: text, BoxId: string(box.ID), ExpireTime: timeProto(ticket.Expires)})
}

// ticket signs a right to reach the live run of a box, if the policy table gives p every scope.
func (s *Server) ticket(p auth.Principal, box *store.Box, scopes []string) (string, auth.Ticket, error) {
	if len(scopes) == 0 {
		scopes = []string{auth.ScopeExec}
	}
	if len(scopes) > maxScopes {
		return "", auth.Ticket{}, carrel.Errorf(carrel.CodeInvalid, "bad_scope", "%d scopes; a ticket has at most %d", len(scopes), maxScopes)
	}
	for _, scope := range scopes {
		if err := auth.AllowScope(p, scope, box.Org); err != nil {
			return "", auth.Ticket{}, seen(err, "box", box.Name)
		}
	}
	if !box.Live() {
		return "", auth.Ticket{}, notRunning(box)
	}
	now := s.now()
	issued := p.Seen // a right that is taken away after that ends the ticket
	if issued.IsZero() {
		issued = now
	}
	ticket := auth.Ticket{
		Box: box.ID, Org: box.Org, Epoch: box.Run.Epoch, User: p.User, Scopes: scopes, Token: p.Token, Issued: issued, Expires: notAfter(p, now.Add(carrel.TicketLifetime)),
	}
	text, err := s.keys.Load().signer.Sign(ticket)
	return text, ticket, err
}

// notAfter is a time, or the end of the token by which p asks if that comes first.
func notAfter(p auth.Principal, at time.Time) time.Time {
	if !p.Expires.IsZero() && p.Expires.Before(at) {
		return p.Expires
	}
	return at
}

// notRunning says what to do about a box that can't be reached because it has no live run.
func notRunning(box *store.Box) *carrel.Error {
	state := carrel.StateOf(&box.BoxView)
	e := wrongState(box, "box %s is %s", box.Name, word(state))
	e.Reason = "box_not_running"
	switch state {
	case carrel.StatePaused:
		e.Message += "; bring it back with its memory with: carrel resume " + box.Name
	case carrel.StateStopped, carrel.StateStopping:
		e.Message += "; start it with: carrel start " + box.Name
	case carrel.StateFailed:
		e.Message = "box " + box.Name + " has failed; see why and what to do with: carrel show " + box.Name
	case carrel.StateDeleting, carrel.StateDeleted:
		e.Message = "box " + box.Name + " is deleted"
	default:
		e.Message += " and not ready yet; wait for it with: carrel wait " + box.Name + " --state RUNNING"
		e.RetryAfter = time.Second
	}
	return e
}
