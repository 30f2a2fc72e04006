package image

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"syscall"
	"time"

	"carrel.dev/carrel/internal/carrel"
)

// closed are the networks that a tenant's import may not reach, beyond those that netip.Addr knows by name: they lie
// inside of somebody's network, or lead there. (IANA's special-purpose registries, RFC 6890.)
var closed = prefixes(
	"0.0.0.0/8", "100.64.0.0/10", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "240.0.0.0/4",
	"::/96", "64:ff9b::/96", "64:ff9b:1::/48", "100::/64", "2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20", "5f00::/16", "fec0::/10",
	"168.63.129.16/32", // Azure's metadata and management; the other clouds' are link-local, unique-local or shared
)

func prefixes(texts ...string) []netip.Prefix {
	list := make([]netip.Prefix, len(texts))
	for i, text := range texts {
		list[i] = netip.MustParsePrefix(text)
	}
	return list
}

// public reports whether an address is one of the open internet.
func public(a netip.Addr) bool {
	a = a.Unmap().WithZone("")
	if !a.IsGlobalUnicast() || a.IsPrivate() || a.IsLoopback() || a.IsLinkLocalUnicast() || a.IsMulticast() {
		return false
	}
	for _, p := range closed {
		if p.Contains(a) {
			return false
		}
	}
	return true
}

// errInside is the answer to a tenant whose registry, or where it leads, is not on the open internet. It does not tell
// whether anything is there.
func errInside(host string) error {
	return carrel.Errorf(carrel.CodeDenied, "registry_not_public", "%q does not lead to a public address, and only an operator of the platform may import from inside of the network; ask one, or use a public registry", clip(host))
}

// guardedTransport reaches public addresses and nothing else, on every hop: redirects, token services and the hosts of
// layers all come through it. Addresses are checked after names were resolved, on the connection that is made,
// so a name that changes its mind gains nothing.
type guardedTransport struct {
	direct  *http.Transport
	proxied *http.Transport // through the proxy that the environment of this process names
	proxy   func(*http.Request) (*url.URL, error)
	resolve func(ctx context.Context, network, host string) ([]netip.Addr, error)
	allowed func(netip.Addr) bool
}

// newGuardedTransport connects to addresses that are allowed.
func newGuardedTransport(allowed func(netip.Addr) bool) *guardedTransport {
	g := &guardedTransport{proxy: http.ProxyFromEnvironment, resolve: net.DefaultResolver.LookupNetIP, allowed: allowed}
	guarded := &net.Dialer{Timeout: 5 * time.Second, KeepAlive: 30 * time.Second, ControlContext: g.check}
	g.direct = newTransport(guarded, nil)
	g.proxied = newTransport(&net.Dialer{Timeout: 5 * time.Second, KeepAlive: 30 * time.Second}, g.proxy)
	return g
}

func newTransport(dialer *net.Dialer, proxy func(*http.Request) (*url.URL, error)) *http.Transport {
	return &http.Transport{
		Proxy: proxy, DialContext: dialer.DialContext, ForceAttemptHTTP2: true, MaxIdleConns: 20, IdleConnTimeout: 30 * time.Second,
		TLSHandshakeTimeout: 10 * time.Second, ResponseHeaderTimeout: time.Minute, MaxResponseHeaderBytes: 256 << 10,
	}
}

// check is called with the address of each connection before it is made.
func (g *guardedTransport) check(_ context.Context, _, address string, _ syscall.RawConn) error {
	at, err := netip.ParseAddrPort(address)
	if err != nil || !g.allowed(at.Addr()) {
		return errInside(address)
	}
	return nil
}

// RoundTrip is part of http.RoundTripper. A configured proxy makes the connection itself, so there the name is
// resolved here first; what the proxy makes of it is the business of the proxy's own rules.
func (g *guardedTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	proxy, err := g.proxy(r)
	if err != nil {
		return nil, fmt.Errorf("find the proxy: %w", err)
	}
	if proxy == nil {
		return g.direct.RoundTrip(r)
	}
	host := r.URL.Hostname()
	addresses, err := g.resolve(r.Context(), "ip", host)
	var unknown *net.DNSError
	switch {
	case errors.As(err, &unknown) && unknown.IsNotFound:
		// Machines behind a proxy often can't resolve names of the outside; names of the inside they can.
	case err != nil:
		return nil, fmt.Errorf("resolve the registry's name: %w", err)
	}
	for _, a := range addresses {
		if !g.allowed(a) {
			return nil, errInside(host)
		}
	}
	return g.proxied.RoundTrip(r)
}

func (g *guardedTransport) close() {
	g.direct.CloseIdleConnections()
	g.proxied.CloseIdleConnections()
}
