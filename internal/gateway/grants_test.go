package gateway_test

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ssh"
	"google.golang.org/protobuf/types/known/timestamppb"

	linkv1 "carrel.dev/carrel/api/carrel/link/v1"
	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/auth"
	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/client"
	"carrel.dev/carrel/internal/gateway"
)

// wait is how long a test waits for what takes moments.
const wait = within

func newKey(t *testing.T) (ssh.PublicKey, string) {
	t.Helper()
	public, _, err := ed25519.GenerateKey(nil)
	require.NoError(t, err)
	key, err := ssh.NewPublicKey(public)
	require.NoError(t, err)
	return key, string(ssh.MarshalAuthorizedKey(key))
}

func clientCode(err error) carrel.Code { return carrel.CodeOf(client.Error(err)) }

// access is what the stack's control says of users besides routes, and how it answers for them.
type access struct {
	grants  map[string]*linkv1.Grant
	revoked []string
	cas     []string
	refuse  bool // every token
	audit   []*linkv1.AuditEntry
	wakes   int
	woken   func() (carrel.State, error) // under the control's lock
	found   carrel.State                 // of the stack's box, as FindBox tells testUser; empty: it is not found
	host    []byte
}

func (a *access) fill(update *linkv1.RoutesUpdate) {
	for _, g := range a.grants {
		update.Grants = append(update.Grants, g)
	}
	update.RevokedTokens, update.SshUserCaKeys = a.revoked, a.cas
}

// tell takes what the update says of users into what gateways are told.
func (c *fakeControl) tell(update *linkv1.RoutesUpdate) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.users.grants == nil {
		c.users.grants = map[string]*linkv1.Grant{}
	}
	for _, g := range update.GetGrants() {
		c.users.grants[g.GetUserId()] = g
	}
	c.users.revoked = append(c.users.revoked, update.GetRevokedTokens()...)
	c.users.cas = append(c.users.cas, update.GetSshUserCaKeys()...)
	close(c.changed)
	c.changed = make(chan struct{})
}

func (c *fakeControl) GetSecrets(context.Context, *connect.Request[linkv1.GetSecretsRequest]) (*connect.Response[linkv1.GetSecretsResponse], error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.users.host == nil {
		_, private, err := ed25519.GenerateKey(nil)
		if err != nil {
			return nil, err
		}
		block, err := ssh.MarshalPrivateKey(private, "")
		if err != nil {
			return nil, err
		}
		c.users.host = pem.EncodeToMemory(block)
	}
	return connect.NewResponse(&linkv1.GetSecretsResponse{SshHostKeys: [][]byte{c.users.host}, CookieKeys: [][]byte{make([]byte, 32)}}), nil
}

func (c *fakeControl) FindBox(_ context.Context, req *connect.Request[linkv1.FindBoxRequest]) (*connect.Response[linkv1.FindBoxResponse], error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.users.found == "" || req.Msg.GetUserId() != string(testUser) {
		e := carrel.NotFound("box", req.Msg.GetBox())
		return nil, connect.NewError(connect.CodeNotFound, errors.New(e.Message))
	}
	route := &linkv1.Route{BoxId: string(c.stack.box), OrgId: string(testOrg), BoxName: "dev", Gone: true, Wake: true}
	if r := c.routes[c.stack.box]; !r.GetGone() {
		route = r
	}
	return connect.NewResponse(&linkv1.FindBoxResponse{Route: route, State: string(c.users.found)}), nil
}

func (c *fakeControl) WakeBox(context.Context, *connect.Request[linkv1.WakeBoxRequest]) (*connect.Response[linkv1.WakeBoxResponse], error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.users.wakes++
	state, err := c.users.woken()
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&linkv1.WakeBoxResponse{State: string(state)}), nil
}

func (c *fakeControl) Audit(_ context.Context, req *connect.Request[linkv1.AuditRequest]) (*connect.Response[linkv1.AuditResponse], error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.users.audit = append(c.users.audit, req.Msg.GetEntries()...)
	return connect.NewResponse(&linkv1.AuditResponse{}), nil
}

