package proxy

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sync/errgroup"

	agentv1 "carrel.dev/carrel/api/carrel/agent/v1"
	"carrel.dev/carrel/internal/auth"
	"carrel.dev/carrel/internal/carrel"
)

// HeaderActivity says at POST /activity what a user did: input, exec or port, or session=N for N open sessions of the gateway.
const HeaderActivity = "Carrel-Activity"

const (
	// sessionsAge is how long a gateway's count of open sessions is believed; it says it again every 30 s.
	sessionsAge = 90 * time.Second
	maxSessions = 1_000_000
	// pollTime is what an agent has to tell what its box does, and pollsAtOnce how many are asked at a time.
	pollTime    = time.Second
	pollsAtOnce = 32
	// oldAgent is how long an agent is not asked again that does not know the question.
	oldAgent = 10 * time.Minute
)

// RunActivity is what is known of the use of one run, for the node.
type RunActivity struct {
	Run     carrel.RunID    `json:"run"`
	Epoch   int64           `json:"epoch"`
	Signals []carrel.Signal `json:"signals"`
}

// usage is what is known of the use of one run.
type usage struct {
	touched  map[carrel.SignalKind]time.Time
	sessions map[string]sessionCount // by gateway
	closed   time.Time               // when a session was closed last

	asked   time.Time // when the agent was asked last, or is to be thought of as asked
	command carrel.Signal
	cell    carrel.Signal
	viewers int
}

type sessionCount struct {
	open int
	at   time.Time
}

// activity is what is known of the use of all runs. It is safe for concurrent use.
type activity struct {
	now func() time.Time

	mu   sync.Mutex // guards runs
	runs map[carrel.RunID]*usage
}

func newActivity(now func() time.Time) *activity {
	return &activity{now: now, runs: map[carrel.RunID]*usage{}}
}

// of needs mu.
func (a *activity) of(run carrel.RunID) *usage {
	u := a.runs[run]
	if u == nil {
		u = &usage{touched: map[carrel.SignalKind]time.Time{}, sessions: map[string]sessionCount{}}
		a.runs[run] = u
	}
	return u
}

// touch notes that a user did something in a run.
func (a *activity) touch(run carrel.RunID, kind carrel.SignalKind) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.of(run).touched[kind] = a.now()
}

// setSessions notes how many sessions of a gateway are open in a run.
func (a *activity) setSessions(run carrel.RunID, gateway string, open int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	u, now := a.of(run), a.now()
	if open == 0 {
		if _, was := u.sessions[gateway]; was {
			u.closed = now
		}
		delete(u.sessions, gateway)
		return
	}
	u.sessions[gateway] = sessionCount{open, now}
}

// ask reports whether the agent of a run is to be asked, because its answer is older than age; it is then thought of as asked.
func (a *activity) ask(run carrel.RunID, age time.Duration) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	u, now := a.of(run), a.now()
	if now.Sub(u.asked) < age {
		return false
	}
	u.asked = now
	return true
}

// answered takes what an agent said. What it does not know stays as it was.
func (a *activity) answered(run carrel.RunID, answer *agentv1.ActivityResponse, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	u, now := a.of(run), a.now()
	if err != nil {
		if connect.CodeOf(err) == connect.CodeUnimplemented {
			u.asked = now.Add(oldAgent)
		}
		return
	}
	command := agentSignal(answer.GetCommands(), carrel.SignalCommand, now)
	if answer.GetCommandTime() != nil && !command.Active {
		command.At = earlier(answer.GetCommandTime().AsTime(), now)
	}
	u.command = newer(command, u.command)
	u.cell = newer(agentSignal(answer.GetCommands(), carrel.SignalCell, now), u.cell)
	u.viewers = int(answer.GetViewers())
}

// newer is a signal whose time is not before that of the one before it.
func newer(signal, before carrel.Signal) carrel.Signal {
	if before.At.After(signal.At) {
		signal.At = before.At
	}
	return signal
}

