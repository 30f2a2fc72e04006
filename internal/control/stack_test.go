package control_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/timestamppb"

	linkv1 "carrel.dev/carrel/api/carrel/link/v1"
	"carrel.dev/carrel/api/carrel/link/v1/linkv1connect"
	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	carrelv1connect "carrel.dev/carrel/api/carrel/v1/carrelv1connect"
	"carrel.dev/carrel/internal/auth"
	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/client"
	"carrel.dev/carrel/internal/control"
	"carrel.dev/carrel/internal/store"
	"carrel.dev/carrel/internal/store/storetest"
)

const (
	patience   = 3 * time.Minute
	joinText   = "a-join-token-of-some-length"
	testDigest = "sha256:1111111111111111111111111111111111111111111111111111111111111111"
)

// cluster is a database with its keys; replicas of control run on it.
type cluster struct {
	t     *testing.T
	db    storetest.Database
	kek   string
	admin string // API token
	join  string // file
	logs  *logBuffer
}

// logBuffer keeps what was logged.
type logBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	t.Parallel() // most of the time is spent waiting for heartbeats
	c := &cluster{t: t, db: storetest.NewDatabase(t), kek: auth.NewKEK(), join: filepath.Join(t.TempDir(), "join-token"), logs: &logBuffer{}}
	require.NoError(t, os.WriteFile(c.join, []byte(joinText+"\n"), 0o600))
	st := c.db.Open(t, store.Config{})
	text, _, err := control.Bootstrap(t.Context(), st, "")
	require.NoError(t, err)
	c.admin = text
	return c
}

// replica is one control with its TLS listener.
type replica struct {
	*cluster
	store  *store.Store
	server *control.Server
	http   *httptest.Server
	stop   func()
}

func (c *cluster) replica() *replica { return c.replicaWith(control.Quotas{}) }

func (c *cluster) replicaWith(quotas control.Quotas) *replica {
	t := c.t
	t.Helper()
	st := c.db.Open(t, store.Config{})
	keyring, err := auth.ParseKeyring(c.kek)
	require.NoError(t, err)
	server, err := control.New(control.Config{
		Store: st, Keyring: keyring, JoinTokenFile: c.join, Quotas: quotas, Version: "test", Logger: slog.New(slog.NewTextHandler(c.logs, nil)),
	})
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- server.Run(ctx) }()
	h := httptest.NewUnstartedServer(server.Handler())
	h.EnableHTTP2 = true
	h.TLS = server.TLSConfig()
	h.Config.ErrorLog = slog.NewLogLogger(slog.NewTextHandler(io.Discard, nil), slog.LevelInfo)
	h.StartTLS()
	stop := sync.OnceFunc(func() {
		cancel()
		require.NoError(t, <-done)
		h.Close()
	})
	t.Cleanup(stop)
	return &replica{cluster: c, store: st, server: server, http: h, stop: stop}
}

func newReplica(t *testing.T) *replica { return newCluster(t).replica() }

// httpClient speaks HTTP/2 to the replica, with a certificate if given.
func (r *replica) httpClient(cert *tls.Certificate) *http.Client {
	pool := x509.NewCertPool()
	require.True(r.t, pool.AppendCertsFromPEM(r.server.CAPEM()))
	cfg := &tls.Config{RootCAs: pool, ServerName: "localhost"}
	if cert != nil {
		cfg.Certificates = []tls.Certificate{*cert}
	}
	tr := &http.Transport{TLSClientConfig: cfg, ForceAttemptHTTP2: true}
	r.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

// bearer sends a token with every request.
type bearer struct {
	token string
	next  http.RoundTripper
}

func (b bearer) RoundTrip(req *http.Request) (*http.Response, error) {
	if b.token != "" {
		req = req.Clone(req.Context())
		req.Header.Set("Authorization", "Bearer "+b.token)
	}
	return b.next.RoundTrip(req)
}

// user is a client of every public service.
type user struct {
	r         *replica
	token     string
	http      *http.Client
	boxes     carrelv1connect.BoxServiceClient
	templates carrelv1connect.TemplateServiceClient
	images    carrelv1connect.ImageServiceClient
	ops       carrelv1connect.OperationServiceClient
	orgs      carrelv1connect.OrgServiceClient
	users     carrelv1connect.UserServiceClient
	tokens    carrelv1connect.TokenServiceClient
	nodes     carrelv1connect.NodeServiceClient
}

func (r *replica) as(token string) *user {
	hc := r.httpClient(nil)
	hc.Transport = bearer{token, hc.Transport}
	url := r.http.URL
	return &user{
		r: r, token: token, http: hc,
		boxes: carrelv1connect.NewBoxServiceClient(hc, url), templates: carrelv1connect.NewTemplateServiceClient(hc, url),
		images: carrelv1connect.NewImageServiceClient(hc, url), ops: carrelv1connect.NewOperationServiceClient(hc, url),
		orgs: carrelv1connect.NewOrgServiceClient(hc, url), users: carrelv1connect.NewUserServiceClient(hc, url),
		tokens: carrelv1connect.NewTokenServiceClient(hc, url), nodes: carrelv1connect.NewNodeServiceClient(hc, url),
	}
}

func (r *replica) asAdmin() *user { return r.as(r.admin) }

// newUser makes a user with a role in an organisation (empty role: in none) and gives their client.
func (r *replica) newUser(name, org string, role auth.Role) *user {
	t := r.t
	t.Helper()
	admin := r.asAdmin()
	_, err := admin.users.CreateUser(t.Context(), req(&carrelv1.CreateUserRequest{Name: name}))
	require.NoError(t, err)
	if role != auth.RoleNone {
		_, err = admin.orgs.SetMember(t.Context(), req(&carrelv1.SetMemberRequest{Org: org, User: name, Role: string(role)}))
		require.NoError(t, err)
	}
	token, err := admin.tokens.CreateToken(t.Context(), req(&carrelv1.CreateTokenRequest{User: name}))
	require.NoError(t, err)
	return r.as(token.Msg.GetSecret())
}

func req[T any](m *T) *connect.Request[T] { return connect.NewRequest(m) }

// rest makes a plain HTTP request, as curl would, and gives the status, headers and JSON.
func (u *user) rest(method, path, body string) (int, http.Header, map[string]any) {
	t := u.r.t
	t.Helper()
	status, header, data := u.raw(method, path, body, nil)
	out := map[string]any{}
	require.NoError(t, json.Unmarshal(data, &out), "%s %s: %s", method, path, data)
	return status, header, out
}

func (u *user) raw(method, path, body string, header map[string]string) (int, http.Header, []byte) {
	t := u.r.t
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), method, u.r.http.URL+path, strings.NewReader(body))
	require.NoError(t, err)
	if body != "" {
		request.Header.Set("Content-Type", "application/json")
	}
	for k, v := range header {
		request.Header.Set(k, v)
	}
	resp, err := u.http.Do(request)
	require.NoError(t, err)
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return resp.StatusCode, resp.Header, data
}

