package image

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"

	"carrel.dev/carrel/internal/carrel"
	"github.com/stretchr/testify/require"
)

func TestOnlyTheOpenInternetIsPublic(t *testing.T) {
	for _, text := range []string{
		"127.0.0.1", "127.8.8.8", "::1", "0.0.0.0", "0.1.2.3", "::", "10.1.2.3", "172.16.0.1", "172.31.255.255", "192.168.1.1", "169.254.169.254", "100.64.0.7",
		"100.100.100.200", "192.0.0.192", "198.18.0.1", "224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255", "168.63.129.16", "fe80::1", "fe80::1%eth0",
		"fc00::1", "fd00:ec2::254", "ff02::1", "fec0::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b:1::1", "2002:7f00:1::", "2001::1", "2001:db8::1",
	} {
		require.False(t, public(netip.MustParseAddr(text)), text)
	}
	for _, text := range []string{"1.1.1.1", "8.8.8.8", "151.101.1.195", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "2a00:1450:4001::1", "::ffff:1.1.1.1"} {
		require.True(t, public(netip.MustParseAddr(text)), text)
	}
}

// insider is a service that only the inside of a network should reach. Address is a name that leads to it: the
// library that speaks to registries has its own rules for numbers.
func insider(t *testing.T) (address string, asked *atomic.Int64) {
	t.Helper()
	asked = &atomic.Int64{}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		w.WriteHeader(http.StatusTeapot)
	}))
	t.Cleanup(server.Close)
	return strings.Replace(strings.TrimPrefix(server.URL, "http://"), "127.0.0.1", "localhost", 1), asked
}

// outside counts the address of these tests' registry as public and those of insiders not.
func outside(a netip.Addr) bool { return a == netip.MustParseAddr("127.0.0.2") }

func TestATenantsImportReachesNothingInside(t *testing.T) {
	inside, asked := insider(t)
	_, port, err := net.SplitHostPort(inside)
	require.NoError(t, err)
	b := newBuilder(t, Config{})
	for name, reference := range map[string]string{
		"an address":                  "127.0.0.1:" + port + "/app:1",
		"a name that leads inside":    "localhost:" + port + "/app:1",
		"metadata of a cloud":         "169.254.169.254/latest/meta-data:1",
		"an address of version 6":     "[::1]:" + port + "/app:1",
		"mapped into version 6":       "[::ffff:127.0.0.1]:" + port + "/app:1",
		"a number that is an address": "2130706433:" + port + "/app:1",
	} {
		t.Run(name, func(t *testing.T) {
			_, err := b.Import(t.Context(), ImportRequest{Reference: reference, Platform: "linux/amd64", Insecure: true}, nil)
			require.Error(t, err)
			if !strings.HasPrefix(reference, "2130706433") && !strings.HasPrefix(reference, "[::ffff") { // not every resolver or parser takes those
				require.Equal(t, "registry_not_public", carrel.ReasonOf(err), "%v", err)
				require.Equal(t, carrel.CodeDenied, carrel.CodeOf(err))
			}
			require.Zero(t, asked.Load(), "it was reached")
		})
	}
	_, err = b.Import(t.Context(), ImportRequest{Reference: "oci:" + t.TempDir(), Platform: "linux/amd64"}, nil)
	require.Equal(t, "operator_needed", carrel.ReasonOf(err))
}

func TestATenantsRegistryCannotLeadInside(t *testing.T) {
	for name, lead := range map[string]func(inside string, w http.ResponseWriter, r *http.Request) bool{
		"the first answer": func(inside string, w http.ResponseWriter, r *http.Request) bool {
			http.Redirect(w, r, "http://"+inside+r.URL.Path, http.StatusTemporaryRedirect)
			return true
		},
		"a manifest": func(inside string, w http.ResponseWriter, r *http.Request) bool {
			if !strings.Contains(r.URL.Path, "/manifests/") {
				return false
			}
			http.Redirect(w, r, "http://"+inside+r.URL.Path, http.StatusFound)
			return true
		},
		"a layer": func(inside string, w http.ResponseWriter, r *http.Request) bool {
			if !strings.Contains(r.URL.Path, "/blobs/") {
				return false
			}
			http.Redirect(w, r, "http://"+inside+r.URL.Path, http.StatusTemporaryRedirect)
			return true
		},
		"a token service": func(inside string, w http.ResponseWriter, r *http.Request) bool {
			w.Header().Set("WWW-Authenticate", `Bearer realm="http://`+inside+`/token",service="x"`)
			w.WriteHeader(http.StatusUnauthorized)
			return true
		},
	} {
		t.Run(name, func(t *testing.T) {
			inside, asked := insider(t)
			r := newRegistryAt(t, "127.0.0.2")
			r.push(t, r.ref("app:1"), imageOf(t, "amd64", twoLayers(t)...))
			b := newBuilder(t, Config{})
			b.reachable = outside
			request := ImportRequest{Reference: r.ref("app:1"), Platform: "linux/amd64", Insecure: true}
			r.intercept(func(w http.ResponseWriter, q *http.Request) bool { return lead(inside, w, q) })
			_, err := b.Import(t.Context(), request, nil)
			require.Equal(t, "registry_not_public", carrel.ReasonOf(err), "%v", err)
			require.Zero(t, asked.Load(), "the inside was reached")

			r.intercept(func(http.ResponseWriter, *http.Request) bool { return false })
			_, err = b.Import(t.Context(), request, nil)
			require.NoError(t, err, "what stays outside is imported")
		})
	}
}

func TestBehindAProxyNamesAreResolvedFirst(t *testing.T) {
	var passed atomic.Int64
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		passed.Add(1)
		w.WriteHeader(http.StatusTeapot)
	}))
	defer proxy.Close()
	at, err := url.Parse(proxy.URL)
	require.NoError(t, err)
	names := map[string]string{"inside.example": "10.0.0.1", "outside.example": "1.1.1.1", "10.0.0.1": "10.0.0.1"}
	g := newGuardedTransport(public)
	defer g.close()
	g.proxy = http.ProxyURL(at)
	g.proxied.Proxy = g.proxy
	g.resolve = func(_ context.Context, _, host string) ([]netip.Addr, error) {
		if a, ok := names[host]; ok {
			return []netip.Addr{netip.MustParseAddr(a)}, nil
		}
		return nil, &net.DNSError{Name: host, IsNotFound: true}
	}
	get := func(host string) error {
		q, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+host+"/v2/", nil)
		require.NoError(t, err)
		resp, err := g.RoundTrip(q)
		if err == nil {
			resp.Body.Close()
		}
		return err
	}
	require.Equal(t, "registry_not_public", carrel.ReasonOf(get("inside.example")))
	require.Equal(t, "registry_not_public", carrel.ReasonOf(get("10.0.0.1")))
	require.Zero(t, passed.Load())
	require.NoError(t, get("outside.example"))
	require.NoError(t, get("only-the-proxy-knows.example"))
	require.EqualValues(t, 2, passed.Load())
}
