package node

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"carrel.dev/carrel/internal/agent/identity"
	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/failpoint"
	"carrel.dev/carrel/internal/node/disk"
	"carrel.dev/carrel/internal/node/netpool"
	"carrel.dev/carrel/internal/runtime"
)

const (
	// readyTime is what an agent has from the start of its sandbox to its being ready.
	readyTime = time.Minute
	// headroom is how far the hard limit of a sandbox's memory lies above what is promised to its processes, in
	// bytes: what gVisor needs for itself, and a twentieth for its page tables.
	headroom = 256 * carrel.MiB
)

// undoStack has what takes back a step that fails half way, done in the opposite order.
type undoStack struct{ actions []func(context.Context) error }

func (u *undoStack) add(f func(context.Context) error) { u.actions = append(u.actions, f) }
func (u *undoStack) release()                          { u.actions = nil }

// unwind does the actions, each whether or not the others succeed, also when ctx is over.
func (u *undoStack) unwind(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
	defer cancel()
	var errs []error
	for i := len(u.actions) - 1; i >= 0; i-- {
		errs = append(errs, u.actions[i](ctx))
	}
	u.actions = nil
	return errors.Join(errs...)
}

// start brings a run up. When that fails for a reason that lies in the run or the machine, everything is taken back
// and the run has failed; control decides whether another one is tried.
func (w *worker) start(ctx context.Context, o order) error {
	if err := w.d.manager.heavy.Acquire(ctx, 1); err != nil {
		return context.Cause(ctx)
	}
	booted := sync.OnceFunc(func() { w.d.manager.heavy.Release(1) })
	defer booted()
	var undo undoStack
	err := w.bringUp(ctx, o, &undo, booted)
	if err == nil {
		undo.release()
		// Whoever hears of it may work in it: from now on its files are kept, whatever happens. If the ledger cannot
		// be written, nobody hears of it yet.
		w.e.Stage = stageRunning
		w.d.routes.set(w.route(true))
		return w.settle(w.report(carrel.PhaseRunning, w.wanted().generation), func(*entry) {})
	}
	if undoErr := undo.unwind(ctx); undoErr != nil {
		return fmt.Errorf("start: %w; and it could not be taken back: %w", err, undoErr)
	}
	w.sandbox = sandboxAbsent
	if ctx.Err() == nil && w.e.Spec.Clone {
		return w.beginFresh(err)
	}
	if ctx.Err() != nil {
		return context.Cause(ctx) // the daemon ends, or another order came: it is no failure of the run
	}
	w.log.Warn("a box could not be started", "error", err)
	return w.fail(explainStart(err), "")
}

// fail ends the run. Nothing of it is left but, in what is called snapshot, its state.
func (w *worker) fail(f *failure, snapshot carrel.SnapshotID) error {
	r := w.report(carrel.PhaseFailed, w.wanted().generation)
	r.Failure, r.SnapshotID = f, snapshot
	return w.settle(r, func(e *entry) { e.Stage, e.Failure = stageEnded, f })
}

