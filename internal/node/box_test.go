package node_test

import (
	"cmp"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	linkv1 "carrel.dev/carrel/api/carrel/link/v1"
	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/node/disk"
)

const baseImage = "base"

// box is one box as control sees it; it tries again what failed for a while, as reconcile does.
type box struct {
	w          *world
	id         carrel.BoxID
	run        string
	epoch      int64
	generation int64
	withMemory bool // the newest snapshot has it
	memory_    int64
	name       string // default "box"
	identity   int64  // raised when somebody else takes it
	prebuild   string // the snapshot that its first run is cloned from
}

// newBox makes the image of all boxes and a box that has no run yet.
func (w *world) newBox() *box {
	w.t.Helper()
	dir := filepath.Join(w.dir, "data", "pool", "images")
	w.eventually("the node has its pool", func() bool {
		w.control.mu.Lock()
		defer w.control.mu.Unlock()
		return w.control.facts != nil
	})
	path := filepath.Join(dir, strings.Replace(imageDigest(baseImage), ":", "-", 1)+".erofs")
	require.NoError(w.t, os.WriteFile(path, []byte(baseImage), 0o600))
	return &box{w: w, id: carrel.NewBoxID()}
}

func (b *box) spec() *linkv1.RunSpec {
	return &linkv1.RunSpec{
		BoxName: cmp.Or(b.name, "box"), ImageDigest: imageDigest(baseImage), CpuMillis: 1000, MemoryBytes: max(b.memory_, 256*carrel.MiB), HomeBytes: 32 * carrel.MiB,
		RootBytes: 64 * carrel.MiB, Processes: 100, TmpBytes: carrel.MiB, ShmBytes: carrel.MiB, Env: map[string]string{"A": "b"},
	}
}

// assign makes a new run from the newest snapshot.
func (b *box) assign() {
	c := b.w.control
	c.mu.Lock()
	defer c.mu.Unlock()
	b.epoch++
	b.run = string(carrel.NewRunID())
	spec := b.spec()
	spec.SnapshotId = c.newest[string(b.id)]
	spec.WithMemory = spec.SnapshotId != "" && b.withMemory
	if spec.SnapshotId == "" && b.prebuild != "" {
		spec.SnapshotId, spec.WithMemory, spec.Clone = b.prebuild, true, true
	}
	c.epochs[string(b.id)] = b.epoch
	c.runs[b.run] = &linkv1.DesiredRun{
		RunId: b.run, BoxId: string(b.id), OrgId: "odefault000000000000", Epoch: b.epoch, Order: linkv1.Order_ORDER_RUN, Generation: b.generation, Spec: spec,
		Identity: b.identity,
	}
	c.touch()
}

// handOver makes the box that runs somebody else's.
func (b *box) handOver(name string) {
	b.w.t.Helper()
	b.name = name
	b.identity++
	b.generation++
	c := b.w.control
	c.mu.Lock()
	r := proto.CloneOf(c.runs[b.run])
	r.Generation, r.Identity, r.Spec.BoxName = b.generation, b.identity, name
	c.runs[b.run] = r
	c.touch()
	c.mu.Unlock()
	done := b.wait()
	require.Equal(b.w.t, "running", done.GetPhase(), "%s: %s", done.GetReason(), done.GetMessage())
	data, err := os.ReadFile(filepath.Join(b.w.dir, "run", "identities", b.run, "identity.json"))
	require.NoError(b.w.t, err)
	var told struct {
		Name string `json:"box_name"`
	}
	require.NoError(b.w.t, json.Unmarshal(data, &told))
	require.Equal(b.w.t, name, told.Name)
}

// order changes what is wanted of the run, for a new generation.
func (b *box) order(o linkv1.Order) {
	b.generation++
	c := b.w.control
	c.mu.Lock()
	defer c.mu.Unlock()
	r := proto.CloneOf(c.runs[b.run])
	r.Order, r.Generation = o, b.generation
	c.runs[b.run] = r
	c.touch()
}

// last is the newest report of the run that is no phase on the way.
func (b *box) last() *linkv1.RunReport {
	b.w.control.mu.Lock()
	defer b.w.control.mu.Unlock()
	list := b.w.control.reports[b.run]
	for i := len(list) - 1; i >= 0; i-- {
		switch carrel.Phase(list[i].GetPhase()) {
		case carrel.PhaseStarting, carrel.PhasePausing, carrel.PhaseStopping:
			continue
		}
		return list[i]
	}
	return nil
}

// wait waits for a report of the present generation.
func (b *box) wait() *linkv1.RunReport {
	b.w.t.Helper()
	var r *linkv1.RunReport
	b.w.eventually("the run reports for its order", func() bool {
		r = b.last()
		return r != nil && (r.GetGeneration() >= b.generation || carrel.Phase(r.GetPhase()).Ended())
	})
	return r
}

