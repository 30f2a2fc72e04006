package auth

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io"
	"net"
	"net/url"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

const (
	testCluster = "c1111111111111111111"
	testNode    = "n1111111111111111111"
)

func newTestCA(t *testing.T, cluster string) *CA {
	t.Helper()
	key, err := NewCAKey(cluster, time.Now())
	require.NoError(t, err)
	ca, err := NewCA(cluster, []CAKey{key})
	require.NoError(t, err)
	return ca
}

func signed(t *testing.T, ca *CA, p Peer, names Names, now time.Time) tls.Certificate {
	t.Helper()
	key, csr, err := NewCSR()
	require.NoError(t, err)
	cert, err := ca.SignCSR(csr, p, names, now)
	require.NoError(t, err)
	pair, err := tls.X509KeyPair(cert, key)
	require.NoError(t, err)
	return pair
}

// shake makes a TLS connection and gives both ends' errors and what the server knows of the client.
func shake(t *testing.T, server, client *tls.Config) (tls.ConnectionState, error, error) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer listener.Close()
	b, err := net.Dial("tcp", listener.Addr().String())
	require.NoError(t, err)
	defer b.Close()
	a, err := listener.Accept()
	require.NoError(t, err)
	defer a.Close()
	for _, conn := range []net.Conn{a, b} {
		require.NoError(t, conn.SetDeadline(time.Now().Add(10*time.Second)))
	}
	s, c := tls.Server(a, server), tls.Client(b, client)
	done := make(chan error, 1)
	go func() {
		err := s.Handshake()
		if err == nil {
			_, err = s.Write([]byte("x"))
		}
		done <- err
	}()
	clientErr := c.Handshake()
	if clientErr == nil {
		_, clientErr = io.ReadFull(c, make([]byte, 1))
	}
	serverErr := <-done
	return s.ConnectionState(), serverErr, clientErr
}

func TestPeersKnowEachOtherByTheirCertificates(t *testing.T) {
	ca := newTestCA(t, testCluster)
	control, err := ca.Issue(Peer{Role: PeerControl}, Names{DNS: []string{"control.example"}, IPs: []net.IP{net.IPv4(127, 0, 0, 1)}}, time.Now())
	require.NoError(t, err)
	node := signed(t, ca, Peer{Role: PeerNode, ID: testNode}, Names{}, time.Now())

	server := &tls.Config{Certificates: []tls.Certificate{control}, ClientCAs: ca.Pool(), ClientAuth: tls.VerifyClientCertIfGiven, MinVersion: tls.VersionTLS13}
	client := &tls.Config{Certificates: []tls.Certificate{node}, InsecureSkipVerify: true, VerifyConnection: VerifyPeer(ca.Pool(), testCluster, "", PeerControl)}
	state, serverErr, clientErr := shake(t, server, client)
	require.NoError(t, serverErr)
	require.NoError(t, clientErr)
	who, err := PeerIdentity(&state)
	require.NoError(t, err)
	require.Equal(t, Peer{Cluster: testCluster, Role: PeerNode, ID: testNode}, who)

	byName := &tls.Config{RootCAs: ca.Pool(), ServerName: "control.example"}
	state, serverErr, clientErr = shake(t, server, byName)
	require.NoError(t, serverErr)
	require.NoError(t, clientErr, "the names the caller gave are in it")
	_, err = PeerIdentity(&state)
	require.Error(t, err, "nobody showed a certificate")
	_, err = PeerIdentity(nil)
	require.Error(t, err)
}

func TestWrongPeersAreRefused(t *testing.T) {
	now := time.Now()
	ca, foreign := newTestCA(t, testCluster), newTestCA(t, "c2222222222222222222")
	sameName := newTestCA(t, testCluster)
	for name, c := range map[string]struct {
		cert tls.Certificate
		id   string
	}{
		"role":             {signed(t, ca, Peer{Role: PeerNode, ID: testNode}, Names{}, now), ""},
		"foreign cluster":  {signed(t, foreign, Peer{Role: PeerProxy, ID: testNode}, Names{}, now), ""},
		"another CA":       {signed(t, sameName, Peer{Role: PeerProxy, ID: testNode}, Names{}, now), ""},
		"expired":          {signed(t, ca, Peer{Role: PeerProxy, ID: testNode}, Names{}, now.Add(-CertificateLifetime-time.Hour)), ""},
		"not yet":          {signed(t, ca, Peer{Role: PeerProxy, ID: testNode}, Names{}, now.Add(time.Hour)), ""},
		"another proxy":    {signed(t, ca, Peer{Role: PeerProxy, ID: testNode}, Names{}, now), "n2222222222222222222"},
		"good (no error!)": {signed(t, ca, Peer{Role: PeerProxy, ID: testNode}, Names{}, now), testNode},
	} {
		server := &tls.Config{Certificates: []tls.Certificate{c.cert}}
		client := &tls.Config{InsecureSkipVerify: true, VerifyConnection: VerifyPeer(ca.Pool(), testCluster, c.id, PeerProxy)}
		_, _, err := shake(t, server, client)
		if name == "good (no error!)" {
			require.NoError(t, err)
			continue
		}
		require.Error(t, err, name)
	}
}

