package gateway

import (
	"bufio"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ssh"

	"carrel.dev/carrel/internal/auth"
	"carrel.dev/carrel/internal/carrel"
)

const sshTestUser = carrel.UserID("u0000000000000000001")

func newSSHKey(t *testing.T) ssh.Signer {
	t.Helper()
	_, private, err := ed25519.GenerateKey(rand.Reader)
	require.NoError(t, err)
	signer, err := ssh.NewSignerFromKey(private)
	require.NoError(t, err)
	return signer
}

// sshDoorway is a gateway of which there is only what a login needs.
type sshDoorway struct {
	g    *Gateway
	key  ssh.Signer // of sshTestUser
	ca   ssh.Signer
	host ssh.Signer
}

func newSSHDoorway(t *testing.T) *sshDoorway {
	t.Helper()
	d := &sshDoorway{key: newSSHKey(t), ca: newSSHKey(t), host: newSSHKey(t)}
	quiet := slog.New(slog.DiscardHandler)
	d.g = &Gateway{log: quiet, now: time.Now, metrics: newMetrics(nil), shared: &secretStore{}, grants: openGrants(t.TempDir(), "", quiet, time.Now), guards: newGuards()}
	d.g.auditor = newAuditor(d.g)
	d.g.routes = openRoutes(t.TempDir(), "", quiet)
	d.g.shared.value.SSHHostKeys = []ssh.Signer{d.host}
	d.g.grants.put(grant{User: sshTestUser, Name: "ada", SSHKeys: []string{string(ssh.MarshalAuthorizedKey(d.key.PublicKey()))}})
	d.g.grants.cas = []ssh.PublicKey{d.ca.PublicKey()}
	return d
}

// serve serves on a listener until the test's end.
func (d *sshDoorway) serve(t *testing.T, l net.Listener) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- d.g.ServeSSH(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		require.NoError(t, <-done)
	})
}

func (d *sshDoorway) listen(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	d.serve(t, l)
	return l.Addr().String()
}

func (d *sshDoorway) login(address string, signer ssh.Signer, banner *string) (*ssh.Client, error) {
	return ssh.Dial("tcp", address, &ssh.ClientConfig{
		User: "dev", Auth: []ssh.AuthMethod{ssh.PublicKeys(signer)}, HostKeyCallback: ssh.FixedHostKey(d.host.PublicKey()),
		BannerCallback: func(text string) error {
			if banner != nil {
				*banner += text
			}
			return nil
		},
	})
}

func (d *sshDoorway) certificate(t *testing.T, change func(*ssh.Certificate), authority ssh.Signer) ssh.Signer {
	t.Helper()
	key := newSSHKey(t)
	cert := &ssh.Certificate{
		Key: key.PublicKey(), CertType: ssh.UserCert, ValidPrincipals: []string{string(sshTestUser), "ada"},
		ValidAfter: uint64(time.Now().Add(-time.Hour).Unix()), ValidBefore: uint64(time.Now().Add(time.Hour).Unix()),
		Permissions: ssh.Permissions{Extensions: map[string]string{auth.SSHTokenExtension: "t0000000000000000001"}, CriticalOptions: map[string]string{}},
	}
	if change != nil {
		change(cert)
	}
	require.NoError(t, cert.SignCert(rand.Reader, authority))
	signer, err := ssh.NewCertSigner(cert, key)
	require.NoError(t, err)
	return signer
}

