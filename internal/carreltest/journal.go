package carreltest

import (
	"fmt"
	"slices"
	"sync"

	"carrel.dev/carrel/internal/agent/identity"
)

// journal is what the machines saw: which sandboxes began for which box, and whether two were alive at once. It is
// safe for concurrent use.
type journal struct {
	mu       sync.Mutex // guards what follows
	boxOf    map[string]string
	live     map[string][]string // runs of each box, by box
	starts   map[string][]string // runs in the order in which their sandboxes began, by box
	problems []string
}

func newJournal() *journal {
	return &journal{boxOf: map[string]string{}, live: map[string][]string{}, starts: map[string][]string{}}
}

func (j *journal) started(id identity.Identity, err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if err != nil {
		j.problems = append(j.problems, "a sandbox began without an identity: "+err.Error())
		return
	}
	if other := j.live[id.BoxID]; len(other) > 0 {
		j.problems = append(j.problems, fmt.Sprintf("the sandbox of run %s of box %s began while that of %v was alive", id.RunID, id.BoxID, other))
	}
	if j.boxOf[id.RunID] == "" {
		j.starts[id.BoxID] = append(j.starts[id.BoxID], id.RunID)
	}
	j.boxOf[id.RunID] = id.BoxID
	j.live[id.BoxID] = append(j.live[id.BoxID], id.RunID)
}

func (j *journal) ended(run string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	box := j.boxOf[run]
	j.live[box] = slices.DeleteFunc(j.live[box], func(r string) bool { return r == run })
}

// Problems are the boxes that had two sandboxes alive at once, in words. There must be none.
func (s *Stack) Problems() []string {
	s.journal.mu.Lock()
	defer s.journal.mu.Unlock()
	return slices.Clone(s.journal.problems)
}

// Sandboxes are the runs of a box whose sandboxes began, oldest first, and those that are alive.
func (s *Stack) Sandboxes(box string) (began, live []string) {
	s.journal.mu.Lock()
	defer s.journal.mu.Unlock()
	return slices.Clone(s.journal.starts[box]), slices.Clone(s.journal.live[box])
}
