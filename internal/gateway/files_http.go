package gateway

import (
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"path"
	"regexp"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/auth"
	"carrel.dev/carrel/internal/carrel"
)

const (
	// uploadChunk is how much of a body is sent to the agent at once, in bytes.
	uploadChunk = 512 << 10
	// archiveFormat is the one value of the query's archive.
	archiveFormat = "tar.zst"
)

// rawFilePath is where contents are had without RPC: a path from the root of the box, or from the user's home after ~.
var rawFilePath = regexp.MustCompile(`(?s)^/v1/boxes/([^/]+)/fs(/.*)?$`)

// shownTypes are the media types that a browser may show by itself; everything else is text to be read or bytes to be kept.
var shownTypes = map[string]string{
	".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".gif": "image/gif", ".webp": "image/webp", ".avif": "image/avif",
	".mp3": "audio/mpeg", ".ogg": "audio/ogg", ".wav": "audio/wav", ".mp4": "video/mp4", ".webm": "video/webm",
	".json": "application/json",
}

// plainTypes are endings of text; those of pages and programs too, which must be read and never run.
var plainTypes = regexp.MustCompile(`(?i)\.(txt|md|rst|log|csv|tsv|html?|xhtml|svg|xml|css|m?js|ts|py|go|rs|c|h|cc|cpp|hpp|java|rb|pl|sh|ya?ml|toml|ini|conf|cfg|diff|patch|sql|tex)$`)

// contentType never gives one with which content of a box could be a page of the platform's.
func contentType(name string) string {
	if t, ok := shownTypes[strings.ToLower(path.Ext(name))]; ok {
		return t
	}
	if plainTypes.MatchString(name) {
		return "text/plain; charset=utf-8"
	}
	return "application/octet-stream"
}

// rawFile is one request for a path.
type rawFile struct {
	files *files
	w     http.ResponseWriter
	r     *http.Request
	box   string
	path  string // as FileService takes it
}

// serveRaw serves the contents of boxes to whoever has no use for RPC.
func (f *files) serveRaw(w http.ResponseWriter, r *http.Request) {
	parts := rawFilePath.FindStringSubmatch(r.URL.Path)
	raw := &rawFile{files: f, w: w, r: r, box: parts[1], path: "/" + strings.Trim(parts[2], "/")}
	if raw.path == "/~" || strings.HasPrefix(raw.path, "/~/") {
		raw.path = "./" + strings.TrimPrefix(raw.path[2:], "/")
	}
	raw.path = carrel.EncodeFileName(raw.path)
	h := w.Header()
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Security-Policy", "sandbox; default-src 'none'; frame-ancestors 'none'")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cache-Control", "private, no-cache")
	h.Set("Vary", "Authorization, Cookie")
	var err error
	switch r.Method {
	case http.MethodGet, http.MethodHead:
		err = raw.get()
	case http.MethodPut:
		err = raw.put()
	case http.MethodDelete:
		err = raw.remove()
	default:
		h.Set("Allow", "GET, HEAD, PUT, DELETE")
		w.WriteHeader(http.StatusMethodNotAllowed)
		return
	}
	if err != nil {
		raw.fail(err)
	}
}

// fail answers with an error, unless the answer has begun already.
func (f *rawFile) fail(err error) {
	if errors.Is(err, errBegun) {
		panic(http.ErrAbortHandler) // the client must not take what came for all
	}
	e := own(f.r.Context(), f.files.gateway.log, f.r.Header.Get(headerRequestID), err)
	status := httpStatus(e.Code)
	switch e.Reason {
	case "file_changed":
		status = http.StatusPreconditionFailed
	case "file_exists":
		if e.Code == carrel.CodeAborted {
			status = http.StatusPreconditionFailed
		}
	case "bad_range":
		status = http.StatusRequestedRangeNotSatisfiable
	case "disk_full", "file_too_large":
		status = http.StatusInsufficientStorage
	case "is_directory", "not_a_directory", "not_a_file", "directory_not_empty", "file_busy", "upload_offset":
		status = http.StatusConflict
	}
	writeErrorStatus(f.w, f.r, e, status)
}

// errBegun wraps an error after the first byte of an answer.
var errBegun = errors.New("the answer had begun")

