package node

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/timestamppb"

	linkv1 "carrel.dev/carrel/api/carrel/link/v1"
	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/failpoint"
	"carrel.dev/carrel/internal/node/disk"
	"carrel.dev/carrel/internal/runtime"
)

const (
	// quietLease is how long an agent stays quiet by itself.
	quietLease = 10 * time.Second
	// shutdownGrace is what processes have between SIGTERM and SIGKILL when their box is stopped.
	shutdownGrace = 10 * time.Second
	// proxyPatience is how long a pause or stop waits for a proxy that is being started again.
	proxyPatience = 20 * time.Second
	// formerTime bounds the wait of a start for the removal of the box's former run.
	formerTime = 30 * time.Second
	// verifyEnd is how long a node that is ended goes on verifying; what is left the next one does.
	verifyEnd = 8 * time.Second
	// fillCheck is how often the pool's free space is looked at while memory is written to it.
	fillCheck = 25 * time.Millisecond
)

// capture makes the sealed snapshot in which a pause or stop ends. Until it is done nothing is decided: every failure
// is undone, the box goes on, and control hears why.
func (w *worker) capture(ctx context.Context, o order) error {
	var undo undoStack
	ref, err := w.makeSnapshot(ctx, o, &undo)
	if err == nil {
		// From this write on the snapshot may be proposed, and so is not taken back by this node alone.
		err = w.change(func(e *entry) { e.Stage, e.Snapshot = stageCommitting, ref })
	}
	if err == nil {
		return failpoint.Hit("node/capture/noted")
	}
	undoErr := undo.unwind(ctx)
	if undoErr != nil {
		return fmt.Errorf("%s: %w; and it could not be undone yet: %w", o.kind, err, undoErr)
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err := w.look(ctx); err != nil {
		return err
	}
	if !w.live() {
		return err // it died of it, or meanwhile: that is another matter
	}
	return w.undone(o, explainCapture(err))
}

// undone tells control that a pause or stop was tried, and that the box goes on.
func (w *worker) undone(o order, f *failure) error {
	w.log.Warn("a pause or stop was undone and the box goes on", "order", o.kind, "reason", f.Reason, "message", f.Message)
	r := w.report(carrel.PhaseRunning, o.generation)
	r.Failure, r.FailedOrder = f, o.kind
	if f.Reason == carrel.ReasonActive {
		defer w.d.reporter.beat() // what it is used for
	}
	return w.settle(r, func(e *entry) {
		e.Stage, e.Snapshot = stageRunning, nil
		e.FailedOrder, e.FailedGeneration = o.kind, o.generation
	})
}

func (w *worker) makeSnapshot(ctx context.Context, o order, undo *undoStack) (*snapshotRef, error) {
	run, kind := string(w.e.Run), wantedKind(o.kind)
	if kind == carrel.SnapshotMemory && !w.d.caps.Memory {
		return nil, carrel.Errorf(carrel.CodePrecondition, "runtime_error", "this node's runtime cannot save memory; stop the box instead")
	}
	if err := w.d.pool.Continue(); err != nil {
		return nil, err
	}
	// The processes of a box that is used are not even held up.
	if err := w.stillUnused(ctx, o); err != nil {
		return nil, err
	}
	times := newLaps()
	id := carrel.NewSnapshotID()
	undo.add(func(context.Context) error { w.d.snapshots.abandon(id); return nil })
	undo.add(func(ctx context.Context) error {
		// Before the box goes on, a sealed snapshot is taken back: it would not be the box's last state any more.
		if err := w.d.snapshots.invalidate(id); err != nil {
			return err
		}
		return w.goOn(ctx)
	})
	if o.kind == carrel.OrderStop {
		// The processes take their time to end, and nobody else has to wait for that.
		if err := w.shutDown(ctx, o); err != nil {
			return nil, err
		}
	}
	if err := w.d.manager.heavy.Acquire(ctx, 1); err != nil {
		return nil, err
	}
	defer w.d.manager.heavy.Release(1)
	if o.kind == carrel.OrderPause {
		if err := w.quiet(ctx, o); err != nil {
			return nil, err
		}
	}
	times.lap("quiet")
	if err := failpoint.Hit("node/capture/quiet"); err != nil {
		return nil, err
	}
	if err := w.d.runtime.Freeze(ctx, run); err != nil {
		return nil, err
	}
	w.sandbox = sandboxFrozen
	times.lap("freeze")
	if err := failpoint.Hit("node/capture/frozen"); err != nil {
		return nil, err
	}
	dir, err := w.d.snapshots.begin(id)
	if err != nil {
		return nil, err
	}
	early, err := w.save(ctx, dir, kind)
	if err != nil {
		return nil, err
	}
	times.lap("save")
	if err := failpoint.Hit("node/capture/saved"); err != nil {
		return nil, err
	}
	// After Save, which may still write back to the home.
	if err := disk.Clone(w.d.pool.HomePath(run), filepath.Join(dir, homeName)); err != nil {
		return nil, err
	}
	times.lap("clone")
	if err := failpoint.Hit("node/capture/home-cloned"); err != nil {
		return nil, err
	}
	m := w.newManifest(id, kind, o.generation)
	parent, tree := w.parentHome()
	ref, err := w.d.snapshots.seal(ctx, m, early, parent, tree)
	if err != nil {
		return nil, err
	}
	times.lap("seal")
	w.log.Debug("a box was captured", "snapshot", id, "kind", kind, "bytes", ref.SizeBytes, "times", times)
	if err := failpoint.Hit("node/capture/sealed"); err != nil {
		return nil, err
	}
	// Whoever came meanwhile was told to wait, and has the box back at once.
	if err := w.stillUnused(ctx, o); err != nil {
		return nil, err
	}
	if err := failpoint.Hit("node/capture/rechecked"); err != nil {
		return nil, err
	}
	return ref, context.Cause(ctx)
}

// quiet has the agent sync and start nothing new, and cuts the streams.
func (w *worker) quiet(ctx context.Context, o order) error {
	w.passing(carrel.PhasePausing, o.generation)
	if w.sandbox == sandboxFrozen {
		return nil // by a former process, which asked it
	}
	ctx, cancel := context.WithTimeout(ctx, proxyPatience)
	defer cancel()
	return w.throughProxy(ctx, true, func(ctx context.Context) error { return w.d.proxy.Quiesce(ctx, w.e.Run, quietLease) })
}

// shutDown ends the processes, and cuts the streams.
func (w *worker) shutDown(ctx context.Context, o order) error {
	w.passing(carrel.PhaseStopping, o.generation)
	if w.sandbox != sandboxFrozen {
		patient, cancel := context.WithTimeout(ctx, proxyPatience+shutdownGrace)
		err := w.throughProxy(patient, true, func(ctx context.Context) error { return w.d.proxy.Shutdown(ctx, w.e.Run, shutdownGrace) })
		cancel()
		if err != nil {
			if ctx.Err() != nil {
				return err
			}
			// Who is root in the box can break its agent; that must not keep the box from being stopped.
			w.log.Warn("the box's processes could not be asked to end; the box is stopped as it is", "error", err)
			w.e.Notice = "The box's agent did not answer, so its processes were ended without notice."
		}
	}
	w.d.routes.set(w.route(false))
	return nil
}

// goOn lets the box go on. Nothing of it depends on the agent's answer: its quiet ends by itself.
func (w *worker) goOn(ctx context.Context) error {
	if err := w.d.runtime.Thaw(ctx, string(w.e.Run)); err != nil {
		w.unknown = true
		if errors.Is(err, runtime.ErrDied) || errors.Is(err, runtime.ErrNotFound) {
			return nil // seen when it is looked for
		}
		return err
	}
	w.sandbox = sandboxRunning
	if err := w.d.proxy.Unquiesce(ctx, w.e.Run); err != nil {
		w.log.Info("the box's agent was not told to go on; it does so by itself", "error", err)
	}
	w.d.routes.set(w.route(true))
	return nil
}

// save lets the runtime write the capture. What it has written is hashed and goes to the disk meanwhile. It is stopped when
// the pool runs full: the writes of other boxes would fail.
func (w *worker) save(ctx context.Context, dir string, kind carrel.SnapshotKind) (*disk.Early, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	var early *disk.Early
	var beside sync.WaitGroup
	beside.Go(func() { early = disk.HashEarly(ctx, dir) })
	beside.Go(func() {
		ticker := time.NewTicker(fillCheck)
		defer ticker.Stop()
		for {
			select {
			case <-ticker.C:
				if err := w.d.pool.Continue(); err != nil {
					cancel(err)
					return
				}
			case <-ctx.Done():
				return
			}
		}
	})
	err := w.d.runtime.Save(ctx, string(w.e.Run), dir, runtime.SaveOptions{Memory: kind == carrel.SnapshotMemory})
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	cancel(nil)
	beside.Wait()
	return early, err
}

func (w *worker) newManifest(id carrel.SnapshotID, kind carrel.SnapshotKind, generation int64) *manifest {
	return &manifest{
		Snapshot: id, Run: w.e.Run, Box: w.e.Box, Org: w.e.Org, Epoch: w.e.Epoch, Generation: generation, Kind: kind, Time: w.d.now().UTC(),
		ImageDigest: w.e.Spec.ImageDigest, SpecSHA256: memorySpec(w.e.Spec), AgentSHA256: w.e.AgentSHA256,
		Runtime: w.d.caps.Name, Version: w.d.versionOf(w.e.Run), CPU: w.d.cpu,
	}
}

// parentHome is the image that the run's home was cloned from, if its hashes are known.
func (w *worker) parentHome() (string, *disk.Tree) {
	if w.e.Spec.SnapshotID == "" {
		return "", nil
	}
	m, err := w.d.snapshots.get(w.e.Spec.SnapshotID)
	if err != nil {
		return "", nil
	}
	return filepath.Join(w.d.snapshots.path(m.Snapshot), homeName), &m.Home
}

// undo takes back what a former process or step left of a capture, and lets the box go on.
func (w *worker) undo(ctx context.Context) error {
	if m := w.d.snapshots.of(w.e.Run); m != nil {
		defer w.d.snapshots.abandon(m.Snapshot)
		if err := w.d.snapshots.invalidate(m.Snapshot); err != nil {
			return err
		}
	}
	if err := failpoint.Hit("node/undo/taken-back"); err != nil {
		return err
	}
	if w.live() {
		if err := w.goOn(ctx); err != nil {
			return err
		}
	}
	if w.e.Stage == stageRunning {
		return nil
	}
	return w.change(func(e *entry) { e.Stage, e.Snapshot = stageRunning, nil })
}

// commit proposes the sealed snapshot until control has decided, and then ends the run. A box whose snapshot may have
// been taken stays frozen for as long as that is not known.
func (w *worker) commit(ctx context.Context, o order) error {
	if w.e.Stage != stageCommitting || w.e.Snapshot == nil {
		// A former process was killed between the seal and the ledger. Control has not heard of the snapshot, and the
		// order may be another one by now.
		if err := w.d.link.awaitFresh(ctx); err != nil {
			return err
		}
		if w.wanted() != o {
			return nil
		}
		if err := w.stillUnused(ctx, o); errors.Is(err, errActive) {
			if err := w.undo(ctx); err != nil {
				return fmt.Errorf("commit: %w", err)
			}
			return w.undone(o, explainCapture(err))
		} else if err != nil {
			return fmt.Errorf("commit: %w", err)
		}
		m := w.d.snapshots.of(w.e.Run)
		if m == nil {
			return errors.New("commit: the snapshot is gone")
		}
		ref, err := w.d.snapshots.ref(m.Snapshot)
		if err != nil {
			return fmt.Errorf("commit: %w", err)
		}
		if err := w.change(func(e *entry) { e.Stage, e.Snapshot = stageCommitting, ref }); err != nil {
			return fmt.Errorf("commit: %w", err)
		}
	}
	times := newLaps()
	ref := w.e.Snapshot
	answer, err := w.propose(ctx, ref)
	if err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	if !answer.GetAccepted() {
		return w.refused(ctx, ref, answer.GetReason())
	}
	times.lap("propose")
	if err := failpoint.Hit("node/commit/accepted"); err != nil {
		return err
	}
	generation := ref.Generation
	if now := w.wanted(); wantedKind(now.kind) == ref.Kind {
		generation = max(generation, now.generation) // the same was asked for again meanwhile
	}
	r := w.report(endPhase(ref.Kind), generation)
	r.SnapshotID = ref.ID
	// From the report on the box may be started again here, and that start has to see that this run is not gone yet.
	w.mu.Lock()
	w.alive = false
	w.mu.Unlock()
	if err := w.settle(r, func(e *entry) { e.Stage = stageClearing }); err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	times.lap("tell")
	if err := failpoint.Hit("node/commit/told"); err != nil {
		return err
	}
	if err := w.finish(ctx); err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	times.lap("clear")
	w.log.Debug("a snapshot was committed", "snapshot", ref.ID, "times", times)
	return nil
}

// finish verifies the snapshot in which a run ended and removes what is left of the run, whose end control was told already. Nobody waits for
// it, since the disk takes a while to give the snapshot back, and the kernel to take back a sandbox's memory; and the end of the daemon does, so that
// a node that was stopped leaves nothing that is frozen.
func (w *worker) finish(ctx context.Context) error {
	if err := w.verify(ctx); err != nil {
		return fmt.Errorf("verify the snapshot: %w", err)
	}
	if err := failpoint.Hit("node/finish/verified"); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
	defer cancel()
	if err := w.clear(ctx); err != nil {
		return err
	}
	if err := failpoint.Hit("node/finish/cleared"); err != nil {
		return err
	}
	return w.change(func(e *entry) { e.Stage = stageEnded })
}

// verify has the disk give back the snapshot in which the run ended. Until it has, the frozen sandbox stays: it is the only other copy of what the
// box had in memory. A start of the box does not wait for it: it reads and compares all of the snapshot itself, and then the snapshot is the past.
func (w *worker) verify(ctx context.Context) error {
	if w.e.Snapshot == nil || !w.live() {
		return nil
	}
	reading, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	defer context.AfterFunc(w.hurried, cancel)()
	defer context.AfterFunc(ctx, func() {
		if !errors.Is(context.Cause(ctx), errSuperseded) {
			time.AfterFunc(verifyEnd, cancel)
			return
		}
		w.hurry() // the box is to be destroyed
	})()
	err := w.d.snapshots.verify(reading, w.e.Snapshot.ID)
	if err != nil && w.hurried.Err() != nil {
		return nil
	}
	return err
}

// hurryFormer has the box's former runs, whose end control knows, leave this machine now; awaitFormer waits until they have: of a box there is
// one sandbox.
func (w *worker) hurryFormer() {
	for _, former := range w.d.manager.finishing(w.e.Box) {
		former.hurry()
	}
}

func (w *worker) awaitFormer(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, formerTime)
	defer cancel()
	for _, former := range w.d.manager.finishing(w.e.Box) {
		former.hurry()
		select {
		case <-former.over:
		case <-ctx.Done():
			return carrel.Errorf(carrel.CodeUnavailable, "former_run", "what is left of the box's former run could not be removed yet")
		}
	}
	return nil
}

