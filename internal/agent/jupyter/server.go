package jupyter

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"carrel.dev/carrel/internal/agent/kernel"
	"carrel.dev/carrel/internal/carrel"
)

const (
	// apiVersion is the release of Jupyter Server whose API this is.
	apiVersion = "2.14.0"
	// maxBody bounds the body of a request, in bytes: a notebook or file to save, in JSON.
	maxBody = 96 << 20
	// maxSmallBody bounds every other body, in bytes.
	maxSmallBody = 1 << 20
	// bodyTime is how long a body may take to come.
	bodyTime = 10 * time.Minute
	// maxLarge bounds the requests that have a whole file in memory at once.
	maxLarge = 4
	// HeaderUser is the header by which a gateway says which user of the platform asks.
	HeaderUser = "Carrel-User"
	// headerPrefix is the path at which the client knows this server, without the slash at its end.
	headerPrefix = "X-Forwarded-Prefix"
)

// Config of a Server.
type Config struct {
	// Home is the root of the contents: the box user's home, absolute.
	Home string
	// AsUser runs f with the rights of the box's user and gives its error.
	AsUser func(ctx context.Context, f func() error) error
	// Terminals starts and finds terminals; nil: there are none.
	Terminals Terminals
	// Move has rename give a file or directory another name, and what belongs to it follow; paths are absolute. nil: just renames.
	Move func(from, to string, rename func() error) error
	// Sweep is called with the absolute path of a file before it is saved, to remove what broken saves left beside it; nil: nothing is.
	Sweep func(path string)
	// Kernels are the box's kernels; nil: there are none.
	Kernels *kernel.Manager
	Log     *slog.Logger
	Now     func() time.Time // nil: time.Now
}

// Server answers as a Jupyter server does. Its methods are safe for concurrent use.
type Server struct {
	config    Config
	log       *slog.Logger
	now       func() time.Time
	started   time.Time
	large     chan struct{} // a place for each request with a whole file in memory
	trust     *trust
	configs   sync.Mutex // held while a section of the configuration is changed
	sessions  *sessions
	viewers   *viewers
	terminals *terminals
	ctx       context.Context // ends with Close
	stop      context.CancelFunc

	sockets sync.WaitGroup

	mu     sync.Mutex // guards what follows
	last   time.Time  // of the last activity
	closed bool
}

// New makes a Server. The caller calls Close in the end.
func New(config Config) (*Server, error) {
	switch {
	case !filepath.IsAbs(config.Home):
		return nil, fmt.Errorf("jupyter: the home %q is not absolute", config.Home)
	case config.AsUser == nil:
		return nil, errors.New("jupyter: no way to become the user was given")
	case config.Log == nil:
		return nil, errors.New("jupyter: no log was given")
	}
	if config.Move == nil {
		config.Move = func(_, _ string, rename func() error) error { return rename() }
	}
	if config.Sweep == nil {
		config.Sweep = func(string) {}
	}
	if config.Now == nil {
		config.Now = time.Now
	}
	config.Home = filepath.Clean(config.Home)
	s := &Server{config: config, log: config.Log, now: config.Now, large: make(chan struct{}, maxLarge), trust: newTrust()}
	s.started = s.now()
	s.last = s.started
	s.ctx, s.stop = context.WithCancel(context.Background())
	s.terminals = newTerminals(s)
	s.sessions = newSessions(s)
	s.viewers = newViewers(s)
	return s, nil
}

// Close ends every WebSocket and gives everything back. It waits for that.
func (s *Server) Close() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.stop()
	s.viewers.close()
	s.sockets.Wait()
}

// enter counts a socket that Close waits for; false: the server is closed.
func (s *Server) enter() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		s.sockets.Add(1)
	}
	return !s.closed
}

// problem is an error that a client is told with a status, as Jupyter Server has it.
type problem struct {
	status  int
	message string
	reason  string // in place of the status's own words; empty: none
}

func (p *problem) Error() string { return p.message }

