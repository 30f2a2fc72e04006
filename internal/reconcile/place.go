package reconcile

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/store"
)

// OfflineAfter is how long a node may be silent before nothing new is placed on it.
const OfflineAfter = 20 * time.Second

// wakesAtOnce is how many boxes a node has to start or resume from their files at a time; the others wait for their turn. A node works
// on a few at a time, so this keeps it busy, and lets those that come later be stopped or deleted without it.
const wakesAtOnce = 32

// machine is a node and what is left of it.
type machine struct {
	store.Node
	images map[string]bool
	orgs   map[carrel.OrgID]int // boxes placed since the read, by organisation
}

// fleet is every node as one read saw it, less what was placed since. It is not safe for concurrent use.
type fleet struct {
	nodes []*machine // by name
	byID  map[carrel.NodeID]*machine
}

func newFleet(nodes []store.Node) *fleet {
	f := &fleet{byID: map[carrel.NodeID]*machine{}}
	for _, n := range nodes {
		m := &machine{Node: n, images: map[string]bool{}, orgs: map[carrel.OrgID]int{}}
		for _, digest := range n.Facts.Images {
			m.images[digest] = true
		}
		f.nodes = append(f.nodes, m)
		f.byID[n.ID] = m
	}
	slices.SortFunc(f.nodes, func(a, b *machine) int { return cmp.Compare(a.Name, b.Name) })
	return f
}

func (m *machine) online(now time.Time) bool {
	return !m.FactsAt.IsZero() && now.Sub(m.LastSeen) < OfflineAfter
}

// diskNeed is what a box still needs of the node's disk: where its files are, it has its room already.
func (m *machine) diskNeed(b *store.Box) int64 {
	if b.HomeNode == m.ID && b.Purpose != carrel.PurposePrebuild {
		return 0
	}
	return b.Resources.DiskBytes()
}

// take reserves what a box needs, so that the next box of the same tick sees it.
func (m *machine) take(b *store.Box) {
	m.FreeCPUMillis -= b.Resources.CPUMillis
	m.FreeMemoryBytes -= b.Resources.MemoryBytes
	m.FreeDiskBytes -= m.diskNeed(b)
	m.Runs++
	if b.Snapshot != nil {
		m.Waking++
	}
	m.orgs[b.Org]++
}

// refusal says why one node cannot take a box.
type refusal struct {
	reason string // of the vocabulary
	text   string // follows the node's name: "has 1.2 GiB of memory free"
	lack   string // memory, CPU or disk; empty if it is for another reason
}

// refuse is the filter: nil if the node can take the box now.
func (m *machine) refuse(b *store.Box, now time.Time) *refusal {
	r := b.Resources
	switch {
	case m.FactsAt.IsZero():
		return &refusal{reason: carrel.ReasonNoNode, text: "has joined but said nothing yet"}
	case !m.online(now):
		return &refusal{reason: carrel.ReasonNoNode, text: "has not been heard from since " + clock(m.LastSeen)}
	case b.Region != "" && m.Region != b.Region:
		return &refusal{reason: carrel.ReasonNoNode, text: fmt.Sprintf("is not in region %q", b.Region)}
	case !m.images[b.ImageDigest]:
		return &refusal{reason: carrel.ReasonImageMissing, text: "does not have the image"}
	case !m.Schedulable:
		return &refusal{reason: carrel.ReasonNoNode, text: "takes no new boxes"}
	case r.MemoryBytes > m.FreeMemoryBytes:
		return m.lacks("memory", r.MemoryBytes, m.FreeMemoryBytes, m.FreeMemoryBytes+m.UsedMemoryBytes, carrel.Size)
	case r.CPUMillis > m.FreeCPUMillis:
		return m.lacks("CPU", r.CPUMillis, m.FreeCPUMillis, m.FreeCPUMillis+m.UsedCPUMillis, carrel.Cores)
	case m.diskNeed(b) > m.FreeDiskBytes:
		return m.lacks("disk", m.diskNeed(b), m.FreeDiskBytes, m.FreeDiskBytes+m.ReservedDiskBytes, carrel.Size)
	}
	return nil
}