// right is what a request shows to a node's proxy.
func (p *fakeProxy) right(r *http.Request) (auth.Ticket, error) {
	text := r.Header.Get("Carrel-Grant")
	if text == "" {
		return p.stack.verifier.Verify(r.Header.Get("Carrel-Ticket"), time.Now())
	}
	g, err := p.stack.verifier.VerifyGrant(text, time.Now())
	if err != nil {
		return auth.Ticket{}, err
	}
	epoch, err := strconv.ParseInt(r.Header.Get("Carrel-Epoch"), 10, 64)
	if err == nil && !g.Has(testOrg, auth.ScopeView) {
		err = errors.New("the grant is not for the box")
	}
	return auth.Ticket{Box: carrel.BoxID(r.Host), Epoch: epoch, User: g.User}, err
}

// grant is a user's, as control signs it.
func (s *stack) grant(user carrel.UserID, scope string, keys ...string) *linkv1.Grant {
	s.t.Helper()
	now := time.Now()
	g := &linkv1.Grant{UserId: string(user), UserName: "ada", IssueTime: timestamppb.New(now), ExpireTime: timestamppb.New(now.Add(time.Hour)), SshKeys: keys}
	if scope == "" {
		g.Gone = true
		return g
	}
	g.Orgs = []*linkv1.OrgScope{{OrgId: string(testOrg), OrgName: "default", Scope: scope}}
	text, err := s.signer.SignGrant(auth.Grant{User: user, Orgs: map[carrel.OrgID]string{testOrg: scope}, Issued: now, Expires: now.Add(time.Hour)})
	require.NoError(s.t, err)
	g.Jwt = text
	return g
}

// known tells the gateway of the stack's box whose it is and how it is called.
func (s *stack) known() {
	r := s.route(1)
	r.OrgId, r.BoxName, r.Wake, r.KeepShellSeconds = string(testOrg), "dev", true, 600
	s.control.setRoute(r)
}

func eventually(t *testing.T, what func() bool, why string) {
	t.Helper()
	require.Eventually(t, what, wait, 5*time.Millisecond, why)
}

// A user who never came through this gateway before logs in while control is away since before the gateway's start.
func TestARestartedGatewayLetsUsersInWithoutControl(t *testing.T) {
	s := newStack(t)
	key, line := newKey(t)
	s.known()
	s.control.tell(&linkv1.RoutesUpdate{Grants: []*linkv1.Grant{s.grant(testUser, auth.ScopeExec, line)}, SshUserCaKeys: []string{line}})
	eventually(t, func() bool { _, ok := gateway.UserOfKey(s.gateway, key); return ok }, "the grant comes")
	path := filepath.Join(s.dir, "grants.json")
	eventually(t, func() bool { data, _ := os.ReadFile(path); return len(data) > 300 }, "the grant is on disk")
	eventually(t, func() bool { return gateway.HasSecrets(s.gateway) }, "the secrets come")
	info, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, fs.FileMode(0o600), info.Mode().Perm())
	info, err = os.Stat(filepath.Join(s.dir, "secrets.json"))
	require.NoError(t, err)
	require.Equal(t, fs.FileMode(0o600), info.Mode().Perm())

	s.stopControl()
	s.stopGateway()
	s.startGateway()
	user, ok := gateway.UserOfKey(s.gateway, key)
	require.True(t, ok)
	require.Equal(t, testUser, user)
	require.True(t, gateway.HasSecrets(s.gateway), "host and cookie keys are there")
	require.Equal(t, 1, gateway.SSHCAs(s.gateway))
	for _, name := range []string{"dev", string(s.box)} {
		for _, org := range []string{"", "default", string(testOrg)} {
			box, err := gateway.FindBox(testContext(t), s.gateway, user, name, org)
			require.NoError(t, err)
			require.Equal(t, s.box, box)
		}
	}
	p, err := gateway.PassOf(s.gateway, user, s.box, auth.ScopeExec)
	require.NoError(t, err)
	conn, err := p.Reach(testContext(t), "agent")
	require.NoError(t, err)
	require.NoError(t, conn.Close())
	require.Equal(t, p.Headers().Get("Carrel-Epoch"), "1")
}