// refused is a definite no: the snapshot is nothing, and the box goes on until control orders otherwise.
func (w *worker) refused(ctx context.Context, ref *snapshotRef, reason string) error {
	defer w.d.snapshots.abandon(ref.ID)
	if err := w.d.snapshots.invalidate(ref.ID); err != nil {
		return err
	}
	kind := carrel.OrderStop
	if ref.Kind == carrel.SnapshotMemory {
		kind = carrel.OrderPause
	}
	if w.live() {
		if err := w.goOn(ctx); err != nil {
			return err
		}
	}
	return w.undone(order{kind, ref.Generation}, &failure{
		Reason: reason, Message: "Control did not take the box's snapshot (" + clip(reason) + ").", Transient: true,
	})
}

// propose asks control to take a snapshot, again and again until there is an answer.
func (w *worker) propose(ctx context.Context, ref *snapshotRef) (*linkv1.CommitSnapshotResponse, error) {
	request := &linkv1.CommitSnapshotRequest{
		SnapshotId: string(ref.ID), BoxId: string(w.e.Box), RunId: string(w.e.Run), Epoch: w.e.Epoch, Kind: string(ref.Kind),
		SizeBytes: ref.SizeBytes, ManifestSha256: ref.ManifestSHA256, RuntimeVersion: ref.RuntimeVersion,
		Time: timestamppb.New(ref.Time), Salvaged: ref.Salvaged, Generation: ref.Generation,
	}
	pause := retryMin
	for {
		if err := failpoint.Hit("node/commit/send"); err != nil {
			return nil, err
		}
		answer, err := w.d.link.commitSnapshot(ctx, request)
		if err == nil {
			return answer, failpoint.Hit("node/commit/answered")
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		w.log.Warn("it is not known whether control took a snapshot; it is asked again", "snapshot", ref.ID, "error", err)
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil, context.Cause(ctx)
		}
		pause = min(2*pause, retryMax)
	}
}

// explainCapture says why a pause or stop was undone.
func explainCapture(err error) *failure {
	var known *carrel.Error
	switch {
	case errors.Is(err, runtime.ErrNoSpace) || errors.Is(err, unix.ENOSPC):
		return &failure{"disk_full", "The node's disk has no room for the box's state.", true}
	case errors.As(err, &known):
		return &failure{known.Reason, known.Message, true}
	}
	return &failure{"runtime_error", "The node could not save the box: " + cause(err) + ".", true}
}