func (m *machine) lacks(what string, need, free, all int64, unit func(int64) string) *refusal {
	if need > all {
		return &refusal{carrel.ReasonTooLarge, fmt.Sprintf("has %s of %s in all", unit(all), what), what}
	}
	if free <= 0 {
		return &refusal{carrel.ReasonNoRoom, fmt.Sprintf("has no %s free", what), what}
	}
	return &refusal{carrel.ReasonNoRoom, fmt.Sprintf("has %s of %s free", unit(free), what), what}
}

// placement is where a box goes, or why it cannot go anywhere.
type placement struct {
	node    *machine          // nil: nowhere
	why     string            // why this node, for the event
	clone   carrel.SnapshotID // of a prebuild there that it begins from
	reason  string
	message string
	next    string // empty: what the table of remedies says
}

// place is the scheduler: it filters the nodes, then takes the best of those that are left. A box that has
// committed files goes where they are and nowhere else.
func place(b *store.Box, now time.Time, f *fleet) placement {
	if len(f.nodes) == 0 {
		return placement{reason: carrel.ReasonNoNode, message: "no node has joined yet"}
	}
	if b.Snapshot != nil {
		return placeAtFiles(b, now, f)
	}
	if b.Purpose == carrel.PurposePrebuild {
		f = f.only(b.HomeNode)
	}
	var best *machine
	var bestScore float64
	refusals := map[*machine]*refusal{}
	for _, m := range f.nodes {
		if r := m.refuse(b, now); r != nil {
			refusals[m] = r
			continue
		}
		if s := m.score(b); best == nil || s > bestScore {
			best, bestScore = m, s
		}
	}
	if best != nil {
		p := placement{node: best, why: fmt.Sprintf("placed on %s, the best of %d of %d nodes that have room", best.Name, len(f.nodes)-len(refusals), len(f.nodes))}
		if made := best.prebuild(b); made != nil {
			p.clone = made.Snapshot
			p.why += "; cloned from a prebuild of " + made.TemplateName
		}
		return p
	}
	return explain(b, f, refusals)
}

// placeAtFiles places a box on the node that holds its newest snapshot.
func placeAtFiles(b *store.Box, now time.Time, f *fleet) placement {
	m := f.byID[b.Snapshot.NodeID]
	if m == nil {
		return placement{reason: carrel.ReasonSnapshotMissing, message: fmt.Sprintf("the box's files are on node %s, which is no longer known", b.Snapshot.NodeID)}
	}
	r := m.refuse(b, now)
	if r == nil && m.Waking >= wakesAtOnce {
		return placement{reason: carrel.ReasonQueued, message: fmt.Sprintf("the box waits for its turn: %d others are being started or resumed on %s", m.Waking, m.Name)}
	}
	if r == nil {
		return placement{node: m, why: fmt.Sprintf("placed on %s, which holds its files", m.Name)}
	}
	p := placement{reason: r.reason, message: fmt.Sprintf("the box's files are on %s, which %s", m.Name, r.text)}
	switch r.reason {
	case carrel.ReasonNoNode:
		if !m.online(now) {
			p.reason = carrel.ReasonNodeOffline
		} else if !m.Schedulable {
			p.next = fmt.Sprintf("Let %s take boxes again. Carrel goes on trying.", m.Name)
		}
	case carrel.ReasonNoRoom:
		p.message += "; the box needs " + needs(b, []string{r.lack})
		p.next = fmt.Sprintf("Stop, pause or delete another box on %s. Carrel goes on trying.", m.Name)
	case carrel.ReasonTooLarge:
		p.message += "; the box needs " + needs(b, []string{r.lack})
		p.next = "Make the box smaller, then start it again."
	}
	return p
}

// score is higher for a better node: the share of the scarcer of memory, CPU and disk that would be left, less a little for every
// box of the same organisation, so that one machine's end does not take all of them.
func (m *machine) score(b *store.Box) float64 {
	left := min(
		share(m.FreeMemoryBytes-b.Resources.MemoryBytes, m.FreeMemoryBytes+m.UsedMemoryBytes),
		share(m.FreeCPUMillis-b.Resources.CPUMillis, m.FreeCPUMillis+m.UsedCPUMillis),
		share(m.FreeDiskBytes-m.diskNeed(b), m.FreeDiskBytes+m.ReservedDiskBytes),
	)
	left -= 0.02 * float64(min(m.orgs[b.Org], 25))
	if m.prebuild(b) != nil {
		left += prebuildWorth
	}
	return left
}

// prebuildWorth is what a prebuild on a node counts: as much as half of the node being free. So a node that is nearly full does not get every
// box of a template because it was the first to prepare it.
const prebuildWorth = 0.5

