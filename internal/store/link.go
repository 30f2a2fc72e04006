package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/store/db"
)

// CreateJoinToken keeps the hash of a token that lets one machine join as node or gateway until it expires.
func (s *Store) CreateJoinToken(ctx context.Context, scope Scope, role string, hash []byte, expires time.Time) error {
	if err := platformOnly(scope, "join token", role); err != nil {
		return err
	}
	return s.write(ctx, "CreateJoinToken", systemFor(scope), func(t *tx) error {
		err := t.InsertJoinToken(ctx, db.InsertJoinTokenParams{Hash: hash, Role: role, CreatedBy: scope.User, CreatedAt: t.now, ExpiresAt: expires})
		if err != nil {
			return fmt.Errorf("insert the join token: %w", err)
		}
		return t.audit(ctx, "", role, "")
	})
}

// platformOnly hides what belongs to the platform from everybody but operators.
func platformOnly(scope Scope, kind, ref string) error {
	if !scope.Platform && !scope.system {
		return carrel.NotFound(kind, ref)
	}
	return nil
}

// systemFor is the system's scope for what an operator does, who stays the actor.
func systemFor(scope Scope) Scope { return Scope{User: scope.User, system: true} }

// Join is a machine that asks to belong to the cluster.
type Join struct {
	// TokenHash is SHA-256 of the join token, which is used up. Nil: the caller vouches for the machine.
	TokenHash []byte
	Name      string
	Region    string
	// ID is what the machine says it was called before; it gets the same id again if the name agrees.
	ID string
}

// JoinNode makes a node, or finds the one that has the name if it is the same machine (by ID) or never said anything.
// CodeUnauthorized: the token is no good. CodeExists, node_name_taken: another machine has the name.
func (s *Store) JoinNode(ctx context.Context, join Join) (Node, error) {
	var node Node
	err := s.write(ctx, "JoinNode", SystemScope(), func(t *tx) error {
		if err := t.useJoinToken(ctx, join, "node"); err != nil {
			return err
		}
		if err := t.LockNodeNames(ctx); err != nil {
			return fmt.Errorf("lock the names of nodes: %w", err)
		}
		id := carrel.NewNodeID()
		old, err := t.FindNode(ctx, join.Name)
		switch {
		case err == nil && (old.FactsAt == nil || string(old.ID) == join.ID) && old.Name == join.Name:
			id = old.ID
			if err := t.SetNodeRegion(ctx, id, join.Region); err != nil {
				return fmt.Errorf("set the node's region: %w", err)
			}
		case err == nil:
			return carrel.Errorf(carrel.CodeExists, "node_name_taken", "there is a node called %q already; start this one with another name", join.Name)
		case !errors.Is(err, pgx.ErrNoRows):
			return fmt.Errorf("find the node: %w", err)
		default:
			if err := t.InsertNode(ctx, id, join.Name, join.Region, t.now); err != nil {
				return fmt.Errorf("insert the node: %w", err)
			}
		}
		if err := t.audit(ctx, "", string(id), join.Name); err != nil {
			return err
		}
		node, err = t.node(ctx, string(id))
		return err
	})
	return node, err
}

// useJoinToken uses a token up. The same machine may use it again: its first answer may have been lost.
func (t *tx) useJoinToken(ctx context.Context, join Join, role string) error {
	if join.TokenHash == nil {
		return nil
	}
	n, err := t.UseJoinToken(ctx, t.now, join.Name, join.TokenHash, role)
	if err != nil {
		return fmt.Errorf("use the join token: %w", err)
	}
	if n == 0 {
		return carrel.Errorf(carrel.CodeUnauthorized, "bad_join_token", "the join token is not valid for a %s: it is unknown, used or expired; make a new one", role)
	}
	return nil
}

// JoinGateway is JoinNode for gateways; the same name is always the same gateway.
func (s *Store) JoinGateway(ctx context.Context, join Join) (Gateway, error) {
	var gateway Gateway
	err := s.write(ctx, "JoinGateway", SystemScope(), func(t *tx) error {
		if err := t.useJoinToken(ctx, join, "gateway"); err != nil {
			return err
		}
		r, err := t.UpsertGateway(ctx, carrel.NewGatewayID(), join.Name, join.Region, t.now)
		if err != nil {
			return fmt.Errorf("insert the gateway: %w", err)
		}
		gateway = Gateway{ID: r.ID, Name: r.Name, Region: r.Region, CreatedAt: r.CreatedAt.UTC(), LastSeen: r.LastSeen.UTC()}
		return t.audit(ctx, "", string(r.ID), join.Name)
	})
	return gateway, err
}

// GetNode reads a node by id or name. Any scope but a platform one is told that there is none.
func (s *Store) GetNode(ctx context.Context, scope Scope, ref string) (Node, error) {
	if err := platformOnly(scope, "node", ref); err != nil {
		return Node{}, err
	}
	var node Node
	err := s.read(ctx, "GetNode", systemFor(scope), func(t *tx) (err error) {
		node, err = t.node(ctx, ref)
		return err
	})
	return node, err
}