// bringUp does the work of start. It calls booted when what is left to do is to wait.
func (w *worker) bringUp(ctx context.Context, o order, undo *undoStack, booted func()) error {
	times := newLaps()
	var base *manifest
	var err error
	if err := w.e.Spec.check(); err != nil {
		return err
	}
	if err := w.d.pool.Admit(); err != nil {
		return err
	}
	image, ok := w.d.pool.ImagePath(w.e.Spec.ImageDigest)
	if !ok {
		return carrel.Errorf(carrel.CodePrecondition, "image_missing", "the image %s is not on this node", w.e.Spec.ImageDigest)
	}
	agent, agentSHA256 := w.d.agentPath, w.d.agentSHA256
	if id := w.e.Spec.SnapshotID; id != "" {
		if base, err = w.d.snapshots.get(id); err != nil {
			return err
		}
		if base.Box != w.e.Box && !w.e.Spec.Clone {
			return fmt.Errorf("%w: it is one of box %s", errSnapshotCorrupt, base.Box)
		}
		if w.e.Spec.WithMemory {
			if err := base.usableMemory(w.e.Spec, w.d.caps, w.d.cpu); err != nil {
				return fmt.Errorf("%w: %w", runtime.ErrIncompatible, err)
			}
			if agent, ok = disk.Binary(w.d.binDir(), "agent", base.AgentSHA256); !ok {
				return fmt.Errorf("%w: the agent that it was made with is not on this node any more", runtime.ErrIncompatible)
			}
			agentSHA256 = base.AgentSHA256
		}
	}
	// Its files are compared while everything else is done: nothing leads into the box before all of them were found whole.
	var look *checking
	if base != nil {
		look = w.d.snapshots.beginCheck(ctx, base, w.e.Spec.WithMemory)
		defer look.end()
	}
	w.hurryFormer()
	// From here on there may be something to take back. A former attempt, killed, may have left the same things.
	undo.add(func(ctx context.Context) error { return w.clear(ctx) })
	if w.sandbox != sandboxAbsent || w.e.Key != "" {
		if err := w.clear(ctx); err != nil {
			return err
		}
	}
	if w.e.Network, err = w.d.nets.Take(ctx); err != nil {
		return err
	}
	key := make([]byte, 32)
	_, _ = rand.Read(key) // never fails
	w.e.Key, w.e.AgentSHA256 = hex.EncodeToString(key), agentSHA256
	w.e.StartedFrom = startedFrom(w.e.Spec)
	if base != nil && base.Salvaged {
		w.e.Notice = "The box's sandbox had died. The home is as it was then; the rest of the file system is as it was when the box was last paused or stopped."
	}
	w.e.Stage = stageStarting
	// The ledger knows of the run before anything of it is made, and above all before its home is mounted.
	if err := w.put(); err != nil {
		return err
	}
	w.passing(carrel.PhaseStarting, o.generation)
	times.lap("note")
	if err := failpoint.Hit("node/start/noted"); err != nil {
		return err
	}
	home, err := w.makeHome(ctx, base)
	if err != nil {
		return err
	}
	times.lap("home")
	if err := failpoint.Hit("node/start/home-cloned"); err != nil {
		return err
	}
	if err := w.writeIdentity(); err != nil {
		return err
	}
	if err := failpoint.Hit("node/start/identity"); err != nil {
		return err
	}
	spec := w.runtimeSpec(image, home, agent)
	if base != nil && base.Root {
		spec.From, spec.WithMemory = w.d.snapshots.path(base.Snapshot), w.e.Spec.WithMemory
	}
	if look != nil {
		if err := <-look.small; err != nil {
			return err
		}
	}
	times.lap("check")
	if err := w.awaitFormer(ctx); err != nil {
		return err
	}
	times.lap("former")
	if err := w.boot(ctx, spec, look, times, booted); err != nil {
		return err
	}
	times.lap("ready")
	w.log.Debug("a box was started", "from", w.e.StartedFrom, "times", times)
	return failpoint.Hit("node/start/ready")
}

func startedFrom(s runSpec) string {
	switch {
	case s.SnapshotID == "":
		return "fresh"
	case s.Clone:
		return "prebuild"
	case s.WithMemory:
		return "memory"
	}
	return "disk"
}

// makeHome makes the live home of the run.
func (w *worker) makeHome(ctx context.Context, base *manifest) (string, error) {
	if base == nil {
		return w.d.pool.NewHome(ctx, string(w.e.Run), w.e.Spec.HomeBytes)
	}
	home, err := w.d.pool.CloneHome(string(w.e.Run), w.d.snapshots.path(base.Snapshot)+"/"+homeName)
	if errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("%w: its home is missing", errSnapshotCorrupt)
	}
	if err == nil && !w.e.Spec.WithMemory {
		err = w.d.pool.Grow(ctx, home, w.e.Spec.HomeBytes)
	}
	return home, err
}

func (w *worker) writeIdentity() error {
	dir := w.d.identityDir(w.e.Run)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("write identity: %w", err)
	}
	if err := identity.Write(dir, w.identityFor(w.e.Spec)); err != nil {
		return fmt.Errorf("write identity: %w", err)
	}
	return w.d.writeNetwork(w.e.Run, w.e.Network)
}

func (w *worker) runtimeSpec(image, home, agent string) runtime.Spec {
	s := w.e.Spec
	return runtime.Spec{
		Run: string(w.e.Run), Hostname: s.BoxName, Image: image, Home: home, Agent: agent, Identity: w.d.identityDir(w.e.Run),
		Network: runtime.Network{Namespace: w.e.Network.Namespace, AgentNetwork: "tcp", AgentAddress: w.e.Network.Agent()},
		Limits: runtime.Limits{
			CPUMillis: s.CPUMillis, Memory: s.MemoryBytes, Headroom: headroom + s.MemoryBytes/20, Processes: s.Processes,
			Root: s.RootBytes, Tmp: s.TmpBytes, Shm: s.ShmBytes,
		},
		Sudo: s.Sudo,
	}
}

