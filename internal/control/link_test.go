package control_test

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	linkv1 "carrel.dev/carrel/api/carrel/link/v1"
	"carrel.dev/carrel/api/carrel/link/v1/linkv1connect"
	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/auth"
	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/store"
)

func leaf(t *testing.T, cert tls.Certificate) *x509.Certificate {
	t.Helper()
	c, err := x509.ParseCertificate(cert.Certificate[0])
	require.NoError(t, err)
	return c
}

func TestMachinesJoinByTheFileOrByAToken(t *testing.T) {
	r := newReplica(t)
	ctx := t.Context()
	cert, resp, err := r.joinAs("node", joinText, "one")
	require.NoError(t, err)
	require.Equal(t, "carrel://"+resp.GetClusterId()+"/node/"+resp.GetId(), leaf(t, cert).URIs[0].String())
	require.Len(t, resp.GetTicketKeys(), 1)
	require.Len(t, resp.GetTicketKeys()[0], ed25519.PublicKeySize)
	again, second, err := r.joinAs("node", joinText, "one")
	require.NoError(t, err, "it never said anything: its first answer may have been lost")
	require.Equal(t, resp.GetId(), second.GetId())
	require.NotEqual(t, leaf(t, cert).SerialNumber, leaf(t, again).SerialNumber)

	made, err := r.asAdmin().nodes.CreateJoinToken(ctx, req(&carrelv1.CreateJoinTokenRequest{Role: "gateway"}))
	require.NoError(t, err)
	_, _, err = r.joinAs("node", made.Msg.GetToken(), "two")
	require.Equal(t, carrel.CodeUnauthorized, code(err), "it is for a gateway")
	cert, resp, err = r.joinAs("gateway", made.Msg.GetToken(), "edge")
	require.NoError(t, err)
	require.Equal(t, "carrel://"+resp.GetClusterId()+"/gateway/"+resp.GetId(), leaf(t, cert).URIs[0].String())
	_, _, err = r.joinAs("gateway", made.Msg.GetToken(), "edge-two")
	require.Equal(t, carrel.CodeUnauthorized, code(err), "it is used up")

	for name, token := range map[string]string{"empty": "", "file's, cut": joinText[:len(joinText)-1], "unknown": auth.NewJoinToken().Text, "API token": r.admin} {
		_, _, err := r.joinAs("node", token, "three")
		require.Equal(t, carrel.CodeUnauthorized, code(err), name)
	}
	for _, role := range []string{"control", "", "proxy"} {
		_, _, err := r.joinAs(role, joinText, "three")
		require.Error(t, err, role)
	}
	_, _, err = r.joinAs("node", joinText, "Not A Name")
	require.Equal(t, "bad_name", reason(err))
	_, err = r.joinClient(nil).Join(ctx, req(&linkv1.JoinRequest{Token: joinText, Role: "node", Name: "three", CsrPem: "x"}))
	require.Equal(t, "bad_csr", reason(err))
	_, err = r.asAdmin().nodes.CreateJoinToken(ctx, req(&carrelv1.CreateJoinTokenRequest{Role: "control"}))
	require.Equal(t, "bad_role", reason(err))
	nodes, err := r.asAdmin().nodes.ListNodes(ctx, req(&carrelv1.ListNodesRequest{}))
	require.NoError(t, err)
	require.Len(t, nodes.Msg.GetNodes(), 1, "nothing half-made")

	_, _, err = r.joinAs("node", auth.RoleJoinToken(joinText, auth.PeerGateway), "three")
	require.Equal(t, carrel.CodeUnauthorized, code(err), "who may join as a gateway can't become a node")
	_, _, err = r.joinAs("gateway", auth.RoleJoinToken(joinText, auth.PeerGateway), "front")
	require.NoError(t, err)
	_, _, err = r.joinAs("node", auth.RoleJoinToken(joinText, auth.PeerNode), "three")
	require.NoError(t, err)

	require.NoError(t, os.WriteFile(r.join, []byte("short"), 0o600))
	_, _, err = r.joinAs("node", "short", "three")
	require.Equal(t, carrel.CodeUnauthorized, code(err), "a file with next to nothing lets nobody in")
}

