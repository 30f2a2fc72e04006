package gateway

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"connectrpc.com/connect"
	"github.com/cenkalti/backoff/v5"

	linkv1 "carrel.dev/carrel/api/carrel/link/v1"
	"carrel.dev/carrel/internal/auth"
	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/failpoint"
	"carrel.dev/carrel/internal/wholefile"
)

// route says behind which proxy the live run of a box is.
type route struct {
	Box     carrel.BoxID  `json:"box"`
	Run     carrel.RunID  `json:"run"`
	Epoch   int64         `json:"epoch"`
	Node    carrel.NodeID `json:"node"`
	Address string        `json:"address"` // host:port of the node's proxy
	// What follows is of the box. It is empty in routes that an older gateway kept.
	Org       carrel.OrgID `json:"org,omitempty"`
	Name      string       `json:"name,omitempty"`
	Ports     []portRule   `json:"ports,omitempty"` // that are not private
	Wake      bool         `json:"wake,omitempty"`  // a login or request may start the box
	KeepShell int64        `json:"keep_shell_seconds,omitempty"`
}

// portRule says who may reach a port of a box besides those who may use the box.
type portRule struct {
	Port       int    `json:"port"`
	Visibility string `json:"visibility"`    // org or public
	JWT        string `json:"jwt,omitempty"` // the port's own pass, that of nobody in particular
}

// leadsAs reports whether two routes lead to the same run at the same place.
func (r route) leadsAs(other route) bool {
	return r.Run == other.Run && r.Epoch == other.Epoch && r.Node == other.Node && r.Address == other.Address
}

func (r route) valid() bool {
	host, port, err := net.SplitHostPort(r.Address)
	return err == nil && host != "" && port != "" && r.Epoch > 0 &&
		carrel.IDKind(string(r.Box)) == 'b' && carrel.IDKind(string(r.Run)) == 'r' && carrel.IDKind(string(r.Node)) == 'n'
}

// routesFile is routes.json. The file is a cache: one that cannot be read is as none.
type routesFile struct {
	Version    int      `json:"version"`
	Cluster    string   `json:"cluster"`
	TicketKeys [][]byte `json:"ticket_keys"`
	Routes     []route  `json:"routes"`
	// Revoked are the ids of peers that were removed from the cluster.
	Revoked []string `json:"revoked_peers,omitempty"`
}

const (
	routesVersion = 2 // 1 had nothing of the boxes themselves
	maxTombstones = 100_000
	saveDelay     = 100 * time.Millisecond
)

// routeTable is what is known of where boxes are.
type routeTable struct {
	path  string
	log   *slog.Logger
	dirty chan struct{}

	mu      sync.Mutex // guards what follows
	cluster string
	routes  map[carrel.BoxID]route
	gone    map[carrel.BoxID]route   // boxes without a run: the newest route that is known to be over
	names   map[boxName]carrel.BoxID // of boxes with a run; while one of two of a name is on its way out, the newer
	keys    []ed25519.PublicKey
	revoked []string      // ids of peers that were removed from the cluster
	loaded  bool          // from disk or control
	live    bool          // the link to control is up
	changed chan struct{} // closed and replaced with every change
}

func openRoutes(dir, cluster string, log *slog.Logger) *routeTable {
	t := &routeTable{
		path: filepath.Join(dir, "routes.json"), log: log, dirty: make(chan struct{}, 1), cluster: cluster,
		routes: map[carrel.BoxID]route{}, gone: map[carrel.BoxID]route{}, names: map[boxName]carrel.BoxID{}, changed: make(chan struct{}),
	}
	var file routesFile
	err := readStrict(t.path, &file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return t
	case err != nil:
		log.Warn("routes on disk are not used", "error", err)
		return t
	case file.Version < 1 || file.Version > routesVersion || file.Cluster != cluster:
		log.Warn("routes on disk are not used", "version", file.Version, "cluster", file.Cluster)
		return t
	}
	for _, r := range file.Routes {
		if r.valid() {
			t.routes[r.Box] = r
			t.names[r.boxName()] = r.Box
		}
	}
	t.keys = publicKeys(file.TicketKeys)
	t.revoked = file.Revoked
	t.loaded = true
	return t
}

