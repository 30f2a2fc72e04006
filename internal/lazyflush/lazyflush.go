// Package lazyflush lets a handler's flushes that follow each other closely become one: each flush of an HTTP/2
// stream wakes the connection's goroutine, the kernel and the reader, which on the way to a box happens in every process. It
// must not hold anything back for a length of time, and knows nothing of what is written.
package lazyflush

import (
	"net/http"
	"sync"
)

// Handler wraps next so that Flush answers at once and is done by another goroutine as soon as that gets to run: what
// next writes until then leaves with it. The order of bytes is kept, and everything has left when next has answered.
// Writing blocks as before when the client does not read.
func Handler(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		flusher, ok := w.(http.Flusher)
		if !ok || r.ProtoMajor < 2 {
			next.ServeHTTP(w, r)
			return
		}
		lazy := &writer{ResponseWriter: w, flusher: flusher, wanted: make(chan struct{}, 1), done: make(chan struct{})}
		defer func() {
			// Also when next panics: the connection may have the writer only while a handler runs.
			close(lazy.wanted)
			if lazy.started {
				<-lazy.done
			}
		}()
		next.ServeHTTP(lazy, r)
	})
}

// writer belongs to one handler, whose goroutine alone calls its methods.
type writer struct {
	http.ResponseWriter
	flusher http.Flusher
	wanted  chan struct{} // closed when the handler has answered
	done    chan struct{} // closed when nothing is flushed any more
	started bool

	mu sync.Mutex // held while the response is written to or flushed
}

// Write implements http.ResponseWriter.
func (w *writer) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.ResponseWriter.Write(p)
}

// WriteHeader implements http.ResponseWriter.
func (w *writer) WriteHeader(status int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ResponseWriter.WriteHeader(status)
}

// Flush implements http.Flusher.
func (w *writer) Flush() {
	if !w.started {
		w.started = true
		go w.run()
	}
	select {
	case w.wanted <- struct{}{}:
	default: // one that is still to come takes this along
	}
}

// Unwrap lets http.ResponseController set deadlines.
func (w *writer) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *writer) run() {
	defer close(w.done)
	for range w.wanted {
		w.mu.Lock()
		w.flusher.Flush()
		w.mu.Unlock()
	}
}
