package notebook

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/carrel"
)

const (
	// spillReserve is the room on the disk that output never takes, in bytes, and spillCheck how often it is looked at.
	spillReserve = 64 << 20
	spillCheck   = 8 << 20
	// truncationPace is the least time between two events about output that is not kept.
	truncationPace = time.Second
)

// spill is the file with all text of an execution of which not everything is kept. Its methods may be called by several at once.
type spill struct {
	s    *Service
	path string

	mu     sync.Mutex // guards what follows; it may be held while the disk works
	before string     // what was kept until the file was begun
	file   *os.File
	size   int64
	err    error // why the file has not everything
	closed bool
}

// overflow sees to text of which only kept is kept: it gives the file and what it gets. s.mu is held.
func (r *runner) overflow(e *execution, text, kept string) (*spill, string) {
	over := text[len(kept):]
	switch {
	case over == "" && e.spill == nil:
		return nil, ""
	case over == "":
		return e.spill, text
	case e.ended():
		e.truncatedBytes += int64(len(over))
		return nil, ""
	}
	r.flush(e)
	if e.spill == nil {
		path := filepath.Join(r.s.config.Home, stateDir, "outputs", e.id+".txt")
		e.spill, e.outputFile = &spill{s: r.s, path: path, before: e.outputs.plainText()}, path
		text = over
	}
	r.truncate(e, int64(len(over)))
	return e.spill, text
}

// truncate counts output that is not kept, and tells of it now and then. s.mu is held.
func (r *runner) truncate(e *execution, bytes int64) {
	first := e.truncatedBytes == 0
	e.truncatedBytes += bytes
	if now := r.s.now(); first || now.Sub(e.toldTruncationAt) >= truncationPace {
		e.toldTruncationAt = now
		r.tellTruncation(e)
	}
}

func (r *runner) tellTruncation(e *execution) {
	e.toldTruncation = e.truncatedBytes
	r.s.emit(e.event(&carrelv1.NotebookEvent{Event: &carrelv1.NotebookEvent_Truncated{Truncated: &carrelv1.OutputTruncated{Bytes: e.truncatedBytes, File: carrel.EncodeFileName(e.outputFile)}}}))
}

// closeSpill ends the file of an execution and marks in its outputs that they are not all. s.mu is held.
func (r *runner) closeSpill(e *execution) {
	if e.truncatedBytes == 0 {
		return
	}
	if e.toldTruncation != e.truncatedBytes {
		r.tellTruncation(e)
	}
	where := "it was too large"
	if e.spill != nil {
		where = "all of it is in " + e.outputFile
		if err := e.spill.problem(); err != nil {
			where = "not all of it is in " + e.outputFile + " either: " + err.Error()
		}
		r.s.wg.Go(e.spill.end)
		e.spill = nil
	}
	marker := &output{stream: "stderr"}
	fmt.Fprintf(&marker.text, "\n[%d bytes of output are left out here: %s]\n", e.truncatedBytes, where)
	e.outputs.list = append(e.outputs.list, marker)
	r.s.emit(e.event(&carrelv1.NotebookEvent{Event: &carrelv1.NotebookEvent_Output{Output: marker.wire()}}))
}

func (p *spill) problem() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err
}

// write adds text. After an error nothing is written any more.
func (p *spill) write(text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err != nil || p.closed {
		return
	}
	if p.file == nil {
		if p.err = p.open(); p.err != nil {
			return
		}
		before := p.before
		p.before = ""
		p.put(before)
	}
	p.put(text)
}

func (p *spill) open() error {
	err := p.s.config.AsUser(func() error {
		if err := os.MkdirAll(filepath.Dir(p.path), 0o700); err != nil {
			return err
		}
		file, err := os.OpenFile(p.path, os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
		p.file = file
		return err
	})
	if err != nil {
		p.file = nil
		return plainError(err)
	}
	return nil
}

func (p *spill) put(text string) {
	if p.err != nil {
		return
	}
	if p.size/spillCheck != (p.size+int64(len(text)))/spillCheck || p.size == 0 {
		var stat unix.Statfs_t
		if err := unix.Fstatfs(int(p.file.Fd()), &stat); err == nil && int64(stat.Bavail)*stat.Bsize < spillReserve+int64(len(text)) {
			p.err = errors.New("the box's disk is almost full")
			return
		}
	}
	n, err := p.file.WriteString(text)
	p.size += int64(n)
	if err != nil {
		p.err = plainError(err)
	}
}

// end closes the file and gives back the memory that a flood took, which is most of what the agent ever has: messages of tens of megabytes. It
// would keep that for minutes, and it is the box's. There is one file more now, and perhaps one too many.
func (p *spill) end() {
	p.close()
	debug.FreeOSMemory()
	p.s.pruneSpills()
}

func (p *spill) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	if p.file != nil {
		p.file.Close()
		p.file = nil
	}
}

// plainError says what an error of the file system means, for people, without the path that is said beside it.
func plainError(err error) error {
	switch {
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return errors.New("the box's disk is full")
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return errors.New("the box's user may not write there")
	case errors.Is(err, unix.EROFS):
		return errors.New("it cannot be written there")
	}
	var at *os.PathError
	if errors.As(err, &at) {
		return at.Err
	}
	return err
}
