package gateway

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"

	linkv1 "carrel.dev/carrel/api/carrel/link/v1"
	"carrel.dev/carrel/api/carrel/link/v1/linkv1connect"
	"carrel.dev/carrel/internal/auth"
	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/failpoint"
	"carrel.dev/carrel/internal/wholefile"
)

// identity is who this gateway is to its peers.
type identity struct {
	id      string
	cluster string
	cert    tls.Certificate
	pool    *x509.CertPool
}

// identityStore keeps the identity on disk: key.pem, made once and before anything is asked of control, so
// that a join that was cut short is repeated for the same key, and identity.json with the rest.
type identityStore struct {
	dir   string
	local bool // control is on this machine
	key   ed25519.PrivateKey
	value atomic.Pointer[identity]
}

// identityFile is identity.json.
type identityFile struct {
	Version        int    `json:"version"`
	ID             string `json:"id"`
	Cluster        string `json:"cluster"`
	CertificatePEM string `json:"certificate_pem"`
	CAPEM          string `json:"ca_pem"`
}

func openIdentity(dir string, control *url.URL) (*identityStore, error) {
	s := &identityStore{dir: dir}
	if ip := net.ParseIP(control.Hostname()); control.Hostname() == "localhost" || ip != nil && ip.IsLoopback() {
		s.local = true
	}
	key, err := openKey(filepath.Join(dir, "key.pem"))
	if err != nil {
		return nil, err
	}
	s.key = key
	var file identityFile
	switch err := readStrict(filepath.Join(dir, "identity.json"), &file); {
	case errors.Is(err, fs.ErrNotExist):
		return s, nil
	case err != nil:
		return nil, fmt.Errorf("read the gateway's identity: %w", err)
	}
	id, err := s.parse(file)
	if err != nil {
		return nil, fmt.Errorf("read the gateway's identity: %w", err)
	}
	s.value.Store(id)
	return s, nil
}

func openKey(path string) (ed25519.PrivateKey, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		_, private, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			return nil, fmt.Errorf("make the gateway's key: %w", err)
		}
		der, err := x509.MarshalPKCS8PrivateKey(private)
		if err != nil {
			return nil, fmt.Errorf("make the gateway's key: %w", err)
		}
		if err := wholefile.Write(path, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600); err != nil {
			return nil, fmt.Errorf("keep the gateway's key: %w", err)
		}
		return private, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the gateway's key: %w", err)
	}
	block, _ := pem.Decode(data)
	if block == nil {
		return nil, fmt.Errorf("read the gateway's key: %s is not PEM", path)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("read the gateway's key: %w", err)
	}
	key, ok := parsed.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("read the gateway's key: %s is not an Ed25519 key", path)
	}
	return key, nil
}

func (s *identityStore) parse(file identityFile) (*identity, error) {
	block, _ := pem.Decode([]byte(file.CertificatePEM))
	if block == nil {
		return nil, errors.New("certificate: not PEM")
	}
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("certificate: %w", err)
	}
	if !s.key.Public().(ed25519.PublicKey).Equal(leaf.PublicKey) {
		return nil, errors.New("certificate: it belongs to another key")
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM([]byte(file.CAPEM)) {
		return nil, errors.New("certificate authority: not PEM")
	}
	if carrel.IDKind(file.ID) != 'g' || file.Cluster == "" {
		return nil, errors.New("id or cluster is missing")
	}
	return &identity{
		id: file.ID, cluster: file.Cluster, pool: pool,
		cert: tls.Certificate{Certificate: [][]byte{block.Bytes}, PrivateKey: s.key, Leaf: leaf},
	}, nil
}

// current is nil until the gateway has joined.
func (s *identityStore) current() *identity { return s.value.Load() }

func (s *identityStore) cluster() string {
	if id := s.current(); id != nil {
		return id.cluster
	}
	return ""
}

// store makes an answer of control the identity, on disk first.
func (s *identityStore) store(resp *linkv1.JoinResponse) error {
	file := identityFile{Version: 1, ID: resp.GetId(), Cluster: resp.GetClusterId(), CertificatePEM: resp.GetCertificatePem(), CAPEM: resp.GetCaPem()}
	if old := s.current(); old != nil { // a renewal may leave out what does not change
		if file.ID == "" {
			file.ID = old.id
		}
		if file.Cluster == "" {
			file.Cluster = old.cluster
		}
	}
	id, err := s.parse(file)
	if err != nil {
		return fmt.Errorf("take the identity that control gave: %w", err)
	}
	data, err := json.MarshalIndent(file, "", "  ")
	if err != nil {
		return fmt.Errorf("encode identity: %w", err)
	}
	if err := failpoint.Hit("gateway/join/save"); err != nil {
		return fmt.Errorf("keep identity: %w", err)
	}
	if err := wholefile.Write(filepath.Join(s.dir, "identity.json"), data, 0o600); err != nil {
		return fmt.Errorf("keep identity: %w", err)
	}
	s.value.Store(id)
	return nil
}

func (s *identityStore) csr() (string, error) {
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, s.key)
	if err != nil {
		return "", fmt.Errorf("make certificate request: %w", err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})), nil
}

