package node

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	linkv1 "carrel.dev/carrel/api/carrel/link/v1"
	"carrel.dev/carrel/api/carrel/link/v1/linkv1connect"
	"carrel.dev/carrel/internal/auth"
	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/failpoint"
	"carrel.dev/carrel/internal/node/proxy"
)

const (
	dialTime   = 5 * time.Second
	joinTime   = 20 * time.Second
	commitTime = 15 * time.Second
	renewCheck = time.Minute
	// maxDesired is the largest desired set that is read, in bytes.
	maxDesired = 64 << 20
)

var errNotJoined = errors.New("the node has not joined its control plane yet")

// link is the connection to control: who this node is, the desired set in, reports and proposals out. It
// is safe for concurrent use.
type link struct {
	d     *Daemon
	url   *url.URL
	local bool // control is on this machine
	rpc   linkv1connect.NodeLinkClient
	join_ linkv1connect.JoinServiceClient // with the node's certificate, for its proxy
	pool  *http.Transport

	mu          sync.Mutex // guards what follows
	node, proxy *certificate
	ticketKeys  [][]byte
	revoked     []string // ids of peers that were removed from the cluster
	revision    int64    // of the desired set in the ledger
	incarnation int64
	joined      chan struct{} // closed once joined
	fresh       chan struct{} // closed once this process got a desired set
}

func newLink(d *Daemon) (*link, error) {
	u, err := url.Parse(d.cfg.ControlURL)
	if err != nil || u.Scheme != "https" || u.Host == "" {
		return nil, carrel.Errorf(carrel.CodeInvalid, "bad_config", "control's address %q is not https://HOST:PORT", d.cfg.ControlURL)
	}
	l := &link{d: d, url: u, joined: make(chan struct{}), fresh: make(chan struct{})}
	ip := net.ParseIP(u.Hostname())
	l.local = u.Hostname() == "localhost" || ip != nil && ip.IsLoopback()
	dir := filepath.Join(d.cfg.DataDir, "identity")
	if l.node, err = openCertificate(dir, "node"); err != nil {
		return nil, err
	}
	if l.proxy, err = openCertificate(dir, "proxy"); err != nil {
		return nil, err
	}
	if l.node.joined() {
		l.ticketKeys = l.node.file.TicketKeys
		close(l.joined)
	}
	l.pool = l.transport(l.verifyControl, func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		l.mu.Lock()
		defer l.mu.Unlock()
		if !l.node.joined() {
			return nil, errNotJoined
		}
		c := l.node.tls
		return &c, nil
	})
	client := &http.Client{Transport: l.pool}
	l.rpc = linkv1connect.NewNodeLinkClient(client, u.String(), connect.WithReadMaxBytes(maxDesired))
	l.join_ = linkv1connect.NewJoinServiceClient(client, u.String(), connect.WithReadMaxBytes(1<<20))
	return l, nil
}

// transport speaks HTTP/2 to control. A connection over which nothing comes back is found dead by pings.
func (l *link) transport(verify func(tls.ConnectionState) error, cert func(*tls.CertificateRequestInfo) (*tls.Certificate, error)) *http.Transport {
	protocols := new(http.Protocols)
	protocols.SetHTTP2(true)
	return &http.Transport{
		DialContext: (&net.Dialer{Timeout: dialTime, KeepAlive: 15 * time.Second}).DialContext,
		Protocols:   protocols, TLSHandshakeTimeout: dialTime, IdleConnTimeout: 5 * time.Minute, MaxResponseHeaderBytes: 64 << 10,
		HTTP2: &http.HTTP2Config{SendPingTimeout: 5 * time.Second, PingTimeout: 5 * time.Second},
		TLSClientConfig: &tls.Config{
			MinVersion: tls.VersionTLS13,
			// A peer is known by the identity in its certificate, not by its address.
			InsecureSkipVerify: true, VerifyConnection: verify, GetClientCertificate: cert,
		},
	}
}