func TestANodeJoinsForItsProxy(t *testing.T) {
	r := newReplica(t)
	m := r.newMachine("one")
	key, csr, err := auth.NewCSR()
	require.NoError(t, err)
	resp, err := r.joinClient(&m.cert).Join(t.Context(), req(&linkv1.JoinRequest{Role: "proxy", NodeId: string(m.id), CsrPem: string(csr)}))
	require.NoError(t, err)
	cert := certificate(t, key, resp.Msg)
	require.Equal(t, "carrel://"+resp.Msg.GetClusterId()+"/proxy/"+string(m.id), leaf(t, cert).URIs[0].String())
	_, err = r.joinClient(&m.cert).Join(t.Context(), req(&linkv1.JoinRequest{Role: "proxy", NodeId: "n1111111111111111111", CsrPem: string(csr)}))
	require.Equal(t, carrel.CodeDenied, code(err))
	_, err = r.joinClient(nil).Join(t.Context(), req(&linkv1.JoinRequest{Role: "proxy", NodeId: string(m.id), CsrPem: string(csr), Token: joinText}))
	require.Equal(t, carrel.CodeUnauthorized, code(err))

	link := linkv1connect.NewNodeLinkClient(r.httpClient(&cert), r.http.URL)
	_, err = link.Report(t.Context(), req(&linkv1.ReportRequest{}))
	require.Equal(t, carrel.CodeDenied, code(err), "a proxy is no node")
}

func TestLinksAreForTheRightPeers(t *testing.T) {
	r := newReplica(t)
	m := r.newMachine("one")
	gateway, _, err := r.joinAs("gateway", joinText, "edge")
	require.NoError(t, err)
	report := func(cert *tls.Certificate, token string) error {
		hc := r.httpClient(cert)
		hc.Transport = bearer{token, hc.Transport}
		_, err := linkv1connect.NewNodeLinkClient(hc, r.http.URL).Report(t.Context(), req(&linkv1.ReportRequest{Facts: &linkv1.NodeFacts{}}))
		return err
	}
	require.NoError(t, report(&m.cert, ""))
	require.Equal(t, carrel.CodeDenied, code(report(&gateway, "")), "wrong role")
	require.Equal(t, carrel.CodeUnauthorized, code(report(nil, "")))
	require.Equal(t, carrel.CodeUnauthorized, code(report(nil, r.admin)), "an operator's token is no certificate")

	_, err = linkv1connect.NewGatewayLinkClient(r.httpClient(&m.cert), r.http.URL).ExchangeToken(t.Context(), req(&linkv1.ExchangeTokenRequest{Token: r.admin, Box: "dev"}))
	require.Equal(t, carrel.CodeDenied, code(err), "a node may not act for users")

	forge := func(ca *auth.CA, now time.Time) *tls.Certificate {
		cert, err := ca.Issue(auth.Peer{Role: auth.PeerNode, ID: string(m.id)}, auth.Names{}, now)
		require.NoError(t, err)
		return &cert
	}
	foreignKey, err := auth.NewCAKey("elsewhere", time.Now())
	require.NoError(t, err)
	sameName, err := auth.NewCA(m.join.GetClusterId(), []auth.CAKey{foreignKey})
	require.NoError(t, err)
	require.Error(t, report(forge(sameName, time.Now()), ""), "foreign cluster: its handshake fails")

	// With the cluster's own key one can make what the CA never would.
	keyring, err := auth.ParseKeyring(r.kek)
	require.NoError(t, err)
	roots, err := r.store.RootKeys(t.Context(), "ca")
	require.NoError(t, err)
	seed, err := keyring.Unwrap("ca", roots[0].Wrapped)
	require.NoError(t, err)
	root := auth.CAKey{Certificate: roots[0].Public, Key: ed25519.NewKeyFromSeed(seed)}
	own, err := auth.NewCA(m.join.GetClusterId(), []auth.CAKey{root})
	require.NoError(t, err)
	require.NoError(t, report(forge(own, time.Now()), ""))
	require.Error(t, report(forge(own, time.Now().Add(-auth.CertificateLifetime-time.Hour)), ""), "expired")
	other, err := auth.NewCA("another", []auth.CAKey{root})
	require.NoError(t, err)
	require.Equal(t, carrel.CodeUnauthorized, code(report(forge(other, time.Now()), "")), "same root, another cluster's name")
}

