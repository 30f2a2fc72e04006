package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/timestamppb"

	"carrel.dev/carrel/api/carrel/agent/v1/agentv1connect"
	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/carrel"
)

// fileBox is a box with a client of its files. Its home belongs to the box's user, as in a real one.
type fileBox struct {
	*box
	files agentv1connect.FileServiceClient
	home  string
}

func startFileBox(t *testing.T) *fileBox {
	t.Helper()
	b := &fileBox{box: startBox(t)}
	b.home = b.config.Home
	if os.Geteuid() == 0 {
		require.NoError(t, os.Chown(b.home, boxUID, boxUID))
	}
	require.NoError(t, os.Chmod(b.home, 0o755))
	transport := &http.Transport{
		Protocols: new(http.Protocols),
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialTarget(ctx, b.Addr().String(), b.identity.Key, "agent")
		},
	}
	transport.Protocols.SetUnencryptedHTTP2(true)
	t.Cleanup(transport.CloseIdleConnections)
	b.files = agentv1connect.NewFileServiceClient(&http.Client{Transport: transport}, "http://box")
	return b
}

func (b *fileBox) at(name string) string { return filepath.Join(b.home, name) }

// put makes a file as the box's user would.
func (b *fileBox) put(name, content string) {
	b.t.Helper()
	require.NoError(b.t, os.WriteFile(b.at(name), []byte(content), 0o644))
	b.give(name)
}

func (b *fileBox) give(name string) {
	if os.Geteuid() == 0 {
		require.NoError(b.t, os.Lchown(b.at(name), boxUID, boxUID))
	}
}

func (b *fileBox) mkdir(name string) {
	b.t.Helper()
	require.NoError(b.t, os.Mkdir(b.at(name), 0o755))
	b.give(name)
}

func (b *fileBox) content(name string) string {
	b.t.Helper()
	data, err := os.ReadFile(b.at(name))
	require.NoError(b.t, err)
	return string(data)
}

// write sends a file in pieces.
func (b *fileBox) write(first *carrelv1.WriteFileRequest, pieces ...string) (*carrelv1.FileInfo, error) {
	stream := b.files.Write(b.t.Context())
	_ = stream.Send(first)
	for _, piece := range pieces {
		if err := stream.Send(&carrelv1.WriteFileRequest{Data: []byte(piece)}); err != nil {
			break
		}
	}
	response, err := stream.CloseAndReceive()
	if err != nil {
		return nil, err
	}
	return response.Msg, nil
}

// breakOff sends pieces and goes away.
func (b *fileBox) breakOff(first *carrelv1.WriteFileRequest, pieces ...string) {
	b.t.Helper()
	ctx, cancel := context.WithCancel(b.t.Context())
	stream := b.files.Write(ctx)
	require.NoError(b.t, stream.Send(first))
	sent := first.GetOffset()
	for _, piece := range pieces {
		require.NoError(b.t, stream.Send(&carrelv1.WriteFileRequest{Data: []byte(piece)}))
		sent += int64(len(piece))
	}
	if first.GetUploadId() != "" {
		b.eventually(func() bool { return b.kept(first.GetPath(), first.GetUploadId()) == sent })
	}
	cancel() // and not CloseAndReceive, which would say that this was all
}

func (b *fileBox) eventually(condition func() bool) {
	b.t.Helper()
	require.Eventually(b.t, condition, patience, 2*time.Millisecond)
}

func (b *fileBox) kept(path, id string) int64 {
	response, err := b.files.StatUpload(b.t.Context(), connect.NewRequest(&carrelv1.StatUploadRequest{Path: path, UploadId: id}))
	require.NoError(b.t, err)
	return response.Msg.GetOffset()
}

func (b *fileBox) read(request *carrelv1.ReadFileRequest) (string, *carrelv1.FileInfo, error) {
	stream, err := b.files.Read(b.t.Context(), connect.NewRequest(request))
	require.NoError(b.t, err)
	defer stream.Close()
	var content bytes.Buffer
	var info *carrelv1.FileInfo
	for stream.Receive() {
		if stream.Msg().GetInfo() != nil {
			info = stream.Msg().GetInfo()
		}
		content.Write(stream.Msg().GetData())
	}
	return content.String(), info, stream.Err()
}

func (b *fileBox) stat(path string) (*carrelv1.FileInfo, error) {
	response, err := b.files.Stat(b.t.Context(), connect.NewRequest(&carrelv1.StatFileRequest{Path: path}))
	if err != nil {
		return nil, err
	}
	return response.Msg, nil
}

// leftovers are files that are not complete.
func (b *fileBox) leftovers() (found []string) {
	require.NoError(b.t, filepath.WalkDir(b.home, func(path string, _ os.DirEntry, err error) error {
		if strings.HasPrefix(filepath.Base(path), uploadPrefix) {
			found = append(found, path)
		}
		return err
	}))
	return found
}

