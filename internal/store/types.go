package store

import (
	"errors"
	"time"

	"carrel.dev/carrel/internal/carrel"
)

var (
	// ErrLeaseLost says that the lease under which a write was tried is no longer held; nothing was written.
	ErrLeaseLost = errors.New("the lease is lost")
	// ErrChanged says that the box is no longer as the caller saw it; nothing was written. Look again.
	ErrChanged = errors.New("it changed meanwhile")
	// ErrNoRoom says that the node cannot take the run (capacity, or not schedulable); nothing was written.
	ErrNoRoom = errors.New("no room on the node")
)

// Scope says on whose behalf a transaction runs. The zero value sees nothing.
type Scope struct {
	// User is the principal; it is written into operations, events and audit entries.
	User carrel.UserID
	// Orgs are the organisations whose rows can be seen and written.
	Orgs []carrel.OrgID
	// Platform is set for operators: every organisation's rows can be seen and written.
	Platform bool
	system   bool
}

// SystemScope is that of Carrel itself: links, reconcilers, the first start.
func SystemScope() Scope { return Scope{system: true} }

// Request makes a repeated mutation give the first answer again. The zero value: every call is a new one.
type Request struct {
	ID     string // of the client's making, up to 128 bytes; empty: not repeatable
	Method string // such as "CreateBox"
	Hash   []byte // of the request's content without the id; another content under the same id is refused
}

// Page asks for one page of a list.
type Page struct {
	Size  int    // 1 to carrel.MaxPageSize; 0: carrel.DefaultPage
	Token string // from the page before, opaque; empty: the first
}

// Org is an organisation. Everything belongs to one.
type Org struct {
	ID        carrel.OrgID
	Name      string
	System    bool // owns what is shipped; its templates and images can be read by all
	CreatedAt time.Time
}

// User is a person or a program with tokens.
type User struct {
	ID        carrel.UserID
	Name      string
	Operator  bool
	CreatedAt time.Time
}

// Member is a user's role in an organisation: owner, admin, member or viewer.
type Member struct {
	Org      carrel.OrgID
	User     carrel.UserID
	UserName string
	Role     string
}

// Token is an API token without its secret.
type Token struct {
	ID          carrel.TokenID
	User        carrel.UserID
	Description string
	CreatedAt   time.Time
	ExpiresAt   time.Time // zero: never
	RevokedAt   time.Time // zero: it is not
}

// NewToken is what CreateToken keeps.
type NewToken struct {
	ID          carrel.TokenID
	User        carrel.UserID
	Description string
	Hash        []byte // SHA-256 of the secret
	ExpiresAt   time.Time
}

// TokenOwner is who a valid token speaks for.
type TokenOwner struct {
	Token   Token
	User    User
	Members []Member
}

// Template is one version of a template. It never changes.
type Template struct {
	ID          carrel.TemplateID
	Org         carrel.OrgID
	Name        string
	Version     int32 // from 1
	Description string
	Image       string // as it was written: a name or a digest
	ImageDigest string
	Resources   carrel.Resources // complete
	Env         map[string]string
	Labels      map[string]string
	Sudo        bool
	Startup     []string
	Idle        carrel.IdlePolicy // what the file says
	Prebuild    *carrel.Prebuild  // nil: nothing is prepared
	// Recipe is a hash of all that a prepared box depends on. PushTemplate makes it.
	Recipe    string
	CreatedAt time.Time
}

// Image is an immutable root file system, or the attempt to make one.
type Image struct {
	ID         carrel.ImageID
	Org        carrel.OrgID
	Name       string
	Digest     string // empty until ready
	SizeBytes  int64
	State      string // building, ready, failed
	Failure    *carrel.Failure
	Source     string // "build" or the reference
	Progress   string
	CreatedAt  time.Time
	FinishedAt time.Time
	Nodes      []carrel.NodeID // that hold it
}

// The states of an image.
const (
	ImageBuilding = "building"
	ImageReady    = "ready"
	ImageFailed   = "failed"
)

// Chore is work for a node that is not a run: an image to build or import.
type Chore struct {
	ID         carrel.ChoreID
	Org        carrel.OrgID
	Kind       string // image_build, image_import
	Image      carrel.ImageID
	Name       string
	Definition string
	Reference  string
	Platform   string
	Insecure   bool
	Trusted    bool          // an operator asked for it: it may read what is not public
	Node       carrel.NodeID // empty: not placed yet
	CreatedAt  time.Time
	AssignedAt time.Time
}