func TestPeersRenewThemselves(t *testing.T) {
	r := newReplica(t)
	m := r.newMachine("one")
	gateway, joined, err := r.joinAs("gateway", joinText, "edge")
	require.NoError(t, err)
	key, csr, err := auth.NewCSR()
	require.NoError(t, err)
	resp, err := m.link.Renew(t.Context(), req(&linkv1.RenewRequest{CsrPem: string(csr)}))
	require.NoError(t, err)
	fresh := certificate(t, key, resp.Msg)
	require.Equal(t, leaf(t, m.cert).URIs, leaf(t, fresh).URIs)
	_, err = linkv1connect.NewNodeLinkClient(r.httpClient(&fresh), r.http.URL).Report(t.Context(), req(&linkv1.ReportRequest{}))
	require.NoError(t, err)
	edge, err := linkv1connect.NewGatewayLinkClient(r.httpClient(&gateway), r.http.URL).Renew(t.Context(), req(&linkv1.RenewRequest{CsrPem: string(csr)}))
	require.NoError(t, err)
	require.Equal(t, joined.GetId(), edge.Msg.GetId())
	_, err = m.link.Renew(t.Context(), req(&linkv1.RenewRequest{CsrPem: "x"}))
	require.Equal(t, "bad_csr", reason(err))
}

// checked verifies a desired set's checksum as a node does.
func checked(t *testing.T, set *linkv1.DesiredSet) *linkv1.DesiredSet {
	t.Helper()
	bare, ok := proto.Clone(set).(*linkv1.DesiredSet)
	require.True(t, ok)
	bare.Checksum = nil
	data, err := proto.MarshalOptions{Deterministic: true}.Marshal(bare)
	require.NoError(t, err)
	sum := sha256.Sum256(data)
	require.Equal(t, sum[:], set.GetChecksum())
	return set
}

func TestANodeWatchesItsDesiredSet(t *testing.T) {
	r := newReplica(t)
	r.catalogue()
	u, m := r.asAdmin(), r.newMachine("one")
	other := r.newMachine("two")
	ctx, cancel := context.WithCancel(within(t))
	defer cancel()
	stream, err := m.link.WatchDesired(ctx, req(&linkv1.WatchDesiredRequest{}))
	require.NoError(t, err)
	require.True(t, stream.Receive(), stream.Err())
	set := checked(t, stream.Msg())
	require.Empty(t, set.GetRuns())
	require.Equal(t, string(m.id), set.GetNodeId())
	require.Len(t, set.GetTicketKeys(), 1)

	id := u.create("dev")
	box := m.assign(id)
	next := func() *linkv1.DesiredSet {
		t.Helper()
		before := set.GetRevision()
		require.True(t, stream.Receive(), stream.Err())
		set = checked(t, stream.Msg())
		require.Greater(t, set.GetRevision(), before)
		return set
	}
	run := next().GetRuns()[0]
	require.Equal(t, string(box.Run.ID), run.GetRunId())
	require.Equal(t, linkv1.Order_ORDER_RUN, run.GetOrder())
	require.Equal(t, testDigest, run.GetSpec().GetImageDigest())
	require.Equal(t, map[string]string{"FROM": "template"}, run.GetSpec().GetEnv())
	require.Equal(t, "dev", run.GetSpec().GetBoxName())
	m.says(id, carrel.PhaseRunning)

	_, err = u.boxes.PauseBox(ctx, req(&carrelv1.PauseBoxRequest{Id: id}))
	require.NoError(t, err)
	for set.GetRuns()[0].GetOrder() != linkv1.Order_ORDER_PAUSE {
		next()
	}
	require.Equal(t, m.box(id).Generation, set.GetRuns()[0].GetGeneration())
	m.pause(id)
	for len(set.GetRuns()) > 0 {
		next()
	}
	_, err = u.boxes.DeleteBox(ctx, req(&carrelv1.DeleteBoxRequest{Id: id}))
	require.NoError(t, err)

	theirs, err := other.link.WatchDesired(ctx, req(&linkv1.WatchDesiredRequest{}))
	require.NoError(t, err)
	require.True(t, theirs.Receive())
	require.Empty(t, theirs.Msg().GetRuns(), "one node's orders are not another's")

	// A rotated ticket key reaches the node too.
	require.NoError(t, r.server.RotateTicketKey(ctx))
	for len(set.GetTicketKeys()) != 2 {
		require.True(t, stream.Receive(), stream.Err())
		set = checked(t, stream.Msg())
	}
}

