package store_test

import (
	"crypto/sha256"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/store"
	"carrel.dev/carrel/internal/store/storetest"
)

const digest = "sha256:0000000000000000000000000000000000000000000000000000000000000001"

// clock is a clock that a test moves. Each look moves it by a millisecond.
type clock struct {
	mu  sync.Mutex // guards now
	now time.Time
}

func newClock() *clock { return &clock{now: time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)} }

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(time.Millisecond)
	return c.now
}

func (c *clock) Advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// world is a store with what most tests need: people, a template, a node, a lease.
type world struct {
	*store.Store
	t        testing.TB
	clock    *clock
	db       storetest.Database
	cluster  store.Cluster
	org      carrel.OrgID
	scope    store.Scope // of the administrator, in org alone
	operator store.Scope
	template store.Template
	node     carrel.NodeID
	lease    store.Lease
	sequence int64
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{t: t, clock: newClock(), db: storetest.NewDatabase(t)}
	w.Store = w.db.Open(t, store.Config{Now: w.clock.Now, CPUOvercommit: 4})
	boot, err := w.Bootstrap(t.Context(), store.Bootstrap{})
	require.NoError(t, err)
	w.cluster, w.org = boot.Cluster, boot.Cluster.DefaultOrg
	w.scope = store.Scope{User: boot.Admin, Orgs: []carrel.OrgID{w.org}}
	w.operator = store.Scope{User: boot.Admin, Platform: true}
	w.template, err = w.PushTemplate(t.Context(), store.SystemScope(), store.Request{}, store.Template{
		Org: boot.Cluster.SystemOrg, Name: "base", Image: "base", ImageDigest: digest, Resources: carrel.DefaultResources, Sudo: true,
		Startup: []string{"echo hello"},
	}, false)
	require.NoError(t, err)
	w.node = w.join("n1")
	w.lease = w.take("boxes/0", "one")
	return w
}

// join makes a node with room for 16 boxes of the default size.
func (w *world) join(name string) carrel.NodeID {
	w.t.Helper()
	node, err := w.JoinNode(w.t.Context(), store.Join{Name: name, Region: "here"})
	require.NoError(w.t, err)
	require.NoError(w.t, w.RecordReport(w.t.Context(), node.ID, []store.Report{{Facts: facts(16)}}))
	return node.ID
}

// facts of a node with room for a number of boxes of the default size.
func facts(boxes int64) *store.NodeFacts {
	r := carrel.DefaultResources
	return &store.NodeFacts{
		Version: "test", CPUMillis: boxes * r.CPUMillis, MemoryBytes: boxes * r.MemoryBytes, DiskBytes: boxes * r.DiskBytes(),
		DiskFreeBytes: boxes * r.DiskBytes(), Images: []string{digest}, ProxyAddress: "127.0.0.1:7072",
	}
}

func (w *world) take(name, holder string) store.Lease {
	w.t.Helper()
	lease, ok, err := w.AcquireLease(w.t.Context(), name, holder, 1000*time.Hour)
	require.NoError(w.t, err)
	require.True(w.t, ok)
	return lease
}

func (w *world) newBox(name string) store.NewBox {
	return store.NewBox{Org: w.org, Name: name, TemplateID: w.template.ID, ImageDigest: digest, Resources: carrel.DefaultResources}
}

func (w *world) create(name string) *store.Box {
	w.t.Helper()
	op, err := w.CreateBox(w.t.Context(), w.scope, w.newBox(name))
	require.NoError(w.t, err)
	return w.box(carrel.BoxID(op.TargetID))
}

func (w *world) box(id carrel.BoxID) *store.Box {
	w.t.Helper()
	b, err := w.GetBox(w.t.Context(), store.SystemScope(), id)
	require.NoError(w.t, err)
	return b
}

// assignment is what a reconciler would do with the box as it is.
func assignment(b *store.Box, node carrel.NodeID) store.AssignRun {
	a := store.AssignRun{Box: b.ID, Node: node, Epoch: b.Epoch, Generation: b.Generation, WithMemory: b.StartsWithMemory()}
	if b.Snapshot != nil {
		a.Snapshot = b.Snapshot.ID
	}
	return a
}

func (w *world) assign(id carrel.BoxID) carrel.RunID {
	w.t.Helper()
	run, err := w.AssignRun(w.t.Context(), w.lease, assignment(w.box(id), w.node))
	require.NoError(w.t, err)
	return run
}