// The kinds of chores.
const (
	ChoreImageBuild  = "image_build"
	ChoreImageImport = "image_import"
)

// Box is a box with all that is kept of it, and the newest of its runs and of its snapshots.
type Box struct {
	carrel.BoxView
	Org             carrel.OrgID
	Owner           carrel.UserID
	Name            string
	Template        string
	TemplateID      carrel.TemplateID
	TemplateVersion int32
	TemplateOrg     carrel.OrgID
	ImageDigest     string
	Resources       carrel.Resources
	Labels          map[string]string
	Env             map[string]string
	Region          string
	// Purpose is why Carrel made it; empty: it is a user's.
	Purpose carrel.Purpose
	// Recipe of its template. Cloneable: a prebuild of that recipe is like a fresh start of this box.
	Recipe       string
	Cloneable    bool
	Idle         carrel.IdlePolicy // what it says itself
	TemplateIdle carrel.IdlePolicy
	AwakeUntil   time.Time // zero: nobody asked for that
	AwakeBy      string
	ETag         string        // changes with every change by a user
	HomeNode     carrel.NodeID // where its files are; empty: nowhere yet
	CreatedAt    time.Time
	UpdatedAt    time.Time
	IntentAt     time.Time // when the intent changed last
	DeletedAt    time.Time // zero: it is not gone yet
	// Of the newest run.
	RunCreatedAt time.Time
	RunEndedAt   time.Time
	StartedFrom  string
	Notice       string
	RunFrom      carrel.SnapshotID // it was told to begin from this
	// Touched rises with every write to the box or one of its runs; writes of reconcilers are conditional on it.
	Touched int64
}

// Run is a run with all that is kept of it.
type Run struct {
	carrel.RunView
	Org         carrel.OrgID
	Box         carrel.BoxID
	Spec        RunSpec
	From        carrel.SnapshotID // it was told to begin from this; empty: fresh
	Saved       carrel.SnapshotID // holds its state, once it has ended
	StartedFrom string
	Notice      string
	CreatedAt   time.Time
	EndedAt     time.Time
}

// RunSpec does not change in the life of a run, but for name and environment when a prepared box becomes a user's. A run with memory has the
// spec of the run whose memory it is.
type RunSpec struct {
	BoxName     string            `json:"box_name"`
	ImageDigest string            `json:"image_digest"`
	Resources   carrel.Resources  `json:"resources"`
	Env         map[string]string `json:"env,omitempty"`
	Sudo        bool              `json:"sudo,omitempty"`
	Startup     []string          `json:"startup,omitempty"`
	// Clone: it begins from the memory of a prebuild, another box's.
	Clone bool `json:"clone,omitempty"`
	// Prepare is done at a fresh start before the box is ready.
	Prepare *carrel.Prebuild `json:"prepare,omitempty"`
}

// Event is what happened to a box, for its people.
type Event struct {
	ID      carrel.EventID
	Org     carrel.OrgID
	Box     carrel.BoxID
	Run     carrel.RunID
	At      time.Time
	Kind    string
	Message string
	Actor   string // user:ID, reconcile, node:ID
}

// AuditEntry says who did what.
type AuditEntry struct {
	At     time.Time
	Org    carrel.OrgID
	Actor  string
	Method string
	Target string
	Detail string
}

// Operation is one request about a box or an image, with all that computing its status needs.
type Operation struct {
	ID         carrel.OperationID
	Org        carrel.OrgID
	Verb       carrel.Verb
	TargetID   string
	TargetName string
	Generation int64
	// BootGeneration that fulfils it; 0: any.
	BootGeneration int64
	CreatedBy      carrel.UserID
	CreatedAt      time.Time
	// Settled is how it ended, where that was written down.
	Settled *carrel.OperationStatus
	// Box and its runs since the request, oldest first, for the verbs of boxes. Box is nil once it is forgotten.
	Box  *Box
	Runs []carrel.RunView
	// Image is set for the verbs of images.
	Image *Image
	// Replayed: a request with the same id came before, and this is its operation.
	Replayed bool
}

