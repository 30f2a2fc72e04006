package image

import (
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"
	"time"

	"carrel.dev/carrel/internal/carrel"
)

// entry is one file of a tree. A directory's entry is shared by nobody; the content of a regular file can
// be that of several entries (hard links).
type entry struct {
	name     string
	mode     fs.FileMode // type and permissions, set-user-id and so on included
	uid, gid uint32
	mtime    time.Time
	device   uint32 // as the kernel encodes it, for devices
	target   string // of a symbolic link
	content  content
	children map[string]*entry // of a directory
}

// content is where the bytes of a regular file lie: a part of a file, or memory.
type content struct {
	from   io.ReaderAt
	offset int64
	size   int64
}

func (e *entry) isDir() bool { return e.mode.IsDir() }

// tree is a file system in memory: names and places, not contents. It is not safe for concurrent use.
type tree struct {
	root *entry
}

func newTree() *tree {
	return &tree{root: newDir("", time.Unix(0, 0))}
}

func newDir(name string, mtime time.Time) *entry {
	return &entry{name: name, mode: fs.ModeDir | 0o755, mtime: mtime, children: map[string]*entry{}}
}

// maxLinks bounds how many symbolic links lead to one place, as in the kernel.
const maxLinks = 40

// layerError is what is wrong with a layer, in words for whoever imports it.
func layerError(format string, args ...any) error {
	return carrel.Errorf(carrel.CodeInvalid, "image_layer_invalid", "the image cannot be used: %s", fmt.Sprintf(format, args...))
}

// split returns the parts of a slash separated path in a layer; none for the root. Names that could
// mean something outside of the tree are refused.
func split(name string) ([]string, error) {
	if strings.HasPrefix(name, "/") {
		return nil, layerError("it has an entry with the absolute path %q", clip(name))
	}
	if strings.IndexByte(name, 0) >= 0 {
		return nil, layerError("it has a name with a zero byte, %q", clip(name))
	}
	if len(name) > 4096 {
		return nil, layerError("it has a path of %d bytes; at most 4096 are possible", len(name))
	}
	var parts []string
	for part := range strings.SplitSeq(name, "/") {
		switch {
		case part == "" || part == ".":
		case part == "..":
			return nil, layerError("the entry %q leads out of it with ..", clip(name))
		case len(part) > 255:
			return nil, layerError("it has a name of %d bytes; at most 255 are possible", len(part))
		default:
			parts = append(parts, part)
		}
	}
	return parts, nil
}

// clip shortens a stranger's text for a message.
func clip(s string) string {
	if len(s) > 120 {
		return s[:120] + "…"
	}
	return s
}

// resolver walks a path that a stranger gave, symbolic links included, and never leaves the tree.
type resolver struct {
	tree  *tree
	links int
}

// dir returns the directory that parts lead to from the root. With create, missing directories are made.
// It answers nil without error if something is missing and create is false.
func (t *tree) dir(parts []string, create bool) (*entry, error) {
	r := &resolver{tree: t}
	stack, err := r.walk([]*entry{t.root}, parts, create)
	if err != nil || stack == nil {
		return nil, err
	}
	return stack[len(stack)-1], nil
}

// walk follows parts from the last directory of stack, which has the path from the root to it.
func (r *resolver) walk(stack []*entry, parts []string, create bool) ([]*entry, error) {
	for _, part := range parts {
		here := stack[len(stack)-1]
		switch part {
		case "", ".":
			continue
		case "..":
			if len(stack) == 1 {
				return nil, layerError("a symbolic link on the way to %q leads out of it", clip(strings.Join(parts, "/")))
			}
			stack = stack[:len(stack)-1]
			continue
		}
		child := here.children[part]
		switch {
		case child == nil && !create:
			return nil, nil
		case child == nil:
			if len(part) > 255 {
				return nil, layerError("it has a name of %d bytes; at most 255 are possible", len(part))
			}
			child = newDir(part, here.mtime)
			here.children[part] = child
			stack = append(stack, child)
			if err := checkLength(stack, ""); err != nil {
				return nil, err
			}
		case child.isDir():
			stack = append(stack, child)
		case child.mode.Type() == fs.ModeSymlink:
			r.links++
			if r.links > maxLinks {
				return nil, layerError("more than %d symbolic links lead to %q", maxLinks, clip(strings.Join(parts, "/")))
			}
			base := stack
			if path.IsAbs(child.target) {
				base = stack[:1]
			}
			// A copy: the links of one directory must not write over each other's path.
			base = append(make([]*entry, 0, len(base)+4), base...)
			next, err := r.walk(base, strings.Split(child.target, "/"), create)
			if err != nil || next == nil {
				return nil, err
			}
			stack = next
		default:
			return nil, layerError("%q lies in %q, which is not a directory", clip(strings.Join(parts, "/")), clip(part))
		}
	}
	return stack, nil
}