func TestReportsOfNonsenseSpoilNothing(t *testing.T) {
	r := newReplica(t)
	r.catalogue()
	u, m := r.asAdmin(), r.newMachine("one")
	other := r.newMachine("two")
	id := u.create("dev")
	m.assign(id)
	good := m.runReport(id, carrel.PhaseRunning)
	bad, unknown, foreign := proto.CloneOf(good), proto.CloneOf(good), proto.CloneOf(good)
	bad.Phase = "flying"
	unknown.RunId = string(carrel.NewRunID())
	foreign.Phase, foreign.Sequence = "failed", 99
	other.reportRuns(foreign)
	require.Equal(t, "PROVISIONING", u.state(id), "a node speaks only of its own runs")
	m.reportRuns(bad, unknown, good)
	require.Equal(t, "RUNNING", u.state(id))
	_, err := other.link.CommitSnapshot(t.Context(), req(&linkv1.CommitSnapshotRequest{
		SnapshotId: string(carrel.NewSnapshotID()), BoxId: id, RunId: good.GetRunId(), Epoch: 1, Kind: "disk", Generation: 1,
	}))
	if err == nil {
		require.Nil(t, m.box(id).Snapshot, "a node commits only for its own runs")
	}
	_, err = m.link.CommitSnapshot(t.Context(), req(&linkv1.CommitSnapshotRequest{SnapshotId: "x"}))
	require.Equal(t, carrel.CodeInvalid, code(err))
}

func TestACommitIsRepeatedWithoutHarm(t *testing.T) {
	r := newReplica(t)
	r.catalogue()
	u, m := r.asAdmin(), r.newMachine("one")
	id := u.create("dev")
	m.run(id)
	_, err := u.boxes.PauseBox(t.Context(), req(&carrelv1.PauseBoxRequest{Id: id}))
	require.NoError(t, err)
	commit := m.snapshot(id, carrel.SnapshotMemory)
	again, err := m.link.CommitSnapshot(t.Context(), req(commit))
	require.NoError(t, err)
	require.True(t, again.Msg.GetAccepted())
	stale := proto.CloneOf(commit)
	stale.SnapshotId, stale.Epoch = string(carrel.NewSnapshotID()), commit.GetEpoch()+1
	refused, err := m.link.CommitSnapshot(t.Context(), req(stale))
	require.NoError(t, err)
	require.False(t, refused.Msg.GetAccepted())
	require.Equal(t, store.RefusedStaleEpoch, refused.Msg.GetReason())
}