func TestGrantsOfAnotherClusterAreNotUsed(t *testing.T) {
	s := newStack(t)
	key, line := newKey(t)
	s.control.tell(&linkv1.RoutesUpdate{Grants: []*linkv1.Grant{s.grant(testUser, auth.ScopeExec, line)}})
	path := filepath.Join(s.dir, "grants.json")
	eventually(t, func() bool { data, _ := os.ReadFile(path); return len(data) > 300 }, "the grant is on disk")
	s.stopControl()
	s.stopGateway()
	data, err := os.ReadFile(path)
	require.NoError(t, err)
	good := map[string]any{}
	require.NoError(t, json.Unmarshal(data, &good))
	for name, change := range map[string]func(map[string]any){
		"cluster": func(f map[string]any) { f["cluster"] = "another" },
		"version": func(f map[string]any) { f["version"] = 99 },
		"unknown": func(f map[string]any) { f["more"] = true },
	} {
		file := map[string]any{}
		for k, v := range good {
			file[k] = v
		}
		change(file)
		text, err := json.Marshal(file)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(path, text, 0o600))
		s.startGateway()
		_, ok := gateway.UserOfKey(s.gateway, key)
		require.False(t, ok, name)
		s.stopGateway()
	}
}

// What is foreign is as what is not there, with control and without.
func TestAForeignBoxIsAsAnUnknownOne(t *testing.T) {
	s := newStack(t)
	s.known()
	const stranger = carrel.UserID("u0000000000000000002")
	foreign := s.grant(stranger, auth.ScopeExec)
	foreign.Orgs[0].OrgId, foreign.Orgs[0].OrgName = "o0000000000000000002", "other"
	s.control.tell(&linkv1.RoutesUpdate{Grants: []*linkv1.Grant{s.grant(testUser, auth.ScopeExec), foreign}})
	eventually(t, func() bool { _, err := gateway.PassOf(s.gateway, testUser, s.box, auth.ScopeView); return err == nil }, "the grants come")
	unknown := carrel.NewBoxID()
	same := func(a, b error, nameA, nameB string) {
		t.Helper()
		var x, y *carrel.Error
		require.True(t, errors.As(a, &x) && errors.As(b, &y))
		plain := func(e *carrel.Error, name string) *carrel.Error {
			c := *e
			c.Message, c.Cause = strings.ReplaceAll(e.Message, name, "X"), nil
			return &c
		}
		require.Equal(t, plain(x, nameA), plain(y, nameB))
	}
	pass := func(box carrel.BoxID) error {
		_, err := gateway.PassOf(s.gateway, stranger, box, auth.ScopeExec)
		return err
	}
	same(pass(s.box), pass(unknown), string(s.box), string(unknown))
	require.Equal(t, carrel.CodeNotFound, carrel.CodeOf(pass(s.box)))
	find := func(name, org string) error {
		_, err := gateway.FindBox(testContext(t), s.gateway, stranger, name, org)
		return err
	}
	for _, away := range []bool{false, true} {
		if away {
			s.stopControl()
			eventually(t, func() bool { return carrel.CodeOf(find("nothing", "")) == carrel.CodeUnavailable }, "control is away")
		}
		want := find("nothing", "")
		for _, name := range []string{"dev", string(s.box), string(unknown)} {
			for _, org := range []string{"", "default", string(testOrg), "nowhere"} {
				same(want, find(name, org), "nothing", name)
			}
		}
	}
}

func TestWhatAGrantGives(t *testing.T) {
	s := newStack(t)
	s.known()
	s.control.tell(&linkv1.RoutesUpdate{Grants: []*linkv1.Grant{s.grant(testUser, auth.ScopeView)}})
	eventually(t, func() bool { _, err := gateway.PassOf(s.gateway, testUser, s.box, auth.ScopeView); return err == nil }, "the grant comes")
	_, err := gateway.PassOf(s.gateway, testUser, s.box, auth.ScopeExec)
	require.Equal(t, carrel.CodeDenied, carrel.CodeOf(err))
	gone := s.route(1)
	gone.Gone = true
	s.control.setRoute(gone)
	eventually(t, func() bool {
		_, err := gateway.PassOf(s.gateway, testUser, s.box, auth.ScopeView)
		return carrel.ReasonOf(err) == "box_not_running"
	}, "a box that ended is still known to be the user's")
	old := s.grant(testUser, auth.ScopeExec)
	old.ExpireTime = timestamppb.New(time.Now().Add(-time.Second))
	s.known()
	s.control.tell(&linkv1.RoutesUpdate{Grants: []*linkv1.Grant{old}})
	eventually(t, func() bool {
		_, err := gateway.PassOf(s.gateway, testUser, s.box, auth.ScopeExec)
		return carrel.ReasonOf(err) == "grant_expired"
	}, "a grant ends")
}

