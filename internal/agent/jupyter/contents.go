package jupyter

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"mime"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"

	"golang.org/x/sys/unix"
)

// contents answers everything at /api/contents. path is the rest, decoded.
func (s *Server) contents(in *request, apiPath string) error {
	if dir, id, ok := cutCheckpoint(apiPath); ok {
		return s.checkpoints(in, dir, id)
	}
	if of, ok := strings.CutSuffix(apiPath, "/trust"); ok && in.Method == http.MethodPost {
		return s.trustNotebook(in, of)
	}
	switch in.Method {
	case http.MethodGet, http.MethodHead:
		return s.getContents(in, apiPath)
	case http.MethodPut:
		return s.putContents(in, apiPath)
	case http.MethodPost:
		return s.postContents(in, apiPath)
	case http.MethodPatch:
		return s.patchContents(in, apiPath)
	case http.MethodDelete:
		return s.deleteContents(in, apiPath)
	}
	in.w.Header().Set("Allow", "GET, HEAD, PUT, POST, PATCH, DELETE")
	return refuse(http.StatusMethodNotAllowed, "Method Not Allowed")
}

// finish answers with a model.
func (in *request) finish(status int, m *model, location bool) error {
	if location {
		in.w.Header().Set("Location", in.base+"api/contents/"+escapePath(m.Path))
	}
	in.w.Header().Set("Last-Modified", httpTime(m.modified))
	in.reply(status, m)
	return nil
}

func (s *Server) getContents(in *request, apiPath string) error {
	query := in.URL.Query()
	want := wanted{kind: query.Get("type"), format: query.Get("format"), content: true}
	switch want.kind {
	case "", typeDirectory, typeFile, typeNotebook:
	default:
		return refuse(http.StatusBadRequest, "Type '%s' is invalid", clip(want.kind))
	}
	switch want.format {
	case "", formatText, formatBase64:
	default:
		return refuse(http.StatusBadRequest, "Format '%s' is invalid", clip(want.format))
	}
	for name, field := range map[string]*bool{"content": &want.content, "hash": &want.hash} {
		switch value := query.Get(name); value {
		case "":
		case "0", "1":
			*field = value == "1"
		default:
			return refuse(http.StatusBadRequest, "%s '%s' is invalid", strings.ToUpper(name[:1])+name[1:], clip(value))
		}
	}
	if hidden(apiPath) {
		return refuse(http.StatusNotFound, "file or directory '%s' does not exist", clip(apiPath))
	}
	if want.content || want.hash {
		done, err := s.whole(in.Context())
		if err != nil {
			return err
		}
		defer done()
	}
	var m *model
	err := s.config.AsUser(in.Context(), func() (err error) {
		m, err = s.get(apiPath, want)
		return err
	})
	if err != nil {
		return err
	}
	return in.finish(http.StatusOK, m, false)
}

// given is the body of a request that writes.
type given struct {
	Type     string          `json:"type"`
	Format   string          `json:"format"`
	Content  json.RawMessage `json:"content"`
	Path     *string         `json:"path"`
	CopyFrom string          `json:"copy_from"`
	Ext      string          `json:"ext"`
	Chunk    *int            `json:"chunk"`
}

func (s *Server) putContents(in *request, apiPath string) error {
	done, err := s.whole(in.Context())
	if err != nil {
		return err
	}
	defer done()
	var g given
	found, err := in.body(&g, maxBody)
	switch {
	case err != nil:
		return err
	case !found:
		return s.makeUntitled(in, apiPath, given{})
	case g.CopyFrom != "":
		return refuse(http.StatusBadRequest, "Cannot copy with PUT, only POST")
	case hidden(apiPath):
		return refuse(http.StatusBadRequest, "Cannot create file or directory '%s'", clip(apiPath))
	}
	status := http.StatusOK
	var m *model
	err = s.config.AsUser(in.Context(), func() error {
		full, err := s.place(apiPath)
		if err != nil {
			return err
		}
		if info, err := os.Stat(full); err != nil || !info.Mode().IsRegular() {
			status = http.StatusCreated
			g.complete(apiPath)
		}
		m, err = s.save(apiPath, g)
		return err
	})
	if err != nil {
		return err
	}
	return in.finish(status, m, true)
}

// complete fills in what a request for something new may leave out.
func (g *given) complete(apiPath string) {
	if g.Type == "" {
		g.Type = typeFile
		if strings.HasSuffix(apiPath, ".ipynb") {
			g.Type = typeNotebook
		}
	}
	if g.Content == nil && g.Type != typeDirectory {
		g.Content, g.Format = json.RawMessage(`""`), formatText
		if g.Type == typeNotebook {
			g.Content, _ = json.Marshal(newNotebook())
			g.Format = formatJSON
		}
	}
}