func TestManyHeartbeatsAreOneCommit(t *testing.T) {
	r := newReplica(t)
	machines := make([]*machine, 5)
	for i := range machines {
		machines[i] = r.newMachine("node-" + string(rune('a'+i)))
	}
	count := func() int64 { return r.store.Commits()["TouchNodes"] + r.store.Commits()["RecordReport"] }
	before := count()
	start := time.Now()
	var all sync.WaitGroup
	for _, m := range machines {
		for range 4 {
			all.Go(func() {
				_, err := m.link.Report(t.Context(), req(&linkv1.ReportRequest{Facts: &linkv1.NodeFacts{CpuMillis: 1000}}))
				require.NoError(t, err)
			})
		}
	}
	all.Wait()
	commits := count() - before
	require.LessOrEqual(t, commits, int64(time.Since(start)/time.Second)+2, "at most one a second, for all nodes together")
	node, err := r.asAdmin().nodes.GetNode(t.Context(), req(&carrelv1.GetNodeRequest{Id: "node-a"}))
	require.NoError(t, err)
	require.Equal(t, "online", node.Msg.GetState())
	require.EqualValues(t, 1000, node.Msg.GetCapacity().GetCpuMillis())
	changed, err := r.asAdmin().nodes.UpdateNode(t.Context(), req(&carrelv1.UpdateNodeRequest{Id: "node-a"}))
	require.NoError(t, err)
	require.False(t, changed.Msg.GetSchedulable())
}

func TestSettledReportsThatComeTogetherAreCommittedTogether(t *testing.T) {
	r := newReplica(t)
	r.catalogue()
	u, m := r.asAdmin(), r.newMachine("one")
	var ids []string
	for range 12 {
		id := u.create("")
		m.assign(id)
		ids = append(ids, id)
	}
	reports := make([]*linkv1.RunReport, len(ids))
	for i, id := range ids {
		reports[i] = m.runReport(id, carrel.PhaseRunning)
	}
	before := r.store.Commits()["RecordReport"]
	var all sync.WaitGroup
	for _, report := range reports {
		all.Go(func() {
			_, err := m.link.Report(t.Context(), req(&linkv1.ReportRequest{Runs: []*linkv1.RunReport{report}}))
			require.NoError(t, err)
		})
	}
	all.Wait()
	for _, id := range ids {
		require.Equal(t, "RUNNING", u.state(id))
	}
	t.Logf("12 reports in %d commits", r.store.Commits()["RecordReport"]-before)
	require.LessOrEqual(t, r.store.Commits()["RecordReport"]-before, int64(len(ids)))
}

// edge is a gateway.
type edge struct {
	link     linkv1connect.GatewayLinkClient
	verifier *auth.TicketVerifier
}

func (r *replica) newEdge() *edge {
	t := r.t
	t.Helper()
	cert, resp, err := r.joinAs("gateway", joinText, "edge")
	require.NoError(t, err)
	e := &edge{link: linkv1connect.NewGatewayLinkClient(r.httpClient(&cert), r.http.URL), verifier: auth.NewTicketVerifier()}
	e.learn(resp.GetTicketKeys())
	return e
}

func (e *edge) learn(raw [][]byte) {
	var keys []ed25519.PublicKey
	for _, k := range raw {
		keys = append(keys, k)
	}
	e.verifier.SetKeys(keys)
}

