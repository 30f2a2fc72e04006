package jupyter

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"carrel.dev/carrel/internal/carrel"
)

const (
	typeDirectory = "directory"
	typeFile      = "file"
	typeNotebook  = "notebook"

	formatText   = "text"
	formatBase64 = "base64"
	formatJSON   = "json"
)

const (
	// maxContent is the largest file that is answered as a part of JSON, in bytes. Larger ones are had at /files/.
	maxContent = 64 << 20
	// maxListing bounds the entries of a directory.
	maxListing = 20_000
	// base64Line is how much base64 is in a line, as MIME has it.
	base64Line = 76
)

// model is a file, notebook or directory as Jupyter has it.
type model struct {
	Name          string  `json:"name"`
	Path          string  `json:"path"`
	LastModified  string  `json:"last_modified"`
	Created       string  `json:"created"`
	Content       any     `json:"content"`
	Format        *string `json:"format"`
	Mimetype      *string `json:"mimetype"`
	Size          *int64  `json:"size"`
	Writable      bool    `json:"writable"`
	Hash          *string `json:"hash"`
	HashAlgorithm *string `json:"hash_algorithm"`
	Type          string  `json:"type"`
	Message       string  `json:"message,omitempty"`

	modified time.Time
}

// wanted is what a request asks about a file.
type wanted struct {
	kind, format string // empty: what suits
	content      bool
	hash         bool
}

// describe makes the model of what is there, without its content. For AsUser.
func (s *Server) describe(apiPath, full string) (*model, fs.FileInfo, error) {
	info, err := os.Stat(full)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, refuse(http.StatusNotFound, "file or directory does not exist: %s", clip(apiPath))
	}
	if err != nil {
		return nil, nil, err
	}
	m := &model{
		Name: path.Base("/" + apiPath), Path: apiPath, LastModified: timestamp(info.ModTime()), Created: timestamp(changeTime(info)),
		Writable: unix.Faccessat(unix.AT_FDCWD, full, unix.W_OK, unix.AT_EACCESS) == nil, Type: typeOf(apiPath, info),
		modified: info.ModTime(),
	}
	if apiPath == "" {
		m.Name = ""
	}
	if !info.IsDir() {
		size := info.Size()
		m.Size = &size
		if m.Type == typeFile {
			m.Mimetype = guessType(apiPath)
		}
	}
	return m, info, nil
}

func typeOf(apiPath string, info fs.FileInfo) string {
	switch {
	case info.IsDir():
		return typeDirectory
	case strings.HasSuffix(apiPath, ".ipynb"):
		return typeNotebook
	}
	return typeFile
}

func changeTime(info fs.FileInfo) time.Time {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return time.Unix(st.Ctim.Unix())
	}
	return info.ModTime()
}

// get makes the model of what is at an API path, with what is wanted of it. For AsUser.
func (s *Server) get(apiPath string, want wanted) (*model, error) {
	apiPath = strings.Trim(apiPath, "/")
	full, err := s.place(apiPath)
	if err != nil {
		return nil, err
	}
	m, info, err := s.describe(apiPath, full)
	if err != nil {
		return nil, err
	}
	switch {
	case info.IsDir() && want.kind != "" && want.kind != typeDirectory:
		return nil, &problem{http.StatusBadRequest, clip(apiPath) + " is a directory, not a " + want.kind, "bad type"}
	case !info.IsDir() && want.kind == typeDirectory:
		return nil, &problem{http.StatusBadRequest, clip(apiPath) + " is not a directory", "bad type"}
	case info.IsDir():
		if want.content {
			err = s.list(m, full)
		}
		return m, err
	case want.kind != "":
		m.Type = want.kind
	}
	if m.Type == typeFile {
		m.Mimetype = guessType(apiPath)
	}
	if !want.content && !want.hash {
		return m, nil
	}
	data, err := readWhole(full, maxContent)
	if err != nil {
		return nil, err
	}
	if want.hash {
		sum := sha256.Sum256(data)
		text, algorithm := hex.EncodeToString(sum[:]), "sha256"
		m.Hash, m.HashAlgorithm = &text, &algorithm
	}
	if !want.content {
		return m, nil
	}
	if m.Type == typeNotebook {
		return m, s.fillNotebook(m, data)
	}
	return m, m.fill(data, want.format)
}

