package auth

import (
	"crypto/ed25519"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/stretchr/testify/require"

	"carrel.dev/carrel/internal/carrel"
)

const otherOrg = carrel.OrgID("o0000000000000000002")

func testGrant(now time.Time) Grant {
	return Grant{
		User: "u0000000000000000001", Orgs: map[carrel.OrgID]string{"o0000000000000000001": ScopeExec, otherOrg: ScopeView},
		Issued: now.Truncate(time.Second), Expires: now.Truncate(time.Second).Add(GrantLifetime),
	}
}

func TestAGrantSaysWhatWasSigned(t *testing.T) {
	public, private := newTicketKey(t)
	v := NewTicketVerifier()
	v.SetKeys([]ed25519.PublicKey{public})
	now := time.Now()
	text, err := NewTicketSigner(private).SignGrant(testGrant(now))
	require.NoError(t, err)
	got, err := v.VerifyGrant(text, now)
	require.NoError(t, err)
	want := testGrant(now)
	require.True(t, want.Issued.Equal(got.Issued) && want.Expires.Equal(got.Expires))
	require.Equal(t, want.User, got.User)
	require.Equal(t, want.Orgs, got.Orgs)
	for org, scopes := range map[carrel.OrgID][2]bool{"o0000000000000000001": {true, true}, otherOrg: {true, false}, "o0000000000000000003": {}, "": {}} {
		require.Equal(t, scopes, [2]bool{got.Has(org, ScopeView), got.Has(org, ScopeExec)}, org)
		require.False(t, got.Has(org, ""), "no scope is no right")
	}
	_, err = v.VerifyGrant(text, now.Add(GrantLifetime+time.Second))
	require.Equal(t, "ticket_expired", carrel.ReasonOf(err))
}

// A right of one kind is none of another, although one key signs all of them.
func TestGrantsTicketsAndPortPassesAreNotEachOther(t *testing.T) {
	public, private := newTicketKey(t)
	v := NewTicketVerifier()
	v.SetKeys([]ed25519.PublicKey{public})
	s, now := NewTicketSigner(private), time.Now()
	ticket := testTicket()
	ticket.Expires = now.Add(time.Minute)
	texts := map[string]string{}
	var err error
	texts["ticket"], err = s.Sign(ticket)
	require.NoError(t, err)
	texts["grant"], err = s.SignGrant(testGrant(now))
	require.NoError(t, err)
	texts["port"], err = s.SignPort(PortPass{Box: ticket.Box, Org: ticket.Org, Port: 80, Expires: now.Add(time.Minute)})
	require.NoError(t, err)
	for kind, verify := range map[string]func(string) error{
		"ticket": func(text string) error { _, err := v.Verify(text, now); return err },
		"grant":  func(text string) error { _, err := v.VerifyGrant(text, now); return err },
		"port":   func(text string) error { _, err := v.VerifyPort(text, now); return err },
	} {
		for signed, text := range texts {
			if err := verify(text); signed == kind {
				require.NoError(t, err, kind)
			} else {
				require.Equal(t, "bad_ticket", carrel.ReasonOf(err), "a %s as a %s", signed, kind)
			}
		}
	}
}

