package agent

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"syscall"
	"unsafe"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/timestamppb"

	"carrel.dev/carrel/api/carrel/agent/v1/agentv1connect"
	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/carrel"
)

const (
	// fileChunk is how much of a file is read and sent at once, in bytes.
	fileChunk = 512 << 10
	// maxFileChunk is the most data in one message of an upload, in bytes.
	maxFileChunk = 1 << 20
	// maxFileCalls and maxArchives bound the threads that work with the user's rights at once. An archive keeps one as long as its
	// caller takes, so that these have a bound of their own.
	maxFileCalls = 32
	maxArchives  = 16
	maxLinks     = 40 // that are followed to a file, as the kernel does
)

// fileService reads and writes files with the rights of the box's user, although the agent is root. Each call that touches
// a path does so on a thread of its own whose effective ids are the user's (asUser). That was chosen over a helper process
// that runs as the user: the kernel checks the same credentials either way, but a helper is another program in a box of perhaps
// 64 MB, must be started and restarted, could be killed, stopped and traced by the user whom it serves, is counted as something that
// runs, and each byte of content would be copied through one more socket, which costs most in a sandbox. A
// thread is made in about 50 µs and ends with its call. The price is that code in a call must not touch a path outside of
// asUser; content is read and written through files that were opened inside it, which needs no rights any more.
//
// Paths are absolute or relative to the user's home; "." and ".." in them are taken by the text, before any link is followed.
type fileService struct {
	agentv1connect.UnimplementedFileServiceHandler
	a        *Agent
	calls    chan struct{} // a place for each call under way
	archives slots
	watches  slots
	uploads  *uploads
}

func newFileService(a *Agent) *fileService {
	s := &fileService{a: a, calls: make(chan struct{}, maxFileCalls), archives: make(slots, maxArchives), watches: make(slots, maxWatches)}
	s.uploads = newUploads(s)
	return s
}

// asUser runs f on a thread with the rights of the box's user and none of root's: the effective user and group, which are those that
// files are looked up with, and the groups of the user in the box. It waits for a place first.
func (s *fileService) asUser(ctx context.Context, f func() error) error {
	select {
	case s.calls <- struct{}{}:
		defer func() { <-s.calls }()
	case <-ctx.Done():
		return ctx.Err()
	}
	return s.a.runAsUser(f)
}

// withArchive is asUser for something that may take as long as its caller likes.
func (s *fileService) withArchive(f func() error) error {
	if !s.archives.enter() {
		return carrel.Errorf(carrel.CodeExhausted, "too_many_archives", "%d archives are being made or unpacked in the box already; wait for one to end", maxArchives)
	}
	defer s.archives.leave()
	return s.a.runAsUser(f)
}

func (a *Agent) runAsUser(f func() error) (err error) {
	result := make(chan error, 1)
	go func() {
		defer func() {
			if reason := recover(); reason != nil {
				a.log.Error("a file call panicked", "reason", fmt.Sprint(reason), "stack", string(debug.Stack()))
				result <- carrel.Errorf(carrel.CodeInternal, "internal", "internal error of the box's agent; its log says more")
			}
		}()
		if unix.Geteuid() == 0 {
			who, err := lookupUser(a.config.Root, boxUser)
			if err != nil {
				result <- err
				return
			}
			runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
			if err := takeRights(who); err != nil {
				result <- err
				return
			}
		}
		result <- f()
	}()
	return <-result
}

// takeRights gives the thread a user's effective ids and groups. The kernel takes root's capabilities from it with that. The real
// ids stay root's, so that the user can neither signal nor trace it.
func takeRights(who account) error {
	groups := who.groups
	if len(groups) == 0 {
		groups = []uint32{who.gid}
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(groups)), uintptr(unsafe.Pointer(&groups[0])), 0); errno != 0 {
		return fmt.Errorf("take the groups of the box's user: %w", errno)
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESGID, ^uintptr(0), uintptr(who.gid), ^uintptr(0)); errno != 0 {
		return fmt.Errorf("take the group of the box's user: %w", errno)
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, ^uintptr(0), uintptr(who.uid), ^uintptr(0)); errno != 0 {
		return fmt.Errorf("become the box's user: %w", errno)
	}
	return nil
}

