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
// answered; those on the way ride along. What settles nothing, control answers only after a while, when it has written
// it with others; so that goes its own way, and nothing that settles something waits behind it. It is safe
// for concurrent use, and nobody waits for it.
type reporter struct {
	d        *Daemon
	settling lane // reports of runs and chores
	resting  lane // facts and dropped snapshots, and with each heartbeat what only rides along

	mu     sync.Mutex // guards what follows
	runs   map[carrel.RunID][]*linkv1.RunReport
	chores map[string]*linkv1.ChoreReport
	drops  map[carrel.SnapshotID]bool
	facts  bool // are to be sent
}

// lane is one report at a time.
type lane struct {
	wake    chan struct{}
	pressed bool // something is to be sent now; guarded by the reporter's mu
}

func (l *lane) poke() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

func newReporter(d *Daemon) *reporter {
	return &reporter{
		d: d, settling: lane{wake: make(chan struct{}, 1)}, resting: lane{wake: make(chan struct{}, 1)},
		runs: map[carrel.RunID][]*linkv1.RunReport{}, chores: map[string]*linkv1.ChoreReport{}, drops: map[carrel.SnapshotID]bool{},
	}
}

func runReport(e *entry, r report) *linkv1.RunReport {
	p := &linkv1.RunReport{
		RunId: string(e.Run), Epoch: e.Epoch, Sequence: r.Sequence, Phase: string(r.Phase), Generation: r.Generation,
		Time: timestamppb.New(r.Time), FailedOrder: string(r.FailedOrder), SnapshotId: string(r.SnapshotID),
		StartedFrom: r.StartedFrom, Notice: r.Notice, CloneFailure: r.CloneFailure,
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
	r.mu.Unlock()
	if now {
		r.press(&r.settling)
	}
}

// press has a lane send now.
func (r *reporter) press(l *lane) {
	r.mu.Lock()
	l.pressed = true
	r.mu.Unlock()
	l.poke()
}

// chore reports the progress or end of a chore.
func (r *reporter) chore(p *linkv1.ChoreReport) {
	r.mu.Lock()
	r.chores[p.GetChoreId()] = p
	r.mu.Unlock()
	if p.GetDone() {
		r.press(&r.settling)
		r.beat()
	}
}

// dropped reports that a snapshot is gone.
func (r *reporter) dropped(id carrel.SnapshotID) {
	r.mu.Lock()
	r.drops[id] = true
	r.mu.Unlock()
	r.press(&r.resting) // the facts are told with the next heartbeat
}

// beat has facts sent now.
func (r *reporter) beat() {
	r.mu.Lock()
	r.facts = true
	r.mu.Unlock()
	r.press(&r.resting)
}

// run sends until ctx ends. What is not sent then is in the ledger.
func (r *reporter) run(ctx context.Context) error {
	var lanes sync.WaitGroup
	lanes.Go(func() { r.follow(ctx, &r.settling, nil) })
	lanes.Go(func() {
		beat := time.NewTicker(heartbeat)
		defer beat.Stop()
		r.follow(ctx, &r.resting, beat.C)
	})
	lanes.Wait()
	return nil
}

// follow sends what goes one lane.
func (r *reporter) follow(ctx context.Context, l *lane, beat <-chan time.Time) {
	pause := retryMin
	for {
		var retry <-chan time.Time
		if err := r.send(ctx, l); err != nil && ctx.Err() == nil {
			r.d.log.Debug("control does not take a report; it is tried again", "error", err)
			retry = time.After(pause + rand.N(pause))
			pause = min(2*pause, retryMax)
		} else {
			pause = retryMin
		}
		select {
		case <-l.wake:
			if retry != nil { // control is away: new reports wait for the same try
				select {
				case <-retry:
				case <-ctx.Done():
					return
				}
			}
		case <-retry:
		case <-beat:
			r.d.manager.tidy()
			r.beat()
		case <-ctx.Done():
			return
		}
	}
}

// send sends everything that waits in a lane, if something presses.
func (r *reporter) send(ctx context.Context, l *lane) error {
	r.mu.Lock()
	if !l.pressed {
		r.mu.Unlock()
		return nil
	}
	request := &linkv1.ReportRequest{}
	// A report twice is a report once; still, what is about to go the other lane stays there.
	if l == &r.settling || !r.settling.pressed {
		for _, list := range r.runs {
			request.Runs = append(request.Runs, list...)
		}
		for _, c := range r.chores {
			request.Chores = append(request.Chores, c)
		}
	}
	facts := false
	if l == &r.resting {
		for id := range r.drops {
			request.DroppedSnapshots = append(request.DroppedSnapshots, string(id))
		}
		facts, r.facts = r.facts, false
	}
	l.pressed = false
	r.mu.Unlock()
	slices.SortFunc(request.Runs, func(a, b *linkv1.RunReport) int { return int(a.GetSequence() - b.GetSequence()) })
	if facts {
		request.Facts = r.d.facts()
		request.Activities = r.d.use.collect(ctx)
	}
	ctx, cancel := context.WithTimeout(ctx, reportTime)
	defer cancel()
	if err := r.d.link.report(ctx, request); err != nil {
		r.mu.Lock()
		l.pressed, r.facts = true, r.facts || facts
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
	r.d.use.told(request.GetActivities())
	for run, sequence := range newest {
		r.d.manager.told(run, sequence)
	}
}