func (f *rawFile) begin(scope string, use fileUse) (*fileCall, error) {
	return f.files.call(f.r.Context(), f.r.Header, &carrelv1.StatFileRequest{Box: f.box, Org: f.r.URL.Query().Get("org"), Path: f.path}, scope, use)
}

func (f *rawFile) get() error {
	use := fileReads
	if f.r.Method == http.MethodHead {
		use = fileLooks
	}
	call, err := f.begin(auth.ScopeView, use)
	if err != nil {
		return err
	}
	defer call.end()
	if format := f.r.URL.Query().Get("archive"); format != "" {
		return f.archive(call, format)
	}
	request := &carrelv1.ReadFileRequest{Path: f.path}
	status, etag := http.StatusOK, ""
	if f.needsLook() {
		info, err := f.look(call)
		if carrel.ReasonOf(err) == "is_directory" {
			return f.list(call)
		}
		if err != nil {
			return err
		}
		etag = info.GetEtag()
		f.describe(info)
		if matches(f.r.Header.Get("If-None-Match"), etag) {
			f.w.WriteHeader(http.StatusNotModified)
			return nil
		}
		if wanted := f.r.Header.Get("If-Match"); wanted != "" && !matches(wanted, etag) {
			return carrel.Errorf(carrel.CodeAborted, "file_changed", "%q is not (any more) the file that was asked for", f.path)
		}
		if f.r.Method == http.MethodHead {
			f.w.Header().Set("Content-Length", strconv.FormatInt(info.GetSize(), 10))
			return nil
		}
		if ifRange := f.r.Header.Get("If-Range"); ifRange == "" || matches(ifRange, etag) {
			from, length, ok, err := parseRange(f.r.Header.Get("Range"), info.GetSize())
			if err != nil {
				f.w.Header().Set("Content-Range", fmt.Sprintf("bytes */%d", info.GetSize()))
				return err
			}
			if ok {
				request.Offset, request.Length, status = from, length, http.StatusPartialContent
			}
		}
	}
	err = f.send(call, request, status, etag)
	if carrel.ReasonOf(err) != "is_directory" {
		return err
	}
	if call, err = f.begin(auth.ScopeView, fileLooks); err != nil { // that one ended with its stream
		return err
	}
	defer call.end()
	return f.list(call)
}

func (f *rawFile) needsLook() bool {
	h := f.r.Header
	return f.r.Method == http.MethodHead || h.Get("Range") != "" || h.Get("If-None-Match") != "" || h.Get("If-Match") != ""
}

// look describes a file, through links, by reading its first byte.
func (f *rawFile) look(call *fileCall) (*carrelv1.FileInfo, error) {
	in, err := call.files.Read(call.ctx, connect.NewRequest(&carrelv1.ReadFileRequest{Path: f.path, Length: 1}))
	if err != nil {
		return nil, call.failed(err)
	}
	defer in.Close()
	if !in.Receive() {
		if err := in.Err(); err != nil {
			return nil, call.failed(err)
		}
		return nil, errNoAnswer(call.box)
	}
	if in.Msg().GetInfo() == nil {
		return nil, errNoAnswer(call.box)
	}
	return in.Msg().GetInfo(), nil
}

func errNoAnswer(box carrel.BoxID) error {
	return errUnavailable(reasonAgentFailed, nil, "the agent in box %s did not answer as it must", box)
}

// send streams a part of a file.
func (f *rawFile) send(call *fileCall, request *carrelv1.ReadFileRequest, status int, etag string) error {
	in, err := call.files.Read(call.ctx, connect.NewRequest(request))
	if err != nil {
		return call.failed(err)
	}
	begun, left := false, int64(0)
	err = call.pass(in.Receive, in.Err, in.Close, func() error {
		data := in.Msg().GetData()
		if !begun {
			info := in.Msg().GetInfo()
			if info == nil {
				return errNoAnswer(call.box)
			}
			if etag != "" && info.GetEtag() != etag {
				return carrel.Errorf(carrel.CodeAborted, "file_changed", "%q was changed just now; try again", f.path)
			}
			f.describe(info)
			left = info.GetSize() - request.GetOffset()
			if status == http.StatusPartialContent {
				left = request.GetLength()
				f.w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", request.GetOffset(), request.GetOffset()+left-1, info.GetSize()))
			}
			if left > 0 || len(data) == 0 {
				f.w.Header().Set("Content-Length", strconv.FormatInt(left, 10))
			} else {
				left = -1 // a file of /proc: what comes is all
			}
			f.w.WriteHeader(status)
			begun = true
		}
		if left >= 0 {
			data = data[:min(int64(len(data)), left)]
			left -= int64(len(data))
		}
		_, err := f.w.Write(data)
		return err
	})
	if err == nil && left > 0 {
		err = errors.New("the file became shorter while it was read")
	}
	if err != nil && begun {
		return fmt.Errorf("%w: %w", errBegun, err)
	}
	return err
}