// path makes a path of what a request has.
func (s *fileService) path(text string) (string, error) {
	p := carrel.DecodeFileName(text)
	switch {
	case p == "":
		return "", carrel.Errorf(carrel.CodeInvalid, "no_path", "the request names no file")
	case strings.ContainsRune(p, 0):
		return "", carrel.Errorf(carrel.CodeInvalid, "bad_path", "the path has a zero byte")
	case len(p) >= unix.PathMax:
		return "", carrel.Errorf(carrel.CodeInvalid, "bad_path", "the path is longer than %d bytes", unix.PathMax-1)
	}
	if !filepath.IsAbs(p) {
		p = filepath.Join(s.a.config.Home, p)
	}
	return filepath.Clean(p), nil
}

// describe makes a FileInfo. link is asked only for symbolic links.
func describe(path string, info fs.FileInfo, link func() (string, error)) *carrelv1.FileInfo {
	d := &carrelv1.FileInfo{
		Path: carrel.EncodeFileName(path), Type: "other", Size: info.Size(), Mode: modeBits(info.Mode()),
		ModifyTime: timestamppb.New(info.ModTime()),
	}
	switch info.Mode().Type() {
	case 0:
		d.Type = "file"
	case fs.ModeDir:
		d.Type = "directory"
	case fs.ModeSymlink:
		d.Type = "symlink"
		if target, err := link(); err == nil {
			d.Target = carrel.EncodeFileName(target)
		}
	}
	if stat, ok := info.Sys().(*syscall.Stat_t); ok {
		d.Uid, d.Gid = stat.Uid, stat.Gid
		d.Etag = etagOf(stat)
	}
	return d
}

// etagOf changes with every change of a file that the file system notices: content, name's target, mode, owner. It may
// change too when the box comes back from a snapshot.
func etagOf(stat *syscall.Stat_t) string {
	hash := fnv.New128a()
	_, _ = fmt.Fprintf(hash, "%d %d %d %d %d", stat.Ino, stat.Size, stat.Mtim.Nano(), stat.Ctim.Nano(), stat.Mode)
	return hex.EncodeToString(hash.Sum(nil))
}

func modeBits(mode fs.FileMode) uint32 {
	bits := uint32(mode.Perm())
	for _, special := range []struct {
		mode fs.FileMode
		bit  uint32
	}{{fs.ModeSetuid, unix.S_ISUID}, {fs.ModeSetgid, unix.S_ISGID}, {fs.ModeSticky, unix.S_ISVTX}} {
		if mode&special.mode != 0 {
			bits |= special.bit
		}
	}
	return bits
}

func fileMode(bits uint32) (fs.FileMode, error) {
	if bits > 0o7777 {
		return 0, carrel.Errorf(carrel.CodeInvalid, "bad_mode", "the mode %o is no mode; it has at most the bits 7777 (octal)", bits)
	}
	mode := fs.FileMode(bits & 0o777)
	if bits&unix.S_ISUID != 0 {
		mode |= fs.ModeSetuid
	}
	if bits&unix.S_ISGID != 0 {
		mode |= fs.ModeSetgid
	}
	if bits&unix.S_ISVTX != 0 {
		mode |= fs.ModeSticky
	}
	return mode, nil
}

// isDirectoryPath reports whether a path says that it is a directory's, by a slash at its end: then a link is followed, as
// everywhere.
func isDirectoryPath(text string) bool {
	return strings.HasSuffix(text, "/") || strings.HasSuffix(text, "/.")
}

// statAs describes what a request means by a path. For asUser.
func statAs(text, path string) (*carrelv1.FileInfo, error) {
	if !isDirectoryPath(text) {
		return stat(path)
	}
	info, err := os.Stat(path + "/")
	if err != nil {
		return nil, fileError("look at", path, err)
	}
	return describe(path, info, nil), nil
}

