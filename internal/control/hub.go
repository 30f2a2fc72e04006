package control

import (
	"context"
	"sync"
	"time"

	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/store"
)

// hubPoll is how often the hub looks without having been woken; watcherPoll is how often a watcher looks
// without having been told by the hub, in case the hub can't read the store.
const (
	hubPoll     = time.Second
	watcherPoll = 5 * time.Second
)

// hub reads once for all watchers of a replica what changed, and tells those whom it concerns. It
// tells them only that something changed: each reads with its own rights. Nothing is queued: a
// subscription holds one pending word at most.
type hub struct {
	s *Server

	mu   sync.Mutex // guards subs
	subs map[*subscription]struct{}
}

// subscription is one watcher's. Org and box narrow it where they are not empty.
type subscription struct {
	c    chan struct{}
	orgs map[carrel.OrgID]bool
	box  carrel.BoxID
}

func newHub(s *Server) *hub { return &hub{s: s, subs: map[*subscription]struct{}{}} }

func (h *hub) subscribe(box carrel.BoxID, orgs ...carrel.OrgID) *subscription {
	sub := &subscription{c: make(chan struct{}, 1), box: box, orgs: map[carrel.OrgID]bool{}}
	for _, org := range orgs {
		sub.orgs[org] = true
	}
	h.mu.Lock()
	h.subs[sub] = struct{}{}
	h.mu.Unlock()
	return sub
}

func (h *hub) unsubscribe(sub *subscription) {
	h.mu.Lock()
	delete(h.subs, sub)
	h.mu.Unlock()
}

// count is how many watch.
func (h *hub) count() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.subs)
}

func (h *hub) run(ctx context.Context) {
	wake := h.s.store.Listen(ctx, store.TopicWatch)
	defer wake.Close()
	ticker := time.NewTicker(hubPoll)
	defer ticker.Stop()
	mark, started := int64(0), false
	for {
		if !started {
			// A box that can't be there: only the mark is wanted.
			if _, m, err := h.s.store.ChangedBoxes(ctx, store.SystemScope(), "", carrel.NewBoxID(), 0); err == nil {
				mark, started = m, true
				h.tellAll() // of what may have changed before
			}
		} else if boxes, m, err := h.s.store.ChangedBoxes(ctx, store.SystemScope(), "", "", mark); err == nil {
			mark = m
			h.tell(boxes)
		} else if ctx.Err() == nil {
			h.s.log.Warn("changes can't be read", "error", err)
		}
		select {
		case <-wake.C:
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
	}
}

func (h *hub) tell(boxes []*store.Box) {
	if len(boxes) == 0 {
		return
	}
	ids, orgs := map[carrel.BoxID]bool{}, map[carrel.OrgID]bool{}
	for _, b := range boxes {
		ids[b.ID], orgs[b.Org] = true, true
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for sub := range h.subs {
		concerned := ids[sub.box]
		if sub.box == "" {
			for org := range sub.orgs {
				concerned = concerned || orgs[org]
			}
		}
		if concerned {
			poke(sub.c)
		}
	}
}

func (h *hub) tellAll() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for sub := range h.subs {
		poke(sub.c)
	}
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
