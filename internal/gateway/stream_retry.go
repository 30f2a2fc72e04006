package gateway

import (
	"context"
	"time"

	"github.com/cenkalti/backoff/v5"

	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/client"
)

// retryPatience is how long a stream from a box that broke is made again, while the box's run goes on.
const retryPatience = time.Minute

// retry makes a stream from a box's agent again when the connection broke: the node's proxy was restarted, or a pause was begun and given up.
type retry struct {
	g     *Gateway
	pass  pass
	waits *backoff.ExponentialBackOff
	since time.Time // when it broke; zero: it works
}

func newRetry(g *Gateway, p pass) *retry {
	r := &retry{g: g, pass: p, waits: backoff.NewExponentialBackOff()}
	r.waits.InitialInterval, r.waits.MaxInterval = 50*time.Millisecond, time.Second
	return r
}

// wait returns nil when it is time to try again, else why there is no sense in that: err itself, that the run of the box has ended
// (runEnded), or the end of ctx. progress says that the stream had got somewhere before it broke.
func (r *retry) wait(ctx context.Context, err error, progress bool) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if !brokenOff(err) {
		return err
	}
	if progress {
		r.since = time.Time{}
		r.waits.Reset()
	}
	now := r.g.now()
	if r.since.IsZero() {
		r.since = now
	}
	if now.Sub(r.since) > retryPatience {
		return err
	}
	select {
	case <-time.After(r.waits.NextBackOff()):
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	// The route says sooner than a dial that there is nothing to reach.
	if _, err := r.g.routes.find(ctx, r.pass.Box, r.pass.Epoch, routePatience); err != nil {
		return r.g.whyEnded(ctx, r.pass, err)
	}
	return nil
}

// brokenOff reports whether err says that the connection to an agent, not the call, went wrong.
func brokenOff(err error) bool {
	return carrel.CodeOf(err) == carrel.CodeUnavailable && carrel.ReasonOf(err) != reasonAgentFailed
}

// runEnded reports whether err says that the run which a stream was for is over.
func runEnded(err error) bool {
	switch carrel.ReasonOf(err) {
	case client.ReasonBoxNotRunning, client.ReasonTicketStale:
		return true
	}
	return false
}

// whyEnded says of a box that does not run how it is, when control can be asked.
func (g *Gateway) whyEnded(ctx context.Context, p pass, err error) error {
	if carrel.ReasonOf(err) != client.ReasonBoxNotRunning || p.User == "" {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	if now, err := g.askBox(ctx, p.User, string(p.Box), ""); err == nil && !now.Live {
		return errNotRunning(p.Box, now.State)
	}
	return err
}

// streamEnd is why a stream from an agent ended that has no end of its own.
func streamEnd(ctx context.Context, box carrel.BoxID, err error) error {
	if err = fromAgent(ctx, box, err); err != nil {
		return err
	}
	return errUnavailable("box_connection_lost", nil, "the connection to box %s was lost; its processes go on if it runs", box)
}
