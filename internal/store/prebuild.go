package store

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/store/db"
)

// TopicPrepare is woken when there may be something to do about prebuilds and warm pools.
const TopicPrepare = "prepare"

// recipeOf hashes all that a box of a template depends on when it is prepared. Name and organisation belong to it, so that nobody's
// prebuild is anybody else's.
func recipeOf(t Template) string {
	if len(t.Env) == 0 {
		t.Env = nil
	}
	if len(t.Startup) == 0 {
		t.Startup = nil
	}
	sum := sha256.Sum256(encode([]any{t.Org, t.Name, t.ImageDigest, t.Resources, t.Env, t.Sudo, t.Startup, t.Prebuild}))
	return hex.EncodeToString(sum[:])
}

func encodePrebuild(p *carrel.Prebuild) []byte {
	if p == nil {
		return nil
	}
	return encode(p)
}

// PreparedTemplate is the newest version of a template for which boxes are prepared.
type PreparedTemplate struct {
	ID          carrel.TemplateID
	Org         carrel.OrgID
	Name        string
	Version     int32
	ImageDigest string
	Recipe      string
	Prebuild    bool // it has one
	Pool        int  // how many prepared boxes shall wait
}

// Prebuild is one attempt to have a prebuild of a template on a node.
type Prebuild struct {
	Box             carrel.BoxID // which is prepared and then paused
	Org             carrel.OrgID // of the template
	Template        carrel.TemplateID
	TemplateName    string
	TemplateVersion int32
	Recipe          string
	Node            carrel.NodeID
	NodeName        string
	// RuntimeVersion and AgentSHA256 are the node's when it was begun.
	RuntimeVersion, AgentSHA256 string
	CreatedAt                   time.Time
	// Condemned is why no box begins from it any more; empty: nothing is wrong with it.
	Condemned string
	// Snapshot is empty until it is ready.
	Snapshot        carrel.SnapshotID
	SizeBytes       int64
	SnapshotVersion string // the runtime's
	ReadyAt         time.Time
}

// Preparation is everything that deciding about prebuilds and pools takes, as one read saw it.
type Preparation struct {
	Templates []PreparedTemplate
	Prebuilds []Prebuild
	// Hidden has the boxes of prebuilds and pools that are not to be deleted.
	Hidden []*Box
	// LackRoom: a user's box waits for room.
	LackRoom bool
	// JustTaken: somebody took a box from a pool in the last seconds, and starts to work.
	JustTaken bool
	// Resting: nothing is to be prepared now, see Rest.
	Resting bool
}

// restLease is held while nothing is to be prepared.
const restLease = "rest"

// Rest says that nothing is to be prepared for a while from now: boxes that wait to be taken and prebuilds under way are given up, and none is
// made. It is what stops a machine before Carrel on it is stopped. Another call takes the place of the one before; 0 ends the rest.
func (s *Store) Rest(ctx context.Context, length time.Duration) error {
	_, _, err := s.AcquireLease(ctx, restLease, "carrel", length)
	return err
}

// refillRest is how long a pool rests after a box was taken from it: what its user does first is not to wait for the next one's start.
const refillRest = 3 * time.Second

// Preparation reads what there is of prebuilds and pools, and what shall be.
func (s *Store) Preparation(ctx context.Context) (Preparation, error) {
	var p Preparation
	err := s.read(ctx, "Preparation", SystemScope(), func(t *tx) error {
		p = Preparation{}
		templates, err := t.Preparing(ctx)
		if err != nil {
			return fmt.Errorf("read templates: %w", err)
		}
		for _, r := range templates {
			p.Templates = append(p.Templates, PreparedTemplate{
				ID: r.ID, Org: r.OrgID, Name: r.Name, Version: r.Version, ImageDigest: r.ImageDigest, Recipe: r.Recipe, Prebuild: r.Prebuild, Pool: int(r.Pool),
			})
		}
		if p.Prebuilds, err = t.prebuilds(ctx); err != nil {
			return err
		}
		if p.Hidden, err = t.boxes(ctx, "where b.purpose <> '' and b.deleted_at is null and b.intent <> 'deleted' order by b.created_at, b.id"); err != nil {
			return err
		}
		if p.LackRoom, err = t.BoxesLackRoom(ctx); err != nil {
			return fmt.Errorf("look for boxes without room: %w", err)
		}
		if p.JustTaken, err = t.JustTaken(ctx, t.now.Add(-refillRest)); err != nil {
			return fmt.Errorf("look for boxes just taken: %w", err)
		}
		rest, err := t.GetLease(ctx, restLease)
		if errors.Is(err, pgx.ErrNoRows) {
			return nil
		}
		p.Resting = rest.ExpiresAt.After(t.now)
		return err
	})
	return p, err
}

func (t *tx) prebuilds(ctx context.Context) ([]Prebuild, error) {
	rows, err := t.Prebuilds(ctx)
	if err != nil {
		return nil, fmt.Errorf("read prebuilds: %w", err)
	}
	list := make([]Prebuild, len(rows))
	for i, r := range rows {
		list[i] = Prebuild{
			Box: r.BoxID, Org: r.TemplateOrg, Template: r.TemplateID, TemplateName: r.Name, TemplateVersion: r.Version, Recipe: r.Recipe, Node: r.NodeID,
			NodeName: r.NodeName, RuntimeVersion: r.RuntimeVersion, AgentSHA256: r.AgentSha256, CreatedAt: r.CreatedAt.UTC(), Condemned: r.Condemned,
			Snapshot: r.SnapshotID, SizeBytes: r.SizeBytes, SnapshotVersion: r.SnapshotVersion, ReadyAt: timeOf(r.CommittedAt),
		}
	}
	return list, nil
}

