package notebook

import (
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/carrel"
)

// maxRetry is the longest time between two attempts to save.
const maxRetry = 30 * time.Second

// maxMeanwhile is how often in a row a save begins anew at once because somebody else wrote the file meanwhile.
const maxMeanwhile = 5

// fileState is how a file was when it was last read or written. The zero value is no file.
type fileState struct {
	there    bool
	dev, ino uint64
	size     int64
	modified unix.Timespec
	hash     [sha256.Size]byte
}

func stateOf(stat *unix.Stat_t) fileState {
	return fileState{there: true, dev: stat.Dev, ino: stat.Ino, size: stat.Size, modified: stat.Mtim}
}

// same reports whether nothing says that the file was changed.
func (f fileState) same(other fileState) bool {
	f.hash, other.hash = [sha256.Size]byte{}, [sha256.Size]byte{}
	return f == other
}

// fileError says what an error with a notebook's file means.
func fileError(do, path string, err error) error {
	var own *carrel.Error
	if errors.As(err, &own) {
		return err
	}
	shown := carrel.EncodeFileName(path)
	e := &carrel.Error{Code: carrel.CodePrecondition, Reason: "file_error", Cause: err, Metadata: map[string]string{"path": shown}}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		e.Code, e.Reason, e.Message = carrel.CodeNotFound, "file_not_found", fmt.Sprintf("there is no notebook %q in the box", shown)
	case errors.Is(err, unix.ENOTDIR):
		e.Code, e.Reason, e.Message = carrel.CodeNotFound, "file_not_found", fmt.Sprintf("there is no notebook %q in the box: something on the way to it is no directory", shown)
	case errors.Is(err, fs.ErrPermission):
		e.Code, e.Reason, e.Message = carrel.CodeDenied, "file_denied", fmt.Sprintf("the box's user may not %s %q", do, shown)
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		e.Code, e.Reason, e.Message = carrel.CodeExhausted, "disk_full", fmt.Sprintf("%q is not saved because the box's disk is full; remove something there, or update the box with a larger one", shown)
	case errors.Is(err, unix.EROFS):
		e.Code, e.Reason, e.Message = carrel.CodeDenied, "read_only", fmt.Sprintf("%q lies on a part of the box that cannot be written", shown)
	default:
		e.Message = fmt.Sprintf("the box cannot %s %q: %v", do, shown, plainError(err))
	}
	return e
}

// readNotebook reads a file. For AsUser.
func readNotebook(path string, limit int64) (data []byte, state fileState, err error) {
	file, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fileState{}, err
	}
	defer file.Close()
	var stat unix.Stat_t
	if err := unix.Fstat(int(file.Fd()), &stat); err != nil {
		return nil, fileState{}, err
	}
	switch {
	case stat.Mode&unix.S_IFMT == unix.S_IFDIR:
		return nil, fileState{}, carrel.Errorf(carrel.CodePrecondition, "is_directory", "%q is a directory, not a notebook", carrel.EncodeFileName(path))
	case stat.Mode&unix.S_IFMT != unix.S_IFREG:
		return nil, fileState{}, carrel.Errorf(carrel.CodePrecondition, "not_a_file", "%q is a device, socket or pipe, not a notebook", carrel.EncodeFileName(path))
	}
	data, err = io.ReadAll(io.LimitReader(file, limit+1))
	if err != nil {
		return nil, fileState{}, err
	}
	if int64(len(data)) > limit {
		return nil, fileState{}, carrel.Errorf(carrel.CodePrecondition, "notebook_too_large", "%q is larger than %d MiB, the most that is opened in this box; clear outputs in it with another program first", carrel.EncodeFileName(path), limit>>20)
	}
	state = stateOf(&stat)
	state.hash = sha256.Sum256(data)
	return data, state, nil
}

// load reads the document's file at the first time.
func (d *document) load() error {
	d.saving.Lock()
	defer d.saving.Unlock()
	var data []byte
	if err := d.s.config.AsUser(func() (err error) {
		data, d.file, err = readNotebook(d.path, d.s.config.MaxNotebook)
		return err
	}); err != nil {
		return fileError("read", d.path, err)
	}
	c, done, err := parse(data)
	if err != nil {
		return err
	}
	d.s.Sweep(d.path)
	r := d.revive(c)
	d.s.mu.Lock()
	defer d.s.mu.Unlock()
	d.content, d.repairs, d.sum = c, done, d.file.hash
	d.rebase(c)
	d.revived(r)
	return nil
}

// rebase notes what the file has. Service.mu is held.
func (d *document) rebase(c *content) {
	d.base = make(map[string]string, len(c.cells))
	for _, one := range c.cells {
		d.base[one.id] = one.source
	}
}

