package node

import (
	"time"

	linkv1 "carrel.dev/carrel/api/carrel/link/v1"
	"carrel.dev/carrel/internal/agent/identity"
	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/node/netpool"
)

// entry is what the ledger keeps of one run. Only the run's worker changes it, and writes it before it acts
// on the change.
type entry struct {
	Run   carrel.RunID `json:"run"`
	Box   carrel.BoxID `json:"box"`
	Org   carrel.OrgID `json:"org"`
	Epoch int64        `json:"epoch"`
	Spec  runSpec      `json:"spec"`

	// The newest order. A desired set that does not name the run leaves it as it is.
	Order           carrel.Order `json:"order"`
	OrderGeneration int64        `json:"order_generation"`

	Stage stage `json:"stage"`
	// Generation is the one of the newest phase that was told to control.
	Generation int64 `json:"generation"`
	// FailedOrder was tried and undone for FailedGeneration.
	FailedOrder      carrel.Order `json:"failed_order,omitempty"`
	FailedGeneration int64        `json:"failed_generation,omitempty"`

	// Snapshot is the one that is committed or salvaged to, from stageCommitting and stageSalvaging on.
	Snapshot *snapshotRef `json:"snapshot,omitempty"`
	// Failure is why the run ended or is being salvaged.
	Failure *failure `json:"failure,omitempty"`

	// What it runs with, from the start on.
	Network     netpool.Network `json:"network"`
	Key         string          `json:"key,omitempty"` // proves the proxy to the agent
	AgentSHA256 string          `json:"agent_sha256,omitempty"`
	StartedFrom string          `json:"started_from,omitempty"`
	Notice      string          `json:"notice,omitempty"`
	// CloneFailure is why it could not begin from a prebuild's snapshot.
	CloneFailure string `json:"clone_failure,omitempty"`
	// Identity is that of DesiredRun which the box's agent knows.
	Identity int64 `json:"identity,omitempty"`

	// Report is the newest that settles something, and Told whether control has it.
	Report *report `json:"report,omitempty"`
	Told   bool    `json:"told,omitempty"`
	// Sequence is that of the newest report that was made.
	Sequence int64 `json:"sequence"`
}

// snapshotRef is what control is told of a snapshot.
type snapshotRef struct {
	ID             carrel.SnapshotID   `json:"id"`
	Kind           carrel.SnapshotKind `json:"kind"`
	Generation     int64               `json:"generation"`
	Salvaged       bool                `json:"salvaged,omitempty"`
	SizeBytes      int64               `json:"size_bytes"`
	ManifestSHA256 string              `json:"manifest_sha256"`
	RuntimeVersion string              `json:"runtime_version"`
	Time           time.Time           `json:"time"`
}

// failure is why something ended otherwise than it was wanted.
type failure struct {
	Reason    string `json:"reason"`
	Message   string `json:"message"`
	Transient bool   `json:"transient"`
}

// report is one RunReport in the making.
type report struct {
	Phase       carrel.Phase      `json:"phase"`
	Generation  int64             `json:"generation"`
	Sequence    int64             `json:"sequence"`
	Time        time.Time         `json:"time"`
	Failure     *failure          `json:"failure,omitempty"`
	FailedOrder carrel.Order      `json:"failed_order,omitempty"`
	SnapshotID  carrel.SnapshotID `json:"snapshot_id,omitempty"`
	StartedFrom string            `json:"started_from,omitempty"`
	Notice      string            `json:"notice,omitempty"`

	CloneFailure string `json:"clone_failure,omitempty"`
}

// runSpec is linkv1.RunSpec, as the ledger and manifests keep it.
type runSpec struct {
	BoxName     string            `json:"box_name"`
	ImageDigest string            `json:"image_digest"`
	CPUMillis   int64             `json:"cpu_millis"`
	MemoryBytes int64             `json:"memory_bytes"`
	HomeBytes   int64             `json:"home_bytes"`
	RootBytes   int64             `json:"root_bytes"`
	Processes   int64             `json:"processes"`
	TmpBytes    int64             `json:"tmp_bytes"`
	ShmBytes    int64             `json:"shm_bytes"`
	Env         map[string]string `json:"env,omitempty"`
	Sudo        bool              `json:"sudo,omitempty"`
	Startup     []string          `json:"startup,omitempty"`
	SnapshotID  carrel.SnapshotID `json:"snapshot_id,omitempty"`
	WithMemory  bool              `json:"with_memory,omitempty"`
	// Clone: the snapshot is a prebuild's, of another box.
	Clone   bool                  `json:"clone,omitempty"`
	Prepare *identity.Preparation `json:"prepare,omitempty"`
}

func specOf(s *linkv1.RunSpec) runSpec {
	return runSpec{
		BoxName: s.GetBoxName(), ImageDigest: s.GetImageDigest(), CPUMillis: s.GetCpuMillis(), MemoryBytes: s.GetMemoryBytes(),
		HomeBytes: s.GetHomeBytes(), RootBytes: s.GetRootBytes(), Processes: s.GetProcesses(), TmpBytes: s.GetTmpBytes(),
		ShmBytes: s.GetShmBytes(), Env: s.GetEnv(), Sudo: s.GetSudo(), Startup: s.GetStartup(),
		SnapshotID: carrel.SnapshotID(s.GetSnapshotId()), WithMemory: s.GetWithMemory(),
		Clone: s.GetClone(), Prepare: preparationOf(s.GetPrepare()),
	}
}

// check refuses what no control of ours would send: sizes out of range would become mounts and cgroups.
func (s runSpec) check() error {
	r := carrel.Resources{
		CPUMillis: s.CPUMillis, MemoryBytes: s.MemoryBytes, HomeBytes: s.HomeBytes, RootBytes: s.RootBytes,
		Processes: s.Processes, TmpBytes: s.TmpBytes, ShmBytes: s.ShmBytes,
	}
	if err := r.Validate(); err != nil {
		return err
	}
	if err := carrel.ValidateName("box", s.BoxName); err != nil {
		return err
	}
	if s.SnapshotID != "" && carrel.IDKind(string(s.SnapshotID)) != 's' {
		return carrel.Errorf(carrel.CodeInvalid, "bad_snapshot_id", "%q is no id of a snapshot", s.SnapshotID)
	}
	return carrel.ValidateEnv(s.Env)
}

func orderOf(o linkv1.Order) carrel.Order {
	switch o {
	case linkv1.Order_ORDER_RUN:
		return carrel.OrderRun
	case linkv1.Order_ORDER_PAUSE:
		return carrel.OrderPause
	case linkv1.Order_ORDER_STOP:
		return carrel.OrderStop
	case linkv1.Order_ORDER_DESTROY:
		return carrel.OrderDestroy
	}
	return carrel.OrderNone
}
