package node_test

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	linkv1 "carrel.dev/carrel/api/carrel/link/v1"
	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/failpoint"
	"carrel.dev/carrel/internal/runtime"
)

func (b *box) sandbox() runtime.SandboxState {
	b.w.t.Helper()
	var list []runtime.Sandbox
	require.NoError(b.w.t, json.Unmarshal([]byte(b.w.machine("GET", "list", "")), &list))
	for _, s := range list {
		if s.Run == b.run {
			return s.State
		}
	}
	return ""
}

func TestLostAnswersToACommit(t *testing.T) {
	if testing.Short() {
		return
	}
	w := newWorld(t, "")
	b := w.newBox()
	b.start()
	b.remember("alive")
	w.control.with(func() { w.control.lose = 3 })
	b.pause()
	b.start()
	require.Equal(t, "alive", b.memory())
	b.delete()
	w.nothingLeft()
}

func TestBoxStaysFrozenWhileItIsNotKnownWhatControlDecided(t *testing.T) {
	if testing.Short() {
		return
	}
	w := newWorld(t, "")
	b := w.newBox()
	b.start()
	b.remember("alive")
	away := connect.NewError(connect.CodeUnavailable, errors.New("away"))
	w.control.with(func() { w.control.lose = 1 << 30 })
	b.order(linkv1.Order_ORDER_PAUSE)
	w.eventually("the snapshot is committed", func() bool {
		w.control.mu.Lock()
		defer w.control.mu.Unlock()
		return w.control.newest[string(b.id)] != ""
	})
	// Now somebody wants it to run again. Control has the snapshot, so the box must not go on.
	b.order(linkv1.Order_ORDER_RUN)
	w.control.with(func() { w.control.broken = away })
	for range 2 {
		w.stop(syscall.SIGKILL)
		w.start()
		require.Equal(t, runtime.StateFrozen, b.sandbox())
	}
	w.control.with(func() { w.control.broken, w.control.lose = nil, 0 })
	r := b.wait()
	require.Equal(t, "paused", r.GetPhase())
	b.withMemory = true
	b.start()
	require.Equal(t, "alive", b.memory())
	b.delete()
	w.nothingLeft()
}

func TestAnotherOrderAbortsACaptureBeforeItIsSent(t *testing.T) {
	if testing.Short() {
		return
	}
	// The daemon is killed when the snapshot is complete and before control could know of it.
	w := newWorld(t, "node/capture/sealed=kill")
	b := w.newBox()
	b.start()
	b.remember("alive")
	w.mu.Lock()
	w.stopping = true
	w.mu.Unlock()
	b.order(linkv1.Order_ORDER_PAUSE)
	w.keeper.Wait()
	b.order(linkv1.Order_ORDER_RUN)
	w.start()
	r := b.wait()
	require.Equal(t, "running", r.GetPhase())
	require.Equal(t, b.generation, r.GetGeneration())
	require.Equal(t, runtime.StateRunning, b.sandbox())
	require.Equal(t, "alive", b.memory())
	w.control.mu.Lock()
	require.Empty(t, w.control.held)
	w.control.mu.Unlock()
	b.delete()
	w.nothingLeft()
}

func TestOutageOfControl(t *testing.T) {
	if testing.Short() {
		return
	}
	w := newWorld(t, "")
	b := w.newBox()
	b.start()
	w.control.with(func() {
		w.control.broken = connect.NewError(connect.CodeUnavailable, errors.New("away"))
		close(w.control.cut)
		w.control.cut = make(chan struct{})
	})
	b.write("/home/carrel/a", "during")
	w.stop(syscall.SIGKILL)
	w.start()
	require.Equal(t, "during", b.read("/home/carrel/a"), "the box went with its node")
	// It dies while nobody can be told.
	b.w.machine("POST", "kill/"+b.run, "exited")
	w.control.with(func() { w.control.broken = nil })
	w.eventually("the crash is reported", func() bool { r := b.last(); return r != nil && r.GetPhase() == "failed" })
	require.Equal(t, "sandbox_died", b.last().GetReason())
	b.start()
	require.Equal(t, "during", b.read("/home/carrel/a"))
	b.delete()
	w.nothingLeft()
}