// save writes what was given. For AsUser.
func (s *Server) save(apiPath string, g given) (*model, error) {
	apiPath = strings.Trim(apiPath, "/")
	full, err := s.place(apiPath)
	if err != nil {
		return nil, err
	}
	s.config.Sweep(full)
	message := ""
	switch {
	case g.Type == "":
		return nil, refuse(http.StatusBadRequest, "No file type provided")
	case g.Content == nil && g.Type != typeDirectory:
		return nil, refuse(http.StatusBadRequest, "No file content provided")
	case g.Chunk != nil && g.Type != typeFile:
		return nil, refuse(http.StatusBadRequest, "File type \"%s\" is not supported for large file transfer", clip(g.Type))
	case g.Type == typeNotebook:
		message, err = s.saveNotebook(apiPath, full, g.Content)
	case g.Type == typeFile:
		err = saveFile(full, g)
	case g.Type == typeDirectory:
		err = saveDirectory(apiPath, full)
	default:
		err = refuse(http.StatusBadRequest, "Unhandled contents type: %s", clip(g.Type))
	}
	if err != nil {
		return nil, err
	}
	m, err := s.get(apiPath, wanted{hash: g.Type != typeDirectory && g.Chunk == nil})
	if err == nil {
		m.Message = message
	}
	return m, err
}

func (s *Server) saveNotebook(apiPath, full string, content json.RawMessage) (message string, err error) {
	nb, err := parseNotebook(content)
	if err != nil {
		return "", refuse(http.StatusBadRequest, "Cannot save %s as a notebook: %v", clip(apiPath), err)
	}
	eachText(nb, join)
	good := trusted(nb)
	strip(nb)
	if good {
		s.trust.add(nb)
	}
	message = complaint(nb)
	data, err := writeNotebook(nb)
	if err != nil {
		return "", err
	}
	if err := replaceFile(full, data, 0o644); err != nil {
		return "", err
	}
	// One checkpoint is always there for notebooks. That it cannot be made must not look like a notebook that was not saved.
	if checkpoint := s.checkpointPlace(full, checkpointID); !isFile(checkpoint) {
		_ = makeCheckpoint(full, checkpoint)
	}
	return message, nil
}

func isFile(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular()
}