func publicKeys(raw [][]byte) []ed25519.PublicKey {
	var keys []ed25519.PublicKey
	for _, k := range raw {
		if len(k) == ed25519.PublicKeySize {
			keys = append(keys, slices.Clone(ed25519.PublicKey(k)))
		}
	}
	return keys
}

func (t *routeTable) ticketKeys() []ed25519.PublicKey {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.keys)
}

func (t *routeTable) revokedPeers() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.revoked
}

func (t *routeTable) setKeys(keys []ed25519.PublicKey) {
	t.mu.Lock()
	t.keys = keys
	t.mu.Unlock()
	t.touch()
}

func (t *routeTable) setCluster(cluster string) {
	t.mu.Lock()
	t.cluster = cluster
	t.mu.Unlock()
}

func (t *routeTable) known() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.loaded
}

func (t *routeTable) setLive(live bool) {
	t.mu.Lock()
	t.live = live
	t.signal()
	t.mu.Unlock()
}

// signal wakes whoever waits; the caller holds mu.
func (t *routeTable) signal() {
	close(t.changed)
	t.changed = make(chan struct{})
}

func (t *routeTable) touch() {
	select {
	case t.dirty <- struct{}{}:
	default:
	}
}

// apply takes an update of control. Of two routes of one box the one with the higher epoch is newer;
// a full update replaces everything.
func (t *routeTable) apply(update *linkv1.RoutesUpdate) {
	t.mu.Lock()
	t.revoked = update.GetRevokedPeers()
	if update.GetFull() {
		old := t.routes
		t.routes = make(map[carrel.BoxID]route, len(update.GetRoutes()))
		t.names = make(map[boxName]carrel.BoxID, len(update.GetRoutes()))
		t.loaded = true
		for _, r := range update.GetRoutes() {
			t.take(r)
		}
		for box, r := range old {
			if _, ok := t.routes[box]; !ok {
				t.bury(r)
			}
		}
	} else {
		for _, r := range update.GetRoutes() {
			t.take(r)
		}
	}
	t.signal()
	t.mu.Unlock()
	t.touch()
}

// learn takes one route that control gave beside something else. That answer may have been on its way for longer than an update: of a run that
// is known, who may reach its ports stays as the updates have it.
func (t *routeTable) learn(r *linkv1.Route) {
	t.mu.Lock()
	before, known := t.routes[carrel.BoxID(r.GetBoxId())]
	t.take(r)
	if now, ok := t.routes[before.Box]; t.live && known && ok && now.Epoch == before.Epoch {
		now.Ports = before.Ports
		t.routes[before.Box] = now
	}
	t.signal()
	t.mu.Unlock()
	t.touch()
}

// take and bury: the caller holds mu.
func (t *routeTable) take(m *linkv1.Route) {
	r := route{
		Box: carrel.BoxID(m.GetBoxId()), Run: carrel.RunID(m.GetRunId()), Epoch: m.GetEpoch(),
		Node: carrel.NodeID(m.GetNodeId()), Address: m.GetProxyAddress(),
		Org: carrel.OrgID(m.GetOrgId()), Name: m.GetBoxName(), Wake: m.GetWake(), KeepShell: m.GetKeepShellSeconds(),
	}
	for _, p := range m.GetPorts() {
		r.Ports = append(r.Ports, portRule{Port: int(p.GetPort()), Visibility: p.GetVisibility(), JWT: p.GetJwt()})
	}
	known, ok := t.routes[r.Box]
	if ok && known.Epoch > r.Epoch {
		return
	}
	if m.GetGone() {
		delete(t.routes, r.Box)
		t.unname(known)
		if r.Org == "" {
			r.Org, r.Name, r.Wake, r.KeepShell = known.Org, known.Name, known.Wake, known.KeepShell
		}
		r.Epoch = max(r.Epoch, known.Epoch)
		t.bury(r)
		return
	}
	if !r.valid() {
		t.log.Warn("route of control is not usable", "box", r.Box, "node", r.Node)
		return
	}
	delete(t.gone, r.Box)
	if ok && known.boxName() != r.boxName() {
		t.unname(known)
	}
	t.routes[r.Box] = r
	if named, taken := t.names[r.boxName()]; !taken || named == r.Box || !ok {
		t.names[r.boxName()] = r.Box
	}
}

