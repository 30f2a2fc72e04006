package node

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	linkv1 "carrel.dev/carrel/api/carrel/link/v1"
	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/failpoint"
	"carrel.dev/carrel/internal/node/disk"
)

// ledger is the node's memory on disk: one file for each run and one for the desired set that was seen
// last. Every file carries its own checksum. Writers of the same run do not overlap: each has one worker.
type ledger struct {
	dir string
}

// ledgerContent is what openLedger found.
type ledgerContent struct {
	entries []*entry
	desired *linkv1.DesiredSet // nil: none was ever seen, or it cannot be read
	// sequence is larger than that of any report that a former process made. Those of the phases on the way are
	// not written down.
	sequence int64
	// damaged are the files that could not be read. They were put aside: nothing is destroyed because
	// of them, and nothing is known of the runs that they were about.
	damaged []string
}

func openLedger(dir string, log *slog.Logger) (*ledger, ledgerContent, error) {
	l := &ledger{dir: dir}
	var c ledgerContent
	for _, d := range []string{l.runsDir(), l.asideDir()} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, c, fmt.Errorf("open ledger: %w", err)
		}
	}
	files, err := os.ReadDir(l.runsDir())
	if err != nil {
		return nil, c, fmt.Errorf("open ledger: %w", err)
	}
	for _, f := range files {
		path := filepath.Join(l.runsDir(), f.Name())
		if strings.HasSuffix(f.Name(), ".tmp") { // the write of a killed process that nobody acted on
			if err := os.Remove(path); err != nil {
				return nil, c, fmt.Errorf("open ledger: %w", err)
			}
			continue
		}
		e, err := readEntry(path)
		if err == nil && string(e.Run)+".json" != f.Name() {
			err = fmt.Errorf("it is about run %q", e.Run)
		}
		if err != nil {
			if err := l.setAside(path, err, log); err != nil {
				return nil, c, err
			}
			c.damaged = append(c.damaged, f.Name())
			continue
		}
		c.entries = append(c.entries, e)
	}
	c.desired, err = l.readDesired()
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		if err := l.setAside(l.desiredPath(), err, log); err != nil {
			return nil, c, err
		}
		c.damaged = append(c.damaged, filepath.Base(l.desiredPath()))
	}
	if c.sequence, err = l.begin(time.Now()); err != nil {
		return nil, c, fmt.Errorf("open ledger: %w", err)
	}
	return l, c, nil
}

// begin notes that another process has begun, and gives the first sequence of its reports. It goes by the clock, so that
// it goes on when the note is lost, and by the note, so that it goes on when the clock is set back.
func (l *ledger) begin(now time.Time) (int64, error) {
	const reports = 1 << 20 // of one run, in one process
	number := now.Unix()
	if body, err := readSigned(l.beginPath()); err == nil {
		var last int64
		if json.Unmarshal(body, &last) == nil {
			number = max(number, last+1)
		}
	}
	body, err := json.Marshal(number)
	if err != nil {
		return 0, err
	}
	return number * reports, disk.WriteFile(l.beginPath(), sign(body), 0o600)
}

func (l *ledger) runsDir() string     { return filepath.Join(l.dir, "runs") }
func (l *ledger) asideDir() string    { return filepath.Join(l.dir, "damaged") }
func (l *ledger) desiredPath() string { return filepath.Join(l.dir, "desired") }
func (l *ledger) beginPath() string   { return filepath.Join(l.dir, "begin") }
func (l *ledger) path(run carrel.RunID) string {
	return filepath.Join(l.runsDir(), string(run)+".json")
}

// setAside moves a file that cannot be read away, for a person to look at.
func (l *ledger) setAside(path string, cause error, log *slog.Logger) error {
	to := filepath.Join(l.asideDir(), fmt.Sprintf("%s-%d", filepath.Base(path), time.Now().UnixNano()))
	log.Error("a file of the ledger cannot be read and is put aside; what it was about is left alone", "file", path, "kept_as", to, "error", cause)
	if err := disk.Publish(path, to); err != nil {
		return fmt.Errorf("open ledger: put a damaged file aside: %w", err)
	}
	return nil
}

// put writes an entry durably.
func (l *ledger) put(e *entry) error {
	body, err := json.Marshal(e)
	if err != nil {
		return fmt.Errorf("write ledger: %w", err)
	}
	if err := failpoint.Hit("node/ledger/write"); err != nil {
		return fmt.Errorf("write ledger: %w", err)
	}
	if err := disk.WriteFile(l.path(e.Run), sign(body), 0o600); err != nil {
		return fmt.Errorf("write ledger: %w", err)
	}
	return nil
}

// remove forgets a run.
func (l *ledger) remove(run carrel.RunID) error {
	if err := os.Remove(l.path(run)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("write ledger: %w", err)
	}
	return disk.SyncDir(l.runsDir())
}

func (l *ledger) putDesired(set *linkv1.DesiredSet) error {
	body, err := proto.MarshalOptions{Deterministic: true}.Marshal(set)
	if err != nil {
		return fmt.Errorf("write ledger: %w", err)
	}
	if err := disk.WriteFile(l.desiredPath(), sign(body), 0o600); err != nil {
		return fmt.Errorf("write ledger: %w", err)
	}
	return nil
}

func (l *ledger) readDesired() (*linkv1.DesiredSet, error) {
	body, err := readSigned(l.desiredPath())
	if err != nil {
		return nil, err
	}
	set := &linkv1.DesiredSet{}
	if err := proto.Unmarshal(body, set); err != nil {
		return nil, err
	}
	return set, nil
}

func readEntry(path string) (*entry, error) {
	body, err := readSigned(path)
	if err != nil {
		return nil, err
	}
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields() // a newer daemon wrote it: what we do not know, we must not lose
	e := &entry{}
	if err := d.Decode(e); err != nil {
		return nil, err
	}
	switch {
	case carrel.IDKind(string(e.Run)) != 'r' || carrel.IDKind(string(e.Box)) != 'b':
		return nil, errors.New("it names no run and box")
	case e.Stage == "":
		return nil, errors.New("it has no stage")
	}
	return e, nil
}

// sign puts a line with the SHA-256 of body before it.
func sign(body []byte) []byte {
	sum := sha256.Sum256(body)
	return append([]byte(hex.EncodeToString(sum[:])+"\n"), body...)
}

// readSigned reads what sign made, and refuses what is no more that.
func readSigned(path string) ([]byte, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	want, body, ok := bytes.Cut(data, []byte("\n"))
	sum := sha256.Sum256(body)
	if !ok || hex.EncodeToString(sum[:]) != string(want) {
		return nil, errors.New("its checksum is wrong")
	}
	return body, nil
}