func requireReason(t *testing.T, err error, code carrel.Code, want string) {
	t.Helper()
	require.Error(t, err)
	require.Equal(t, connect.Code(code), connect.CodeOf(err), "%v", err)
	require.Equal(t, want, reason(t, err), "%v", err)
}

func requireRoot(t *testing.T) {
	t.Helper()
	require.Zero(t, os.Geteuid(), "this test needs root")
}

func TestFilesAreWrittenReadAndDescribed(t *testing.T) {
	b := startFileBox(t)
	when := time.Date(2020, 1, 2, 3, 4, 5, 678, time.UTC)
	info, err := b.write(&carrelv1.WriteFileRequest{Path: "a/b/c.txt", Parents: true, Mode: 0o4750, ModifyTime: timestamppb.New(when), Data: []byte("one ")}, "two ", "three")
	require.NoError(t, err)
	require.Equal(t, b.at("a/b/c.txt"), info.GetPath())
	require.EqualValues(t, 0o4750, info.GetMode())
	require.EqualValues(t, boxUID, info.GetUid())
	require.Equal(t, when, info.GetModifyTime().AsTime())
	require.EqualValues(t, 13, info.GetSize())
	require.Equal(t, "one two three", b.content("a/b/c.txt"))

	again, err := b.stat("a/b/../b/c.txt")
	require.NoError(t, err)
	require.Equal(t, info.GetEtag(), again.GetEtag())
	content, found, err := b.read(&carrelv1.ReadFileRequest{Path: "a/b/c.txt", Offset: 4, Length: 3})
	require.NoError(t, err)
	require.Equal(t, "two", content)
	require.Equal(t, again.GetEtag(), found.GetEtag())
	content, _, err = b.read(&carrelv1.ReadFileRequest{Path: b.at("a/b/c.txt"), Offset: 8})
	require.NoError(t, err)
	require.Equal(t, "three", content)
	_, _, err = b.read(&carrelv1.ReadFileRequest{Path: "a/b/c.txt", Offset: 14})
	requireReason(t, err, carrel.CodeInvalid, "bad_range")
	content, _, err = b.read(&carrelv1.ReadFileRequest{Path: "/proc/self/status"})
	require.NoError(t, err)
	require.Contains(t, content, "Uid:", "files without a size have content too")
}

func TestAReplacedFileKeepsItsModeAndALinkStaysOne(t *testing.T) {
	b := startFileBox(t)
	b.put("real", "old")
	require.NoError(t, os.Chmod(b.at("real"), 0o640))
	b.mkdir("d")
	require.NoError(t, os.Symlink("../real", b.at("d/link")))
	require.NoError(t, os.Symlink("fresh", b.at("dangling")))
	info, err := b.write(&carrelv1.WriteFileRequest{Path: "d/link", Data: []byte("new")})
	require.NoError(t, err)
	require.EqualValues(t, 0o640, info.GetMode())
	require.Equal(t, "new", b.content("real"))
	link, err := b.stat("d/link")
	require.NoError(t, err)
	require.Equal(t, "symlink", link.GetType())
	require.Equal(t, "../real", link.GetTarget())
	require.NoError(t, os.Symlink("d", b.at("todir")))
	for path, kind := range map[string]string{"todir": "symlink", "todir/": "directory", "todir/.": "directory", "d/link": "symlink"} {
		info, err := b.stat(path)
		require.NoError(t, err)
		require.Equal(t, kind, info.GetType(), path)
	}
	_, err = b.stat("d/link/")
	requireReason(t, err, carrel.CodePrecondition, "not_a_directory")
	_, err = b.write(&carrelv1.WriteFileRequest{Path: "dangling", Data: []byte("x")})
	require.NoError(t, err)
	require.Equal(t, "x", b.content("fresh"))
	require.NoError(t, os.Symlink("loop", b.at("loop")))
	_, err = b.write(&carrelv1.WriteFileRequest{Path: "loop"})
	requireReason(t, err, carrel.CodeInvalid, "too_many_links")
	require.Empty(t, b.leftovers())
}

