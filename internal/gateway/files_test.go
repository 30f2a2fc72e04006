package gateway_test

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/api/carrel/v1/carrelv1connect"
	"carrel.dev/carrel/internal/archive"
	"carrel.dev/carrel/internal/auth"
	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/client"
)

// fileStack is the real stack, spoken to as plain HTTP.
type fileStack struct {
	*stack
	home   string
	bearer string
}

func newFileStack(t *testing.T) *fileStack {
	s, _, _ := newRealStack(t)
	f := &fileStack{stack: s}
	f.bearer = s.ticket(func(t *auth.Ticket) { t.Epoch = 2 })
	info, err := f.service(f.bearer).StatFile(testContext(t), connect.NewRequest(&carrelv1.StatFileRequest{Box: string(s.box), Path: "."}))
	require.NoError(t, err)
	f.home = info.Msg.GetPath()
	return f
}

func (s *fileStack) service(bearer string) carrelv1connect.FileServiceClient {
	c, err := client.New(client.Config{Context: client.Context{URL: s.url, Token: bearer}})
	require.NoError(s.t, err)
	s.t.Cleanup(c.Close)
	return c.Files
}

func (s *fileStack) viewer() string {
	return s.ticket(func(t *auth.Ticket) { t.Epoch = 2; t.Scopes = []string{auth.ScopeView} })
}

type answer struct {
	status int
	header http.Header
	body   string
}

// do makes a request for a path below home, or for an absolute one.
func (s *fileStack) do(method, path, body string, headers ...string) answer {
	s.t.Helper()
	var in io.Reader
	if body != "" {
		in = strings.NewReader(body)
	}
	req, err := http.NewRequestWithContext(testContext(s.t), method, s.url+"/v1/boxes/"+string(s.box)+"/fs"+path, in)
	require.NoError(s.t, err)
	req.Header.Set("Authorization", "Bearer "+s.bearer)
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	require.NoError(s.t, err)
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	require.NoError(s.t, err)
	return answer{resp.StatusCode, resp.Header, string(text)}
}

func (s *fileStack) requireReason(a answer, status int, reason string) {
	s.t.Helper()
	require.Equal(s.t, status, a.status, a.body)
	require.Contains(s.t, a.body, `"reason":"`+reason+`"`)
}

func TestRawFilesAreWrittenAndRead(t *testing.T) {
	s := newFileStack(t)
	put := s.do("PUT", "/~/a/b.txt?parents=1&mode=0640&modify_time=2020-01-02T03:04:05Z", "0123456789", "If-None-Match", "*")
	require.Equal(t, 200, put.status, put.body)
	etag := put.header.Get("ETag")
	require.Len(t, etag, 34)
	got := s.do("GET", "/~/a/b.txt", "")
	require.Equal(t, "0123456789", got.body)
	require.Equal(t, etag, got.header.Get("ETag"))
	require.Equal(t, "Thu, 02 Jan 2020 03:04:05 GMT", got.header.Get("Last-Modified"))
	require.Equal(t, "10", got.header.Get("Content-Length"))
	require.Equal(t, got.body, s.do("GET", s.home+"/a/b.txt", "").body, "by its absolute path too")
	info, err := os.Stat(filepath.Join(s.home, "a/b.txt"))
	require.NoError(t, err)
	require.EqualValues(t, 0o640, info.Mode())

	for header, want := range map[string]string{"bytes=0-3": "0123", "bytes=8-": "89", "bytes=-3": "789", "bytes=5-100": "56789"} {
		part := s.do("GET", "/~/a/b.txt", "", "Range", header)
		require.Equal(t, 206, part.status)
		require.Equal(t, want, part.body)
		require.Regexp(t, `^bytes \d+-\d+/10$`, part.header.Get("Content-Range"))
	}
	for _, header := range []string{"bytes=10-", "bytes=-0"} {
		part := s.do("GET", "/~/a/b.txt", "", "Range", header)
		s.requireReason(part, 416, "bad_range")
		require.Equal(t, "bytes */10", part.header.Get("Content-Range"))
	}
	for _, header := range []string{"bytes=1-2,4-5", "lines=1-2", "bytes=5-2", "bytes=a-b"} {
		require.Equal(t, 200, s.do("GET", "/~/a/b.txt", "", "Range", header).status, header)
	}
	require.Equal(t, 200, s.do("GET", "/~/a/b.txt", "", "Range", "bytes=0-3", "If-Range", `"old"`).status)
	require.Equal(t, 206, s.do("GET", "/~/a/b.txt", "", "Range", "bytes=0-3", "If-Range", etag).status)
	head := s.do("HEAD", "/~/a/b.txt", "")
	require.Equal(t, "10", head.header.Get("Content-Length"))
	require.Equal(t, 304, s.do("GET", "/~/a/b.txt", "", "If-None-Match", etag).status)

	s.requireReason(s.do("PUT", "/~/a/b.txt", "x", "If-None-Match", "*"), 412, "file_exists")
	s.requireReason(s.do("PUT", "/~/a/b.txt", "x", "If-Match", `"old"`), 412, "file_changed")
	require.Equal(t, 200, s.do("PUT", "/~/a/b.txt", "new", "If-Match", etag).status)
	require.Equal(t, "new", s.do("GET", "/~/a/b.txt", "").body)
	empty := s.do("PUT", "/~/empty", "")
	require.Equal(t, 200, empty.status)
	require.Empty(t, s.do("GET", "/~/empty", "").body)

	s.requireReason(s.do("GET", "/~/nothing", ""), 404, "file_not_found")
	s.requireReason(s.do("PUT", "/~/a", "x"), 409, "is_directory")
	s.requireReason(s.do("PUT", "/~/x/", "x"), 400, "bad_path")
	s.requireReason(s.do("DELETE", "/~/a", ""), 409, "directory_not_empty")
	require.Equal(t, 204, s.do("DELETE", "/~/a?recursive=1", "").status)
	require.Equal(t, 405, s.do("POST", "/~/a", "").status)
	s.requireReason(s.do("GET", "/~/a", "", "Authorization", "Bearer nonsense"), 401, "bad_ticket")
	proc := s.do("GET", "/proc/self/status", "")
	require.Contains(t, proc.body, "Uid:")
}

