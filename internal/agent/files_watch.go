package agent

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/carrel"
)

const (
	// maxWatches bounds how many watchers there are at once, maxWatchedDirs how many directories each looks at.
	maxWatches     = 64
	maxWatchedDirs = 8192
	// maxWaitingEvents are kept for a caller who does not read; then they become one overflow.
	maxWaitingEvents = 1024
	watchMask        = unix.IN_CREATE | unix.IN_MODIFY | unix.IN_CLOSE_WRITE | unix.IN_ATTRIB | unix.IN_DELETE | unix.IN_MOVED_FROM | unix.IN_MOVED_TO |
		unix.IN_DELETE_SELF | unix.IN_MOVE_SELF | unix.IN_ONLYDIR | unix.IN_EXCL_UNLINK
)

// eventQueue holds events for a caller. It waits for nobody, because the kernel's own queue has no bound in a sandbox.
type eventQueue struct {
	mu     sync.Mutex // guards what follows
	events []*carrelv1.FileEvent
	lost   bool
	err    error // why no more come
	wake   chan struct{}
}

func (q *eventQueue) put(kind, path string) {
	text := carrel.EncodeFileName(path)
	q.mu.Lock()
	defer q.mu.Unlock()
	if n := len(q.events); n > 0 && q.events[n-1].GetKind() == kind && q.events[n-1].GetPath() == text {
		return
	}
	if len(q.events) >= maxWaitingEvents {
		q.events, q.lost = q.events[:0], true
	}
	if !q.lost {
		q.events = append(q.events, &carrelv1.FileEvent{Kind: kind, Path: text})
	}
	q.signal()
}

func (q *eventQueue) overflow() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.events, q.lost = q.events[:0], true
	q.signal()
}

func (q *eventQueue) end(err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.err == nil {
		q.err = err
	}
	q.signal()
}

func (q *eventQueue) signal() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// take gives what is there, and after it the error that ends everything.
func (q *eventQueue) take(root string) ([]*carrelv1.FileEvent, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	events := q.events
	q.events = nil
	if q.lost {
		events, q.lost = []*carrelv1.FileEvent{{Kind: "overflow", Path: carrel.EncodeFileName(root)}}, false
	}
	if len(events) > 0 {
		return events, nil
	}
	return nil, q.err
}

// watcher follows one path with inotify, which gVisor has for all its file systems. Its goroutine owns everything but the queue.
type watcher struct {
	s         *fileService
	ctx       context.Context
	root      string // the directory
	only      string // the one name in it that is asked for; empty: all
	recursive bool
	file      *os.File
	dirs      map[int32]string // by watch descriptor
	queue     eventQueue
}

var errWatchedGone = errors.New("what was watched is gone")