// prebuild is the newest from which a box may begin here; nil: none. Only the first run of a box begins from one: whatever went wrong with that
// does not go wrong twice.
func (m *machine) prebuild(b *store.Box) *store.Prebuild {
	if b.Run != nil || b.Snapshot != nil || b.Purpose == carrel.PurposePrebuild {
		return nil
	}
	for i := range slices.Backward(m.Prebuilds) {
		if m.Prebuilds[i].Usable(b, &m.Node) {
			return &m.Prebuilds[i]
		}
	}
	return nil
}

// only is the fleet with one node, or none if that is not known.
func (f *fleet) only(id carrel.NodeID) *fleet {
	one := &fleet{byID: map[carrel.NodeID]*machine{}}
	if m := f.byID[id]; m != nil {
		one.nodes, one.byID[id] = []*machine{m}, m
	}
	return one
}

func share(part, all int64) float64 {
	if all <= 0 {
		return 0
	}
	return float64(part) / float64(all)
}

// explain makes one sentence of many refusals. The reason is the one that is the nearest to a cure: a node that lacks room now
// outweighs one that could never take the box, and both outweigh nodes that are away.
func explain(b *store.Box, f *fleet, refusals map[*machine]*refusal) placement {
	order := []string{carrel.ReasonNoRoom, carrel.ReasonNoNode, carrel.ReasonImageMissing, carrel.ReasonTooLarge}
	reason := ""
	for _, candidate := range order {
		if candidate == carrel.ReasonNoNode && !couldHelp(b, f) {
			continue
		}
		for _, m := range f.nodes {
			if refusals[m].reason == candidate {
				reason = candidate
				break
			}
		}
		if reason != "" {
			break
		}
	}
	if reason == "" {
		reason = carrel.ReasonNoNode
	}
	var named, lacks []string
	for _, m := range f.nodes {
		r := refusals[m]
		named = append(named, m.Name+" "+r.text)
		if r.reason == reason && r.lack != "" && !slices.Contains(lacks, r.lack) {
			lacks = append(lacks, r.lack)
		}
	}
	const most = 5
	if len(named) > most {
		named = append(named[:most:most], fmt.Sprintf("and %d more", len(f.nodes)-most))
	}
	list := strings.Join(named, ", ")
	p := placement{reason: reason}
	switch reason {
	case carrel.ReasonNoRoom:
		p.message = fmt.Sprintf("no node has room for %s: %s", needs(b, lacks), list)
		p.next = "Stop or delete a box, or make this one smaller" + flags(lacks) + ". Carrel goes on trying."
	case carrel.ReasonTooLarge:
		p.message = fmt.Sprintf("no node is large enough for %s: %s", needs(b, lacks), list)
		p.next = "Make the box smaller" + flags(lacks) + " and start it again, or add a larger node."
	case carrel.ReasonImageMissing:
		p.message = fmt.Sprintf("no node has the image %s: %s", short(b.ImageDigest), list)
	default:
		p.message = "no node can take the box now: " + list
	}
	return p
}

// couldHelp reports whether a node that is away or closed could take the box if it were back: it has the image, or has not said which it has.
func couldHelp(b *store.Box, f *fleet) bool {
	for _, m := range f.nodes {
		if (b.Region == "" || m.Region == b.Region) && (m.FactsAt.IsZero() || m.images[b.ImageDigest]) {
			return true
		}
	}
	return false
}

// needs names how much a box takes of what is lacking.
func needs(b *store.Box, lacks []string) string {
	var parts []string
	for _, what := range lacks {
		switch what {
		case "memory":
			parts = append(parts, carrel.Size(b.Resources.MemoryBytes)+" of memory")
		case "CPU":
			parts = append(parts, carrel.Cores(b.Resources.CPUMillis)+" of CPU")
		case "disk":
			parts = append(parts, carrel.Size(b.Resources.DiskBytes())+" of disk")
		}
	}
	return strings.Join(parts, " and ")
}

func flags(lacks []string) string {
	if slices.Equal(lacks, []string{"memory"}) {
		return " with --memory"
	}
	return ""
}

func short(digest string) string {
	if len(digest) > 19 {
		return digest[:19] + "…"
	}
	return digest
}

func clock(at time.Time) string { return at.UTC().Format("2006-01-02 15:04:05 UTC") }
