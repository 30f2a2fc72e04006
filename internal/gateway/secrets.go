package gateway

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/crypto/ssh"

	linkv1 "carrel.dev/carrel/api/carrel/link/v1"
	"carrel.dev/carrel/internal/failpoint"
	"carrel.dev/carrel/internal/wholefile"
)

const (
	secretsVersion = 1
	// secretsEvery is how often rotated secrets are looked for; each new link to control does it too.
	secretsEvery   = time.Minute
	secretsTimeout = 10 * time.Second
	cookieKeyBytes = 32
)

// secretsFile is secrets.json, which control can give again.
type secretsFile struct {
	Version    int      `json:"version"`
	Cluster    string   `json:"cluster"`
	SSHHosts   [][]byte `json:"ssh_host_keys"` // OpenSSH's format of private keys
	CookieKeys [][]byte `json:"cookie_keys"`
}

// sharedSecrets are what all gateways of the cluster share.
type sharedSecrets struct {
	// SSHHostKeys are the gateways' one identity to SSH clients, the one in use first; none until control has told once.
	SSHHostKeys []ssh.Signer
	// CookieKeys seal the cookies and codes of browser sign-in, 32 bytes each, the one in use first; none until control has
	// told once.
	CookieKeys [][]byte
}

// secretStore keeps the secrets, on disk too. It is safe for concurrent use.
type secretStore struct {
	path string
	log  *slog.Logger
	ask  chan struct{} // control is to be asked now

	mu    sync.Mutex // guards value
	value sharedSecrets
}

func openSecrets(dir, cluster string, log *slog.Logger) *secretStore {
	s := &secretStore{path: filepath.Join(dir, "secrets.json"), log: log, ask: make(chan struct{}, 1)}
	var file secretsFile
	err := readStrict(s.path, &file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return s
	case err == nil && file.Version == secretsVersion && file.Cluster == cluster:
		s.value, err = file.read()
	case err == nil:
		err = errors.New("of another cluster or version")
	}
	if err != nil {
		log.Warn("secrets on disk are not used", "error", err)
	}
	return s
}

func (file secretsFile) read() (sharedSecrets, error) {
	var value sharedSecrets
	for _, text := range file.SSHHosts {
		key, err := ssh.ParsePrivateKey(text)
		if err != nil {
			return value, errors.New("an SSH host key cannot be read") // the error itself may show parts of it
		}
		value.SSHHostKeys = append(value.SSHHostKeys, key)
	}
	for _, key := range file.CookieKeys {
		if len(key) != cookieKeyBytes {
			return value, errors.New("a cookie key has a wrong length")
		}
		value.CookieKeys = append(value.CookieKeys, bytes.Clone(key))
	}
	return value, nil
}

// same reports whether both have the same keys in the same order.
func (v sharedSecrets) same(other sharedSecrets) bool {
	return slices.EqualFunc(v.SSHHostKeys, other.SSHHostKeys, func(a, b ssh.Signer) bool {
		return bytes.Equal(a.PublicKey().Marshal(), b.PublicKey().Marshal())
	}) && slices.EqualFunc(v.CookieKeys, other.CookieKeys, bytes.Equal)
}

// learn takes what control says, on disk first.
func (s *secretStore) learn(cluster string, m *linkv1.GetSecretsResponse) error {
	file := secretsFile{Version: secretsVersion, Cluster: cluster, SSHHosts: m.GetSshHostKeys(), CookieKeys: m.GetCookieKeys()}
	value, err := file.read()
	if err != nil {
		return err
	}
	s.mu.Lock()
	same := s.value.same(value)
	s.mu.Unlock()
	if same { // the texts of one key may differ
		return nil
	}
	data, err := json.Marshal(file)
	if err != nil {
		return err
	}
	if err := failpoint.Hit("gateway/secrets/save"); err != nil {
		return err
	}
	if err := wholefile.Write(s.path, data, 0o600); err != nil {
		return err
	}
	s.mu.Lock()
	s.value = value
	s.mu.Unlock()
	s.log.Info("secrets changed", "ssh_host_keys", len(file.SSHHosts), "cookie_keys", len(file.CookieKeys))
	return nil
}

// again has control asked at once.
func (s *secretStore) again() {
	select {
	case s.ask <- struct{}{}:
	default:
	}
}

// secrets are what all gateways share, from disk while control is away. A caller asks each time it uses one: they may be
// rotated at any moment.
func (g *Gateway) secrets() sharedSecrets {
	g.shared.mu.Lock()
	defer g.shared.mu.Unlock()
	return g.shared.value
}

// keepSecrets asks control for the secrets, again and again.
func (g *Gateway) keepSecrets(ctx context.Context) error {
	ticker := time.NewTicker(secretsEvery)
	defer ticker.Stop()
	for {
		select {
		case <-g.shared.ask:
		case <-ticker.C:
		case <-ctx.Done():
			return nil
		}
		if g.identity.current() == nil {
			continue
		}
		call, cancel := context.WithTimeout(ctx, secretsTimeout)
		resp, err := g.link.GetSecrets(call, connect.NewRequest(&linkv1.GetSecretsRequest{}))
		cancel()
		if err == nil {
			err = g.shared.learn(g.identity.cluster(), resp.Msg)
		}
		if err != nil && ctx.Err() == nil {
			g.log.Warn("secrets not had from control", "error", err)
		}
	}
}
