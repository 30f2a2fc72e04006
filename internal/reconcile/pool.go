package reconcile

import (
	"slices"

	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/store"
)

// fillAtOnce is how many boxes of one pool are made by one tick.
const fillAtOnce = 4

// planPools decides about the boxes that wait to be taken.
func (w *preparer) planPools() {
	waiting := map[lineage][]*store.Box{}
	open := slices.ContainsFunc(w.fleet.nodes, func(m *machine) bool { return m.Schedulable && m.RemovedAt.IsZero() })
	for _, b := range w.Hidden {
		if b.Purpose != carrel.PurposePool {
			continue
		}
		t := w.templateOf(b)
		switch {
		case t == nil || t.Pool == 0:
			w.discard(b, "its pool is not wanted any more")
		case b.Recipe != t.Recipe:
			w.discard(b, "it was prepared for an older version of its template")
		case b.Snapshot != nil:
			w.discard(b, "its sandbox died")
		case !open && !b.Live():
			w.discard(b, "no node takes new boxes")
		case w.closed(b):
			w.discard(b, "its node takes no new boxes")
		case w.outdated(b, t):
			w.discard(b, "a newer prebuild takes the place of the one that it came from")
		default:
			waiting[lineage{t.Org, t.Name}] = append(waiting[lineage{t.Org, t.Name}], b)
		}
	}
	gaveWay := !w.LackRoom
	for _, t := range w.Templates {
		boxes := waiting[lineage{t.Org, t.Name}]
		// Those that run are the last to go.
		slices.SortStableFunc(boxes, func(a, b *store.Box) int { return runs(b) - runs(a) })
		for _, b := range boxes[min(t.Pool, len(boxes)):] {
			w.discard(b, "its pool is smaller now")
		}
		boxes = boxes[:min(t.Pool, len(boxes))]
		if w.LackRoom {
			// One at a time: what lacks room may fit then.
			if i := slices.IndexFunc(boxes, (*store.Box).Live); i >= 0 && !gaveWay {
				w.discard(boxes[i], "a user's box needs the room")
				gaveWay = true
			}
			continue
		}
		if ready, coming := w.ready(&t); w.JustTaken || !open || t.Prebuild && coming && !ready {
			continue // clones cost less
		}
		for range min(t.Pool-len(boxes), fillAtOnce) {
			w.steps = append(w.steps, prepareStep{make: &store.NewHidden{Purpose: carrel.PurposePool, Template: t}})
		}
	}
}

// templateOf is the newest version of a hidden box's template, if anything is prepared for that.
func (w *preparer) templateOf(b *store.Box) *store.PreparedTemplate {
	return w.newest[lineage{b.TemplateOrg, b.Template}]
}

// closed reports whether a box is on a node that shall take no new ones.
func (w *preparer) closed(b *store.Box) bool {
	m := w.fleet.byID[b.HomeNode]
	return m != nil && !m.Schedulable
}

// outdated reports whether a box was cloned from a prebuild whose place another one that is ready has taken on its node.
func (w *preparer) outdated(b *store.Box, t *store.PreparedTemplate) bool {
	if b.StartedFrom != "prebuild" || b.Run == nil {
		return false
	}
	m := w.fleet.byID[b.Run.NodeID]
	newer := false
	for i := range w.Prebuilds {
		p := &w.Prebuilds[i]
		if m == nil || p.Node != m.ID || p.Snapshot == "" || p.Condemned != "" || !w.current(p, t, m) {
			continue
		}
		if p.Snapshot == b.RunFrom {
			return false
		}
		newer = true
	}
	return newer
}

func runs(b *store.Box) int {
	if b.Live() && b.Run.Phase == carrel.PhaseRunning {
		return 1
	}
	return 0
}
