package reconcile

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/failpoint"
	"carrel.dev/carrel/internal/store"
)

const (
	// captureRetry is how long after a capture of a prebuild was undone it is tried again.
	captureRetry = 30 * time.Second
	// anewAfter is how long a prebuild that failed for good is shown before another one is tried.
	anewAfter = 10 * time.Minute
)

// prepareStep is one change about hidden boxes.
type prepareStep struct {
	make   *store.NewHidden // make one, or
	box    *store.Box       // want something else of this one
	intent carrel.Intent
	why    string
}

// tickPrepare keeps prebuilds and warm pools as they shall be.
func (r *Reconciler) tickPrepare(ctx context.Context, lease store.Lease) (bool, error) {
	p, err := r.store.Preparation(ctx)
	if err != nil {
		return false, fmt.Errorf("reading what is prepared: %w", err)
	}
	if len(p.Templates) == 0 && len(p.Hidden) == 0 {
		return false, nil
	}
	nodes, err := r.store.Nodes(ctx)
	if err != nil {
		return false, fmt.Errorf("reading nodes: %w", err)
	}
	steps := planPrepare(p, newFleet(nodes), r.cfg.Now())
	if err := failpoint.Hit("reconcile/prepare/planned"); err != nil {
		return false, err
	}
	for _, s := range steps {
		if s.make != nil {
			id, err := r.store.CreateHidden(ctx, lease, *s.make)
			if err != nil {
				return false, fmt.Errorf("making a box to prepare: %w", err)
			}
			r.cfg.Logger.Info("a box is prepared", "box", id, "purpose", s.make.Purpose, "template", s.make.Template.Name, "version", s.make.Template.Version, "node", s.make.Node)
			continue
		}
		err := r.store.SetHidden(ctx, lease, s.box, s.intent, s.why)
		if err != nil && !errors.Is(err, store.ErrChanged) {
			return false, fmt.Errorf("changing a prepared box: %w", err)
		}
		r.cfg.Logger.Debug("a prepared box is wanted otherwise", "box", s.box.ID, "intent", s.intent, "why", s.why, "error", err)
	}
	return false, nil
}

// planPrepare decides about prebuilds and pools. It is a pure function.
func planPrepare(p store.Preparation, f *fleet, now time.Time) []prepareStep {
	w := &preparer{Preparation: p, fleet: f, now: now, hidden: map[carrel.BoxID]*store.Box{}, newest: map[lineage]*store.PreparedTemplate{}, building: map[carrel.NodeID]bool{}}
	for _, b := range p.Hidden {
		w.hidden[b.ID] = b
	}
	for i, t := range p.Templates {
		w.newest[lineage{t.Org, t.Name}] = &p.Templates[i]
	}
	if p.Resting {
		w.planRest()
		return w.steps
	}
	w.planPrebuilds()
	w.planPools()
	return w.steps
}

// planRest gives up what runs, or is about to: prebuilds that are ready stay, and all else is made anew after the rest.
func (w *preparer) planRest() {
	for _, b := range w.Hidden {
		if b.Purpose == carrel.PurposePool || !b.HasMemory() {
			w.discard(b, "nothing is prepared while Carrel is being stopped")
		}
	}
}

// lineage is a template with all its versions.
type lineage struct {
	org  carrel.OrgID
	name string
}

// place is where the prebuilds of a template take each other's place.
type prebuildPlace struct {
	lineage
	node carrel.NodeID
}

type preparer struct {
	store.Preparation
	fleet    *fleet
	now      time.Time
	hidden   map[carrel.BoxID]*store.Box
	newest   map[lineage]*store.PreparedTemplate
	building map[carrel.NodeID]bool // one at a time on each
	steps    []prepareStep
}

func (w *preparer) want(b *store.Box, intent carrel.Intent, format string, args ...any) {
	w.steps = append(w.steps, prepareStep{box: b, intent: intent, why: fmt.Sprintf(format, args...)})
}

func (w *preparer) discard(b *store.Box, format string, args ...any) {
	w.want(b, carrel.IntentDeleted, format, args...)
}

// current reports whether a prebuild is what would be made now.
func (w *preparer) current(p *store.Prebuild, t *store.PreparedTemplate, m *machine) bool {
	return p.Recipe == t.Recipe && p.RuntimeVersion == m.Facts.RuntimeVersion && p.AgentSHA256 == m.Facts.AgentSHA256
}