// What takes a right away cuts what is open by it, and nothing else.
func TestOpenStreamsAreCutWhenTheirRightEnds(t *testing.T) {
	key, line := newKey(t)
	token := carrel.TokenID("t0000000000000000001")
	for name, row := range map[string]struct {
		take   func(s *stack) *linkv1.RoutesUpdate
		reason string
	}{
		"membership": {func(s *stack) *linkv1.RoutesUpdate {
			return &linkv1.RoutesUpdate{Grants: []*linkv1.Grant{s.grant(testUser, "")}}
		}, "rights_ended"},
		"role": {func(s *stack) *linkv1.RoutesUpdate {
			return &linkv1.RoutesUpdate{Grants: []*linkv1.Grant{s.grant(testUser, auth.ScopeView, line)}}
		}, "rights_ended"},
		"token": {func(*stack) *linkv1.RoutesUpdate {
			return &linkv1.RoutesUpdate{RevokedTokens: []string{string(token)}}
		}, "token_revoked"},
		"key": {func(s *stack) *linkv1.RoutesUpdate {
			return &linkv1.RoutesUpdate{Grants: []*linkv1.Grant{s.grant(testUser, auth.ScopeExec)}}
		}, "key_removed"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStack(t)
			s.known()
			const other = carrel.UserID("u0000000000000000002")
			s.control.tell(&linkv1.RoutesUpdate{Grants: []*linkv1.Grant{s.grant(testUser, auth.ScopeExec, line), s.grant(other, auth.ScopeExec)}})
			eventually(t, func() bool { _, err := gateway.PassOf(s.gateway, other, s.box, auth.ScopeExec); return err == nil }, "the grants come")
			p, err := gateway.PassOf(s.gateway, testUser, s.box, auth.ScopeExec)
			require.NoError(t, err)
			q, err := gateway.PassOf(s.gateway, other, s.box, auth.ScopeExec)
			require.NoError(t, err)
			cut, spared := make(chan error, 2), make(chan error, 2)
			defer p.By(token, key).Guard(func(err error) { cut <- err })()
			defer q.Guard(func(err error) { spared <- err })()
			begun := time.Now()
			s.control.tell(row.take(s))
			select {
			case err := <-cut:
				require.Equal(t, row.reason, carrel.ReasonOf(err))
			case <-time.After(wait):
				t.Fatal("it goes on")
			}
			t.Logf("cut after %s", time.Since(begun))
			require.Empty(t, spared, "others go on")
			p.By(token, key).Guard(func(err error) { cut <- err })()
			require.Equal(t, row.reason, carrel.ReasonOf(<-cut), "what begins later is cut at once")
		})
	}
}