// View is what carrel.StatusOf takes.
func (o *Operation) View() carrel.OperationView {
	return carrel.OperationView{
		Verb: o.Verb, Generation: o.Generation, BootGeneration: o.BootGeneration, CreatedAt: o.CreatedAt, Settled: o.Settled,
	}
}

// Status computes what became of the request.
func (o *Operation) Status() carrel.OperationStatus {
	switch {
	case o.Image != nil:
		switch o.Image.State {
		case ImageReady:
			return carrel.OperationStatus{Done: true, EndedAt: o.Image.FinishedAt, Progress: "ready"}
		case ImageFailed:
			return carrel.OperationStatus{Done: true, EndedAt: o.Image.FinishedAt, Failure: o.Image.Failure, Progress: "failed"}
		}
		return carrel.OperationStatus{Progress: o.Image.Progress}
	case o.Settled != nil:
		return *o.Settled
	case o.Box == nil:
		return carrel.OperationStatus{Done: true, Progress: "deleted"}
	}
	status := carrel.StatusOf(o.View(), &o.Box.BoxView, o.Runs)
	if status.Done && status.EndedAt.IsZero() && o.Box.Deleted {
		status.EndedAt = o.Box.DeletedAt
	}
	return status
}

// Lease is the right to write under a name until it ends or is taken. Every write under it is conditional
// on its term, so a holder that was overtaken can do no harm.
type Lease struct {
	Name    string
	Holder  string
	Term    int64
	Expires time.Time
}

// NodeFacts is what a node says of itself.
type NodeFacts struct {
	Version         string              `json:"version,omitempty"`
	RuntimeVersion  string              `json:"runtime_version,omitempty"`
	Kernel          string              `json:"kernel,omitempty"`
	CPUMillis       int64               `json:"cpu_millis"`
	MemoryBytes     int64               `json:"memory_bytes"`
	DiskBytes       int64               `json:"disk_bytes"`
	DiskFreeBytes   int64               `json:"disk_free_bytes"`
	Enforced        []string            `json:"enforced,omitempty"`
	Limitations     []string            `json:"limitations,omitempty"`
	Images          []string            `json:"-"` // digests, kept in a table of their own
	Snapshots       []carrel.SnapshotID `json:"snapshots,omitempty"`
	QuarantinedRuns []string            `json:"quarantined_runs,omitempty"`
	ProxyAddress    string              `json:"proxy_address,omitempty"`
	AgentSHA256     string              `json:"agent_sha256,omitempty"`
}

// Node is a machine: what an administrator wants of it, what it said of itself, and what is reserved on it.
type Node struct {
	ID          carrel.NodeID
	Name        string
	Region      string
	Schedulable bool
	Facts       NodeFacts
	FactsAt     time.Time // zero: it has said nothing yet
	LastSeen    time.Time
	Revision    int64
	CreatedAt   time.Time
	RemovedAt   time.Time // zero: it belongs to the cluster
	// Of the live runs.
	Runs            int
	Waking          int // those that begin from a snapshot and do not run yet
	UsedCPUMillis   int64
	UsedMemoryBytes int64
	// Reserved for the boxes whose files are there, and held by prebuilds and by snapshots that are to be dropped.
	ReservedDiskBytes int64
	// What AssignRun would still give. CPU is over-committed by Config.CPUOvercommit.
	FreeCPUMillis   int64
	FreeMemoryBytes int64
	FreeDiskBytes   int64
	// Prebuilds that are ready, the oldest first; read by Nodes alone.
	Prebuilds []Prebuild
}

// Gateway is a machine at the edge.
type Gateway struct {
	ID        carrel.GatewayID
	Name      string
	Region    string
	CreatedAt time.Time
	LastSeen  time.Time // when it last joined or connected
}

// Cluster names this installation. Incarnation rises when PostgreSQL was restored with possible loss.
type Cluster struct {
	ID          string
	Incarnation int64
	SystemOrg   carrel.OrgID
	DefaultOrg  carrel.OrgID
}

// RootKey is a key of the platform, wrapped by the key-encryption key.
type RootKey struct {
	ID        string
	Purpose   string // such as "ca" or "ticket"
	Public    []byte
	Wrapped   []byte
	CreatedAt time.Time
	RetiredAt time.Time // zero: in use
}
