package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	linkv1 "carrel.dev/carrel/api/carrel/link/v1"
	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/node/disk"
	"carrel.dev/carrel/internal/node/netpool"
	"carrel.dev/carrel/internal/runtime"
)

// recover reads what a former process left and makes the parts that go on from it. It changes nothing that is about
// a run: what a run needs its worker does, by the same steps as ever.
func (d *Daemon) recover(ctx context.Context) error {
	l, content, err := openLedger(filepath.Join(d.cfg.DataDir, "ledger"), d.log)
	if err != nil {
		return err
	}
	d.ledger, d.sequence = l, content.sequence
	d.link.restored(content.desired)
	if d.snapshots, err = openSnapshots(filepath.Join(d.pool.Root(), "snapshots"), d.pool.Continue, d.log); err != nil {
		return err
	}
	sandboxes, err := d.runtime.List(ctx)
	if err != nil {
		return fmt.Errorf("look for sandboxes: %w", err)
	}
	known := map[carrel.RunID]bool{}
	var live []netpool.Network
	for _, e := range content.entries {
		e.Sequence = max(e.Sequence, content.sequence)
		known[e.Run] = true
		if e.Network.Name != "" {
			live = append(live, e.Network)
		}
	}
	quarantine := map[carrel.RunID]bool{}
	for _, s := range sandboxes {
		if run := carrel.RunID(s.Run); !known[run] {
			d.log.Error("there is a sandbox that the ledger does not know; it is left alone until an order names it", "run", run, "state", s.State)
			quarantine[run] = true
			if n, err := d.readNetwork(run); err == nil {
				live = append(live, n) // it keeps its network, too
			}
		}
	}
	if err := d.openNetworks(ctx, live); err != nil {
		return err
	}
	d.manager = newManager(d, content, sandboxes, quarantine)
	if err := d.sweep(content, known, quarantine); err != nil {
		return err
	}
	return nil
}

func (d *Daemon) openNetworks(ctx context.Context, live []netpool.Network) error {
	if d.cfg.Networks != nil {
		d.nets = d.cfg.Networks
		return nil
	}
	pool, err := netpool.Open(ctx, netpool.Config{
		Instance: d.cfg.InstanceID, RunDir: d.cfg.RunDir, Range: d.cfg.NetRange, Ready: d.cfg.NetReady,
		AllowUnfiltered: d.cfg.AllowUnfiltered, DialerUID: d.proxyUID(), Logger: d.log,
	}, live)
	if err != nil {
		return err
	}
	d.nets = pool
	return nil
}

// proxyUID is the user that owns the directory of the proxy's socket, as which the proxy runs; nil: there is no such directory, and the
// proxy reaches boxes by their agents alone until the node starts again.
func (d *Daemon) proxyUID() *int {
	var s unix.Stat_t
	if err := unix.Stat(filepath.Dir(d.cfg.ProxySocket), &s); err != nil {
		d.log.Warn("the proxy's user is not known, so it reaches ports of boxes by their agents alone", "error", err)
		return nil
	}
	uid := int(s.Uid)
	return &uid
}

