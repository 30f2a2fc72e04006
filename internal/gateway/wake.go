package gateway

import (
	"context"
	"errors"
	"sync"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sync/singleflight"

	linkv1 "carrel.dev/carrel/api/carrel/link/v1"
	"carrel.dev/carrel/internal/auth"
	"carrel.dev/carrel/internal/carrel"
)

const (
	wakeTimeout = 15 * time.Second
	wakeLook    = time.Second // between two looks at a box that is coming up
	// A user may have this many boxes woken at once, and one more every wakeRefill.
	wakeBurst   = 20
	wakeRefill  = 3 * time.Second
	maxWakeRows = 10_000
)

// waker has boxes started for those who come for them.
type waker struct {
	flight singleflight.Group

	mu      sync.Mutex // guards budgets
	budgets map[carrel.UserID]budget
}

type budget struct {
	left float64
	at   time.Time
}

func newWaker() *waker { return &waker{budgets: map[carrel.UserID]budget{}} }

// take takes one wake-up from a user's budget.
func (w *waker) take(user carrel.UserID, now time.Time) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	b, ok := w.budgets[user]
	if !ok {
		if len(w.budgets) >= maxWakeRows {
			clear(w.budgets)
		}
		b = budget{left: wakeBurst, at: now}
	}
	b.left = min(wakeBurst, b.left+max(0, now.Sub(b.at).Seconds()/wakeRefill.Seconds()))
	b.at = now
	if b.left < 1 {
		w.budgets[user] = b
		e := carrel.Errorf(carrel.CodeExhausted, "too_many_wakes", "you have had too many boxes started within a minute; wait a little")
		e.RetryAfter = wakeRefill
		return e
	}
	b.left--
	w.budgets[user] = b
	return nil
}

// wake has a box started or resumed for a user who came for it (cause: ssh, port, terminal or exec), waits until it can be
// reached or ctx ends, and gives the pass to it. A box that can be reached already is not asked for at control. progress, if not nil, is called
// with each new state while it waits, by the caller's goroutine. Any number of callers at once make one request for each user and
// box. Errors: those of findBox and passOf; CodePrecondition "wake_refused" when the box's policy does not let logins start it; CodeExhausted
// "too_many_wakes"; CodePrecondition "box_failed"; CodeUnavailable when control is away; ctx's own.
func (g *Gateway) wake(ctx context.Context, user carrel.UserID, ref boxRef, cause string, progress func(state string)) (pass, error) {
	told := carrel.State("")
	tell := func(state carrel.State) {
		if state != told && state != "" && progress != nil {
			progress(string(state))
		}
		told = state
	}
	if p, ok, err := g.reachable(ctx, user, ref.Box); ok || err != nil {
		return p, err
	}
	state, err := g.askWake(ctx, user, ref.Box, cause)
	if err != nil {
		return pass{}, err
	}
	tell(state)
	look := time.NewTicker(wakeLook)
	defer look.Stop()
	for {
		changed := g.routes.change()
		if p, ok, err := g.reachable(ctx, user, ref.Box); ok || err != nil {
			return p, err
		}
		select {
		case <-changed:
			continue // the route came
		case <-look.C:
		case <-ctx.Done():
			return pass{}, context.Cause(ctx)
		}
		now, err := g.askBox(ctx, user, string(ref.Box), "")
		switch {
		case carrel.CodeOf(err) == carrel.CodeUnavailable || carrel.CodeOf(err) == carrel.CodeDeadline:
			continue // control may be back before the caller's patience ends
		case err != nil:
			return pass{}, err
		case now.State == carrel.StateFailed || now.State == carrel.StateDeleting || now.State == carrel.StateDeleted:
			return pass{}, errNotRunning(ref.Box, now.State)
		case now.State != told && (now.State == carrel.StateStopped || now.State == carrel.StatePaused):
			// Somebody, or the policy, wants it otherwise by now.
			return pass{}, errNotRunning(ref.Box, now.State)
		}
		tell(now.State)
	}
}

// reachable makes a pass and tries it: ok when the box's agent answers. Not to be reached yet is no error.
func (g *Gateway) reachable(ctx context.Context, user carrel.UserID, box carrel.BoxID) (pass, bool, error) {
	p, err := g.passOf(user, box, auth.ScopeExec)
	switch carrel.CodeOf(err) {
	case 0:
	case carrel.CodeNotFound, carrel.CodePrecondition:
		return pass{}, false, nil // control knows better
	default:
		return pass{}, false, err
	}
	conn, err := g.reach(ctx, p, "agent")
	if err == nil {
		_ = conn.Close() // it was only to see
		return p, true, nil
	}
	switch carrel.CodeOf(err) {
	case carrel.CodeUnavailable, carrel.CodePrecondition:
		return pass{}, false, nil
	}
	return pass{}, false, err
}

// askWake asks control, once for all who wait for the same.
func (g *Gateway) askWake(ctx context.Context, user carrel.UserID, box carrel.BoxID, cause string) (carrel.State, error) {
	answers := g.waker.flight.DoChan(string(user)+" "+string(box), func() (any, error) {
		if err := g.waker.take(user, g.now()); err != nil {
			return nil, err
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), wakeTimeout)
		defer cancel()
		resp, err := g.link.WakeBox(ctx, connect.NewRequest(&linkv1.WakeBoxRequest{UserId: string(user), BoxId: string(box), Cause: cause}))
		if err != nil {
			return nil, g.fromControl(err)
		}
		return carrel.State(resp.Msg.GetState()), nil
	})
	select {
	case answer := <-answers:
		state, ok := answer.Val.(carrel.State)
		if answer.Err == nil && !ok {
			return "", errors.New("wake box: no answer")
		}
		return state, answer.Err
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
}
