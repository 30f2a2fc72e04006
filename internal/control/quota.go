package control

import (
	"sync"
	"time"

	"carrel.dev/carrel/internal/carrel"
)

// Quotas keep one user or organisation from taking what all share. Each is a number of at least 1; 0 is the default.
type Quotas struct {
	// Boxes that an organisation may have; default 1000.
	Boxes int
	// Imports of images that an organisation may have under way; default 5.
	Imports int
	// UserWatchers are streams of changes that one user may have open at one replica; default 32.
	UserWatchers int
	// Watchers are streams of changes that one replica serves; default 1000.
	Watchers int
}

func (q Quotas) withDefaults() Quotas {
	for _, one := range []struct {
		value    *int
		fallback int
	}{{&q.Boxes, 1000}, {&q.Imports, 5}, {&q.UserWatchers, 32}, {&q.Watchers, 1000}} {
		if *one.value <= 0 {
			*one.value = one.fallback
		}
	}
	return q
}

// watchers counts open streams of changes. It is safe for concurrent use.
type watchers struct {
	perUser, most int

	mu   sync.Mutex // guards what follows
	all  int
	open map[string]int // by actor, without those that have none
}

func newWatchers(q Quotas) *watchers {
	return &watchers{perUser: q.UserWatchers, most: q.Watchers, open: map[string]int{}}
}

// enter counts a stream of who; leave must be called once, at its end.
func (w *watchers) enter(who string) (leave func(), err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.open[who] >= w.perUser:
		e := carrel.Errorf(carrel.CodeExhausted, "too_many_watchers", "you watch %d times already, and no more may be; close one, or watch all boxes at once instead of each by itself", w.open[who])
		e.RetryAfter = 5 * time.Second
		return nil, e
	case w.all >= w.most:
		e := carrel.Errorf(carrel.CodeExhausted, "too_many_watchers", "too many watch here at the moment; try again in a moment, or ask for the boxes now and then")
		e.RetryAfter = 5 * time.Second
		return nil, e
	}
	w.open[who]++
	w.all++
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.all--
		if w.open[who]--; w.open[who] == 0 {
			delete(w.open, who)
		}
	}, nil
}