func TestRawUploadsComeInParts(t *testing.T) {
	s := newFileStack(t)
	part := s.do("PUT", "/~/f?upload_id=u", "0123", "Content-Range", "bytes 0-3/10")
	require.Equal(t, 202, part.status, part.body)
	require.Equal(t, "4", part.header.Get("Upload-Offset"))
	s.requireReason(s.do("PUT", "/~/f?upload_id=u", "89", "Content-Range", "bytes 8-9/10"), 409, "upload_offset")
	kept, err := s.service(s.bearer).StatUpload(testContext(t), connect.NewRequest(&carrelv1.StatUploadRequest{Box: string(s.box), Path: "f", UploadId: "u"}))
	require.NoError(t, err)
	require.EqualValues(t, 4, kept.Msg.GetOffset())
	require.NoFileExists(t, filepath.Join(s.home, "f"))
	require.Equal(t, 200, s.do("PUT", "/~/f?upload_id=u", "456789", "Content-Range", "bytes 4-9/10").status)
	require.Equal(t, "0123456789", s.do("GET", "/~/f", "").body)
	for _, header := range []string{"bytes 4-9", "bytes 9-4/10", "bytes 0-9/5", "bytes x-9/10", "4-9/10"} {
		s.requireReason(s.do("PUT", "/~/f?upload_id=u", "456789", "Content-Range", header), 416, "bad_range")
	}
	s.requireReason(s.do("PUT", "/~/f", "0123", "Content-Range", "bytes 0-3/10"), 416, "bad_range")
}

// What a box has must never be a page of the platform's.
func TestRawContentNeverRunsAtThePlatformsOrigin(t *testing.T) {
	s := newFileStack(t)
	evil := "<script>alert(1)</script>"
	for name, want := range map[string]string{
		"a.html": "text/plain; charset=utf-8", "a.HTM": "text/plain; charset=utf-8", "a.svg": "text/plain; charset=utf-8", "a.xhtml": "text/plain; charset=utf-8",
		"a.xml": "text/plain; charset=utf-8", "a.js": "text/plain; charset=utf-8", "a": "application/octet-stream", "a.pdf": "application/octet-stream", "a.png": "image/png", "a.weird": "application/octet-stream",
	} {
		require.Equal(t, 200, s.do("PUT", "/~/"+name, evil).status)
		got := s.do("GET", "/~/"+name, "")
		require.Equal(t, want, got.header.Get("Content-Type"), name)
		require.Equal(t, "nosniff", got.header.Get("X-Content-Type-Options"))
		require.Regexp(t, `^sandbox;`, got.header.Get("Content-Security-Policy"))
		require.Empty(t, got.header.Get("Content-Disposition"))
		require.Empty(t, got.header.Get("Access-Control-Allow-Origin"))
	}
	odd := "/~/" + "we%22ird%0Aname%C3%A4.html"
	require.Equal(t, 200, s.do("PUT", odd, evil).status)
	got := s.do("GET", odd+"?download=1", "")
	require.Regexp(t, `^attachment; filename\*=utf-8''we%22ird%0Aname%C3%A4.html$`, got.header.Get("Content-Disposition"))
	list := s.do("GET", "/~/", "")
	require.Equal(t, "application/json", list.header.Get("Content-Type"))
	require.Regexp(t, `^sandbox;`, list.header.Get("Content-Security-Policy"))
	require.Regexp(t, `^sandbox;`, s.do("GET", "/~/none<b>", "").header.Get("Content-Security-Policy"))
}

