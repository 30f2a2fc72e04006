package gateway

import (
	"context"
	"errors"
	"net/http"
	"time"

	"carrel.dev/carrel/internal/auth"
	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/client"
)

// arrivePatience is how long a request waits for a box that is coming up; shorter than clients take a silent stream for broken.
const arrivePatience = 45 * time.Second

// arrive is allow for a request that uses a box, and does not only look at it or poll: a box that sleeps is woken for it, unless its policy says no. Who
// only looks can say that it is a use all the same (`Carrel-Activity: exec`), and who uses that it is none (`Carrel-Activity: none`). Only an API token
// or a sign-in wakes a box, since a ticket is for the run that has ended.
func (g *Gateway) arrive(ctx context.Context, header http.Header, box, org, scope string, uses bool) (pass, error) {
	uses = uses && header.Get(headerActivity) != activityNone || header.Get(headerActivity) == activityExec
	p, err := g.allow(ctx, header, box, org, scope)
	if err == nil && uses { // what is remembered of a right may be older than the box's pause
		_, err = g.routes.find(ctx, p.Box, p.Epoch, routePatience)
	}
	if err == nil || !uses {
		return p, err
	}
	if err := g.rouse(ctx, header, box, org, err); err != nil {
		return pass{}, err
	}
	return g.allow(ctx, header, box, org, scope)
}

// rouse has a box woken for a request that found it asleep, and waits for it. nil: the request can be tried again; else what it is to be answered.
func (g *Gateway) rouse(ctx context.Context, header http.Header, box, org string, asleep error) error {
	if carrel.ReasonOf(asleep) != client.ReasonBoxNotRunning {
		return asleep
	}
	// Who may look only does not start anything.
	if _, err := g.allow(ctx, header, box, org, auth.ScopeExec); err != nil && carrel.ReasonOf(err) != client.ReasonBoxNotRunning {
		return asleep
	}
	user := g.ports.userOfBearer(ctx, header.Get("Authorization"))
	if user == "" {
		return asleep
	}
	found := new(carrel.Error)
	if errors.As(asleep, &found) && carrel.IDKind(found.Metadata["box"]) == 'b' {
		box, org = found.Metadata["box"], ""
	}
	waiting, cancel := context.WithTimeout(ctx, arrivePatience)
	defer cancel()
	ref, err := g.findBox(waiting, user, box, org)
	if err == nil {
		_, err = g.wake(waiting, user, ref, "exec", nil)
	}
	switch {
	case err == nil:
		g.tokens.forgive()
		return nil
	case waiting.Err() != nil && ctx.Err() == nil:
		return errUnavailable(client.ReasonBoxNotUp, err, "box %s is coming up, and was not there within %s; try again in a moment: `carrel show %s` says how far it is", clip(box), arrivePatience, clip(box))
	case carrel.CodeOf(err) == carrel.CodeNotFound, carrel.CodeOf(err) == carrel.CodeDenied:
		return asleep
	}
	return err
}

// forgive forgets which boxes were not to be reached.
func (x *exchanger) forgive() {
	x.known.forget(func(_ exchangeKey, known answer[pass]) bool {
		return carrel.ReasonOf(known.err) == client.ReasonBoxNotRunning
	})
}

// looksAgain reports whether a request that reads something of a box is no sign that somebody is there: a page does so by itself, and a program that
// reads the same again and again polls.
func (g *Gateway) looksAgain(header http.Header, box, path string) bool {
	return header.Get(headerUI) != "" || g.ports.recent.again("read\x00"+header.Get("Authorization")+"\x00"+box+"\x00"+path, g.now())
}
