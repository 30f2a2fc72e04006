package journal

import (
	"bufio"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Config of a Journal. Dir, Owner and Log are needed.
type Config struct {
	// Dir is made if it is not there.
	Dir string
	// Owner names whom the journal belongs to; what is there of another is removed.
	Owner string
	// AsUser runs a function with the rights that files are touched with; nil: just runs it.
	AsUser func(func() error) error
	// SegmentBytes and MaxBytes bound a segment and all of them; 0: 8 and 128 MiB. A single entry may be larger than a segment.
	SegmentBytes, MaxBytes int64
	// TailBytes bounds what is kept in memory besides what is not written yet; 0: 2 MiB.
	TailBytes int64
	// UnwrittenBytes bounds what waits for a disk that takes nothing; older entries are lost then. 0: 64 MiB.
	UnwrittenBytes int64
	// Flush is how soon entries are on the disk; 0: 100 ms.
	Flush time.Duration
	// State is asked for when a segment begins; it is given to Recover later. nil: none. It is called without any lock of the journal.
	State func() []byte
	// Recover is called by Open with the state of the last segment that is there, and then its entries. nil: nobody wants to know.
	Recover func(state []byte, entries func(func(seq uint64, data []byte)))
	Log     *slog.Logger
}

// Entry is one entry. Value is what Append was given if the entry comes from memory, else nil.
type Entry struct {
	Seq  uint64
	Data []byte
	// Cursor of the entry.
	Cursor string
	Value  any
}

// Journal is safe for concurrent use.
type Journal struct {
	config Config
	wg     sync.WaitGroup
	stop   chan struct{}
	wake   chan struct{} // has one when there is something to write
	hurry  chan chan error

	// Used by the writer alone.
	file     *os.File
	fileSize int64
	fileID   string // of its segment
	buf      []byte

	mu       sync.Mutex // guards what follows
	id       string
	owner    string
	firstOf  map[string]uint64 // the first sequence number of each id that is known
	endOf    map[string]uint64 // the last, of ids that have ended
	segments []segment         // oldest first
	tail     []Entry
	tailSize int64
	written  uint64 // the last entry that was written, or given up
	last     uint64
	lost     uint64 // entries up to this one that are in no segment may be missing
	changed  chan struct{}
	problem  string
	renewed  bool // the writer has to begin anew
	doomed   []segment
	closed   bool
}

// Open reads what is there. Nothing that is there makes it fail; without a usable directory the journal is in memory alone, and Problem says why. The caller
// calls Close in the end.
func Open(config Config) (*Journal, error) {
	if config.Dir == "" || config.Owner == "" || config.Log == nil {
		return nil, errors.New("journal: Dir, Owner and Log are needed")
	}
	if config.AsUser == nil {
		config.AsUser = func(f func() error) error { return f() }
	}
	config.SegmentBytes = cmp.Or(config.SegmentBytes, 8<<20)
	config.MaxBytes = cmp.Or(config.MaxBytes, 128<<20)
	config.TailBytes = cmp.Or(config.TailBytes, 2<<20)
	config.UnwrittenBytes = cmp.Or(config.UnwrittenBytes, 64<<20)
	config.Flush = cmp.Or(config.Flush, 100*time.Millisecond)
	j := &Journal{
		config: config, stop: make(chan struct{}), wake: make(chan struct{}, 1), hurry: make(chan chan error),
		owner: config.Owner, firstOf: map[string]uint64{}, endOf: map[string]uint64{}, changed: make(chan struct{}),
	}
	if err := config.AsUser(j.load); err != nil {
		j.problem = err.Error()
		config.Log.Warn("the journal of the box cannot be read; it begins anew", "error", err)
	}
	// Entries that somebody saw may not have reached the disk, or those that come may not before the next end.
	j.newID()
	j.written = j.last
	signal(j.wake) // the id is to be on the disk before anybody sees it
	j.wg.Go(j.write)
	return j, nil
}

func signal(to chan struct{}) {
	select {
	case to <- struct{}{}:
	default:
	}
}

// newID begins another journal behind the last entry. j.mu is held, or nobody else has j.
func (j *Journal) newID() {
	if j.id != "" {
		j.endOf[j.id] = j.last
	}
	j.id = strings.ToLower(rand.Text()[:10])
	j.firstOf[j.id] = j.last + 1
}

// load finds the segments that are there. For AsUser.
func (j *Journal) load() error {
	if err := os.MkdirAll(j.config.Dir, 0o700); err != nil {
		return fmt.Errorf("make the journal's directory: %w", err)
	}
	entries, err := os.ReadDir(j.config.Dir)
	if err != nil {
		return fmt.Errorf("read the journal's directory: %w", err)
	}
	var unread error
	var bare []string               // segments that have no entry, oldest first
	for _, entry := range entries { // sorted by name, and so by sequence number
		first, ok := firstOf(entry.Name())
		if !ok {
			continue
		}
		path := segmentPath(j.config.Dir, first)
		file, in, head, err := openSegment(path)
		switch {
		case err != nil && !errors.Is(err, errTorn):
			// Perhaps another time: it stays, and nothing is written in its place.
			unread, j.last = err, max(j.last, first)
			continue
		case err != nil || head.Owner != j.owner || head.First != first:
			if file != nil {
				file.Close()
			}
			_ = os.Remove(path)
			continue
		}
		info, err := file.Stat()
		if _, peek := in.Peek(1); errors.Is(peek, io.EOF) {
			bare = append(bare, path)
		}
		file.Close()
		if err != nil {
			continue
		}
		j.segments = append(j.segments, segment{id: head.ID, first: first, size: info.Size(), path: path})
		if head.ID != j.id {
			if j.id != "" {
				j.endOf[j.id] = first - 1
			}
			j.id = head.ID
			if _, known := j.firstOf[head.ID]; !known {
				j.firstOf[head.ID] = first
			}
		}
		j.last = first - 1
	}
	for _, path := range bare[:max(0, len(bare)-maxBare)] {
		_ = os.Remove(path)
		j.segments = slices.DeleteFunc(j.segments, func(s segment) bool { return s.path == path })
	}
	if len(j.segments) == 0 {
		return unread
	}
	newest := j.segments[len(j.segments)-1]
	file, in, head, err := openSegment(newest.path)
	if err != nil {
		return err // it was there a moment ago; the rest is still good
	}
	defer file.Close()
	each := func(f func(uint64, []byte)) {
		for {
			payload, err := readRecord(in, newest.size)
			if err != nil {
				return
			}
			seq, data, ok := splitEntry(payload)
			if !ok || seq <= j.last {
				continue
			}
			j.last = seq
			f(seq, data)
		}
	}
	if j.config.Recover != nil {
		j.config.Recover(head.State, each)
	}
	each(func(uint64, []byte) {}) // what Recover did not take
	return unread
}

// Append adds an entry and gives its cursor. Neither data nor value is changed by anyone afterwards.
func (j *Journal) Append(data []byte, value any) string {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.last++
	cursor := j.cursor(j.last)
	j.tail = append(j.tail, Entry{Seq: j.last, Data: data, Value: value, Cursor: cursor})
	j.tailSize += int64(len(data))
	j.trim()
	close(j.changed)
	j.changed = make(chan struct{})
	signal(j.wake)
	return cursor
}

// trim forgets the oldest of the tail. j.mu is held.
func (j *Journal) trim() {
	drop := 0
	for drop < len(j.tail)-1 {
		first := j.tail[drop]
		if first.Seq > j.written && j.tailSize <= j.config.UnwrittenBytes || first.Seq <= j.written && j.tailSize <= j.config.TailBytes {
			break
		}
		j.tailSize -= int64(len(first.Data))
		if first.Seq > j.written {
			j.written = first.Seq
		}
		drop++
	}
	if drop > 0 {
		clear(j.tail[:drop])
		j.tail = j.tail[drop:]
	}
}

func (j *Journal) cursor(seq uint64) string { return j.idOf(seq) + "." + strconv.FormatUint(seq, 10) }

// idOf gives the id that an entry belongs to. j.mu is held.
func (j *Journal) idOf(seq uint64) string {
	for id, end := range j.endOf {
		if seq <= end && seq >= j.firstOf[id] {
			return id
		}
	}
	return j.id
}

// Last is the cursor of the newest entry, or that before the first.
func (j *Journal) Last() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.cursor(j.last)
}