func TestRawDirectoriesAreListsAndArchives(t *testing.T) {
	s := newFileStack(t)
	for i := range 5 {
		require.Equal(t, 200, s.do("PUT", fmt.Sprintf("/~/d/f%d?parents=true", i), strings.Repeat("x", i)).status)
	}
	require.Equal(t, 200, s.do("PUT", "/~/d/caf%E9", "latin").status)
	var page struct {
		Files []struct {
			Path, Type, Size string
		}
		NextPageToken string
	}
	require.NoError(t, json.Unmarshal([]byte(s.do("GET", "/~/d?page_size=3", "").body), &page))
	require.Len(t, page.Files, 3)
	require.Equal(t, s.home+"/d/caf\U0010FFE9", page.Files[0].Path)
	require.Equal(t, "5", page.Files[0].Size)
	require.Equal(t, "f1", page.NextPageToken)

	got := s.do("GET", "/~/d?archive=tar.zst&download=1", "")
	require.Equal(t, "application/zstd", got.header.Get("Content-Type"))
	require.Equal(t, `attachment; filename=d.tar.zst`, got.header.Get("Content-Disposition"))
	plain, err := archive.NewReader(strings.NewReader(got.body))
	require.NoError(t, err)
	defer plain.Close()
	names := map[string]bool{}
	for list := tar.NewReader(plain); ; {
		header, err := list.Next()
		if err == io.EOF {
			break
		}
		require.NoError(t, err)
		names[header.Name] = true
	}
	require.Len(t, names, 7)
	require.True(t, names["./"] && names["f3"] && names["caf\xe9"])
	put := s.do("PUT", "/~/copy?archive=tar.zst", got.body)
	require.Equal(t, 200, put.status, put.body)
	require.Equal(t, "xxx", s.do("GET", "/~/copy/f3", "").body)
	s.requireReason(s.do("PUT", "/~/copy?archive=tar.zst", "garbage"), 400, "bad_archive")
	s.requireReason(s.do("GET", "/~/copy?archive=zip", ""), 400, "bad_archive_format")
	s.requireReason(s.do("GET", "/~/none?archive=tar.zst", ""), 404, "file_not_found")
}

func TestViewersReadFilesAndDoNotWrite(t *testing.T) {
	s := newFileStack(t)
	require.Equal(t, 200, s.do("PUT", "/~/f", "content").status)
	s.bearer = s.viewer()
	require.Equal(t, "content", s.do("GET", "/~/f", "").body)
	require.Equal(t, 200, s.do("GET", "/~/?archive=tar.zst", "").status)
	s.requireReason(s.do("PUT", "/~/f", "x"), 403, "view_only")
	s.requireReason(s.do("PUT", "/~/f?archive=tar.zst", "x"), 403, "view_only")
	s.requireReason(s.do("DELETE", "/~/f", ""), 403, "view_only")
	files, ctx, box := s.service(s.bearer), testContext(t), string(s.box)
	_, err := files.ListFiles(ctx, connect.NewRequest(&carrelv1.ListFilesRequest{Box: box, Path: "."}))
	require.NoError(t, err)
	write := files.WriteFile(ctx)
	_ = write.Send(&carrelv1.WriteFileRequest{Box: box, Path: "f"})
	_, err = write.CloseAndReceive()
	requireDenied(t, err)
	up := files.UploadArchive(ctx)
	_ = up.Send(&carrelv1.UploadArchiveRequest{Box: box, Path: "f"})
	_, err = up.CloseAndReceive()
	requireDenied(t, err)
	for _, call := range []func() error{
		func() error {
			_, err := files.MoveFile(ctx, connect.NewRequest(&carrelv1.MoveFileRequest{Box: box, Source: "f", Destination: "g"}))
			return err
		},
		func() error {
			_, err := files.CopyFile(ctx, connect.NewRequest(&carrelv1.CopyFileRequest{Box: box, Source: "f", Destination: "g"}))
			return err
		},
		func() error {
			_, err := files.RemoveFile(ctx, connect.NewRequest(&carrelv1.RemoveFileRequest{Box: box, Path: "f"}))
			return err
		},
		func() error {
			_, err := files.MakeDirectory(ctx, connect.NewRequest(&carrelv1.MakeDirectoryRequest{Box: box, Path: "d"}))
			return err
		},
		func() error {
			_, err := files.StatUpload(ctx, connect.NewRequest(&carrelv1.StatUploadRequest{Box: box, Path: "d", UploadId: "u"}))
			return err
		},
	} {
		requireDenied(t, call())
	}
	entries, err := os.ReadDir(s.home)
	require.NoError(t, err)
	require.Len(t, entries, 1)
}

