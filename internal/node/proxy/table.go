package proxy

import (
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"sync"

	"carrel.dev/carrel/internal/auth"
	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/tunnel"
)

// Route is one line of the table that the node keeps in its proxy.
type Route struct {
	Box     carrel.BoxID `json:"box"`
	Org     carrel.OrgID `json:"org"` // whose box it is; grants are compared with it
	Run     carrel.RunID `json:"run"`
	Epoch   int64        `json:"epoch"`
	Address string       `json:"address"` // HOST:PORT of the agent
	Key     string       `json:"key"`     // 64 hex digits
	Open    bool         `json:"open"`    // streams may be made
}

var keyPattern = regexp.MustCompile(`^[0-9a-f]{64}$`)

func (r Route) check() error {
	if carrel.IDKind(string(r.Box)) != 'b' || carrel.IDKind(string(r.Run)) != 'r' || r.Epoch <= 0 || !keyPattern.MatchString(r.Key) {
		return fmt.Errorf("the route of box %q, run %q is not complete", r.Box, r.Run)
	}
	if _, err := netip.ParseAddrPort(r.Address); err != nil {
		return fmt.Errorf("the route of box %q: %w", r.Box, err)
	}
	return nil
}

// Identity is who the proxy is to gateways, and whom it believes.
type Identity struct {
	Node           carrel.NodeID `json:"node"`
	Cluster        string        `json:"cluster"`
	CertificatePEM string        `json:"certificate_pem"`
	KeyPEM         string        `json:"key_pem"`
	CAPEM          string        `json:"ca_pem"`
	// TicketKeys are Ed25519 public keys.
	TicketKeys [][]byte `json:"ticket_keys"`
	// RevokedPeers are the ids of gateways that were removed from the cluster; those of nodes do no harm.
	RevokedPeers []string `json:"revoked_peers,omitempty"`
}

// tlsConfig makes what the listener needs: any gateway of this cluster may connect, and nobody else.
func (i Identity) tlsConfig() (*tls.Config, error) {
	cert, err := tls.X509KeyPair([]byte(i.CertificatePEM), []byte(i.KeyPEM))
	if err != nil {
		return nil, fmt.Errorf("proxy's certificate: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM([]byte(i.CAPEM)) {
		return nil, errors.New("proxy's certificate authority: there is no certificate in it")
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}, NextProtos: []string{tunnel.Protocol}, DynamicRecordSizingDisabled: true,
		ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert,
		VerifyConnection: auth.VerifyPeer(pool, i.Cluster, "", auth.PeerGateway),
	}, nil
}

// live is a route with the streams that use it.
type live struct {
	Route
	quiet bool // asked to be quiet: no new streams, whatever the route says
	cut   map[*stream]struct{}
}

// stream is one open stream, which cancel ends.
type stream struct{ cancel context.CancelFunc }

// table has the routes. It is safe for concurrent use.
type table struct {
	dir      string
	verifier *auth.TicketVerifier
	gateways *gateways

	writes sync.Mutex // one write of a file at a time

	mu       sync.RWMutex // guards the rest
	byRun    map[carrel.RunID]*live
	byBox    map[carrel.BoxID]*live // the newest epoch of each box
	identity *Identity
	tls      *tls.Config
	streams  int
}

// openTable reads what a former process kept; a file that cannot be read is as if there were none: the node
// sends everything again.
func openTable(dir string) (*table, []error) {
	t := &table{dir: dir, verifier: auth.NewTicketVerifier(), gateways: newGateways(), byRun: map[carrel.RunID]*live{}, byBox: map[carrel.BoxID]*live{}}
	var errs []error
	var routes []Route
	if err := readJSON(t.routesPath(), &routes); err != nil {
		errs = append(errs, err)
	} else if err := t.replace(routes); err != nil {
		errs = append(errs, err)
	}
	var identity Identity
	if err := readJSON(t.identityPath(), &identity); err != nil {
		errs = append(errs, err)
	} else if identity.Node != "" {
		if err := t.become(identity); err != nil {
			errs = append(errs, err)
		}
	}
	return t, errs
}

func (t *table) routesPath() string   { return filepath.Join(t.dir, "routes.json") }
func (t *table) identityPath() string { return filepath.Join(t.dir, "identity.json") }

// replace makes routes the whole table. Streams of runs that are not in it, or not open, are cut.
func (t *table) replace(routes []Route) error {
	for _, r := range routes {
		if err := r.check(); err != nil {
			return err
		}
	}
	t.mu.Lock()
	was := t.byRun
	t.byRun, t.byBox = make(map[carrel.RunID]*live, len(routes)), make(map[carrel.BoxID]*live, len(routes))
	for _, r := range routes {
		l := was[r.Run]
		if l == nil {
			l = &live{cut: map[*stream]struct{}{}}
		}
		delete(was, r.Run)
		t.put(l, r)
	}
	for _, l := range was {
		cutAll(l)
	}
	t.mu.Unlock()
	return t.save()
}

// set adds or changes one route.
func (t *table) set(r Route) error {
	if err := r.check(); err != nil {
		return err
	}
	t.mu.Lock()
	l := t.byRun[r.Run]
	if l == nil {
		l = &live{cut: map[*stream]struct{}{}}
	}
	t.put(l, r)
	t.mu.Unlock()
	return t.save()
}

