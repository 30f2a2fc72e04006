package gateway

import (
	"context"
	"net"
	"net/http"

	"golang.org/x/crypto/ssh"

	"carrel.dev/carrel/internal/auth"
	"carrel.dev/carrel/internal/carrel"
)

// Pass is a right with its gateway.
type Pass struct {
	g *Gateway
	p pass
}

// PassOf makes a pass of a grant.
func PassOf(g *Gateway, user carrel.UserID, box carrel.BoxID, scope string) (Pass, error) {
	p, err := g.passOf(user, box, scope)
	return Pass{g, p}, err
}

// Allow makes a pass of what a request shows.
func Allow(ctx context.Context, g *Gateway, header http.Header, box string) (Pass, error) {
	p, err := g.allow(ctx, header, box, "", auth.ScopeExec)
	return Pass{g, p}, err
}

// By is the pass, got by a token and a key.
func (p Pass) By(token carrel.TokenID, key ssh.PublicKey) Pass {
	p.p.Token, p.p.key = token, string(key.Marshal())
	return p
}

// Guard registers an open stream.
func (p Pass) Guard(cancel func(error)) (release func()) { return p.g.guard(p.p, cancel) }

// Reach opens a tunnel.
func (p Pass) Reach(ctx context.Context, target string) (net.Conn, error) {
	return p.g.reach(ctx, p.p, target)
}

// Headers are what proxies are shown.
func (p Pass) Headers() http.Header { return p.p.headers() }

// Touch tells of activity.
func (p Pass) Touch(kind string) { p.g.touch(p.p, kind) }

// UserOfKey is who registered a key.
func UserOfKey(g *Gateway, key ssh.PublicKey) (carrel.UserID, bool) { return g.userOfKey(key) }

// SSHCAs is how many authorities are trusted.
func SSHCAs(g *Gateway) int { return len(g.sshCAs()) }

// HasSecrets reports whether host and cookie keys are there.
func HasSecrets(g *Gateway) bool {
	s := g.secrets()
	return len(s.SSHHostKeys) > 0 && len(s.CookieKeys) > 0
}

// FindBox is the id of the box that a user means.
func FindBox(ctx context.Context, g *Gateway, user carrel.UserID, name, org string) (carrel.BoxID, error) {
	ref, err := g.findBox(ctx, user, name, org)
	return ref.Box, err
}

// Wake has a box started and gives the pass to it.
func Wake(ctx context.Context, g *Gateway, user carrel.UserID, box carrel.BoxID, progress func(string)) (Pass, error) {
	p, err := g.wake(ctx, user, boxRef{Box: box}, "ssh", progress)
	return Pass{g, p}, err
}

// RenewTickets is one round of renewals.
func RenewTickets(ctx context.Context, g *Gateway) { g.renewTickets(ctx) }

// Audit notes an entry.
func Audit(g *Gateway, action, detail string) { g.audit(auditEntry{Action: action, Detail: detail}) }
