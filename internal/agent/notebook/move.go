package notebook

import (
	"cmp"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/carrel"
)

// maxSearched is how many names are looked at for a notebook that somebody renamed.
const maxSearched = 5000

// Move has rename give a file or directory another name, and the notebooks that are open there go with it: their kernels, what is executed, and its outputs. Nothing is
// saved meanwhile. from and to are absolute and clean; a link that is renamed itself is no notebook, and the one that it leads to stays. The error is rename's; nothing has changed then.
func (s *Service) Move(from, to string, rename func() error) error {
	_ = s.config.AsUser(func() error { // what cannot be followed cannot be renamed either
		from, to = realName(from), realName(to)
		return nil
	})
	s.mu.Lock()
	var all []*document
	for path, d := range s.documents {
		if within(path, from) || within(path, to) {
			all = append(all, d)
		}
	}
	s.mu.Unlock()
	slices.SortFunc(all, func(a, b *document) int { return cmp.Compare(a.number, b.number) }) // in the same order whoever does it
	for _, d := range all {
		d.saving.Lock()
		defer d.saving.Unlock()
	}
	if err := rename(); err != nil {
		return err
	}
	s.moved(from, to)
	return nil
}

// within reports whether a path is another or lies below it.
func within(path, of string) bool {
	rest, ok := strings.CutPrefix(path, of)
	return ok && (rest == "" || rest[0] == '/')
}

// moved has what belongs to a file or directory follow its new name. saving of its documents is held.
func (s *Service) moved(from, to string) {
	s.mu.Lock()
	var follow []*document
	for path, d := range s.documents {
		switch {
		case within(path, from) && !within(path, to):
			follow = append(follow, d)
		case within(path, to) && !within(path, from): // its file was replaced
			d.close()
		}
	}
	for _, e := range s.executions {
		if e.path != "" && within(e.path, from) {
			e.path = to + strings.TrimPrefix(e.path, from)
		}
	}
	for _, d := range follow {
		d.movedTo(to + strings.TrimPrefix(d.path, from))
	}
	s.mu.Unlock()
	for _, k := range s.config.Kernels.List() {
		if path := k.Path(); path != "" && within(path, from) {
			k.SetPath(to + strings.TrimPrefix(path, from))
		}
	}
}

// movedTo gives a document another path, of which everybody is told. Service.mu and d.saving are held.
func (d *document) movedTo(path string) {
	s, before := d.s, d.path
	delete(s.documents, before)
	if known := d.noted; d.content != nil {
		d.agrees() // nothing is to be put into the old path
		d.path = path
		s.documents[path] = d
		if known {
			d.begins()
			d.changed(saveSoon) // so that all of it is told of the new path
		}
	} else { // it is being opened, of which nothing comes
		d.path = path
		s.documents[path] = d
		return
	}
	s.emit(&carrelv1.NotebookEvent{Path: before, Event: &carrelv1.NotebookEvent_Unsaved{
		Unsaved: fmt.Sprintf("the notebook was renamed to %q; what runs goes on there", carrel.EncodeFileName(path)),
	}})
	s.emit(&carrelv1.NotebookEvent{Path: before, Event: &carrelv1.NotebookEvent_Reloaded{Reloaded: &carrelv1.NotebookReloaded{Revision: d.revision, Removed: true}}})
	s.emit(&carrelv1.NotebookEvent{Path: path, Event: &carrelv1.NotebookEvent_Reloaded{Reloaded: &carrelv1.NotebookReloaded{Revision: d.revision}}})
}

// follow looks where the file of a document has gone that somebody renamed in the box, and has the document follow. It reports whether it was found. d.saving is held.
func (d *document) follow() bool {
	s, to := d.s, ""
	if !d.file.there {
		return false
	}
	_ = s.config.AsUser(func() error { // what cannot be read has it not
		to = d.file.search(d.path)
		return nil
	})
	if to == "" {
		return false
	}
	s.mu.Lock()
	taken := s.documents[to] != nil || d.closing
	s.mu.Unlock()
	if taken {
		return false
	}
	s.log.Info("a notebook was renamed in the box; what belongs to it follows")
	s.moved(d.path, to)
	return true
}

// search finds a notebook that is this very file, unchanged, near the path that it had: in its directory, the one above, and those one level below the nearest of them that is
// there. For AsUser.
func (f fileState) search(path string) string {
	dir, left := filepath.Dir(path), maxSearched
	base := dir
	for base != "/" {
		if info, err := os.Lstat(base); err == nil && info.IsDir() {
			break
		}
		base = filepath.Dir(base)
	}
	var below []string
	for i, in := range []string{base, filepath.Dir(base)} {
		entries, found := f.in(in, &left)
		if found != "" {
			return found
		}
		for _, entry := range entries {
			if i == 0 && entry.IsDir() && !strings.HasPrefix(entry.Name(), ".") {
				below = append(below, filepath.Join(in, entry.Name()))
			}
		}
	}
	for _, in := range below {
		if _, found := f.in(in, &left); found != "" {
			return found
		}
	}
	return ""
}

// in looks for the file in a directory, of which it gives the entries.
func (f fileState) in(dir string, left *int) (entries []fs.DirEntry, found string) {
	if *left <= 0 {
		return nil, ""
	}
	list, err := os.Open(dir)
	if err != nil {
		return nil, ""
	}
	defer list.Close()
	entries, _ = list.ReadDir(*left)
	*left -= len(entries)
	for _, entry := range entries {
		// Other names are those of backups and of the trash.
		if !entry.Type().IsRegular() || !strings.HasSuffix(entry.Name(), ".ipynb") || strings.HasPrefix(entry.Name(), ".") {
			continue
		}
		var stat unix.Stat_t
		path := filepath.Join(dir, entry.Name())
		if unix.Lstat(path, &stat) == nil && stateOf(&stat).same(f) {
			return entries, path
		}
	}
	return entries, ""
}
