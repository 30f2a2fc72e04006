package auth

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"time"
)

const (
	// CertificateLifetime is how long a peer's certificate is good; it is renewed at half of it.
	CertificateLifetime = 30 * 24 * time.Hour
	caLifetime          = 10 * 365 * 24 * time.Hour
	// backdate lets machines whose clocks are behind use a new certificate at once.
	backdate = 5 * time.Minute
	maxCSR   = 16 << 10
)

// CAKey is one root of a cluster: the certificate (DER) and its key.
type CAKey struct {
	Certificate []byte
	Key         ed25519.PrivateKey
}

// NewCAKey makes a root for a cluster, good for ten years from now on.
func NewCAKey(cluster string, now time.Time) (CAKey, error) {
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		return CAKey{}, fmt.Errorf("make CA key: %w", err)
	}
	serial, err := newSerial()
	if err != nil {
		return CAKey{}, err
	}
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{Organization: []string{"Carrel"}, CommonName: "Carrel " + cluster},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(caLifetime),
		KeyUsage:              x509.KeyUsageCertSign,
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLenZero:        true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, public, private)
	if err != nil {
		return CAKey{}, fmt.Errorf("make CA certificate: %w", err)
	}
	return CAKey{Certificate: der, Key: private}, nil
}

// CA signs the certificates of a cluster's peers. With several roots the first one signs and all
// are trusted, which is how a root is replaced. It is safe for concurrent use.
type CA struct {
	cluster string
	signer  *x509.Certificate
	key     ed25519.PrivateKey
	pool    *x509.CertPool
	pem     []byte
}

// NewCA uses the roots of a cluster, newest first.
func NewCA(cluster string, keys []CAKey) (*CA, error) {
	if cluster == "" || len(keys) == 0 {
		return nil, errors.New("certificate authority: a cluster and at least one root are needed")
	}
	ca := &CA{cluster: cluster, pool: x509.NewCertPool()}
	for _, k := range keys {
		cert, err := x509.ParseCertificate(k.Certificate)
		if err != nil {
			return nil, fmt.Errorf("CA certificate: %w", err)
		}
		public, ok := cert.PublicKey.(ed25519.PublicKey)
		if !ok || len(k.Key) != ed25519.PrivateKeySize || !public.Equal(k.Key.Public()) {
			return nil, errors.New("CA certificate: it does not belong to its key")
		}
		if ca.signer == nil {
			ca.signer, ca.key = cert, k.Key
		}
		ca.pool.AddCert(cert)
		ca.pem = append(ca.pem, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: k.Certificate})...)
	}
	return ca, nil
}

// Cluster is the id of the cluster whose peers the CA signs.
func (ca *CA) Cluster() string { return ca.cluster }

// Pool has every root that is trusted.
func (ca *CA) Pool() *x509.CertPool { return ca.pool }

// PEM has every root that is trusted.
func (ca *CA) PEM() []byte { return ca.pem }

// Names are what a certificate says besides the peer: where its server can be reached.
type Names struct {
	DNS []string
	IPs []net.IP
}

// ReadCSR checks a certificate request (PEM) and gives its public key, the only part of it that counts.
func ReadCSR(csrPEM []byte) (ed25519.PublicKey, error) {
	if len(csrPEM) > maxCSR {
		return nil, errors.New("certificate request: too long")
	}
	block, rest := pem.Decode(csrPEM)
	if block == nil || block.Type != "CERTIFICATE REQUEST" || len(rest) != 0 {
		return nil, errors.New("certificate request: not one PEM block of type CERTIFICATE REQUEST")
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("certificate request: %w", err)
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, fmt.Errorf("certificate request: %w", err)
	}
	public, ok := csr.PublicKey.(ed25519.PublicKey)
	if !ok {
		return nil, fmt.Errorf("certificate request: the key must be Ed25519, not %T", csr.PublicKey)
	}
	return public, nil
}

// SignCSR makes a certificate (PEM) for peer from a certificate request (PEM). Of the request only the
// public key counts: the names are the caller's. The certificate is for clients and servers alike.
func (ca *CA) SignCSR(csrPEM []byte, peer Peer, names Names, now time.Time) ([]byte, error) {
	public, err := ReadCSR(csrPEM)
	if err != nil {
		return nil, err
	}
	return ca.sign(public, peer, names, now)
}

// Issue makes a key and a certificate for peer, for the process that holds the CA itself.
func (ca *CA) Issue(peer Peer, names Names, now time.Time) (tls.Certificate, error) {
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("make key: %w", err)
	}
	text, err := ca.sign(public, peer, names, now)
	if err != nil {
		return tls.Certificate{}, err
	}
	block, _ := pem.Decode(text)
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("own certificate: %w", err)
	}
	return tls.Certificate{Certificate: [][]byte{block.Bytes}, PrivateKey: private, Leaf: leaf}, nil
}

func (ca *CA) sign(public ed25519.PublicKey, peer Peer, names Names, now time.Time) ([]byte, error) {
	peer.Cluster = ca.cluster
	uri, err := peer.uri()
	if err != nil {
		return nil, err
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{Organization: []string{"Carrel"}, CommonName: string(peer.Role) + " " + peer.ID},
		NotBefore:    now.Add(-backdate),
		NotAfter:     now.Add(CertificateLifetime),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		URIs:         []*url.URL{uri},
		DNSNames:     names.DNS,
		IPAddresses:  names.IPs,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.signer, public, ca.key)
	if err != nil {
		return nil, fmt.Errorf("sign certificate: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), nil
}

// NewCSR makes a key and a certificate request for it, both PEM. The request has no names: who signs
// it decides them.
func NewCSR() (keyPEM, csrPEM []byte, err error) {
	_, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		return nil, nil, fmt.Errorf("make key: %w", err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, private)
	if err != nil {
		return nil, nil, fmt.Errorf("make certificate request: %w", err)
	}
	key, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return nil, nil, fmt.Errorf("encode key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}),
		pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), nil
}

func newSerial() (*big.Int, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("make serial number: %w", err)
	}
	return serial, nil
}