func requireDenied(t *testing.T, err error) {
	t.Helper()
	require.Error(t, err)
	require.Equal(t, carrel.CodeDenied, carrel.CodeOf(err), "%v", err)
}

func TestFilesHaveRESTRoutes(t *testing.T) {
	s := newFileStack(t)
	rest := func(method, path, body string) (int, string) {
		req, err := http.NewRequestWithContext(testContext(t), method, s.url+"/v1/boxes/"+string(s.box)+path, strings.NewReader(body))
		require.NoError(t, err)
		req.Header.Set("Authorization", "Bearer "+s.bearer)
		req.Header.Set("Content-Type", "application/json")
		resp, err := http.DefaultClient.Do(req)
		require.NoError(t, err)
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		return resp.StatusCode, string(text)
	}
	status, text := rest("POST", "/files:mkdir", `{"path":"d"}`)
	require.Equal(t, 200, status, text)
	status, text = rest("POST", "/files:copy", `{"source":"d","destination":"e","recursive":true}`)
	require.Equal(t, 200, status, text)
	status, text = rest("POST", "/files:move", `{"source":"e","destination":"f"}`)
	require.Equal(t, 200, status, text)
	status, text = rest("GET", "/files?path=.&page_size=1", "")
	require.Equal(t, 200, status, text)
	require.Contains(t, text, `"nextPageToken":"d"`)
	status, text = rest("GET", "/files:stat?path=f", "")
	require.Equal(t, 200, status, text)
	require.Contains(t, text, `"type":"directory"`)
	status, text = rest("POST", "/files:remove", `{"path":"f"}`)
	require.Equal(t, 200, status, text)
	status, text = rest("GET", "/files:stat?path=f", "")
	require.Equal(t, 404, status, text)
	status, text = rest("GET", "/files:upload?path=f&upload_id=u", "")
	require.Equal(t, 200, status, text)
}

// A body that breaks off must not become a file.
func TestABodyThatBreaksOffReplacesNothing(t *testing.T) {
	s := newFileStack(t)
	require.Equal(t, 200, s.do("PUT", "/~/f", "old").status)
	for _, length := range []int64{-1, 1 << 20} {
		body, writer := io.Pipe()
		req, err := http.NewRequestWithContext(testContext(t), http.MethodPut, s.url+"/v1/boxes/"+string(s.box)+"/fs/~/f", body)
		require.NoError(t, err)
		req.ContentLength = length
		req.Header.Set("Authorization", "Bearer "+s.bearer)
		go func() {
			_, _ = writer.Write(bytes.Repeat([]byte("x"), 600<<10))
			writer.CloseWithError(io.ErrUnexpectedEOF)
		}()
		resp, err := http.DefaultClient.Do(req)
		if err == nil {
			resp.Body.Close()
			require.NotEqual(t, 200, resp.StatusCode)
		}
	}
	require.Eventually(t, func() bool {
		entries, err := os.ReadDir(s.home)
		return err == nil && len(entries) == 1
	}, within, 10e6)
	require.Equal(t, "old", s.do("GET", "/~/f", "").body)
}

func TestLargeFilesGoBothWays(t *testing.T) {
	s := newFileStack(t)
	const size = 64 << 20
	data := pattern(0, size)
	require.Equal(t, 200, s.do("PUT", "/~/big", string(data)).status)
	got := s.do("GET", "/~/big", "")
	require.Equal(t, sha256.Sum256(data), sha256.Sum256([]byte(got.body)))
}

// A connection to an agent is given up when no call uses it: one counted twice would keep it for ever, or take it from another call.
func TestEveryCallForFilesIsCountedOnce(t *testing.T) {
	s := newFileStack(t)
	require.Equal(t, http.StatusOK, s.do("PUT", "/~/a", "text").status)
	for range 3 {
		require.Equal(t, "text", s.do("GET", "/~/a", "").body)
	}
	require.Equal(t, http.StatusOK, s.do("GET", "/~/", "").status)
	eventually(t, func() bool { return s.gateway.AgentCalls() == 0 }, "all calls have ended")
}
