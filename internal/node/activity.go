package node

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	linkv1 "carrel.dev/carrel/api/carrel/link/v1"
	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/node/proxy"
	"carrel.dev/carrel/internal/runtime"
)

const (
	// agentAge is how old an agent's answer may be when a heartbeat tells of it.
	agentAge = 9 * time.Second
	// activityTime bounds one question to the proxy, which bounds its own to each agent.
	activityTime = 3 * time.Second
	// cpuWindow is over how long the use of CPU is averaged, and cpuLeast over how long at least.
	cpuWindow = time.Minute
	cpuLeast  = 2 * time.Second
)

// errActive says that a pause or stop by the policy is pointless: somebody uses the box.
var errActive = carrel.Errorf(carrel.CodePrecondition, carrel.ReasonActive, "Somebody used the box while it was about to be paused or stopped for not being used.")

// activities is what the node knows of the use of its runs, and what of it control has. It is safe for concurrent use.
type activities struct {
	d *Daemon

	mu   sync.Mutex // guards what follows
	runs map[carrel.RunID]*runUse
}

// runUse is what is known of one run.
type runUse struct {
	epoch   int64
	signals map[carrel.SignalKind]carrel.Signal
	told    map[carrel.SignalKind]carrel.Signal // that control has
	cpu     cpuMeter
}

func newActivities(d *Daemon) *activities {
	return &activities{d: d, runs: map[carrel.RunID]*runUse{}}
}

// measured is a run that lives, as its worker knows it.
type measured struct {
	run   carrel.RunID
	epoch int64
	busy  int64 // see linkv1.DesiredRun.busy_cpu_millis
}

// collect looks at every run and gives what control does not have yet. What the proxy does not say stays as it was.
func (a *activities) collect(ctx context.Context) []*linkv1.RunActivity {
	live := a.d.manager.measured()
	a.keep(live)
	for _, m := range live {
		a.measure(m)
	}
	ctx, cancel := context.WithTimeout(ctx, activityTime)
	defer cancel()
	said, err := a.d.proxy.Activity(ctx, agentAge)
	if err != nil {
		a.d.log.Debug("the proxy does not tell what boxes are used for", "error", err)
	}
	for _, one := range said {
		a.merge(one)
	}
	return a.news(live)
}

func (a *activities) keep(live []measured) {
	a.mu.Lock()
	defer a.mu.Unlock()
	known := make(map[carrel.RunID]bool, len(live))
	for _, m := range live {
		known[m.run] = true
		if u := a.runs[m.run]; u == nil || u.epoch != m.epoch {
			a.runs[m.run] = &runUse{epoch: m.epoch, signals: map[carrel.SignalKind]carrel.Signal{}, told: map[carrel.SignalKind]carrel.Signal{}}
		}
	}
	for run := range a.runs {
		if !known[run] {
			delete(a.runs, run)
		}
	}
}

// measure looks how much CPU a run used of late.
func (a *activities) measure(m measured) {
	meter, ok := a.d.runtime.(runtime.Meter)
	if !ok {
		return
	}
	used, err := meter.CPUTime(string(m.run))
	if err != nil {
		return // it is about to end
	}
	now := a.d.now()
	a.mu.Lock()
	defer a.mu.Unlock()
	u := a.runs[m.run]
	if u == nil {
		return
	}
	millis, known := u.cpu.add(now, used)
	if !known {
		return
	}
	s := carrel.Signal{Kind: carrel.SignalCPU, At: u.signals[carrel.SignalCPU].At}
	if m.busy >= 0 && millis > m.busy {
		s.Active, s.At = true, now
		s.Detail = fmt.Sprintf("%d%% of a core, above %d%%", millis/10, m.busy/10)
	}
	if !s.At.IsZero() {
		u.signals[carrel.SignalCPU] = s
	}
}

