package control

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"carrel.dev/carrel/internal/auth"
	"carrel.dev/carrel/internal/store"
)

// The purposes of root keys.
const (
	purposeCA        = "ca"
	purposeTicket    = "ticket"
	purposeSSHUserCA = "ssh_user_ca"
	purposeSSHHost   = "ssh_host"
	purposeCookie    = "cookie"
)

// How long retired keys count: as long as what they signed may live. Clients learn a new SSH host key while the old one is still shown.
const (
	ticketAfterlife = auth.MaxPortPassLifetime + time.Hour
	hostAfterlife   = 30 * 24 * time.Hour
	cookieAfterlife = 7 * 24 * time.Hour
)

// keys are the root keys in use, and what is made with them. They are replaced whole when they change.
type keys struct {
	ca         *auth.CA
	signer     *auth.TicketSigner
	ticketKeys [][]byte // public, the one that signs first
	own        *tls.Certificate

	sshCA       ssh.Signer // signs user certificates
	sshUserCAs  []string   // public, in the form of authorized_keys, the one that signs first
	sshHostKeys [][]byte   // private, in OpenSSH's format, the one in use first
	sshHosts    []string   // public, as in known_hosts without the names
	cookieKeys  [][]byte

	source []byte // changes when the keys do
}

// loadKeys reads the root keys and makes those that are missing. Replicas that start at once agree on them.
func (s *Server) loadKeys(ctx context.Context) (*keys, error) {
	roots, err := s.rootKeys(ctx, purposeCA, auth.CertificateLifetime, s.newCARoot)
	if err != nil {
		return nil, err
	}
	tickets, err := s.rootKeys(ctx, purposeTicket, ticketAfterlife, newSigningRoot)
	if err != nil {
		return nil, err
	}
	k := &keys{}
	hash := sha256.New()
	var caKeys []auth.CAKey
	for _, r := range roots {
		caKeys = append(caKeys, auth.CAKey{Certificate: r.public, Key: r.private})
		hash.Write(r.public)
	}
	for i, t := range tickets {
		if i == 0 {
			k.signer = auth.NewTicketSigner(t.private)
		}
		if public, ok := t.private.Public().(ed25519.PublicKey); !ok || !bytes.Equal(public, t.public) {
			return nil, errors.New("ticket key: its public half is another one")
		}
		k.ticketKeys = append(k.ticketKeys, t.public)
		hash.Write(t.public)
	}
	if err := s.loadSSHKeys(ctx, k, hash); err != nil {
		return nil, err
	}
	k.source = hash.Sum(nil)
	if k.ca, err = auth.NewCA(s.cluster.ID, caKeys); err != nil {
		return nil, err
	}
	own, err := k.ca.Issue(auth.Peer{Role: auth.PeerControl}, s.config.Names, s.now())
	if err != nil {
		return nil, fmt.Errorf("issue control's certificate: %w", err)
	}
	k.own = &own
	return k, nil
}

// rootKey is an unwrapped root key.
type rootKey struct {
	public  []byte
	private ed25519.PrivateKey
}

// newKey makes the public part of a root key and the seed of its private part.
type newKey func() (public, seed []byte, err error)

func (s *Server) newCARoot() (public, seed []byte, err error) {
	k, err := auth.NewCAKey(s.config.ClusterName, s.now())
	if err != nil {
		return nil, nil, err
	}
	return k.Certificate, k.Key.Seed(), nil
}

func newSigningRoot() (public, seed []byte, err error) {
	key, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		return nil, nil, fmt.Errorf("make signing key: %w", err)
	}
	return key, private.Seed(), nil
}

// newCookieRoot makes a key that has no public part; a hash names it.
func newCookieRoot() (public, seed []byte, err error) {
	seed = make([]byte, ed25519.SeedSize)
	_, _ = rand.Read(seed) // never fails: crypto/rand ends the process instead
	name := sha256.Sum256(append([]byte("carrel cookie key id "), seed...))
	return name[:], seed, nil
}

