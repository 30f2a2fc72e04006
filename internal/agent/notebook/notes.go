package notebook

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"time"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/carrel"
)

// A note is an entry of the journal for the agent alone. Notes say how the file of a notebook stands to the events around them, so that what a box that
// failed had not written can be put into the file later: what follows what the file has, and whether somebody else has written it since.
type note struct {
	Kind string `json:"kind"`
	// Path of the notebook, as events have it.
	Path string `json:"path"`
	// At is the last entry of which the file has what it tells.
	At uint64 `json:"at"`
	// Sum is that of the file.
	Sum []byte `json:"sum,omitempty"`
	// Cells has digests of what cells have in the file, of those that an execution is changing.
	Cells map[string][]byte `json:"cells,omitempty"`
}

// Kinds of notes.
const (
	noteBase     = "base"     // the file with Sum is what the next changes are made to
	noteSaving   = "saving"   // the file is about to be the one with Sum
	noteSaved    = "saved"    // it is
	noteReplaced = "replaced" // an execution begins, and a cell had this before
)

const (
	// noteMark begins a note; no message of protobuf begins with it.
	noteMark = 0
	// maxDigested is how much a cell may show for its digest to be made, in bytes.
	maxDigested = 8 << 20
	// saveFlush is how long a save waits for its note to be on the disk. A file that is saved is worth more than one that is known.
	saveFlush = 5 * time.Second
)

func isNote(data []byte) bool { return len(data) > 0 && data[0] == noteMark }

// noteOf reads a note; nil: it is none.
func noteOf(data []byte) *note {
	n := &note{}
	if !isNote(data) || json.Unmarshal(data[1:], n) != nil {
		return nil
	}
	return n
}

// note puts a note into the journal. s.mu is held.
func (d *document) note(n note) {
	n.Path = carrel.EncodeFileName(d.path)
	data, err := json.Marshal(n)
	if err != nil {
		d.s.log.Error("a note could not be written", "error", err)
		return
	}
	d.s.journal.Append(append([]byte{noteMark}, data...), nil)
}

// changes reports whether an event changes the notebook of its path.
func changes(event *carrelv1.NotebookEvent) bool {
	switch event.GetEvent().(type) {
	case *carrelv1.NotebookEvent_Edited, *carrelv1.NotebookEvent_DisplayUpdate:
		return event.GetPath() != ""
	case *carrelv1.NotebookEvent_Started, *carrelv1.NotebookEvent_Output, *carrelv1.NotebookEvent_ClearOutput, *carrelv1.NotebookEvent_Ended:
		return event.GetPath() != "" && event.GetCell() != ""
	}
	return false
}

// begins notes what the file is to which a change is about to be made. Service.mu is held.
func (d *document) begins() {
	if d.content == nil || d.noted || d.closing {
		return
	}
	d.noted, d.from = true, d.s.journal.LastSeq()
	d.note(note{Kind: noteBase, At: d.from, Sum: d.sum[:]})
}

// agrees notes that nothing is in memory that the file does not have. Service.mu is held.
func (d *document) agrees() {
	if d.noted {
		d.note(note{Kind: noteSaved, At: d.s.journal.LastSeq()})
	}
	d.noted = false
}

// replaces notes what a cell has that an execution begins to change. Service.mu is held.
func (d *document) replaces(one *cell) {
	d.begins()
	if digest := one.digest(); digest != nil {
		d.note(note{Kind: noteReplaced, Cells: map[string][]byte{one.id: digest}})
	}
}

// announce notes that the file is about to be what data is, and waits until that is on the disk: else the file would be one that the journal does not know.
func (d *document) announce(c *content, sum [sha256.Size]byte, at uint64, running map[string]*execution) {
	n := note{Kind: noteSaving, At: at, Sum: sum[:], Cells: map[string][]byte{}}
	for _, one := range c.cells {
		if running[one.id] == nil {
			continue
		}
		if digest := one.digest(); digest != nil {
			n.Cells[one.id] = digest
		}
	}
	s := d.s
	s.mu.Lock()
	d.note(n)
	s.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), saveFlush)
	defer cancel()
	if err := s.journal.Flush(ctx); err != nil {
		s.log.Debug("a notebook is saved of which the journal does not know", "error", err)
	}
}

// digest is of what a cell shows, as a file has it; nil: that is too much, or it shows nothing ever.
func (c *cell) digest() []byte {
	if c.outputs == nil {
		return nil
	}
	size := int64(0)
	list := make([]any, 0, len(c.outputs.list))
	for _, one := range c.outputs.list {
		if size += int64(len(one.said())) + sizeOf(one.fields); size > maxDigested {
			return nil
		}
		list = append(list, one.file())
	}
	var e encoder
	e.value([]any{list, c.count})
	sum := sha256.Sum256(e.buf.Bytes())
	return sum[:16]
}
