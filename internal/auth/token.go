package auth

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"strings"

	"carrel.dev/carrel/internal/carrel"
)

// The beginnings of secrets, so that people and scanners know what they found.
const (
	tokenPrefix     = "carrel_"
	joinTokenPrefix = "carreljoin_"
)

// secretLength is the length of a secret's text: 32 random bytes in base64url without padding.
const secretLength = 43

// Secret is a token as it is given out, once. Only its Hash is stored.
type Secret struct {
	ID   carrel.TokenID
	Text string   // what the user keeps; never logged
	Hash [32]byte // SHA-256 of the secret part of Text
}

// NewToken makes an API token: carrel_ID_SECRET.
func NewToken() Secret { return newSecret(tokenPrefix) }

// NewJoinToken makes a join token: carreljoin_ID_SECRET.
func NewJoinToken() Secret { return newSecret(joinTokenPrefix) }

func newSecret(prefix string) Secret {
	var raw [32]byte
	_, _ = rand.Read(raw[:]) // never fails: crypto/rand ends the process instead
	id, secret := carrel.NewTokenID(), base64.RawURLEncoding.EncodeToString(raw[:])
	return Secret{ID: id, Text: prefix + string(id) + "_" + secret, Hash: sha256.Sum256([]byte(secret))}
}

// ParseToken takes the text of an API token apart. The error is CodeUnauthorized and tells nothing of the text.
func ParseToken(text string) (Secret, error) {
	s, ok := parseSecret(text, tokenPrefix)
	if !ok {
		return Secret{}, BadToken()
	}
	return s, nil
}

// ParseJoinToken takes the text of a join token apart. The error is CodeUnauthorized.
func ParseJoinToken(text string) (Secret, error) {
	s, ok := parseSecret(text, joinTokenPrefix)
	if !ok {
		return Secret{}, BadJoinToken()
	}
	return s, nil
}

func parseSecret(text, prefix string) (Secret, bool) {
	rest, ok := strings.CutPrefix(text, prefix)
	if !ok || len(rest) != carrel.IDLength+1+secretLength || rest[carrel.IDLength] != '_' {
		return Secret{}, false
	}
	id, secret := rest[:carrel.IDLength], rest[carrel.IDLength+1:]
	if carrel.IDKind(id) != 't' {
		return Secret{}, false
	}
	if raw, err := base64.RawURLEncoding.Strict().DecodeString(secret); err != nil || len(raw) != 32 {
		return Secret{}, false
	}
	return Secret{ID: carrel.TokenID(id), Text: text, Hash: sha256.Sum256([]byte(secret))}, true
}

// RoleJoinToken makes of the text of a join token file what lets peers of one role join and no others, so that who has
// a gateway's token can't become a node with it.
func RoleJoinToken(text string, role PeerRole) string {
	mac := hmac.New(sha256.New, []byte(text))
	_, _ = mac.Write([]byte("carrel join " + string(role))) // a hash never fails
	return base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}

// Matches reports in constant time whether the secret's hash is the stored one.
func (s Secret) Matches(stored []byte) bool {
	return subtle.ConstantTimeCompare(s.Hash[:], stored) == 1
}

// SameText compares two secrets of any length in a time that does not depend on where they differ.
func SameText(a, b string) bool {
	x, y := sha256.Sum256([]byte(a)), sha256.Sum256([]byte(b))
	return subtle.ConstantTimeCompare(x[:], y[:]) == 1
}

// BadToken is the one answer to a token that is malformed, unknown, revoked or expired, so that nobody
// can tell which.
func BadToken() error {
	return carrel.Errorf(carrel.CodeUnauthorized, "bad_token", "this API token is not valid (any more); make a new one, or log in again")
}

// BadJoinToken is the one answer to a join token that does not work.
func BadJoinToken() error {
	return carrel.Errorf(carrel.CodeUnauthorized, "bad_join_token", "this join token is not valid (any more); ask an operator for a new one")
}