// checkLength bounds the true path of an entry, whatever links led to it: the kernel cannot reach longer ones,
// and paths of any length would take memory without end.
func checkLength(stack []*entry, name string) error {
	length := len(name)
	for _, e := range stack {
		length += len(e.name) + 1
	}
	if length > 4096 {
		return layerError("it has a path of %d bytes; at most 4096 are possible", length)
	}
	return nil
}

// find returns the entry at parts without following a link at its end; nil if it is not there.
func (t *tree) find(parts []string) (*entry, error) {
	if len(parts) == 0 {
		return t.root, nil
	}
	dir, err := t.dir(parts[:len(parts)-1], false)
	if err != nil || dir == nil {
		return nil, err
	}
	return dir.children[parts[len(parts)-1]], nil
}

// lookup returns the regular file at an absolute path, links followed; nil if there is none or it cannot be reached.
func (t *tree) lookup(name string) *entry {
	parts := strings.Split(strings.Trim(path.Clean(name), "/"), "/")
	for range maxLinks {
		e, err := t.find(parts)
		if err != nil || e == nil {
			return nil
		}
		if e.mode.Type() != fs.ModeSymlink {
			return e
		}
		next := e.target
		if !path.IsAbs(next) {
			next = path.Join("/", strings.Join(parts[:len(parts)-1], "/"), next)
		}
		parts = strings.Split(strings.Trim(path.Clean(next), "/"), "/")
	}
	return nil
}

// put places e at parts: a directory over a directory keeps what is in it, everything else replaces.
func (t *tree) put(parts []string, e *entry) error {
	if len(parts) == 0 {
		if !e.isDir() {
			return layerError("its root is not a directory")
		}
		e.children, e.name = t.root.children, ""
		t.root = e
		return nil
	}
	r := &resolver{tree: t}
	stack, err := r.walk([]*entry{t.root}, parts[:len(parts)-1], true)
	if err != nil {
		return err
	}
	dir := stack[len(stack)-1]
	e.name = parts[len(parts)-1]
	if err := checkLength(stack, e.name); err != nil {
		return err
	}
	if e.isDir() {
		if old := dir.children[e.name]; old != nil && old.isDir() {
			e.children = old.children
		}
		if e.children == nil {
			e.children = map[string]*entry{}
		}
	}
	dir.children[e.name] = e
	return nil
}

// link makes parts a second name of the regular file at target.
func (t *tree) link(parts, target []string) error {
	if len(parts) == 0 {
		return layerError("its root is not a directory")
	}
	old, err := t.find(target)
	if err != nil {
		return err
	}
	if old == nil {
		return layerError("the hard link %q leads to %q, which is not there", clip(strings.Join(parts, "/")), clip(strings.Join(target, "/")))
	}
	if old.isDir() {
		return layerError("the hard link %q leads to a directory", clip(strings.Join(parts, "/")))
	}
	copied := *old
	return t.put(parts, &copied)
}

// remove takes parts away with everything below; nothing happens if it is not there.
func (t *tree) remove(parts []string) error {
	if len(parts) == 0 {
		return nil
	}
	dir, err := t.dir(parts[:len(parts)-1], false)
	if err != nil || dir == nil {
		return err
	}
	delete(dir.children, parts[len(parts)-1])
	return nil
}

// count returns how many entries the tree has and the sum of their contents in bytes.
func (t *tree) count() (entries, bytes int64) {
	var walk func(*entry)
	walk = func(e *entry) {
		entries++
		bytes += e.content.size
		for _, c := range e.children {
			walk(c)
		}
	}
	walk(t.root)
	return entries, bytes
}
