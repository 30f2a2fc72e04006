package auth

import (
	"crypto/ed25519"
	"encoding/base64"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/stretchr/testify/require"

	"carrel.dev/carrel/internal/carrel"
)

func TestATokenIsRecognisedByItsHashAlone(t *testing.T) {
	a, b := NewToken(), NewToken()
	require.Regexp(t, `^carrel_t[a-z0-9]{19}_[A-Za-z0-9_-]{43}$`, a.Text)
	got, err := ParseToken(a.Text)
	require.NoError(t, err)
	require.Equal(t, a, got)
	require.True(t, got.Matches(a.Hash[:]))
	require.False(t, got.Matches(b.Hash[:]))
	require.False(t, got.Matches(nil))
	require.NotContains(t, string(a.Hash[:]), a.Text[len(a.Text)-8:])
}

func TestJoinTokensAndAPITokensAreNotEachOther(t *testing.T) {
	_, err := ParseToken(NewJoinToken().Text)
	require.Equal(t, carrel.CodeUnauthorized, carrel.CodeOf(err))
	_, err = ParseJoinToken(NewToken().Text)
	require.Equal(t, carrel.CodeUnauthorized, carrel.CodeOf(err))
	_, err = ParseJoinToken(NewJoinToken().Text)
	require.NoError(t, err)
}

func TestSameText(t *testing.T) {
	require.True(t, SameText("abc", "abc"))
	require.False(t, SameText("abc", "abcd"))
}

func FuzzParseToken(f *testing.F) {
	f.Add(NewToken().Text)
	f.Add("carrel_t1234567890123456789_" + strings.Repeat("A", 43))
	f.Add("carrel__")
	f.Fuzz(func(t *testing.T, text string) {
		s, err := ParseToken(text)
		if err != nil {
			require.Equal(t, carrel.CodeUnauthorized, carrel.CodeOf(err))
			return
		}
		require.Equal(t, text, s.Text)
		require.Equal(t, "carrel_"+string(s.ID)+"_"+text[len(text)-secretLength:], text, "only one way to write it")
	})
}

var ticketTime = time.Unix(1_800_000_000, 0)

func testTicket() Ticket {
	return Ticket{
		Box: "b1111111111111111111", Org: testOrg, Epoch: 3, User: "u1111111111111111111",
		Scopes: []string{ScopeExec}, Expires: ticketTime.Add(carrel.TicketLifetime),
	}
}

func newTicketKey(t testing.TB) (ed25519.PublicKey, ed25519.PrivateKey) {
	t.Helper()
	public, private, err := ed25519.GenerateKey(nil)
	require.NoError(t, err)
	return public, private
}

func TestATicketSaysWhatWasSigned(t *testing.T) {
	public, private := newTicketKey(t)
	text, err := NewTicketSigner(private).Sign(testTicket())
	require.NoError(t, err)
	v := NewTicketVerifier()
	_, err = v.Verify(text, ticketTime)
	require.Equal(t, "bad_ticket", carrel.ReasonOf(err), "without keys nothing is trusted")
	v.SetKeys([]ed25519.PublicKey{public, nil, {1, 2}})
	got, err := v.Verify(text, ticketTime)
	require.NoError(t, err)
	require.True(t, got.Expires.Equal(testTicket().Expires))
	got.Expires = testTicket().Expires
	require.Equal(t, testTicket(), got)
	require.True(t, got.Has(ScopeView), "exec includes view")
	require.False(t, Ticket{Scopes: []string{ScopeView}}.Has(ScopeExec))
}