func (t *tx) node(ctx context.Context, ref string) (Node, error) {
	r, err := t.FindNode(ctx, ref)
	if errors.Is(err, pgx.ErrNoRows) {
		return Node{}, carrel.NotFound("node", ref)
	}
	if err != nil {
		return Node{}, fmt.Errorf("find the node: %w", err)
	}
	nodes, err := t.nodes(ctx, r.ID)
	if err != nil {
		return Node{}, err
	}
	if len(nodes) == 0 {
		return Node{}, carrel.NotFound("node", ref)
	}
	return nodes[0], nil
}

// SetNodeSchedulable says whether new runs may be placed on a node.
func (s *Store) SetNodeSchedulable(ctx context.Context, scope Scope, ref string, schedulable bool) (Node, error) {
	if err := platformOnly(scope, "node", ref); err != nil {
		return Node{}, err
	}
	var node Node
	err := s.write(ctx, "SetNodeSchedulable", systemFor(scope), func(t *tx) error {
		found, err := t.node(ctx, ref)
		if err != nil {
			return err
		}
		n, err := t.SetNodeSchedulable(ctx, found.ID, schedulable)
		if err != nil {
			return fmt.Errorf("update the node: %w", err)
		}
		if n == 0 {
			return carrel.Errorf(carrel.CodePrecondition, "node_removed", "node %s was removed for ever; let the machine join again to use it", found.Name)
		}
		t.wake(TopicBoxes)
		if err := t.audit(ctx, "", string(found.ID), fmt.Sprint("schedulable ", schedulable)); err != nil {
			return err
		}
		node, err = t.node(ctx, string(found.ID))
		return err
	})
	return node, err
}

// DesiredSet is everything that is wanted of one node, read at one moment.
type DesiredSet struct {
	Cluster       string
	Incarnation   int64
	Revision      int64
	Runs          []DesiredRun // by run id
	DropSnapshots []carrel.SnapshotID
	DropImages    []string // digests
	Chores        []Chore
}

// DesiredRun is one live run and its order.
type DesiredRun struct {
	Run        carrel.RunID
	Box        carrel.BoxID
	Org        carrel.OrgID
	Epoch      int64
	Order      carrel.Order
	Generation int64 // of the box's intent that the order answers
	Phase      carrel.Phase
	Spec       RunSpec
	Snapshot   carrel.SnapshotID
	WithMemory bool
	// IdleSince is the time after which use of the box undoes the order; zero: nothing does.
	IdleSince time.Time
	// Identity is raised when the box becomes a user's.
	Identity int64
	// BusyCPUMillis is the CPU above which the box counts as working; carrel.NeverCPU: none does.
	BusyCPUMillis int64
}

// DesiredSet computes what a node shall do.
func (s *Store) DesiredSet(ctx context.Context, node carrel.NodeID) (DesiredSet, error) {
	var set DesiredSet
	err := s.read(ctx, "DesiredSet", SystemScope(), func(t *tx) error {
		cluster, err := t.cluster(ctx)
		if err != nil {
			return err
		}
		set = DesiredSet{Cluster: cluster.ID, Incarnation: cluster.Incarnation}
		set.Revision, err = t.NodeRevision(ctx, node)
		if errors.Is(err, pgx.ErrNoRows) {
			return carrel.NotFound("node", string(node))
		}
		if err != nil {
			return fmt.Errorf("read the revision: %w", err)
		}
		runs, err := t.DesiredRuns(ctx, node)
		if err != nil {
			return fmt.Errorf("read runs: %w", err)
		}
		for _, r := range runs {
			run, err := desiredRun(r)
			if err != nil {
				return err
			}
			set.Runs = append(set.Runs, run)
		}
		if set.DropSnapshots, err = t.DoomedSnapshots(ctx, node); err != nil {
			return fmt.Errorf("read doomed snapshots: %w", err)
		}
		unneeded, err := t.UnneededImages(ctx, string(node))
		if err != nil {
			return fmt.Errorf("read images that nothing needs: %w", err)
		}
		for _, held := range unneeded {
			set.DropImages = append(set.DropImages, held.Digest)
		}
		chores, err := t.NodeChores(ctx, string(node))
		if err != nil {
			return fmt.Errorf("read chores: %w", err)
		}
		for _, r := range chores {
			set.Chores = append(set.Chores, choreOf(choreRow(r)))
		}
		return nil
	})
	return set, err
}

