package notebook

import (
	"context"
	"errors"
	"path/filepath"
	"time"

	"carrel.dev/carrel/internal/agent/kernel"
)

// Work is something that is executed.
type Work struct {
	// ID of the execution, or of the kernel when somebody else has it execute.
	ID string
	// What says what it is, for people.
	What  string
	Since time.Time
}

// Working gives what is executed now. What waits for an answer is not.
func (s *Service) Working() (all []Work) {
	s.mu.Lock()
	known := map[string]bool{}
	for id, r := range s.runners {
		if e := r.current; e != nil {
			known[id] = true
			if e.question == nil && e.state == running {
				all = append(all, Work{ID: e.id, What: e.describe(), Since: e.startedAt})
			}
		}
	}
	s.mu.Unlock()
	for _, k := range s.config.Kernels.List() {
		if info := k.Info(); info.Phase == kernel.Busy && !known[info.ID] {
			all = append(all, Work{ID: info.ID, What: "a cell in kernel " + info.Spec, Since: info.Since})
		}
	}
	return all
}

func (e *execution) describe() string {
	switch {
	case e.cell != "":
		return "a cell of " + filepath.Base(e.path)
	case e.path != "":
		return "code for " + filepath.Base(e.path)
	}
	return "code in a kernel"
}

// Flush answers when everything that was executed and edited so far is on the disk.
func (s *Service) Flush(ctx context.Context) error {
	s.mu.Lock()
	opened := s.journal
	s.mu.Unlock()
	if opened == nil {
		return nil
	}
	return errors.Join(s.flushDocuments(ctx), opened.Flush(ctx))
}

// Restored is called when the box goes on from a snapshot, from which it may have gone on before.
func (s *Service) Restored() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.journal != nil {
		s.journal.Fork()
	}
}

// Adopt begins the journal anew when the box has become another one.
func (s *Service) Adopt() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.journal != nil {
		s.journal.Renew(s.config.Owner())
		clear(s.behind)
		for _, d := range s.documents { // what was noted of them is gone
			d.noted = d.noted && d.version != d.saved
		}
	}
}
