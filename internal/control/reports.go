package control

import (
	"context"
	"sync"
	"time"

	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/store"
)

const (
	// reportInterval is how long a report that settles nothing may wait for others to be written with.
	reportInterval = time.Second
	// maxWaitingReports bounds what one node may have waiting.
	maxWaitingReports = 1000
	reportTimeout     = 20 * time.Second
)

// reporter writes what nodes tell. Reports that settle something are written at once, those that come
// while a write of the same node is under way together in the next one. The others wait up to a second: heartbeats of
// all nodes of this replica become one transaction.
type reporter struct {
	s *Server

	mu      sync.Mutex // guards what follows
	closed  bool
	nodes   map[carrel.NodeID]*nodeReports
	writers sync.WaitGroup
}

type nodeReports struct {
	waiting []*waitingReport
	writing bool // a writer has this node and goes on until nothing urgent waits
}

type waitingReport struct {
	report store.Report
	urgent bool
	done   chan error // holds one answer
}

func newReporter(s *Server) *reporter {
	return &reporter{s: s, nodes: map[carrel.NodeID]*nodeReports{}}
}

// settles reports whether somebody may be waiting for this report.
func settles(r store.Report) bool {
	for _, run := range r.Runs {
		if run.Phase == carrel.PhaseRunning || run.Phase.Ended() || run.FailedOrder != carrel.OrderNone {
			return true
		}
	}
	for _, c := range r.Chores {
		if c.Done {
			return true
		}
	}
	return false
}

// heartbeat reports whether a report only says that the node is alive, how it is, and what its boxes are used for.
func heartbeat(r store.Report) bool {
	return len(r.Runs) == 0 && len(r.Chores) == 0 && len(r.Dropped) == 0
}

// submit answers when the report is committed. When ctx ends first, it may be committed nevertheless.
func (r *reporter) submit(ctx context.Context, node carrel.NodeID, report store.Report) error {
	w := &waitingReport{report: report, urgent: settles(report), done: make(chan error, 1)}
	r.mu.Lock()
	n := r.nodes[node]
	if n == nil {
		n = &nodeReports{}
		r.nodes[node] = n
	}
	if r.closed || len(n.waiting) >= maxWaitingReports {
		r.mu.Unlock()
		e := carrel.Errorf(carrel.CodeUnavailable, "reports_waiting", "reports can't be taken now; try again in a moment")
		e.RetryAfter = reportInterval
		return e
	}
	n.waiting = append(n.waiting, w)
	if w.urgent {
		r.startWriter(node, n)
	}
	r.mu.Unlock()
	select {
	case err := <-w.done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// startWriter is called with mu held.
func (r *reporter) startWriter(node carrel.NodeID, n *nodeReports) {
	if n.writing {
		return
	}
	n.writing = true
	r.writers.Go(func() { r.write(node, n) })
}

// write commits everything that waits of one node, and again while something urgent came meanwhile.
func (r *reporter) write(node carrel.NodeID, n *nodeReports) {
	for {
		r.mu.Lock()
		batch := n.waiting
		n.waiting = nil
		r.mu.Unlock()
		if len(batch) > 0 {
			r.commit(node, batch)
		}
		r.mu.Lock()
		urgent := false
		for _, w := range n.waiting {
			urgent = urgent || w.urgent
		}
		if !urgent {
			n.writing = false
			r.mu.Unlock()
			return
		}
		r.mu.Unlock()
	}
}

func (r *reporter) commit(node carrel.NodeID, batch []*waitingReport) {
	// Whoever asked may be gone: the others' reports are in the same transaction.
	ctx, cancel := context.WithTimeout(context.Background(), reportTimeout)
	defer cancel()
	reports := make([]store.Report, len(batch))
	for i, w := range batch {
		reports[i] = w.report
	}
	err := r.s.store.RecordReport(ctx, node, reports)
	if err == nil || len(batch) == 1 || carrel.CodeOf(err) == carrel.CodeUnavailable {
		for _, w := range batch {
			w.done <- err
		}
		return
	}
	// One of them is at fault: let it not spoil the others.
	for _, w := range batch {
		w.done <- r.s.store.RecordReport(ctx, node, []store.Report{w.report})
	}
}

// run writes what waits once a second, and at the end what is left.
func (r *reporter) run(ctx context.Context) {
	ticker := time.NewTicker(reportInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			r.flush()
		case <-ctx.Done():
			r.mu.Lock()
			r.closed = true
			r.mu.Unlock()
			r.flush()
			r.writers.Wait()
			return
		}
	}
}

// flush writes the heartbeats of all nodes in one transaction, and starts a writer for each node of which more waits.
func (r *reporter) flush() {
	var beats []store.NodeBeat
	var waiters []*waitingReport
	r.mu.Lock()
	for node, n := range r.nodes {
		if n.writing {
			continue // its writer takes them along, or they wait for the next time
		}
		if len(n.waiting) == 0 {
			delete(r.nodes, node) // it comes back with its next report
			continue
		}
		alive, facts := true, (*store.NodeFacts)(nil)
		var activities []store.RunActivity
		for _, w := range n.waiting {
			alive = alive && heartbeat(w.report)
			activities = append(activities, w.report.Activities...)
			if w.report.Facts != nil {
				facts = w.report.Facts
			}
		}
		if !alive {
			r.startWriter(node, n)
			continue
		}
		beats = append(beats, store.NodeBeat{Node: node, Facts: facts, Activities: activities})
		waiters = append(waiters, n.waiting...)
		n.waiting = nil
	}
	r.mu.Unlock()
	if len(beats) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), reportTimeout)
	defer cancel()
	err := r.s.store.TouchNodes(ctx, beats)
	for _, w := range waiters {
		w.done <- err
	}
}
