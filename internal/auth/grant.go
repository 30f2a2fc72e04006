package auth

import (
	"errors"
	"fmt"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"carrel.dev/carrel/internal/carrel"
)

const (
	grantAudience = "carrel-grant"
	// GrantLifetime is how long a grant is good from when it was signed.
	GrantLifetime = 24 * time.Hour
	// MaxGrantOrgs is how many organisations one grant names, so that it fits into a header.
	MaxGrantOrgs = 1000
	// MaxGrantBytes is the longest text that is looked at as a grant.
	MaxGrantBytes = 60 << 10
)

// Grant is all that one user may do with boxes, in every run of every box of some organisations. A gateway keeps the
// grants of all users, so that it can let them in while control is away; a node's proxy compares a grant with the
// organisation of the box.
type Grant struct {
	User carrel.UserID
	// Orgs are the organisations in which the user may do something, each with a scope: ScopeExec or ScopeView.
	Orgs    map[carrel.OrgID]string
	Issued  time.Time // to the second
	Expires time.Time // to the second
}

// Has reports whether the grant gives scope in org; exec includes view.
func (g Grant) Has(org carrel.OrgID, scope string) bool { return Covers(g.Orgs[org], scope) }

// Covers reports whether who has one scope has another; exec includes view. No scope covers and none covers no scope.
func Covers(have, scope string) bool {
	return have == ScopeExec && (scope == ScopeExec || scope == ScopeView) || have == ScopeView && scope == ScopeView
}

type grantClaims struct {
	Orgs map[string]string `json:"orgs"`
	jwt.RegisteredClaims
}

func (g Grant) check() error {
	switch {
	case carrel.IDKind(string(g.User)) != 'u' || g.Issued.IsZero() || g.Expires.IsZero():
		return errors.New("a grant has a user, a beginning and an end")
	case len(g.Orgs) > MaxGrantOrgs:
		return fmt.Errorf("%d organisations; a grant names at most %d", len(g.Orgs), MaxGrantOrgs)
	}
	for org, scope := range g.Orgs {
		if carrel.IDKind(string(org)) != 'o' || !Covers(scope, ScopeView) {
			return fmt.Errorf("organisation %q with scope %q", org, scope)
		}
	}
	return nil
}

// SignGrant makes the JWT of a grant. It refuses an incomplete one.
func (s *TicketSigner) SignGrant(g Grant) (string, error) {
	if err := g.check(); err != nil {
		return "", fmt.Errorf("sign grant: %w", err)
	}
	orgs := make(map[string]string, len(g.Orgs))
	for org, scope := range g.Orgs {
		orgs[string(org)] = scope
	}
	token := jwt.NewWithClaims(jwt.SigningMethodEdDSA, grantClaims{
		Orgs: orgs,
		RegisteredClaims: jwt.RegisteredClaims{
			Audience:  jwt.ClaimStrings{grantAudience},
			Subject:   string(g.User),
			IssuedAt:  jwt.NewNumericDate(g.Issued),
			ExpiresAt: jwt.NewNumericDate(g.Expires),
		},
	})
	token.Header["kid"] = s.kid
	text, err := token.SignedString(s.key)
	if err != nil {
		return "", fmt.Errorf("sign grant: %w", err)
	}
	return text, nil
}

// VerifyGrant checks the signature, audience, times and form of a grant. Whether it covers a box is for the caller to
// ask. The error is CodeUnauthorized with reason "bad_ticket" or "ticket_expired".
func (v *TicketVerifier) VerifyGrant(text string, now time.Time) (Grant, error) {
	if len(text) > MaxGrantBytes {
		return Grant{}, badTicket(errors.New("too long"))
	}
	var claims grantClaims
	if err := v.parse(text, &claims, grantAudience, now); err != nil {
		return Grant{}, err
	}
	g := Grant{User: carrel.UserID(claims.Subject), Orgs: make(map[carrel.OrgID]string, len(claims.Orgs)), Expires: claims.ExpiresAt.Time}
	if claims.IssuedAt != nil {
		g.Issued = claims.IssuedAt.Time
	}
	for org, scope := range claims.Orgs {
		g.Orgs[carrel.OrgID(org)] = scope
	}
	if err := g.check(); err != nil {
		return Grant{}, badTicket(err)
	}
	if g.Expires.Sub(now) > GrantLifetime+clockSkew {
		return Grant{}, badTicket(fmt.Errorf("expires at %s, later than any grant may", g.Expires))
	}
	return g, nil
}

// SSHTokenExtension names, in an SSH user certificate, the API token that it was asked for with.
const SSHTokenExtension = "token@carrel.dev"