// stat describes what is at a path itself; links are not followed. For asUser.
func stat(path string) (*carrelv1.FileInfo, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return nil, fileError("look at", path, err)
	}
	return describe(path, info, func() (string, error) { return os.Readlink(path) }), nil
}

func (s *fileService) Stat(ctx context.Context, request *connect.Request[carrelv1.StatFileRequest]) (*connect.Response[carrelv1.FileInfo], error) {
	path, err := s.path(request.Msg.GetPath())
	if err != nil {
		return nil, err
	}
	return s.answer(ctx, func() (*carrelv1.FileInfo, error) { return statAs(request.Msg.GetPath(), path) })
}

// answer runs f as the user and answers with what it found.
func (s *fileService) answer(ctx context.Context, f func() (*carrelv1.FileInfo, error)) (*connect.Response[carrelv1.FileInfo], error) {
	var found *carrelv1.FileInfo
	err := s.asUser(ctx, func() (err error) {
		found, err = f()
		return err
	})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(found), nil
}

// Read sends what a file has between its open and its end; a file that is written meanwhile is sent as it is read.
func (s *fileService) Read(ctx context.Context, request *connect.Request[carrelv1.ReadFileRequest], stream *connect.ServerStream[carrelv1.FileChunk]) error {
	offset, length := request.Msg.GetOffset(), request.Msg.GetLength()
	if offset < 0 || length < 0 {
		return carrel.Errorf(carrel.CodeInvalid, "bad_range", "the range from %d of %d bytes is no range", offset, length)
	}
	path, err := s.path(request.Msg.GetPath())
	if err != nil {
		return err
	}
	var file *os.File
	if err := s.asUser(ctx, func() (err error) {
		file, err = openToRead(path)
		return err
	}); err != nil {
		return err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return fileError("read", path, err)
	}
	first := describe(path, info, nil)
	if offset > info.Size() {
		e := carrel.Errorf(carrel.CodeInvalid, "bad_range", "the range begins at byte %d of %q, which has %d", offset, path, info.Size())
		e.Metadata = map[string]string{"size": fmt.Sprint(info.Size())}
		return e
	}
	if length == 0 {
		length = 1<<63 - 1 - offset
	}
	if first.GetSize() > 0 { // files of /proc have no size and yet content
		length = min(length, first.GetSize()-offset)
	}
	section := io.NewSectionReader(file, offset, length)
	buf := make([]byte, min(fileChunk, max(length, 1)))
	chunk := &carrelv1.FileChunk{Info: first}
	for {
		n, err := io.ReadFull(section, buf)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if n > 0 || chunk.Info != nil {
			chunk.Data = buf[:n]
			if err := stream.Send(chunk); err != nil {
				return err
			}
			chunk.Info = nil
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return nil
		}
		if err != nil {
			return fileError("read", path, err)
		}
	}
}

// openToRead opens a file, through links; what could keep the reader waiting is no file. For asUser.
func openToRead(path string) (*os.File, error) {
	file, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fileError("read", path, err)
	}
	info, err := file.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = notRegular(path, info)
	}
	if err != nil {
		file.Close()
		return nil, fileError("read", path, err)
	}
	return file, nil
}

func notRegular(path string, info fs.FileInfo) error {
	if info.IsDir() {
		return carrel.Errorf(carrel.CodePrecondition, "is_directory", "%q is a directory; use an archive for directories", shown(path))
	}
	return carrel.Errorf(carrel.CodePrecondition, "not_a_file", "%q is a device, socket or pipe, which has no content to copy", shown(path))
}

// shown is a path in a message.
func shown(path string) string { return carrel.EncodeFileName(path) }

// temporaryName is the name of a file that is not complete yet and that nobody asks for again.
func temporaryName() string { return uploadPrefix + rand.Text() }