// boxName is a name in its organisation.
type boxName struct {
	org  carrel.OrgID
	name string
}

func (r route) boxName() boxName { return boxName{r.Org, r.Name} }

// unname forgets a name that leads to a box; the caller holds mu.
func (t *routeTable) unname(r route) {
	if t.names[r.boxName()] == r.Box {
		delete(t.names, r.boxName())
	}
}

// leadsTo reports whether a box, as somebody calls it, is the one of a ticket, and in its run.
func (t *routeTable) leadsTo(called string, ticket auth.Ticket) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	r, live := t.routes[ticket.Box]
	if !live || r.Epoch != ticket.Epoch {
		return false
	}
	return called == string(r.Box) || r.Name == "" || r.Name == called && t.names[r.boxName()] == r.Box
}

func (t *routeTable) bury(r route) {
	if len(t.gone) >= maxTombstones {
		clear(t.gone)
	}
	t.gone[r.Box] = r
}

// of tells what is known of a box, and whether it has a run.
func (t *routeTable) of(box carrel.BoxID) (r route, live, known bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if r, live = t.routes[box]; live {
		return r, true, true
	}
	r, known = t.gone[box]
	return r, false, known
}

// named gives the boxes with a run that have a name, one in each organisation at most.
func (t *routeTable) named(name string) []route {
	t.mu.Lock()
	defer t.mu.Unlock()
	var found []route
	for _, r := range t.routes {
		if r.Name == name {
			found = append(found, r)
		}
	}
	return found
}

// ofRun gives the box whose newest run that is known has an id, and whether it is the live one.
func (t *routeTable) ofRun(run carrel.RunID) (r route, live, known bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, r := range t.routes {
		if r.Run == run {
			return r, true, true
		}
	}
	for _, r := range t.gone {
		if r.Run == run {
			return r, false, true
		}
	}
	return route{}, false, false
}

// port is the rule of a port of a box that has a run; a port without one is private.
func (t *routeTable) port(box carrel.BoxID, port int) (portRule, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, rule := range t.routes[box].Ports {
		if rule.Port == port {
			return rule, true
		}
	}
	return portRule{}, false
}

// change is closed at the next change of the table.
func (t *routeTable) change() <-chan struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.changed
}

// isLive reports whether the link to control is up.
func (t *routeTable) isLive() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.live
}

// find answers with the route of a box's run of that epoch. If nothing is known of that run and control is
// there, it waits up to patience for control to tell.
func (t *routeTable) find(ctx context.Context, box carrel.BoxID, epoch int64, patience time.Duration) (route, error) {
	deadline := time.After(patience)
	for {
		t.mu.Lock()
		r, ok := t.routes[box]
		gone, buried := t.gone[box]
		live, changed := t.live, t.changed
		t.mu.Unlock()
		switch {
		case ok && r.Epoch == epoch:
			return r, nil
		case ok && r.Epoch > epoch:
			return route{}, errTicketStale(box)
		case buried && gone.Epoch >= epoch, !live:
			return route{}, errNotRunning(box, "")
		}
		select {
		case <-changed:
		case <-deadline:
			return route{}, errNotRunning(box, "")
		case <-ctx.Done():
			return route{}, ctx.Err()
		}
	}
}

// changedFrom waits up to patience until the route of a box is another one than r.
func (t *routeTable) changedFrom(ctx context.Context, r route, patience time.Duration) bool {
	deadline := time.After(patience)
	for {
		t.mu.Lock()
		now, ok := t.routes[r.Box]
		live, changed := t.live, t.changed
		t.mu.Unlock()
		if !ok || !now.leadsAs(r) {
			return true
		}
		if !live {
			return false
		}
		select {
		case <-changed:
		case <-deadline:
			return false
		case <-ctx.Done():
			return false
		}
	}
}

