package auth

import (
	"crypto/ed25519"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"carrel.dev/carrel/internal/carrel"
)

func portWorld(t testing.TB) (*TicketSigner, *TicketVerifier, PortPass) {
	t.Helper()
	public, private, err := ed25519.GenerateKey(nil)
	require.NoError(t, err)
	v := NewTicketVerifier()
	v.SetKeys([]ed25519.PublicKey{public})
	return NewTicketSigner(private), v, PortPass{
		Box: carrel.NewBoxID(), Org: carrel.NewOrgID(), Port: 8000, User: carrel.NewUserID(), Expires: ticketTime.Add(time.Hour),
	}
}

func TestAPortPassSaysWhatWasSigned(t *testing.T) {
	signer, verifier, pass := portWorld(t)
	text, err := signer.SignPort(pass)
	require.NoError(t, err)
	got, err := verifier.VerifyPort(text, ticketTime)
	require.NoError(t, err)
	require.True(t, pass.Expires.Equal(got.Expires))
	got.Expires = pass.Expires
	require.Equal(t, pass, got)

	pass.User = "" // of a public port
	_, err = signer.SignPort(pass)
	require.NoError(t, err)
}

func TestAPortPassIsNoTicketAndATicketIsNoPortPass(t *testing.T) {
	signer, verifier, pass := portWorld(t)
	text, err := signer.SignPort(pass)
	require.NoError(t, err)
	_, err = verifier.Verify(text, ticketTime)
	require.Equal(t, "bad_ticket", carrel.ReasonOf(err))

	ticket, err := signer.Sign(Ticket{Box: pass.Box, Org: pass.Org, Epoch: 1, User: pass.User, Scopes: []string{ScopeExec}, Expires: ticketTime.Add(time.Minute)})
	require.NoError(t, err)
	_, err = verifier.VerifyPort(ticket, ticketTime)
	require.Equal(t, "bad_ticket", carrel.ReasonOf(err))
}

func TestAPortPassThatIsNotGood(t *testing.T) {
	signer, verifier, pass := portWorld(t)
	stranger, _, _ := portWorld(t)
	sign := func(s *TicketSigner, change func(*PortPass)) string {
		p := pass
		if change != nil {
			change(&p)
		}
		text, err := s.SignPort(p)
		require.NoError(t, err)
		return text
	}
	for reason, text := range map[string]string{
		"bad_ticket":     sign(stranger, nil),
		"ticket_expired": sign(signer, func(p *PortPass) { p.Expires = ticketTime.Add(-time.Minute) }),
	} {
		_, err := verifier.VerifyPort(text, ticketTime)
		require.Equal(t, reason, carrel.ReasonOf(err))
	}
	_, err := verifier.VerifyPort(sign(signer, func(p *PortPass) { p.Expires = ticketTime.Add(30 * 24 * time.Hour) }), ticketTime)
	require.Equal(t, "bad_ticket", carrel.ReasonOf(err), "it lives longer than any may")
	for name, change := range map[string]func(*PortPass){
		"no box": func(p *PortPass) { p.Box = "" }, "no organisation": func(p *PortPass) { p.Org = "" }, "no end": func(p *PortPass) { p.Expires = time.Time{} },
		"port 0": func(p *PortPass) { p.Port = 0 }, "port 65536": func(p *PortPass) { p.Port = 65536 },
	} {
		p := pass
		change(&p)
		_, err := signer.SignPort(p)
		require.Error(t, err, name)
	}
}

func FuzzVerifyPort(f *testing.F) {
	signer, verifier, pass := portWorld(f)
	text, err := signer.SignPort(pass)
	require.NoError(f, err)
	f.Add(text)
	f.Add("a.b.c")
	f.Fuzz(func(t *testing.T, other string) {
		if _, err := verifier.VerifyPort(other, ticketTime); err == nil {
			require.Equal(t, text, other, "something else than what was signed is believed")
		}
	})
}