// describe sets the headers of a file.
func (f *rawFile) describe(info *carrelv1.FileInfo) {
	h := f.w.Header()
	name := path.Base(carrel.DecodeFileName(info.GetPath()))
	h.Set("Content-Type", contentType(name))
	h.Set("Accept-Ranges", "bytes")
	h.Set("ETag", quote(info.GetEtag()))
	if t := info.GetModifyTime(); t != nil && t.IsValid() {
		h.Set("Last-Modified", t.AsTime().UTC().Format(http.TimeFormat))
	}
	f.disposition(name)
}

func (f *rawFile) disposition(name string) {
	if f.r.URL.Query().Get("download") == "" {
		return
	}
	value := mime.FormatMediaType("attachment", map[string]string{"filename": strings.ToValidUTF8(name, "_")})
	if value == "" {
		value = "attachment"
	}
	f.w.Header().Set("Content-Disposition", value)
}

// quote makes an entity tag. What an agent says is not put into a header as it is.
func quote(etag string) string {
	return `"` + strings.Map(func(r rune) rune {
		if r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r == '-' || r == '_' {
			return r
		}
		return '_'
	}, clip(etag)) + `"`
}

// matches reports whether a list of entity tags has one.
func matches(list, etag string) bool {
	for one := range strings.SplitSeq(list, ",") {
		one = strings.TrimSpace(one)
		if one == "*" || strings.TrimPrefix(one, "W/") == quote(etag) {
			return true
		}
	}
	return false
}

// parseRange reads a Range header of one range. Without one, with several, and in other units the whole file is meant.
func parseRange(header string, size int64) (from, length int64, ok bool, err error) {
	spec, isBytes := strings.CutPrefix(strings.TrimSpace(header), "bytes=")
	if !isBytes || strings.Contains(spec, ",") {
		return 0, 0, false, nil
	}
	first, last, found := strings.Cut(strings.TrimSpace(spec), "-")
	if !found || !isNumber(first) && first != "" || !isNumber(last) && last != "" || first == "" && last == "" {
		return 0, 0, false, nil
	}
	unsatisfiable := carrel.Errorf(carrel.CodeInvalid, "bad_range", "the file has %d bytes, and none of the range %q", size, clip(spec))
	if first == "" {
		n, err := strconv.ParseInt(last, 10, 64)
		if err != nil {
			n = size
		}
		if n = min(n, size); n == 0 {
			return 0, 0, false, unsatisfiable
		}
		return size - n, n, true, nil
	}
	from, err = strconv.ParseInt(first, 10, 64)
	if err != nil || from >= size {
		return 0, 0, false, unsatisfiable
	}
	end := size - 1
	if last != "" {
		if n, err := strconv.ParseInt(last, 10, 64); err == nil {
			if n < from {
				return 0, 0, false, nil
			}
			end = min(n, end)
		}
	}
	return from, end - from + 1, true, nil
}

func isNumber(s string) bool {
	return s != "" && strings.Trim(s, "0123456789") == ""
}

// list answers with a directory as ListFiles does.
func (f *rawFile) list(call *fileCall) error {
	query := f.r.URL.Query()
	request := &carrelv1.ListFilesRequest{Path: f.path, PageToken: query.Get("page_token")}
	if text := query.Get("page_size"); text != "" {
		n, err := strconv.ParseInt(text, 10, 32)
		if err != nil {
			return carrel.Errorf(carrel.CodeInvalid, "bad_page_size", "the page size %q is no number", clip(text))
		}
		request.PageSize = int32(n)
	}
	resp, err := call.files.List(call.ctx, connect.NewRequest(request))
	if err != nil {
		return call.failed(err)
	}
	h := f.w.Header()
	h.Del("Accept-Ranges")
	return f.json(http.StatusOK, resp.Msg)
}