// loadSSHKeys reads the keys that all gateways share, and the authority for users' certificates.
func (s *Server) loadSSHKeys(ctx context.Context, k *keys, source io.Writer) error {
	authorities, err := s.rootKeys(ctx, purposeSSHUserCA, MaxSSHCertificate, newSigningRoot)
	if err != nil {
		return err
	}
	for i, one := range authorities {
		signer, err := ssh.NewSignerFromKey(one.private)
		if err != nil {
			return fmt.Errorf("SSH user CA key: %w", err)
		}
		if i == 0 {
			k.sshCA = signer
		}
		k.sshUserCAs = append(k.sshUserCAs, authorizedKey(signer.PublicKey()))
		_, _ = source.Write(one.public) // a hash never fails
	}
	hosts, err := s.rootKeys(ctx, purposeSSHHost, hostAfterlife, newSigningRoot)
	if err != nil {
		return err
	}
	for _, one := range hosts {
		block, err := ssh.MarshalPrivateKey(one.private, "")
		if err != nil {
			return fmt.Errorf("SSH host key: %w", err)
		}
		public, err := ssh.NewPublicKey(one.private.Public())
		if err != nil {
			return fmt.Errorf("SSH host key: %w", err)
		}
		k.sshHostKeys = append(k.sshHostKeys, pem.EncodeToMemory(block))
		k.sshHosts = append(k.sshHosts, authorizedKey(public))
		_, _ = source.Write(one.public)
	}
	cookies, err := s.rootKeys(ctx, purposeCookie, cookieAfterlife, newCookieRoot)
	if err != nil {
		return err
	}
	for _, one := range cookies {
		k.cookieKeys = append(k.cookieKeys, one.private.Seed())
		_, _ = source.Write(one.public)
	}
	return nil
}

// authorizedKey is a public key in the form of authorized_keys, without comment and line end.
func authorizedKey(key ssh.PublicKey) string {
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key)))
}

// newRoot makes a root key, wrapped for the store.
func (s *Server) newRoot(purpose string, fresh newKey) (store.RootKey, error) {
	public, seed, err := fresh()
	if err != nil {
		return store.RootKey{}, err
	}
	wrapped, err := s.config.Keyring.Wrap(purpose, seed)
	if err != nil {
		return store.RootKey{}, fmt.Errorf("wrap %s key: %w", purpose, err)
	}
	sum := sha256.Sum256(public)
	return store.RootKey{ID: hex.EncodeToString(sum[:10]), Purpose: purpose, Public: public, Wrapped: wrapped}, nil
}

// rootKeys gives the keys of a purpose that still count, the one in use first. A retired one counts for as long as
// what it signed may live.
func (s *Server) rootKeys(ctx context.Context, purpose string, afterlife time.Duration, fresh newKey) ([]rootKey, error) {
	found, err := s.store.RootKeys(ctx, purpose)
	if err != nil {
		return nil, fmt.Errorf("read %s keys: %w", purpose, err)
	}
	if len(found) == 0 || !found[0].RetiredAt.IsZero() {
		key, err := s.newRoot(purpose, fresh)
		if err != nil {
			return nil, err
		}
		if _, err := s.store.EnsureRootKey(ctx, key); err != nil {
			return nil, fmt.Errorf("keep %s key: %w", purpose, err)
		}
		if found, err = s.store.RootKeys(ctx, purpose); err != nil {
			return nil, fmt.Errorf("read %s keys: %w", purpose, err)
		}
	}
	var out []rootKey
	for _, k := range found {
		if !k.RetiredAt.IsZero() && s.now().Sub(k.RetiredAt) > afterlife {
			continue
		}
		seed, err := s.config.Keyring.Unwrap(purpose, k.Wrapped)
		if err != nil {
			return nil, fmt.Errorf("%s key %s: %w", purpose, k.ID, err)
		}
		if len(seed) != ed25519.SeedSize {
			return nil, fmt.Errorf("%s key %s: %d bytes, not %d", purpose, k.ID, len(seed), ed25519.SeedSize)
		}
		out = append(out, rootKey{public: k.Public, private: ed25519.NewKeyFromSeed(seed)})
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("there is no %s key", purpose)
	}
	return out, nil
}

// refreshKeys takes over keys that were rotated, and renews control's own certificate at half of its life.
func (s *Server) refreshKeys(ctx context.Context) error {
	fresh, err := s.loadKeys(ctx)
	if err != nil {
		return err
	}
	old := s.keys.Load()
	if bytes.Equal(old.source, fresh.source) && s.now().Before(old.own.Leaf.NotAfter.Add(-auth.CertificateLifetime/2)) {
		return nil
	}
	s.keys.Store(fresh)
	if !bytes.Equal(old.source, fresh.source) {
		s.log.Info("root keys changed", "ticket_keys", len(fresh.ticketKeys))
		s.keysChanged()
	}
	return nil
}

// TLSConfig is for control's listener: its certificate, always the present one, and peers by their certificates
// where they show one.
func (s *Server) TLSConfig() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: []string{"h2", "http/1.1"},
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			k := s.keys.Load()
			return &tls.Config{
				MinVersion:   tls.VersionTLS13,
				NextProtos:   []string{"h2", "http/1.1"},
				ClientAuth:   tls.VerifyClientCertIfGiven,
				ClientCAs:    k.ca.Pool(),
				Certificates: []tls.Certificate{*k.own},
				// A resumed session would keep a certificate alive that has ended meanwhile.
				SessionTicketsDisabled: true,
			}, nil
		},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return s.keys.Load().own, nil },
	}
}

// CAPEM has the roots of the cluster, for those who connect to control.
func (s *Server) CAPEM() []byte { return s.keys.Load().ca.PEM() }
