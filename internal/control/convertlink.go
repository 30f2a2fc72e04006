package control

import (
	"crypto/sha256"
	"fmt"

	"google.golang.org/protobuf/proto"

	linkv1 "carrel.dev/carrel/api/carrel/link/v1"
	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/store"
)

var orderProtos = map[carrel.Order]linkv1.Order{
	carrel.OrderRun: linkv1.Order_ORDER_RUN, carrel.OrderPause: linkv1.Order_ORDER_PAUSE,
	carrel.OrderStop: linkv1.Order_ORDER_STOP, carrel.OrderDestroy: linkv1.Order_ORDER_DESTROY,
}

// desiredProto makes the message for a node, the same bytes for the same set, with its checksum.
func desiredProto(set store.DesiredSet, node carrel.NodeID, ticketKeys [][]byte, revoked []string) (*linkv1.DesiredSet, error) {
	out := &linkv1.DesiredSet{
		ClusterId: set.Cluster, NodeId: string(node), Incarnation: set.Incarnation, Revision: set.Revision,
		DropSnapshots: texts(set.DropSnapshots), DropImages: set.DropImages, TicketKeys: ticketKeys, RevokedPeers: revoked,
	}
	for _, r := range set.Runs {
		order := orderProtos[r.Order]
		if order == linkv1.Order_ORDER_UNSPECIFIED {
			continue // nothing is wanted of it
		}
		spec := r.Spec
		out.Runs = append(out.Runs, &linkv1.DesiredRun{
			RunId: string(r.Run), BoxId: string(r.Box), OrgId: string(r.Org), Epoch: r.Epoch, Order: order, Generation: r.Generation,
			Spec: &linkv1.RunSpec{
				BoxName: spec.BoxName, ImageDigest: spec.ImageDigest,
				CpuMillis: spec.Resources.CPUMillis, MemoryBytes: spec.Resources.MemoryBytes, HomeBytes: spec.Resources.HomeBytes,
				RootBytes: spec.Resources.RootBytes, Processes: spec.Resources.Processes, TmpBytes: spec.Resources.TmpBytes, ShmBytes: spec.Resources.ShmBytes,
				Env: spec.Env, Sudo: spec.Sudo, Startup: spec.Startup, SnapshotId: string(r.Snapshot), WithMemory: r.WithMemory,
				Clone: spec.Clone, Prepare: preparationProto(spec.Prepare),
			},
			IdleSince: timeProto(r.IdleSince), BusyCpuMillis: r.BusyCPUMillis, Identity: r.Identity,
		})
	}
	for _, c := range set.Chores {
		out.Chores = append(out.Chores, &linkv1.Chore{
			Id: string(c.ID), Kind: c.Kind, Name: c.Name, Definition: c.Definition, Reference: c.Reference, Platform: c.Platform, Insecure: c.Insecure, Trusted: c.Trusted,
		})
	}
	data, err := proto.MarshalOptions{Deterministic: true}.Marshal(out)
	if err != nil {
		return nil, fmt.Errorf("encode desired set: %w", err)
	}
	sum := sha256.Sum256(data)
	out.Checksum = sum[:]
	return out, nil
}

func preparationProto(p *carrel.Prebuild) *linkv1.Preparation {
	if p == nil {
		return nil
	}
	return &linkv1.Preparation{Setup: p.Setup, Kernel: p.Kernel, Imports: p.Imports, TimeoutMillis: p.Limit().Milliseconds()}
}

// What one report may hold. A node sends the rest with the next one.
const (
	maxRunReports = 10_000
	maxText       = 4 << 10
)

