package gateway

import (
	"hash/maphash"
	"net/http"
	"sync"
	"time"

	"carrel.dev/carrel/internal/carrel"
)

const (
	// pollWindow: the same thing asked again within this time is a program that looks regularly, not a person.
	pollWindow = 10 * time.Minute
	maxRecent  = 50_000
)

// activityNone as Carrel-Activity of a request says that it is no sign of anybody's presence.
const activityNone = "none"

var recentSeed = maphash.MakeSeed()

// recent remembers which requests were made lately.
type recent struct {
	mu   sync.Mutex // guards seen
	seen map[uint64]time.Time
}

func newRecent() *recent { return &recent{seen: map[uint64]time.Time{}} }

// again reports whether the same text came within pollWindow, and remembers it.
func (r *recent) again(text string, now time.Time) bool {
	key := maphash.String(recentSeed, text)
	r.mu.Lock()
	defer r.mu.Unlock()
	last, ok := r.seen[key]
	if !ok && len(r.seen) >= maxRecent {
		clear(r.seen)
	}
	r.seen[key] = now
	return ok && now.Sub(last) < pollWindow
}

func (r *recent) tidy(now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for key, last := range r.seen {
		if now.Sub(last) >= pollWindow {
			delete(r.seen, key)
		}
	}
}

// counts reports whether a request is a sign that somebody uses the box, which keeps it awake or wakes it: a person going to a page, anything that
// changes something, and what is asked for the first time in ten minutes. The same thing asked again and again by a page
// left open is polling and counts no more, nor does what says `Carrel-Activity: none`.
func (p *ports) counts(r *http.Request, user carrel.UserID, ref portRef) bool {
	if r.Header.Get(headerActivity) == activityNone || r.Method == http.MethodOptions {
		return false
	}
	if navigation(r) && r.Header.Get("Sec-Fetch-User") == "?1" {
		return true
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		return true
	}
	return !p.recent.again(string(user)+"\x00"+ref.target()+"\x00"+string(ref.Box)+"\x00"+r.URL.Path, p.gateway.now())
}
