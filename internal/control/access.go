package control

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"

	"carrel.dev/carrel/internal/auth"
	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/store"
)

// access is who makes a request and what the policy table says of its method. Handlers of methods that
// need a role must ask it about the organisation; one that did not is a fault, and its answer is withheld.
type access struct {
	principal auth.Principal
	method    string
	rule      auth.Rule
	header    http.Header // what the caller proved themselves with
	asked     atomic.Bool
}

func accessOf(ctx context.Context) *access {
	if a, ok := ctx.Value(accessKey).(*access); ok {
		return a
	}
	return &access{}
}

// begin authenticates the caller of a method and checks all of the policy that does not depend on the
// organisation.
func (s *Server) begin(ctx context.Context, method string, header http.Header) (context.Context, *access, error) {
	rule, ok := auth.RuleOf(method)
	if !ok {
		return ctx, nil, auth.Allow(auth.Principal{}, method, "")
	}
	if err := s.refuseRevoked(connectionOf(ctx).peer); err != nil {
		return ctx, nil, err
	}
	a := &access{method: method, rule: rule, header: header}
	if rule.Need == auth.NeedPeer || rule.Need == auth.NeedNothing {
		a.principal = auth.Principal{Peer: connectionOf(ctx).peer}
	} else {
		p, err := s.authenticate(ctx, header)
		if err != nil {
			return ctx, nil, err
		}
		a.principal = p
	}
	if rule.Need != auth.NeedRole || a.principal.User == "" {
		if err := auth.Allow(a.principal, method, ""); err != nil {
			return ctx, nil, err
		}
	}
	if a.principal.User != "" { // peers speak for many
		if err := s.limiter.take(a.principal.Actor()); err != nil {
			return ctx, nil, err
		}
	}
	return context.WithValue(ctx, accessKey, a), a, nil
}

// finish withholds the answer of a handler that never asked whether the caller may.
func (a *access) finish() error {
	if a.rule.Need == auth.NeedRole && !a.asked.Load() {
		return fmt.Errorf("%s answered without asking the policy table", a.method)
	}
	return nil
}

func (s *Server) authenticate(ctx context.Context, header http.Header) (auth.Principal, error) {
	value := header.Get("Authorization")
	if value == "" {
		peer := connectionOf(ctx).peer
		if peer.Role == auth.PeerGateway { // it passes on the request of somebody who did not say who they are
			peer = auth.Peer{}
		}
		return auth.Principal{Peer: peer}, nil
	}
	scheme, text, ok := strings.Cut(value, " ")
	if !ok || !strings.EqualFold(scheme, "Bearer") {
		return auth.Principal{}, carrel.Errorf(carrel.CodeUnauthorized, "bad_authorization", "the Authorization header must be: Bearer TOKEN")
	}
	return s.principalOf(ctx, strings.TrimSpace(text))
}

// again authenticates the caller of a long stream once more: tokens end and are revoked, and roles are taken away.
// Only the goroutine of the request may call it.
func (s *Server) again(ctx context.Context) error {
	a := accessOf(ctx)
	p, err := s.authenticate(ctx, a.header)
	if err == nil && p.User == "" {
		err = auth.BadToken()
	}
	if err != nil {
		return err
	}
	a.principal = p
	return nil
}

// principalOf is who an API token speaks for.
func (s *Server) principalOf(ctx context.Context, token string) (auth.Principal, error) {
	secret, err := auth.ParseToken(token)
	if err != nil {
		return auth.Principal{}, err
	}
	before := s.now()
	owner, err := s.store.LookupToken(ctx, secret.Hash[:])
	if carrel.CodeOf(err) == carrel.CodeUnauthorized || err == nil && !auth.SameText(string(owner.Token.ID), string(secret.ID)) {
		return auth.Principal{}, auth.BadToken()
	}
	if err != nil {
		return auth.Principal{}, fmt.Errorf("look up token: %w", err)
	}
	p := auth.Principal{
		User: owner.User.ID, UserName: owner.User.Name, Token: owner.Token.ID, Expires: owner.Token.ExpiresAt, Seen: before, Operator: owner.User.Operator,
		Roles: make(map[carrel.OrgID]auth.Role, len(owner.Members)),
	}
	for _, m := range owner.Members {
		p.Roles[m.Org] = auth.Role(m.Role)
	}
	return p, nil
}

