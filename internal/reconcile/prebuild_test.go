package reconcile

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/store"
)

// tool is a node with versions of agent and runtime.
func tool(name, agent string, change ...func(*store.Node)) store.Node {
	return node(name, append(change, func(n *store.Node) { n.Facts.RuntimeVersion, n.Facts.AgentSHA256 = "fake fake-1", agent })...)
}

func prepares(name, recipe string, pool int) store.PreparedTemplate {
	return store.PreparedTemplate{ID: carrel.TemplateID("t-" + recipe), Org: "o1", Name: name, Version: 1, ImageDigest: digest, Recipe: recipe, Prebuild: true, Pool: pool}
}

// preparing is what there is, put together by the rows of the table.
type preparing struct{ store.Preparation }

func (p *preparing) hidden(id string, purpose carrel.Purpose, recipe string, change ...func(*store.Box)) *store.Box {
	b := box(append([]func(*store.Box){func(b *store.Box) {
		b.ID, b.Purpose, b.Recipe, b.TemplateOrg, b.Template, b.IntentAt = carrel.BoxID(id), purpose, recipe, "o1", "python", now.Add(-time.Minute)
		b.HomeNode = "n-a"
	}}, change...)...)
	p.Hidden = append(p.Hidden, b)
	return b
}

// prebuild adds one on node a; ready ones have a snapshot.
func (p *preparing) prebuild(id, recipe, agent string, ready bool, change ...func(*store.Box)) *store.Prebuild {
	if ready {
		change = append(change, wants(carrel.IntentPaused), run("a", carrel.PhasePaused, true), files("a", carrel.SnapshotMemory))
	}
	p.hidden(id, carrel.PurposePrebuild, recipe, change...)
	made := store.Prebuild{
		Box: carrel.BoxID(id), Org: "o1", TemplateName: "python", Recipe: recipe, Node: "n-a", RuntimeVersion: "fake fake-1", AgentSHA256: agent, CreatedAt: now.Add(-time.Hour),
	}
	if ready {
		made.Snapshot, made.SnapshotVersion = carrel.SnapshotID("s-"+id), "fake-1"
	}
	p.Prebuilds = append(p.Prebuilds, made)
	return &p.Prebuilds[len(p.Prebuilds)-1]
}

func showPrepare(steps []prepareStep) string {
	var lines []string
	for _, s := range steps {
		switch {
		case s.make != nil && s.make.Purpose == carrel.PurposePrebuild:
			lines = append(lines, fmt.Sprintf("prepare %s (%s) on %s, with agent %s", s.make.Template.Name, s.make.Template.Recipe, s.make.Node, s.make.AgentSHA256))
		case s.make != nil:
			lines = append(lines, fmt.Sprintf("have one more %s (%s) wait", s.make.Template.Name, s.make.Template.Recipe))
		default:
			lines = append(lines, fmt.Sprintf("%s: %s, because %s", s.box.ID, s.intent, s.why))
		}
	}
	if len(lines) == 0 {
		return "nothing"
	}
	return strings.Join(lines, "\n    ")
}