func TestAGatewayExchangesTokensForTickets(t *testing.T) {
	r := newReplica(t)
	r.catalogue()
	u, m, e := r.asAdmin(), r.newMachine("one"), r.newEdge()
	ctx := t.Context()
	viewer := r.newUser("viewer", "default", auth.RoleViewer)
	stranger := r.newUser("stranger", "", auth.RoleNone)
	id := u.create("dev")
	exchange := func(token, box, scope string) (*linkv1.ExchangeTokenResponse, error) {
		resp, err := e.link.ExchangeToken(ctx, req(&linkv1.ExchangeTokenRequest{Token: token, Box: box, Scope: scope}))
		if err != nil {
			return nil, err
		}
		return resp.Msg, nil
	}
	_, err := exchange(r.admin, "dev", "exec")
	require.Equal(t, carrel.CodePrecondition, code(err))
	require.Equal(t, "box_not_running", reason(err))
	m.run(id)
	got, err := exchange(r.admin, "dev", "")
	require.NoError(t, err)
	ticket, err := e.verifier.Verify(got.GetTicket(), time.Now())
	require.NoError(t, err)
	require.Equal(t, carrel.BoxID(id), ticket.Box)
	require.Equal(t, m.box(id).Run.Epoch, ticket.Epoch)
	require.True(t, ticket.Has(auth.ScopeExec))
	require.Equal(t, "127.0.0.1:7072", got.GetRoute().GetProxyAddress())
	require.Equal(t, string(m.id), got.GetRoute().GetNodeId())

	_, err = exchange(viewer.token, id, "exec")
	require.Equal(t, carrel.CodeDenied, code(err))
	got, err = exchange(viewer.token, id, "view")
	require.NoError(t, err)
	ticket, err = e.verifier.Verify(got.GetTicket(), time.Now())
	require.NoError(t, err)
	require.False(t, ticket.Has(auth.ScopeExec))
	_, err = exchange(stranger.token, id, "view")
	require.Equal(t, carrel.CodeNotFound, code(err))
	_, err = exchange("carrel_x", id, "view")
	require.Equal(t, carrel.CodeUnauthorized, code(err))

	require.NoError(t, r.server.RotateTicketKey(ctx))
	got, err = exchange(r.admin, "dev", "exec")
	require.NoError(t, err)
	_, err = e.verifier.Verify(got.GetTicket(), time.Now())
	require.Error(t, err, "the new key is not known yet")
	stream, err := e.link.WatchRoutes(within(t), req(&linkv1.WatchRoutesRequest{}))
	require.NoError(t, err)
	require.True(t, stream.Receive())
	require.True(t, stream.Msg().GetFull())
	require.Len(t, stream.Msg().GetRoutes(), 1)
	e.learn(stream.Msg().GetTicketKeys())
	_, err = e.verifier.Verify(got.GetTicket(), time.Now())
	require.NoError(t, err)
	_, err = u.boxes.StopBox(ctx, req(&carrelv1.StopBoxRequest{Id: id}))
	require.NoError(t, err)
	m.halt(id)
	for gone := false; !gone; {
		require.True(t, stream.Receive(), stream.Err())
		require.False(t, stream.Msg().GetFull())
		for _, route := range stream.Msg().GetRoutes() {
			gone = gone || route.GetBoxId() == id && route.GetGone()
		}
	}
	_, err = exchange(r.admin, "dev", "exec")
	require.Contains(t, message(t, err), "box dev is stopped; start it with: carrel start dev")
}

func TestAWatchEndsWithTheTokenItBeganWith(t *testing.T) {
	r := newReplica(t)
	r.catalogue()
	r.server.SetWatchCheck(time.Millisecond)
	member := r.newUser("maya", "default", auth.RoleMember)
	ctx := within(t)
	stream, err := member.boxes.WatchBoxes(ctx, req(&carrelv1.WatchBoxesRequest{}))
	require.NoError(t, err)
	require.True(t, stream.Receive())
	require.True(t, stream.Msg().GetSynced())
	r.asAdmin().create("before")
	require.True(t, stream.Receive())
	require.Equal(t, "before", stream.Msg().GetBox().GetName())
	tokens, err := member.tokens.ListTokens(ctx, req(&carrelv1.ListTokensRequest{}))
	require.NoError(t, err)
	_, err = member.tokens.RevokeToken(ctx, req(&carrelv1.RevokeTokenRequest{Id: tokens.Msg.GetTokens()[0].GetId()}))
	require.NoError(t, err)
	r.asAdmin().create("after")
	for stream.Receive() { // what was on its way
		require.NotEqual(t, "after", stream.Msg().GetBox().GetName())
	}
	require.Equal(t, carrel.CodeUnauthorized, code(stream.Err()))
}

