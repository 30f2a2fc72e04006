package agent

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/archive"
	"carrel.dev/carrel/internal/carrel"
)

const (
	uploadPrefix = archive.TempPrefix
	// uploadKept is how long what came of a broken upload is kept after its last byte.
	uploadKept = 24 * time.Hour
	// maxUploads bounds how many uploads with an id are remembered; the oldest is forgotten for a new one, its file stays.
	maxUploads  = 4096
	maxUploadID = 256
	// noFile is the if_match of a file that must not be there.
	noFile = "none"
)

// uploads remembers the uploads that have an id. What came is in a file beside the target whose name follows from the id, so
// that nothing of it is lost with the agent; remembered are who writes to it now, when it is to be removed, and how it ended, for a
// caller who did not hear the answer.
type uploads struct {
	s *fileService

	mu    sync.Mutex // guards known
	known map[string]*upload
}

type upload struct {
	mu     sync.Mutex // held while one piece is written; guards what follows
	writer *writer    // who may write; a newer one has taken over from the others
	done   *carrelv1.FileInfo
	used   time.Time
	expiry *time.Timer
}

func newUploads(s *fileService) *uploads { return &uploads{s: s, known: map[string]*upload{}} }

// get gives the upload of a temporary file's path.
func (u *uploads) get(temp string) *upload {
	u.mu.Lock()
	defer u.mu.Unlock()
	one := u.known[temp]
	if one == nil {
		if len(u.known) >= maxUploads {
			oldest := ""
			for path, other := range u.known {
				if oldest == "" || other.used.Before(u.known[oldest].used) {
					oldest = path
				}
			}
			delete(u.known, oldest)
		}
		one = &upload{}
		u.known[temp] = one
	}
	one.used = u.s.a.now()
	return one
}

// keep removes the file a day from now, unless the upload goes on.
func (u *uploads) keep(temp string, one *upload) {
	if one.expiry != nil {
		one.expiry.Stop()
	}
	one.expiry = time.AfterFunc(uploadKept, func() { u.drop(temp, one) })
}

func (u *uploads) drop(temp string, one *upload) {
	one.mu.Lock()
	defer one.mu.Unlock()
	u.mu.Lock()
	if u.known[temp] == one {
		delete(u.known, temp)
	}
	u.mu.Unlock()
	if one.writer != nil || one.done != nil {
		return
	}
	_ = u.s.a.runAsUser(func() error { return os.Remove(temp) })
}

// writer is one call that writes a file.
type writer struct {
	s       *fileService
	request *carrelv1.WriteFileRequest // the first, without data
	path    string                     // as asked for, with links followed
	dir     *os.Root                   // of the file
	name    string
	temp    string // name in dir
	file    *os.File
	size    int64
	mode    fs.FileMode
	group   int     // to be given to the file, -1: none
	upload  *upload // nil: without an id
}

// Write takes a file. Whatever ends it before the last step leaves the file that was there as it was, and no other one, but for
// what an upload with an id keeps.
func (s *fileService) Write(ctx context.Context, stream *connect.ClientStream[carrelv1.WriteFileRequest]) (*connect.Response[carrelv1.FileInfo], error) {
	if !stream.Receive() {
		if err := stream.Err(); err != nil {
			return nil, err
		}
		return nil, carrel.Errorf(carrel.CodeInvalid, "no_path", "the request names no file")
	}
	w := &writer{s: s, request: stream.Msg(), group: -1}
	data := w.request.GetData()
	if err := s.asUser(ctx, w.open); err != nil {
		w.close()
		return nil, err
	}
	if w.upload != nil {
		if done, err := w.takeOver(); err != nil || done != nil {
			w.close()
			return connect.NewResponse(done), err
		}
	}
	w.request.Data = nil
	err := w.write(data)
	for err == nil && stream.Receive() {
		err = w.write(stream.Msg().GetData())
	}
	if err == nil {
		err = stream.Err()
	}
	var info *carrelv1.FileInfo
	if err == nil {
		info, err = w.end(ctx)
	}
	if err != nil {
		w.abandon(err)
		return nil, err
	}
	w.close()
	return connect.NewResponse(info), nil
}