// put needs mu. It cuts what a changed route does not allow any more.
func (t *table) put(l *live, r Route) {
	if l.Run != "" && (l.Address != r.Address || l.Key != r.Key || l.Epoch != r.Epoch) || !r.Open {
		cutAll(l)
	}
	l.Route = r
	t.byRun[r.Run] = l
	if other := t.byBox[r.Box]; other == nil || other.Run == r.Run || other.Epoch < r.Epoch {
		t.byBox[r.Box] = l
	}
}

// remove takes a route away and cuts its streams. It may be missing.
func (t *table) remove(run carrel.RunID) error {
	t.mu.Lock()
	l := t.byRun[run]
	if l != nil {
		cutAll(l)
		delete(t.byRun, run)
		if t.byBox[l.Box] == l {
			delete(t.byBox, l.Box)
		}
	}
	t.mu.Unlock()
	if l == nil {
		return nil
	}
	return t.save()
}

// hush closes or opens a route for streams, without writing that down: a proxy that restarts has no streams, and
// the agent keeps its own word.
func (t *table) hush(run carrel.RunID, quiet bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if l := t.byRun[run]; l != nil {
		l.quiet = quiet
		if quiet {
			cutAll(l)
		}
	}
}

func (t *table) find(run carrel.RunID) (Route, bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	l := t.byRun[run]
	if l == nil {
		return Route{}, false
	}
	return l.Route, true
}

// all gives every route, and of each whether its agent may be asked.
func (t *table) all() (routes []Route, open []bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	for _, l := range t.byRun {
		routes, open = append(routes, l.Route), append(open, l.Open && !l.quiet)
	}
	return routes, open
}

// open reports whether the agent of a run may be asked.
func (t *table) open(run carrel.RunID) bool {
	t.mu.RLock()
	defer t.mu.RUnlock()
	l := t.byRun[run]
	return l != nil && l.Open && !l.quiet
}

// runOf is the run that a ticket is for, quiet or not.
func (t *table) runOf(ticket auth.Ticket) (carrel.RunID, error) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	l := t.byBox[ticket.Box]
	switch {
	case l == nil:
		return "", refuse(404, "no_route", "the box has no run on this node")
	case ticket.Epoch != 0 && l.Epoch != ticket.Epoch:
		return "", refuse(409, "other_epoch", "the ticket is for another run of the box")
	}
	return l.Run, nil
}

// orgOf tells whose box it is that has a run here.
func (t *table) orgOf(box carrel.BoxID) (carrel.OrgID, bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	l := t.byBox[box]
	if l == nil {
		return "", false
	}
	return l.Org, true
}

// enter registers a stream to the run of a box that the ticket is for; epoch 0 means whatever run it is in. leave must be called at its end.
func (t *table) enter(ticket auth.Ticket, maxStreams, maxPerRun int, cancel context.CancelFunc) (r Route, leave func(), err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	l := t.byBox[ticket.Box]
	switch {
	case l == nil:
		return Route{}, nil, refuse(404, "no_route", "the box has no run on this node")
	case ticket.Epoch != 0 && l.Epoch != ticket.Epoch:
		return Route{}, nil, refuse(409, "other_epoch", "the ticket is for another run of the box")
	case !l.Open || l.quiet:
		return Route{}, nil, refuse(503, "box_not_open", "the box is starting, or is being paused or stopped")
	case t.streams >= maxStreams || len(l.cut) >= maxPerRun:
		return Route{}, nil, refuse(503, "too_many_streams", "too many connections to the box, or to this node, are open")
	}
	s := &stream{cancel: cancel}
	l.cut[s] = struct{}{}
	t.streams++
	return l.Route, func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		delete(l.cut, s)
		t.streams--
	}, nil
}

func cutAll(l *live) {
	for s := range l.cut {
		s.cancel()
	}
}

// count answers how many routes and streams there are.
func (t *table) count() (routes, streams int) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return len(t.byRun), t.streams
}

// become takes a new identity.
func (t *table) become(i Identity) error {
	config, err := i.tlsConfig()
	if err != nil {
		return err
	}
	keys := make([]ed25519.PublicKey, 0, len(i.TicketKeys))
	for _, k := range i.TicketKeys {
		if len(k) != ed25519.PublicKeySize {
			return fmt.Errorf("a ticket key has %d bytes instead of %d", len(k), ed25519.PublicKeySize)
		}
		keys = append(keys, k)
	}
	t.verifier.SetKeys(keys)
	t.gateways.revoke(i.RevokedPeers)
	t.mu.Lock()
	t.identity, t.tls = &i, config
	t.mu.Unlock()
	t.writes.Lock()
	defer t.writes.Unlock()
	return writeJSON(t.identityPath(), i)
}

func (t *table) currentTLS() *tls.Config {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.tls
}

// save writes the routes. They are a copy of what the node knows, so nothing is synced to the disk.
func (t *table) save() error {
	t.writes.Lock()
	defer t.writes.Unlock()
	t.mu.RLock()
	routes := make([]Route, 0, len(t.byRun))
	for _, l := range t.byRun {
		routes = append(routes, l.Route)
	}
	t.mu.RUnlock()
	return writeJSON(t.routesPath(), routes)
}

func writeJSON(path string, v any) error {
	data, err := json.Marshal(v)
	if err == nil {
		err = os.WriteFile(path+".tmp", data, 0o600)
	}
	if err == nil {
		err = os.Rename(path+".tmp", path)
	}
	if err != nil {
		return fmt.Errorf("keep %s: %w", filepath.Base(path), err)
	}
	return nil
}

func readJSON(path string, v any) error {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = json.Unmarshal(data, v)
	}
	if err != nil {
		return fmt.Errorf("read %s: %w", filepath.Base(path), err)
	}
	return nil
}