func TestReplicasAreAlike(t *testing.T) {
	c := newCluster(t)
	a, b := c.replica(), c.replica()
	require.Equal(t, a.server.CAPEM(), b.server.CAPEM())
	a.catalogue()
	m := a.newMachine("one")
	m.link = linkv1connect.NewNodeLinkClient(b.httpClient(&m.cert), b.http.URL) // joined at one, speaks to the other
	ua, ub := a.asAdmin(), b.asAdmin()
	ctx := within(t)
	stream, err := ub.boxes.WatchBoxes(ctx, req(&carrelv1.WatchBoxesRequest{}))
	require.NoError(t, err)
	require.True(t, stream.Receive())
	require.True(t, stream.Msg().GetSynced())
	id := ua.create("dev")
	require.True(t, stream.Receive())
	require.Equal(t, id, stream.Msg().GetBox().GetId())
	m.run(id)
	waited, err := ua.boxes.WaitBox(ctx, req(&carrelv1.WaitBoxRequest{Id: id, States: []carrelv1.State{carrelv1.State_STATE_RUNNING}}))
	require.NoError(t, err, "what one replica wrote wakes those who wait at the other")
	require.Equal(t, id, waited.Msg.GetId())

	// The same request at both at once makes one box.
	ids := make(chan string, 8)
	var all sync.WaitGroup
	for _, u := range []*user{ua, ub, ua, ub, ua, ub, ua, ub} {
		all.Go(func() {
			op, err := u.boxes.CreateBox(ctx, req(&carrelv1.CreateBoxRequest{RequestId: "same"}))
			require.NoError(t, err)
			ids <- op.Msg.GetTargetId()
		})
	}
	all.Wait()
	first := <-ids
	for range 7 {
		require.Equal(t, first, <-ids)
	}

	verifier := auth.NewTicketVerifier()
	block, _ := pem.Decode(b.server.CAPEM())
	require.NotNil(t, block)
	ticket, err := ua.boxes.CreateTicket(ctx, req(&carrelv1.CreateTicketRequest{Id: id}))
	require.NoError(t, err)
	var keys []ed25519.PublicKey
	for _, k := range m.join.GetTicketKeys() {
		keys = append(keys, k)
	}
	verifier.SetKeys(keys)
	_, err = verifier.Verify(ticket.Msg.GetTicket(), time.Now())
	require.NoError(t, err)
}

func TestReplicasThatStartAtOnceAgreeOnTheKeys(t *testing.T) {
	c := newCluster(t)
	out := make(chan *replica, 4)
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() { out <- c.replica() })
	}
	all.Wait()
	first := <-out
	for range 3 {
		require.Equal(t, first.server.CAPEM(), (<-out).server.CAPEM())
	}
}

func TestCommitsOfEachVerb(t *testing.T) {
	r := newReplica(t)
	r.catalogue()
	u, m := r.asAdmin(), r.newMachine("one")
	ctx := t.Context()
	count := func() (n int64) {
		for method, c := range r.store.Commits() {
			if method != "TouchNodes" && method != "AcquireLease" {
				n += c
			}
		}
		return n
	}
	var id string
	for _, step := range []struct {
		name string
		want int64
		do   func() error
	}{
		{"create", 1, func() error { id = u.create("dev"); return nil }},
		{"create: placed and running", 2, func() error { m.run(id); return nil }},
		{"pause", 1, func() error { return second(u.boxes.PauseBox(ctx, req(&carrelv1.PauseBoxRequest{Id: id}))) }},
		{"pause: snapshot and paused", 2, func() error { m.pause(id); return nil }},
		{"resume", 1, func() error { return second(u.boxes.ResumeBox(ctx, req(&carrelv1.ResumeBoxRequest{Id: id}))) }},
		{"resume: placed and running", 2, func() error { m.run(id); return nil }},
		{"stop", 1, func() error { return second(u.boxes.StopBox(ctx, req(&carrelv1.StopBoxRequest{Id: id}))) }},
		{"stop: snapshot and stopped", 2, func() error { m.halt(id); return nil }},
		{"delete", 1, func() error { return second(u.boxes.DeleteBox(ctx, req(&carrelv1.DeleteBoxRequest{Id: id}))) }},
		{"reads", 0, func() error {
			u.get(id)
			_, err := u.boxes.ListBoxes(ctx, req(&carrelv1.ListBoxesRequest{}))
			return err
		}},
	} {
		before := count()
		require.NoError(t, step.do(), step.name)
		require.Equal(t, step.want, count()-before, step.name)
	}
}