// refresh takes what others have written into the file. d.saving is held.
func (d *document) refresh() error {
	s := d.s
	var state fileState
	err := s.config.AsUser(func() error {
		var stat unix.Stat_t
		if err := unix.Stat(d.path, &stat); err != nil {
			return &fs.PathError{Op: "stat", Path: d.path, Err: err}
		}
		state = stateOf(&stat)
		return nil
	})
	if errors.Is(err, fs.ErrNotExist) {
		if !d.follow() {
			d.gone()
		}
		return err
	}
	if err != nil || state.same(d.file) {
		return err
	}
	var data []byte
	if err := s.config.AsUser(func() (err error) {
		data, state, err = readNotebook(d.path, d.s.config.MaxNotebook)
		return err
	}); err != nil {
		return err
	}
	if d.file.there && state.hash == d.file.hash && state.size == d.file.size {
		d.file = state
		return nil
	}
	theirs, repaired, err := read(data)
	if err != nil {
		// Not to be written over: it may be half of what somebody writes, or not ours any more.
		return err
	}
	d.file = state
	s.mu.Lock()
	defer s.mu.Unlock()
	theirs.recognize(d.content)
	d.sum = state.hash
	d.merge(theirs, repaired.list())
	return nil
}

// recognize gives cells of which a file has no ids those that the same cells have in memory, so that what somebody writes in an older format, such as
// another version from git, is not a notebook of new cells to those who look at it and to what is being executed.
func (c *content) recognize(known *content) {
	taken := map[string]bool{}
	for _, one := range c.cells {
		if !one.named {
			taken[one.id] = true
		}
	}
	type text struct{ kind, source string }
	places := map[text][]string{}
	for _, one := range known.cells {
		if !taken[one.id] {
			at := text{one.kind, one.source}
			places[at] = append(places[at], one.id)
		}
	}
	for _, one := range c.cells {
		at := text{one.kind, one.source}
		if ids := places[at]; one.named && len(ids) > 0 {
			one.id, places[at] = ids[0], ids[1:]
		}
	}
}

// gone notes that the file was removed. d.saving is held.
func (d *document) gone() {
	s := d.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if d.removed || !d.file.there {
		return
	}
	d.file = fileState{}
	d.removed = true
	d.saveAt, d.saved = time.Time{}, d.version
	d.agrees()
	if d.users > 0 {
		s.emit(&carrelv1.NotebookEvent{Path: d.path, Event: &carrelv1.NotebookEvent_Unsaved{Unsaved: "its file is no longer there; what runs goes on, and its outputs are in the box's journal"}})
	}
	s.emit(&carrelv1.NotebookEvent{Path: d.path, Event: &carrelv1.NotebookEvent_Reloaded{Reloaded: &carrelv1.NotebookReloaded{Revision: d.revision, Removed: true}}})
	if d.users == 0 {
		d.close()
	}
}

// merge makes the document what somebody else has written, with what was changed here since the file was last read or written. Where both
// changed a cell, theirs stays and ours comes behind it as another. Service.mu is held.
func (d *document) merge(theirs *content, done []string) {
	s := d.s
	ours := d.content
	kept := false
	base := make(map[string]string, len(theirs.cells))
	for _, one := range theirs.cells {
		base[one.id] = one.source
	}
	for at := 0; at < len(theirs.cells); at++ {
		one := theirs.cells[at]
		before, known := d.base[one.id]
		place := ours.find(one.id)
		if place < 0 {
			if known && before == one.source { // we removed it, they did not touch it
				theirs.cells = append(theirs.cells[:at:at], theirs.cells[at+1:]...)
				at--
				kept = true
			}
			continue
		}
		mine := ours.cells[place]
		if mine.source != before && mine.source != one.source {
			kept = true
			if one.source == before {
				one.source = mine.source
			} else {
				conflict := &cell{id: newCellID(), kind: mine.kind, source: mine.source, metadata: mine.metadata, extra: mine.extra}
				if mine.kind == "code" {
					conflict.outputs = &outputs{}
				}
				theirs.cells = append(theirs.cells[:at+1:at+1], append([]*cell{conflict}, theirs.cells[at+1:]...)...)
				at++
				done = append(done, "a cell was changed here and in the file; both are kept, one behind the other")
			}
		}
		if e := d.outputsOf[one.id]; e != nil && one.kind == "code" {
			one.outputs, one.count = mine.outputs, mine.count
			kept = true
		}
	}
	for place, mine := range ours.cells { // what was made here since
		if _, known := d.base[mine.id]; known || theirs.find(mine.id) >= 0 {
			continue
		}
		at := 0
		for before := place - 1; before >= 0; before-- {
			if there := theirs.find(ours.cells[before].id); there >= 0 {
				at = there + 1
				break
			}
		}
		theirs.cells = append(theirs.cells[:at:at], append([]*cell{mine}, theirs.cells[at:]...)...)
		kept = true
	}
	d.base = base
	d.content, d.repairs, d.removed = theirs, done, false
	d.revision++
	d.saved = d.version
	d.saveAt = time.Time{}
	if kept {
		d.changed(saveSoon)
	} else {
		d.agrees()
	}
	s.emit(&carrelv1.NotebookEvent{Path: d.path, Event: &carrelv1.NotebookEvent_Reloaded{Reloaded: &carrelv1.NotebookReloaded{Revision: d.revision}}})
}

