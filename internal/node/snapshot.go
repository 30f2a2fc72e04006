package node

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"
	"golang.org/x/sys/unix"

	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/failpoint"
	"carrel.dev/carrel/internal/node/disk"
	"carrel.dev/carrel/internal/runtime"
)

const (
	manifestName  = "manifest.json"
	homeName      = "home.img"
	captureFormat = 1
	// smallFile: files of a capture up to this size, in bytes, are checked before a start begins; larger ones
	// while it restores.
	smallFile = 8 * carrel.MiB
	// homeCheckLimit: a snapshot's home with at most this much data, in bytes, is read and checked at every start;
	// a larger one only if the memory depends on it being whole, and then for what was written in the snapshot's own
	// run. See (*snapshots).checkHome.
	homeCheckLimit = 64 * carrel.MiB
)

var (
	errSnapshotMissing = errors.New("the snapshot is not on this node")
	errSnapshotCorrupt = errors.New("the snapshot is damaged")
)

// manifest describes a snapshot directory. It is written last but one step: what has one is complete.
type manifest struct {
	Format      int                  `json:"format"`
	Snapshot    carrel.SnapshotID    `json:"snapshot"`
	Run         carrel.RunID         `json:"run"`
	Box         carrel.BoxID         `json:"box"`
	Org         carrel.OrgID         `json:"org"`
	Epoch       int64                `json:"epoch"`
	Generation  int64                `json:"generation"`
	Kind        carrel.SnapshotKind  `json:"kind"`
	Salvaged    bool                 `json:"salvaged,omitempty"`
	Time        time.Time            `json:"time"`
	ImageDigest string               `json:"image_digest"`
	SpecSHA256  string               `json:"spec_sha256"` // of what memory depends on
	AgentSHA256 string               `json:"agent_sha256"`
	Runtime     string               `json:"runtime"`
	Version     string               `json:"version"` // of the runtime
	CPU         cpuIdentity          `json:"cpu"`
	Root        bool                 `json:"root"` // a runtime's capture lies beside the home
	Home        disk.Tree            `json:"home"`
	Files       map[string]disk.Tree `json:"files"` // of the capture, by path in the directory
}

// memorySpec hashes what a memory snapshot's processes cannot survive a change of.
func memorySpec(s runSpec) string {
	text := fmt.Sprintf("home=%d root=%d tmp=%d shm=%d memory=%d sudo=%t", s.HomeBytes, s.RootBytes, s.TmpBytes, s.ShmBytes, s.MemoryBytes, s.Sudo)
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:])
}

// snapshots keeps the snapshot directories of a pool: tmp-ID while one is made, ID when it is sealed, dead-ID
// when it was taken back or dropped. It is safe for concurrent use.
type snapshots struct {
	dir   string
	floor func() error // refuses when the pool runs full
	log   *slog.Logger
	// verifying is held by who verifies a snapshot.
	verifying *semaphore.Weighted

	mu     sync.Mutex // guards sealed
	sealed map[carrel.SnapshotID]*manifest
}

// openSnapshots reads the manifests of what is there and removes what was half made or is dead. A directory
// whose manifest cannot be read stays, and is no snapshot any more: a start from it says that it is damaged.
func openSnapshots(dir string, floor func() error, log *slog.Logger) (*snapshots, error) {
	s := &snapshots{dir: dir, floor: floor, log: log, verifying: semaphore.NewWeighted(1), sealed: map[carrel.SnapshotID]*manifest{}}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("open snapshots: %w", err)
	}
	for _, e := range entries {
		id := carrel.SnapshotID(e.Name())
		if strings.HasPrefix(e.Name(), "tmp-") || strings.HasPrefix(e.Name(), "dead-") {
			if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
				return nil, fmt.Errorf("open snapshots: %w", err)
			}
			continue
		}
		if carrel.IDKind(e.Name()) != 's' {
			continue
		}
		m, _, err := readManifest(s.path(id))
		if err == nil && m.Snapshot != id {
			err = fmt.Errorf("%w: it is the manifest of %s", errSnapshotCorrupt, m.Snapshot)
		}
		if err != nil {
			log.Error("a snapshot's manifest cannot be read; the directory is left alone", "snapshot", id, "error", err)
			continue
		}
		s.sealed[id] = m
	}
	return s, nil
}