// code and reason of an error as a client sees it.
func code(err error) carrel.Code { return carrel.CodeOf(client.Error(err)) }
func reason(err error) string    { return carrel.ReasonOf(client.Error(err)) }

func message(t *testing.T, err error) string {
	t.Helper()
	var ce *connect.Error
	require.ErrorAs(t, err, &ce)
	return ce.Message()
}

// catalogue keeps an image that is ready and the template base of it, in the system organisation.
func (r *replica) catalogue() {
	t := r.t
	t.Helper()
	ctx := t.Context()
	cl, err := r.store.Cluster(ctx)
	require.NoError(t, err)
	_, err = r.store.CreateImage(ctx, store.SystemScope(), store.NewImage{Org: cl.SystemOrg, Name: "base", Source: "build", Digest: testDigest, SizeBytes: 1 << 20})
	require.NoError(t, err)
	_, err = r.asAdmin().templates.PushTemplate(ctx, req(&carrelv1.PushTemplateRequest{Org: "system", Yaml: "name: base\nimage: base\nenv:\n  FROM: template\nresources:\n  memory: 256MiB\n  home: 64MiB\n"}))
	require.NoError(t, err)
}

// machine is a node that does what it is told, slowly: when the test says so.
type machine struct {
	r        *replica
	id       carrel.NodeID
	cert     tls.Certificate
	join     *linkv1.JoinResponse
	link     linkv1connect.NodeLinkClient
	sequence int64
}

func certificate(t *testing.T, key []byte, resp *linkv1.JoinResponse) tls.Certificate {
	t.Helper()
	cert, err := tls.X509KeyPair([]byte(resp.GetCertificatePem()), key)
	require.NoError(t, err)
	return cert
}

func (r *replica) joinClient(cert *tls.Certificate) linkv1connect.JoinServiceClient {
	return linkv1connect.NewJoinServiceClient(r.httpClient(cert), r.http.URL)
}

func (r *replica) joinAs(role, token, name string) (tls.Certificate, *linkv1.JoinResponse, error) {
	t := r.t
	t.Helper()
	key, csr, err := auth.NewCSR()
	require.NoError(t, err)
	resp, err := r.joinClient(nil).Join(t.Context(), req(&linkv1.JoinRequest{Token: token, Role: role, Name: name, CsrPem: string(csr)}))
	if err != nil {
		return tls.Certificate{}, nil, err
	}
	return certificate(t, key, resp.Msg), resp.Msg, nil
}

// newMachine joins a node, with room and the image of the catalogue.
func (r *replica) newMachine(name string) *machine {
	t := r.t
	t.Helper()
	cert, resp, err := r.joinAs("node", joinText, name)
	require.NoError(t, err)
	m := &machine{r: r, id: carrel.NodeID(resp.GetId()), cert: cert, join: resp, link: linkv1connect.NewNodeLinkClient(r.httpClient(&cert), r.http.URL)}
	m.report(&linkv1.ReportRequest{Facts: &linkv1.NodeFacts{
		CpuMillis: 8000, MemoryBytes: 64 * carrel.GiB, DiskBytes: 1000 * carrel.GiB, DiskFreeBytes: 1000 * carrel.GiB,
		ImageDigests: []string{testDigest}, ProxyAddress: "127.0.0.1:7072", Version: "test",
	}})
	return m
}