// verifyControl is the check after the join.
func (l *link) verifyControl(state tls.ConnectionState) error {
	l.mu.Lock()
	pool, cluster, joined := l.node.pool, l.node.file.Cluster, l.node.joined()
	l.mu.Unlock()
	if !joined {
		return errNotJoined
	}
	return auth.VerifyPeer(pool, cluster, "", auth.PeerControl)(state)
}

// verifyFirst is the check at the join, when the cluster's name is not known yet.
func (l *link) verifyFirst() (func(tls.ConnectionState) error, error) {
	if l.d.cfg.CAFile == "" {
		if !l.local {
			return nil, carrel.Errorf(carrel.CodeInvalid, "bad_config", "control is on another machine: the node needs the file of its certificate authority to join it")
		}
		return func(tls.ConnectionState) error { return nil }, nil
	}
	data, err := os.ReadFile(l.d.cfg.CAFile)
	if err != nil {
		return nil, fmt.Errorf("read certificate authority: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(data) {
		return nil, fmt.Errorf("read certificate authority: %s has no PEM certificate", l.d.cfg.CAFile)
	}
	return func(state tls.ConnectionState) error {
		if len(state.PeerCertificates) == 0 {
			return errors.New("peer: it shows no certificate")
		}
		chains, err := state.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: pool, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
		if err != nil {
			return fmt.Errorf("peer: %w", err)
		}
		state.VerifiedChains = chains
		peer, err := auth.PeerIdentity(&state)
		if err != nil {
			return err
		}
		if peer.Role != auth.PeerControl {
			return fmt.Errorf("peer: it is a %s, and control is wanted", peer.Role)
		}
		return nil
	}, nil
}

// run joins, and then watches the desired set for as long as ctx lasts.
func (l *link) run(ctx context.Context) error {
	defer l.pool.CloseIdleConnections()
	l.forever(ctx, "join control", func(ctx context.Context) error {
		if err := l.joinNode(ctx); err != nil {
			return err
		}
		return l.joinProxy(ctx)
	})
	if ctx.Err() != nil {
		return nil
	}
	l.d.routes.again()
	l.d.reporter.beat()
	var renewing sync.WaitGroup
	renewing.Go(func() { l.keepRenewed(ctx) })
	defer renewing.Wait()
	for ctx.Err() == nil {
		l.forever(ctx, "watch the desired set", l.watch)
	}
	return nil
}

// forever tries until it succeeds or ctx ends.
func (l *link) forever(ctx context.Context, what string, f func(context.Context) error) {
	pause := retryMin
	for {
		began := time.Now()
		err := f(ctx)
		if err == nil || ctx.Err() != nil {
			return
		}
		if time.Since(began) > heartbeat {
			pause = retryMin // it worked for a while
		}
		l.d.log.Warn("control is not reached; boxes go on, and it is tried again", "what", what, "error", err)
		timer := time.NewTimer(pause/2 + rand.N(pause))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return
		}
		pause = min(2*pause, retryMax)
	}
}

// joinNode gets the node's certificate with the join token, if it has none.
func (l *link) joinNode(ctx context.Context) error {
	l.mu.Lock()
	joined, csr := l.node.joined(), l.node.csrPEM
	l.mu.Unlock()
	if joined {
		return nil
	}
	token, err := os.ReadFile(l.d.cfg.JoinTokenFile)
	if err != nil {
		return fmt.Errorf("read join token: %w", err)
	}
	verify, err := l.verifyFirst()
	if err != nil {
		return err
	}
	transport := l.transport(verify, nil)
	defer transport.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(ctx, joinTime)
	defer cancel()
	client := linkv1connect.NewJoinServiceClient(&http.Client{Transport: transport}, l.url.String(), connect.WithReadMaxBytes(1<<20))
	answer, err := client.Join(ctx, connect.NewRequest(&linkv1.JoinRequest{
		Token: strings.TrimSpace(string(token)), Role: string(auth.PeerNode), Name: l.d.cfg.Name, Region: l.d.cfg.Region, CsrPem: csr,
	}))
	if err != nil {
		return fmt.Errorf("join: %w", err)
	}
	if err := failpoint.Hit("node/join/answered"); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.node.answered(answer.Msg); err != nil {
		return err
	}
	l.ticketKeys = answer.Msg.GetTicketKeys()
	close(l.joined)
	l.d.log.Info("the node has joined", "node", l.node.file.ID, "cluster", l.node.file.Cluster)
	return nil
}

