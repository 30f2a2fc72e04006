package service

import (
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"carrel.dev/carrel/internal/wholefile"
)

// maxSecret bounds what is read from a secret's file, in bytes.
const maxSecret = 64 << 10

// ReadSecret reads a secret from a file, without the white space around it. An empty file is an error.
func ReadSecret(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("read secret: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return "", fmt.Errorf("read secret: %w", err)
	}
	if info.Size() > maxSecret {
		return "", fmt.Errorf("read secret %s: it is %d bytes; at most %d are read", path, info.Size(), maxSecret)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("read secret: %w", err)
	}
	secret := strings.TrimSpace(string(data))
	if secret == "" {
		return "", fmt.Errorf("read secret %s: the file is empty", path)
	}
	return secret, nil
}

// EnsureSecret reads the secret in path and makes one of 32 random bytes (43 characters of base64url)
// when there is none. The file belongs to uid and gid and is readable by its owner alone.
func EnsureSecret(path string, uid, gid int) (string, error) {
	secret, err := ReadSecret(path)
	if err == nil {
		return secret, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	raw := make([]byte, 32)
	_, _ = rand.Read(raw) // never fails
	secret = base64.RawURLEncoding.EncodeToString(raw)
	return secret, wholefile.WriteOwned(path, []byte(secret+"\n"), 0o600, uid, gid)
}