// fill adds the content of a file that is no notebook.
func (m *model) fill(data []byte, format string) error {
	text := utf8.Valid(data)
	if format == formatText && !text {
		return &problem{http.StatusBadRequest, clip(m.Path) + " is not UTF-8 encoded", "bad format"}
	}
	if format != formatBase64 && text {
		m.Content, m.Format = string(data), ref(formatText)
	} else {
		m.Content, m.Format = encodeLines(data), ref(formatBase64)
	}
	if m.Mimetype == nil {
		if *m.Format == formatText {
			m.Mimetype = ref("text/plain")
		} else {
			m.Mimetype = ref("application/octet-stream")
		}
	}
	return nil
}

func ref[T any](value T) *T { return &value }

// encodeLines is base64 in lines, as Jupyter has it.
func encodeLines(data []byte) string {
	text := base64.StdEncoding.EncodeToString(data)
	var b strings.Builder
	b.Grow(len(text) + len(text)/base64Line + 1)
	for len(text) > 0 {
		n := min(len(text), base64Line)
		b.WriteString(text[:n])
		b.WriteByte('\n')
		text = text[n:]
	}
	return b.String()
}

// decodeLines takes base64 with or without line breaks.
func decodeLines(text string) ([]byte, error) {
	return base64.StdEncoding.DecodeString(strings.Map(func(r rune) rune {
		if r == '\n' || r == '\r' || r == ' ' || r == '\t' {
			return -1
		}
		return r
	}, text))
}

// unlisted are names that nobody looks for in a list.
var unlisted = []string{"__pycache__", "*.pyc", "*.pyo", ".DS_Store", "*~", "*.so", "*.dylib"}

// list adds the models of a directory's entries.
func (s *Server) list(m *model, full string) error {
	dir, err := os.Open(full)
	if err != nil {
		return err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(maxListing + 1)
	if len(names) == 0 && err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if len(names) > maxListing {
		return refuse(http.StatusRequestEntityTooLarge, "%s has more than %d entries; use a terminal for it", clip(m.Path), maxListing)
	}
	slices.Sort(names)
	entries := []*model{}
	for _, name := range names {
		if strings.HasPrefix(name, ".") || slices.ContainsFunc(unlisted, func(pattern string) bool {
			hit, _ := filepath.Match(pattern, name)
			return hit
		}) {
			continue
		}
		one, info, err := s.describe(strings.Trim(m.Path+"/"+carrel.EncodeFileName(name), "/"), filepath.Join(full, name))
		if err != nil || !info.Mode().IsRegular() && !info.IsDir() {
			continue // broken links, devices and the like, and what went away meanwhile
		}
		entries = append(entries, one)
	}
	m.Content, m.Format = entries, ref(formatJSON)
	return nil
}

// mimetypes are those of names that matter to clients; others are guessed from the content.
var mimetypes = map[string]string{
	".bmp": "image/bmp", ".c": "text/x-csrc", ".css": "text/css", ".csv": "text/csv", ".gif": "image/gif", ".gz": "application/gzip", ".h": "text/x-chdr",
	".htm": "text/html", ".html": "text/html", ".ico": "image/vnd.microsoft.icon", ".jpeg": "image/jpeg", ".jpg": "image/jpeg", ".js": "text/javascript",
	".json": "application/json", ".md": "text/markdown", ".mjs": "text/javascript", ".mp3": "audio/mpeg", ".mp4": "video/mp4", ".ogg": "audio/ogg",
	".pdf": "application/pdf", ".png": "image/png", ".py": "text/x-python", ".sh": "application/x-sh", ".svg": "image/svg+xml", ".tar": "application/x-tar",
	".tex": "application/x-tex", ".tif": "image/tiff", ".tiff": "image/tiff", ".tsv": "text/tab-separated-values", ".txt": "text/plain", ".wav": "audio/x-wav",
	".webm": "video/webm", ".webp": "image/webp", ".xml": "text/xml", ".zip": "application/zip",
}

func guessType(apiPath string) *string {
	if t, ok := mimetypes[strings.ToLower(path.Ext(apiPath))]; ok {
		return &t
	}
	return nil
}

// escapePath makes a URL's path of an API path.
func escapePath(apiPath string) string {
	return (&url.URL{Path: apiPath}).EscapedPath()
}
