package node

import (
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	linkv1 "carrel.dev/carrel/api/carrel/link/v1"
	"carrel.dev/carrel/internal/carrel"
)

const (
	heartbeat = 5 * time.Second
	// reportTime bounds one Report, which answers when it is committed.
	reportTime = 10 * time.Second
	// mostOnTheWay is how many reports of phases on the way are kept for one run while control is away.
	mostOnTheWay = 8
)

// reporter tells control what happened. Reports that settle something are sent at once and until they are
// answered; those on the way ride along. It is safe for concurrent use, and nobody waits for it.
type reporter struct {
	d    *Daemon
	wake chan struct{}

	mu      sync.Mutex // guards what follows
	runs    map[carrel.RunID][]*linkv1.RunReport
	chores  map[string]*linkv1.ChoreReport
	drops   map[carrel.SnapshotID]bool
	pressed bool // something is to be sent now
	facts   bool // with facts
}

func newReporter(d *Daemon) *reporter {
	return &reporter{
		d: d, wake: make(chan struct{}, 1), runs: map[carrel.RunID][]*linkv1.RunReport{}, chores: map[string]*linkv1.ChoreReport{},
		drops: map[carrel.SnapshotID]bool{},
	}
}

func runReport(e *entry, r report) *linkv1.RunReport {
	p := &linkv1.RunReport{
		RunId: string(e.Run), Epoch: e.Epoch, Sequence: r.Sequence, Phase: string(r.Phase), Generation: r.Generation,
		Time: timestamppb.New(r.Time), FailedOrder: string(r.FailedOrder), SnapshotId: string(r.SnapshotID),
		StartedFrom: r.StartedFrom, Notice: r.Notice,
	}
	if r.Failure != nil {
		p.Reason, p.Message, p.Transient = r.Failure.Reason, r.Failure.Message, r.Failure.Transient
	}
	return p
}

// settle sends a report at once, and again until it is answered.
func (r *reporter) settle(e *entry, what report) { r.add(runReport(e, what), true) }

// passing sends a report with whatever is sent next.
func (r *reporter) passing(e *entry, what report) { r.add(runReport(e, what), false) }

func (r *reporter) add(p *linkv1.RunReport, now bool) {
	r.mu.Lock()
	run := carrel.RunID(p.GetRunId())
	list := append(r.runs[run], p)
	if len(list) > mostOnTheWay { // control is away: what happened in between is less than what is
		list = list[1:]
	}
	r.runs[run] = list
	r.pressed = r.pressed || now
	r.mu.Unlock()
	if now {
		r.poke()
	}
}

// chore reports the progress or end of a chore.
func (r *reporter) chore(p *linkv1.ChoreReport) {
	r.mu.Lock()
	r.chores[p.GetChoreId()] = p
	r.pressed = r.pressed || p.GetDone()
	r.facts = r.facts || p.GetDone()
	r.mu.Unlock()
	if p.GetDone() {
		r.poke()
	}
}

// dropped reports that a snapshot is gone.
func (r *reporter) dropped(id carrel.SnapshotID) {
	r.mu.Lock()
	r.drops[id] = true
	r.pressed = true // the facts are told with the next heartbeat
	r.mu.Unlock()
	r.poke()
}

func (r *reporter) poke() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// beat has facts sent now.
func (r *reporter) beat() {
	r.mu.Lock()
	r.pressed, r.facts = true, true
	r.mu.Unlock()
	r.poke()
}

// run sends until ctx ends. What is not sent then is in the ledger.
func (r *reporter) run(ctx context.Context) error {
	beat := time.NewTicker(heartbeat)
	defer beat.Stop()
	pause := retryMin
	for {
		var retry <-chan time.Time
		if err := r.send(ctx); err != nil && ctx.Err() == nil {
			r.d.log.Debug("control does not take a report; it is tried again", "error", err)
			retry = time.After(pause + rand.N(pause))
			pause = min(2*pause, retryMax)
		} else {
			pause = retryMin
		}
		select {
		case <-r.wake:
			if retry != nil { // control is away: new reports wait for the same try
				select {
				case <-retry:
				case <-ctx.Done():
					return nil
				}
			}
		case <-retry:
		case <-beat.C:
			r.d.manager.tidy()
			r.beat()
		case <-ctx.Done():
			return nil
		}
	}
}

// send sends everything that waits, if something presses.
func (r *reporter) send(ctx context.Context) error {
	r.mu.Lock()
	if !r.pressed {
		r.mu.Unlock()
		return nil
	}
	request := &linkv1.ReportRequest{}
	for _, list := range r.runs {
		request.Runs = append(request.Runs, list...)
	}
	for _, c := range r.chores {
		request.Chores = append(request.Chores, c)
	}
	for id := range r.drops {
		request.DroppedSnapshots = append(request.DroppedSnapshots, string(id))
	}
	facts := r.facts
	r.pressed, r.facts = false, false
	r.mu.Unlock()
	slices.SortFunc(request.Runs, func(a, b *linkv1.RunReport) int { return int(a.GetSequence() - b.GetSequence()) })
	if facts {
		request.Facts = r.d.facts()
	}
	ctx, cancel := context.WithTimeout(ctx, reportTime)
	defer cancel()
	if err := r.d.link.report(ctx, request); err != nil {
		r.mu.Lock()
		r.pressed, r.facts = true, r.facts || facts
		r.mu.Unlock()
		return err
	}
	r.sent(request)
	return nil
}

// sent takes what control has out of the queues. What came meanwhile stays.
func (r *reporter) sent(request *linkv1.ReportRequest) {
	newest := map[carrel.RunID]int64{}
	r.mu.Lock()
	for _, p := range request.GetRuns() {
		run := carrel.RunID(p.GetRunId())
		newest[run] = max(newest[run], p.GetSequence())
	}
	for run, sequence := range newest {
		r.runs[run] = slices.DeleteFunc(r.runs[run], func(p *linkv1.RunReport) bool { return p.GetSequence() <= sequence })
		if len(r.runs[run]) == 0 {
			delete(r.runs, run)
		}
	}
	for _, c := range request.GetChores() {
		if r.chores[c.GetChoreId()] == c {
			delete(r.chores, c.GetChoreId())
		}
	}
	for _, id := range request.GetDroppedSnapshots() {
		delete(r.drops, carrel.SnapshotID(id))
	}
	r.mu.Unlock()
	for run, sequence := range newest {
		r.d.manager.told(run, sequence)
	}
}