// joinProxy gets the certificate of the node's proxy.
func (l *link) joinProxy(ctx context.Context) error {
	l.mu.Lock()
	joined, csr, node := l.proxy.joined(), l.proxy.csrPEM, l.node.file.ID
	l.mu.Unlock()
	if joined {
		return nil
	}
	token, err := os.ReadFile(l.d.cfg.JoinTokenFile)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("read join token: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, joinTime)
	defer cancel()
	answer, err := l.join_.Join(ctx, connect.NewRequest(&linkv1.JoinRequest{
		Token: strings.TrimSpace(string(token)), Role: string(auth.PeerProxy), Name: l.d.cfg.Name, Region: l.d.cfg.Region, CsrPem: csr, NodeId: node,
	}))
	if err != nil {
		return fmt.Errorf("join for the proxy: %w", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.proxy.answered(answer.Msg)
}

// keepRenewed renews both certificates at half of their life: the node's by Renew, the proxy's by another join, for
// which the node's certificate is enough.
func (l *link) keepRenewed(ctx context.Context) {
	ticker := time.NewTicker(renewCheck)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
		if err := l.renew(ctx); err != nil && ctx.Err() == nil {
			l.d.log.Warn("a certificate could not be renewed; it is tried again", "error", err)
		}
	}
}

func (l *link) renew(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, joinTime)
	defer cancel()
	due := func(c *certificate) bool {
		return c.joined() && l.d.now().After(c.tls.Leaf.NotAfter.Add(-auth.CertificateLifetime/2))
	}
	l.mu.Lock()
	nodeDue, proxyDue, csr := due(l.node), due(l.proxy), l.node.csrPEM
	l.mu.Unlock()
	if nodeDue {
		answer, err := l.rpc.Renew(ctx, connect.NewRequest(&linkv1.RenewRequest{CsrPem: csr}))
		if err != nil {
			return err
		}
		l.mu.Lock()
		err = l.node.answered(answer.Msg)
		l.mu.Unlock()
		if err != nil {
			return err
		}
	}
	if proxyDue {
		l.mu.Lock()
		was := *l.proxy
		l.proxy.file.ID = "" // as if it had not joined
		l.mu.Unlock()
		if err := l.joinProxy(ctx); err != nil {
			l.mu.Lock()
			l.proxy = &was
			l.mu.Unlock()
			return err
		}
		l.d.routes.again()
	}
	return nil
}

// proxyIdentity is what the proxy is told to be; false until it is known.
func (l *link) proxyIdentity() (proxy.Identity, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f := l.proxy.file
	if !l.proxy.joined() {
		return proxy.Identity{}, false
	}
	return proxy.Identity{
		Node: carrel.NodeID(f.ID), Cluster: f.Cluster, CertificatePEM: f.CertificatePEM, KeyPEM: l.proxy.keyPEM, CAPEM: f.CAPEM,
		TicketKeys: l.ticketKeys, RevokedPeers: l.revoked,
	}, true
}

// watch receives desired sets until the stream ends, which it does with an error.
func (l *link) watch(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	l.mu.Lock()
	request := &linkv1.WatchDesiredRequest{Revision: l.revision, Incarnation: l.incarnation}
	l.mu.Unlock()
	stream, err := l.rpc.WatchDesired(ctx, connect.NewRequest(request))
	if err != nil {
		return err
	}
	defer stream.Close()
	for stream.Receive() {
		if err := l.desired(stream.Msg()); err != nil {
			return err
		}
	}
	if err := stream.Err(); err != nil {
		return err
	}
	return errors.New("control ended the stream")
}

// desired takes a desired set: it is checked, written to the ledger, and then followed.
func (l *link) desired(set *linkv1.DesiredSet) error {
	if err := l.checkDesired(set); err != nil {
		// Something is wrong with control or on the way to it. What was wanted before goes on being wanted.
		return fmt.Errorf("a desired set is refused: %w", err)
	}
	if err := failpoint.Hit("node/desired/received"); err != nil {
		return err
	}
	if err := l.d.ledger.putDesired(set); err != nil {
		return err
	}
	l.mu.Lock()
	l.revision, l.incarnation = set.GetRevision(), set.GetIncarnation()
	newKeys := len(set.GetTicketKeys()) > 0 && !slices.EqualFunc(set.GetTicketKeys(), l.ticketKeys, bytes.Equal)
	if newKeys {
		l.ticketKeys = set.GetTicketKeys()
	}
	newRevoked := !slices.Equal(set.GetRevokedPeers(), l.revoked)
	l.revoked = set.GetRevokedPeers()
	l.mu.Unlock()
	if newKeys || newRevoked {
		l.d.routes.again()
	}
	l.d.manager.apply(set)
	select {
	case <-l.fresh:
	default:
		close(l.fresh) // only the goroutine that watches comes here
	}
	return nil
}

// awaitFresh waits until this process knows what is wanted now, and not only what was wanted before it began.
func (l *link) awaitFresh(ctx context.Context) error {
	select {
	case <-l.fresh:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// isFresh reports whether this process knows what is wanted now.
func (l *link) isFresh() bool {
	select {
	case <-l.fresh:
		return true
	default:
		return false
	}
}

// restored tells the link what the ledger has.
func (l *link) restored(set *linkv1.DesiredSet) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.revision, l.incarnation = set.GetRevision(), set.GetIncarnation()
	l.revoked = set.GetRevokedPeers()
	if len(set.GetTicketKeys()) > 0 {
		l.ticketKeys = set.GetTicketKeys()
	}
}

func (l *link) checkDesired(set *linkv1.DesiredSet) error {
	l.mu.Lock()
	node, cluster, revision, incarnation := l.node.file.ID, l.node.file.Cluster, l.revision, l.incarnation
	l.mu.Unlock()
	switch {
	case set.GetNodeId() != node || set.GetClusterId() != cluster:
		return fmt.Errorf("it is for node %q of cluster %q", set.GetNodeId(), set.GetClusterId())
	case set.GetIncarnation() < incarnation:
		return fmt.Errorf("its incarnation is %d, and %d was seen", set.GetIncarnation(), incarnation)
	case set.GetIncarnation() == incarnation && set.GetRevision() < revision:
		return fmt.Errorf("its revision is %d, and %d was seen", set.GetRevision(), revision)
	}
	sum, err := desiredChecksum(set)
	if err != nil {
		return err
	}
	if !bytes.Equal(sum, set.GetChecksum()) {
		return errors.New("its checksum is wrong")
	}
	return nil
}

// desiredChecksum is the SHA-256 of the deterministic encoding of a set without its checksum.
func desiredChecksum(set *linkv1.DesiredSet) ([]byte, error) {
	was := set.Checksum
	set.Checksum = nil
	defer func() { set.Checksum = was }()
	body, err := proto.MarshalOptions{Deterministic: true}.Marshal(set)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(body)
	return sum[:], nil
}

func (l *link) isJoined() bool {
	select {
	case <-l.joined:
		return true
	default:
		return false
	}
}

// report sends a Report, which answers when it is committed.
func (l *link) report(ctx context.Context, r *linkv1.ReportRequest) error {
	if !l.isJoined() {
		return errNotJoined
	}
	if err := failpoint.Hit("node/report/send"); err != nil {
		return err
	}
	_, err := l.rpc.Report(ctx, connect.NewRequest(r))
	return err
}

// commitSnapshot proposes a snapshot. An error means that the outcome is not known.
func (l *link) commitSnapshot(ctx context.Context, r *linkv1.CommitSnapshotRequest) (*linkv1.CommitSnapshotResponse, error) {
	if !l.isJoined() {
		return nil, errNotJoined
	}
	ctx, cancel := context.WithTimeout(ctx, commitTime)
	defer cancel()
	answer, err := l.rpc.CommitSnapshot(ctx, connect.NewRequest(r))
	if err != nil {
		return nil, err
	}
	return answer.Msg, nil
}
