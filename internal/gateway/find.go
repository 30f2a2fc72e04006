package gateway

import (
	"context"
	"fmt"
	"time"

	"connectrpc.com/connect"

	linkv1 "carrel.dev/carrel/api/carrel/link/v1"
	"carrel.dev/carrel/internal/carrel"
)

const findTimeout = 10 * time.Second

// boxRef is a box that a user asked for by name, and what a login needs to know of it.
type boxRef struct {
	Box       carrel.BoxID
	Org       carrel.OrgID
	Name      string
	OrgName   string
	Live      bool         // it has a run: passOf gives a pass
	State     carrel.State // empty if it is not known; for a live box of which only the route is known, RUNNING
	Wake      bool         // a login may start it
	KeepShell time.Duration
}

// findBox finds the box that a user means, by id or name, in an organisation (id or name) or in all of theirs: what runs is
// known here, for the rest control is asked. Of several boxes of a name the one that runs is meant. Errors: CodeNotFound
// for what is not there and what the user may not see, alike; CodeInvalid "organisation_needed" when several are meant;
// CodeUnavailable "control_unavailable" when the box does not run, or is not there, and control is away.
func (g *Gateway) findBox(ctx context.Context, user carrel.UserID, name, org string) (boxRef, error) {
	if ref, err := g.findHere(user, name, org); err != nil || ref.Box != "" {
		return ref, err
	}
	ctx, cancel := context.WithTimeout(ctx, findTimeout)
	defer cancel()
	return g.askBox(ctx, user, name, org)
}

// findHere looks among what runs; an empty answer means that control is to be asked.
func (g *Gateway) findHere(user carrel.UserID, name, org string) (boxRef, error) {
	known, ok := g.grants.of(user)
	if !ok {
		return boxRef{}, nil
	}
	var candidates []route
	if carrel.IDKind(name) == 'b' {
		if r, live, _ := g.routes.of(carrel.BoxID(name)); live {
			candidates = []route{r}
		}
	} else {
		candidates = g.routes.named(name)
	}
	var found []boxRef
	for _, r := range candidates {
		orgName := known.orgName(r.Org)
		if known.scope(r.Org) == "" || org != "" && org != orgName && org != string(r.Org) {
			continue
		}
		found = append(found, boxRef{
			Box: r.Box, Org: r.Org, Name: r.Name, OrgName: orgName, Live: true, State: carrel.StateRunning, Wake: r.Wake,
			KeepShell: time.Duration(r.KeepShell) * time.Second,
		})
	}
	switch len(found) {
	case 0:
		return boxRef{}, nil
	case 1:
		return found[0], nil
	}
	return boxRef{}, errSeveral(name, found[0].OrgName)
}

func errSeveral(name, org string) *carrel.Error {
	return carrel.Errorf(carrel.CodeInvalid, "organisation_needed", "several of your organisations have a box %q; say which one is meant, such as %s.%s", clip(name), clip(name), org)
}

func errFindAway(name string, cause error) *carrel.Error {
	return errUnavailable("control_unavailable", cause,
		"there is no running box %q of yours, and the control plane, which knows the others, does not answer at the moment; try again in a few seconds", clip(name))
}

// askBox asks control for a box.
func (g *Gateway) askBox(ctx context.Context, user carrel.UserID, name, org string) (boxRef, error) {
	if !g.routes.isLive() {
		return boxRef{}, errFindAway(name, nil)
	}
	resp, err := g.link.FindBox(ctx, connect.NewRequest(&linkv1.FindBoxRequest{UserId: string(user), Box: clip(name), Org: clip(org)}))
	if err != nil {
		if err = g.fromControl(err); carrel.ReasonOf(err) == "control_unavailable" {
			err = errFindAway(name, err)
		}
		return boxRef{}, err
	}
	r := resp.Msg.GetRoute()
	if carrel.IDKind(r.GetBoxId()) != 'b' {
		return boxRef{}, fmt.Errorf("find box: control answered with the id %q", clip(r.GetBoxId()))
	}
	g.routes.learn(r)
	known, _ := g.grants.of(user)
	org = r.GetOrgId()
	return boxRef{
		Box: carrel.BoxID(r.GetBoxId()), Org: carrel.OrgID(org), Name: r.GetBoxName(), OrgName: known.orgName(carrel.OrgID(org)),
		Live: !r.GetGone(), State: carrel.State(resp.Msg.GetState()), Wake: r.GetWake(), KeepShell: time.Duration(r.GetKeepShellSeconds()) * time.Second,
	}, nil
}
