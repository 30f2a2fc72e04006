package store

import (
	"context"
	"time"

	"carrel.dev/carrel/internal/carrel"
)

// CreateJoinToken keeps the hash of a token that lets one machine join as node or gateway until it expires.
func (s *Store) CreateJoinToken(ctx context.Context, scope Scope, role string, hash []byte, expires time.Time) error {
	panic("not yet")
}

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
func (s *Store) JoinNode(ctx context.Context, join Join) (Node, error) { panic("not yet") }

// JoinGateway is JoinNode for gateways; the same name is always the same gateway.
func (s *Store) JoinGateway(ctx context.Context, join Join) (Gateway, error) { panic("not yet") }

// GetNode reads a node by id or name. Any scope but a platform one is told that there is none.
func (s *Store) GetNode(ctx context.Context, scope Scope, ref string) (Node, error) {
	panic("not yet")
}

// SetNodeSchedulable says whether new runs may be placed on a node.
func (s *Store) SetNodeSchedulable(ctx context.Context, scope Scope, ref string, schedulable bool) (Node, error) {
	panic("not yet")
}

// DesiredSet is everything that is wanted of one node, read at one moment.
type DesiredSet struct {
	Cluster       string
	Incarnation   int64
	Revision      int64
	Runs          []DesiredRun // by run id
	DropSnapshots []carrel.SnapshotID
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
}

// DesiredSet computes what a node shall do.
func (s *Store) DesiredSet(ctx context.Context, node carrel.NodeID) (DesiredSet, error) {
	panic("not yet")
}

// NodeRevision reads the revision of a node's desired set, to see whether it must be computed again.
func (s *Store) NodeRevision(ctx context.Context, node carrel.NodeID) (int64, error) {
	panic("not yet")
}

// Report is what a node tells.
type Report struct {
	Runs    []RunReport
	Chores  []ChoreReport
	Dropped []carrel.SnapshotID
	Facts   *NodeFacts // nil: as before
}

// RunReport is what a node saw of a run.
type RunReport struct {
	Run         carrel.RunID
	Epoch       int64
	Sequence    int64
	Phase       carrel.Phase
	Generation  int64
	At          time.Time
	Reason      string
	Message     string
	Transient   bool
	FailedOrder carrel.Order
	Snapshot    carrel.SnapshotID
	StartedFrom string
	Notice      string
}

// ChoreReport is how far a chore is.
type ChoreReport struct {
	Chore        carrel.ChoreID
	Done         bool
	ErrorReason  string // not empty: it failed
	ErrorMessage string
	Progress     string
	Digest       string
	SizeBytes    int64
}

// RecordReport writes a batch of what one node told, in order. Reports of runs that are not this node's, of another epoch, with an
// older sequence, or of a run that has ended are passed over: repeating a report is always safe.
func (s *Store) RecordReport(ctx context.Context, node carrel.NodeID, reports []Report) error {
	panic("not yet")
}

// NodeBeat says that a node is alive.
type NodeBeat struct {
	Node  carrel.NodeID
	Facts *NodeFacts // nil: as before
}

// TouchNodes writes the heartbeats of many nodes in one transaction.
func (s *Store) TouchNodes(ctx context.Context, beats []NodeBeat) error { panic("not yet") }

// CommitSnapshot is a snapshot that a node proposes.
type CommitSnapshot struct {
	ID             carrel.SnapshotID
	Box            carrel.BoxID
	Run            carrel.RunID
	Epoch          int64
	Kind           carrel.SnapshotKind
	SizeBytes      int64
	ManifestSHA256 string
	RuntimeVersion string
	At             time.Time
	Salvaged       bool
	Generation     int64
}

// Reasons for which a snapshot is refused.
const (
	RefusedStaleEpoch = "stale_epoch"
	RefusedBoxDeleted = "box_deleted"
	RefusedRunEnded   = "run_ended"
)

// CommitSnapshot makes a snapshot the newest durable state of its box, and dooms the older ones. It is
// idempotent by id. Refused (false, with a reason) is final; an error means that the outcome is not known.
func (s *Store) CommitSnapshot(ctx context.Context, node carrel.NodeID, c CommitSnapshot) (accepted bool, reason string, err error) {
	panic("not yet")
}

// Routes gives the routes of all live runs, and the mark for RoutesSince.
func (s *Store) Routes(ctx context.Context) ([]Route, int64, error) { panic("not yet") }

// RoutesSince gives the routes of the boxes that changed since an earlier answer, gone ones too, and the mark for the next call. A
// route may be given again without having changed; none is left out.
func (s *Store) RoutesSince(ctx context.Context, since int64) ([]Route, int64, error) {
	panic("not yet")
}

// EnsureRootKey keeps a key unless its purpose has one in use, and gives the one in use: replicas that start at once agree.
func (s *Store) EnsureRootKey(ctx context.Context, key RootKey) (RootKey, error) { panic("not yet") }

// RootKeys gives the keys of a purpose, the one in use first, then retired ones, newest first.
func (s *Store) RootKeys(ctx context.Context, purpose string) ([]RootKey, error) { panic("not yet") }

// RotateRootKey retires the key in use and puts another in its place.
func (s *Store) RotateRootKey(ctx context.Context, key RootKey) error { panic("not yet") }
