package gateway

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
)

// maxSealed is the longest text that is looked at as a sealed value, in bytes.
const maxSealed = 4096

var errSeal = errors.New("the value was not sealed here")

// seal hides and signs a value for a purpose with the first of the keys (AES-256-GCM, 32 bytes each), so that a browser can keep it: no gateway
// remembers anything, and every gateway of the cluster can open it.
func seal(keys [][]byte, purpose string, value any) (string, error) {
	if len(keys) == 0 {
		return "", errors.New("seal: there is no key yet")
	}
	text, err := json.Marshal(value)
	if err != nil {
		return "", fmt.Errorf("seal: %w", err)
	}
	box, err := sealer(keys[0])
	if err != nil {
		return "", fmt.Errorf("seal: %w", err)
	}
	nonce := make([]byte, box.NonceSize())
	_, _ = rand.Read(nonce) // never fails
	return base64.RawURLEncoding.EncodeToString(box.Seal(nonce, nonce, text, []byte(purpose))), nil
}

// unseal opens what seal made for the same purpose with one of the keys. Whether it has expired is for the caller to see.
func unseal(keys [][]byte, purpose, text string, value any) error {
	if len(text) > maxSealed {
		return errSeal
	}
	sealed, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil {
		return errSeal
	}
	for _, key := range keys {
		box, err := sealer(key)
		if err != nil || len(sealed) < box.NonceSize() {
			continue
		}
		opened, err := box.Open(nil, sealed[:box.NonceSize()], sealed[box.NonceSize():], []byte(purpose))
		if err == nil {
			return json.Unmarshal(opened, value)
		}
	}
	return errSeal
}

func sealer(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}