func refuse(status int, format string, args ...any) error {
	return &problem{status: status, message: fmt.Sprintf(format, args...)}
}

// request is one request on its way through the server.
type request struct {
	*http.Request
	w    http.ResponseWriter
	path string // decoded, below the base, without a slash at either end
	base string // the path that the client has before it, with slashes at both ends
}

// ServeHTTP answers one request. What is not of Jupyter's API is 404.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	in := &request{Request: r, w: w, path: strings.Trim(r.URL.Path, "/"), base: baseOf(r)}
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	defer func() {
		if reason := recover(); reason != nil {
			if reason == http.ErrAbortHandler { //nolint:errorlint // the very value
				panic(reason)
			}
			s.log.Error("a request for notebooks panicked", "reason", fmt.Sprint(reason), "stack", string(debug.Stack()))
			in.fail(http.StatusInternalServerError, "internal error of the box's agent; its log says more", "")
		}
	}()
	if err := s.route(in); err != nil {
		s.answerError(in, err)
	}
}

var basePattern = regexp.MustCompile(`^(/[A-Za-z0-9._~%-]+){0,8}/?$`)

func baseOf(r *http.Request) string {
	base := r.Header.Get(headerPrefix)
	if !basePattern.MatchString(base) {
		base = ""
	}
	return strings.TrimSuffix(base, "/") + "/"
}

// answerError says what went wrong in Jupyter's form.
func (s *Server) answerError(in *request, err error) {
	var p *problem
	var own *carrel.Error
	switch {
	case errors.As(err, &p):
		in.fail(p.status, p.message, p.reason)
	case errors.As(err, &own):
		if own.Code == carrel.CodeInternal {
			s.log.Error("a request for notebooks failed", "path", in.path, "error", err)
		}
		in.fail(statusOf(own.Code), own.Message, "")
	case in.Context().Err() != nil:
		in.fail(499, "the client is gone", "") // nobody reads it
	default:
		status, message := fileProblem(err)
		if status == http.StatusInternalServerError {
			s.log.Error("a request for notebooks failed", "path", in.path, "error", err)
		}
		in.fail(status, message, "")
	}
}

func statusOf(code carrel.Code) int {
	switch code {
	case carrel.CodeInvalid:
		return http.StatusBadRequest
	case carrel.CodeNotFound:
		return http.StatusNotFound
	case carrel.CodeDenied:
		return http.StatusForbidden
	case carrel.CodeExists, carrel.CodeAborted, carrel.CodePrecondition:
		return http.StatusConflict
	case carrel.CodeExhausted:
		return http.StatusTooManyRequests
	case carrel.CodeUnavailable:
		return http.StatusServiceUnavailable
	case carrel.CodeDeadline:
		return http.StatusGatewayTimeout
	}
	return http.StatusInternalServerError
}

// fileProblem says what an error of the file system means.
func fileProblem(err error) (status int, message string) {
	for _, known := range []struct {
		errno   unix.Errno
		status  int
		message string
	}{
		{unix.ENOENT, http.StatusNotFound, "file or directory does not exist"},
		{unix.ENOTDIR, http.StatusNotFound, "something on the way to the file is no directory"},
		{unix.EACCES, http.StatusForbidden, "Permission denied"},
		{unix.EPERM, http.StatusForbidden, "Permission denied"},
		{unix.EROFS, http.StatusForbidden, "that part of the box cannot be written"},
		{unix.EEXIST, http.StatusConflict, "File already exists"},
		{unix.ENOTEMPTY, http.StatusBadRequest, "Directory not empty"},
		{unix.EISDIR, http.StatusBadRequest, "it is a directory"},
		{unix.ENOSPC, http.StatusInsufficientStorage, "the disk of the box is full, and nothing was changed; remove something there and save again"},
		{unix.EDQUOT, http.StatusInsufficientStorage, "the disk of the box is full, and nothing was changed; remove something there and save again"},
		{unix.ELOOP, http.StatusBadRequest, "too many symbolic links"},
		{unix.ENAMETOOLONG, http.StatusBadRequest, "the name is too long"},
		{unix.EINVAL, http.StatusBadRequest, "the file system does not take this name or file"},
		{unix.EMFILE, http.StatusServiceUnavailable, "the box has too many files open; close some"},
		{unix.ENFILE, http.StatusServiceUnavailable, "the box has too many files open; close some"},
	} {
		if errors.Is(err, known.errno) {
			var at *os.PathError
			if errors.As(err, &at) {
				return known.status, known.message + ": " + carrel.EncodeFileName(filepath.Base(at.Path))
			}
			return known.status, known.message
		}
	}
	return http.StatusInternalServerError, "internal error of the box's agent; its log says more"
}