func (w *preparer) planPrebuilds() {
	groups := map[prebuildPlace][]*store.Prebuild{}
	for i := range w.Prebuilds {
		p := &w.Prebuilds[i]
		b := w.hidden[p.Box]
		t, m := w.newest[lineage{p.Org, p.TemplateName}], w.fleet.byID[p.Node]
		switch {
		case b == nil:
		case t == nil || !t.Prebuild:
			w.discard(b, "the template has no prebuild any more")
		case m == nil || !m.RemovedAt.IsZero():
			w.discard(b, "its node was removed")
		case !m.Schedulable:
			w.discard(b, "its node takes no new boxes")
		case p.Condemned != "":
			w.discard(b, "a box could not begin from it (%s)", p.Condemned)
		default:
			at := prebuildPlace{lineage{p.Org, p.TemplateName}, p.Node}
			groups[at] = append(groups[at], p)
		}
	}
	missing := map[prebuildPlace]bool{}
	for _, t := range w.Templates {
		for _, m := range w.fleet.nodes {
			at := prebuildPlace{lineage{t.Org, t.Name}, m.ID}
			if t.Prebuild && !w.keep(groups[at], &t, m) {
				missing[at] = true
			}
		}
	}
	for _, t := range w.Templates {
		for _, m := range w.fleet.nodes {
			if !missing[prebuildPlace{lineage{t.Org, t.Name}, m.ID}] || w.building[m.ID] || !m.Schedulable || !m.RemovedAt.IsZero() || !m.online(w.now) || !m.images[t.ImageDigest] {
				continue
			}
			w.building[m.ID] = true
			w.steps = append(w.steps, prepareStep{make: &store.NewHidden{
				Purpose: carrel.PurposePrebuild, Template: t, Node: m.ID, RuntimeVersion: m.Facts.RuntimeVersion, AgentSHA256: m.Facts.AgentSHA256,
			}})
		}
	}
}

// keep decides which of the prebuilds of a template on a node stay, and goes on with the one that is being made. It reports whether there is
// one as it would be made now.
func (w *preparer) keep(all []*store.Prebuild, t *store.PreparedTemplate, m *machine) bool {
	var best *store.Prebuild
	for _, p := range all {
		if w.current(p, t, m) && (best == nil || best.Snapshot == "" && p.Snapshot != "") {
			best = p
		}
	}
	for _, p := range all {
		switch {
		case p == best:
		case best != nil && best.Snapshot != "":
			w.discard(w.hidden[p.Box], "a newer prebuild takes its place")
		case p.Snapshot == "":
			w.discard(w.hidden[p.Box], "another prebuild is wanted before it was ready")
		}
	}
	if best == nil {
		return false
	}
	if best.Snapshot == "" {
		w.advance(w.hidden[best.Box], m)
	}
	return true
}

// advance does the next step for a prebuild that is being made: its box is paused once it is prepared.
func (w *preparer) advance(b *store.Box, m *machine) {
	failure := b.CurrentFailure()
	if failure == nil {
		w.building[m.ID] = true
	}
	switch observed := b.Observe(); {
	case b.Snapshot != nil && !b.HasMemory():
		w.discard(b, "its sandbox died before its memory was saved")
	case failure != nil && !failure.Transient:
		if w.now.Sub(failure.At) >= anewAfter {
			w.discard(b, "it failed for good and is tried anew: %s", failure.Message)
		}
	case b.Intent == carrel.IntentRunning && observed == carrel.ObservedRunning:
		w.want(b, carrel.IntentPaused, "it is prepared; its memory is saved")
	case observed == carrel.ObservedUndone && w.now.Sub(b.IntentAt) >= captureRetry:
		w.want(b, carrel.IntentPaused, "its memory is saved, once more: %s", b.Run.Message)
	}
}

// ready reports whether a prebuild as it would be made now is ready on a node, or may become so without having failed.
func (w *preparer) ready(t *store.PreparedTemplate) (ready, coming bool) {
	for i := range w.Prebuilds {
		p := &w.Prebuilds[i]
		m, b := w.fleet.byID[p.Node], w.hidden[p.Box]
		if m == nil || b == nil || p.Condemned != "" || !w.current(p, t, m) {
			continue
		}
		ready = ready || p.Snapshot != ""
		coming = coming || p.Snapshot == "" && b.CurrentFailure() == nil
	}
	coming = coming || slices.ContainsFunc(w.steps, func(s prepareStep) bool { return s.make != nil && s.make.Template.ID == t.ID })
	return ready, coming
}
