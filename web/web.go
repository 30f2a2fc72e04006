// Package web holds the browser's pages, as `make build` made them from the sources beside this file. It serves files and knows nothing of who asks:
// which headers go with them and who may see them is the gateway's.
package web

import (
	"compress/gzip"
	"embed"
	"io"
	"io/fs"
	"mime"
	"path"
	"strings"
)

// The folder is empty but for a placeholder until the pages were built, so that the Go code can always be.
//
//go:embed all:dist
var dist embed.FS

// File is one file of the pages.
type File struct {
	// ContentType is fit for the header of that name.
	ContentType string
	// Immutable: the name changes with the content, so that browsers may keep it for good.
	Immutable bool
	// Zipped is the content, compressed with gzip; nil: it is not kept so, and Plain is there.
	Zipped []byte
	Plain  []byte
}

// Open finds a file by its path below the root, such as "/assets/index-abc.js". ok is false for what is not there.
func Open(name string) (file File, ok bool) { return open(dist, name) }

func open(files fs.FS, name string) (file File, ok bool) {
	name = path.Join("dist", path.Clean("/"+name))
	file.ContentType = contentType(name)
	file.Immutable = strings.HasPrefix(name, "dist/assets/")
	if path.Base(name)[0] == '.' || strings.HasSuffix(name, ".gz") {
		return File{}, false
	}
	var err error
	if file.Zipped, err = fs.ReadFile(files, name+".gz"); err == nil {
		return file, true
	}
	file.Plain, err = fs.ReadFile(files, name)
	return file, err == nil
}

// Unzipped is the content for who does not understand gzip.
func (f File) Unzipped() ([]byte, error) {
	if f.Zipped == nil {
		return f.Plain, nil
	}
	r, err := gzip.NewReader(strings.NewReader(string(f.Zipped)))
	if err != nil {
		return nil, err
	}
	return io.ReadAll(r)
}

// types are told here and not by the machine's own list, which may say something else or nothing.
var types = map[string]string{
	".html": "text/html; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8", ".svg": "image/svg+xml",
	".json": "application/json", ".woff2": "font/woff2", ".woff": "font/woff", ".png": "image/png", ".wasm": "application/wasm", ".txt": "text/plain; charset=utf-8",
}

func contentType(name string) string {
	if t := types[path.Ext(name)]; t != "" {
		return t
	}
	if t := mime.TypeByExtension(path.Ext(name)); t != "" {
		return t
	}
	return "application/octet-stream"
}
