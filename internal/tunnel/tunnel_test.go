package tunnel_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"carrel.dev/carrel/internal/leftover"
	"carrel.dev/carrel/internal/tunnel"
)

func TestMain(m *testing.M) { os.Exit(leftover.Main(m)) }

const patience = 3 * time.Minute

// serve answers CONNECT requests at an address with handler.
func serve(t *testing.T, handler http.HandlerFunc) (address string) {
	t.Helper()
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	serveOn(t, inner, handler)
	return inner.Addr().String()
}

func clientConfig() *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true, NextProtos: []string{tunnel.Protocol}}
}

func serveOn(t *testing.T, inner net.Listener, handler http.HandlerFunc) {
	t.Helper()
	_, key, err := ed25519.GenerateKey(nil)
	require.NoError(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	require.NoError(t, err)
	server := &http.Server{Handler: handler, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(tunnel.NewListener(inner, &tls.Config{
			MinVersion: tls.VersionTLS13, NextProtos: []string{tunnel.Protocol}, Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
		}))
	}()
	t.Cleanup(func() { _ = server.Close(); <-done })
}

func open(t *testing.T, address string, header http.Header) (*tunnel.Conn, error) {
	t.Helper()
	raw, err := net.Dial("tcp", address)
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	return tunnel.Open(ctx, raw, clientConfig(), "host", header)
}

// pair gives both ends of one stream.
func pair(t *testing.T) (here, there *tunnel.Conn) {
	t.Helper()
	accepted := make(chan *tunnel.Conn, 1)
	address := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodConnect || r.Host != "host" || r.Header.Get("Target") != "x" {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		c, err := tunnel.Accept(w)
		if err == nil {
			accepted <- c
		}
	})
	here, err := open(t, address, http.Header{"Target": {"x"}})
	require.NoError(t, err)
	there = <-accepted
	t.Cleanup(func() { _ = here.Close(); _ = there.Close() })
	for _, c := range []*tunnel.Conn{here, there} {
		require.NoError(t, c.SetReadDeadline(time.Now().Add(patience)))
	}
	return here, there
}

func TestBytesOfEverySizeArriveInOrderBothWays(t *testing.T) {
	here, there := pair(t)
	data := make([]byte, 9<<20)
	_, _ = rand.Read(data)
	var parts sync.WaitGroup
	for _, way := range [][2]*tunnel.Conn{{here, there}, {there, here}} {
		parts.Go(func() {
			size := 1
			for at := 0; at < len(data); {
				n := min(len(data)-at, size)
				if _, err := way[0].Write(data[at : at+n]); err != nil {
					t.Error(err)
					return
				}
				at, size = at+n, size*3%600_011+1
			}
			if err := way[0].CloseWrite(); err != nil {
				t.Error(err)
			}
		})
		parts.Go(func() {
			got, err := io.ReadAll(way[1])
			if err != nil || !bytes.Equal(got, data) {
				t.Errorf("%d bytes, %v", len(got), err)
			}
		})
	}
	parts.Wait()
}

func TestOneDirectionEndsAndTheOtherGoesOn(t *testing.T) {
	here, there := pair(t)
	require.NoError(t, here.CloseWrite())
	_, err := there.Read(make([]byte, 1))
	require.ErrorIs(t, err, io.EOF)
	_, err = there.Write([]byte("still"))
	require.NoError(t, err)
	got := make([]byte, 5)
	_, err = io.ReadFull(here, got)
	require.NoError(t, err)
	require.Equal(t, "still", string(got))
	require.False(t, there.Gone())
	require.NoError(t, here.Close())
	there.AwaitClose()
	require.True(t, there.Gone())
}

// pipes is a listener of connections in memory, on which a write waits until it is read.
type pipes chan net.Conn

func (p pipes) Accept() (net.Conn, error) {
	c, ok := <-p
	if !ok {
		return nil, net.ErrClosed
	}
	return c, nil
}
func (p pipes) Close() error   { close(p); return nil }
func (p pipes) Addr() net.Addr { return &net.TCPAddr{} }

func TestTheEndOfDataWaitsForAReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		listener := make(pipes, 1)
		accepted := make(chan *tunnel.Conn, 1)
		serveOn(t, listener, func(w http.ResponseWriter, _ *http.Request) {
			if c, err := tunnel.Accept(w); err == nil {
				accepted <- c
			}
		})
		raw, other := net.Pipe()
		listener <- other
		here, err := tunnel.Open(t.Context(), raw, clientConfig(), "host", nil)
		require.NoError(t, err)
		defer here.Close()
		there := <-accepted
		defer there.Close()
		ended := make(chan error, 1)
		go func() { ended <- here.CloseWrite() }()
		<-time.After(time.Hour) // of the bubble's clock: nobody reads
		_, err = there.Read(make([]byte, 1))
		require.ErrorIs(t, err, io.EOF)
		require.NoError(t, <-ended)
	})
}

func TestACutIsNoEndOfData(t *testing.T) {
	here, there := pair(t)
	_, err := there.Write([]byte("a"))
	require.NoError(t, err)
	_, err = io.ReadFull(here, make([]byte, 1))
	require.NoError(t, err)
	require.NoError(t, there.Close())
	require.NoError(t, there.Close(), "again")
	_, err = here.Read(make([]byte, 1))
	require.Error(t, err)
	require.NotErrorIs(t, err, io.EOF)
	require.True(t, here.Gone())
}

func TestARefusalIsHandedOn(t *testing.T) {
	address := serve(t, func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "not you", http.StatusForbidden) })
	_, err := open(t, address, nil)
	refused := new(tunnel.RefusedError)
	require.True(t, errors.As(err, &refused), "%v", err)
	require.Equal(t, http.StatusForbidden, refused.Status)
	require.Equal(t, "not you\n", string(refused.Body))
}

func TestOpeningEndsWithItsContext(t *testing.T) {
	asked := make(chan struct{})
	address := serve(t, func(_ http.ResponseWriter, r *http.Request) {
		close(asked)
		<-r.Context().Done()
	})
	raw, err := net.Dial("tcp", address)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-asked; cancel() }()
	_, err = tunnel.Open(ctx, raw, clientConfig(), "host", nil)
	require.ErrorIs(t, err, context.Canceled)
	for _, host := range []string{"", "a b", "a\r\nX: y"} {
		raw, err := net.Dial("tcp", address)
		require.NoError(t, err)
		_, err = tunnel.Open(t.Context(), raw, clientConfig(), host, nil)
		require.ErrorContains(t, err, "is no host")
	}
}
