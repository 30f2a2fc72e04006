package auth

import (
	"errors"
	"fmt"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"carrel.dev/carrel/internal/carrel"
)

const (
	portAudience = "carrel-port"
	// MaxPortPassLifetime is the longest life of a port pass.
	MaxPortPassLifetime = 7 * 24 * time.Hour
)

// PortPass is a right to reach one TCP port of one box, in whatever run it is: what a signed URL carries, and what a
// gateway shows for a port that is public.
type PortPass struct {
	Box  carrel.BoxID
	Org  carrel.OrgID
	Port int // 1 to 65535
	// User made it, and it ends when that user may not use the box any more; empty for a public port.
	User    carrel.UserID
	Expires time.Time
}

type portClaims struct {
	Box  string `json:"box"`
	Org  string `json:"org"`
	Port int    `json:"port"`
	jwt.RegisteredClaims
}

func (p PortPass) check() error {
	switch {
	case carrel.IDKind(string(p.Box)) != 'b' || p.Org == "":
		return errors.New("a port pass names a box and its organisation")
	case p.Port < 1 || p.Port > 65535:
		return fmt.Errorf("port %d; it must be from 1 to 65535", p.Port)
	case p.Expires.IsZero():
		return errors.New("a port pass has an end")
	}
	return nil
}

// SignPort makes the JWT of a port pass. It refuses an incomplete one.
func (s *TicketSigner) SignPort(p PortPass) (string, error) {
	if err := p.check(); err != nil {
		return "", fmt.Errorf("sign port pass: %w", err)
	}
	token := jwt.NewWithClaims(jwt.SigningMethodEdDSA, portClaims{
		Box: string(p.Box), Org: string(p.Org), Port: p.Port,
		RegisteredClaims: jwt.RegisteredClaims{
			Audience:  jwt.ClaimStrings{portAudience},
			Subject:   string(p.User),
			ExpiresAt: jwt.NewNumericDate(p.Expires),
		},
	})
	token.Header["kid"] = s.kid
	text, err := token.SignedString(s.key)
	if err != nil {
		return "", fmt.Errorf("sign port pass: %w", err)
	}
	return text, nil
}

// VerifyPort checks the signature, audience, times and form of a port pass. The error is CodeUnauthorized with reason
// "bad_ticket" or "ticket_expired".
func (v *TicketVerifier) VerifyPort(text string, now time.Time) (PortPass, error) {
	if len(text) > MaxTicketBytes {
		return PortPass{}, badTicket(errors.New("too long"))
	}
	var claims portClaims
	if err := v.parse(text, &claims, portAudience, now); err != nil {
		return PortPass{}, err
	}
	p := PortPass{
		Box: carrel.BoxID(claims.Box), Org: carrel.OrgID(claims.Org), Port: claims.Port,
		User: carrel.UserID(claims.Subject), Expires: claims.ExpiresAt.Time,
	}
	if err := p.check(); err != nil {
		return PortPass{}, badTicket(err)
	}
	if p.Expires.Sub(now) > MaxPortPassLifetime+clockSkew {
		return PortPass{}, badTicket(fmt.Errorf("expires at %s, later than any port pass may", p.Expires))
	}
	return p, nil
}