// saw makes a report about the live run of a box.
func (w *world) saw(id carrel.BoxID, phase carrel.Phase, change ...func(*store.RunReport)) store.Report {
	w.t.Helper()
	b := w.box(id)
	w.sequence++
	r := store.RunReport{Run: b.Run.ID, Epoch: b.Run.Epoch, Sequence: w.sequence, Phase: phase, Generation: b.Generation, At: w.clock.Now()}
	for _, f := range change {
		f(&r)
	}
	return store.Report{Runs: []store.RunReport{r}}
}

func (w *world) report(id carrel.BoxID, phase carrel.Phase, change ...func(*store.RunReport)) {
	w.t.Helper()
	require.NoError(w.t, w.RecordReport(w.t.Context(), w.node, []store.Report{w.saw(id, phase, change...)}))
}

func (w *world) running(name string) *store.Box {
	w.t.Helper()
	b := w.create(name)
	w.assign(b.ID)
	w.report(b.ID, carrel.PhaseRunning)
	return w.box(b.ID)
}

func (w *world) ask(id carrel.BoxID, verb carrel.Verb, change ...func(*store.SetIntent)) *store.Operation {
	w.t.Helper()
	set := store.SetIntent{Box: id, Verb: verb, Intent: carrel.IntentOf(verb), Restart: verb == carrel.VerbRestart}
	for _, f := range change {
		f(&set)
	}
	op, err := w.SetIntent(w.t.Context(), w.scope, set)
	require.NoError(w.t, err)
	return op
}

func proposal(b *store.Box, kind carrel.SnapshotKind) store.CommitSnapshot {
	return store.CommitSnapshot{
		ID: carrel.NewSnapshotID(), Box: b.ID, Run: b.Run.ID, Epoch: b.Run.Epoch, Kind: kind, SizeBytes: 1 << 20, ManifestSHA256: "00",
		RuntimeVersion: "r1", Generation: b.Generation,
	}
}

func (w *world) commit(id carrel.BoxID, kind carrel.SnapshotKind) carrel.SnapshotID {
	w.t.Helper()
	c := proposal(w.box(id), kind)
	ok, reason, err := w.CommitSnapshot(w.t.Context(), w.node, c)
	require.NoError(w.t, err)
	require.True(w.t, ok, reason)
	return c.ID
}

// paused makes a box that was paused.
func (w *world) paused(name string) *store.Box {
	w.t.Helper()
	b := w.running(name)
	w.ask(b.ID, carrel.VerbPause)
	w.commit(b.ID, carrel.SnapshotMemory)
	w.report(b.ID, carrel.PhasePaused)
	return w.box(b.ID)
}

func (w *world) status(op *store.Operation) carrel.OperationStatus {
	w.t.Helper()
	now, err := w.GetOperation(w.t.Context(), w.scope, op.ID)
	require.NoError(w.t, err)
	return now.Status()
}

func (w *world) desired() store.DesiredSet {
	w.t.Helper()
	set, err := w.DesiredSet(w.t.Context(), w.node)
	require.NoError(w.t, err)
	return set
}

func (w *world) due() []carrel.BoxID {
	w.t.Helper()
	boxes, err := w.DueBoxes(w.t.Context(), 0, 1, 1000)
	require.NoError(w.t, err)
	var ids []carrel.BoxID
	for _, b := range boxes {
		ids = append(ids, b.ID)
	}
	return ids
}

func (w *world) state(id carrel.BoxID) carrel.State {
	w.t.Helper()
	return carrel.StateOf(&w.box(id).BoxView)
}

// sql runs a statement as the owner, past everything.
func (w *world) sql(statement string, args ...any) {
	w.t.Helper()
	conn, err := pgx.Connect(w.t.Context(), w.db.OwnerURL)
	require.NoError(w.t, err)
	defer func() { _ = conn.Close(w.t.Context()) }()
	_, err = conn.Exec(w.t.Context(), statement, args...)
	require.NoError(w.t, err)
}

// otherOrg makes an organisation with an owner of its own.
func (w *world) otherOrg(name string) store.Scope {
	w.t.Helper()
	user, err := w.CreateUser(w.t.Context(), w.operator, name+"-owner", false)
	require.NoError(w.t, err)
	org, err := w.CreateOrg(w.t.Context(), w.operator, name, user.ID)
	require.NoError(w.t, err)
	return store.Scope{User: user.ID, Orgs: []carrel.OrgID{org.ID}}
}

func request(id, content string) store.Request {
	sum := sha256.Sum256([]byte(content))
	return store.Request{ID: id, Method: "Test", Hash: sum[:]}
}

func requireCode(t testing.TB, err error, code carrel.Code, reason string) {
	t.Helper()
	require.Error(t, err)
	require.Equal(t, fmt.Sprint(code, " ", reason), fmt.Sprint(carrel.CodeOf(err), " ", carrel.ReasonOf(err)), "%v", err)
}
