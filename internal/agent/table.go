package agent

import (
	"crypto/rand"
	"encoding/base32"
	"slices"
	"strings"
	"sync"
	"time"

	"carrel.dev/carrel/internal/carrel"
)

const (
	// maxLive bounds the processes that run at the same time, maxEnded those that are remembered after.
	maxLive  = 1024
	maxEnded = 1000
	// The last keptEnded are remembered whatever their age, others for keptTime.
	keptEnded = 100
	keptTime  = time.Hour
)

// table has the processes of a box, those that ended a while ago included. It is safe for concurrent use. Its
// lock may be held while a process's is taken, never the other way round.
type table struct {
	mu       sync.Mutex
	byID     map[string]*process
	requests map[string]*pending
	ended    []*process // oldest first
	live     int
}

// pending is the one start that belongs to a request id.
type pending struct {
	ready   chan struct{} // closed when process or err is there
	process *process
	err     error
}

func newTable() *table {
	return &table{byID: map[string]*process{}, requests: map[string]*pending{}}
}

// admit makes room for one more live process, or refuses.
func (t *table) admit() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.live >= maxLive {
		return carrel.Errorf(carrel.CodeExhausted, "too_many_processes", "%d commands run in the box; no more can be started until one ends", maxLive)
	}
	t.live++
	return nil
}

// release takes back admit for a start that failed.
func (t *table) release() {
	t.mu.Lock()
	t.live--
	t.mu.Unlock()
}

// add shows an admitted process to everyone.
func (t *table) add(p *process) {
	t.mu.Lock()
	t.byID[p.id] = p
	t.mu.Unlock()
}

// request gives the start that belongs to id, and whether the caller is the first and has to do it.
func (t *table) request(id string) (*pending, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if entry := t.requests[id]; entry != nil {
		return entry, false
	}
	entry := &pending{ready: make(chan struct{})}
	t.requests[id] = entry
	return entry, true
}

// answer ends the start of a request id: with a process, which later requests get, or an error, after which the
// next request begins anew.
func (t *table) answer(id string, entry *pending, p *process, err error) {
	t.mu.Lock()
	entry.process, entry.err = p, err
	if err != nil {
		delete(t.requests, id)
	}
	t.mu.Unlock()
	close(entry.ready)
}

// over files a process that is done among the ended, and forgets old ones.
func (t *table) over(p *process, now time.Time) {
	t.mu.Lock()
	t.live--
	t.ended = append(t.ended, p)
	var old []*process
	for len(t.ended) > keptEnded && (len(t.ended) > maxEnded || now.Sub(t.ended[0].endTime) > keptTime) {
		first := t.ended[0]
		old = append(old, first)
		t.ended = slices.Delete(t.ended, 0, 1)
		delete(t.byID, first.id)
		for id, entry := range t.requests {
			if entry.process == first {
				delete(t.requests, id)
			}
		}
	}
	t.mu.Unlock()
	for _, p := range old {
		p.dropOutput()
	}
}

// evict forgets the output of processes that ended longest ago, until need bytes are free in b.
func (t *table) evict(b *budget, need int64) {
	t.mu.Lock()
	ended := slices.Clone(t.ended)
	t.mu.Unlock()
	for _, p := range ended {
		b.mu.Lock()
		enough := b.left >= need
		b.mu.Unlock()
		if enough {
			return
		}
		p.dropOutput()
	}
}

func (t *table) get(id string) (*process, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if p := t.byID[id]; p != nil {
		return p, nil
	}
	return nil, carrel.NotFound("process", id)
}

// list gives all processes, oldest first.
func (t *table) list() []*process {
	t.mu.Lock()
	result := make([]*process, 0, len(t.byID))
	for _, p := range t.byID {
		result = append(result, p)
	}
	t.mu.Unlock()
	slices.SortFunc(result, func(a, b *process) int {
		if c := a.started.Compare(b.started); c != 0 {
			return c
		}
		return strings.Compare(a.id, b.id)
	})
	return result
}

// newProcessID gives a letter and 11 random characters (55 bits): an id is never used again in a box, also not by another
// agent that goes on from the same snapshot.
func newProcessID() string {
	var random [7]byte
	if randomNow(random[:]) != nil {
		_, _ = rand.Read(random[:]) // ends the program if there is no randomness
	}
	return "x" + strings.ToLower(base32.StdEncoding.EncodeToString(random[:])[:11])
}