// reportFromProto reads what a node told. An entry that makes no sense is left out and named, so that it
// can't keep the others from being written.
func reportFromProto(m *linkv1.ReportRequest) (report store.Report, refused []string) {
	for _, r := range m.GetRuns() {
		phase := carrel.Phase(r.GetPhase())
		order := carrel.Order(r.GetFailedOrder())
		switch {
		case carrel.IDKind(r.GetRunId()) != 'r', r.GetEpoch() <= 0, !phase.Valid(), len(report.Runs) >= maxRunReports,
			r.GetSnapshotId() != "" && carrel.IDKind(r.GetSnapshotId()) != 's',
			order != carrel.OrderNone && order != carrel.OrderPause && order != carrel.OrderStop:
			refused = append(refused, "run "+short(r.GetRunId()))
			continue
		}
		report.Runs = append(report.Runs, store.RunReport{
			Run: carrel.RunID(r.GetRunId()), Epoch: r.GetEpoch(), Sequence: r.GetSequence(), Phase: phase, Generation: r.GetGeneration(),
			At: r.GetTime().AsTime(), Reason: short(r.GetReason()), Message: long(r.GetMessage()), Transient: r.GetTransient(),
			FailedOrder: order, Snapshot: carrel.SnapshotID(r.GetSnapshotId()), StartedFrom: short(r.GetStartedFrom()), Notice: long(r.GetNotice()),
			CloneFailure: short(r.GetCloneFailure()),
		})
	}
	for _, c := range m.GetChores() {
		if carrel.IDKind(c.GetChoreId()) != 'c' {
			refused = append(refused, "chore "+short(c.GetChoreId()))
			continue
		}
		report.Chores = append(report.Chores, store.ChoreReport{
			Chore: carrel.ChoreID(c.GetChoreId()), Done: c.GetDone(), ErrorReason: short(c.GetErrorReason()), ErrorMessage: long(c.GetErrorMessage()),
			Progress: long(c.GetProgress()), Digest: short(c.GetDigest()), SizeBytes: c.GetSizeBytes(),
		})
	}
	for _, id := range m.GetDroppedSnapshots() {
		if carrel.IDKind(id) == 's' {
			report.Dropped = append(report.Dropped, carrel.SnapshotID(id))
		}
	}
	for _, a := range m.GetActivities() {
		if carrel.IDKind(a.GetRunId()) != 'r' || a.GetEpoch() <= 0 || len(report.Activities) >= maxRunReports {
			refused = append(refused, "activity of run "+short(a.GetRunId()))
			continue
		}
		report.Activities = append(report.Activities, store.RunActivity{
			Run: carrel.RunID(a.GetRunId()), Epoch: a.GetEpoch(), Signals: each(a.GetSignals(), signalFromProto),
		})
	}
	report.Facts = factsFromProto(m.GetFacts())
	return report, refused
}

func signalFromProto(s *linkv1.ActivitySignal) carrel.Signal {
	return carrel.Signal{Kind: carrel.SignalKind(short(s.GetKind())), At: s.GetTime().AsTime(), Active: s.GetActive(), Detail: short(s.GetDetail())}
}

func factsFromProto(f *linkv1.NodeFacts) *store.NodeFacts {
	if f == nil {
		return nil
	}
	return &store.NodeFacts{
		Version: short(f.GetVersion()), RuntimeVersion: short(f.GetRuntimeVersion()), Kernel: short(f.GetKernel()),
		CPUMillis: max(0, f.GetCpuMillis()), MemoryBytes: max(0, f.GetMemoryBytes()), DiskBytes: max(0, f.GetDiskBytes()), DiskFreeBytes: max(0, f.GetDiskFreeBytes()),
		Enforced: f.GetEnforced(), Limitations: f.GetLimitations(), Images: f.GetImageDigests(),
		Snapshots:       each(f.GetSnapshotIds(), func(id string) carrel.SnapshotID { return carrel.SnapshotID(id) }),
		QuarantinedRuns: f.GetQuarantinedRuns(), ProxyAddress: short(f.GetProxyAddress()), AgentSHA256: short(f.GetAgentSha256()),
	}
}

func snapshotFromProto(m *linkv1.CommitSnapshotRequest) (store.CommitSnapshot, error) {
	kind := carrel.SnapshotKind(m.GetKind())
	if carrel.IDKind(m.GetSnapshotId()) != 's' || carrel.IDKind(m.GetBoxId()) != 'b' || carrel.IDKind(m.GetRunId()) != 'r' ||
		m.GetEpoch() <= 0 || m.GetSizeBytes() < 0 || kind != carrel.SnapshotMemory && kind != carrel.SnapshotDisk {
		return store.CommitSnapshot{}, carrel.Errorf(carrel.CodeInvalid, "bad_snapshot", "the snapshot %q can't be committed: ids, epoch, kind or size make no sense", short(m.GetSnapshotId()))
	}
	return store.CommitSnapshot{
		ID: carrel.SnapshotID(m.GetSnapshotId()), Box: carrel.BoxID(m.GetBoxId()), Run: carrel.RunID(m.GetRunId()), Epoch: m.GetEpoch(),
		Kind: kind, SizeBytes: m.GetSizeBytes(), ManifestSHA256: short(m.GetManifestSha256()), RuntimeVersion: short(m.GetRuntimeVersion()),
		At: m.GetTime().AsTime(), Salvaged: m.GetSalvaged(), Generation: m.GetGeneration(),
	}, nil
}

func short(s string) string { return cut(s, 256) }
func long(s string) string  { return cut(s, maxText) }

func cut(s string, limit int) string {
	if len(s) > limit {
		return s[:limit]
	}
	return s
}