func (f *rawFile) json(status int, message proto.Message) error {
	text, err := protojson.MarshalOptions{EmitUnpopulated: true}.Marshal(message)
	if err != nil {
		return fmt.Errorf("encode answer: %w", err)
	}
	h := f.w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Content-Length", strconv.Itoa(len(text)+1))
	f.w.WriteHeader(status)
	_, _ = f.w.Write(append(text, '\n')) // a client that is gone needs no answer
	return nil
}

// archive streams a path as tar.zst.
func (f *rawFile) archive(call *fileCall, format string) error {
	if format != archiveFormat {
		return carrel.Errorf(carrel.CodeInvalid, "bad_archive_format", "there is no archive format %q; use %s", clip(format), archiveFormat)
	}
	if f.r.Method == http.MethodHead {
		f.w.Header().Set("Content-Type", "application/zstd")
		return nil
	}
	in, err := call.files.DownloadArchive(call.ctx, connect.NewRequest(&carrelv1.DownloadArchiveRequest{Path: f.path}))
	if err != nil {
		return call.failed(err)
	}
	begun := false
	err = call.pass(in.Receive, in.Err, in.Close, func() error {
		if !begun {
			f.w.Header().Set("Content-Type", "application/zstd")
			f.disposition(path.Base(carrel.DecodeFileName(in.Msg().GetInfo().GetPath())) + ".tar.zst")
			f.w.WriteHeader(http.StatusOK)
			begun = true
		}
		_, err := f.w.Write(in.Msg().GetData())
		return err
	})
	if err != nil && begun {
		return fmt.Errorf("%w: %w", errBegun, err)
	}
	return err
}

// putRequest reads what a PUT says besides its body.
func (f *rawFile) putRequest() (*carrelv1.WriteFileRequest, error) {
	query, h := f.r.URL.Query(), f.r.Header
	request := &carrelv1.WriteFileRequest{Path: f.path, UploadId: query.Get("upload_id"), Parents: isTrue(query.Get("parents"))}
	if strings.HasSuffix(f.r.URL.Path, "/") {
		return nil, carrel.Errorf(carrel.CodeInvalid, "bad_path", "the path ends with /; name a file")
	}
	if text := query.Get("mode"); text != "" {
		bits, err := strconv.ParseUint(text, 8, 32)
		if err != nil {
			return nil, carrel.Errorf(carrel.CodeInvalid, "bad_mode", "the mode %q is no octal number such as 0644", clip(text))
		}
		request.Mode = uint32(bits)
	}
	if text := query.Get("modify_time"); text != "" {
		t, err := time.Parse(time.RFC3339Nano, text)
		if err != nil {
			return nil, carrel.Errorf(carrel.CodeInvalid, "bad_time", "the time %q is not as in 2026-01-02T15:04:05Z", clip(text))
		}
		request.ModifyTime = timestamppb.New(t)
	}
	ifMatch, ifNone := h.Get("If-Match"), h.Get("If-None-Match")
	switch {
	case ifNone != "" && (ifNone != "*" || ifMatch != ""):
		return nil, carrel.Errorf(carrel.CodeInvalid, "bad_condition", "a PUT takes one If-Match with an ETag, or If-None-Match: *")
	case ifNone != "":
		request.IfMatch = "none"
	case ifMatch != "":
		etag, ok := strings.CutPrefix(ifMatch, `"`)
		etag, ok2 := strings.CutSuffix(etag, `"`)
		if !ok || !ok2 || strings.Contains(etag, `"`) {
			return nil, carrel.Errorf(carrel.CodeInvalid, "bad_condition", "If-Match has one ETag in quotes")
		}
		request.IfMatch = etag
	}
	if text := h.Get("Content-Range"); text != "" {
		first, last, total, ok := parseContentRange(text)
		if !ok || request.UploadId == "" || f.r.ContentLength >= 0 && f.r.ContentLength != last-first+1 {
			return nil, carrel.Errorf(carrel.CodeInvalid, "bad_range", "a part of a file has Content-Range: bytes FIRST-LAST/TOTAL (or /*), as many bytes as that, and upload_id in the query")
		}
		request.Offset, request.Partial = first, total != last+1
	}
	return request, nil
}

func isTrue(s string) bool { return s == "1" || s == "true" }