// Watch tells of changes. It ends by itself when what is watched was removed or moved away.
func (s *fileService) Watch(ctx context.Context, request *connect.Request[carrelv1.WatchFilesRequest], stream *connect.ServerStream[carrelv1.FileEvent]) error {
	path, err := s.path(request.Msg.GetPath())
	if err != nil {
		return err
	}
	if !s.watches.enter() {
		return carrel.Errorf(carrel.CodeExhausted, "too_many_watches", "the box's files are watched by %d already; end one", maxWatches)
	}
	defer s.watches.leave()
	fd, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
	if err != nil {
		return fileError("watch", path, err)
	}
	w := &watcher{s: s, ctx: ctx, root: path, recursive: request.Msg.GetRecursive(), file: os.NewFile(uintptr(fd), "inotify"), dirs: map[int32]string{}}
	w.queue.wake = make(chan struct{}, 1)
	defer w.file.Close()
	if err := s.asUser(ctx, w.begin); err != nil {
		return err
	}
	var reading sync.WaitGroup
	reading.Go(func() { w.queue.end(w.read()) })
	defer reading.Wait()
	defer w.file.Close() // ends the read
	if err := stream.Send(&carrelv1.FileEvent{Kind: "ready", Path: carrel.EncodeFileName(path)}); err != nil {
		return err
	}
	for {
		events, err := w.queue.take(path)
		for _, event := range events {
			if err := stream.Send(event); err != nil {
				return err
			}
		}
		if errors.Is(err, errWatchedGone) {
			return nil
		}
		if err != nil {
			return fileError("watch", path, err)
		}
		if len(events) > 0 {
			continue
		}
		select {
		case <-w.queue.wake:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// begin puts the first watches. For asUser.
func (w *watcher) begin() error {
	info, err := os.Lstat(w.root)
	if err != nil {
		return fileError("watch", w.root, err)
	}
	if !info.IsDir() { // by its directory, so that it may be replaced
		w.only, w.root, w.recursive = filepath.Base(w.root), filepath.Dir(w.root), false
	}
	return fileError("watch", w.root, w.add(w.root, false))
}

// add watches a directory, and with recursive those below it. tell makes events of what is found, because it may have been made
// before the watch. For asUser.
func (w *watcher) add(path string, tell bool) error {
	if !w.recursive {
		return w.watch(path)
	}
	return filepath.WalkDir(path, func(at string, entry fs.DirEntry, err error) error {
		if err == nil && tell && at != path {
			w.queue.put("created", at)
		}
		if err == nil && entry.IsDir() {
			err = w.watch(at)
		}
		if err != nil && at == path && !tell {
			return err
		}
		var own *carrel.Error
		if errors.As(err, &own) {
			return err
		}
		if err != nil && entry != nil && entry.IsDir() {
			return fs.SkipDir // it went away, or the user may not look into it
		}
		return nil
	})
}

func (w *watcher) watch(path string) error {
	if len(w.dirs) >= maxWatchedDirs {
		return carrel.Errorf(carrel.CodeExhausted, "too_many_directories", "there are more than %d directories to watch; watch a smaller part", maxWatchedDirs)
	}
	raw, err := w.file.SyscallConn()
	if err != nil {
		return err
	}
	var number int
	var addErr error
	if err := raw.Control(func(fd uintptr) { number, addErr = unix.InotifyAddWatch(int(fd), path, watchMask) }); err != nil {
		return err
	}
	if addErr == nil {
		w.dirs[int32(number)] = path
	}
	return addErr
}

// forget ends the watches of a directory that has another path now, and of those below it.
func (w *watcher) forget(path string) {
	raw, err := w.file.SyscallConn()
	if err != nil {
		return
	}
	for number, dir := range w.dirs {
		if dir == path || strings.HasPrefix(dir, path+"/") {
			delete(w.dirs, number)
			_ = raw.Control(func(fd uintptr) { _, _ = unix.InotifyRmWatch(int(fd), uint32(number)) })
		}
	}
}

// read takes events from the kernel until the end.
func (w *watcher) read() error {
	buf := make([]byte, 64<<10)
	for {
		n, err := w.file.Read(buf)
		if err != nil {
			if w.ctx.Err() != nil {
				return w.ctx.Err()
			}
			return err
		}
		for rest := buf[:n]; len(rest) >= unix.SizeofInotifyEvent; {
			number := int32(binary.NativeEndian.Uint32(rest))
			mask := binary.NativeEndian.Uint32(rest[4:])
			size := int(binary.NativeEndian.Uint32(rest[12:]))
			if size > len(rest)-unix.SizeofInotifyEvent {
				break
			}
			name, _, _ := bytes.Cut(rest[unix.SizeofInotifyEvent:unix.SizeofInotifyEvent+size], []byte{0})
			rest = rest[unix.SizeofInotifyEvent+size:]
			if err := w.event(number, mask, string(name)); err != nil {
				return err
			}
		}
	}
}

func (w *watcher) event(number int32, mask uint32, name string) error {
	if mask&unix.IN_Q_OVERFLOW != 0 {
		w.queue.overflow()
		return nil
	}
	dir, ok := w.dirs[number]
	if !ok {
		return nil
	}
	if mask&unix.IN_IGNORED != 0 {
		delete(w.dirs, number)
		return nil
	}
	if mask&(unix.IN_DELETE_SELF|unix.IN_MOVE_SELF|unix.IN_UNMOUNT) != 0 {
		if dir != w.root {
			return nil // its directory tells
		}
		w.queue.put("removed", dir)
		return errWatchedGone
	}
	if w.only != "" && name != w.only || strings.HasPrefix(name, uploadPrefix) && mask&unix.IN_MOVED_TO == 0 {
		return nil
	}
	path := dir
	if name != "" {
		path = filepath.Join(dir, name)
	}
	isDir := mask&unix.IN_ISDIR != 0
	switch {
	case mask&(unix.IN_CREATE|unix.IN_MOVED_TO) != 0:
		w.queue.put("created", path)
		if isDir && w.recursive {
			return w.s.asUser(w.ctx, func() error { return w.add(path, true) })
		}
	case mask&(unix.IN_MODIFY|unix.IN_CLOSE_WRITE) != 0:
		w.queue.put("written", path)
	case mask&unix.IN_ATTRIB != 0:
		w.queue.put("attributes", path)
	case mask&unix.IN_DELETE != 0:
		w.queue.put("removed", path)
	case mask&unix.IN_MOVED_FROM != 0:
		w.queue.put("moved", path)
		if isDir {
			w.forget(path)
		}
	}
	return nil
}

// slots counts what is under way, up to a bound. It is safe for concurrent use.
type slots chan struct{}

func (s slots) enter() bool {
	select {
	case s <- struct{}{}:
		return true
	default:
		return false
	}
}

func (s slots) leave() { <-s }