func TestAnOldKeyVerifiesUntilItIsTakenAway(t *testing.T) {
	oldPublic, oldPrivate := newTicketKey(t)
	newPublic, newPrivate := newTicketKey(t)
	v := NewTicketVerifier()
	v.SetKeys([]ed25519.PublicKey{newPublic, oldPublic})
	for _, key := range []ed25519.PrivateKey{oldPrivate, newPrivate} {
		text, err := NewTicketSigner(key).Sign(testTicket())
		require.NoError(t, err)
		_, err = v.Verify(text, ticketTime)
		require.NoError(t, err)
	}
	v.SetKeys([]ed25519.PublicKey{newPublic})
	text, err := NewTicketSigner(oldPrivate).Sign(testTicket())
	require.NoError(t, err)
	_, err = v.Verify(text, ticketTime)
	require.Equal(t, "bad_ticket", carrel.ReasonOf(err))
}

func TestATicketEnds(t *testing.T) {
	public, private := newTicketKey(t)
	v := NewTicketVerifier()
	v.SetKeys([]ed25519.PublicKey{public})
	text, err := NewTicketSigner(private).Sign(testTicket())
	require.NoError(t, err)
	_, err = v.Verify(text, testTicket().Expires)
	require.Equal(t, "ticket_expired", carrel.ReasonOf(err))
	_, err = v.Verify(text, ticketTime.Add(-time.Minute))
	require.Equal(t, "bad_ticket", carrel.ReasonOf(err), "no ticket is good for longer than its lifetime")
}

func TestForgedTicketsAreRefused(t *testing.T) {
	public, private := newTicketKey(t)
	v := NewTicketVerifier()
	v.SetKeys([]ed25519.PublicKey{public})
	sign := func(method jwt.SigningMethod, key any, change func(jwt.MapClaims)) string {
		claims := jwt.MapClaims{
			"aud": "carrel-box", "box": "b1111111111111111111", "org": string(testOrg), "epoch": 3,
			"sub": "u1", "scopes": []string{"exec"}, "exp": ticketTime.Add(time.Minute).Unix(),
		}
		change(claims)
		token := jwt.NewWithClaims(method, claims)
		token.Header["kid"] = KeyID(public)
		text, err := token.SignedString(key)
		require.NoError(t, err)
		return text
	}
	keep := func(jwt.MapClaims) {}
	_, err := v.Verify(sign(jwt.SigningMethodEdDSA, private, keep), ticketTime)
	require.NoError(t, err, "the forger's tool makes good ones too")

	good := sign(jwt.SigningMethodEdDSA, private, keep)
	parts := strings.Split(good, ".")
	body, err := base64.RawURLEncoding.DecodeString(parts[1])
	require.NoError(t, err)
	other := base64.RawURLEncoding.EncodeToString([]byte(strings.Replace(string(body), "b1111111111111111111", "b2222222222222222222", 1)))
	for name, text := range map[string]string{
		"no signature":  sign(jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType, keep),
		"key as secret": sign(jwt.SigningMethodHS256, []byte(public), keep),
		"audience":      sign(jwt.SigningMethodEdDSA, private, func(c jwt.MapClaims) { c["aud"] = "other" }),
		"no audience":   sign(jwt.SigningMethodEdDSA, private, func(c jwt.MapClaims) { delete(c, "aud") }),
		"no expiry":     sign(jwt.SigningMethodEdDSA, private, func(c jwt.MapClaims) { delete(c, "exp") }),
		"no box":        sign(jwt.SigningMethodEdDSA, private, func(c jwt.MapClaims) { delete(c, "box") }),
		"no scopes":     sign(jwt.SigningMethodEdDSA, private, func(c jwt.MapClaims) { delete(c, "scopes") }),
		"epoch 0":       sign(jwt.SigningMethodEdDSA, private, func(c jwt.MapClaims) { c["epoch"] = 0 }),
		"no user":       sign(jwt.SigningMethodEdDSA, private, func(c jwt.MapClaims) { delete(c, "sub") }),
		"other body":    parts[0] + "." + other + "." + parts[2],
		"too long":      good + strings.Repeat("A", MaxTicketBytes),
		"empty":         "",
	} {
		_, err := v.Verify(text, ticketTime)
		require.Equal(t, carrel.CodeUnauthorized, carrel.CodeOf(err), name)
		require.Equal(t, "bad_ticket", carrel.ReasonOf(err), name)
	}
}