func (s *snapshots) path(id carrel.SnapshotID) string { return filepath.Join(s.dir, string(id)) }
func (s *snapshots) tmpPath(id carrel.SnapshotID) string {
	return filepath.Join(s.dir, "tmp-"+string(id))
}
func (s *snapshots) deadPath(id carrel.SnapshotID) string {
	return filepath.Join(s.dir, "dead-"+string(id))
}

// ids lists the sealed snapshots, sorted.
func (s *snapshots) ids() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []string
	for id := range maps.Keys(s.sealed) {
		list = append(list, string(id))
	}
	slices.Sort(list)
	return list
}

// agents are the binaries that snapshots with memory need, by SHA-256.
func (s *snapshots) agents() map[string]bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	needed := map[string]bool{}
	for _, m := range s.sealed {
		needed[m.AgentSHA256] = true
	}
	return needed
}

// withImage finds a sealed snapshot that was made with an image, empty if there is none.
func (s *snapshots) withImage(digest string) carrel.SnapshotID {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, m := range s.sealed {
		if m.ImageDigest == digest {
			return id
		}
	}
	return ""
}

// of finds the sealed snapshot that was made of a run, nil if there is none.
func (s *snapshots) of(run carrel.RunID) *manifest {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range s.sealed {
		if m.Run == run {
			return m
		}
	}
	return nil
}

// get answers the manifest of a sealed snapshot: errSnapshotMissing or errSnapshotCorrupt if it cannot be used.
func (s *snapshots) get(id carrel.SnapshotID) (*manifest, error) {
	s.mu.Lock()
	m := s.sealed[id]
	s.mu.Unlock()
	if m != nil {
		return m, nil
	}
	if _, err := os.Stat(s.path(id)); errors.Is(err, fs.ErrNotExist) {
		return nil, errSnapshotMissing
	}
	return nil, errSnapshotCorrupt
}

// begin makes the empty directory of a capture.
func (s *snapshots) begin(id carrel.SnapshotID) (string, error) {
	tmp := s.tmpPath(id)
	if err := os.RemoveAll(tmp); err != nil {
		return "", err
	}
	return tmp, os.Mkdir(tmp, 0o700)
}

// abandon removes the files of a capture that was not sealed, or was taken back.
func (s *snapshots) abandon(id carrel.SnapshotID) {
	if err := errors.Join(os.RemoveAll(s.tmpPath(id)), os.RemoveAll(s.deadPath(id))); err != nil {
		s.log.Error("an unfinished snapshot could not be removed; the next start of the node does it", "snapshot", id, "error", err)
	}
}