// fail answers with an error in the form that Jupyter Server gives it.
func (in *request) fail(status int, message, reason string) {
	body := struct {
		Message string  `json:"message"`
		Reason  *string `json:"reason"`
	}{Message: message}
	if reason != "" {
		body.Reason = &reason
	}
	in.reply(status, body)
}

// reply answers with JSON.
func (in *request) reply(status int, body any) {
	data, err := marshal(body)
	if err != nil {
		status, data = http.StatusInternalServerError, []byte(`{"message":"the answer cannot be written as JSON","reason":null}`)
	}
	h := in.w.Header()
	h.Set("Content-Type", "application/json")
	if status == http.StatusOK && (in.Method == http.MethodGet || in.Method == http.MethodHead) {
		sum := sha256.Sum256(data)
		etag := `"` + hex.EncodeToString(sum[:20]) + `"`
		h.Set("Etag", etag)
		if matches(in.Header.Get("If-None-Match"), etag) {
			h.Del("Content-Type")
			in.w.WriteHeader(http.StatusNotModified)
			return
		}
	}
	h.Set("Content-Length", fmt.Sprint(len(data)))
	in.w.WriteHeader(status)
	if in.Method != http.MethodHead {
		_, _ = in.w.Write(data)
	}
}

// matches reports whether an If-None-Match names a tag.
func matches(header, etag string) bool {
	for one := range strings.SplitSeq(header, ",") {
		if one = strings.TrimPrefix(strings.TrimSpace(one), "W/"); one == etag || one == "*" {
			return true
		}
	}
	return false
}

// marshal writes JSON as other servers do: <, > and & as they are.
func marshal(value any) ([]byte, error) {
	var b strings.Builder
	encoder := json.NewEncoder(&b)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(value); err != nil {
		return nil, err
	}
	return []byte(strings.TrimSuffix(b.String(), "\n")), nil
}

// body reads the JSON of a request into value; no body at all is null, and found is false.
func (in *request) body(value any, limit int64) (found bool, err error) {
	_ = http.NewResponseController(in.w).SetReadDeadline(time.Now().Add(bodyTime))
	data, err := io.ReadAll(http.MaxBytesReader(in.w, in.Body, limit))
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return false, refuse(http.StatusRequestEntityTooLarge, "the request has more than %d MiB; copy such a file in another way, or clear outputs of the notebook", limit>>20)
	case err != nil:
		return false, refuse(http.StatusBadRequest, "the body of the request did not come whole")
	}
	_ = http.NewResponseController(in.w).SetReadDeadline(time.Time{})
	data = bytes.TrimSpace(data)
	if len(data) == 0 || string(data) == "null" {
		return false, nil
	}
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.UseNumber()
	if err := decoder.Decode(value); err != nil || decoder.More() {
		return false, refuse(http.StatusBadRequest, "Invalid JSON in body of request")
	}
	return true, nil
}

// timestamp is a time as Jupyter has it.
func timestamp(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000000Z") }

// touch notes activity of a client or kernel.
func (s *Server) touch() {
	s.mu.Lock()
	s.last = s.now()
	s.mu.Unlock()
}

// whole takes a place for a request with a whole file in memory.
func (s *Server) whole(ctx context.Context) (done func(), err error) {
	select {
	case s.large <- struct{}{}:
		return func() { <-s.large }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}