// merge takes what the proxy says of a run. A proxy that was started again may know less than before.
func (a *activities) merge(said proxy.RunActivity) {
	a.mu.Lock()
	defer a.mu.Unlock()
	u := a.runs[said.Run]
	if u == nil || u.epoch != said.Epoch {
		return
	}
	said.Signals = slices.DeleteFunc(said.Signals, func(s carrel.Signal) bool { return s.Kind == carrel.SignalCPU })
	for kind, was := range u.signals { // what it does not say does not go on
		if was.Active && kind != carrel.SignalCPU {
			was.Active = false
			u.signals[kind] = was
		}
	}
	for _, s := range said.Signals {
		if was := u.signals[s.Kind]; was.At.After(s.At) {
			s.At = was.At
		}
		u.signals[s.Kind] = s
	}
}

// news is what changed since control was told.
func (a *activities) news(live []measured) []*linkv1.RunActivity {
	a.mu.Lock()
	defer a.mu.Unlock()
	var all []*linkv1.RunActivity
	for _, m := range live {
		u := a.runs[m.run]
		if u == nil {
			continue
		}
		one := &linkv1.RunActivity{RunId: string(m.run), Epoch: m.epoch}
		for kind, s := range u.signals {
			if sameSignal(s, u.told[kind]) {
				continue
			}
			one.Signals = append(one.Signals, &linkv1.ActivitySignal{Kind: string(kind), Time: timestamppb.New(s.At), Active: s.Active, Detail: s.Detail})
		}
		if len(one.GetSignals()) > 0 {
			all = append(all, one)
		}
	}
	return all
}

// sameSignal reports whether control need not hear of a signal: that what goes on still goes on is no news.
func sameSignal(now, told carrel.Signal) bool {
	if now.Active && told.Active {
		return now.Kind == carrel.SignalCPU || now.Detail == told.Detail
	}
	return now.Active == told.Active && now.At.Equal(told.At)
}

// told remembers what control has.
func (a *activities) told(all []*linkv1.RunActivity) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, one := range all {
		u := a.runs[carrel.RunID(one.GetRunId())]
		if u == nil || u.epoch != one.GetEpoch() {
			continue
		}
		for _, s := range one.GetSignals() {
			kind := carrel.SignalKind(s.GetKind())
			u.told[kind] = carrel.Signal{Kind: kind, At: s.GetTime().AsTime(), Active: s.GetActive(), Detail: s.GetDetail()}
		}
	}
}

// usedSince reports whether something that counts happened in a run after a time, or goes on. Its agent is asked, unless it is quiet.
func (a *activities) usedSince(ctx context.Context, m measured, since time.Time) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, activityTime)
	defer cancel()
	said, err := a.d.proxy.ActivityOf(ctx, m.run)
	if err != nil {
		return false, err // nobody knows, so nothing is done
	}
	a.merge(said)
	a.mu.Lock()
	defer a.mu.Unlock()
	u := a.runs[m.run]
	var signals []carrel.Signal
	if u != nil && u.epoch == m.epoch {
		for _, s := range u.signals {
			signals = append(signals, s)
		}
	} else {
		signals = said.Signals // there was no heartbeat yet
	}
	last, active := carrel.LastCounting(signals)
	// Control keeps microseconds.
	return active || last.Truncate(time.Microsecond).After(since), nil
}

// cpuMeter averages the CPU of one run.
type cpuMeter struct {
	samples []cpuSample // oldest first, over cpuWindow
}

type cpuSample struct {
	at   time.Time
	used time.Duration
}

// add takes a sample and gives the average, in thousandths of a core; false: too little is known.
func (c *cpuMeter) add(at time.Time, used time.Duration) (int64, bool) {
	if n := len(c.samples); n > 0 && (used < c.samples[n-1].used || !at.After(c.samples[n-1].at)) {
		c.samples = nil // processes ended, or the clock was set back: begin anew
	}
	c.samples = append(c.samples, cpuSample{at, used})
	for len(c.samples) > 2 && at.Sub(c.samples[1].at) >= cpuWindow {
		c.samples = c.samples[1:]
	}
	first := c.samples[0]
	span := at.Sub(first.at)
	if span < cpuLeast {
		return 0, false
	}
	return int64((used - first.used) * 1000 / span), true
}
