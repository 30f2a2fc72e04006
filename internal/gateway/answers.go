package gateway

import (
	"sync"
	"time"
)

// maxAnswers bounds what is remembered of one kind.
const maxAnswers = 10_000

// answers remembers what control answered to questions of one kind. Beyond maxAnswers it begins anew: everything in it can be asked again.
// It is safe for concurrent use; the zero value is not ready, see newAnswers.
type answers[K comparable, V any] struct {
	mu    sync.Mutex // guards known
	known map[K]answer[V]
}

// answer is a value, or a definite no.
type answer[V any] struct {
	value V
	err   error
	at    time.Time
}

func newAnswers[K comparable, V any]() *answers[K, V] {
	return &answers[K, V]{known: map[K]answer[V]{}}
}

func (a *answers[K, V]) of(key K) (answer[V], bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	known, ok := a.known[key]
	return known, ok
}

func (a *answers[K, V]) remember(key K, known answer[V]) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.known) >= maxAnswers {
		clear(a.known)
	}
	a.known[key] = known
}

// forget drops those of which over is true. over must not call a.
func (a *answers[K, V]) forget(over func(K, answer[V]) bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for key, known := range a.known {
		if over(key, known) {
			delete(a.known, key)
		}
	}
}