func TestForgedGrantsAreRefused(t *testing.T) {
	public, private := newTicketKey(t)
	_, stranger := newTicketKey(t)
	v := NewTicketVerifier()
	v.SetKeys([]ed25519.PublicKey{public})
	now := time.Now()
	forged, err := NewTicketSigner(stranger).SignGrant(testGrant(now))
	require.NoError(t, err)
	long := testGrant(now)
	long.Expires = now.Add(GrantLifetime + time.Hour)
	lasting, err := NewTicketSigner(private).SignGrant(long)
	require.NoError(t, err)
	raw := func(claims jwt.MapClaims) string {
		token := jwt.NewWithClaims(jwt.SigningMethodEdDSA, claims)
		token.Header["kid"] = KeyID(public)
		text, err := token.SignedString(private)
		require.NoError(t, err)
		return text
	}
	good := jwt.MapClaims{"aud": "carrel-grant", "sub": "u0000000000000000001", "iat": now.Unix(), "exp": now.Add(time.Hour).Unix(), "orgs": map[string]string{}}
	with := func(key string, value any) string {
		claims := jwt.MapClaims{}
		for k, v := range good {
			claims[k] = v
		}
		if claims[key] = value; value == nil {
			delete(claims, key)
		}
		return raw(claims)
	}
	_, err = v.VerifyGrant(raw(good), now)
	require.NoError(t, err)
	for name, text := range map[string]string{
		"another key": forged, "too long a life": lasting, "too long a text": strings.Repeat("a", MaxGrantBytes+1), "nothing": "",
		"no user": with("sub", ""), "a name for a user": with("sub", "ada"), "no beginning": with("iat", nil), "no end": with("exp", nil),
		"no such scope":              with("orgs", map[string]string{"o0000000000000000001": "root"}),
		"a name for an organisation": with("orgs", map[string]string{"default": "exec"}), "orgs of another shape": with("orgs", []string{"x"}),
	} {
		_, err := v.VerifyGrant(text, now)
		require.Equal(t, carrel.CodeUnauthorized, carrel.CodeOf(err), name)
	}
}

func TestAnIncompleteGrantIsNotSigned(t *testing.T) {
	_, private := newTicketKey(t)
	s, now := NewTicketSigner(private), time.Now()
	many := testGrant(now)
	for i := range MaxGrantOrgs {
		many.Orgs[carrel.OrgID(fmt.Sprintf("o%019d", i+10))] = ScopeExec
	}
	for name, change := range map[string]func(*Grant){
		"user": func(g *Grant) { g.User = "" }, "beginning": func(g *Grant) { g.Issued = time.Time{} }, "end": func(g *Grant) { g.Expires = time.Time{} },
		"scope": func(g *Grant) { g.Orgs[otherOrg] = "" }, "organisation": func(g *Grant) { g.Orgs[""] = ScopeExec }, "many": func(g *Grant) { *g = many },
	} {
		g := testGrant(now)
		change(&g)
		_, err := s.SignGrant(g)
		require.Error(t, err, name)
	}
	delete(many.Orgs, otherOrg)
	delete(many.Orgs, "o0000000000000000001")
	text, err := s.SignGrant(many)
	require.NoError(t, err)
	require.Less(t, len(text), MaxGrantBytes, "the largest grant still fits into a header")
}

func TestATicketNamesItsToken(t *testing.T) {
	public, private := newTicketKey(t)
	v := NewTicketVerifier()
	v.SetKeys([]ed25519.PublicKey{public})
	ticket := testTicket()
	now := time.Now().Truncate(time.Second)
	ticket.Token, ticket.Issued, ticket.Expires = "t0000000000000000001", now, now.Add(time.Minute)
	text, err := NewTicketSigner(private).Sign(ticket)
	require.NoError(t, err)
	got, err := v.Verify(text, now)
	require.NoError(t, err)
	require.Equal(t, ticket.Token, got.Token)
	require.True(t, now.Equal(got.Issued))
}

func TestScopeOfARole(t *testing.T) {
	for role, scope := range map[Role]string{RoleNone: "", "king": "", RoleViewer: ScopeView, RoleMember: ScopeExec, RoleAdmin: ScopeExec, RoleOwner: ScopeExec} {
		require.Equal(t, scope, ScopeOf(role), role)
	}
}

func FuzzVerifyGrant(f *testing.F) {
	public, private := newTicketKey(f)
	v := NewTicketVerifier()
	v.SetKeys([]ed25519.PublicKey{public})
	now := time.Unix(1_800_000_000, 0)
	good, err := NewTicketSigner(private).SignGrant(testGrant(now))
	require.NoError(f, err)
	f.Add(good)
	f.Add(strings.ToUpper(good))
	f.Add("a.b.c")
	f.Fuzz(func(t *testing.T, text string) {
		g, err := v.VerifyGrant(text, now)
		if err != nil {
			require.Equal(t, carrel.CodeUnauthorized, carrel.CodeOf(err))
			return
		}
		require.Equal(t, testGrant(now).Orgs, g.Orgs, "only what was signed is taken")
	})
}