// open looks at what is there and opens the temporary file. For asUser.
func (w *writer) open() error {
	r := w.request
	path, err := w.s.path(r.GetPath())
	if err != nil {
		return err
	}
	if _, err := fileMode(r.GetMode()); err != nil {
		return err
	}
	switch {
	case len(r.GetUploadId()) > maxUploadID:
		return carrel.Errorf(carrel.CodeInvalid, "bad_upload_id", "the id of the upload is longer than %d bytes", maxUploadID)
	case r.GetUploadId() == "" && (r.GetOffset() != 0 || r.GetPartial()):
		return carrel.Errorf(carrel.CodeInvalid, "no_upload_id", "a file that comes in parts needs an upload_id")
	case r.GetOffset() < 0:
		return carrel.Errorf(carrel.CodeInvalid, "bad_range", "the offset %d is negative", r.GetOffset())
	}
	if w.path, err = followLinks(path); err != nil {
		return err
	}
	if r.GetParents() {
		if err := os.MkdirAll(filepath.Dir(w.path), 0o755); err != nil {
			return fileError("make the directory of", w.path, err)
		}
	}
	w.name = filepath.Base(w.path)
	if w.dir, err = os.OpenRoot(filepath.Dir(w.path)); err != nil {
		return fileError("write", w.path, err)
	}
	if err := w.look(); err != nil {
		return err
	}
	flags := os.O_RDWR | os.O_CREATE | unix.O_NOFOLLOW | unix.O_NONBLOCK
	if r.GetUploadId() == "" {
		w.temp, flags = temporaryName(), flags|os.O_EXCL
	} else {
		w.temp = uploadName(w.name, r.GetUploadId())
	}
	if w.file, err = w.dir.OpenFile(w.temp, flags, 0o600); err != nil {
		return fileError("write", w.path, err)
	}
	if r.GetUploadId() == "" {
		return nil
	}
	info, err := w.file.Stat()
	if err != nil {
		return fileError("write", w.path, err)
	}
	// In a directory that others may write to it could be somebody else's.
	if found, ok := info.Sys().(*syscall.Stat_t); !ok || !info.Mode().IsRegular() || found.Nlink != 1 || found.Uid != uint32(unix.Geteuid()) {
		return carrel.Errorf(carrel.CodeDenied, "upload_taken", "what is kept of the upload to %q is not the box user's own; use another upload_id", shown(w.path))
	}
	w.size = info.Size()
	if w.s.a.now().Sub(info.ModTime()) > uploadKept {
		w.size = 0
	}
	w.upload = w.s.uploads.get(filepath.Join(filepath.Dir(w.path), w.temp))
	return nil
}

func uploadName(name, id string) string {
	sum := sha256.Sum256([]byte(name + "\x00" + id))
	return uploadPrefix + hex.EncodeToString(sum[:16])
}

// followLinks gives what a write to path must replace: links stay, and what they lead to is written, be it there or not.
func followLinks(path string) (string, error) {
	for range maxLinks {
		info, err := os.Lstat(path)
		if errors.Is(err, fs.ErrNotExist) {
			return path, nil
		}
		if err != nil {
			return "", fileError("write", path, err)
		}
		if info.Mode().Type() != fs.ModeSymlink {
			return path, nil
		}
		target, err := os.Readlink(path)
		if err != nil {
			return "", fileError("write", path, err)
		}
		if !filepath.IsAbs(target) {
			dir, err := filepath.EvalSymlinks(filepath.Dir(path))
			if err != nil {
				return "", fileError("write", path, err)
			}
			target = filepath.Join(dir, target)
		}
		path = target
	}
	return "", fileError("write", path, unix.ELOOP)
}

// look checks what is at the path now against what the request expects, and notes what the new file takes from it.
func (w *writer) look() error {
	w.mode = 0o644
	wanted := w.request.GetIfMatch()
	info, err := w.dir.Lstat(w.name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if wanted != "" && wanted != noFile {
			return changed(w.path)
		}
	case err != nil:
		return fileError("write", w.path, err)
	default:
		found, _ := info.Sys().(*syscall.Stat_t)
		switch {
		case wanted == noFile:
			return carrel.Errorf(carrel.CodeAborted, "file_exists", "%q is there already, and the request was to make it only if it is not", shown(w.path))
		case wanted != "" && (found == nil || wanted != etagOf(found)):
			return changed(w.path)
		case !info.Mode().IsRegular():
			return notRegular(w.path, info)
		case found != nil && found.Uid != uint32(unix.Geteuid()) && unix.Geteuid() != 0:
			return carrel.Errorf(carrel.CodeDenied, "file_of_another", "%q belongs to user %d of the box, and replacing it would change that; write it with a command that runs as that user, or remove it first", shown(w.path), found.Uid)
		}
		w.mode = info.Mode().Perm()
		if found != nil && found.Gid != uint32(unix.Getegid()) {
			w.group = int(found.Gid)
		}
	}
	if bits := w.request.GetMode(); bits != 0 {
		w.mode, err = fileMode(bits)
		return err
	}
	return nil
}

func changed(path string) error {
	return carrel.Errorf(carrel.CodeAborted, "file_changed", "%q is not (any more) the file that was to be replaced; look at it again", shown(path))
}