func TestOldAndForeignDesiredSetsAreRefused(t *testing.T) {
	if testing.Short() {
		return
	}
	w := newWorld(t, "")
	b := w.newBox()
	b.start()
	w.control.mu.Lock()
	good := w.control.node
	for id, r := range w.control.runs {
		r := proto.CloneOf(r)
		r.Order = linkv1.Order_ORDER_DESTROY
		w.control.runs[id] = r
	}
	w.control.node = carrel.NewNodeID()
	w.control.touch() // of another node
	w.control.mu.Unlock()
	w.control.with(func() { w.control.node, w.control.revision = good, -5 }) // of long ago
	w.stop(syscall.SIGTERM)
	w.start()
	b.write("/home/carrel/a", "1")
	require.Equal(t, "running", b.last().GetPhase())
	require.Equal(t, runtime.StateRunning, b.sandbox())
	w.control.with(func() { w.control.revision = 1000 })
	w.eventually("a good one is followed", func() bool { return b.last().GetPhase() == "destroyed" })
}

func TestAbsenceIsNoOrder(t *testing.T) {
	if testing.Short() {
		return
	}
	w := newWorld(t, "")
	b := w.newBox()
	b.start()
	var kept *linkv1.DesiredRun
	w.control.with(func() { kept = w.control.runs[b.run]; delete(w.control.runs, b.run) })
	w.stop(syscall.SIGTERM)
	w.start()
	w.eventually("the run is reported as left alone", func() bool {
		w.control.mu.Lock()
		defer w.control.mu.Unlock()
		return w.control.facts != nil && len(w.control.facts.GetQuarantinedRuns()) == 1
	})
	require.Equal(t, runtime.StateRunning, b.sandbox())
	w.control.with(func() { w.control.runs[b.run] = kept })
	b.delete()
	w.nothingLeft()
}

func TestSandboxInQuarantineIsDestroyedByOrder(t *testing.T) {
	if testing.Short() {
		return
	}
	w := newWorld(t, "")
	b := w.newBox()
	b.start()
	w.stop(syscall.SIGKILL)
	// Neither ledger nor identity explain the sandbox.
	require.NoError(t, os.Remove(filepath.Join(w.dir, "data/ledger/runs", b.run+".json")))
	require.NoError(t, os.Remove(filepath.Join(w.dir, "data/ledger/desired")))
	require.NoError(t, os.RemoveAll(filepath.Join(w.dir, "run/identities", b.run)))
	w.start()
	require.Equal(t, runtime.StateRunning, b.sandbox())
	other := &box{w: w, id: carrel.NewBoxID()}
	other.start() // the node works, and leaves the other alone
	other.delete()
	require.Equal(t, runtime.StateRunning, b.sandbox(), "an order to run it is not followed without its identity")
	b.delete()
	w.nothingLeft()
}

func TestDamagedLedgerDestroysNothing(t *testing.T) {
	if testing.Short() {
		return
	}
	w := newWorld(t, "")
	b := w.newBox()
	b.start()
	b.remember("alive")
	b.write("/home/carrel/a", "1")
	w.stop(syscall.SIGTERM)
	for _, f := range []string{"desired", "runs/" + b.run + ".json"} {
		require.NoError(t, os.WriteFile(filepath.Join(w.dir, "data/ledger", f), []byte("junk"), 0o600))
	}
	var kept *linkv1.DesiredRun
	w.control.with(func() { kept = w.control.runs[b.run]; delete(w.control.runs, b.run); w.control.facts = nil })
	w.start()
	w.eventually("the sandbox is in quarantine", func() bool {
		w.control.mu.Lock()
		defer w.control.mu.Unlock()
		return w.control.facts != nil && len(w.control.facts.GetQuarantinedRuns()) == 1
	})
	require.Equal(t, "alive", b.memory(), "it was touched")

	// An order for it adopts it as it is.
	w.control.with(func() { w.control.runs[b.run] = kept })
	b.pause()
	b.start()
	require.Equal(t, "alive", b.memory())
	require.Equal(t, "1", b.read("/home/carrel/a"))

	// With the machine restarted as well, its files are saved.
	b.write("/home/carrel/a", "2")
	w.stop(syscall.SIGTERM)
	require.NoError(t, os.WriteFile(filepath.Join(w.dir, "data/ledger/runs", b.run+".json"), []byte("junk"), 0o600))
	require.NoError(t, os.RemoveAll(filepath.Join(w.dir, "fake", "runs", b.run)))
	require.NoError(t, os.RemoveAll(filepath.Join(w.dir, "run")))
	w.start()
	w.eventually("the run has failed", func() bool { return b.last().GetPhase() == "failed" })
	b.withMemory = false
	b.start()
	require.Equal(t, "2", b.read("/home/carrel/a"))
	b.delete()
	require.NoError(t, os.RemoveAll(filepath.Join(w.dir, "data/ledger/damaged")))
	require.NoError(t, os.Mkdir(filepath.Join(w.dir, "data/ledger/damaged"), 0o700))
	w.nothingLeft()
}

