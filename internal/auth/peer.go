package auth

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"

	"carrel.dev/carrel/internal/carrel"
)

// PeerRole is which part of Carrel a peer is.
type PeerRole string

const (
	PeerNode    PeerRole = "node"
	PeerProxy   PeerRole = "proxy" // its id is that of its node
	PeerGateway PeerRole = "gateway"
	PeerControl PeerRole = "control" // has no id: replicas are alike
)

// Peer is the identity in a certificate: the URI carrel://CLUSTER/ROLE/ID.
type Peer struct {
	Cluster string
	Role    PeerRole
	ID      string
}

// idKinds are the first letters of the ids that peers have.
var idKinds = map[PeerRole]byte{PeerNode: 'n', PeerProxy: 'n', PeerGateway: 'g'}

func (p Peer) check() error {
	if p.Cluster == "" {
		return errors.New("peer: no cluster")
	}
	if p.Role == PeerControl {
		if p.ID != "" {
			return errors.New("peer: control has no id")
		}
		return nil
	}
	kind, ok := idKinds[p.Role]
	if !ok {
		return fmt.Errorf("peer: unknown role %q", p.Role)
	}
	if carrel.IDKind(p.ID) != kind {
		return fmt.Errorf("peer: %q is no id of a %s", p.ID, p.Role)
	}
	return nil
}

func (p Peer) uri() (*url.URL, error) {
	if err := p.check(); err != nil {
		return nil, err
	}
	path := "/" + string(p.Role)
	if p.ID != "" {
		path += "/" + p.ID
	}
	return &url.URL{Scheme: "carrel", Host: p.Cluster, Path: path}, nil
}

// PeerIdentity reads who is at the other end of a TLS connection whose certificate was verified. Without a verified
// certificate, or with one that names nobody of any cluster, it is an error. The caller compares the cluster.
func PeerIdentity(state *tls.ConnectionState) (Peer, error) {
	if state == nil || len(state.VerifiedChains) == 0 || len(state.VerifiedChains[0]) == 0 {
		return Peer{}, errors.New("peer: no verified certificate")
	}
	return peerOf(state.VerifiedChains[0][0])
}

func peerOf(cert *x509.Certificate) (Peer, error) {
	if len(cert.URIs) != 1 {
		return Peer{}, fmt.Errorf("peer: the certificate has %d URIs, not one", len(cert.URIs))
	}
	u := cert.URIs[0]
	if u.Scheme != "carrel" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || u.Opaque != "" {
		return Peer{}, errors.New("peer: the certificate's URI is not one of Carrel's")
	}
	role, id, _ := strings.Cut(strings.TrimPrefix(u.Path, "/"), "/")
	p := Peer{Cluster: u.Host, Role: PeerRole(role), ID: id}
	if err := p.check(); err != nil {
		return Peer{}, err
	}
	return p, nil
}

// VerifyPeer makes the check for tls.Config.VerifyConnection: the other end must show a certificate
// that a root in pool signed, good now, of this cluster and one of these roles; with an id, of just that
// peer. A client sets InsecureSkipVerify beside it, because a peer is known by its identity and not by
// its address. It is safe for concurrent use.
func VerifyPeer(pool *x509.CertPool, cluster, id string, roles ...PeerRole) func(tls.ConnectionState) error {
	return func(state tls.ConnectionState) error {
		if len(state.PeerCertificates) == 0 {
			return errors.New("peer: it shows no certificate")
		}
		options := x509.VerifyOptions{
			Roots: pool, Intermediates: x509.NewCertPool(),
			KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		}
		for _, c := range state.PeerCertificates[1:] {
			options.Intermediates.AddCert(c)
		}
		if _, err := state.PeerCertificates[0].Verify(options); err != nil {
			return fmt.Errorf("peer: %w", err)
		}
		p, err := peerOf(state.PeerCertificates[0])
		switch {
		case err != nil:
			return err
		case p.Cluster != cluster:
			return fmt.Errorf("peer: it belongs to cluster %q, not %q", p.Cluster, cluster)
		case !slices.Contains(roles, p.Role):
			return fmt.Errorf("peer: it is a %s, and %v is wanted", p.Role, roles)
		case id != "" && p.ID != id:
			return fmt.Errorf("peer: it is %s, and %s is wanted", p.ID, id)
		}
		return nil
	}
}