// takeOver makes this call the upload's writer: the one before, whose caller is perhaps gone, writes nothing any more. It gives the
// file if the upload had ended well.
func (w *writer) takeOver() (*carrelv1.FileInfo, error) {
	u := w.upload
	u.mu.Lock()
	defer u.mu.Unlock()
	offset := w.request.GetOffset()
	if u.done != nil && offset > 0 && offset == w.s.finished(w.path, u.done) {
		// The file that was opened is empty and new.
		_ = w.s.a.runAsUser(func() error { return w.dir.Remove(w.temp) })
		return u.done, nil
	}
	u.done = nil
	if u.writer != nil { // it may have written since the look at the file
		if info, err := w.file.Stat(); err == nil {
			w.size = info.Size()
		}
	}
	if offset > w.size {
		e := carrel.Errorf(carrel.CodePrecondition, "upload_offset", "the upload has %d bytes and cannot go on at %d; ask where it ended with StatUpload", w.size, offset)
		e.Metadata = map[string]string{"offset": fmt.Sprint(w.size)}
		return nil, e
	}
	u.writer = w
	if err := w.file.Truncate(offset); err != nil {
		return nil, fileError("write", w.path, err)
	}
	w.size = offset
	w.s.uploads.keep(filepath.Join(filepath.Dir(w.path), w.temp), u)
	return nil, nil
}

// unchanged reports whether at path is what was described. For asUser.
func unchanged(path string, described *carrelv1.FileInfo) bool {
	now, err := stat(path)
	return err == nil && now.GetEtag() == described.GetEtag()
}

// write appends one piece.
func (w *writer) write(data []byte) error {
	if len(data) > maxFileChunk {
		return carrel.Errorf(carrel.CodeInvalid, "chunk_too_large", "%d bytes of data in one message; at most %d are taken", len(data), maxFileChunk)
	}
	if w.upload != nil {
		w.upload.mu.Lock()
		defer w.upload.mu.Unlock()
		if w.upload.writer != w {
			return errTakenOver
		}
	}
	if _, err := w.file.WriteAt(data, w.size); err != nil {
		return fileError("write", w.path, err)
	}
	w.size += int64(len(data))
	return nil
}

var errTakenOver = carrel.Errorf(carrel.CodeAborted, "upload_taken_over", "another call goes on with this upload")

// end puts the file in its place, or keeps the part that came.
func (w *writer) end(ctx context.Context) (*carrelv1.FileInfo, error) {
	if w.upload != nil {
		w.upload.mu.Lock()
		defer w.upload.mu.Unlock()
		if w.upload.writer != w {
			return nil, errTakenOver
		}
	}
	if w.request.GetPartial() {
		w.upload.writer = nil
		return &carrelv1.FileInfo{Path: shown(w.path), Size: w.size}, nil
	}
	if err := w.file.Sync(); err != nil { // long for a large file, and needs no rights
		return nil, fileError("write", w.path, err)
	}
	var info *carrelv1.FileInfo
	err := w.s.asUser(ctx, func() (err error) {
		info, err = w.replace()
		return err
	})
	if err == nil && w.upload != nil {
		w.upload.done, w.upload.writer = info, nil
	}
	return info, err
}

// replace gives the complete file its mode, owner, time and name. For asUser.
func (w *writer) replace() (*carrelv1.FileInfo, error) {
	if err := w.look(); err != nil {
		return nil, err
	}
	if w.group >= 0 {
		// Of a group that the user is not in, it cannot be kept.
		if err := w.file.Chown(-1, w.group); err != nil && !errors.Is(err, unix.EPERM) {
			return nil, fileError("write", w.path, err)
		}
	}
	if err := w.file.Chmod(w.mode); err != nil {
		return nil, fileError("write", w.path, err)
	}
	if t := w.request.GetModifyTime(); t != nil {
		if err := w.dir.Chtimes(w.temp, time.Time{}, t.AsTime()); err != nil {
			return nil, fileError("write", w.path, err)
		}
	}
	if err := w.file.Sync(); err != nil {
		return nil, fileError("write", w.path, err)
	}
	dir, err := w.dir.Open(".")
	if err != nil {
		return nil, fileError("write", w.path, err)
	}
	defer dir.Close()
	if err := rename(dir, w.temp, dir, w.name, w.request.GetIfMatch() == noFile); err != nil {
		if errors.Is(err, unix.EEXIST) && w.request.GetIfMatch() == noFile {
			return nil, carrel.Errorf(carrel.CodeAborted, "file_exists", "%q was made by somebody else meanwhile", shown(w.path))
		}
		return nil, fileError("write", w.path, err)
	}
	if err := dir.Sync(); err != nil && !errors.Is(err, unix.EINVAL) { // some file systems have nothing to sync in a directory
		return nil, fileError("write", w.path, err)
	}
	info, err := w.file.Stat()
	if err != nil {
		return nil, fileError("look at", w.path, err)
	}
	return describe(w.path, info, nil), nil
}