func TestAReplacedFileKeepsItsGroup(t *testing.T) {
	requireRoot(t)
	b := startFileBox(t)
	require.NoError(t, os.MkdirAll(filepath.Join(b.dir, "etc"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(b.dir, "etc/group"), []byte("staff:x:4321:carrel\n"), 0o644))
	b.put("f", "old")
	require.NoError(t, os.Chown(b.at("f"), boxUID, 4321))
	info, err := b.write(&carrelv1.WriteFileRequest{Path: "f", Data: []byte("new")})
	require.NoError(t, err)
	require.EqualValues(t, 4321, info.GetGid())
}

func TestFilesAreThoseThatTheUserMayTouch(t *testing.T) {
	requireRoot(t)
	b := startFileBox(t)
	require.NoError(t, os.WriteFile(b.at("secret"), []byte("root's"), 0o600))
	require.NoError(t, os.Mkdir(b.at("closed"), 0o700))
	require.NoError(t, os.Symlink(b.at("secret"), b.at("link")))
	for _, path := range []string{"secret", "link"} {
		_, _, err := b.read(&carrelv1.ReadFileRequest{Path: path})
		requireReason(t, err, carrel.CodeDenied, "file_denied")
		_, err = b.write(&carrelv1.WriteFileRequest{Path: path, Data: []byte("x")})
		requireReason(t, err, carrel.CodeDenied, "file_of_another")
	}
	_, err := b.write(&carrelv1.WriteFileRequest{Path: "closed/x"})
	requireReason(t, err, carrel.CodeDenied, "file_denied")
	_, err = b.stat("closed/x")
	requireReason(t, err, carrel.CodeDenied, "file_denied")
	_, err = b.files.List(t.Context(), connect.NewRequest(&carrelv1.ListFilesRequest{Path: "closed"}))
	requireReason(t, err, carrel.CodeDenied, "file_denied")
	for _, path := range []string{"/etc/carrel-test", "/root/carrel-test"} {
		_, err = b.write(&carrelv1.WriteFileRequest{Path: path})
		requireReason(t, err, carrel.CodeDenied, "file_denied")
		require.NoFileExists(t, path)
	}
	_, err = b.files.Move(t.Context(), connect.NewRequest(&carrelv1.MoveFileRequest{Source: "/etc/passwd", Destination: "mine"}))
	require.Error(t, err)
	_, err = b.files.Copy(t.Context(), connect.NewRequest(&carrelv1.CopyFileRequest{Source: "/etc/shadow", Destination: "mine"}))
	requireReason(t, err, carrel.CodeDenied, "file_denied")
	_, err = b.files.Remove(t.Context(), connect.NewRequest(&carrelv1.RemoveFileRequest{Path: "/etc/passwd"}))
	requireReason(t, err, carrel.CodeDenied, "file_denied")
	_, err = b.archive("/root")
	requireReason(t, err, carrel.CodeDenied, "file_denied")
	watch, err := b.files.Watch(t.Context(), connect.NewRequest(&carrelv1.WatchFilesRequest{Path: "closed"}))
	require.NoError(t, err)
	require.False(t, watch.Receive())
	requireReason(t, watch.Err(), carrel.CodeDenied, "file_denied")
	watch.Close()
	require.Equal(t, "root's", b.content("secret"))
	require.Zero(t, os.Geteuid(), "the agent itself stays root")
}

func TestABrokenUploadGoesOn(t *testing.T) {
	b := startFileBox(t)
	b.put("f", "old")
	first := &carrelv1.WriteFileRequest{Path: "f", UploadId: "u1"}
	b.breakOff(first, "one ", "two ")
	require.EqualValues(t, 8, b.kept("f", "u1"))
	require.Equal(t, "old", b.content("f"), "the file is as it was")
	_, err := b.write(&carrelv1.WriteFileRequest{Path: "f", UploadId: "u1", Offset: 9})
	requireReason(t, err, carrel.CodePrecondition, "upload_offset")
	// An offset before the end says that what came later is not trusted.
	info, err := b.write(&carrelv1.WriteFileRequest{Path: "f", UploadId: "u1", Offset: 4}, "2 ", "three")
	require.NoError(t, err)
	require.Equal(t, "one 2 three", b.content("f"))
	require.Empty(t, b.leftovers())
	// Who did not hear the answer asks again and hears it.
	require.EqualValues(t, 11, b.kept("f", "u1"))
	again, err := b.write(&carrelv1.WriteFileRequest{Path: "f", UploadId: "u1", Offset: 11})
	require.NoError(t, err)
	require.Equal(t, info.GetEtag(), again.GetEtag())
	require.Empty(t, b.leftovers())
	// But not when the file has changed since.
	b.put("f", "other")
	require.Zero(t, b.kept("f", "u1"))
	_, err = b.write(&carrelv1.WriteFileRequest{Path: "f", UploadId: "u1", Offset: 11})
	requireReason(t, err, carrel.CodePrecondition, "upload_offset")
	require.Equal(t, "other", b.content("f"))
}

func TestAnUploadComesInParts(t *testing.T) {
	b := startFileBox(t)
	info, err := b.write(&carrelv1.WriteFileRequest{Path: "f", UploadId: "u", Partial: true}, "one ")
	require.NoError(t, err)
	require.EqualValues(t, 4, info.GetSize())
	require.NoFileExists(t, b.at("f"))
	_, err = b.write(&carrelv1.WriteFileRequest{Path: "f", UploadId: "u", Offset: 4}, "two")
	require.NoError(t, err)
	require.Equal(t, "one two", b.content("f"))
	_, err = b.write(&carrelv1.WriteFileRequest{Path: "f", Partial: true})
	requireReason(t, err, carrel.CodeInvalid, "no_upload_id")
}

func TestTheLaterOfTwoUploadersGoesOn(t *testing.T) {
	b := startFileBox(t)
	stale := b.files.Write(t.Context())
	require.NoError(t, stale.Send(&carrelv1.WriteFileRequest{Path: "f", UploadId: "u", Data: []byte("one ")}))
	b.eventually(func() bool { return b.kept("f", "u") == 4 })
	_, err := b.write(&carrelv1.WriteFileRequest{Path: "f", UploadId: "u", Offset: 4}, "two")
	require.NoError(t, err)
	_ = stale.Send(&carrelv1.WriteFileRequest{Data: []byte("stale")})
	_, err = stale.CloseAndReceive()
	requireReason(t, err, carrel.CodeAborted, "upload_taken_over")
	require.Equal(t, "one two", b.content("f"))
}

func TestAnUploadIsKeptForADay(t *testing.T) {
	b := startFileBox(t)
	first := &carrelv1.WriteFileRequest{Path: "f", UploadId: "u"}
	b.breakOff(first, "one")
	left := b.leftovers()
	require.Len(t, left, 1)
	old := time.Now().Add(-uploadKept - time.Minute)
	require.NoError(t, os.Chtimes(left[0], old, old))
	require.Zero(t, b.kept("f", "u"))
	_, err := b.write(&carrelv1.WriteFileRequest{Path: "f", UploadId: "u", Offset: 3})
	requireReason(t, err, carrel.CodePrecondition, "upload_offset")
}

func TestAnUploadWithoutIDLeavesNothing(t *testing.T) {
	b := startFileBox(t)
	b.put("f", "old")
	b.breakOff(&carrelv1.WriteFileRequest{Path: "f"}, "one", "two")
	b.eventually(func() bool { return len(b.leftovers()) == 0 })
	require.Equal(t, "old", b.content("f"))
}

func TestWritesAreConditional(t *testing.T) {
	b := startFileBox(t)
	b.put("f", "old")
	info, err := b.stat("f")
	require.NoError(t, err)
	_, err = b.write(&carrelv1.WriteFileRequest{Path: "f", IfMatch: "none"})
	requireReason(t, err, carrel.CodeAborted, "file_exists")
	_, err = b.write(&carrelv1.WriteFileRequest{Path: "f", IfMatch: "abc"})
	requireReason(t, err, carrel.CodeAborted, "file_changed")
	_, err = b.write(&carrelv1.WriteFileRequest{Path: "g", IfMatch: "abc"})
	requireReason(t, err, carrel.CodeAborted, "file_changed")
	// Changed while the new content is on its way.
	stream := b.files.Write(t.Context())
	require.NoError(t, stream.Send(&carrelv1.WriteFileRequest{Path: "f", IfMatch: info.GetEtag(), Data: []byte("mine")}))
	b.eventually(func() bool { return len(b.leftovers()) == 1 })
	b.put("f", "theirs")
	_, err = stream.CloseAndReceive()
	requireReason(t, err, carrel.CodeAborted, "file_changed")
	require.Equal(t, "theirs", b.content("f"))
	// Made while the new content is on its way.
	stream = b.files.Write(t.Context())
	require.NoError(t, stream.Send(&carrelv1.WriteFileRequest{Path: "h", IfMatch: "none", Data: []byte("mine")}))
	b.eventually(func() bool { return len(b.leftovers()) == 1 })
	b.put("h", "theirs")
	_, err = stream.CloseAndReceive()
	requireReason(t, err, carrel.CodeAborted, "file_exists")
	require.Equal(t, "theirs", b.content("h"))
	require.Empty(t, b.leftovers())
	now, err := b.stat("f")
	require.NoError(t, err)
	_, err = b.write(&carrelv1.WriteFileRequest{Path: "f", IfMatch: now.GetEtag()}, "mine")
	require.NoError(t, err)
	require.Equal(t, "mine", b.content("f"))
}

func TestADirectoryReplacedMeanwhileLeadsNowhere(t *testing.T) {
	b := startFileBox(t)
	b.mkdir("d")
	b.mkdir("elsewhere")
	stream := b.files.Write(t.Context())
	require.NoError(t, stream.Send(&carrelv1.WriteFileRequest{Path: "d/f", Data: []byte("x")}))
	b.eventually(func() bool { return len(b.leftovers()) == 1 })
	require.NoError(t, os.Rename(b.at("d"), b.at("moved")))
	require.NoError(t, os.Symlink(b.at("elsewhere"), b.at("d")))
	_, err := stream.CloseAndReceive()
	require.NoError(t, err)
	require.Equal(t, "x", b.content("moved/f"), "the file is in the directory that was meant")
	entries, err := os.ReadDir(b.at("elsewhere"))
	require.NoError(t, err)
	require.Empty(t, entries)
}

func TestWhatIsNoFileIsRefused(t *testing.T) {
	b := startFileBox(t)
	b.mkdir("d")
	require.NoError(t, unix.Mkfifo(b.at("pipe"), 0o666))
	b.give("pipe")
	for path, reason := range map[string]string{"d": "is_directory", "pipe": "not_a_file", "/dev/zero": "not_a_file"} {
		_, _, err := b.read(&carrelv1.ReadFileRequest{Path: path})
		requireReason(t, err, carrel.CodePrecondition, reason)
	}
	for path, reason := range map[string]string{"d": "is_directory", "pipe": "not_a_file"} {
		_, err := b.write(&carrelv1.WriteFileRequest{Path: path})
		requireReason(t, err, carrel.CodePrecondition, reason)
	}
	for path, reason := range map[string]string{"": "no_path", "a\x00b": "bad_path", strings.Repeat("a/", 3000): "bad_path", strings.Repeat("a", 300): "bad_path"} {
		_, err := b.write(&carrelv1.WriteFileRequest{Path: path})
		requireReason(t, err, carrel.CodeInvalid, reason)
	}
	_, err := b.write(&carrelv1.WriteFileRequest{Path: "missing/f"})
	requireReason(t, err, carrel.CodeNotFound, "file_not_found")
	_, err = b.write(&carrelv1.WriteFileRequest{Path: "f", Mode: 0o10000})
	requireReason(t, err, carrel.CodeInvalid, "bad_mode")
	_, err = b.write(&carrelv1.WriteFileRequest{Path: "f", Data: make([]byte, maxFileChunk+1)})
	requireReason(t, err, carrel.CodeInvalid, "chunk_too_large")
	require.Empty(t, b.leftovers())
}

func TestAFullDiskIsSaidAndLeavesNothing(t *testing.T) {
	requireRoot(t)
	b := startFileBox(t)
	b.mkdir("small")
	require.NoError(t, unix.Mount("tmpfs", b.at("small"), "tmpfs", 0, "size=1m,uid=1000,gid=1000"))
	t.Cleanup(func() { _ = unix.Unmount(b.at("small"), unix.MNT_DETACH) })
	big := strings.Repeat("x", 512<<10)
	for _, id := range []string{"", "u"} {
		_, err := b.write(&carrelv1.WriteFileRequest{Path: "small/f", UploadId: id}, big, big, big)
		requireReason(t, err, carrel.CodeExhausted, "disk_full")
		b.eventually(func() bool { return len(b.leftovers()) == 0 })
	}
	b.put("big", strings.Repeat("x", 2<<20))
	_, err := b.files.Copy(t.Context(), connect.NewRequest(&carrelv1.CopyFileRequest{Source: "big", Destination: "small/copy"}))
	requireReason(t, err, carrel.CodeExhausted, "disk_full")
	_, err = b.files.Move(t.Context(), connect.NewRequest(&carrelv1.MoveFileRequest{Source: "big", Destination: "small/moved"}))
	requireReason(t, err, carrel.CodeExhausted, "disk_full")
	data, err := b.archive("big")
	require.NoError(t, err)
	_, err = b.unpack("small/d", data)
	requireReason(t, err, carrel.CodeExhausted, "disk_full")
	require.Empty(t, b.leftovers())
	require.FileExists(t, b.at("big"), "what could not be moved is still there")
	// To another file system, when there is room.
	b.put("little", "little")
	info, err := b.files.Move(t.Context(), connect.NewRequest(&carrelv1.MoveFileRequest{Source: "little", Destination: "small/little"}))
	require.NoError(t, err)
	require.Equal(t, "little", b.content("small/little"))
	require.EqualValues(t, 6, info.Msg.GetSize())
	require.NoFileExists(t, b.at("little"))
}

func TestListsArePagedAndStable(t *testing.T) {
	b := startFileBox(t)
	b.mkdir("many")
	var want []string
	for i := range 2500 {
		name := fmt.Sprintf("f%05d", i*2)
		require.NoError(t, os.WriteFile(b.at("many/"+name), nil, 0o644))
		want = append(want, name)
	}
	var got []string
	token := ""
	for page := 0; ; page++ {
		response, err := b.files.List(t.Context(), connect.NewRequest(&carrelv1.ListFilesRequest{Path: "many", PageSize: 700, PageToken: token}))
		require.NoError(t, err)
		for _, f := range response.Msg.GetFiles() {
			got = append(got, filepath.Base(f.GetPath()))
		}
		if token = response.Msg.GetNextPageToken(); token == "" {
			require.Equal(t, 3, page)
			break
		}
		// What comes and goes meanwhile moves nothing else.
		require.NoError(t, os.WriteFile(b.at("many/a"+fmt.Sprint(page)), nil, 0o644))
		require.NoError(t, os.Remove(b.at("many/"+got[0])))
		want = slices.DeleteFunc(want, func(s string) bool { return s == got[0] })
		got = got[1:]
	}
	require.Equal(t, want, got)
	response, err := b.files.List(t.Context(), connect.NewRequest(&carrelv1.ListFilesRequest{Path: "."}))
	require.NoError(t, err)
	require.Len(t, response.Msg.GetFiles(), 1)
	require.Equal(t, "directory", response.Msg.GetFiles()[0].GetType())
}

func TestNamesThatAreNotUTF8CanBeUsed(t *testing.T) {
	b := startFileBox(t)
	odd := "caf\xe9"
	b.put(odd, "latin")
	response, err := b.files.List(t.Context(), connect.NewRequest(&carrelv1.ListFilesRequest{Path: "."}))
	require.NoError(t, err)
	path := response.Msg.GetFiles()[0].GetPath()
	require.Equal(t, carrel.EncodeFileName(b.at(odd)), path)
	content, _, err := b.read(&carrelv1.ReadFileRequest{Path: path})
	require.NoError(t, err)
	require.Equal(t, "latin", content)
	_, err = b.files.Move(t.Context(), connect.NewRequest(&carrelv1.MoveFileRequest{Source: path, Destination: "cafe"}))
	require.NoError(t, err)
	require.Equal(t, "latin", b.content("cafe"))
}

func TestMoveCopyRemoveAndMakeDirectory(t *testing.T) {
	b := startFileBox(t)
	ctx := t.Context()
	made, err := b.files.MakeDirectory(ctx, connect.NewRequest(&carrelv1.MakeDirectoryRequest{Path: "x/y", Parents: true, Mode: 0o2775}))
	require.NoError(t, err)
	require.EqualValues(t, 0o2775, made.Msg.GetMode())
	_, err = b.files.MakeDirectory(ctx, connect.NewRequest(&carrelv1.MakeDirectoryRequest{Path: "x/y", Parents: true}))
	require.NoError(t, err)
	_, err = b.files.MakeDirectory(ctx, connect.NewRequest(&carrelv1.MakeDirectoryRequest{Path: "x/y"}))
	requireReason(t, err, carrel.CodeExists, "file_exists")
	b.put("x/y/f", "one")
	when := time.Unix(1_500_000_000, 5)
	require.NoError(t, os.Chmod(b.at("x/y/f"), 0o751))
	require.NoError(t, os.Chtimes(b.at("x/y/f"), when, when))
	require.NoError(t, os.Symlink("/nowhere", b.at("x/y/l")))
	b.give("x/y/l")
	require.NoError(t, os.Chtimes(b.at("x"), when, when))

	copyTo := func(to string, recursive, overwrite bool) error {
		_, err := b.files.Copy(ctx, connect.NewRequest(&carrelv1.CopyFileRequest{Source: "x", Destination: to, Recursive: recursive, Overwrite: overwrite}))
		return err
	}
	requireReason(t, copyTo("z", false, false), carrel.CodePrecondition, "is_directory")
	requireReason(t, copyTo("x/y/z", true, false), carrel.CodeInvalid, "into_itself")
	require.NoError(t, copyTo("z", true, false))
	requireReason(t, copyTo("z", true, false), carrel.CodeExists, "file_exists")
	requireReason(t, copyTo("z", true, true), carrel.CodePrecondition, "directory_not_empty")
	info, err := os.Lstat(b.at("z/y/f"))
	require.NoError(t, err)
	require.EqualValues(t, 0o751, info.Mode())
	require.Equal(t, when, info.ModTime())
	require.EqualValues(t, boxUIDOrSelf(), info.Sys().(*syscall.Stat_t).Uid)
	target, err := os.Readlink(b.at("z/y/l"))
	require.NoError(t, err)
	require.Equal(t, "/nowhere", target)
	top, err := os.Stat(b.at("z"))
	require.NoError(t, err)
	require.Equal(t, when, top.ModTime())

	b.put("other", "two")
	move := func(from, to string, overwrite bool) error {
		_, err := b.files.Move(ctx, connect.NewRequest(&carrelv1.MoveFileRequest{Source: from, Destination: to, Overwrite: overwrite}))
		return err
	}
	requireReason(t, move("other", "x/y/f", false), carrel.CodeExists, "file_exists")
	require.NoError(t, move("other", "x/y/f", true))
	require.Equal(t, "two", b.content("x/y/f"))
	requireReason(t, move("nothing", "n", false), carrel.CodeNotFound, "file_not_found")
	requireReason(t, move("x", "no/x", false), carrel.CodeNotFound, "file_not_found")

	remove := func(path string, recursive bool) error {
		_, err := b.files.Remove(ctx, connect.NewRequest(&carrelv1.RemoveFileRequest{Path: path, Recursive: recursive}))
		return err
	}
	b.mkdir("precious")
	b.put("precious/f", "stays")
	require.NoError(t, os.Symlink("../precious", b.at("z/toprecious")))
	require.NoError(t, os.Symlink("precious", b.at("linked")))
	requireReason(t, remove("z", false), carrel.CodePrecondition, "directory_not_empty")
	require.NoError(t, remove("z", true))
	require.NoError(t, remove("linked", true))
	require.Equal(t, "stays", b.content("precious/f"), "links are never followed")
	requireReason(t, remove("z", true), carrel.CodeNotFound, "file_not_found")
	requireReason(t, remove(".", true), carrel.CodePrecondition, "file_busy")
	requireReason(t, remove("/", true), carrel.CodePrecondition, "file_busy")
	require.Empty(t, b.leftovers())
}

func boxUIDOrSelf() int {
	if os.Geteuid() == 0 {
		return boxUID
	}
	return os.Geteuid()
}

// archive downloads one.
func (b *fileBox) archive(path string) ([]byte, error) {
	stream, err := b.files.DownloadArchive(b.t.Context(), connect.NewRequest(&carrelv1.DownloadArchiveRequest{Path: path}))
	require.NoError(b.t, err)
	defer stream.Close()
	var data []byte
	for stream.Receive() {
		data = append(data, stream.Msg().GetData()...)
	}
	return data, stream.Err()
}

// unpack uploads one.
func (b *fileBox) unpack(path string, data []byte) (*carrelv1.UploadArchiveResponse, error) {
	stream := b.files.UploadArchive(b.t.Context())
	_ = stream.Send(&carrelv1.UploadArchiveRequest{Path: path})
	for piece := range slices.Chunk(data, 100_000) {
		if err := stream.Send(&carrelv1.UploadArchiveRequest{Data: piece}); errors.Is(err, io.EOF) {
			break
		}
	}
	response, err := stream.CloseAndReceive()
	if err != nil {
		return nil, err
	}
	return response.Msg, nil
}

func TestArchivesGoThereAndBack(t *testing.T) {
	b := startFileBox(t)
	when := time.Unix(1_400_000_000, 123_000)
	b.mkdir("src")
	b.mkdir("src/sub")
	b.put("src/sub/f", strings.Repeat("data", 300_000))
	require.NoError(t, os.Link(b.at("src/sub/f"), b.at("src/hard")))
	require.NoError(t, os.Symlink("/etc/passwd", b.at("src/absolute")))
	b.put("src/odd\xff", "odd")
	require.NoError(t, os.Chmod(b.at("src/sub/f"), os.ModeSetuid|0o711))
	require.NoError(t, os.Chtimes(b.at("src/sub/f"), when, when))
	require.NoError(t, os.Chmod(b.at("src/sub"), 0o555))
	require.NoError(t, os.Chtimes(b.at("src/sub"), when, when))
	require.NoError(t, os.Chmod(b.at("src"), 0o750))
	data, err := b.archive("src")
	require.NoError(t, err)
	require.Less(t, len(data), 100_000, "it is compressed")
	response, err := b.unpack("a/dst", data)
	require.NoError(t, err)
	require.EqualValues(t, 5, response.GetFiles())
	require.EqualValues(t, 1_200_003, response.GetBytes())
	require.Equal(t, b.content("src/sub/f"), b.content("a/dst/sub/f"))
	info, err := os.Stat(b.at("a/dst/sub/f"))
	require.NoError(t, err)
	require.Equal(t, os.ModeSetuid|0o711, info.Mode())
	require.Equal(t, when, info.ModTime())
	hard, err := os.Stat(b.at("a/dst/hard"))
	require.NoError(t, err)
	require.True(t, os.SameFile(info, hard), "hard links stay links")
	target, err := os.Readlink(b.at("a/dst/absolute"))
	require.NoError(t, err)
	require.Equal(t, "/etc/passwd", target)
	require.Equal(t, "odd", b.content("a/dst/odd\xff"))
	sub, err := os.Stat(b.at("a/dst/sub"))
	require.NoError(t, err)
	require.EqualValues(t, 0o555, sub.Mode().Perm())
	require.Equal(t, when, sub.ModTime())
	top, err := os.Stat(b.at("a/dst"))
	require.NoError(t, err)
	require.EqualValues(t, 0o750, top.Mode().Perm(), "the directory was made for it")
	// Once more over what is there: files are replaced.
	require.NoError(t, os.Chmod(b.at("a/dst/sub"), 0o755))
	_, err = b.unpack("a/dst", data)
	require.NoError(t, err)
	require.Empty(t, b.leftovers())

	for name, bad := range map[string][]byte{"garbage": []byte("this is no archive"), "cut": data[:len(data)/2]} {
		_, err = b.unpack("bad", bad)
		requireReason(t, err, carrel.CodeInvalid, "bad_archive")
		require.Empty(t, b.leftovers(), name)
	}
}

func TestWatchTellsOfChanges(t *testing.T) {
	b := startFileBox(t)
	b.mkdir("w")
	stream, err := b.files.Watch(t.Context(), connect.NewRequest(&carrelv1.WatchFilesRequest{Path: "w", Recursive: true}))
	require.NoError(t, err)
	defer stream.Close()
	next := func(kind, path string) {
		t.Helper()
		for stream.Receive() {
			if stream.Msg().GetKind() == kind && stream.Msg().GetPath() == b.at(path) {
				return
			}
		}
		require.NoError(t, stream.Err())
		require.FailNow(t, "the stream ended", "before %s of %s", kind, path)
	}
	next("ready", "w")
	b.put("w/f", "x")
	next("created", "w/f")
	next("written", "w/f")
	require.NoError(t, os.Chmod(b.at("w/f"), 0o600))
	next("attributes", "w/f")
	b.mkdir("w/d")
	next("created", "w/d")
	b.put("w/d/g", "x") // before or after its directory is watched
	next("created", "w/d/g")
	require.NoError(t, os.Rename(b.at("w/d"), b.at("w/e")))
	next("moved", "w/d")
	next("created", "w/e")
	next("created", "w/e/g")
	require.NoError(t, os.Remove(b.at("w/e/g")))
	next("removed", "w/e/g")
	_, err = b.write(&carrelv1.WriteFileRequest{Path: "w/f", Data: []byte("new")})
	require.NoError(t, err)
	next("created", "w/f")
	require.NoError(t, os.RemoveAll(b.at("w")))
	next("removed", "w")
	require.False(t, stream.Receive())
	require.NoError(t, stream.Err())
}

func TestACallerWhoDoesNotReadEventsGetsOneOverflow(t *testing.T) {
	q := eventQueue{wake: make(chan struct{}, 1)}
	for i := range maxWaitingEvents + 5 {
		q.put("written", fmt.Sprint("/", i))
	}
	events, err := q.take("/w")
	require.NoError(t, err)
	require.Len(t, events, 1)
	require.Equal(t, "overflow", events[0].GetKind())
	q.put("written", "/a")
	q.put("written", "/a")
	events, err = q.take("/w")
	require.NoError(t, err)
	require.Len(t, events, 1)
	q.end(errWatchedGone)
	_, err = q.take("/w")
	require.ErrorIs(t, err, errWatchedGone)
}

func FuzzFilePath(f *testing.F) {
	for _, path := range []string{"a", "/a/../..", "../../etc/passwd", "", ".", "\x00", "\U0010FFFF", strings.Repeat("../", 50)} {
		f.Add(path)
	}
	s := &fileService{a: &Agent{config: Config{Home: boxHome}}}
	f.Fuzz(func(t *testing.T, text string) {
		path, err := s.path(text)
		if err != nil {
			require.Empty(t, path)
			return
		}
		require.True(t, filepath.IsAbs(path))
		require.Equal(t, filepath.Clean(path), path)
		require.NotContains(t, path, "\x00")
	})
}

func TestFindLooksBelowADirectoryForNames(t *testing.T) {
	b := startFileBox(t)
	b.mkdir("src")
	b.mkdir("src/deep")
	b.mkdir(".cache")
	b.mkdir("closed")
	b.put("Report.txt", "1")
	b.put("src/report-2.txt", "22")
	b.put("src/deep/a report", "")
	b.put("src/other", "")
	b.put(".cache/report", "")
	b.put("closed/report", "")
	require.NoError(t, os.Chmod(b.at("closed"), 0))
	require.NoError(t, os.Symlink(b.at("src"), b.at("link")))
	find := func(request *carrelv1.FindFilesRequest) (names []string, truncated bool) {
		t.Helper()
		resp, err := b.files.Find(t.Context(), connect.NewRequest(request))
		require.NoError(t, err)
		for _, file := range resp.Msg.GetFiles() {
			name, err := filepath.Rel(b.home, file.GetPath())
			require.NoError(t, err)
			names = append(names, name)
		}
		return names, resp.Msg.GetTruncated()
	}

	names, truncated := find(&carrelv1.FindFilesRequest{Path: ".", Name: "REPORT"})
	require.Equal(t, []string{"Report.txt", "src/report-2.txt", "src/deep/a report"}, names, "near ones first, no links followed, nothing hidden")
	require.False(t, truncated)
	names, _ = find(&carrelv1.FindFilesRequest{Path: ".", Name: "report", Hidden: true})
	require.Contains(t, names, ".cache/report")
	require.NotContains(t, names, "closed/report", "what the user may not read is passed over")
	names, truncated = find(&carrelv1.FindFilesRequest{Path: ".", Name: "report", Limit: 2})
	require.Len(t, names, 2)
	require.True(t, truncated)
	names, truncated = find(&carrelv1.FindFilesRequest{Path: "src", Name: "nothing of the kind"})
	require.Empty(t, names)
	require.False(t, truncated)

	for _, bad := range []*carrelv1.FindFilesRequest{{Path: "."}, {Path: ".", Name: strings.Repeat("x", 256)}, {Path: ".", Name: "x", Limit: -1}, {Path: "absent", Name: "x"}} {
		_, err := b.files.Find(t.Context(), connect.NewRequest(bad))
		require.Error(t, err)
	}
}