// LastSeq is the sequence number of the newest entry; 0: there never was one.
func (j *Journal) LastSeq() uint64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.last
}

// Problem says why entries are not on the disk, for people; empty: they are, or will be at once.
func (j *Journal) Problem() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.problem
}

// Renew begins the journal anew if it is another owner's: nothing of it is kept then, and no cursor of before is good.
func (j *Journal) Renew(owner string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if owner == j.owner {
		return
	}
	j.owner = owner
	j.newID()
	j.firstOf, j.endOf = map[string]uint64{j.id: j.last + 1}, map[string]uint64{}
	j.doomed, j.segments = append(j.doomed, j.segments...), nil
	j.tail, j.tailSize, j.written = nil, 0, j.last
	j.lost = j.last
	j.renewed = true
	close(j.changed)
	j.changed = make(chan struct{})
	signal(j.wake)
}

// Fork makes the journal another one from its next entry on, with all that it has: it was restored from a copy, and somebody may have seen entries of the
// original behind the copy's last. Cursors up to that one stay good.
func (j *Journal) Fork() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.newID()
	signal(j.wake)
}

// Flush answers when everything that was appended before is on the disk.
func (j *Journal) Flush(ctx context.Context) error {
	answer := make(chan error, 1)
	select {
	case j.hurry <- answer:
	case <-j.stop:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("flush the journal: %w", ctx.Err())
	}
	select {
	case err := <-answer:
		return err
	case <-ctx.Done():
		return fmt.Errorf("flush the journal: %w", ctx.Err())
	}
}