// abandon gives up: what came is kept for an upload with an id whose caller went away, and removed else.
func (w *writer) abandon(cause error) {
	defer w.close()
	keep := w.upload != nil
	if keep {
		w.upload.mu.Lock()
		defer w.upload.mu.Unlock()
		if w.upload.writer != w {
			return // it is another call's now
		}
		w.upload.writer = nil
		// A disk that is full is not kept full.
		keep = carrel.CodeOf(cause) != carrel.CodeExhausted
	}
	if !keep {
		_ = w.s.a.runAsUser(func() error { return w.dir.Remove(w.temp) })
	}
}

func (w *writer) close() {
	if w.file != nil {
		w.file.Close()
	}
	if w.dir != nil {
		w.dir.Close()
	}
}

func (s *fileService) StatUpload(ctx context.Context, request *connect.Request[carrelv1.StatUploadRequest]) (*connect.Response[carrelv1.StatUploadResponse], error) {
	path, err := s.path(request.Msg.GetPath())
	if err != nil {
		return nil, err
	}
	if id := request.Msg.GetUploadId(); id == "" || len(id) > maxUploadID {
		return nil, carrel.Errorf(carrel.CodeInvalid, "bad_upload_id", "the id of an upload has from 1 to %d bytes", maxUploadID)
	}
	temp, size := "", int64(0)
	err = s.asUser(ctx, func() error {
		if path, err = followLinks(path); err != nil {
			return err
		}
		temp = filepath.Join(filepath.Dir(path), uploadName(filepath.Base(path), request.Msg.GetUploadId()))
		info, err := os.Lstat(temp)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil
		case err != nil:
			return fileError("look at", path, err)
		case info.Mode().IsRegular() && s.a.now().Sub(info.ModTime()) <= uploadKept:
			size = info.Size()
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	s.uploads.mu.Lock()
	known := s.uploads.known[temp]
	s.uploads.mu.Unlock()
	if known == nil {
		return connect.NewResponse(&carrelv1.StatUploadResponse{Offset: size}), nil
	}
	// An upload that is being put in place holds this until it is: its end is what the caller wants to know.
	known.mu.Lock()
	done := known.done
	known.mu.Unlock()
	if done == nil {
		return connect.NewResponse(&carrelv1.StatUploadResponse{Offset: size}), nil
	}
	return connect.NewResponse(&carrelv1.StatUploadResponse{Offset: s.finished(path, done)}), nil
}

// finished gives the size of a file that an upload ended with, 0 if it was changed since.
func (s *fileService) finished(path string, done *carrelv1.FileInfo) int64 {
	same := false
	_ = s.a.runAsUser(func() error {
		same = unchanged(path, done)
		return nil
	})
	if !same {
		return 0
	}
	return done.GetSize()
}

// rename moves within a file system. With exclusive it fails with EEXIST when there is something at the new name.
func rename(fromDir *os.File, from string, toDir *os.File, to string, exclusive bool) error {
	return renameAt(int(fromDir.Fd()), from, int(toDir.Fd()), to, exclusive)
}

// renameAt is rename by descriptors of directories; AT_FDCWD for paths.
func renameAt(fromDir int, from string, toDir int, to string, exclusive bool) error {
	if !exclusive {
		return unix.Renameat(fromDir, from, toDir, to)
	}
	err := unix.Renameat2(fromDir, from, toDir, to, unix.RENAME_NOREPLACE)
	if !errors.Is(err, unix.EINVAL) {
		return err
	}
	return renameByLink(fromDir, from, toDir, to)
}

// renameByLink is an exclusive rename where the file system has none, as gVisor's of homes, which others than the sandbox may change.
func renameByLink(fromDir int, from string, toDir int, to string) error {
	var info unix.Stat_t
	if err := unix.Fstatat(fromDir, from, &info, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if info.Mode&unix.S_IFMT != unix.S_IFDIR {
		// A second name is never made over something, and is as good as the first.
		if err := unix.Linkat(fromDir, from, toDir, to, 0); err != nil {
			return err
		}
		return unix.Unlinkat(fromDir, from, 0)
	}
	// Directories have no second name. What comes between this look and the move can only be an empty directory: others are not replaced by one.
	if err := unix.Fstatat(toDir, to, &info, unix.AT_SYMLINK_NOFOLLOW); err == nil {
		return unix.EEXIST
	} else if !errors.Is(err, unix.ENOENT) {
		return err
	}
	return unix.Renameat(fromDir, from, toDir, to)
}
