package auth

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"strings"
)

// A wrapped secret is: version (1 byte), id of the key-encryption key (8), nonce (12), the data key
// under the key-encryption key (48), nonce (12), the secret under the data key. Both are
// AES-256-GCM with the purpose as additional data, so that a secret can't be put in another's place.
const (
	wrapVersion = 1
	keyBytes    = 32
	kekIDBytes  = 8
	nonceBytes  = 12
	sealBytes   = 16
	wrapHeader  = 1 + kekIDBytes + nonceBytes + keyBytes + sealBytes + nonceBytes
)

// Keyring wraps root keys for keeping in the database under a key-encryption key (KEK) that is not
// there. With several KEKs the first one wraps and all unwrap, which is how one is replaced. It is
// safe for concurrent use.
type Keyring struct {
	keks []kek
}

type kek struct {
	id  [kekIDBytes]byte
	gcm cipher.AEAD
}

// NewKEK makes one line of a KEK file: 32 random bytes in base64.
func NewKEK() string {
	var raw [keyBytes]byte
	_, _ = rand.Read(raw[:]) // never fails: crypto/rand ends the process instead
	return base64.StdEncoding.EncodeToString(raw[:])
}

// OpenKeyring reads a KEK file, which should be readable by its owner only.
func OpenKeyring(path string) (*Keyring, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read key-encryption key: %w", err)
	}
	k, err := ParseKeyring(string(text))
	if err != nil {
		return nil, fmt.Errorf("key-encryption key file %s: %w", path, err)
	}
	return k, nil
}

// ParseKeyring reads the text of a KEK file: one KEK a line, newest first; empty lines and lines that begin
// with # do not count.
func ParseKeyring(text string) (*Keyring, error) {
	k := &Keyring{}
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		raw, err := base64.StdEncoding.DecodeString(line)
		if err != nil || len(raw) != keyBytes {
			return nil, errors.New("each line must be 32 bytes in base64")
		}
		gcm, err := newGCM(raw)
		if err != nil {
			return nil, err
		}
		one := kek{gcm: gcm}
		sum := sha256.Sum256(append([]byte("carrel kek id "), raw...))
		copy(one.id[:], sum[:])
		k.keks = append(k.keks, one)
	}
	if len(k.keks) == 0 {
		return nil, errors.New("there is no key in it")
	}
	return k, nil
}

// Wrap encrypts a secret for a purpose, such as "ca". Each call makes a new data key.
func (k *Keyring) Wrap(purpose string, secret []byte) ([]byte, error) {
	var random [nonceBytes + keyBytes + nonceBytes]byte
	_, _ = rand.Read(random[:])
	first, data, second := random[:nonceBytes], random[nonceBytes:nonceBytes+keyBytes], random[nonceBytes+keyBytes:]
	inner, err := newGCM(data)
	if err != nil {
		return nil, err
	}
	out := make([]byte, 0, wrapHeader+len(secret)+sealBytes)
	out = append(out, wrapVersion)
	out = append(out, k.keks[0].id[:]...)
	out = append(out, first...)
	out = k.keks[0].gcm.Seal(out, first, data, []byte(purpose))
	out = append(out, second...)
	return inner.Seal(out, second, secret, []byte(purpose)), nil
}

// Unwrap gives the secret back. It fails when the text was changed, wrapped for another purpose or
// under a KEK that is not in the file.
func (k *Keyring) Unwrap(purpose string, wrapped []byte) ([]byte, error) {
	if len(wrapped) < wrapHeader+sealBytes || wrapped[0] != wrapVersion {
		return nil, errors.New("unwrap secret: not a wrapped secret")
	}
	rest := wrapped[1:]
	id, rest := rest[:kekIDBytes], rest[kekIDBytes:]
	first, rest := rest[:nonceBytes], rest[nonceBytes:]
	sealed, rest := rest[:keyBytes+sealBytes], rest[keyBytes+sealBytes:]
	second, rest := rest[:nonceBytes], rest[nonceBytes:]
	for _, one := range k.keks {
		if string(one.id[:]) != string(id) {
			continue
		}
		data, err := one.gcm.Open(nil, first, sealed, []byte(purpose))
		if err != nil {
			return nil, fmt.Errorf("unwrap data key for %s: %w", purpose, err)
		}
		inner, err := newGCM(data)
		if err != nil {
			return nil, err
		}
		secret, err := inner.Open(nil, second, rest, []byte(purpose))
		if err != nil {
			return nil, fmt.Errorf("unwrap secret for %s: %w", purpose, err)
		}
		return secret, nil
	}
	return nil, fmt.Errorf("unwrap secret for %s: it is under the key-encryption key %x, which is not in the file", purpose, id)
}

func newGCM(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("AES key: %w", err)
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		return nil, fmt.Errorf("GCM: %w", err)
	}
	return gcm, nil
}