func TestSSHLoginIsByKeyOrCertificate(t *testing.T) {
	d := newSSHDoorway(t)
	address := d.listen(t)
	for name, row := range map[string]struct {
		signer ssh.Signer
		good   bool
	}{
		"a registered key":                   {d.key, true},
		"a key that nobody registered":       {newSSHKey(t), false},
		"a certificate":                      {d.certificate(t, nil, d.ca), true},
		"of another authority":               {d.certificate(t, nil, newSSHKey(t)), false},
		"that has ended":                     {d.certificate(t, func(c *ssh.Certificate) { c.ValidBefore = uint64(time.Now().Add(-time.Minute).Unix()) }, d.ca), false},
		"that has not begun":                 {d.certificate(t, func(c *ssh.Certificate) { c.ValidAfter = uint64(time.Now().Add(time.Minute).Unix()) }, d.ca), false},
		"of a host":                          {d.certificate(t, func(c *ssh.Certificate) { c.CertType = ssh.HostCert }, d.ca), false},
		"of nobody":                          {d.certificate(t, func(c *ssh.Certificate) { c.ValidPrincipals = nil }, d.ca), false},
		"of a user who is not known":         {d.certificate(t, func(c *ssh.Certificate) { c.ValidPrincipals[0] = "u0000000000000000002" }, d.ca), false},
		"with an option that nobody knows":   {d.certificate(t, func(c *ssh.Certificate) { c.CriticalOptions["verify-required"] = "" }, d.ca), false},
		"for another source address":         {d.certificate(t, func(c *ssh.Certificate) { c.CriticalOptions[optionSourceAddress] = "192.0.2.0/24" }, d.ca), false},
		"for this source address":            {d.certificate(t, func(c *ssh.Certificate) { c.CriticalOptions[optionSourceAddress] = "127.0.0.0/8" }, d.ca), true},
		"with a forced command":              {d.certificate(t, func(c *ssh.Certificate) { c.CriticalOptions[optionForceCommand] = "true" }, d.ca), true},
		"got by an API token that was ended": {d.certificate(t, func(c *ssh.Certificate) { c.Extensions[auth.SSHTokenExtension] = "tended" }, d.ca), false},
	} {
		t.Run(name, func(t *testing.T) {
			d.g.grants.mu.Lock()
			d.g.grants.revoked["tended"] = time.Now()
			d.g.grants.mu.Unlock()
			banner := ""
			client, err := d.login(address, row.signer, &banner)
			if name == "that has ended" {
				require.Contains(t, banner, "your certificate ended at")
			}
			if !row.good {
				require.ErrorContains(t, err, "unable to authenticate")
				return
			}
			require.NoError(t, err)
			require.NoError(t, client.Close())
		})
	}
}

// packet makes an SSH packet as it is before keys are agreed on.
func packet(payload []byte) []byte {
	padding := 16 - (5+len(payload))%8
	b := binary.BigEndian.AppendUint32(nil, uint32(1+len(payload)+padding))
	b = append(append(b, byte(padding)), payload...)
	return append(b, make([]byte, padding)...)
}

func readPacket(r io.Reader) ([]byte, error) {
	var header [5]byte
	if _, err := io.ReadFull(r, header[:]); err != nil {
		return nil, err
	}
	body := make([]byte, binary.BigEndian.Uint32(header[:])-1)
	if _, err := io.ReadFull(r, body); err != nil {
		return nil, err
	}
	return body[:len(body)-int(header[4])], nil
}

type kexInit struct {
	Cookie                                          [16]byte `sshtype:"20"`
	Kex, HostKeys, Ciphers1, Ciphers2, MACs1, MACs2 []string
	Compress1, Compress2, Languages1, Languages2    []string
	FirstKexFollows                                 bool
	Reserved                                        uint32
}

// TestSSHKeyExchangeIsStrict: a message slipped in before the keys are there, with which a later one could be cut out unseen, ends
// the connection; and nothing old is offered.
func TestSSHKeyExchangeIsStrict(t *testing.T) {
	address := newSSHDoorway(t).listen(t)
	for name, inject := range map[string]bool{"as it should be": false, "with an IGNORE slipped in": true} {
		t.Run(name, func(t *testing.T) {
			conn, err := net.Dial("tcp", address)
			require.NoError(t, err)
			defer conn.Close()
			require.NoError(t, conn.SetDeadline(time.Now().Add(time.Minute)))
			_, err = io.WriteString(conn, "SSH-2.0-test\r\n")
			require.NoError(t, err)
			r := bufio.NewReader(conn)
			_, err = r.ReadString('\n')
			require.NoError(t, err)
			raw, err := readPacket(r)
			require.NoError(t, err)
			var offer kexInit
			require.NoError(t, ssh.Unmarshal(raw, &offer))
			require.Contains(t, offer.Kex, "kex-strict-s-v00@openssh.com")
			all := strings.Join(append(append(append(offer.Kex, offer.Ciphers1...), offer.MACs1...), offer.HostKeys...), " ")
			for _, old := range []string{"sha1", "cbc", "arcfour", "nistp", "diffie", "ssh-rsa", "dss", "umac-64"} {
				require.NotContains(t, all, old)
			}

			offer.Kex = []string{"curve25519-sha256", "kex-strict-c-v00@openssh.com"}
			_, err = conn.Write(packet(ssh.Marshal(offer)))
			require.NoError(t, err)
			if inject {
				_, err = conn.Write(packet([]byte{2, 0, 0, 0, 0}))
				require.NoError(t, err)
			}
			point := make([]byte, 32)
			point[0] = 9
			_, err = conn.Write(packet(append([]byte{30, 0, 0, 0, 32}, point...)))
			require.True(t, err == nil || inject)
			answer, err := readPacket(r)
			if inject {
				require.Error(t, err)
				require.Empty(t, answer)
				return
			}
			require.NoError(t, err)
			require.EqualValues(t, 31, answer[0], "the key exchange goes on")
		})
	}
}