// The golden file shows what is done about prebuilds and pools in every kind of situation.
func TestPrepareGolden(t *testing.T) {
	a, b := tool("a", "one"), tool("b", "one")
	failing := failed(carrel.ReasonPrepareFailed, true, time.Minute, 2)
	waits := func(b *store.Box) { run("a", carrel.PhaseRunning, true)(b) }
	from := func(snapshot carrel.SnapshotID) func(*store.Box) {
		return func(b *store.Box) { b.RunFrom, b.StartedFrom = snapshot, "prebuild" }
	}
	rows := []struct {
		name  string
		nodes []store.Node
		make  func(*preparing)
	}{
		{"a template with a prebuild, two nodes", []store.Node{a, b}, func(*preparing) {}},
		{"silent, closed, without the image", []store.Node{tool("a", "one", silent), tool("b", "one", closed), tool("c", "one", empty)}, func(*preparing) {}},
		{"it is being made", []store.Node{a}, func(p *preparing) { p.prebuild("b1", "r1", "one", false, run("a", carrel.PhaseStarting, false)) }},
		{"another template waits for its turn on the node", []store.Node{a}, func(p *preparing) {
			p.prebuild("b1", "r1", "one", false, run("a", carrel.PhaseStarting, false))
			p.Templates = append(p.Templates, prepares("other", "r9", 0))
		}},
		{"one that fails holds nobody up", []store.Node{a}, func(p *preparing) {
			p.prebuild("b1", "r1", "one", false, run("a", carrel.PhaseFailed, false), failing)
			p.Templates = append(p.Templates, prepares("other", "r9", 0))
		}},
		{"its box is prepared", []store.Node{a}, func(p *preparing) { p.prebuild("b1", "r1", "one", false, waits) }},
		{"its memory could not be saved", []store.Node{a}, func(p *preparing) {
			p.prebuild("b1", "r1", "one", false, waits, wants(carrel.IntentPaused), func(b *store.Box) {
				b.Run.FailedOrder, b.Run.Message = carrel.OrderPause, "The node's disk has no room."
			})
		}},
		{"it died before that", []store.Node{a}, func(p *preparing) {
			p.prebuild("b1", "r1", "one", false, run("a", carrel.PhaseFailed, true), files("a", carrel.SnapshotDisk))
		}},
		{"ready", []store.Node{a}, func(p *preparing) { p.prebuild("b1", "r1", "one", true) }},
		{"a new version with another recipe", []store.Node{a}, func(p *preparing) { p.prebuild("b1", "r0", "one", true) }},
		{"that one is being made: the last good one is kept", []store.Node{a}, func(p *preparing) {
			p.prebuild("b1", "r0", "one", true)
			p.prebuild("b2", "r1", "one", false, run("a", carrel.PhaseStarting, false))
		}},
		{"that one is ready", []store.Node{a}, func(p *preparing) { p.prebuild("b1", "r0", "one", true); p.prebuild("b2", "r1", "one", true) }},
		{"another version before the first was ready", []store.Node{a}, func(p *preparing) { p.prebuild("b1", "r0", "one", false, run("a", carrel.PhaseStarting, false)) }},
		{"another agent", []store.Node{tool("a", "two")}, func(p *preparing) { p.prebuild("b1", "r1", "one", true) }},
		{"another runtime", []store.Node{node("a", func(n *store.Node) { n.Facts.RuntimeVersion, n.Facts.AgentSHA256 = "fake fake-2", "one" })}, func(p *preparing) { p.prebuild("b1", "r1", "one", true) }},
		{"a box could not begin from it", []store.Node{a}, func(p *preparing) { p.prebuild("b1", "r1", "one", true).Condemned = carrel.ReasonSnapshotCorrupt }},
		{"its node takes no new boxes", []store.Node{tool("a", "one", closed)}, func(p *preparing) { p.prebuild("b1", "r1", "one", true) }},
		{"its node was removed", []store.Node{tool("a", "one", func(n *store.Node) { n.RemovedAt = now })}, func(p *preparing) { p.prebuild("b1", "r1", "one", true) }},
		{"the template has none any more", []store.Node{a}, func(p *preparing) { p.prebuild("b1", "r1", "one", true); p.Templates = nil }},
		{"it failed for good just now", []store.Node{a}, func(p *preparing) {
			p.prebuild("b1", "r1", "one", false, failed(carrel.ReasonTooLarge, false, 0, 1), func(b *store.Box) { b.Failure.At = now })
		}},
		{"it failed for good a while ago", []store.Node{a}, func(p *preparing) {
			p.prebuild("b1", "r1", "one", false, failed(carrel.ReasonTooLarge, false, 0, 1), func(b *store.Box) { b.Failure.At = now.Add(-time.Hour) })
		}},
		{"a pool of two", []store.Node{a}, func(p *preparing) { p.prebuild("b1", "r1", "one", true); p.Templates[0].Pool = 2 }},
		{"a pool waits for the prebuild", []store.Node{a}, func(p *preparing) { p.Templates[0].Pool = 2 }},
		{"but not for one that fails", []store.Node{a}, func(p *preparing) {
			p.prebuild("b1", "r1", "one", false, run("a", carrel.PhaseFailed, false), failing)
			p.Templates[0].Pool = 1
		}},
		{"a box was taken just now", []store.Node{a}, func(p *preparing) {
			p.prebuild("b1", "r1", "one", true)
			p.Templates[0].Pool, p.JustTaken = 1, true
		}},
		{"the pool is full", []store.Node{a}, func(p *preparing) {
			p.prebuild("b1", "r1", "one", true)
			p.Templates[0].Pool = 1
			p.hidden("p1", carrel.PurposePool, "r1", waits, from("s-b1"))
		}},
		{"the pool is smaller now: one that does not run yet goes first", []store.Node{a}, func(p *preparing) {
			p.prebuild("b1", "r1", "one", true)
			p.Templates[0].Pool = 1
			p.hidden("p1", carrel.PurposePool, "r1", run("a", carrel.PhaseStarting, false))
			p.hidden("p2", carrel.PurposePool, "r1", waits)
		}},
		{"no pool is wanted any more", []store.Node{a}, func(p *preparing) {
			p.prebuild("b1", "r1", "one", true)
			p.hidden("p1", carrel.PurposePool, "r1", waits)
		}},
		{"one waits for an older version", []store.Node{a}, func(p *preparing) {
			p.prebuild("b1", "r1", "one", true)
			p.Templates[0].Pool = 1
			p.hidden("p1", carrel.PurposePool, "r0", waits)
		}},
		{"one came from a prebuild that was replaced", []store.Node{a}, func(p *preparing) {
			p.prebuild("b1", "r1", "one", true)
			p.Templates[0].Pool = 1
			p.hidden("p1", carrel.PurposePool, "r1", waits, from("s-old"))
		}},
		{"one died while it waited", []store.Node{a}, func(p *preparing) {
			p.prebuild("b1", "r1", "one", true)
			p.Templates[0].Pool = 1
			p.hidden("p1", carrel.PurposePool, "r1", run("a", carrel.PhaseFailed, true), files("a", carrel.SnapshotDisk))
		}},
		{"no node takes new boxes", []store.Node{tool("a", "one", closed)}, func(p *preparing) {
			p.Templates[0].Pool = 3
			p.hidden("p1", carrel.PurposePool, "r1", func(b *store.Box) { b.HomeNode = "" })
			p.hidden("p2", carrel.PurposePool, "r1", waits)
		}},
		{"a user's box needs the room", []store.Node{a}, func(p *preparing) {
			p.prebuild("b1", "r1", "one", true)
			p.Templates[0].Pool, p.LackRoom = 3, true
			p.hidden("p1", carrel.PurposePool, "r1", waits)
			p.hidden("p2", carrel.PurposePool, "r1", waits)
		}},
		{"Carrel is being stopped: what is ready stays", []store.Node{a}, func(p *preparing) {
			p.prebuild("b1", "r1", "one", true)
			p.Templates[0].Pool, p.Resting = 2, true
			p.hidden("p1", carrel.PurposePool, "r1", waits)
		}},
		{"the same, while a prebuild is made", []store.Node{a}, func(p *preparing) {
			p.prebuild("b1", "r1", "one", false, waits)
			p.Templates[0].Pool, p.Resting = 2, true
		}},
		{"the same, with nothing there", []store.Node{a}, func(p *preparing) { p.Templates[0].Pool, p.Resting = 2, true }},
	}
	var out strings.Builder
	for _, row := range rows {
		p := &preparing{store.Preparation{Templates: []store.PreparedTemplate{prepares("python", "r1", 0)}}}
		row.make(p)
		fmt.Fprintf(&out, "%s\n    %s\n\n", row.name, showPrepare(planPrepare(p.Preparation, newFleet(row.nodes), now)))
	}
	const golden = "testdata/prepare.golden"
	if *update {
		require.NoError(t, os.WriteFile(golden, []byte(out.String()), 0o644))
	}
	want, err := os.ReadFile(golden)
	require.NoError(t, err)
	require.Equal(t, string(want), out.String(), "the plan changed: look at it, then run go test ./internal/reconcile -run Golden -update")
}

