package control

import (
	"crypto/sha256"
	"fmt"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/store"
)

func reply[T any](msg *T) (*connect.Response[T], error) { return connect.NewResponse(msg), nil }

func timeProto(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

// stateProto gives STATE_RUNNING for RUNNING; the two sets have the same names.
func stateProto(s carrel.State) carrelv1.State {
	return carrelv1.State(carrelv1.State_value["STATE_"+string(s)])
}

// stateFromProto is "" for a value that is no state.
func stateFromProto(s carrelv1.State) carrel.State {
	if name, ok := carrelv1.State_name[int32(s)]; ok && s != carrelv1.State_STATE_UNSPECIFIED {
		return carrel.State(name[len("STATE_"):])
	}
	return ""
}

func resourcesProto(r carrel.Resources) *carrelv1.Resources {
	return &carrelv1.Resources{
		CpuMillis: r.CPUMillis, MemoryBytes: r.MemoryBytes, HomeBytes: r.HomeBytes, RootBytes: r.RootBytes,
		Processes: r.Processes, TmpBytes: r.TmpBytes, ShmBytes: r.ShmBytes,
	}
}

func resourcesFromProto(r *carrelv1.Resources) carrel.Resources {
	return carrel.Resources{
		CPUMillis: r.GetCpuMillis(), MemoryBytes: r.GetMemoryBytes(), HomeBytes: r.GetHomeBytes(), RootBytes: r.GetRootBytes(),
		Processes: r.GetProcesses(), TmpBytes: r.GetTmpBytes(), ShmBytes: r.GetShmBytes(),
	}
}

func failureProto(f *carrel.Failure) *carrelv1.Failure {
	if f == nil {
		return nil
	}
	return &carrelv1.Failure{
		Reason: f.Reason, Message: f.Message, NextStep: f.NextStep, Transient: f.Transient,
		RetryTime: timeProto(f.RetryAt), Attempts: int32(min(f.Attempts, 1<<30)), //nolint:gosec // bounded here
	}
}

func phasesProto(phases []carrel.PhaseAt) []*carrelv1.Phase {
	out := make([]*carrelv1.Phase, len(phases))
	for i, p := range phases {
		out[i] = &carrelv1.Phase{Phase: string(p.Phase), Time: timeProto(p.At)}
	}
	return out
}

func boxProto(b *store.Box) *carrelv1.Box {
	out := &carrelv1.Box{
		Id: string(b.ID), OrgId: string(b.Org), Name: b.Name, OwnerId: string(b.Owner),
		Template: b.Template, TemplateVersion: b.TemplateVersion, ImageDigest: b.ImageDigest,
		State: stateProto(carrel.StateOf(&b.BoxView)), Intent: string(b.Intent), Generation: b.Generation, Epoch: b.Epoch,
		Resources: resourcesProto(b.Resources), Labels: b.Labels, Env: b.Env, Region: b.Region, Etag: b.ETag,
		CreateTime: timeProto(b.CreatedAt), UpdateTime: timeProto(b.UpdatedAt), DeleteTime: timeProto(b.DeletedAt),
		StateTime: timeProto(stateTime(b)), StartedFrom: b.StartedFrom, Notice: b.Notice, NodeId: string(b.HomeNode),
		Idle: idleProto(b.IdleSources().Policy()), StateReason: policyReason(b),
	}
	if b.Snapshot != nil {
		out.DurableTime = timeProto(b.Snapshot.At)
	}
	if b.Run != nil {
		out.Phases = phasesProto(b.Run.Phases)
		if b.Live() {
			out.RunId, out.NodeId = string(b.Run.ID), string(b.Run.NodeID)
		}
	}
	failure := shownFailure(&b.BoxView)
	out.Failure = failureProto(failure)
	if failure != nil {
		out.StateReason = failure.Message
	}
	return out
}

// shownFailure is what went wrong with what the user wants now: the reconciler's verdict, or a pause or stop
// that was tried and undone while the box runs on.
func shownFailure(v *carrel.BoxView) *carrel.Failure {
	if f := v.CurrentFailure(); f != nil {
		return f
	}
	if v.Observe() == carrel.ObservedUndone {
		return &carrel.Failure{
			Reason: v.Run.Reason, Message: v.Run.Message, Transient: v.Run.Transient, Generation: v.Generation, RunID: v.Run.ID,
			NextStep: "The box runs on and nothing was lost. Ask again when the cause is gone.",
		}
	}
	return nil
}

// stateTime is when the last thing happened that the state is computed from.
func stateTime(b *store.Box) time.Time {
	at := b.CreatedAt
	times := []time.Time{b.IntentAt, b.DeletedAt}
	if b.Run != nil {
		for _, p := range b.Run.Phases {
			times = append(times, p.At)
		}
	}
	if f := b.CurrentFailure(); f != nil {
		times = append(times, f.At)
	}
	for _, t := range times {
		if t.After(at) {
			at = t
		}
	}
	return at
}

func runProto(r *store.Run) *carrelv1.Run {
	out := &carrelv1.Run{
		Id: string(r.ID), BoxId: string(r.Box), NodeId: string(r.NodeID), Epoch: r.Epoch, Phase: string(r.Phase),
		Phases: phasesProto(r.Phases), CreateTime: timeProto(r.CreatedAt), EndTime: timeProto(r.EndedAt), StartedFrom: r.StartedFrom,
	}
	if r.Reason != "" {
		out.Failure = failureProto(&carrel.Failure{
			Reason: r.Reason, Message: r.Message, Transient: r.Transient, NextStep: carrel.RemedyOf(r.Reason, r.Transient).NextStep,
		})
	}
	return out
}

func operationProto(op *store.Operation) *carrelv1.Operation {
	status := op.Status()
	out := &carrelv1.Operation{
		Id: string(op.ID), OrgId: string(op.Org), Verb: string(op.Verb), TargetId: op.TargetID, TargetName: op.TargetName,
		Done: status.Done, Error: failureProto(status.Failure), Progress: status.Progress,
		CreateTime: timeProto(op.CreatedAt), EndTime: timeProto(status.EndedAt), CreatedBy: string(op.CreatedBy),
	}
	if status.Done && !status.EndedAt.IsZero() {
		out.Duration = durationpb.New(max(0, status.EndedAt.Sub(op.CreatedAt)))
	}
	return out
}

func eventProto(e store.Event) *carrelv1.Event {
	return &carrelv1.Event{
		Id: string(e.ID), BoxId: string(e.Box), RunId: string(e.Run), Time: timeProto(e.At), Kind: e.Kind, Message: e.Message, Actor: e.Actor,
	}
}

func templateProto(t store.Template) *carrelv1.Template {
	return &carrelv1.Template{
		Id: string(t.ID), OrgId: string(t.Org), Name: t.Name, Version: t.Version, Description: t.Description,
		Image: t.Image, ImageDigest: t.ImageDigest, Resources: resourcesProto(t.Resources), Env: t.Env, Labels: t.Labels,
		Sudo: t.Sudo, Startup: t.Startup, CreateTime: timeProto(t.CreatedAt), Idle: idleProto(t.Idle), Prebuild: recipeProto(t.Prebuild),
	}
}

func recipeProto(p *carrel.Prebuild) *carrelv1.PrebuildRecipe {
	if p == nil {
		return nil
	}
	return &carrelv1.PrebuildRecipe{Setup: p.Setup, Kernel: p.Kernel, Imports: p.Imports, Timeout: durationpb.New(p.Limit())}
}

func prebuildProto(p store.PrebuildState) *carrelv1.Prebuild {
	out := &carrelv1.Prebuild{
		Template: fmt.Sprintf("%s@%d", p.TemplateName, p.TemplateVersion), TemplateId: string(p.Template), OrgId: string(p.Org), NodeId: string(p.Node),
		NodeName: p.NodeName, State: "building", SizeBytes: p.SizeBytes, CreateTime: timeProto(p.CreatedAt), ReadyTime: timeProto(p.ReadyAt), RuntimeVersion: p.RuntimeVersion,
	}
	failure := p.Hidden.CurrentFailure()
	switch {
	case p.Condemned != "":
		out.State, out.Failure = "failed", &carrelv1.Failure{Reason: p.Condemned, Message: "a box could not begin from it; it is made anew", Transient: true}
	case p.Snapshot != "":
		out.State = "ready"
		if !p.Hidden.RunCreatedAt.IsZero() {
			out.BuildTime = durationpb.New(p.ReadyAt.Sub(p.Hidden.RunCreatedAt))
		}
	case failure != nil:
		out.State, out.Failure = "failed", failureProto(failure)
	}
	return out
}

func imageProto(i store.Image) *carrelv1.Image {
	return &carrelv1.Image{
		Id: string(i.ID), OrgId: string(i.Org), Name: i.Name, Digest: i.Digest, SizeBytes: i.SizeBytes, State: i.State,
		Failure: failureProto(i.Failure), Source: i.Source, Progress: i.Progress, CreateTime: timeProto(i.CreatedAt), NodeIds: texts(i.Nodes),
	}
}

func orgProto(o store.Org) *carrelv1.Org {
	return &carrelv1.Org{Id: string(o.ID), Name: o.Name, CreateTime: timeProto(o.CreatedAt)}
}

func memberProto(m store.Member) *carrelv1.Member {
	return &carrelv1.Member{OrgId: string(m.Org), UserId: string(m.User), UserName: m.UserName, Role: m.Role}
}

func userProto(u store.User) *carrelv1.User {
	return &carrelv1.User{Id: string(u.ID), Name: u.Name, Operator: u.Operator, CreateTime: timeProto(u.CreatedAt)}
}

func tokenProto(t store.Token) *carrelv1.Token {
	return &carrelv1.Token{
		Id: string(t.ID), UserId: string(t.User), Description: t.Description,
		CreateTime: timeProto(t.CreatedAt), ExpireTime: timeProto(t.ExpiresAt), RevokeTime: timeProto(t.RevokedAt),
	}
}

func nodeProto(n store.Node, now time.Time) *carrelv1.Node {
	state := "offline"
	if now.Sub(n.LastSeen) < nodeSilence {
		state = "online"
	}
	if !n.RemovedAt.IsZero() {
		state = "removed"
	}
	f := n.Facts
	return &carrelv1.Node{
		Id: string(n.ID), Name: n.Name, Region: n.Region, Schedulable: n.Schedulable, State: state, LastSeenTime: timeProto(n.LastSeen),
		Capacity:  &carrelv1.Resources{CpuMillis: f.CPUMillis, MemoryBytes: f.MemoryBytes},
		DiskBytes: f.DiskBytes, DiskUsedBytes: n.ReservedDiskBytes,
		Used:    &carrelv1.Resources{CpuMillis: n.UsedCPUMillis, MemoryBytes: n.UsedMemoryBytes},
		Runs:    int32(min(n.Runs, 1<<30)), //nolint:gosec // bounded here
		Version: f.Version, RuntimeVersion: f.RuntimeVersion, Kernel: f.Kernel, Enforced: f.Enforced, Limitations: f.Limitations,
		ImageDigests: f.Images, QuarantinedRuns: f.QuarantinedRuns, CreateTime: timeProto(n.CreatedAt),
	}
}

func each[In, Out any](in []In, f func(In) Out) []Out {
	out := make([]Out, len(in))
	for i, v := range in {
		out[i] = f(v)
	}
	return out
}

func texts[K ~string](ids []K) []string { return each(ids, func(id K) string { return string(id) }) }

// page checks the size of a page: 0 is the default, more than the largest is the largest.
func page(size int32, token string) (store.Page, error) {
	if size < 0 {
		return store.Page{}, carrel.Errorf(carrel.CodeInvalid, "bad_page_size", "the page size %d is below 0; leave it out, or ask for 1 to %d", size, carrel.MaxPageSize)
	}
	return store.Page{Size: min(int(size), carrel.MaxPageSize), Token: token}, nil
}

// meant are the ids that a request's fields lead to, by field: two requests that name the same thing in different ways
// are the same.
type meant map[protoreflect.Name]string

// requestOf names a repeatable request. What is compared with an earlier one is all of it but its id.
func requestOf(method, id string, msg proto.Message, ids meant) (store.Request, error) {
	if id == "" {
		return store.Request{}, nil
	}
	bare := proto.Clone(msg)
	m := bare.ProtoReflect()
	m.Clear(m.Descriptor().Fields().ByName("request_id"))
	for field, value := range ids {
		m.Set(m.Descriptor().Fields().ByName(field), protoreflect.ValueOfString(value))
	}
	data, err := proto.MarshalOptions{Deterministic: true}.Marshal(bare)
	if err != nil {
		return store.Request{}, err
	}
	sum := sha256.Sum256(data)
	return store.Request{ID: id, Method: method, Hash: sum[:]}, nil
}