// nodes is every proxy that a route leads to.
func (t *routeTable) nodes() map[proxyKey]bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	nodes := map[proxyKey]bool{}
	for _, r := range t.routes {
		nodes[proxyKey{r.Node, r.Address}] = true
	}
	return nodes
}

func (t *routeTable) epoch(box carrel.BoxID) int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.routes[box].Epoch
}

// keepSaved writes the table to disk soon after it changed, and at the end.
func (t *routeTable) keepSaved(ctx context.Context) error {
	return keepSaved(ctx, t.dirty, t.save, func(err error) { t.log.Warn("routes not saved", "error", err) })
}

// keepSaved saves soon after each sign that something changed, at once if ctx ends meanwhile.
func keepSaved(ctx context.Context, dirty <-chan struct{}, save func() error, failed func(error)) error {
	for {
		select {
		case <-dirty:
		case <-ctx.Done():
			return nil
		}
		select {
		case <-time.After(saveDelay): // several changes make one write
		case <-ctx.Done():
		}
		if err := save(); err != nil {
			failed(err)
		}
	}
}

func (t *routeTable) save() error {
	t.mu.Lock()
	if !t.loaded || t.cluster == "" {
		t.mu.Unlock()
		return nil
	}
	file := routesFile{Version: routesVersion, Cluster: t.cluster, Routes: make([]route, 0, len(t.routes))}
	file.Revoked = t.revoked
	for _, k := range t.keys {
		file.TicketKeys = append(file.TicketKeys, k)
	}
	for _, r := range t.routes {
		file.Routes = append(file.Routes, r)
	}
	t.mu.Unlock()
	slices.SortFunc(file.Routes, func(a, b route) int {
		if a.Box < b.Box {
			return -1
		}
		return 1
	})
	data, err := json.Marshal(file)
	if err != nil {
		return err
	}
	if err := failpoint.Hit("gateway/routes/save"); err != nil {
		return err
	}
	return wholefile.Write(t.path, data, 0o600)
}

func (g *Gateway) learnKeys(raw [][]byte) {
	keys := publicKeys(raw)
	if len(keys) == 0 {
		return // absence is not an order to forget the keys
	}
	g.verifier.SetKeys(keys)
	g.routes.setKeys(keys)
}

// followControl joins if need be and follows the routes, again and again.
func (g *Gateway) followControl(ctx context.Context) error {
	waits := backoff.NewExponentialBackOff()
	waits.InitialInterval, waits.MaxInterval = 100*time.Millisecond, 5*time.Second
	for ctx.Err() == nil {
		var err error
		if g.identity.current() == nil {
			err = g.join(ctx)
		}
		if err == nil {
			err = g.watchRoutes(ctx, waits.Reset)
		}
		g.routes.setLive(false)
		if ctx.Err() == nil {
			wait := waits.NextBackOff()
			g.log.Warn("link to control is down", "error", err, "retry_in", wait)
			select {
			case <-time.After(wait):
			case <-ctx.Done():
			}
		}
	}
	return nil
}

func (g *Gateway) watchRoutes(ctx context.Context, alive func()) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := g.link.WatchRoutes(ctx, connect.NewRequest(&linkv1.WatchRoutesRequest{}))
	if err != nil {
		return err
	}
	defer func() { cancel(); stream.Close() }()
	for stream.Receive() {
		update := stream.Msg()
		g.learnKeys(update.GetTicketKeys())
		if g.revoked.set(update.GetRevokedPeers()) {
			g.proxies.revoke(&g.revoked)
		}
		g.routes.apply(update)
		g.grants.apply(update)
		g.sweep()
		if update.GetFull() {
			g.routes.setLive(true)
			g.shared.again()
		}
		for _, r := range update.GetRoutes() {
			g.agents.outdate(carrel.BoxID(r.GetBoxId()), r.GetEpoch(), r.GetGone())
		}
		alive()
	}
	if err := stream.Err(); err != nil {
		return err
	}
	return errors.New("control ended the stream of routes")
}
