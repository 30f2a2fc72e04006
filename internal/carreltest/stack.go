package carreltest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/auth"
	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/client"
	"carrel.dev/carrel/internal/control"
	"carrel.dev/carrel/internal/leftover"
	"carrel.dev/carrel/internal/store"
	"carrel.dev/carrel/internal/store/storetest"
)

const (
	// Patience is how long the ring may take for anything that is waited for, on a machine that has much else to do.
	Patience = 5 * time.Minute
	// Org is the organisation that Admin works in.
	Org = "default"
	// Template is the name of the template of boxes, and Image that of its image.
	Template = "base"
	Image    = "base"
	// verbose makes every part write its log to the test's standard error.
	verbose = "CARREL_TEST_VERBOSE"
	// leaseTime is how long the shards of a killed reconciler rest.
	leaseTime = 2 * time.Second
)

const (
	imageYAML    = "name: " + Image + "\nsuite: bookworm\n"
	templateYAML = "name: " + Template + "\nimage: " + Image + "\nresources:\n  cpu: 0.1\n  memory: 128MiB\n  home: 32MiB\n  root: 32MiB\n  processes: 64\n  tmp: 1MiB\n  shm: 1MiB\n"
)

// Options of Start. Zero: one of each part.
type Options struct {
	Controls, Reconcilers, Gateways, Nodes int
	// OwnPostgres gives the ring a PostgreSQL of its own, which can be stopped; it takes a second or two to make.
	OwnPostgres bool
	// PoolBytes is the size of each node's pool; default 4 GiB, which is room for 20 boxes. It is reserved on the disk.
	PoolBytes int64
	// LeaseTTL of the reconcilers; default 2 s.
	LeaseTTL time.Duration
}

// Stack is the whole ring. Its methods may be called from any goroutine, but those that end the test on an error
// from the test's own only.
type Stack struct {
	Controls    []*Control
	Reconcilers []*Part
	Gateways    []*Gateway
	Nodes       []*Node
	// Postgres is nil unless the ring has its own.
	Postgres *Part
	// URL is the front door: it leads to any gateway that is up.
	URL string
	// Front is the wire behind URL.
	Front *Wire
	// Admin is an operator, and owner of Org.
	Admin      *client.Client
	AdminToken string
	// OwnerURL connects the superuser to the database, for a test that looks into it.
	OwnerURL string

	t       testing.TB
	options Options
	dir     string
	log     *slog.Logger
	db      storetest.Database
	kek     string
	caFile  string
	join    string // file

	databases *replicas // sockets of PostgreSQL
	controls  *replicas
	gateways  *replicas
	between   atomic.Pointer[func(http.Handler) http.Handler]
	agents    *agents
	journal   *journal
}

// Main runs the tests of a package that starts rings, and fails if a goroutine is left afterwards. It is all that TestMain has
// to do: os.Exit(carreltest.Main(m)).
func Main(m *testing.M) int { return leftover.Main(m, storetest.Stop) }

// Start starts a ring with an image and a template, waits until boxes can be made on every node, and ends everything at the
// end of the test.
func Start(t testing.TB, o Options) *Stack {
	t.Helper()
	for _, n := range []*int{&o.Controls, &o.Reconcilers, &o.Gateways, &o.Nodes} {
		*n = max(*n, 1)
	}
	if o.PoolBytes == 0 {
		o.PoolBytes = 4 * carrel.GiB
	}
	if o.LeaseTTL == 0 {
		o.LeaseTTL = leaseTime
	}
	s := &Stack{t: t, options: o, log: slog.New(slog.DiscardHandler), kek: auth.NewKEK(), controls: newReplicas("tcp"), gateways: newReplicas("tcp"), journal: newJournal()}
	if os.Getenv(verbose) != "" {
		s.log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	dir, lock, err := takePlace()
	require.NoError(t, err)
	s.dir = dir
	t.Cleanup(func() {
		if err := errors.Join(clearAway(dir), lock.Close()); err != nil {
			t.Errorf("clear away the ring: %v", err)
		}
	})
	s.join = s.path("join-token")
	require.NoError(t, os.WriteFile(s.join, []byte(auth.NewJoinToken().Text+"\n"), 0o600))
	s.agents = newAgents(s.path("homes"), s.log)
	s.startDatabase()
	s.startControls()
	s.startReconcilers()
	s.startGateways()
	s.startNodes()
	s.Admin = s.Client(s.AdminToken, Org)
	s.furnish()
	return s
}

func (s *Stack) path(parts ...string) string {
	return filepath.Join(append([]string{s.dir}, parts...)...)
}

// startDatabase makes the database and the administrator.
func (s *Stack) startDatabase() {
	t := s.t
	if s.options.OwnPostgres {
		s.startPostgres()
	} else {
		s.db = storetest.NewDatabase(t)
	}
	s.OwnerURL = s.db.OwnerURL
	socket, err := socketOf(s.db.SystemURL)
	require.NoError(t, err)
	s.databases = newReplicas("unix", socket)
	st, err := store.Open(t.Context(), store.Config{SystemURL: s.db.SystemURL, Logger: s.log})
	require.NoError(t, err)
	defer st.Close()
	s.AdminToken, _, err = control.Bootstrap(t.Context(), st, "")
	require.NoError(t, err)
}

// furnish makes the image and the template, as an administrator would.
func (s *Stack) furnish() {
	t := s.t
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), Patience)
	defer cancel()
	built, err := s.Admin.Images.BuildImage(ctx, connect.NewRequest(&carrelv1.BuildImageRequest{Org: "system", Yaml: imageYAML}))
	require.NoError(t, err)
	_, err = s.Admin.WaitOperation(ctx, built.Msg, 0, nil)
	require.NoError(t, err)
	_, err = s.Admin.Templates.PushTemplate(ctx, connect.NewRequest(&carrelv1.PushTemplateRequest{Org: "system", Yaml: templateYAML}))
	require.NoError(t, err)
	s.Eventually("every node has the image and is ready", func() error {
		list, err := s.Admin.Nodes.ListNodes(ctx, connect.NewRequest(&carrelv1.ListNodesRequest{}))
		if err != nil {
			return err
		}
		if len(list.Msg.GetNodes()) < len(s.Nodes) {
			return fmt.Errorf("%d nodes have joined", len(list.Msg.GetNodes()))
		}
		for _, n := range list.Msg.GetNodes() {
			if len(n.GetImageDigests()) == 0 {
				return fmt.Errorf("node %s has no image", n.GetName())
			}
		}
		return s.Ready(ctx)
	})
}