// A ticket that a client shows by itself ends with the user's rights too, also for calls that last; one that control gave
// later than the gateway's knowledge counts.
func TestTicketsEndWithTheRightsOfTheirUser(t *testing.T) {
	s := newStack(t)
	s.known()
	s.control.tell(&linkv1.RoutesUpdate{Grants: []*linkv1.Grant{s.grant(testUser, auth.ScopeExec)}})
	eventually(t, func() bool { _, err := gateway.PassOf(s.gateway, testUser, s.box, auth.ScopeExec); return err == nil }, "the grant comes")
	issued := time.Now()
	ticket := s.ticket(func(t *auth.Ticket) { t.Issued, t.Token = issued, "t0000000000000000001" })
	ctx, cancel := context.WithTimeout(t.Context(), wait)
	defer cancel()
	stream, err := s.processes(ticket).RunProcess(ctx, request(&carrelv1.StartProcessRequest{Box: string(s.box), Args: []string{"hold"}}))
	require.NoError(t, err)
	require.True(t, stream.Receive(), stream.Err())
	taken := s.grant(testUser, "")
	taken.IssueTime = timestamppb.New(issued.Add(2 * time.Second))
	s.control.tell(&linkv1.RoutesUpdate{Grants: []*linkv1.Grant{taken}})
	for stream.Receive() { // what was on its way
	}
	require.Equal(t, carrel.CodeUnauthorized, clientCode(stream.Err()), "%v", stream.Err())
	_, err = s.processes(ticket).ListProcesses(ctx, request(&carrelv1.ListProcessesRequest{Box: string(s.box)}))
	require.Equal(t, carrel.CodeUnauthorized, clientCode(err))
	later := s.ticket(func(t *auth.Ticket) { t.Issued = issued.Add(4 * time.Second) })
	_, err = s.processes(later).ListProcesses(ctx, request(&carrelv1.ListProcessesRequest{Box: string(s.box)}))
	require.NoError(t, err, "control gave it knowing more than the gateway does")
	s.control.tell(&linkv1.RoutesUpdate{RevokedTokens: []string{"t0000000000000000001"}})
	named := s.ticket(func(t *auth.Ticket) { t.Issued, t.Token = issued.Add(4*time.Second), "t0000000000000000001" })
	eventually(t, func() bool {
		_, err := s.processes(named).ListProcesses(ctx, request(&carrelv1.ListProcessesRequest{Box: string(s.box)}))
		return clientCode(err) == carrel.CodeUnauthorized
	}, "a revoked token ends its tickets")
}

// Who got a right and lost it between two of control's looks is never told of: the right of people of whom nothing was told is asked for again and again.
func TestTheRightOfWhoIsNotHeardOfIsAskedForAgain(t *testing.T) {
	s := newStack(t)
	s.control.mu.Lock()
	s.control.ticketLife = carrel.TicketLifetime
	s.control.mu.Unlock()
	p, err := gateway.Allow(testContext(t), s.gateway, http.Header{"Authorization": {"Bearer " + testToken}}, string(s.box))
	require.NoError(t, err)
	cut := make(chan error, 1)
	defer p.Guard(func(err error) { cut <- err })()
	exchanges := func() int { s.control.mu.Lock(); defer s.control.mu.Unlock(); return s.control.exchanges }
	before := exchanges()
	gateway.RenewTickets(testContext(t), s.gateway)
	require.Greater(t, exchanges(), before) // the gateway renews by itself, too
	s.control.tell(&linkv1.RoutesUpdate{Grants: []*linkv1.Grant{s.grant(testUser, auth.ScopeExec)}})
	eventually(t, func() bool {
		before := exchanges()
		gateway.RenewTickets(testContext(t), s.gateway)
		return exchanges() == before
	}, "what control tells of somebody is enough")
	require.Empty(t, cut)
}

// An API token is exchanged again while a stream is open by it: a definite no cuts the stream, silence does not.
func TestTicketsAreRenewedWhileTheyAreUsed(t *testing.T) {
	s := newStack(t)
	allow := func() gateway.Pass {
		p, err := gateway.Allow(testContext(t), s.gateway, http.Header{"Authorization": {"Bearer " + testToken}}, string(s.box))
		require.NoError(t, err)
		return p
	}
	cut := make(chan error, 1)
	p := allow()
	defer p.Guard(func(err error) { cut <- err })()
	exchanges := func() int { s.control.mu.Lock(); defer s.control.mu.Unlock(); return s.control.exchanges }
	before := exchanges()
	gateway.RenewTickets(testContext(t), s.gateway) // the stack's tickets are given with half of their life
	require.Greater(t, exchanges(), before)         // the gateway renews by itself, too
	require.Empty(t, cut)
	s.stopControl()
	gateway.RenewTickets(testContext(t), s.gateway)
	require.Empty(t, cut, "control that does not answer takes nothing away")
	s.startControl()
	s.control.mu.Lock()
	s.control.users.refuse = true
	s.control.mu.Unlock()
	eventually(t, func() bool { gateway.RenewTickets(testContext(t), s.gateway); return len(cut) == 1 }, "a definite no cuts")
	require.Equal(t, carrel.CodeUnauthorized, carrel.CodeOf(<-cut))
}