// PrebuildState is a prebuild with its box.
type PrebuildState struct {
	Prebuild
	Hidden *Box
}

// ListPrebuilds gives the prebuilds of every organisation, by template, node and age. The caller decides what of them is shown.
func (s *Store) ListPrebuilds(ctx context.Context) ([]PrebuildState, error) {
	var list []PrebuildState
	err := s.read(ctx, "ListPrebuilds", SystemScope(), func(t *tx) error {
		prebuilds, err := t.prebuilds(ctx)
		if err != nil {
			return err
		}
		boxes, err := t.boxes(ctx, "where b.purpose = 'prebuild' and b.deleted_at is null")
		if err != nil {
			return err
		}
		byID := map[carrel.BoxID]*Box{}
		for _, b := range boxes {
			byID[b.ID] = b
		}
		list = nil
		for _, p := range prebuilds {
			if b := byID[p.Box]; b != nil {
				list = append(list, PrebuildState{p, b})
			}
		}
		return nil
	})
	return list, err
}

// Usable reports whether a box that was not started yet may begin from the prebuild on a node.
func (p *Prebuild) Usable(b *Box, n *Node) bool {
	return p.Snapshot != "" && p.Condemned == "" && p.Node == n.ID && b.Cloneable && p.Recipe == b.Recipe && p.SnapshotVersion == n.Facts.SnapshotVersion()
}

// SnapshotVersion is the version that the node's snapshots have.
func (f *NodeFacts) SnapshotVersion() string {
	for i := range f.RuntimeVersion {
		if f.RuntimeVersion[i] == ' ' {
			return f.RuntimeVersion[i+1:] // the name of the runtime comes first
		}
	}
	return f.RuntimeVersion
}

// NewHidden is a box that Carrel makes for itself.
type NewHidden struct {
	Purpose  carrel.Purpose
	Template PreparedTemplate
	// For a prebuild: where it is made, and what with.
	Node                        carrel.NodeID
	RuntimeVersion, AgentSHA256 string
}

// CreateHidden makes a hidden box of the system organisation, under the lease. It is wanted running.
func (s *Store) CreateHidden(ctx context.Context, lease Lease, h NewHidden) (carrel.BoxID, error) {
	id := carrel.NewBoxID()
	err := s.write(ctx, "CreateHidden", SystemScope(), func(t *tx) error {
		if err := t.hold(ctx, lease); err != nil {
			return err
		}
		row, err := t.TemplateByID(ctx, h.Template.ID)
		if err != nil {
			return fmt.Errorf("read the template: %w", err)
		}
		tpl, err := templateOf(templateRow(row))
		if err != nil {
			return err
		}
		n, err := t.InsertHiddenBox(ctx, db.InsertHiddenBoxParams{
			ID: string(id), Now: t.now, Name: string(h.Purpose) + "-" + string(id), DiskBytes: tpl.Resources.DiskBytes(), Purpose: string(h.Purpose),
			NodeID: string(h.Node), TemplateID: tpl.ID,
		})
		if err != nil {
			return fmt.Errorf("insert the box: %w", err)
		}
		if n != 1 {
			return errors.New("the cluster has no system organisation")
		}
		t.wake(TopicBoxes)
		if h.Purpose != carrel.PurposePrebuild {
			return nil
		}
		err = t.InsertPrebuild(ctx, db.InsertPrebuildParams{
			BoxID: id, TemplateOrg: tpl.Org, TemplateID: tpl.ID, Recipe: tpl.Recipe, NodeID: h.Node, RuntimeVersion: h.RuntimeVersion,
			AgentSha256: h.AgentSHA256, CreatedAt: t.now,
		})
		if err != nil {
			return fmt.Errorf("insert the prebuild: %w", err)
		}
		return nil
	})
	return id, err
}

// SetHidden changes what is wanted of a hidden box that is as it was seen. ErrChanged: it is not, such as because somebody took it.
func (s *Store) SetHidden(ctx context.Context, lease Lease, seen *Box, intent carrel.Intent, why string) error {
	return s.writeSeen(ctx, "SetHidden", lease, seen.ID, seen.Touched, func(t *tx, b *Box) error {
		if b.Purpose == carrel.PurposeUser {
			return ErrChanged
		}
		b.Intent, b.IntentBy, b.IntentAt = intent, "carrel", t.now
		b.Generation++
		if b.Live() {
			t.raise(b.Run.NodeID)
		}
		if err := t.setIntent(ctx, b); err != nil {
			return err
		}
		return t.event(ctx, b.Org, b.ID, "", "asked", why, "reconcile")
	})
}

// condemn gives up a prebuild whose snapshot a box could not begin from for a reason that lies in the snapshot.
func (t *tx) condemn(ctx context.Context, run *reportedRun, report RunReport) error {
	switch report.CloneFailure {
	case carrel.ReasonSnapshotCorrupt, carrel.ReasonSnapshotMissing, carrel.ReasonSnapshotIncompatible:
	default:
		return nil
	}
	n, err := t.CondemnPrebuild(ctx, report.CloneFailure, run.row.FromSnapshot)
	if err != nil {
		return fmt.Errorf("give up the prebuild: %w", err)
	}
	if n > 0 {
		t.s.log.Warn("a prebuild cannot be used and is made anew", "snapshot", run.row.FromSnapshot, "reason", report.CloneFailure)
		t.wake(TopicPrepare)
	}
	return nil
}
