package node

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	linkv1 "carrel.dev/carrel/api/carrel/link/v1"
	"carrel.dev/carrel/internal/agent/identity"
	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/failpoint"
)

// owner says whose a box is. A prepared box gets another one while it runs.
type owner struct {
	identity int64 // as in DesiredRun
	org      carrel.OrgID
	name     string
	env      map[string]string
}

// handOver takes whose the box is from a desired set.
func (w *worker) handOver(run *linkv1.DesiredRun) {
	w.mu.Lock()
	defer w.mu.Unlock()
	was := w.owner.identity
	w.owner = owner{identity: run.GetIdentity(), org: carrel.OrgID(run.GetOrgId()), name: run.GetSpec().GetBoxName(), env: run.GetSpec().GetEnv()}
	if w.owner.identity != was {
		w.poke()
	}
}

func (w *worker) newOwner() owner {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.owner
}

// identify makes a prepared box its user's: the agent takes name and environment, and only then does control hear that the box runs for its
// user. It may be repeated. A box whose agent cannot be told is given up: nobody worked in it.
func (w *worker) identify(ctx context.Context, o order) error {
	to := w.newOwner()
	if w.strange.IsZero() {
		w.strange = w.d.now()
	}
	if err := w.tell(ctx, to); err != nil {
		if ctx.Err() != nil || w.d.now().Sub(w.strange) < readyTime {
			return fmt.Errorf("identify: %w", err)
		}
		if err := w.clear(ctx); err != nil {
			return fmt.Errorf("identify: %w", err)
		}
		return w.fail(&failure{carrel.ReasonAgentSilent, "A prepared box was to be taken, and its agent did not answer.", true}, "")
	}
	w.strange = time.Time{}
	w.e.StartedFrom = "pool"
	r := w.report(carrel.PhaseRunning, o.generation)
	return w.settle(r, func(e *entry) {
		e.Identity, e.Org, e.Spec.BoxName, e.Spec.Env = to.identity, to.org, to.name, to.env
		e.FailedOrder, e.FailedGeneration = "", 0
	})
}

// tell writes the identity, and has agent and proxy know it.
func (w *worker) tell(ctx context.Context, to owner) error {
	spec := w.e.Spec
	spec.BoxName, spec.Env = to.name, to.env
	if err := spec.check(); err != nil {
		return err
	}
	if err := identity.Write(w.d.identityDir(w.e.Run), w.identityFor(spec)); err != nil {
		return fmt.Errorf("write identity: %w", err)
	}
	if err := failpoint.Hit("node/identify/written"); err != nil {
		return err
	}
	route := w.route(true)
	route.Org = to.org
	if err := w.d.routes.setNow(ctx, route); err != nil {
		return err
	}
	if err := w.d.proxy.Identify(ctx, w.e.Run); err != nil {
		return err
	}
	return failpoint.Hit("node/identify/told")
}

// identityFor is what the agent is told of the run.
func (w *worker) identityFor(s runSpec) identity.Identity {
	if s.SnapshotID != "" {
		s.Prepare = nil // it is prepared
	}
	return identity.Identity{
		RunID: string(w.e.Run), BoxID: string(w.e.Box), BoxName: s.BoxName, Key: w.e.Key, MemoryBytes: s.MemoryBytes,
		Processes: s.Processes, Env: w.env(s), Sudo: s.Sudo, Startup: s.Startup, Prepare: s.Prepare,
	}
}

// env is the image's environment with the box's over it.
func (w *worker) env(s runSpec) map[string]string {
	env, err := w.d.pool.ImageEnv(s.ImageDigest)
	if err == nil {
		err = carrel.ValidateEnv(env)
	}
	if err != nil {
		w.log.Warn("an image's environment is not used", "image", s.ImageDigest, "error", err)
		return maps.Clone(s.Env)
	}
	all := maps.Clone(env)
	if all == nil {
		all = map[string]string{}
	}
	maps.Copy(all, s.Env)
	if err := carrel.ValidateEnv(all); err != nil {
		w.log.Warn("an image's environment does not fit beside the box's", "image", s.ImageDigest, "error", err)
		return maps.Clone(s.Env)
	}
	return all
}

// beginFresh gives up a prebuild's snapshot, from which a run could not begin: it begins anew without.
func (w *worker) beginFresh(cause error) error {
	f := explainStart(cause)
	if errors.Is(cause, errSnapshotMissing) {
		f.Message = "The prebuild is not on this node."
	}
	w.log.Warn("a box could not be cloned from a prebuild; it is started afresh", "snapshot", w.e.Spec.SnapshotID, "error", cause)
	if err := failpoint.Hit("node/start/afresh"); err != nil {
		return err
	}
	err := w.change(func(e *entry) {
		e.Spec.Clone, e.Spec.WithMemory, e.Spec.SnapshotID = false, false, ""
		e.CloneFailure = f.Reason
		e.Notice = "The box could not be cloned from its template's prebuild and was started afresh. " + f.Message
	})
	if err != nil {
		return fmt.Errorf("begin without a prebuild: %w", err)
	}
	w.mu.Lock()
	w.base = ""
	w.mu.Unlock()
	return nil
}

// prepareTime is how long the box may take to be prepared, beyond what a start takes.
func (w *worker) prepareTime() time.Duration {
	if w.e.Spec.Prepare == nil || w.e.Spec.SnapshotID != "" {
		return 0
	}
	return time.Duration(w.e.Spec.Prepare.TimeoutMillis) * time.Millisecond
}

func preparationOf(p *linkv1.Preparation) *identity.Preparation {
	if p == nil {
		return nil
	}
	return &identity.Preparation{Setup: p.GetSetup(), Kernel: p.GetKernel(), Imports: p.GetImports(), TimeoutMillis: p.GetTimeoutMillis()}
}