// boot starts the sandbox and waits until its agent is ready and everything that it was restored from was
// found whole. The large files are read while the runtime restores them, on another core; only when both
// are done is the box called running. look is nil for a box that begins from nothing.
func (w *worker) boot(ctx context.Context, spec runtime.Spec, look *checking, times *laps, booted func()) error {
	group, groupCtx := errgroup.WithContext(ctx)
	var verdict error
	if look != nil {
		group.Go(func() error {
			verdict = <-look.large
			return verdict
		})
	}
	group.Go(func() error {
		routed := make(chan error, 1)
		go func() { routed <- w.d.routes.setNow(groupCtx, w.route(false)) }()
		startErr := w.d.runtime.Start(groupCtx, spec)
		routeErr := <-routed
		if look != nil {
			look.back.Hurry() // from here on nothing else takes long
		}
		if startErr != nil {
			return startErr
		}
		w.sandbox = sandboxRunning
		times.lap("boot")
		booted()
		w.watchExit()
		if err := failpoint.Hit("node/start/booted"); err != nil {
			return err
		}
		if routeErr != nil {
			w.log.Info("the proxy does not take the route yet", "error", routeErr)
		}
		return w.awaitReady(groupCtx)
	})
	err := group.Wait()
	if errors.Is(verdict, errSnapshotCorrupt) {
		return verdict // whatever else failed: this is why
	}
	return err
}

// awaitReady asks until the agent is ready. The proxy may be starting again just now: that is waited for, too.
func (w *worker) awaitReady(ctx context.Context) error {
	patience := readyTime + w.prepareTime()
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	defer context.AfterFunc(w.watch.over, cancel)()
	deadline := time.Now().Add(patience)
	return w.throughProxy(ctx, false, func(ctx context.Context) error {
		err := w.d.proxy.Ready(ctx, w.e.Run, max(0, time.Until(deadline)))
		if exit, ended := w.exit(); err != nil && ended {
			return &exitError{exit}
		}
		return err
	})
}

// throughProxy asks something of the run's agent, which only the proxy does. A proxy that is being started again is told of the route, closed or
// open, and asked once more, until ctx ends.
func (w *worker) throughProxy(ctx context.Context, open bool, ask func(context.Context) error) error {
	for {
		err := ask(ctx)
		if reason := carrel.ReasonOf(err); reason != "proxy_unreachable" && reason != "no_route" || ctx.Err() != nil {
			return err
		}
		timer := time.NewTimer(retryMin)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
		}
		if routeErr := w.d.routes.setNow(ctx, w.route(open)); routeErr != nil && ctx.Err() != nil {
			return err
		}
	}
}

// exitError says that a sandbox ended.
type exitError struct{ exit runtime.Exit }

func (e *exitError) Error() string {
	return fmt.Sprintf("the sandbox ended (%s): %s", e.exit.Reason, e.exit.Message)
}

// clear removes everything of the run on this machine but its ledger entry and snapshots.
func (w *worker) clear(ctx context.Context) error {
	w.d.routes.remove(w.e.Run)
	w.stopWatching()
	if err := w.d.runtime.Destroy(ctx, string(w.e.Run)); err != nil {
		w.unknown = true
		return err
	}
	w.sandbox = sandboxAbsent
	if err := failpoint.Hit("node/clear/destroyed"); err != nil {
		return err
	}
	if err := w.d.pool.RemoveHome(string(w.e.Run)); err != nil {
		return err
	}
	if err := os.RemoveAll(w.d.identityDir(w.e.Run)); err != nil {
		return fmt.Errorf("remove identity: %w", err)
	}
	if err := os.RemoveAll(w.d.identityDir(w.e.Run) + "." + networkFile); err != nil {
		return fmt.Errorf("remove identity: %w", err)
	}
	w.d.nets.Release(w.e.Network)
	w.e.Network, w.e.Key = netpool.Network{}, ""
	return nil
}