// Close flushes and ends the journal. Readers end too.
func (j *Journal) Close() {
	j.mu.Lock()
	if j.closed {
		j.mu.Unlock()
		return
	}
	j.closed = true
	close(j.changed)
	j.changed = make(chan struct{})
	j.mu.Unlock()
	close(j.stop)
	j.wg.Wait()
}

// write is the writer: it puts entries on the disk soon after they came.
func (j *Journal) write() {
	timer := time.NewTimer(0)
	<-timer.C
	defer timer.Stop()
	for {
		var answer chan error
		select {
		case <-j.wake:
			timer.Reset(j.config.Flush)
			select {
			case <-timer.C:
			case answer = <-j.hurry:
			case <-j.stop:
			}
		case answer = <-j.hurry:
		case <-j.stop:
		}
		err := j.flush()
		if answer != nil {
			answer <- err
		}
		select {
		case <-j.stop:
			_ = j.flush() // what came while the last one was under way; noted in j
			j.leave()
			return
		default:
		}
		if err != nil { // try again later, without anybody's asking
			signal(j.wake)
			timer.Reset(time.Second)
			select {
			case <-timer.C:
			case <-j.stop:
			case answer := <-j.hurry:
				answer <- j.flush()
			}
		}
	}
}

// flush writes what is not written.
func (j *Journal) flush() error {
	err := j.flushAll()
	j.mu.Lock()
	defer j.mu.Unlock()
	before := j.problem
	j.problem = ""
	if err != nil {
		j.problem = err.Error()
		if before == "" {
			j.config.Log.Warn("the journal of the box cannot be written", "error", err)
		}
	}
	return err
}

func (j *Journal) flushAll() error {
	j.mu.Lock()
	renewed := j.renewed
	j.renewed = false
	if renewed { // also what was begun a moment too late
		j.doomed, j.segments = append(j.doomed, j.segments...), nil
	}
	doomed := j.doomed
	j.doomed = nil
	j.mu.Unlock()
	if renewed {
		j.leave()
		_ = j.config.AsUser(func() error {
			for _, s := range doomed {
				_ = os.Remove(s.path)
			}
			return nil
		})
	}
	wrote := false
	for {
		j.mu.Lock()
		at, _ := slices.BinarySearchFunc(j.tail, j.written+1, func(e Entry, seq uint64) int { return cmp.Compare(e.Seq, seq) })
		j.buf = j.buf[:0]
		var first, upTo uint64
		owner, id := j.owner, ""
		for ; at < len(j.tail) && len(j.buf) < 1<<20; at++ {
			of := j.idOf(j.tail[at].Seq)
			if first == 0 {
				first, id = j.tail[at].Seq, of
			}
			if of != id {
				break // into another segment
			}
			j.buf = appendEntry(j.buf, j.tail[at].Seq, j.tail[at].Data)
			upTo = j.tail[at].Seq
		}
		j.mu.Unlock()
		if first == 0 {
			break
		}
		if err := j.put(first, owner, id); err != nil {
			return err
		}
		wrote = true
		if cap(j.buf) > 4<<20 {
			j.buf = nil
		}
		j.mu.Lock()
		if !j.renewed { // else these are nobody's any more
			j.written = max(j.written, upTo)
		}
		j.trim()
		j.mu.Unlock()
	}
	if !wrote {
		return j.announce()
	}
	if j.file == nil {
		return nil
	}
	if err := j.file.Sync(); err != nil {
		j.leave()
		return fmt.Errorf("sync the journal: %w", err)
	}
	return nil
}