func saveFile(full string, g given) error {
	var text string
	if json.Unmarshal(g.Content, &text) != nil {
		return refuse(http.StatusBadRequest, "the content of a file is text")
	}
	data := []byte(text)
	switch g.Format {
	case formatText:
	case formatBase64:
		var err error
		if data, err = decodeLines(text); err != nil {
			return refuse(http.StatusBadRequest, "Encoding error saving %s: it is not base64", clip(filepath.Base(full)))
		}
	default:
		return refuse(http.StatusBadRequest, "Must specify format of file contents as 'text' or 'base64'")
	}
	if g.Chunk == nil || *g.Chunk == 1 {
		return replaceFile(full, data, 0o644)
	}
	file, err := os.OpenFile(full, os.O_WRONLY|os.O_APPEND|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer file.Close()
	if info, err := file.Stat(); err != nil || !info.Mode().IsRegular() {
		return errors.Join(err, refuse(http.StatusBadRequest, "%s is no file", clip(filepath.Base(full))))
	}
	if _, err := file.Write(data); err != nil {
		return err
	}
	if *g.Chunk == -1 {
		return file.Sync()
	}
	return nil
}

func saveDirectory(apiPath, full string) error {
	err := os.Mkdir(full, 0o755)
	if errors.Is(err, fs.ErrExist) {
		if info, err := os.Stat(full); err == nil && info.IsDir() {
			return nil
		}
		return refuse(http.StatusBadRequest, "Not a directory: %s", clip(apiPath))
	}
	return err
}

func (s *Server) postContents(in *request, apiPath string) error {
	var g given
	if _, err := in.body(&g, maxSmallBody); err != nil {
		return err
	}
	if g.CopyFrom == "" {
		return s.makeUntitled(in, apiPath, g)
	}
	if hidden(apiPath) || hidden(strings.Trim(g.CopyFrom, "/")) {
		return refuse(http.StatusBadRequest, "Cannot copy file or directory '%s'", clip(apiPath))
	}
	var m *model
	err := s.config.AsUser(in.Context(), func() (err error) {
		m, err = s.copyTo(strings.Trim(g.CopyFrom, "/"), strings.Trim(apiPath, "/"))
		return err
	})
	if err != nil {
		return err
	}
	return in.finish(http.StatusCreated, m, true)
}

// makeUntitled makes something new in a directory and chooses its name.
func (s *Server) makeUntitled(in *request, dir string, g given) error {
	if g.Type == "" {
		g.Type = typeFile
		if g.Ext == ".ipynb" {
			g.Type = typeNotebook
		}
	}
	base, ext, between := "untitled", g.Ext, ""
	switch g.Type {
	case typeDirectory:
		base, ext, between = "Untitled Folder", "", " "
	case typeNotebook:
		base, ext = "Untitled", ".ipynb"
	case typeFile:
	default:
		return refuse(http.StatusBadRequest, "Unexpected model type: '%s'", clip(g.Type))
	}
	if strings.ContainsAny(ext, "/\x00") || len(ext) > 64 {
		return refuse(http.StatusBadRequest, "the ending '%s' is none", clip(ext))
	}
	if hidden(dir) {
		return refuse(http.StatusNotFound, "No such directory: %s", clip(dir))
	}
	g.Content = nil
	var m *model
	err := s.config.AsUser(in.Context(), func() error {
		name, err := s.reserve(dir, base, ext, between, g.Type == typeDirectory)
		if err != nil {
			return err
		}
		g.complete(name)
		m, err = s.save(name, g)
		return err
	})
	if err != nil {
		return err
	}
	return in.finish(http.StatusCreated, m, true)
}

// maxNumbers is how many numbers are tried for a name.
const maxNumbers = 100_000

// reserve makes an empty file, or a directory, of the first name that is free, so that no two requests get the same. It gives the API path.
func (s *Server) reserve(dir, base, ext, between string, directory bool) (string, error) {
	fullDir, err := s.place(dir)
	if err != nil {
		return "", err
	}
	if info, err := os.Stat(fullDir); err != nil || !info.IsDir() {
		return "", refuse(http.StatusNotFound, "No such directory: %s", clip(dir))
	}
	for i := range maxNumbers {
		name := base + ext
		if i > 0 {
			name = fmt.Sprintf("%s%s%d%s", base, between, i, ext)
		}
		full := filepath.Join(fullDir, name)
		if directory {
			err = os.Mkdir(full, 0o755)
		} else {
			var file *os.File
			if file, err = os.OpenFile(full, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644); err == nil {
				err = file.Close()
			}
		}
		if !errors.Is(err, fs.ErrExist) {
			return strings.Trim(dir+"/"+name, "/"), err
		}
	}
	return "", refuse(http.StatusConflict, "there are too many files named %s", clip(base+ext))
}

var copyNumber = regexp.MustCompile(`-Copy[0-9]*\.`)

// copyTo copies a file into a directory, or to a path of its own. For AsUser.
func (s *Server) copyTo(from, to string) (*model, error) {
	m, err := s.get(from, wanted{})
	if err != nil {
		return nil, err
	}
	if m.Type == typeDirectory {
		return nil, refuse(http.StatusBadRequest, "Can't copy directories")
	}
	fullFrom, err := s.place(from)
	if err != nil {
		return nil, err
	}
	fullTo, err := s.place(to)
	if err != nil {
		return nil, err
	}
	if info, err := os.Stat(fullTo); err == nil && info.IsDir() {
		name := copyNumber.ReplaceAllString(path.Base(from), ".")
		base, ext := splitName(name)
		if to, err = s.reserveCopy(to, base, ext); err != nil {
			return nil, err
		}
		if fullTo, err = s.place(to); err != nil {
			return nil, err
		}
	} else if info, err := os.Stat(filepath.Dir(fullTo)); err != nil || !info.IsDir() {
		return nil, refuse(http.StatusNotFound, "No such parent directory: %s to copy file in", clip(path.Dir(to)))
	}
	if err := copyFile(fullFrom, fullTo); err != nil {
		return nil, err
	}
	return s.get(to, wanted{})
}

// reserveCopy is reserve with Jupyter's names for copies.
func (s *Server) reserveCopy(dir, base, ext string) (string, error) {
	return s.reserve(dir, base, ext, "-Copy", false)
}

// splitName takes the ending from a name: what follows the last dot of a notebook, and the first dot of everything else.
func splitName(name string) (base, ext string) {
	if before, ok := strings.CutSuffix(name, ".ipynb"); ok {
		return before, ".ipynb"
	}
	before, after, ok := strings.Cut(name, ".")
	if !ok {
		return name, ""
	}
	return before, "." + after
}

func (s *Server) patchContents(in *request, apiPath string) error {
	var g given
	found, err := in.body(&g, maxSmallBody)
	if err != nil {
		return err
	}
	if !found {
		return refuse(http.StatusBadRequest, "JSON body missing")
	}
	to := apiPath
	if g.Path != nil {
		to = strings.Trim(*g.Path, "/")
	}
	if hidden(apiPath) || hidden(to) {
		return refuse(http.StatusBadRequest, "Cannot rename file or directory '%s'", clip(apiPath))
	}
	if apiPath == "" && to != "" {
		return refuse(http.StatusBadRequest, "the root cannot be renamed")
	}
	var m *model
	err = s.config.AsUser(in.Context(), func() error {
		if to != apiPath {
			if err := s.move(apiPath, to); err != nil {
				return err
			}
		}
		m, err = s.get(to, wanted{})
		return err
	})
	if err != nil {
		return err
	}
	return in.finish(http.StatusOK, m, true)
}

// move renames something together with its checkpoints. For AsUser.
func (s *Server) move(from, to string) error {
	fullFrom, err := s.place(from)
	if err != nil {
		return err
	}
	fullTo, err := s.place(to)
	if err != nil {
		return err
	}
	if _, err := os.Lstat(fullFrom); errors.Is(err, fs.ErrNotExist) {
		return refuse(http.StatusNotFound, "file or directory does not exist: %s", clip(from))
	}
	if err := s.config.Move(fullFrom, fullTo, func() error { return rename(fullFrom, fullTo) }); err != nil {
		if errors.Is(err, unix.EEXIST) || errors.Is(err, unix.ENOTEMPTY) {
			return refuse(http.StatusConflict, "File already exists: %s", clip(to))
		}
		return err
	}
	if old := s.checkpointPlace(fullFrom, checkpointID); isFile(old) {
		next := s.checkpointPlace(fullTo, checkpointID)
		if os.MkdirAll(filepath.Dir(next), 0o755) == nil {
			_ = os.Rename(old, next)
		}
	}
	return nil
}

func (s *Server) deleteContents(in *request, apiPath string) error {
	switch {
	case apiPath == "":
		return refuse(http.StatusBadRequest, "Can't delete root")
	case hidden(apiPath):
		return refuse(http.StatusBadRequest, "Cannot delete file or directory '%s'", clip(apiPath))
	}
	err := s.config.AsUser(in.Context(), func() error {
		full, err := s.place(apiPath)
		if err != nil {
			return err
		}
		info, err := os.Lstat(full)
		if errors.Is(err, fs.ErrNotExist) {
			return refuse(http.StatusNotFound, "file or directory does not exist: %s", clip(apiPath))
		}
		if err != nil {
			return err
		}
		err = s.discard(full)
		if errors.Is(err, unix.EXDEV) && info.Mode().IsRegular() { // it is elsewhere than the trash
			err = os.Remove(full)
		}
		if err == nil {
			_ = os.Remove(s.checkpointPlace(full, checkpointID))
		}
		return err
	})
	if err != nil {
		return err
	}
	in.w.WriteHeader(http.StatusNoContent)
	return nil
}

func (s *Server) trustNotebook(in *request, apiPath string) error {
	done, err := s.whole(in.Context())
	if err != nil {
		return err
	}
	defer done()
	err = s.config.AsUser(in.Context(), func() error {
		full, err := s.place(apiPath)
		if err != nil {
			return err
		}
		data, err := readWhole(full, maxContent)
		if err != nil {
			return err
		}
		nb, err := parseNotebook(data)
		if err != nil {
			return refuse(http.StatusBadRequest, "Unreadable Notebook: %s: %v", clip(apiPath), err)
		}
		eachText(nb, join)
		strip(nb)
		s.trust.add(nb)
		return nil
	})
	if err == nil {
		in.w.WriteHeader(http.StatusCreated)
	}
	return err
}

// file answers with the content of a file as it is, at /files/.
func (s *Server) file(in *request, apiPath string) error {
	return in.only(http.MethodGet, func() error {
		if hidden(apiPath) {
			return refuse(http.StatusNotFound, "Not Found")
		}
		var file *os.File
		var info fs.FileInfo
		err := s.config.AsUser(in.Context(), func() error {
			full, err := s.place(apiPath)
			if err == nil {
				file, info, err = openRegular(full)
			}
			return err
		})
		if err != nil {
			return err
		}
		defer file.Close()
		name := path.Base(apiPath)
		h := in.w.Header()
		kind := "text/plain; charset=UTF-8"
		switch guessed := guessType(name); {
		case strings.HasSuffix(strings.ToLower(name), ".ipynb"):
			kind = "application/x-ipynb+json"
		case guessed == nil:
			kind = "application/octet-stream"
		case *guessed != "text/plain":
			kind = *guessed
		}
		h.Set("Content-Type", kind)
		h.Set("Content-Security-Policy", "sandbox allow-scripts")
		h.Set("Cache-Control", "no-cache")
		if in.URL.Query().Get("download") != "" {
			h.Set("Content-Disposition", mime.FormatMediaType("attachment", map[string]string{"filename": name}))
		}
		http.ServeContent(in.w, in.Request, "", info.ModTime(), file)
		return nil
	})
}