func (m *machine) report(r *linkv1.ReportRequest) {
	m.r.t.Helper()
	_, err := m.link.Report(m.r.t.Context(), req(r))
	require.NoError(m.r.t, err)
}

// assign places the next run of a box on the machine, as the reconciler would.
func (m *machine) assign(id string) *store.Box {
	t := m.r.t
	t.Helper()
	ctx := t.Context()
	lease, ok, err := m.r.store.AcquireLease(ctx, "boxes/0", "test", time.Minute)
	require.NoError(t, err)
	require.True(t, ok)
	box := m.box(id)
	a := store.AssignRun{Box: box.ID, Node: m.id, Epoch: box.Epoch, Generation: box.Generation}
	if box.Snapshot != nil {
		a.Snapshot, a.WithMemory = box.Snapshot.ID, box.StartsWithMemory()
	}
	_, err = m.r.store.AssignRun(ctx, lease, a)
	require.NoError(t, err)
	return m.box(id)
}

// purge ends a box that is wanted deleted, as the reconciler would.
func (m *machine) purge(id string) {
	t := m.r.t
	t.Helper()
	lease, ok, err := m.r.store.AcquireLease(t.Context(), "boxes/0", "test", time.Minute)
	require.NoError(t, err)
	require.True(t, ok)
	require.NoError(t, m.r.store.PurgeBox(t.Context(), lease, carrel.BoxID(id)))
}

func (m *machine) box(id string) *store.Box {
	m.r.t.Helper()
	box, err := m.r.store.GetBox(m.r.t.Context(), store.SystemScope(), carrel.BoxID(id))
	require.NoError(m.r.t, err)
	return box
}

// runReport is the next report of the box's run.
func (m *machine) runReport(id string, phase carrel.Phase) *linkv1.RunReport {
	box := m.box(id)
	m.sequence++
	return &linkv1.RunReport{
		RunId: string(box.Run.ID), Epoch: box.Run.Epoch, Sequence: m.sequence, Phase: string(phase),
		Generation: box.Generation, Time: timestamppb.Now(),
	}
}

func (m *machine) reportRuns(runs ...*linkv1.RunReport) {
	m.r.t.Helper()
	m.report(&linkv1.ReportRequest{Runs: runs})
}

func (m *machine) says(id string, phase carrel.Phase) {
	m.r.t.Helper()
	m.report(&linkv1.ReportRequest{Runs: []*linkv1.RunReport{m.runReport(id, phase)}})
}

func (m *machine) run(id string) {
	m.r.t.Helper()
	m.assign(id)
	m.says(id, carrel.PhaseRunning)
}

// snapshot commits a snapshot of the box's run.
func (m *machine) snapshot(id string, kind carrel.SnapshotKind) *linkv1.CommitSnapshotRequest {
	t := m.r.t
	t.Helper()
	box := m.box(id)
	r := &linkv1.CommitSnapshotRequest{
		SnapshotId: string(carrel.NewSnapshotID()), BoxId: id, RunId: string(box.Run.ID), Epoch: box.Run.Epoch, Kind: string(kind),
		SizeBytes: 1 << 20, ManifestSha256: strings.Repeat("a", 64), RuntimeVersion: "test", Time: timestamppb.Now(), Generation: box.Generation,
	}
	resp, err := m.link.CommitSnapshot(t.Context(), req(r))
	require.NoError(t, err)
	require.True(t, resp.Msg.GetAccepted(), resp.Msg.GetReason())
	return r
}

// pause, stop and delete do what the box's intent wants.
func (m *machine) pause(id string) {
	m.snapshot(id, carrel.SnapshotMemory)
	m.says(id, carrel.PhasePaused)
}

func (m *machine) halt(id string) {
	m.snapshot(id, carrel.SnapshotDisk)
	m.says(id, carrel.PhaseStopped)
}

// create makes a box and gives its id.
func (u *user) create(name string) string {
	t := u.r.t
	t.Helper()
	op, err := u.boxes.CreateBox(t.Context(), req(&carrelv1.CreateBoxRequest{Name: name}))
	require.NoError(t, err)
	require.Equal(t, "create", op.Msg.GetVerb())
	return op.Msg.GetTargetId()
}

func (u *user) get(id string) *carrelv1.Box {
	t := u.r.t
	t.Helper()
	resp, err := u.boxes.GetBox(t.Context(), req(&carrelv1.GetBoxRequest{Id: id}))
	require.NoError(t, err)
	return resp.Msg
}

func (u *user) state(id string) string {
	u.r.t.Helper()
	return strings.TrimPrefix(u.get(id).GetState().String(), "STATE_")
}

func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

func jsonOf(kv ...any) string {
	m := map[string]any{}
	for i := 0; i < len(kv); i += 2 {
		m[fmt.Sprint(kv[i])] = kv[i+1]
	}
	data, _ := json.Marshal(m)
	return string(data)
}