// announce has a segment of the present id on the disk before there is anything to write, so that the id is known after a crash.
func (j *Journal) announce() error {
	j.mu.Lock()
	owner, id, first, rest := j.owner, j.id, j.last+1, j.last != j.written || j.renewed
	j.mu.Unlock()
	if rest || j.file != nil && j.fileID == id {
		return nil
	}
	j.leave()
	if err := j.begin(first, owner, id); err != nil {
		return err
	}
	if err := j.file.Sync(); err != nil {
		j.leave()
		return fmt.Errorf("sync the journal: %w", err)
	}
	return nil
}

// put writes j.buf, which begins with the entry first, into a segment of an id.
func (j *Journal) put(first uint64, owner, id string) error {
	if j.file != nil && (j.fileSize+int64(len(j.buf)) > j.config.SegmentBytes || j.fileID != id) {
		if err := j.file.Sync(); err != nil {
			j.leave()
			return fmt.Errorf("sync the journal: %w", err)
		}
		j.leave()
	}
	if j.file == nil {
		if err := j.begin(first, owner, id); err != nil {
			return err
		}
	}
	n, err := j.file.Write(j.buf)
	j.fileSize += int64(n)
	j.mu.Lock()
	if len(j.segments) > 0 {
		j.segments[len(j.segments)-1].size = j.fileSize
	}
	j.mu.Unlock()
	if err != nil {
		j.leave() // a part of a record ends the segment for readers; the rest goes into a new one
		return fmt.Errorf("write the journal: %w", err)
	}
	return nil
}

// begin makes the segment that begins with an entry, and drops the oldest ones that are too much.
func (j *Journal) begin(first uint64, owner, id string) error {
	var state []byte
	if j.config.State != nil {
		state = j.config.State()
	}
	if len(state) > maxState { // it could not be read again, nor what follows it
		j.config.Log.Warn("what has not ended is too much for the journal; it is not told as lost if the box fails now", "bytes", len(state))
		state = nil
	}
	path := segmentPath(j.config.Dir, first)
	j.mu.Lock()
	head := header{Version: 1, ID: id, Owner: owner, First: first, State: state}
	// An attempt of before that wrote nothing has the same name.
	j.segments = slices.DeleteFunc(j.segments, func(s segment) bool { return s.path == path })
	total := j.config.SegmentBytes
	for _, s := range j.segments {
		total += s.size
	}
	var old []segment
	for len(j.segments) > 0 && total > j.config.MaxBytes {
		total -= j.segments[0].size
		old = append(old, j.segments[0])
		j.segments = j.segments[1:]
	}
	if len(j.segments) > 0 {
		for id, end := range j.endOf { // nothing of it is kept, nor what comes behind it
			if end+1 < j.segments[0].first {
				delete(j.endOf, id)
				delete(j.firstOf, id)
			}
		}
	}
	j.mu.Unlock()
	data, err := json.Marshal(head)
	if err != nil {
		return fmt.Errorf("begin a segment of the journal: %w", err)
	}
	record := appendRecord(nil, []byte{kindHeader}, data)
	err = j.config.AsUser(func() error {
		for _, s := range old {
			_ = os.Remove(s.path)
		}
		if err := os.MkdirAll(j.config.Dir, 0o700); err != nil {
			return err
		}
		_ = os.Remove(path)
		file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
		if err != nil {
			return err
		}
		if _, err := file.Write(record); err != nil {
			file.Close()
			_ = os.Remove(path)
			return err
		}
		j.file, j.fileSize, j.fileID = file, int64(len(record)), id
		return syncDir(j.config.Dir)
	})
	if err != nil {
		j.leave()
		return fmt.Errorf("begin a segment of the journal: %w", err)
	}
	j.mu.Lock()
	j.segments = append(j.segments, segment{id: head.ID, first: first, size: j.fileSize, path: path})
	j.mu.Unlock()
	return nil
}

func syncDir(dir string) error {
	file, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(file.Sync(), file.Close())
}

func (j *Journal) leave() {
	if j.file != nil {
		j.file.Close()
		j.file = nil
	}
}

// Reader goes through the entries behind a cursor. It is used by one goroutine; the caller calls Close.
type Reader struct {
	j    *Journal
	next uint64
	gap  bool // before next
	file *os.File
	in   *bufio.Reader
	of   segment
}

