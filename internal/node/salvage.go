package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/failpoint"
	"carrel.dev/carrel/internal/node/disk"
)

// salvage saves the files of a run whose sandbox died: its home as it is, and the root file system of the
// snapshot that it began from, since what it wrote there since then died with it. It is repeated until it
// succeeds; the home is removed only afterwards.
func (w *worker) salvage(ctx context.Context) error {
	if w.e.Stage != stageSalvaging {
		exit := w.lastExit(ctx)
		w.log.Error("a box's sandbox died; its files are saved", "reason", exit.Reason, "message", exit.Message)
		if err := w.change(func(e *entry) { e.Stage, e.Failure = stageSalvaging, explainExit(exit) }); err != nil {
			return fmt.Errorf("salvage: %w", err)
		}
	}
	if err := failpoint.Hit("node/salvage/noted"); err != nil {
		return err
	}
	w.d.routes.remove(w.e.Run)
	w.stopWatching()
	// The home is unmounted with the sandbox, and so is whole in its file.
	if err := w.d.runtime.Destroy(ctx, string(w.e.Run)); err != nil {
		return fmt.Errorf("salvage: %w", err)
	}
	w.sandbox = sandboxAbsent
	if err := failpoint.Hit("node/salvage/destroyed"); err != nil {
		return err
	}
	ref, err := w.salvageSnapshot(ctx)
	if err != nil {
		return fmt.Errorf("salvage: %w", err)
	}
	var saved carrel.SnapshotID
	if ref != nil {
		if saved, err = w.commitSalvaged(ctx, ref); err != nil {
			return fmt.Errorf("salvage: %w", err)
		}
	}
	if err := w.clear(ctx); err != nil {
		return fmt.Errorf("salvage: %w", err)
	}
	if err := failpoint.Hit("node/salvage/cleared"); err != nil {
		return err
	}
	return w.fail(w.e.Failure, saved)
}

// salvageSnapshot makes the sealed snapshot, or finds the one that a former attempt made; nil if there is
// nothing to save.
func (w *worker) salvageSnapshot(ctx context.Context) (*snapshotRef, error) {
	var ref *snapshotRef
	var err error
	if m := w.d.snapshots.of(w.e.Run); m != nil {
		ref, err = w.d.snapshots.ref(m.Snapshot)
	} else {
		ref, err = w.makeSalvaged(ctx)
	}
	if err != nil {
		return nil, err
	}
	return ref, failpoint.Hit("node/salvage/sealed")
}

func (w *worker) makeSalvaged(ctx context.Context) (*snapshotRef, error) {
	if !w.d.pool.HasHome(string(w.e.Run)) {
		// The machine went down before the home's first block was on the disk.
		w.log.Error("a box's sandbox died and left no home; the box's last snapshot is its state")
		return nil, nil
	}
	id := carrel.NewSnapshotID()
	dir, err := w.d.snapshots.begin(id)
	if err != nil {
		return nil, err
	}
	sealed := false
	defer func() {
		if !sealed {
			w.d.snapshots.abandon(id)
		}
	}()
	m := w.newManifest(id, carrel.SnapshotDisk, w.wanted().generation)
	m.Salvaged = true
	if err := w.cloneRoot(dir, m); err != nil {
		return nil, err
	}
	if err := disk.Clone(w.d.pool.HomePath(string(w.e.Run)), filepath.Join(dir, homeName)); err != nil {
		return nil, err
	}
	if err := failpoint.Hit("node/salvage/cloned"); err != nil {
		return nil, err
	}
	parent, tree := w.parentHome()
	ref, err := w.d.snapshots.seal(ctx, m, nil, parent, tree)
	if err != nil {
		return nil, err
	}
	sealed = true
	return ref, nil
}

// memoryDir is where a runtime keeps what only a start with memory needs.
const memoryDir = "memory/"

// cloneRoot clones the root file system's changes from the snapshot that the run began from.
func (w *worker) cloneRoot(dir string, m *manifest) error {
	id := w.e.Spec.SnapshotID
	if id == "" {
		return nil
	}
	base, err := w.d.snapshots.get(id)
	if errors.Is(err, errSnapshotMissing) || errors.Is(err, errSnapshotCorrupt) {
		w.log.Error("the snapshot that a box began from cannot be used; its home is saved without its root", "snapshot", id, "error", err)
		return nil
	}
	if err != nil {
		return err
	}
	m.AgentSHA256 = base.AgentSHA256
	for name := range base.Files {
		if strings.HasPrefix(name, memoryDir) {
			continue
		}
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o700); err != nil {
			return err
		}
		if err := disk.Clone(filepath.Join(w.d.snapshots.path(id), name), filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	return nil
}

// commitSalvaged has control take the snapshot. When it refuses, there is nothing to be kept.
func (w *worker) commitSalvaged(ctx context.Context, ref *snapshotRef) (carrel.SnapshotID, error) {
	if w.e.Snapshot == nil || w.e.Snapshot.ID != ref.ID {
		if err := w.change(func(e *entry) { e.Snapshot = ref }); err != nil {
			return "", err
		}
	}
	answer, err := w.propose(ctx, ref)
	if err != nil {
		return "", err
	}
	if answer.GetAccepted() {
		return ref.ID, failpoint.Hit("node/salvage/accepted")
	}
	w.log.Error("control did not take the snapshot of a box whose sandbox died", "snapshot", ref.ID, "reason", answer.GetReason())
	return "", w.d.snapshots.drop(ref.ID)
}