// desiredRun computes the order of a live run. Its box's snapshots say nothing about that.
func desiredRun(r db.DesiredRunsRow) (DesiredRun, error) {
	view := carrel.BoxView{
		ID: r.BoxID, Intent: r.Intent, Generation: r.BoxGeneration, BootGeneration: r.BoxBootGeneration, Epoch: r.Epoch,
		Run: &carrel.RunView{
			ID: r.ID, Epoch: r.Epoch, BootGeneration: r.BootGeneration, WithMemory: r.WithMemory, Phase: r.Phase, Generation: r.Generation,
			FailedOrder: r.FailedOrder,
		},
	}
	run := DesiredRun{
		Run: r.ID, Box: r.BoxID, Org: r.OrgID, Epoch: r.Epoch, Order: view.OrderOf(), Generation: r.BoxGeneration, Phase: r.Phase,
		Snapshot: r.FromSnapshot, Identity: r.Identity,
	}
	if run.Order == carrel.OrderPause || run.Order == carrel.OrderStop {
		run.IdleSince = timeOf(r.IdleSince)
	}
	var sources carrel.IdleSources
	if err := errors.Join(decode(r.Idle, &sources.Box, "an idle policy"), decode(r.TemplateIdle, &sources.Template, "a template's idle policy")); err != nil {
		return run, err
	}
	run.BusyCPUMillis = sources.Policy().BusyCPUMillis
	err := decode(r.Spec, &run.Spec, "a run's spec")
	run.WithMemory = r.WithMemory || run.Spec.Clone
	return run, err
}

type choreRow db.DueChoresRow

func choreOf(r choreRow) Chore {
	return Chore{
		ID: r.ID, Org: r.OrgID, Kind: r.Kind, Image: r.ImageID, Name: r.Name, Definition: r.Definition, Reference: r.Reference,
		Platform: r.Platform, Insecure: r.Insecure, Trusted: r.Trusted, Node: nodeOf(r.NodeID), CreatedAt: r.CreatedAt.UTC(), AssignedAt: timeOf(r.AssignedAt),
	}
}

func nodeOf(id *carrel.NodeID) carrel.NodeID {
	if id == nil {
		return ""
	}
	return *id
}

// NodeRevision reads the revision of a node's desired set, to see whether it must be computed again.
func (s *Store) NodeRevision(ctx context.Context, node carrel.NodeID) (int64, error) {
	var revision int64
	err := s.read(ctx, "NodeRevision", SystemScope(), func(t *tx) (err error) {
		revision, err = t.NodeRevision(ctx, node)
		if errors.Is(err, pgx.ErrNoRows) {
			return carrel.NotFound("node", string(node))
		}
		return err
	})
	return revision, err
}

// EnsureRootKey keeps a key unless its purpose has one in use, and gives the one in use: replicas that start at once agree.
func (s *Store) EnsureRootKey(ctx context.Context, key RootKey) (RootKey, error) {
	var used RootKey
	err := s.write(ctx, "EnsureRootKey", SystemScope(), func(t *tx) error {
		if err := t.InsertRootKey(ctx, t.rootKeyParams(key)); err != nil {
			return fmt.Errorf("insert the root key: %w", err)
		}
		keys, err := t.RootKeys(ctx, key.Purpose)
		if err != nil {
			return fmt.Errorf("read root keys: %w", err)
		}
		used = rootKeyOf(keys[0])
		return nil
	})
	return used, err
}

func (t *tx) rootKeyParams(key RootKey) db.InsertRootKeyParams {
	return db.InsertRootKeyParams{ID: key.ID, Purpose: key.Purpose, Public: key.Public, Wrapped: key.Wrapped, CreatedAt: t.now}
}

func rootKeyOf(r db.RootKey) RootKey {
	return RootKey{ID: r.ID, Purpose: r.Purpose, Public: r.Public, Wrapped: r.Wrapped, CreatedAt: r.CreatedAt.UTC(), RetiredAt: timeOf(r.RetiredAt)}
}

// RootKeys gives the keys of a purpose, the one in use first, then retired ones, newest first.
func (s *Store) RootKeys(ctx context.Context, purpose string) ([]RootKey, error) {
	var keys []RootKey
	err := s.read(ctx, "RootKeys", SystemScope(), func(t *tx) error {
		keys = nil
		rows, err := t.RootKeys(ctx, purpose)
		for _, r := range rows {
			keys = append(keys, rootKeyOf(r))
		}
		return err
	})
	return keys, err
}

// RotateRootKey retires the key in use and puts another in its place.
func (s *Store) RotateRootKey(ctx context.Context, key RootKey) error {
	return s.write(ctx, "RotateRootKey", SystemScope(), func(t *tx) error {
		if err := t.RetireRootKeys(ctx, t.now, key.Purpose); err != nil {
			return fmt.Errorf("retire the root key: %w", err)
		}
		if err := t.InsertRootKey(ctx, t.rootKeyParams(key)); err != nil {
			return fmt.Errorf("insert the root key: %w", err)
		}
		return t.audit(ctx, "", key.ID, key.Purpose)
	})
}
