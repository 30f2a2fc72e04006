package image

import (
	"context"
	"errors"
	"sync"
)

// flights lets calls for the same thing share one piece of work.
type flights struct {
	mu   sync.Mutex
	open map[string]*flight // key → work that is not done
}

type flight struct {
	cancel context.CancelFunc
	done   chan struct{}

	// Guarded by flights.mu.
	waiters map[chan string]struct{}
	last    string

	// Written before done is closed.
	result Result
	err    error
}

// do runs work for key, or waits for the one that is running. Each caller hears the progress in its own
// goroutine and can leave; the work is cancelled when nobody is left, and do of the last one answers only when
// the work has ended.
func (f *flights) do(ctx context.Context, key string, progress func(string), work func(context.Context, func(string)) (Result, error)) (Result, error) {
	for {
		if err := ctx.Err(); err != nil {
			return Result{}, err
		}
		flight, lines := f.join(ctx, key, work)
		result, err, over := f.wait(ctx, flight, lines, progress)
		if !over {
			return result, err
		}
		// It was cancelled by the others that left, just as this caller came: begin anew.
	}
}

func (f *flights) join(ctx context.Context, key string, work func(context.Context, func(string)) (Result, error)) (*flight, chan string) {
	lines := make(chan string, 1)
	f.mu.Lock()
	defer f.mu.Unlock()
	if running, ok := f.open[key]; ok {
		running.waiters[lines] = struct{}{}
		if running.last != "" {
			lines <- running.last
		}
		return running, lines
	}
	workCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	started := &flight{cancel: cancel, done: make(chan struct{}), waiters: map[chan string]struct{}{lines: {}}}
	if f.open == nil {
		f.open = map[string]*flight{}
	}
	f.open[key] = started
	go func() {
		defer close(started.done)
		defer cancel()
		started.result, started.err = work(workCtx, func(line string) { f.tell(started, line) })
		f.mu.Lock()
		delete(f.open, key)
		f.mu.Unlock()
	}()
	return started, lines
}

// tell gives every waiter the newest line; one that has not read the last does not hold anybody up.
func (f *flights) tell(flight *flight, line string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	flight.last = line
	for lines := range flight.waiters {
		select {
		case <-lines:
		default:
		}
		lines <- line // there is room: only tell and join write, both under the lock
	}
}

func (f *flights) wait(ctx context.Context, flight *flight, lines chan string, progress func(string)) (result Result, err error, over bool) {
	for {
		select {
		case line := <-lines:
			if progress != nil {
				progress(line)
			}
		case <-flight.done:
			f.mu.Lock()
			delete(flight.waiters, lines)
			f.mu.Unlock()
			// Work that ended by cancellation was left by its callers; this one has not left.
			cancelled := ctx.Err() == nil && isCancelled(flight.err)
			return flight.result, flight.err, cancelled
		case <-ctx.Done():
			f.mu.Lock()
			delete(flight.waiters, lines)
			last := len(flight.waiters) == 0
			if last {
				flight.cancel()
			}
			f.mu.Unlock()
			if last {
				<-flight.done
			}
			return Result{}, context.Cause(ctx), false
		}
	}
}

func isCancelled(err error) bool { return errors.Is(err, context.Canceled) }