func TestRebootLosesNoFiles(t *testing.T) {
	if testing.Short() {
		return
	}
	w := newWorld(t, "")
	b := w.newBox()
	b.start()
	b.write("/home/carrel/a", "1")
	w.stop(syscall.SIGKILL)
	require.NoError(t, os.RemoveAll(filepath.Join(w.dir, "fake", "runs")))
	require.NoError(t, os.RemoveAll(filepath.Join(w.dir, "run")))
	require.NoError(t, syscall.Unmount(filepath.Join(w.dir, "data", "pool"), 0))
	w.start()
	w.eventually("the run has failed", func() bool { return b.last().GetPhase() == "failed" })
	require.Equal(t, "sandbox_died", b.last().GetReason())
	b.start()
	require.Equal(t, "1", b.read("/home/carrel/a"))
	b.delete()
	w.nothingLeft()
}

func TestDamagedMemoryIsRefusedAndFilesStartCold(t *testing.T) {
	if testing.Short() {
		return
	}
	w := newWorld(t, "")
	b := w.newBox()
	b.start()
	b.write("/home/carrel/a", "1")
	b.remember("alive")
	b.pause()
	w.control.mu.Lock()
	id := w.control.newest[string(b.id)]
	w.control.mu.Unlock()
	dir := filepath.Join(w.dir, "data/pool/snapshots", id)
	pages := filepath.Join(dir, "memory/pages.img")
	data, err := os.ReadFile(pages)
	require.NoError(t, err)
	data[len(data)/2] ^= 1
	require.NoError(t, os.WriteFile(pages, data, 0o600))
	b.generation++
	b.assign()
	r := b.wait()
	require.Equal(t, "failed", r.GetPhase())
	require.Equal(t, "snapshot_corrupt", r.GetReason())
	require.False(t, r.GetTransient())
	require.Empty(t, b.sandbox())
}