// Read makes a reader of what follows a cursor: empty is now, "0" everything that is kept. A cursor of which not everything is kept that followed
// begins with a gap. ok is false for what is no cursor.
func (j *Journal) Read(cursor string) (r *Reader, ok bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	r = &Reader{j: j}
	switch cursor {
	case "":
		r.next = j.last + 1
		return r, true
	case "0":
		r.next = j.oldest()
		return r, true
	}
	id, number, found := strings.Cut(cursor, ".")
	seq, err := strconv.ParseUint(number, 10, 63)
	if !found || err != nil || id == "" {
		return nil, false
	}
	r.next = seq + 1
	end, ended := j.endOf[id]
	if !ended {
		end = j.last
	}
	first, known := j.firstOf[id]
	switch {
	case !known:
		r.gap, r.next = true, j.oldest()
	case seq > end: // it was seen and then lost
		r.gap, r.next = true, end+1
	case seq+1 < first:
		r.gap, r.next = true, first
	}
	return r, true
}

// oldest is the first entry that is kept, or the next one. j.mu is held.
func (j *Journal) oldest() uint64 {
	switch {
	case len(j.segments) > 0:
		return j.segments[0].first
	case len(j.tail) > 0:
		return j.tail[0].Seq
	}
	return j.last + 1
}

// ErrClosed is what readers end with.
var ErrClosed = errors.New("the journal is closed")

// Next gives some entries of what follows, or that there is a gap before them, with the cursor behind it; or a channel that is closed when
// something comes. It waits for the disk at most.
func (r *Reader) Next() (entries []Entry, gap string, wait <-chan struct{}, err error) {
	j := r.j
	for {
		j.mu.Lock()
		if r.gap {
			r.gap = false
			gap = j.cursor(r.next - 1)
			j.mu.Unlock()
			return nil, gap, nil, nil
		}
		if r.next <= j.lost {
			r.next, r.gap = j.lost+1, true
			j.mu.Unlock()
			r.Close()
			continue
		}
		if r.next > j.last {
			wait, closed := j.changed, j.closed
			j.mu.Unlock()
			if closed {
				return nil, "", nil, ErrClosed
			}
			return nil, "", wait, nil
		}
		if len(j.tail) > 0 && r.next >= j.tail[0].Seq {
			at := int(r.next - j.tail[0].Seq)
			size := 0
			for ; at < len(j.tail) && len(entries) < 256 && size < 1<<20; at++ {
				entries = append(entries, j.tail[at])
				size += len(j.tail[at].Data)
			}
			r.next = entries[len(entries)-1].Seq + 1
			j.mu.Unlock()
			r.Close()
			return entries, "", nil, nil
		}
		var in segment
		after := j.last + 1 // what is surely kept behind it
		if len(j.tail) > 0 {
			after = j.tail[0].Seq
		}
		for _, s := range j.segments {
			if s.first <= r.next {
				in = s
			} else {
				after = min(after, s.first)
				break
			}
		}
		j.mu.Unlock()
		entries = r.fromDisk(in, after)
		if len(entries) > 0 && entries[0].Seq == r.next {
			r.next = entries[len(entries)-1].Seq + 1
			return entries, "", nil, nil
		}
		// It is not there: dropped, damaged, or never written.
		if len(entries) > 0 {
			after = entries[0].Seq
		}
		r.Close()
		r.next, r.gap, entries = after, true, nil
	}
}

// fromDisk reads entries from r.next on of a segment, up to after.
func (r *Reader) fromDisk(in segment, after uint64) (entries []Entry) {
	if in.path == "" {
		return nil
	}
	if r.file == nil || r.of.path != in.path {
		r.Close()
		err := r.j.config.AsUser(func() (err error) {
			var head header
			r.file, r.in, head, err = openSegment(in.path)
			if err == nil && (head.First != in.first || head.ID != in.id) {
				err = errTorn
			}
			return err
		})
		r.of = in
		if err != nil {
			r.Close()
			return nil
		}
	}
	size := 0
	for len(entries) < 256 && size < 1<<20 {
		payload, err := readRecord(r.in, max(in.size, 64<<20))
		if err != nil {
			if !errors.Is(err, io.EOF) || len(entries) == 0 {
				r.Close()
			}
			break
		}
		seq, data, ok := splitEntry(payload)
		if !ok || seq < r.next {
			continue
		}
		if seq >= after || len(entries) > 0 && seq != entries[len(entries)-1].Seq+1 {
			r.Close()
			break
		}
		size += len(data)
		entries = append(entries, Entry{Seq: seq, Data: data, Cursor: in.id + "." + strconv.FormatUint(seq, 10)})
	}
	return entries
}

// Close gives the reader's file back.
func (r *Reader) Close() {
	if r.file != nil {
		r.file.Close()
		r.file, r.in = nil, nil
	}
}
