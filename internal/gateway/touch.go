package gateway

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"

	"carrel.dev/carrel/internal/auth"
	"carrel.dev/carrel/internal/carrel"
)

// The kinds of activity that the gateway sees.
const (
	activityInput   = "input"   // somebody typed
	activityExec    = "exec"    // a process was started
	activityPort    = "port"    // a request to a port that is not polling
	activitySession = "session" // a session was opened or closed; it has a count
)

const (
	touchEvery   = time.Second // for each box and kind
	touchTimeout = 5 * time.Second
	// sessionsAgain is how often counts of open sessions are told again; a proxy forgets those that it does not hear of.
	sessionsAgain = 30 * time.Second
)

type activityKey struct {
	box  carrel.BoxID
	kind string
}

// activity is what was told, and is to be told, of one kind in one box.
type activity struct {
	pass  pass // the newest
	next  time.Time
	timer *time.Timer // for what came too soon after the last; nil: nothing waits
	open  int         // sessions
}

// toucher tells nodes that somebody uses their boxes. It is safe for concurrent use.
type toucher struct {
	gateway *Gateway
	ctx     context.Context // ends with stop
	stop    context.CancelFunc
	sending sync.WaitGroup

	mu     sync.Mutex // guards what follows
	closed bool
	known  map[activityKey]*activity
}

func newToucher(g *Gateway) *toucher {
	t := &toucher{gateway: g, known: map[activityKey]*activity{}}
	t.ctx, t.stop = context.WithCancel(context.Background())
	return t
}

// touch tells the node of a box that its user did something: activityInput, activityExec or activityPort. The first is told at once, what
// follows within a second once at its end. It never blocks; what cannot be told is lost.
func (g *Gateway) touch(p pass, kind string) { g.toucher.note(p, kind, 0) }

// session tells the node that a session of a user is open, until end is called. It may be called again.
func (g *Gateway) session(p pass) (end func()) {
	g.toucher.note(p, activitySession, +1)
	return sync.OnceFunc(func() { g.toucher.note(p, activitySession, -1) })
}

func (t *toucher) note(p pass, kind string, change int) {
	now := t.gateway.now()
	t.mu.Lock()
	defer t.mu.Unlock()
	key := activityKey{p.Box, kind}
	a := t.known[key]
	if a == nil {
		a = &activity{}
		t.known[key] = a
	}
	a.pass = p
	a.open += change
	switch {
	case t.closed || a.timer != nil:
	case !now.Before(a.next):
		t.tell(key, a, now)
	default:
		a.timer = time.AfterFunc(a.next.Sub(now), func() {
			t.mu.Lock()
			defer t.mu.Unlock()
			a.timer = nil
			if !t.closed {
				t.tell(key, a, t.gateway.now())
			}
		})
	}
}

// tell sends what is known of a kind by a goroutine of its own; the caller holds mu.
func (t *toucher) tell(key activityKey, a *activity, now time.Time) {
	a.next = now.Add(touchEvery)
	p, value := a.pass, key.kind
	if key.kind == activitySession {
		value += "=" + strconv.Itoa(a.open)
	}
	t.sending.Go(func() {
		if err := t.send(p, value); err != nil {
			t.gateway.log.Debug("activity not told", "box", key.box, "kind", key.kind, "error", err)
		}
	})
}

func (t *toucher) send(p pass, value string) error {
	ctx, cancel := context.WithTimeout(t.ctx, touchTimeout)
	defer cancel()
	r, live, _ := t.gateway.routes.of(p.Box)
	if !live || r.Epoch != p.Epoch {
		return nil // there is no such run any more
	}
	// A ticket ends long before a session does; what the gateway knows of the user goes on.
	if granted, err := t.gateway.passOf(p.User, p.Box, auth.ScopeView); err == nil {
		p = granted
	}
	header := p.headers()
	header.Set(headerActivity, value)
	req := (&http.Request{
		Method: http.MethodPost, URL: &url.URL{Scheme: "https", Host: r.Address, Path: "/activity"}, Host: string(p.Box), Header: header,
	}).WithContext(ctx)
	resp, err := t.gateway.proxies.get(proxyKey{r.Node, r.Address}).calls.RoundTrip(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 4<<10))
	if resp.StatusCode != http.StatusNoContent {
		return fmt.Errorf("the proxy answers %d", resp.StatusCode)
	}
	return nil
}

// tidy tells open sessions again and forgets what is over.
func (t *toucher) tidy(now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for key, a := range t.known {
		switch {
		case t.closed || a.timer != nil:
		case key.kind == activitySession && a.open > 0:
			t.tell(key, a, now)
		case now.Sub(a.next) > sessionsAgain:
			delete(t.known, key)
		}
	}
}

// close tells nothing more, and waits for what is being told.
func (t *toucher) close() {
	t.mu.Lock()
	t.closed = true
	for _, a := range t.known {
		if a.timer != nil && a.timer.Stop() {
			a.timer = nil
		}
	}
	t.mu.Unlock()
	t.stop()
	t.sending.Wait()
}