// What is damaged is found while the runtime is at work on it, and may be why that fails: it is what is said then.
func TestDamageIsWhatIsSaidWhateverElseFails(t *testing.T) {
	if testing.Short() {
		return
	}
	w := newWorld(t, "")
	b := w.newBox()
	b.start()
	b.write("/home/carrel/a", "1")
	b.pause()
	w.control.mu.Lock()
	id := w.control.newest[string(b.id)]
	w.control.mu.Unlock()
	home, err := os.OpenFile(filepath.Join(w.dir, "data/pool/snapshots", id, "home.img"), os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = home.WriteAt([]byte{1}, 0) // before the superblock, where ext4 looks for nothing
	require.NoError(t, err)
	require.NoError(t, home.Close())
	require.NoError(t, w.failpoints.Arm("node/start/small-checked", failpoint.ActionWait))
	require.NoError(t, w.failpoints.Arm("node/start/booted", failpoint.ActionError))
	b.generation++
	b.assign()
	w.eventually("the start has failed", func() bool {
		armed, err := w.failpoints.Armed("node/start/booted")
		require.NoError(t, err)
		return armed == ""
	})
	_, err = w.failpoints.Disarm("node/start/small-checked")
	require.NoError(t, err)
	r := b.wait()
	require.Equal(t, "failed", r.GetPhase())
	require.Equal(t, "snapshot_corrupt", r.GetReason())
	require.Contains(t, r.GetMessage(), "home")
	require.Empty(t, b.sandbox())
}

func TestWhatDoesNotFitIsRefused(t *testing.T) {
	if testing.Short() {
		return
	}
	w := newWorld(t, "")
	b := w.newBox()
	b.start()
	b.pause()
	fails := func(reason string, transient bool, change func(*linkv1.RunSpec)) {
		t.Helper()
		b.epoch++
		b.generation++
		b.run = string(carrel.NewRunID())
		spec := b.spec()
		w.control.with(func() {
			spec.SnapshotId, spec.WithMemory = w.control.newest[string(b.id)], true
			change(spec)
			w.control.epochs[string(b.id)] = b.epoch
			w.control.runs[b.run] = &linkv1.DesiredRun{
				RunId: b.run, BoxId: string(b.id), OrgId: "o", Epoch: b.epoch, Order: linkv1.Order_ORDER_RUN, Generation: b.generation, Spec: spec,
			}
		})
		r := b.wait()
		require.Equal(t, "failed", r.GetPhase())
		require.Equal(t, reason, r.GetReason(), r.GetMessage())
		require.Equal(t, transient, r.GetTransient())
		require.Empty(t, b.sandbox())
	}
	fails("image_missing", false, func(s *linkv1.RunSpec) { s.ImageDigest = imageDigest("nothing") })
	fails("image_missing", false, func(s *linkv1.RunSpec) { s.ImageDigest = "sha256:../../../etc/passwd" })
	fails("snapshot_missing", false, func(s *linkv1.RunSpec) { s.SnapshotId = string(carrel.NewSnapshotID()) })
	fails("snapshot_incompatible", false, func(s *linkv1.RunSpec) { s.TmpBytes = 2 * carrel.MiB })
	fails("runtime_error", false, func(s *linkv1.RunSpec) { s.HomeBytes = 1 })
	w.stop(syscall.SIGTERM)
	w.config.Version = "fake-2"
	w.start()
	fails("snapshot_incompatible", false, func(*linkv1.RunSpec) {})
	// Its files are good for any version.
	b.withMemory = false
	b.start()
	b.delete()
	w.nothingLeft()
}

func TestFullPoolRefusesNewWork(t *testing.T) {
	if testing.Short() {
		return
	}
	w := newWorld(t, "")
	b := w.newBox()
	b.start()
	var s unix.Statfs_t
	root := filepath.Join(w.dir, "data/pool")
	require.NoError(t, unix.Statfs(root, &s))
	f, err := os.Create(filepath.Join(root, "filler"))
	require.NoError(t, err)
	require.NoError(t, unix.Fallocate(int(f.Fd()), 0, 0, int64(s.Bavail)*s.Bsize-8*carrel.MiB))
	require.NoError(t, f.Close())
	b.order(linkv1.Order_ORDER_PAUSE)
	r := b.wait()
	require.Equal(t, "running", r.GetPhase())
	require.Equal(t, "pause", r.GetFailedOrder())
	require.Equal(t, "disk_full", r.GetReason())
	other := w.newBox()
	other.generation++
	other.assign()
	r = other.wait()
	require.Equal(t, "failed", r.GetPhase())
	require.Equal(t, "disk_full", r.GetReason())
	require.True(t, r.GetTransient())
	b.write("/home/carrel/a", "goes on")
	require.NoError(t, os.Remove(f.Name()))
	b.pause()
	b.delete()
	w.nothingLeft()
}

func TestImageChores(t *testing.T) {
	if testing.Short() {
		return
	}
	w := newWorld(t, "")
	chores := []*linkv1.Chore{
		{Id: string(carrel.NewChoreID()), Kind: "image_build", Definition: "good"},
		{Id: string(carrel.NewChoreID()), Kind: "image_build", Definition: "bad"},
		{Id: string(carrel.NewChoreID()), Kind: "image_import", Reference: "r", Platform: "p", Trusted: true},
		{Id: string(carrel.NewChoreID()), Kind: "dance"},
	}
	w.control.with(func() { w.control.chores = chores })
	done := map[string]*linkv1.ChoreReport{}
	ids := make([]string, 4)
	for i, c := range chores {
		ids[i] = c.GetId()
	}
	w.eventually("the chores are done", func() bool {
		w.control.mu.Lock()
		defer w.control.mu.Unlock()
		for _, r := range w.control.done {
			done[r.GetChoreId()] = r
		}
		return len(done) == 4
	})
	require.Equal(t, imageDigest("built good"), done[ids[0]].GetDigest())
	require.Equal(t, "package_not_found", done[ids[1]].GetErrorReason())
	require.Equal(t, imageDigest("imported {Reference:r Platform:p Insecure:false Trusted:true}"), done[ids[2]].GetDigest())
	require.Equal(t, "unknown_chore", done[ids[3]].GetErrorReason())
	w.eventually("the facts name the images", func() bool {
		w.control.mu.Lock()
		defer w.control.mu.Unlock()
		return len(w.control.facts.GetImageDigests()) == 2
	})
}

// TestUnneededImagesAreRemoved: those that control names, and only when nothing on the node needs them.
func TestUnneededImagesAreRemoved(t *testing.T) {
	if testing.Short() {
		return
	}
	w := newWorld(t, "")
	b := w.newBox()
	images := filepath.Join(w.dir, "data", "pool", "images")
	path := func(text string) string {
		return filepath.Join(images, strings.Replace(imageDigest(text), ":", "-", 1)+".erofs")
	}
	for _, text := range []string{"one", "two", "three", "kept"} {
		require.NoError(t, os.WriteFile(path(text), []byte(text), 0o600))
	}
	b.start()
	// round has the base image and another named, and waits until the other is removed: then the node has looked at the base image before, or
	// does so in the same pass.
	round := func(text string) {
		t.Helper()
		w.control.with(func() { w.control.unneeded = []string{imageDigest(baseImage), imageDigest(text)} })
		w.eventually("the other is removed, and the node says so", func() bool {
			w.control.mu.Lock()
			defer w.control.mu.Unlock()
			_, err := os.Stat(path(text))
			return os.IsNotExist(err) && !slices.Contains(w.control.facts.GetImageDigests(), imageDigest(text))
		})
	}
	round("one")
	b.pause()
	round("two")
	w.stop(syscall.SIGKILL)
	w.start()
	round("three")
	require.FileExists(t, path(baseImage), "a snapshot needs it")
	require.FileExists(t, path("kept"))
	b.start()
	b.stop()
	b.delete()
	w.eventually("the image of the deleted box is removed", func() bool {
		_, err := os.Stat(path(baseImage))
		return os.IsNotExist(err)
	})
	require.FileExists(t, path("kept"), "nobody named it")
	w.nothingLeft()
}

func TestFacts(t *testing.T) {
	if testing.Short() {
		return
	}
	w := newWorld(t, "")
	w.newBox()
	w.control.mu.Lock()
	f := w.control.facts
	w.control.mu.Unlock()
	require.Equal(t, "fake fake-1", f.GetRuntimeVersion())
	require.NotEmpty(t, f.GetKernel())
	require.NotEmpty(t, f.GetProxyAddress())
	require.Positive(t, f.GetCpuMillis())
	require.Greater(t, f.GetMemoryBytes(), carrel.GiB/2)
	require.Greater(t, f.GetDiskBytes(), 150*carrel.MiB)
	require.LessOrEqual(t, f.GetDiskFreeBytes(), f.GetDiskBytes())
	require.Contains(t, strings.Join(f.GetLimitations(), "\n"), "firewall")
}

func TestManyBoxesAtOnce(t *testing.T) {
	if testing.Short() {
		return
	}
	w := newWorld(t, "")
	first := w.newBox()
	boxes := []*box{first}
	for range 19 {
		boxes = append(boxes, &box{w: w, id: carrel.NewBoxID()})
	}
	began := time.Now()
	for _, b := range boxes {
		b.generation++
		b.assign()
	}
	for _, b := range boxes {
		r := b.wait()
		require.Equal(t, "running", r.GetPhase(), r.GetMessage())
	}
	t.Logf("20 boxes run after %s", time.Since(began))
	began = time.Now()
	for _, b := range boxes {
		b.order(linkv1.Order_ORDER_PAUSE)
	}
	for _, b := range boxes {
		require.Equal(t, "paused", b.wait().GetPhase())
	}
	t.Logf("and are paused after %s", time.Since(began))
	w.stop(syscall.SIGKILL)
	w.start()
	for _, b := range boxes {
		b.delete()
	}
	w.nothingLeft()
}
