package gateway

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	linkv1 "carrel.dev/carrel/api/carrel/link/v1"
	"carrel.dev/carrel/internal/carrel"
)

const (
	maxAudit      = 4096 // entries that wait for control
	auditBatch    = 256
	auditInterval = time.Second
	auditTimeout  = 10 * time.Second
	maxDetail     = 512 // bytes
)

// auditEntry is what the gateway decided by itself.
type auditEntry struct {
	User   carrel.UserID // empty: not known
	Box    carrel.BoxID  // empty: not known
	Action string        // ssh_login, ssh_refused, port_refused, …
	Detail string        // such as the client's address and the fingerprint of its key; at most 512 bytes are kept
}

// auditor keeps entries for control. When control is away for too long the newest are dropped and counted:
// what came first says how it began.
type auditor struct {
	gateway *Gateway
	wake    chan struct{}

	mu      sync.Mutex // guards what follows
	queue   []*linkv1.AuditEntry
	dropped int
}

func newAuditor(g *Gateway) *auditor { return &auditor{gateway: g, wake: make(chan struct{}, 1)} }

// audit notes what was decided, for control's audit. It never blocks.
func (g *Gateway) audit(e auditEntry) {
	g.log.Info("audit", "action", e.Action, "user", e.User, "box", e.Box, "detail", clip(e.Detail))
	entry := &linkv1.AuditEntry{
		Time: timestamppb.New(g.now()), UserId: string(e.User), BoxId: string(e.Box), Action: e.Action, Detail: cleanDetail(e.Detail),
	}
	a := g.auditor
	a.mu.Lock()
	if len(a.queue) >= maxAudit {
		a.dropped++
		g.metrics.auditDropped.Inc()
	} else {
		a.queue = append(a.queue, entry)
	}
	a.mu.Unlock()
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

// cleanDetail makes text of strangers fit to be sent.
func cleanDetail(s string) string {
	return strings.ToValidUTF8(s[:min(len(s), maxDetail)], "?")
}

// run sends what waits, at most once a second.
func (a *auditor) run(ctx context.Context) error {
	for {
		select {
		case <-a.wake:
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), auditInterval)
			defer cancel()
			a.send(last)
			return nil
		}
		for ctx.Err() == nil && !a.send(ctx) {
			select {
			case <-time.After(auditInterval):
			case <-ctx.Done():
			}
		}
		select {
		case <-time.After(auditInterval):
		case <-ctx.Done():
		}
	}
}

// send sends what waits in batches, and reports whether nothing waits any more.
func (a *auditor) send(ctx context.Context) bool {
	if a.gateway.identity.current() == nil {
		return false
	}
	for {
		a.mu.Lock()
		batch := a.queue[:min(len(a.queue), auditBatch)]
		dropped := a.dropped
		if dropped > 0 && len(batch) < auditBatch {
			batch = append(batch[:len(batch):len(batch)], &linkv1.AuditEntry{
				Time: timestamppb.New(a.gateway.now()), Action: "audit_dropped", Detail: fmt.Sprintf("%d entries were dropped while control was away", dropped),
			})
		} else {
			dropped = 0
		}
		waiting := min(len(a.queue), auditBatch)
		a.mu.Unlock()
		if len(batch) == 0 {
			return true
		}
		call, cancel := context.WithTimeout(ctx, auditTimeout)
		_, err := a.gateway.link.Audit(call, connect.NewRequest(&linkv1.AuditRequest{Entries: batch}))
		cancel()
		if err != nil {
			return false
		}
		a.mu.Lock()
		a.queue = a.queue[waiting:]
		a.dropped -= dropped
		a.mu.Unlock()
	}
}