func TestARootCanBeReplaced(t *testing.T) {
	oldKey, err := NewCAKey(testCluster, time.Now())
	require.NoError(t, err)
	newKey, err := NewCAKey(testCluster, time.Now())
	require.NoError(t, err)
	before, err := NewCA(testCluster, []CAKey{oldKey})
	require.NoError(t, err)
	after, err := NewCA(testCluster, []CAKey{newKey, oldKey})
	require.NoError(t, err)
	for _, ca := range []*CA{before, after} {
		cert := signed(t, ca, Peer{Role: PeerNode, ID: testNode}, Names{}, time.Now())
		client := &tls.Config{InsecureSkipVerify: true, VerifyConnection: VerifyPeer(after.Pool(), testCluster, testNode, PeerNode)}
		_, _, err := shake(t, &tls.Config{Certificates: []tls.Certificate{cert}}, client)
		require.NoError(t, err)
	}
	newKey.Key = oldKey.Key
	_, err = NewCA(testCluster, []CAKey{newKey})
	require.ErrorContains(t, err, "does not belong")
	_, err = NewCA(testCluster, nil)
	require.Error(t, err)
}

func TestARequestDecidesNothingButItsKey(t *testing.T) {
	ca := newTestCA(t, testCluster)
	key, _, err := NewCSR()
	require.NoError(t, err)
	block, _ := pem.Decode(key)
	private, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	require.NoError(t, err)
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		DNSNames: []string{"evil.example"}, URIs: []*url.URL{{Scheme: "carrel", Host: testCluster, Path: "/control"}},
	}, private)
	require.NoError(t, err)
	csr := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
	text, err := ca.SignCSR(csr, Peer{Role: PeerNode, ID: testNode, Cluster: "other"}, Names{}, time.Now())
	require.NoError(t, err)
	block, _ = pem.Decode(text)
	cert, err := x509.ParseCertificate(block.Bytes)
	require.NoError(t, err)
	require.Empty(t, cert.DNSNames)
	require.Len(t, cert.URIs, 1)
	require.Equal(t, "carrel://"+testCluster+"/node/"+testNode, cert.URIs[0].String())
	require.False(t, cert.IsCA)
	require.WithinDuration(t, time.Now().Add(CertificateLifetime), cert.NotAfter, time.Minute)
}

func TestBadRequestsAreRefused(t *testing.T) {
	ca := newTestCA(t, testCluster)
	_, good, err := NewCSR()
	require.NoError(t, err)
	block, _ := pem.Decode(good)
	changed := append([]byte(nil), block.Bytes...)
	changed[len(changed)-1] ^= 1
	ecKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	ec, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, ecKey)
	require.NoError(t, err)
	for name, csr := range map[string][]byte{
		"empty":     nil,
		"no PEM":    []byte("hello"),
		"type":      pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: block.Bytes}),
		"two":       append(append([]byte(nil), good...), good...),
		"signature": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: changed}),
		"kind":      pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: ec}),
		"too long":  make([]byte, maxCSR+1),
	} {
		_, err := ca.SignCSR(csr, Peer{Role: PeerNode, ID: testNode}, Names{}, time.Now())
		require.Error(t, err, name)
	}
	for _, p := range []Peer{{}, {Role: "king", ID: testNode}, {Role: PeerNode}, {Role: PeerNode, ID: "g1111111111111111111"}, {Role: PeerControl, ID: testNode}, {Role: PeerGateway, ID: "../control"}} {
		_, err := ca.SignCSR(good, p, Names{}, time.Now())
		require.Error(t, err, "%+v", p)
	}
}