// seal makes a capture durable, hashes it as it reads after it was written and gives it its final name. What m lacks (the hashes) is
// filled in. early is what was hashed while the capture was written, nil if nothing was; parent is the home image that the run's home was cloned from, with its tree if that is known.
//
// What is sealed has yet to be verified.
func (s *snapshots) seal(ctx context.Context, m *manifest, early *disk.Early, parent string, parentTree *disk.Tree) (*snapshotRef, error) {
	tmp := s.tmpPath(m.Snapshot)
	names, err := captureFiles(tmp)
	if err != nil {
		return nil, fmt.Errorf("seal snapshot: %w", err)
	}
	m.Format, m.Root, m.Files = captureFormat, len(names) > 0, make(map[string]disk.Tree, len(names))
	files := make(map[string]*os.File, len(names)+1)
	defer func() {
		for _, f := range files {
			_ = f.Close()
		}
	}()
	for _, name := range append(names, homeName) {
		f, err := os.OpenFile(filepath.Join(tmp, name), os.O_RDWR, 0)
		if err != nil {
			return nil, fmt.Errorf("seal snapshot: %w", err)
		}
		files[name] = f
	}
	times := newLaps()
	if err := s.hashAll(ctx, m, files, early, parent, parentTree); err != nil {
		return nil, fmt.Errorf("seal snapshot: %w", err)
	}
	times.lap("files")
	if err := failpoint.Hit("node/seal/hashed"); err != nil {
		return nil, fmt.Errorf("seal snapshot: %w", err)
	}
	body, err := json.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("seal snapshot: %w", err)
	}
	text := sign(body)
	if err := disk.WriteFile(filepath.Join(tmp, manifestName), text, 0o600); err != nil { // syncs the directory, too
		return nil, fmt.Errorf("seal snapshot: %w", err)
	}
	if err := failpoint.Hit("node/seal/manifest"); err != nil {
		return nil, fmt.Errorf("seal snapshot: %w", err)
	}
	size, err := disk.AllocatedBytes(tmp)
	if err != nil {
		return nil, fmt.Errorf("seal snapshot: %w", err)
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("seal snapshot: %w", err)
	}
	if err := disk.Publish(tmp, s.path(m.Snapshot)); err != nil {
		return nil, fmt.Errorf("seal snapshot: %w", err)
	}
	times.lap("publish")
	s.log.Debug("a snapshot was sealed", "snapshot", m.Snapshot, "times", times)
	s.mu.Lock()
	s.sealed[m.Snapshot] = m
	s.mu.Unlock()
	return refOf(m, text, size), nil
}

// hashAll fills in the hashes of the open files of a snapshot, and makes them durable. All go at once: each sync waits for
// the disk, and those that wait together wait as long as one.
func (s *snapshots) hashAll(ctx context.Context, m *manifest, files map[string]*os.File, early *disk.Early, parent string, parentTree *disk.Tree) error {
	group, ctx := errgroup.WithContext(ctx)
	var mu sync.Mutex // guards m.Files
	for name, f := range files {
		if name == homeName {
			continue
		}
		group.Go(func() error {
			t, err := disk.HashDurably(ctx, f, early)
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			mu.Lock()
			defer mu.Unlock()
			m.Files[name] = t
			return nil
		})
	}
	group.Go(func() (err error) {
		// The clone shares no page cache with the live image: its changed blocks are read from the disk here.
		if m.Home, err = hashHome(ctx, files[homeName], parent, parentTree); err != nil {
			return err
		}
		if err := unix.Fdatasync(int(files[homeName].Fd())); err != nil {
			return fmt.Errorf("sync %s: %w", homeName, err)
		}
		return nil
	})
	return group.Wait()
}

// verify has the disk give back what a runtime saved in a sealed snapshot. What the disk gives otherwise is written again; errSnapshotCorrupt if that
// does not help. A snapshot that is not there any more needs none. One at a time: more would take as long together and be in others' way.
func (s *snapshots) verify(ctx context.Context, id carrel.SnapshotID) error {
	if err := s.verifying.Acquire(ctx, 1); err != nil {
		return err
	}
	defer s.verifying.Release(1)
	m, err := s.get(id)
	if errors.Is(err, errSnapshotMissing) {
		return nil
	}
	if err != nil {
		return err
	}
	err = s.eachFile(m, os.O_RDWR, func(string, disk.Tree) bool { return true }, func(name string, t disk.Tree, f *os.File) error {
		mended, err := t.Verify(ctx, f)
		if mended > 0 {
			s.log.Error("the disk did not give back what was written to it; it was written again", "snapshot", id, "file", name, "blocks", mended)
		}
		return err
	})
	if _, gone := s.get(id); errors.Is(gone, errSnapshotMissing) {
		return nil // it was dropped meanwhile
	}
	return err
}

