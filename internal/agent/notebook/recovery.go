package notebook

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/carrel"
)

const (
	// maxUnfinished is how much is noted of executions that have not ended, in bytes. The newest beyond it are not told as lost when the box fails.
	maxUnfinished = 1 << 20
	// maxBehind is how many notebooks can be behind the journal at a time.
	maxBehind = 2 * maxDocuments
)

// behind is a notebook whose file may not have everything that the journal tells of it.
type behind struct {
	// From is the last entry of which the file has what it tells, and Changed the last one that changes the notebook.
	From    uint64 `json:"from"`
	Changed uint64 `json:"changed,omitempty"`
}

// bookkeeping is what the head of a segment has of what came before it.
type bookkeeping struct {
	Executions []json.RawMessage `json:"executions"`
	// Documents by path, as events have it.
	Documents map[string]behind `json:"documents"`
}

// recovery finds in a journal what had not ended, and what was not saved, when the box ended.
type recovery struct {
	live      map[string]*carrelv1.Execution
	documents map[string]behind
}

func (r *recovery) take(state []byte, entries func(func(uint64, []byte))) {
	var before bookkeeping
	if json.Unmarshal(state, &before) != nil {
		_ = json.Unmarshal(state, &before.Executions) // as agents of before had it
	}
	for _, data := range before.Executions {
		e := &carrelv1.Execution{}
		if protojson.Unmarshal(data, e) == nil && e.GetId() != "" {
			r.live[e.GetId()] = e
		}
	}
	for path, d := range before.Documents {
		r.documents[path] = d
	}
	entries(func(seq uint64, data []byte) {
		if n := noteOf(data); n != nil {
			r.noted(n)
			return
		}
		event := &carrelv1.NotebookEvent{}
		if proto.Unmarshal(data, event) != nil {
			return
		}
		if d, known := r.documents[event.GetPath()]; known && changes(event) {
			d.Changed = seq
			r.documents[event.GetPath()] = d
		}
		if e := event.GetQueued(); e != nil && len(r.live) < maxQueued {
			r.live[e.GetId()] = e
		}
		if e := event.GetEnded(); e != nil {
			delete(r.live, e.GetId())
		}
	})
}

func (r *recovery) noted(n *note) {
	if n.Kind != noteBase && n.Kind != noteSaved {
		return
	}
	d, known := r.documents[n.Path]
	if known || len(r.documents) < 16*maxBehind {
		d.From = max(d.From, n.At)
		r.documents[n.Path] = d
	}
}

func (r *recovery) executions() []*carrelv1.Execution {
	all := make([]*carrelv1.Execution, 0, len(r.live))
	for _, e := range r.live {
		all = append(all, e)
	}
	slices.SortFunc(all, func(a, b *carrelv1.Execution) int { return strings.Compare(a.GetId(), b.GetId()) })
	return all
}

// unsaved gives the notebooks whose files may not have everything, by path.
func (r *recovery) unsaved() map[string]behind {
	for _, e := range r.live { // it may have been about to be put back into what somebody else wrote
		if d, known := r.documents[e.GetPath()]; known && e.GetCell() != "" {
			d.Changed = max(d.Changed, d.From+1)
			r.documents[e.GetPath()] = d
		}
	}
	all := map[string]behind{}
	for path, d := range r.documents {
		if d.Changed > d.From && len(all) < maxBehind {
			all[carrel.DecodeFileName(path)] = d
		}
	}
	return all
}

// unfinished gives what the next life of the box is to know if this one fails: the executions that have not ended, and notebooks that are not saved.
func (s *Service) unfinished() []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := bookkeeping{Documents: map[string]behind{}}
	size := 0
	for _, r := range s.runners {
		for _, e := range append([]*execution{r.current}, r.queue...) {
			if e == nil {
				continue
			}
			shown := e.show(false)
			shown.Code = ""
			data, err := protojson.Marshal(shown)
			if size += len(data) + 1; err == nil && len(all.Executions) < maxQueued && size < maxUnfinished {
				all.Executions = append(all.Executions, data)
			}
		}
	}
	for path, d := range s.behind {
		all.Documents[carrel.EncodeFileName(path)] = d
	}
	for path, d := range s.documents {
		if d.noted {
			known := behind{From: d.from}
			if d.version != d.saved {
				known.Changed = d.from + 1
			}
			all.Documents[carrel.EncodeFileName(path)] = known
		}
	}
	data, err := json.Marshal(all)
	if err != nil {
		return nil
	}
	return data
}

// Recover puts into notebooks what a box that failed had not written into them, if there is any. It does so by itself when the service is first used;
// calling it before makes that sooner.
func (s *Service) Recover() {
	used := false
	_ = s.config.AsUser(func() error {
		names, err := os.ReadDir(filepath.Join(s.config.Home, stateDir, "journal"))
		used = len(names) > 0
		return err
	})
	if used {
		_ = s.open() // that the box is being stopped is nobody's concern here
	}
}

// recover opens the notebooks whose files may not have everything, which puts it into them. What cannot be opened is left for when it is. Then it removes what the box keeps too
// much of.
func (s *Service) recover() {
	s.mu.Lock()
	var paths []string
	for path := range s.behind {
		paths = append(paths, path)
	}
	s.mu.Unlock()
	slices.Sort(paths)
	for _, path := range paths {
		d, err := s.document(s.ctx, path)
		if err != nil {
			s.log.Info("a notebook may lack outputs that are in the journal; they are put into it when it can be opened", "error", err)
			continue
		}
		s.release(d)
	}
	s.pruneSpills()
}