// save writes the document, if there is anything to be written, and notes why it could not.
func (d *document) save() error {
	s := d.s
	d.saving.Lock()
	defer d.saving.Unlock()
	begin := s.now()
	err := d.refresh()
	if errors.Is(err, fs.ErrNotExist) {
		err = nil // removed, or not made yet
	}
	s.mu.Lock()
	d.flushText()
	if d.closing || d.removed || d.version == d.saved {
		d.saveAt = time.Time{}
		s.mu.Unlock()
		return nil
	}
	version, at, now := d.version, s.journal.LastSeq(), d.content.snapshot()
	running := maps.Clone(d.outputsOf)
	s.mu.Unlock()
	var sum [sha256.Size]byte
	if err == nil {
		data := now.write()
		sum = sha256.Sum256(data)
		d.announce(now, sum, at, running)
		err = d.write(data, sum)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	problem := ""
	if errors.Is(err, errMeanwhile) && d.failures < maxMeanwhile { // at once again, with what they wrote
		d.failures++
		d.saveAt = s.now()
		signal(d.wake)
		return err
	}
	if err != nil {
		d.failures++
		problem = messageOf(fileError("write", d.path, err))
		d.saveAt = s.now().Add(min(maxRetry, time.Second<<min(d.failures, 5)))
	} else {
		d.failures, d.saveAt, d.saved = 0, time.Time{}, version
		d.lastSave = s.now().Sub(begin)
		d.rebase(now)
		d.sum, d.noted, d.from = sum, true, at
		d.note(note{Kind: noteSaved, At: at})
		for id, e := range running {
			if e.ended() && d.outputsOf[id] == e && d.version == version {
				delete(d.outputsOf, id)
			}
		}
		if d.version != version {
			d.saveAt = s.now().Add(max(saveLater, min(8*d.lastSave, maxRetry)))
		}
	}
	if problem != d.unsaved {
		d.unsaved = problem
		s.emit(&carrelv1.NotebookEvent{Path: d.path, Event: &carrelv1.NotebookEvent_Unsaved{Unsaved: problem}})
	}
	return err
}

// flushText puts text of the document's executions that is in no event yet into one, so that what is saved is what the journal tells up to some entry. Service.mu
// is held.
func (d *document) flushText() {
	for _, e := range d.outputsOf {
		if r := d.s.runners[e.kernel]; r != nil {
			r.flush(e)
		}
	}
}

// write replaces the file in one step. d.saving is held.
func (d *document) write(data []byte, hash [sha256.Size]byte) error {
	return d.s.config.AsUser(func() error {
		target, err := filepath.EvalSymlinks(d.path)
		if errors.Is(err, fs.ErrNotExist) && !d.file.there {
			target, err = d.path, nil
		}
		if err != nil {
			return err
		}
		mode := fs.FileMode(0o644)
		if info, err := os.Stat(target); err == nil {
			if !info.Mode().IsRegular() {
				return errors.New("it is no file any more")
			}
			mode = info.Mode().Perm()
			if err := unix.Faccessat(unix.AT_FDCWD, target, unix.W_OK, unix.AT_EACCESS); err != nil {
				return &fs.PathError{Op: "write", Path: target, Err: err}
			}
		}
		temp := filepath.Join(filepath.Dir(target), ".carrel-"+strings.ToLower(rand.Text()[:12])+".tmp")
		file, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if errors.Is(err, fs.ErrPermission) && d.file.there { // the file may be written where its directory may not
			if file, err = os.OpenFile(target, os.O_WRONLY|os.O_TRUNC, 0); err != nil {
				return err
			}
			return d.fill(file, data, hash)
		}
		if err != nil {
			return err
		}
		if err = file.Chmod(mode); err == nil {
			before := d.file
			if err = d.fill(file, data, hash); err == nil {
				if err = before.still(target); err == nil {
					err = os.Rename(temp, target)
				}
				if err != nil {
					d.file = before
				}
			}
		} else {
			file.Close()
		}
		if err != nil {
			_ = os.Remove(temp)
		}
		return err
	})
}

// errMeanwhile: somebody else wrote the file while it was being saved.
var errMeanwhile = errors.New("somebody else wrote it at the same time")

// still reports as an error that a file is not as it was.
func (f fileState) still(path string) error {
	var stat unix.Stat_t
	err := unix.Stat(path, &stat)
	switch {
	case err != nil && f.there, err == nil && !stateOf(&stat).same(f):
		return errMeanwhile
	}
	return nil
}

// fill writes the content of a file, closes it, and notes what it is then.
func (d *document) fill(file *os.File, data []byte, hash [sha256.Size]byte) error {
	_, err := file.Write(data)
	if err == nil {
		err = file.Sync()
	}
	var stat unix.Stat_t
	if err == nil {
		err = unix.Fstat(int(file.Fd()), &stat)
	}
	if err = errors.Join(err, file.Close()); err != nil {
		return err
	}
	d.file = stateOf(&stat)
	d.file.hash = hash
	return nil
}