// Ready says which part that was started is not ready yet.
func (s *Stack) Ready(ctx context.Context) error {
	for _, c := range s.Controls {
		if server := c.server.Load(); c.Running() && server != nil {
			if err := server.Ready(ctx); err != nil {
				return fmt.Errorf("%s: %w", c.Name(), err)
			}
		}
	}
	for _, n := range s.Nodes {
		if daemon := n.daemon.Load(); n.Running() && daemon != nil {
			if err := daemon.Ready(ctx); err != nil {
				return fmt.Errorf("%s: %w", n.Name(), err)
			}
		}
	}
	for _, g := range s.Gateways {
		if gate := g.gateway.Load(); g.Running() && gate != nil {
			if err := gate.Ready(ctx); err != nil {
				return fmt.Errorf("%s: %w", g.Name(), err)
			}
		}
	}
	return nil
}

// Client speaks to the front door with a token, in an organisation; it is closed at the end of the test.
func (s *Stack) Client(token, org string) *client.Client {
	s.t.Helper()
	c, err := client.New(client.Config{Context: client.Context{URL: s.URL, Token: token, Org: org}})
	require.NoError(s.t, err)
	s.t.Cleanup(c.Close)
	return c
}

// NewUser makes a user with a role in an organisation (empty: in none), and gives their token.
func (s *Stack) NewUser(name, org, role string) (token string) {
	t := s.t
	t.Helper()
	_, err := s.Admin.Users.CreateUser(t.Context(), connect.NewRequest(&carrelv1.CreateUserRequest{Name: name}))
	require.NoError(t, err)
	if role != "" {
		_, err = s.Admin.Orgs.SetMember(t.Context(), connect.NewRequest(&carrelv1.SetMemberRequest{Org: org, User: name, Role: role}))
		require.NoError(t, err)
	}
	answer, err := s.Admin.Tokens.CreateToken(t.Context(), connect.NewRequest(&carrelv1.CreateTokenRequest{User: name}))
	require.NoError(t, err)
	return answer.Msg.GetSecret()
}

// Eventually looks until f answers nil, and ends the test with its last error when Patience is over.
func (s *Stack) Eventually(what string, f func() error) {
	s.t.Helper()
	require.NoError(s.t, Until(s.t.Context(), f), "this did not come to be: %s", what)
}

// Until looks until f answers nil, for at most Patience, and gives its last error.
func Until(ctx context.Context, f func() error) error {
	ctx, cancel := context.WithTimeout(ctx, Patience)
	defer cancel()
	again := time.NewTicker(10 * time.Millisecond)
	defer again.Stop()
	for {
		err := f()
		if err == nil {
			return nil
		}
		select {
		case <-again.C:
		case <-ctx.Done():
			return errors.Join(err, ctx.Err())
		}
	}
}

// Between puts something between control's listeners and what answers there, in every replica; nil takes it out.
func (s *Stack) Between(f func(next http.Handler) http.Handler) {
	if f == nil {
		s.between.Store(nil)
		return
	}
	s.between.Store(&f)
}

func (s *Stack) throughBetween(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if f := s.between.Load(); f != nil {
			(*f)(next).ServeHTTP(w, r)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// atEnd ends a part when the test ends.
func (s *Stack) atEnd(p *Part) {
	s.t.Cleanup(func() {
		if err := p.Stop(); err != nil {
			s.t.Errorf("%v", err)
		}
	})
}