// agentSignal makes a signal, of commands or of cells, of what an agent, which may be anybody's program, says.
func agentSignal(all []*agentv1.ForegroundCommand, kind carrel.SignalKind, now time.Time) carrel.Signal {
	s := carrel.Signal{Kind: kind}
	var commands []*agentv1.ForegroundCommand
	for _, one := range all {
		if one.GetCell() == (kind == carrel.SignalCell) {
			commands = append(commands, one)
		}
	}
	if len(commands) == 0 {
		return s
	}
	s.Active, s.At = true, now
	s.Detail = printable(strings.ToValidUTF8(commands[0].GetCommand(), ""))
	if commands[0].GetStartTime() != nil {
		s.Detail += " (since " + earlier(commands[0].GetStartTime().AsTime(), now).UTC().Format("2006-01-02 15:04 UTC") + ")"
	}
	if more := len(commands) - 1; more > 0 {
		s.Detail += fmt.Sprintf(" and %d more", more)
	}
	return s
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// snapshot is what is known of a run.
func (a *activity) snapshot(run carrel.RunID) []carrel.Signal {
	a.mu.Lock()
	defer a.mu.Unlock()
	u, now := a.runs[run], a.now()
	if u == nil {
		return nil
	}
	var signals []carrel.Signal
	for kind, at := range u.touched {
		signals = append(signals, carrel.Signal{Kind: kind, At: at})
	}
	for _, signal := range []carrel.Signal{u.command, u.cell} {
		if !signal.At.IsZero() {
			signals = append(signals, signal)
		}
	}
	open := 0
	for gateway, c := range u.sessions {
		if now.Sub(c.at) > sessionsAge {
			delete(u.sessions, gateway)
			u.closed = c.at
			continue
		}
		open += c.open
	}
	switch {
	case open > 0:
		signals = append(signals, carrel.Signal{Kind: carrel.SignalSession, At: now, Active: true, Detail: plural(open, "session")})
	case u.viewers > 0:
		signals = append(signals, carrel.Signal{Kind: carrel.SignalSession, At: now, Active: true, Detail: plural(u.viewers, "viewer")})
	case !u.closed.IsZero():
		signals = append(signals, carrel.Signal{Kind: carrel.SignalSession, At: u.closed})
	}
	return signals
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// keep forgets the runs that are not in the table any more.
func (a *activity) keep(routes []Route) {
	known := make(map[carrel.RunID]bool, len(routes))
	for _, r := range routes {
		known[r.Run] = true
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for run := range a.runs {
		if !known[run] {
			delete(a.runs, run)
		}
	}
}

// serveActivity is POST /activity of gateways: somebody uses a box. A box that is quiet because it is being paused is told of, too: that is
// what takes the pause back.
func (p *Proxy) serveActivity(w http.ResponseWriter, r *http.Request) {
	err := func() error {
		peer, err := auth.PeerIdentity(r.TLS)
		if err != nil || peer.Role != auth.PeerGateway {
			return refuse(http.StatusForbidden, "not_a_gateway", "only gateways may tell of activity")
		}
		right, err := p.right(r, "")
		if err != nil {
			return err
		}
		if string(right.Box) != r.Host {
			return refuse(http.StatusForbidden, "ticket_of_another_box", "the ticket is for another box")
		}
		run, err := p.table.runOf(right)
		if err != nil {
			return err
		}
		kind, count, counted := strings.Cut(r.Header.Get(HeaderActivity), "=")
		switch k := carrel.SignalKind(kind); k {
		case carrel.SignalInput, carrel.SignalExec, carrel.SignalPort:
			if !counted {
				p.activity.touch(run, k)
				return nil
			}
		case carrel.SignalSession:
			n, err := strconv.Atoi(count)
			if err == nil && n >= 0 && n <= maxSessions {
				p.activity.setSessions(run, peer.ID, n)
				return nil
			}
		}
		return refuse(http.StatusBadRequest, "bad_activity", "the header %s is input, exec, port or session=N", HeaderActivity)
	}()
	if err != nil {
		writeError(w, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// activities asks the agents whose answers are older than age, and gives what is known of all runs.
func (p *Proxy) activities(ctx context.Context, age time.Duration) []RunActivity {
	routes, open := p.table.all()
	p.activity.keep(routes)
	var g errgroup.Group
	g.SetLimit(pollsAtOnce)
	for i, r := range routes {
		if open[i] && ctx.Err() == nil && p.activity.ask(r.Run, age) {
			g.Go(func() error { p.askAgent(ctx, r); return nil })
		}
	}
	_ = g.Wait() // nothing of it is an error
	out := make([]RunActivity, 0, len(routes))
	for _, r := range routes {
		out = append(out, RunActivity{Run: r.Run, Epoch: r.Epoch, Signals: p.activity.snapshot(r.Run)})
	}
	return out
}

// activityOf is what is known of one run; its agent is asked now, unless it was asked to be quiet.
func (p *Proxy) activityOf(ctx context.Context, r Route) RunActivity {
	if p.table.open(r.Run) && p.activity.ask(r.Run, 0) {
		p.askAgent(ctx, r)
	}
	return RunActivity{Run: r.Run, Epoch: r.Epoch, Signals: p.activity.snapshot(r.Run)}
}

func (p *Proxy) askAgent(ctx context.Context, r Route) {
	ctx, cancel := context.WithTimeout(ctx, pollTime)
	defer cancel()
	answer, err := func() (*agentv1.ActivityResponse, error) {
		client, done, err := control(ctx, r, callTry)
		if err != nil {
			return nil, err
		}
		defer done()
		answer, err := client.Activity(ctx, connect.NewRequest(&agentv1.ActivityRequest{}))
		if err != nil {
			return nil, err
		}
		return answer.Msg, nil
	}()
	if err != nil {
		p.log.Debug("an agent does not tell what its box does", "run", r.Run, "error", err)
	}
	p.activity.answered(r.Run, answer, err)
}