// start has the box running, by new runs while transient failures end them.
func (b *box) start() {
	b.w.t.Helper()
	b.generation++
	for range 5 {
		b.assign()
		r := b.wait()
		if carrel.Phase(r.GetPhase()) == carrel.PhaseRunning {
			return
		}
		require.Equal(b.w.t, "failed", r.GetPhase())
		require.True(b.w.t, r.GetTransient(), "%s: %s", r.GetReason(), r.GetMessage())
		if r.GetSnapshotId() != "" { // it was salvaged
			b.withMemory = false
		}
	}
	b.w.t.Fatal("the box does not start")
}

// end pauses or stops the box, again while that is undone.
func (b *box) end(o linkv1.Order) {
	b.w.t.Helper()
	want, memory := carrel.PhasePaused, true
	if o == linkv1.Order_ORDER_STOP {
		want, memory = carrel.PhaseStopped, false
	}
	for range 5 {
		b.order(o)
		r := b.wait()
		if carrel.Phase(r.GetPhase()) == want {
			b.w.control.mu.Lock()
			newest := b.w.control.newest[string(b.id)]
			b.w.control.mu.Unlock()
			require.Equal(b.w.t, newest, r.GetSnapshotId())
			b.withMemory = memory
			return
		}
		require.Equal(b.w.t, "running", r.GetPhase(), "%s: %s", r.GetReason(), r.GetMessage())
		require.NotEmpty(b.w.t, r.GetFailedOrder())
	}
	b.w.t.Fatal("the box does not come to its end")
}

func (b *box) pause() { b.w.t.Helper(); b.end(linkv1.Order_ORDER_PAUSE) }
func (b *box) stop()  { b.w.t.Helper(); b.end(linkv1.Order_ORDER_STOP) }

// crash kills the sandbox and waits until its files are saved.
func (b *box) crash(reason string) *linkv1.RunReport {
	b.w.t.Helper()
	b.w.machine("POST", "kill/"+b.run, reason)
	var r *linkv1.RunReport
	b.w.eventually("the crash is reported", func() bool {
		r = b.last()
		return r != nil && r.GetPhase() == "failed"
	})
	b.withMemory = false
	return r
}

// delete destroys the run and drops the box's snapshots.
func (b *box) delete() {
	b.w.t.Helper()
	c := b.w.control
	c.mu.Lock()
	c.deleted[string(b.id)] = true
	live := !c.ended[b.run]
	c.mu.Unlock()
	if live {
		b.order(linkv1.Order_ORDER_DESTROY)
		require.Equal(b.w.t, "destroyed", b.wait().GetPhase())
	}
	c.mu.Lock()
	for id, s := range c.held {
		if s.GetBoxId() == string(b.id) {
			c.doomed[id] = true
		}
	}
	c.touch()
	c.mu.Unlock()
	b.w.eventually("the snapshots are dropped", func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return len(c.doomed) == 0
	})
}

func (b *box) write(path, data string) { b.w.t.Helper(); b.w.machine("PUT", "file/"+b.run+path, data) }
func (b *box) read(path string) string {
	b.w.t.Helper()
	return b.w.machine("GET", "file/"+b.run+path, "")
}
func (b *box) remember(data string) { b.w.t.Helper(); b.w.machine("PUT", "memory/"+b.run, data) }
func (b *box) memory() string       { b.w.t.Helper(); return b.w.machine("GET", "memory/"+b.run, "") }

// nothingLeft checks that the node keeps nothing but the snapshots that control holds.
func (w *world) nothingLeft() {
	w.t.Helper()
	names := func(path string) []string {
		entries, err := os.ReadDir(filepath.Join(w.dir, path))
		require.NoError(w.t, err)
		var list []string
		for _, e := range entries {
			list = append(list, e.Name())
		}
		return list
	}
	var held []string
	w.control.mu.Lock()
	for id := range w.control.held {
		held = append(held, id)
	}
	w.control.mu.Unlock()
	for _, p := range []string{"data/pool/homes", "run/identities", "data/ledger/runs", "data/ledger/damaged", "fake/runs"} {
		w.eventually("nothing is left in "+p, func() bool { return len(names(p)) == 0 })
	}
	require.ElementsMatch(w.t, held, names("data/pool/snapshots"))
	golden := names("data/pool/golden")
	require.LessOrEqual(w.t, len(golden), 1)
	used, err := disk.AllocatedBytes(filepath.Join(w.dir, "data", "pool", "overlay"))
	require.NoError(w.t, err)
	require.Less(w.t, used, int64(64<<10))
}