// allow asks the policy table whether the caller may call this method on what belongs to org.
func allow(ctx context.Context, org carrel.OrgID) error {
	a := accessOf(ctx)
	a.asked.Store(true)
	return auth.Allow(a.principal, a.method, org)
}

// scopeOf is what the store may show the caller: the organisations that they have a role in, and everything
// for a method that only operators may call.
func scopeOf(ctx context.Context) store.Scope {
	a := accessOf(ctx)
	return store.Scope{User: a.principal.User, Orgs: a.principal.Orgs(), Platform: a.rule.Need == auth.NeedOperator && a.principal.Operator}
}

// platformScope is scopeOf, and everything for an operator.
func platformScope(ctx context.Context) store.Scope {
	scope := scopeOf(ctx)
	scope.Platform = accessOf(ctx).principal.Operator
	return scope
}

// org finds the organisation that a request names by id or name, or the caller's own, and asks
// whether they may do this there.
func (s *Server) org(ctx context.Context, ref string) (carrel.OrgID, error) {
	id, err := s.resolveOrg(ctx, ref)
	if err != nil {
		accessOf(ctx).asked.Store(true)
		return "", err
	}
	if err := allow(ctx, id); err != nil {
		if carrel.CodeOf(err) == carrel.CodeNotFound {
			return "", carrel.NotFound("organisation", ref)
		}
		return "", err
	}
	return id, nil
}

func (s *Server) resolveOrg(ctx context.Context, ref string) (carrel.OrgID, error) {
	p := accessOf(ctx).principal
	switch {
	case ref == "":
		return s.homeOrg(p)
	case carrel.IDKind(ref) == 'o':
		return carrel.OrgID(ref), nil
	}
	if len(p.Roles) == 0 {
		return "", carrel.NotFound("organisation", ref)
	}
	org, err := s.store.GetOrg(ctx, store.Scope{User: p.User, Orgs: p.Orgs()}, ref)
	if err != nil {
		return "", fmt.Errorf("find organisation: %w", err)
	}
	return org.ID, nil
}

// homeOrg is the organisation that is meant when a request names none.
func (s *Server) homeOrg(p auth.Principal) (carrel.OrgID, error) {
	if _, ok := p.Roles[s.cluster.DefaultOrg]; ok {
		return s.cluster.DefaultOrg, nil
	}
	var own []carrel.OrgID
	for _, org := range p.Orgs() {
		if org != s.cluster.SystemOrg {
			own = append(own, org)
		}
	}
	switch len(own) {
	case 0:
		return "", carrel.Errorf(carrel.CodeDenied, "no_organisation", "you belong to no organisation; ask an administrator of one to add you")
	case 1:
		return own[0], nil
	}
	return "", carrel.Errorf(carrel.CodeInvalid, "organisation_needed", "you belong to %d organisations; say which one is meant (org)", len(own))
}

// orgs is for lists: the one organisation that a request names, or (empty) all of the caller's.
func (s *Server) orgs(ctx context.Context, ref string) (carrel.OrgID, error) {
	if ref != "" {
		return s.org(ctx, ref)
	}
	for _, id := range accessOf(ctx).principal.Orgs() {
		if err := allow(ctx, id); err != nil {
			return "", err
		}
	}
	accessOf(ctx).asked.Store(true)
	return "", nil
}

// seen hides what the caller may not know of: denied to an outsider is NotFound of the thing itself.
func seen(err error, kind, ref string) error {
	var e *carrel.Error
	if errors.As(err, &e) && e.Code == carrel.CodeNotFound {
		return carrel.NotFound(kind, ref)
	}
	return err
}