// pipeListener gives the server's ends of connections in memory.
type pipeListener struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case conn := <-l.conns:
		return conn, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}
func (l *pipeListener) Close() error   { l.once.Do(func() { close(l.done) }); return nil }
func (l *pipeListener) Addr() net.Addr { return fakeAddr("pipe") }

// TestSSHLoginsEndInTime: who says nothing, who says it slowly and who says rubbish.
func TestSSHLoginsEndInTime(t *testing.T) {
	for name, talk := range map[string]func(net.Conn) error{
		"nothing": func(net.Conn) error { return nil },
		"slowly": func(c net.Conn) error {
			for {
				<-time.After(time.Second)
				if _, err := io.WriteString(c, "S"); err != nil {
					return err
				}
			}
		},
		"half a preface": func(c net.Conn) error { _, err := io.WriteString(c, "CARREL-BOX d"); return err },
		"rubbish": func(c net.Conn) error {
			for {
				if _, err := io.WriteString(c, "GET / HTTP/1.1\r\n\x00\xff\n"); err != nil {
					return err
				}
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			d := newSSHDoorway(t)
			synctest.Test(t, func(t *testing.T) {
				l := &pipeListener{conns: make(chan net.Conn), done: make(chan struct{})}
				d.serve(t, l)
				ours, theirs := net.Pipe()
				l.conns <- theirs
				began := time.Now()
				var talking sync.WaitGroup
				defer talking.Wait()
				talking.Go(func() { _ = talk(ours) })
				_, err := io.Copy(io.Discard, ours)
				require.True(t, err == nil || errors.Is(err, io.EOF))
				require.LessOrEqual(t, time.Since(began), sshHandshakeTime)
				require.NoError(t, ours.Close())
			})
		})
	}
}

// TestTenThousandQuickConnections leave nothing behind and keep nobody out.
func TestTenThousandQuickConnections(t *testing.T) {
	d := newSSHDoorway(t)
	address := d.listen(t)
	open, err := d.login(address, d.key, nil)
	require.NoError(t, err)
	defer open.Close()
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	goroutines := runtime.NumGoroutine()
	var crowd sync.WaitGroup
	for range 20 {
		crowd.Go(func() {
			for i := range 500 {
				conn, err := net.Dial("tcp", address)
				if err != nil {
					continue // the kernel's queue is full
				}
				if i%3 == 0 {
					_, _ = io.WriteString(conn, "SSH-2.0-x\r\n")
				}
				_ = conn.Close()
			}
		})
	}
	crowd.Wait()
	_, _, err = open.SendRequest("keepalive@openssh.com", true, nil)
	require.NoError(t, err, "who is in is not disturbed")
	require.Eventually(t, func() bool {
		client, err := d.login(address, d.key, nil)
		if err == nil {
			_ = client.Close()
		}
		return err == nil
	}, 2*time.Minute, 50*time.Millisecond, "others get in")
	require.Eventually(t, func() bool { return runtime.NumGoroutine() <= goroutines+20 }, 2*time.Minute, 50*time.Millisecond, "nothing goes on")
	require.Eventually(t, func() bool {
		runtime.GC()
		runtime.ReadMemStats(&after)
		return int64(after.HeapAlloc)-int64(before.HeapAlloc) < 8<<20
	}, time.Minute, 50*time.Millisecond, "nothing is kept")
}

// What waits in a channel that nobody reads is the gateway's memory, however many connections a user spreads channels over.
func TestAUserHasSoManySSHChannelsInAll(t *testing.T) {
	d := newSSHDoorway(t)
	address := d.listen(t)
	var clients []*ssh.Client
	opened := 0
	for range sshMaxChannelsPerUser/sshMaxChannels + 1 {
		client, err := d.login(address, d.key, nil)
		require.NoError(t, err)
		t.Cleanup(func() { _ = client.Close() })
		clients = append(clients, client)
		for range sshMaxChannels {
			_, requests, err := client.OpenChannel("session", nil)
			if err != nil {
				refused := new(ssh.OpenChannelError)
				require.ErrorAs(t, err, &refused)
				require.Equal(t, ssh.ResourceShortage, refused.Reason)
				break
			}
			go ssh.DiscardRequests(requests)
			opened++
		}
	}
	require.Equal(t, sshMaxChannelsPerUser, opened)
	require.NoError(t, clients[0].Close())
	require.Eventually(t, func() bool {
		_, _, err := clients[len(clients)-1].OpenChannel("session", nil)
		return err == nil
	}, time.Minute, 10*time.Millisecond, "those of a connection that ended are free again")
}