func TestAnIncompleteTicketIsNotSigned(t *testing.T) {
	_, private := newTicketKey(t)
	for name, change := range map[string]func(*Ticket){
		"box": func(x *Ticket) { x.Box = "" }, "org": func(x *Ticket) { x.Org = "" }, "user": func(x *Ticket) { x.User = "" },
		"epoch": func(x *Ticket) { x.Epoch = 0 }, "scopes": func(x *Ticket) { x.Scopes = nil }, "expiry": func(x *Ticket) { x.Expires = time.Time{} },
	} {
		x := testTicket()
		change(&x)
		_, err := NewTicketSigner(private).Sign(x)
		require.Error(t, err, name)
	}
}

func FuzzVerifyTicket(f *testing.F) {
	public, private := newTicketKey(f)
	good, err := NewTicketSigner(private).Sign(testTicket())
	require.NoError(f, err)
	f.Add(good)
	f.Add("a.b.c")
	f.Add("eyJhbGciOiJub25lIn0.e30.")
	v := NewTicketVerifier()
	v.SetKeys([]ed25519.PublicKey{public})
	f.Fuzz(func(t *testing.T, text string) {
		if got, err := v.Verify(text, ticketTime); err == nil {
			require.Equal(t, testTicket().Box, got.Box, "only what was signed is accepted")
			require.Equal(t, testTicket().Epoch, got.Epoch)
		} else {
			require.Equal(t, carrel.CodeUnauthorized, carrel.CodeOf(err))
		}
	})
}

func TestAKeyringGivesBackWhatItWrapped(t *testing.T) {
	path := filepath.Join(t.TempDir(), "kek")
	require.NoError(t, os.WriteFile(path, []byte("# the key-encryption key\n"+NewKEK()+"\n"), 0o600))
	k, err := OpenKeyring(path)
	require.NoError(t, err)
	a, err := k.Wrap("ca", []byte("secret"))
	require.NoError(t, err)
	b, err := k.Wrap("ca", []byte("secret"))
	require.NoError(t, err)
	require.NotEqual(t, a, b)
	require.NotContains(t, string(a), "secret")
	got, err := k.Unwrap("ca", a)
	require.NoError(t, err)
	require.Equal(t, "secret", string(got))

	_, err = k.Unwrap("ticket", a)
	require.Error(t, err, "a secret can't be put in another's place")
	for i := range a {
		bad := append([]byte(nil), a...)
		bad[i] ^= 1
		_, err = k.Unwrap("ca", bad)
		require.Error(t, err, "byte %d changed", i)
	}
	for n := range a {
		_, err = k.Unwrap("ca", a[:n])
		require.Error(t, err, "cut to %d", n)
	}
}

func TestAKEKCanBeReplaced(t *testing.T) {
	oldKEK, newKEK := NewKEK(), NewKEK()
	before, err := ParseKeyring(oldKEK)
	require.NoError(t, err)
	during, err := ParseKeyring(newKEK + "\n" + oldKEK)
	require.NoError(t, err)
	after, err := ParseKeyring(newKEK)
	require.NoError(t, err)

	wrapped, err := before.Wrap("ca", []byte("secret"))
	require.NoError(t, err)
	_, err = after.Unwrap("ca", wrapped)
	require.ErrorContains(t, err, "not in the file")
	secret, err := during.Unwrap("ca", wrapped)
	require.NoError(t, err)
	again, err := during.Wrap("ca", secret)
	require.NoError(t, err)
	_, err = after.Unwrap("ca", again)
	require.NoError(t, err, "the first one wraps")
}

func TestABadKEKFileIsRefused(t *testing.T) {
	for _, text := range []string{"", "# nothing", "short", "not base64!", NewKEK() + "x"} {
		_, err := ParseKeyring(text)
		require.Error(t, err, text)
	}
	_, err := OpenKeyring(filepath.Join(t.TempDir(), "absent"))
	require.ErrorIs(t, err, os.ErrNotExist)
}