// parseContentRange reads bytes FIRST-LAST/TOTAL; total is -1 for an asterisk.
func parseContentRange(text string) (first, last, total int64, ok bool) {
	text, ok1 := strings.CutPrefix(text, "bytes ")
	span, size, ok2 := strings.Cut(text, "/")
	from, to, ok3 := strings.Cut(span, "-")
	if !ok1 || !ok2 || !ok3 || !isNumber(from) || !isNumber(to) {
		return 0, 0, 0, false
	}
	first, err1 := strconv.ParseInt(from, 10, 64)
	last, err2 := strconv.ParseInt(to, 10, 64)
	total = -1
	var err3 error
	if size != "*" {
		if !isNumber(size) {
			return 0, 0, 0, false
		}
		total, err3 = strconv.ParseInt(size, 10, 64)
	}
	if err1 != nil || err2 != nil || err3 != nil || last < first || last == 1<<63-1 || total >= 0 && total <= last {
		return 0, 0, 0, false
	}
	return first, last, total, true
}

func (f *rawFile) put() error {
	if format := f.r.URL.Query().Get("archive"); format != "" {
		return f.putArchive(format)
	}
	request, err := f.putRequest()
	if err != nil {
		return err
	}
	call, err := f.begin(auth.ScopeExec, fileWorks)
	if err != nil {
		return err
	}
	defer call.end()
	out := call.files.Write(call.ctx)
	err = f.sendBody(call, func(data []byte) error {
		message := &carrelv1.WriteFileRequest{Data: data}
		if request != nil {
			request.Data = data
			message, request = request, nil
		}
		return out.Send(message)
	})
	if err != nil {
		return err // without closing the stream, which would say that this was all
	}
	resp, err := out.CloseAndReceive()
	if err != nil {
		return call.failed(err)
	}
	if resp.Msg.GetEtag() == "" { // a part
		f.w.Header().Set("Upload-Offset", strconv.FormatInt(resp.Msg.GetSize(), 10))
		return f.json(http.StatusAccepted, &carrelv1.StatUploadResponse{Offset: resp.Msg.GetSize()})
	}
	f.w.Header().Set("ETag", quote(resp.Msg.GetEtag()))
	return f.json(http.StatusOK, resp.Msg)
}

func (f *rawFile) putArchive(format string) error {
	if format != archiveFormat {
		return carrel.Errorf(carrel.CodeInvalid, "bad_archive_format", "there is no archive format %q; use %s", clip(format), archiveFormat)
	}
	call, err := f.begin(auth.ScopeExec, fileWorks)
	if err != nil {
		return err
	}
	defer call.end()
	out := call.files.UploadArchive(call.ctx)
	where := f.path
	err = f.sendBody(call, func(data []byte) error {
		message := &carrelv1.UploadArchiveRequest{Path: where, Data: data}
		where = ""
		return out.Send(message)
	})
	if err != nil {
		return err // without closing the stream, which would say that this was all
	}
	resp, err := out.CloseAndReceive()
	if err != nil {
		return call.failed(err)
	}
	return f.json(http.StatusOK, resp.Msg)
}

// sendBody gives the body piece by piece, at least one. An error means that not all of it came; that the agent takes no more is
// none: its answer says why.
func (f *rawFile) sendBody(call *fileCall, send func([]byte) error) error {
	buf := make([]byte, uploadChunk)
	for first := true; ; first = false {
		n, err := 0, error(nil)
		for n < len(buf) && err == nil {
			var got int
			got, err = f.r.Body.Read(buf[n:])
			n += got
		}
		end := errors.Is(err, io.EOF)
		if err != nil && !end {
			return carrel.Errorf(carrel.CodeAborted, "canceled", "the body of the request broke off")
		}
		if n > 0 || first {
			if err := send(buf[:n]); errors.Is(err, io.EOF) {
				return nil
			} else if err != nil {
				return call.failed(err)
			}
		}
		if end {
			return nil
		}
	}
}

func (f *rawFile) remove() error {
	call, err := f.begin(auth.ScopeExec, fileWorks)
	if err != nil {
		return err
	}
	defer call.end()
	_, err = call.files.Remove(call.ctx, connect.NewRequest(&carrelv1.RemoveFileRequest{Path: f.path, Recursive: isTrue(f.r.URL.Query().Get("recursive"))}))
	if err != nil {
		return call.failed(err)
	}
	f.w.WriteHeader(http.StatusNoContent)
	return nil
}