// destroy follows a tombstone: everything of the run goes. Only a snapshot that was proposed already is not decided
// here: control may have taken it, so it is asked.
func (w *worker) destroy(ctx context.Context, o order) error {
	if err := failpoint.Hit("node/destroy/begin"); err != nil {
		return err
	}
	if err := w.clear(ctx); err != nil {
		return fmt.Errorf("destroy: %w", err)
	}
	if m := w.d.snapshots.of(w.e.Run); m != nil {
		taken := false
		if w.e.Snapshot != nil && (w.e.Stage == stageCommitting || w.e.Stage == stageSalvaging) {
			answer, err := w.propose(ctx, w.e.Snapshot)
			if err != nil {
				return fmt.Errorf("destroy: ask what became of its snapshot: %w", err)
			}
			taken = answer.GetAccepted()
		}
		if !taken {
			if err := w.d.snapshots.drop(m.Snapshot); err != nil {
				return fmt.Errorf("destroy: %w", err)
			}
		}
	}
	if err := failpoint.Hit("node/destroy/cleared"); err != nil {
		return err
	}
	return w.settle(w.report(carrel.PhaseDestroyed, o.generation), func(e *entry) { e.Stage = stageEnded })
}

// explainStart says why a start failed, in the words of control and of people.
func explainStart(err error) *failure {
	var exit *exitError
	var known *carrel.Error
	switch {
	case errors.Is(err, errSnapshotMissing):
		return &failure{"snapshot_missing", "The box's last state is not on this node.", false}
	case errors.Is(err, errSnapshotCorrupt) || errors.Is(err, runtime.ErrCorrupt):
		return &failure{"snapshot_corrupt", "The box's last state is damaged on disk: " + cause(err) + ".", false}
	case errors.Is(err, runtime.ErrIncompatible):
		return &failure{"snapshot_incompatible", "The box's memory cannot be used on this node: " + cause(err) + ".", false}
	case errors.Is(err, runtime.ErrNoSpace) || errors.Is(err, unix.ENOSPC):
		return &failure{"disk_full", "The node's disk is full.", true}
	case errors.As(err, &exit):
		f := explainExit(exit.exit)
		f.Message = "While the box was starting: " + f.Message
		return f
	case errors.Is(err, runtime.ErrDied):
		return &failure{"sandbox_died", "The box's sandbox ended while it was starting.", true}
	case errors.As(err, &known):
		return explainKnown(known)
	}
	return &failure{"runtime_error", "The node could not start the box: " + cause(err) + ".", true}
}

// explainKnown turns what has a reason already into a failure.
func explainKnown(e *carrel.Error) *failure {
	switch e.Reason {
	case "image_missing":
		return &failure{e.Reason, e.Message, false}
	case carrel.ReasonPrepareFailed:
		return &failure{e.Reason, "What the box's template prepares did not succeed: " + e.Message, true}
	case "disk_full", "agent_silent", "startup_failed":
		return &failure{e.Reason, e.Message, true}
	case "resource_out_of_range", "bad_name", "bad_variable", "too_many_variables", "environment_too_large", "bad_snapshot_id":
		return &failure{"runtime_error", "The node refuses the order: " + e.Message, false}
	}
	return &failure{"runtime_error", e.Message, true}
}

// explainExit says how a sandbox ended.
func explainExit(exit runtime.Exit) *failure {
	switch exit.Reason {
	case "memory":
		return &failure{"out_of_memory", "The box used more memory than it may and was ended. Give it more memory, or run less in it.", true}
	case "":
		return &failure{"sandbox_died", "The box's sandbox ended while nobody looked, as when the node is restarted.", true}
	}
	message := "The box's sandbox ended (" + exit.Reason + ")"
	if exit.Message != "" {
		message += ": " + clip(exit.Message)
	}
	return &failure{"sandbox_died", message + ".", true}
}

// cause is the text of an error as a part of a sentence.
func cause(err error) string { return clip(err.Error()) }

func clip(s string) string {
	const most = 400
	if len(s) > most {
		return s[:most] + "…"
	}
	return s
}

func marshal(v any) ([]byte, error) { return json.Marshal(v) }

func readSignedJSON(path string, v any) error {
	body, err := readSigned(path)
	if err != nil {
		return err
	}
	return json.Unmarshal(body, v)
}

func readKey(dir string) (string, error) {
	id, err := identity.Read(dir)
	return id.Key, err
}
