package auth

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"carrel.dev/carrel/internal/carrel"
)

const (
	ticketAudience = "carrel-box"
	// MaxTicketBytes is the longest text that is looked at as a ticket.
	MaxTicketBytes = 4096
	// clockSkew is how far the clocks of two machines may be apart.
	clockSkew = 30 * time.Second
)

// Ticket is a right to reach one box in one of its epochs.
type Ticket struct {
	Box    carrel.BoxID
	Org    carrel.OrgID
	Epoch  int64 // of the run that may be reached; another one refuses the ticket
	User   carrel.UserID
	Scopes []string // ScopeExec, ScopeView
	// Token is the API token that the ticket was asked for with; it ends when the token is revoked. Empty: none.
	Token   carrel.TokenID
	Issued  time.Time // to the second; zero: not known
	Expires time.Time // to the second
}

// Has reports whether the ticket gives scope; exec includes view.
func (t Ticket) Has(scope string) bool {
	return slices.Contains(t.Scopes, scope) || scope == ScopeView && slices.Contains(t.Scopes, ScopeExec)
}

// ticketClaims are the claims of the JWT that a ticket is.
type ticketClaims struct {
	Box    string   `json:"box"`
	Org    string   `json:"org"`
	Epoch  int64    `json:"epoch"`
	Scopes []string `json:"scopes"`
	Token  string   `json:"tok,omitempty"`
	jwt.RegisteredClaims
}

// KeyID names a public key that signs tickets: the first 8 bytes of its SHA-256, in hex.
func KeyID(key ed25519.PublicKey) string {
	sum := sha256.Sum256(key)
	return hex.EncodeToString(sum[:8])
}

// TicketSigner makes tickets. It is safe for concurrent use.
type TicketSigner struct {
	key ed25519.PrivateKey
	kid string
}

// NewTicketSigner signs with key.
func NewTicketSigner(key ed25519.PrivateKey) *TicketSigner {
	public, _ := key.Public().(ed25519.PublicKey)
	return &TicketSigner{key: key, kid: KeyID(public)}
}

// KeyID names the key that signs.
func (s *TicketSigner) KeyID() string { return s.kid }

// Sign makes the JWT. It refuses an incomplete ticket.
func (s *TicketSigner) Sign(t Ticket) (string, error) {
	if carrel.IDKind(string(t.Box)) != 'b' || t.Org == "" || t.User == "" || t.Epoch <= 0 || len(t.Scopes) == 0 || t.Expires.IsZero() {
		return "", errors.New("sign ticket: box, org, user, epoch, scopes and expiry are needed")
	}
	claims := ticketClaims{
		Box: string(t.Box), Org: string(t.Org), Epoch: t.Epoch, Scopes: t.Scopes, Token: string(t.Token),
		RegisteredClaims: jwt.RegisteredClaims{
			Audience:  jwt.ClaimStrings{ticketAudience},
			Subject:   string(t.User),
			ExpiresAt: jwt.NewNumericDate(t.Expires),
		},
	}
	if !t.Issued.IsZero() {
		claims.IssuedAt = jwt.NewNumericDate(t.Issued)
	}
	token := jwt.NewWithClaims(jwt.SigningMethodEdDSA, claims)
	token.Header["kid"] = s.kid
	text, err := token.SignedString(s.key)
	if err != nil {
		return "", fmt.Errorf("sign ticket: %w", err)
	}
	return text, nil
}

// TicketVerifier checks tickets offline. It is safe for concurrent use.
type TicketVerifier struct {
	mu   sync.RWMutex // guards keys
	keys map[string]ed25519.PublicKey
}

// NewTicketVerifier knows no key yet and refuses every ticket until SetKeys.
func NewTicketVerifier() *TicketVerifier { return &TicketVerifier{} }

// SetKeys replaces the keys that are trusted. Keys of a wrong length are left out.
func (v *TicketVerifier) SetKeys(keys []ed25519.PublicKey) {
	byID := make(map[string]ed25519.PublicKey, len(keys))
	for _, k := range keys {
		if len(k) == ed25519.PublicKeySize {
			byID[KeyID(k)] = slices.Clone(k)
		}
	}
	v.mu.Lock()
	v.keys = byID
	v.mu.Unlock()
}

// Verify checks the signature, audience, times and form of a ticket. Whether it fits a box and epoch
// is for the caller to compare. The error is CodeUnauthorized with reason "bad_ticket" or
// "ticket_expired".
func (v *TicketVerifier) Verify(text string, now time.Time) (Ticket, error) {
	if len(text) > MaxTicketBytes {
		return Ticket{}, badTicket(errors.New("too long"))
	}
	var claims ticketClaims
	if err := v.parse(text, &claims, ticketAudience, now); err != nil {
		return Ticket{}, err
	}
	t := Ticket{
		Box: carrel.BoxID(claims.Box), Org: carrel.OrgID(claims.Org), Epoch: claims.Epoch,
		User: carrel.UserID(claims.Subject), Scopes: claims.Scopes, Token: carrel.TokenID(claims.Token), Expires: claims.ExpiresAt.Time,
	}
	if claims.IssuedAt != nil {
		t.Issued = claims.IssuedAt.Time
	}
	switch {
	case carrel.IDKind(claims.Box) != 'b' || t.Org == "" || t.User == "" || t.Epoch <= 0 || len(t.Scopes) == 0:
		return Ticket{}, badTicket(errors.New("a claim is missing"))
	case t.Expires.Sub(now) > carrel.TicketLifetime+clockSkew:
		return Ticket{}, badTicket(fmt.Errorf("expires at %s, later than any ticket may", t.Expires))
	}
	return t, nil
}

// parse checks what every signed right has: signature, audience and times.
func (v *TicketVerifier) parse(text string, claims jwt.Claims, audience string, now time.Time) error {
	_, err := jwt.ParseWithClaims(text, claims, v.keyOf,
		jwt.WithValidMethods([]string{jwt.SigningMethodEdDSA.Alg()}),
		jwt.WithAudience(audience),
		jwt.WithExpirationRequired(),
		jwt.WithStrictDecoding(),
		jwt.WithTimeFunc(func() time.Time { return now }))
	if errors.Is(err, jwt.ErrTokenExpired) && !errors.Is(err, jwt.ErrTokenSignatureInvalid) {
		e := carrel.Errorf(carrel.CodeUnauthorized, "ticket_expired", "this ticket has expired; get a new one and try again")
		e.Cause = err
		return e
	}
	if err != nil {
		return badTicket(err)
	}
	return nil
}

func (v *TicketVerifier) keyOf(token *jwt.Token) (any, error) {
	kid, _ := token.Header["kid"].(string)
	v.mu.RLock()
	defer v.mu.RUnlock()
	key, ok := v.keys[kid]
	if !ok {
		return nil, errors.New("unknown key")
	}
	return key, nil
}

func badTicket(cause error) error {
	e := carrel.Errorf(carrel.CodeUnauthorized, "bad_ticket", "this ticket is not valid; get a new one and try again")
	e.Cause = cause
	return e
}
