package node

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	linkv1 "carrel.dev/carrel/api/carrel/link/v1"
	"carrel.dev/carrel/internal/carrel"
)

func openTestLedger(t *testing.T, dir string) (*ledger, ledgerContent) {
	t.Helper()
	l, content, err := openLedger(dir, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	return l, content
}

func testEntry() *entry {
	return &entry{
		Run: carrel.NewRunID(), Box: carrel.NewBoxID(), Org: "default", Epoch: 4, Stage: stageCommitting, Order: carrel.OrderPause, OrderGeneration: 7,
		Spec:     runSpec{BoxName: "b", Env: map[string]string{"A": "b"}, Startup: []string{"true"}},
		Snapshot: &snapshotRef{ID: carrel.NewSnapshotID(), Kind: carrel.SnapshotMemory, Time: time.Unix(5, 7).UTC()},
		Report:   &report{Phase: carrel.PhaseRunning, Time: time.Unix(6, 0).UTC(), Failure: &failure{"r", "m", true}},
		Sequence: 12,
	}
}

func TestLedgerKeepsWhatWasWritten(t *testing.T) {
	dir := t.TempDir()
	l, content := openTestLedger(t, dir)
	require.Empty(t, content.entries)
	require.Nil(t, content.desired)
	a, b := testEntry(), testEntry()
	require.NoError(t, l.put(a))
	require.NoError(t, l.put(b))
	a.Stage = stageEnded
	require.NoError(t, l.put(a))
	require.NoError(t, l.remove(b.Run))
	require.NoError(t, l.remove(b.Run))
	set := &linkv1.DesiredSet{NodeId: "n", Revision: 9, Incarnation: 2, DropSnapshots: []string{"x"}}
	require.NoError(t, l.putDesired(set))
	// A process that was killed while it wrote.
	require.NoError(t, os.WriteFile(filepath.Join(dir, "runs", string(carrel.NewRunID())+".json.tmp"), []byte("ha"), 0o600))

	_, content = openTestLedger(t, dir)
	require.Equal(t, []*entry{a}, content.entries)
	require.True(t, proto.Equal(set, content.desired))
	require.Empty(t, content.damaged)
	info, err := os.Stat(filepath.Join(dir, "runs", string(a.Run)+".json"))
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm(), "the entry has the key of a run")
}

func TestDamagedFilesOfTheLedgerArePutAside(t *testing.T) {
	for name, damage := range map[string]func([]byte) []byte{
		"emptied":         func([]byte) []byte { return nil },
		"cut":             func(b []byte) []byte { return b[:len(b)/2] },
		"one bit":         func(b []byte) []byte { b[len(b)-10] ^= 1; return b },
		"zeros":           func(b []byte) []byte { return make([]byte, len(b)) },
		"from the future": func([]byte) []byte { return sign([]byte(`{"run":"x","new_field":1}`)) },
	} {
		dir := t.TempDir()
		l, _ := openTestLedger(t, dir)
		e, good := testEntry(), testEntry()
		require.NoError(t, l.put(e))
		require.NoError(t, l.put(good))
		require.NoError(t, l.putDesired(&linkv1.DesiredSet{Revision: 3}))
		for _, path := range []string{l.path(e.Run), l.desiredPath()} {
			data, err := os.ReadFile(path)
			require.NoError(t, err)
			require.NoError(t, os.WriteFile(path, damage(data), 0o600))
		}
		l, content := openTestLedger(t, dir)
		require.Len(t, content.damaged, 2, name)
		require.Equal(t, []*entry{good}, content.entries, name)
		require.Nil(t, content.desired, name)
		aside, err := os.ReadDir(l.asideDir())
		require.NoError(t, err)
		require.Len(t, aside, 2, name)
		_, content = openTestLedger(t, dir)
		require.Empty(t, content.damaged, name)
	}
}

func TestAnEntryUnderAnotherNameIsDamaged(t *testing.T) {
	dir := t.TempDir()
	l, _ := openTestLedger(t, dir)
	e := testEntry()
	require.NoError(t, l.put(e))
	require.NoError(t, os.Rename(l.path(e.Run), l.path(carrel.NewRunID())))
	_, content := openTestLedger(t, dir)
	require.Empty(t, content.entries)
	require.Len(t, content.damaged, 1)
}

func TestChecksumOfADesiredSet(t *testing.T) {
	set := &linkv1.DesiredSet{NodeId: "n", Revision: 1, Runs: []*linkv1.DesiredRun{{RunId: "r", Spec: &linkv1.RunSpec{Env: map[string]string{"a": "1", "b": "2", "c": "3"}}}}}
	sum, err := desiredChecksum(set)
	require.NoError(t, err)
	set.Checksum = sum
	again, err := desiredChecksum(set)
	require.NoError(t, err)
	require.Equal(t, sum, again)
	require.Equal(t, sum, set.GetChecksum())
	set.Runs[0].Order = linkv1.Order_ORDER_DESTROY
	other, err := desiredChecksum(set)
	require.NoError(t, err)
	require.NotEqual(t, sum, other)
}

func TestSequencesRiseFromProcessToProcess(t *testing.T) {
	dir := t.TempDir()
	var last int64
	for range 3 { // nothing is written between: reports were made that the ledger knows nothing of
		_, content := openTestLedger(t, dir)
		require.GreaterOrEqual(t, content.sequence, last+1<<20)
		last = content.sequence
	}
	l, _ := openTestLedger(t, dir)
	now := time.Unix(last>>20, 0)
	before, err := l.begin(now.Add(-time.Hour))
	require.NoError(t, err)
	require.Greater(t, before, last, "the clock was set back")
	require.NoError(t, os.WriteFile(l.beginPath(), []byte("junk"), 0o600))
	after, err := l.begin(now.Add(time.Hour))
	require.NoError(t, err)
	require.Greater(t, after, before, "the note was lost")
}