// sweep removes files that nothing names any more. With a damaged ledger it is not known what is named, and
// everything stays.
func (d *Daemon) sweep(content ledgerContent, known, quarantine map[carrel.RunID]bool) error {
	if len(content.damaged) > 0 {
		return nil
	}
	identities, err := os.ReadDir(d.identitiesDir())
	if err != nil {
		return fmt.Errorf("sweep: %w", err)
	}
	for _, e := range identities {
		if run := carrel.RunID(e.Name()); !known[run] && !quarantine[run] {
			if err := os.RemoveAll(d.identityDir(run)); err != nil {
				return fmt.Errorf("sweep: %w", err)
			}
		}
	}
	// Binaries that neither a snapshot nor a run needs. A run may hold any of them open; removing the name does not
	// hurt it.
	needed := d.snapshots.agents()
	needed[d.agentSHA256] = true
	for _, e := range content.entries {
		needed[e.AgentSHA256] = true
	}
	if len(quarantine) > 0 {
		return nil
	}
	d.sweepVersions()
	binaries, err := os.ReadDir(d.binDir())
	if err != nil {
		return fmt.Errorf("sweep: %w", err)
	}
	for _, b := range binaries {
		sum, isAgent := strings.CutPrefix(b.Name(), "agent-")
		if isAgent && !needed[sum] || strings.HasPrefix(b.Name(), "tmp-") {
			if err := os.Remove(filepath.Join(d.binDir(), b.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("sweep: %w", err)
			}
		}
	}
	return nil
}

// sweepVersions removes what nothing needs of the runtime's former versions. If that fails there is more than is needed, and the next
// start of the node tries again.
func (d *Daemon) sweepVersions() {
	keeper, is := d.runtime.(runtime.Keeper)
	if !is {
		return
	}
	if err := keeper.Sweep(d.snapshots.memories()); err != nil {
		d.log.Error("former versions of the runtime stay, since it is not known what needs them", "error", err)
	}
	d.caps = d.runtime.Capabilities()
}

// versionOf is the version of the runtime that began a run, and so of what is saved of it.
func (d *Daemon) versionOf(run carrel.RunID) string {
	if keeper, is := d.runtime.(runtime.Keeper); is {
		version, err := keeper.VersionOf(string(run))
		if err == nil {
			return version
		}
		if !errors.Is(err, runtime.ErrNotFound) { // else its files are saved without it
			d.log.Error("it is not known which version of the runtime began a run", "run", run, "error", err)
		}
	}
	return d.caps.Version
}

// memories are the directories of the sealed snapshots with memory.
func (s *snapshots) memories() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var dirs []string
	for id, m := range s.sealed {
		if m.Kind == carrel.SnapshotMemory {
			dirs = append(dirs, s.path(id))
		}
	}
	return dirs
}

// networkFile has a copy of a run's network beside its identity, so that a box whose ledger entry is lost keeps
// its way to the proxy.
const networkFile = "network"

func (d *Daemon) writeNetwork(run carrel.RunID, n netpool.Network) error {
	return writeSignedJSON(filepath.Join(d.identityDir(run)+"."+networkFile), n)
}

func (d *Daemon) readNetwork(run carrel.RunID) (netpool.Network, error) {
	var n netpool.Network
	err := readSignedJSON(filepath.Join(d.identityDir(run)+"."+networkFile), &n)
	return n, err
}

// newEntry makes the ledger entry of a run that an order names for the first time. If there is anything of the run
// on this machine, its entry was lost: then it has been running, and nothing of it may be begun anew.
func (d *Daemon) newEntry(run *linkv1.DesiredRun, quarantined bool) (*entry, error) {
	e := &entry{
		Run: carrel.RunID(run.GetRunId()), Box: carrel.BoxID(run.GetBoxId()), Org: carrel.OrgID(run.GetOrgId()),
		Epoch: run.GetEpoch(), Spec: specOf(run.GetSpec()), Order: orderOf(run.GetOrder()), OrderGeneration: run.GetGeneration(),
		Stage: stageStarting, Sequence: d.sequence, Identity: run.GetIdentity(),
	}
	if carrel.IDKind(string(e.Run)) != 'r' || carrel.IDKind(string(e.Box)) != 'b' || e.Epoch <= 0 || e.Order == carrel.OrderNone {
		return nil, errors.New("the order is not complete")
	}
	if !quarantined && !d.pool.HasHome(string(e.Run)) && d.snapshots.of(e.Run) == nil {
		return e, nil
	}
	e.Stage = stageRunning
	e.AgentSHA256 = d.agentSHA256
	if quarantined {
		var err error
		if e.Key, err = readKey(d.identityDir(e.Run)); err != nil {
			return nil, fmt.Errorf("its sandbox cannot be adopted without its identity: %w", err)
		}
		if e.Network, err = d.readNetwork(e.Run); err != nil {
			return nil, fmt.Errorf("its sandbox cannot be adopted without its network: %w", err)
		}
	}
	return e, nil
}

func stateOf(sandboxes []runtime.Sandbox, run carrel.RunID) sandboxState {
	for _, s := range sandboxes {
		if s.Run == string(run) {
			switch s.State {
			case runtime.StateRunning:
				return sandboxRunning
			case runtime.StateFrozen:
				return sandboxFrozen
			}
			return sandboxExited
		}
	}
	return sandboxAbsent
}

func writeSignedJSON(path string, v any) error {
	body, err := marshal(v)
	if err != nil {
		return err
	}
	return disk.WriteFile(path, sign(body), 0o600)
}