// A box of a template goes where a prebuild is, unless that node is much fuller, and only its first run begins from it.
func TestPlacementPrefersPrebuilds(t *testing.T) {
	p := &preparing{}
	made := *p.prebuild("b1", "r1", "one", true)
	having := func(n *store.Node) { n.Prebuilds = []store.Prebuild{made} }
	clone := func(b *store.Box) { b.Recipe, b.Cloneable = "r1", true }
	placed := func(b *store.Box, nodes ...store.Node) placement {
		t.Helper()
		got := place(b, now, newFleet(nodes))
		require.NotNil(t, got.node)
		return got
	}
	got := placed(box(clone), tool("a", "one", having, used(4000, 2*carrel.GiB, 0)), tool("b", "one"))
	require.Equal(t, "a", got.node.Name)
	require.Equal(t, made.Snapshot, got.clone)
	require.Contains(t, got.why, "cloned from a prebuild of python")
	got = placed(box(clone), tool("a", "one", having, used(0, 6*carrel.GiB, 0)), tool("b", "one"))
	require.Equal(t, "b", got.node.Name, "it has hardly any room left")
	require.Empty(t, got.clone)
	for name, b := range map[string]*store.Box{
		"another recipe":      box(func(b *store.Box) { b.Recipe, b.Cloneable = "r2", true }),
		"other sizes":         box(func(b *store.Box) { b.Recipe = "r1" }),
		"a run before":        box(clone, run("a", carrel.PhaseFailed, false)),
		"a prebuild's own":    box(clone, func(b *store.Box) { b.Purpose, b.HomeNode = carrel.PurposePrebuild, "n-a" }),
		"files of an earlier": box(clone, run("a", carrel.PhaseStopped, true), files("a", carrel.SnapshotDisk)),
	} {
		require.Empty(t, placed(b, tool("a", "one", having)).clone, name)
	}
	other := tool("a", "one", having)
	other.Facts.RuntimeVersion = "fake fake-2"
	require.Empty(t, placed(box(clone), other).clone, "its memory is of another runtime")
	made.Condemned = "snapshot_corrupt"
	require.Empty(t, placed(box(clone), tool("a", "one", having)).clone)
	pinned := box(func(b *store.Box) { b.Purpose, b.HomeNode = carrel.PurposePrebuild, "n-b" })
	require.Equal(t, "b", placed(pinned, tool("a", "one"), tool("b", "one", used(0, 5*carrel.GiB, 0))).node.Name, "a prebuild is made where it is wanted")
}