// eachFile calls visit with the files of a sealed snapshot's capture that which wants, open as flag says, in the order of their names. What is missing, or what visit finds damaged, is errSnapshotCorrupt.
func (s *snapshots) eachFile(m *manifest, flag int, which func(name string, t disk.Tree) bool, visit func(name string, t disk.Tree, f *os.File) error) error {
	for _, name := range slices.Sorted(maps.Keys(m.Files)) {
		t := m.Files[name]
		if !which(name, t) {
			continue
		}
		f, err := os.OpenFile(filepath.Join(s.path(m.Snapshot), name), flag, 0)
		if errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%w: %s is missing", errSnapshotCorrupt, name)
		}
		if err != nil {
			return err
		}
		err = visit(name, t, f)
		_ = f.Close()
		if errors.Is(err, disk.ErrDamaged) || errors.Is(err, unix.EIO) {
			return fmt.Errorf("%w: %s: %w", errSnapshotCorrupt, name, err)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func refOf(m *manifest, text []byte, size int64) *snapshotRef {
	sum := sha256.Sum256(text)
	return &snapshotRef{
		ID: m.Snapshot, Kind: m.Kind, Generation: m.Generation, Salvaged: m.Salvaged, SizeBytes: size,
		ManifestSHA256: hex.EncodeToString(sum[:]), RuntimeVersion: m.Version, Time: m.Time,
	}
}

// ref describes a sealed snapshot again, after a restart.
func (s *snapshots) ref(id carrel.SnapshotID) (*snapshotRef, error) {
	m, text, err := readManifest(s.path(id))
	if err != nil {
		return nil, err
	}
	size, err := disk.AllocatedBytes(s.path(id))
	if err != nil {
		return nil, err
	}
	return refOf(m, text, size), nil
}

// invalidate takes a sealed snapshot back, durably: it is not found any more. What is not there is fine.
func (s *snapshots) invalidate(id carrel.SnapshotID) error {
	if _, err := os.Stat(s.path(id)); errors.Is(err, fs.ErrNotExist) {
		// A former process may have renamed it and been killed before it synced.
		return disk.SyncDir(s.dir)
	}
	if err := os.RemoveAll(s.deadPath(id)); err != nil {
		return fmt.Errorf("take snapshot back: %w", err)
	}
	if err := disk.Publish(s.path(id), s.deadPath(id)); err != nil {
		return fmt.Errorf("take snapshot back: %w", err)
	}
	s.mu.Lock()
	delete(s.sealed, id)
	s.mu.Unlock()
	if err := failpoint.Hit("node/snapshot/dead"); err != nil {
		return err
	}
	return nil
}

// drop takes a snapshot back and removes its files.
func (s *snapshots) drop(id carrel.SnapshotID) error {
	if err := s.invalidate(id); err != nil {
		return err
	}
	if err := os.RemoveAll(s.deadPath(id)); err != nil {
		return fmt.Errorf("remove snapshot: %w", err)
	}
	return nil
}

// checking is the look at a snapshot's files while a run that begins from it is prepared and restored.
type checking struct {
	small, large chan error // hold one answer each
	cancel       context.CancelFunc
	back         disk.Background // the look at the large ones
}

// beginCheck begins to compare the files of a snapshot with its manifest: first the small ones, before anything is started from them, then the
// large ones and the home, in the time that the restore leaves, until somebody hurries. Without memory its files are not looked at: a start from
// files must work whatever became of the memory. The caller ends it.
func (s *snapshots) beginCheck(ctx context.Context, m *manifest, memory bool) *checking {
	ctx, cancel := context.WithCancel(ctx)
	c := &checking{small: make(chan error, 1), large: make(chan error, 1), cancel: cancel}
	go func() {
		defer close(c.large)
		err := s.check(ctx, m, memory, func(t disk.Tree) bool { return t.Size <= smallFile })
		c.small <- err
		if err == nil {
			err = failpoint.Hit("node/start/small-checked")
		}
		if err != nil {
			c.large <- err
			return
		}
		c.back.StandBack()
		defer c.back.End()
		if err = s.check(ctx, m, memory, func(t disk.Tree) bool { return t.Size > smallFile }); err == nil {
			err = s.checkHome(ctx, m)
		}
		c.large <- err
	}()
	return c
}

// end ends the look, and answers when nothing is read any more.
func (c *checking) end() {
	c.cancel()
	c.back.Hurry()
	for range c.large {
	}
}

// checkHome reads the home only when it is small. A home can have any size, and a start must not take the time to
// read all of it; nothing would be won against a disk that turns bits later, since the box goes on reading and
// writing the same blocks. ext4's own checksums guard its structure at every mount. What is checked
// always is that the image is there and has its size.
func (s *snapshots) checkHome(ctx context.Context, m *manifest) error {
	f, err := os.Open(filepath.Join(s.path(m.Snapshot), homeName))
	if err != nil {
		return fmt.Errorf("%w: %w", errSnapshotCorrupt, err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if info.Size() != m.Home.Size {
		return fmt.Errorf("%w: its home has %d bytes instead of %d", errSnapshotCorrupt, info.Size(), m.Home.Size)
	}
	var data int64
	for _, b := range m.Home.Blocks {
		if b != "" {
			data += disk.BlockBytes
		}
	}
	if data > homeCheckLimit {
		return nil
	}
	if err := m.Home.Check(ctx, f); errors.Is(err, disk.ErrDamaged) {
		return fmt.Errorf("%w: its home: %w", errSnapshotCorrupt, err)
	} else if err != nil {
		return err
	}
	return nil
}

func (s *snapshots) check(ctx context.Context, m *manifest, memory bool, which func(disk.Tree) bool) error {
	return s.eachFile(m, os.O_RDONLY, func(name string, t disk.Tree) bool {
		return which(t) && (memory || !strings.HasPrefix(name, memoryDir))
	}, func(_ string, t disk.Tree, f *os.File) error { return t.Check(ctx, f) })
}

// usableMemory says why the memory of a snapshot cannot be used for a run here, nil if it can.
func (m *manifest) usableMemory(spec runSpec, caps runtime.Capabilities, cpu cpuIdentity) error {
	switch {
	case m.Kind != carrel.SnapshotMemory:
		return errors.New("it holds files only")
	case m.Runtime != caps.Name:
		return fmt.Errorf("it was made with %s, and this node has %s", m.Runtime, caps.Name)
	case m.Version != caps.Version && !slices.Contains(caps.Former, m.Version):
		return fmt.Errorf("it was made with %s %s, which is not on this node any more: it has %s", m.Runtime, m.Version, strings.Join(append([]string{caps.Version}, caps.Former...), ", "))
	case m.ImageDigest != spec.ImageDigest:
		return errors.New("it was made with another image")
	case m.SpecSHA256 != memorySpec(spec):
		return errors.New("the box's sizes or rights were changed since")
	case m.CPU.Vendor != cpu.Vendor || m.CPU.FlagsSHA256 != cpu.FlagsSHA256:
		return fmt.Errorf("it was made on a processor %q with other features than this node's %q", m.CPU.Model, cpu.Model)
	}
	return nil
}

func hashHome(ctx context.Context, f *os.File, parent string, tree *disk.Tree) (disk.Tree, error) {
	if parent != "" && tree != nil {
		if p, err := os.Open(parent); err == nil {
			defer p.Close()
			t, err := disk.HashChanged(ctx, f, p, *tree)
			if err != nil {
				return disk.Tree{}, fmt.Errorf("hash home: %w", err)
			}
			return t, nil
		}
	}
	t, err := disk.Hash(ctx, f)
	if err != nil {
		return disk.Tree{}, fmt.Errorf("hash home: %w", err)
	}
	return t, nil
}

// captureFiles lists the files that a runtime saved, by path in dir.
func captureFiles(dir string) ([]string, error) {
	var names []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(dir, path)
		switch {
		case err != nil:
			return err
		case d.IsDir():
			return nil
		case !d.Type().IsRegular():
			return fmt.Errorf("%s is no regular file", name)
		case name != homeName && name != manifestName:
			names = append(names, name)
		}
		return nil
	})
	return names, err
}

func readManifest(dir string) (*manifest, []byte, error) {
	path := filepath.Join(dir, manifestName)
	body, err := readSigned(path)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: its manifest: %w", errSnapshotCorrupt, err)
	}
	m := &manifest{}
	if err := json.Unmarshal(body, m); err != nil || m.Format != captureFormat {
		return nil, nil, fmt.Errorf("%w: its manifest has an unknown form (%d): %w", errSnapshotCorrupt, m.Format, err)
	}
	return m, sign(body), nil
}