// transport makes an HTTP/2 transport that shows this gateway's certificate and speaks only to a peer
// of the role and, if it is not empty, the id. dial may be nil.
func (s *identityStore) transport(dial func(context.Context, string, string) (net.Conn, error), role auth.PeerRole, id string) *http.Transport {
	if dial == nil {
		dial = (&net.Dialer{Timeout: 5 * time.Second, KeepAlive: 15 * time.Second}).DialContext
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP2(true)
	return &http.Transport{
		DialContext:            dial,
		Protocols:              protocols,
		TLSHandshakeTimeout:    5 * time.Second,
		IdleConnTimeout:        5 * time.Minute,
		MaxResponseHeaderBytes: 256 << 10,
		DisableCompression:     true,
		HTTP2: &http.HTTP2Config{
			MaxReceiveBufferPerStream:     1 << 20,
			MaxReceiveBufferPerConnection: 1 << 30,
			MaxReadFrameSize:              128 << 10,
			SendPingTimeout:               10 * time.Second,
			PingTimeout:                   10 * time.Second,
		},
		TLSClientConfig: s.tlsConfig(role, id),
	}
}

// tlsConfig is for connections to a peer of the role and, if it is not empty, the id.
func (s *identityStore) tlsConfig(role auth.PeerRole, id string) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		// A peer is known by the identity in its certificate, not by its address.
		InsecureSkipVerify: true,
		VerifyConnection: func(state tls.ConnectionState) error {
			me := s.current()
			if me == nil {
				return errNotJoined
			}
			return auth.VerifyPeer(me.pool, me.cluster, id, role)(state)
		},
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			me := s.current()
			if me == nil {
				return nil, errNotJoined
			}
			return &me.cert, nil
		},
	}
}

var errNotJoined = errors.New("the gateway has not joined its control plane yet")

// join asks control for an identity with the join token.
func (g *Gateway) join(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	token, err := os.ReadFile(g.config.JoinTokenFile)
	if err != nil {
		return fmt.Errorf("read join token: %w", err)
	}
	verify, err := g.joinVerifier()
	if err != nil {
		return err
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP2(true)
	transport := &http.Transport{
		Protocols:       protocols,
		TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true, VerifyConnection: verify},
	}
	defer transport.CloseIdleConnections()
	csr, err := g.identity.csr()
	if err != nil {
		return err
	}
	client := linkv1connect.NewJoinServiceClient(&http.Client{Transport: transport}, g.url.String(), connect.WithReadMaxBytes(1<<20))
	resp, err := client.Join(ctx, connect.NewRequest(&linkv1.JoinRequest{
		Token: strings.TrimSpace(string(token)), Role: string(auth.PeerGateway), Name: g.config.Name, Region: g.config.Region, CsrPem: csr,
	}))
	if err != nil {
		return fmt.Errorf("join control: %w", err)
	}
	if err := g.identity.store(resp.Msg); err != nil {
		return err
	}
	g.learnKeys(resp.Msg.GetTicketKeys())
	g.routes.setCluster(g.identity.cluster())
	g.grants.setCluster(g.identity.cluster())
	g.log.Info("joined control", "gateway", g.identity.current().id, "cluster", g.identity.cluster())
	return nil
}

// joinVerifier checks that who answers is a control of the configured authority. The cluster's name is
// not known before the join.
func (g *Gateway) joinVerifier() (func(tls.ConnectionState) error, error) {
	if g.config.CAFile == "" {
		if !g.identity.local {
			return nil, carrel.Errorf(carrel.CodeInvalid, "bad_config", "control is on another machine: the gateway needs the file of its certificate authority to join it")
		}
		return nil, nil
	}
	data, err := os.ReadFile(g.config.CAFile)
	if err != nil {
		return nil, fmt.Errorf("read certificate authority: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(data) {
		return nil, fmt.Errorf("read certificate authority: %s has no PEM certificate", g.config.CAFile)
	}
	return func(state tls.ConnectionState) error {
		if len(state.PeerCertificates) == 0 {
			return errors.New("peer: it shows no certificate")
		}
		chains, err := state.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: pool, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
		if err != nil {
			return fmt.Errorf("peer: %w", err)
		}
		state.VerifiedChains = chains
		peer, err := auth.PeerIdentity(&state)
		if err != nil {
			return err
		}
		if peer.Role != auth.PeerControl {
			return fmt.Errorf("peer: it is a %s, and control is wanted", peer.Role)
		}
		return nil
	}, nil
}

// keepRenewed renews the certificate at half of its life.
func (g *Gateway) keepRenewed(ctx context.Context) error {
	ticker := time.NewTicker(time.Minute)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return nil
		}
		me := g.identity.current()
		if me == nil || g.now().Before(me.cert.Leaf.NotAfter.Add(-auth.CertificateLifetime/2)) {
			continue
		}
		if err := g.renew(ctx); err != nil && ctx.Err() == nil {
			g.log.Warn("certificate not renewed", "error", err, "ends", me.cert.Leaf.NotAfter)
		}
	}
}

func (g *Gateway) renew(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	csr, err := g.identity.csr()
	if err != nil {
		return err
	}
	resp, err := g.link.Renew(ctx, connect.NewRequest(&linkv1.RenewRequest{CsrPem: csr}))
	if err != nil {
		return fmt.Errorf("renew certificate: %w", err)
	}
	if err := g.identity.store(resp.Msg); err != nil {
		return err
	}
	g.control.CloseIdleConnections()
	g.log.Info("certificate renewed", "ends", g.identity.current().cert.Leaf.NotAfter)
	return nil
}

// readStrict decodes a JSON file: unknown fields and anything after the value are errors.
func readStrict(path string, into any) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(into); err != nil {
		return fmt.Errorf("decode %s: %w", path, err)
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("decode %s: something follows the value", path)
	}
	return nil
}
