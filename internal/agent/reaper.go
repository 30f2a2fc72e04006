package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"sync"

	"golang.org/x/sys/unix"

	"carrel.dev/carrel/internal/carrel"
)

// reaper owns all waiting for children. As PID 1 it waits for every child, also for those that lost their
// parent; otherwise only for those that were started through it, so that it can live beside os/exec in
// one program. Nothing else in this package may wait.
type reaper struct {
	all bool
	wg  sync.WaitGroup // the waiting goroutines, when not all

	mu      sync.RWMutex                  // held for writing while a child is reaped, so that a pid cannot be signalled after it is free
	waiting map[int]func(unix.WaitStatus) // by pid: what to call at its end
	// starting counts forks under way. A child may be reaped before its starter knows its pid: early has
	// the ends of unknown children as long as a fork is under way.
	starting int
	early    map[int]unix.WaitStatus
	// some is closed when the box gets processes besides the agent; nil while it has them.
	some chan struct{}
}

func newReaper(all bool) *reaper {
	return &reaper{all: all, waiting: map[int]func(unix.WaitStatus){}, early: map[int]unix.WaitStatus{}, some: make(chan struct{})}
}

// start calls fork, which starts a child and gives its pid, and calls ended once when that child has ended. ended
// must not block.
func (r *reaper) start(fork func() (int, error), ended func(unix.WaitStatus)) (int, error) {
	r.mu.Lock()
	r.starting++
	if r.some != nil {
		close(r.some)
		r.some = nil
	}
	r.mu.Unlock()
	pid, err := fork()
	r.mu.Lock()
	r.starting--
	status, over := r.early[pid]
	if r.starting == 0 {
		clear(r.early)
	}
	if err == nil && !over {
		r.waiting[pid] = ended
		if !r.all {
			r.wg.Go(func() { r.waitFor(pid) })
		}
	}
	r.mu.Unlock()
	if err == nil && over {
		ended(status)
	}
	return pid, err
}

// children gives a channel that is closed when the box has processes besides the agent; at once when it
// has them now.
func (r *reaper) children() <-chan struct{} {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if r.some != nil {
		return r.some
	}
	now := make(chan struct{})
	close(now)
	return now
}

// run reaps until ctx ends. Without all it only waits for its own children to be gone.
func (r *reaper) run(ctx context.Context) error {
	if !r.all {
		<-ctx.Done()
		r.wg.Wait()
		return nil
	}
	died := make(chan os.Signal, 1)
	signal.Notify(died, unix.SIGCHLD)
	defer signal.Stop(died)
	for {
		for r.reapOne() {
		}
		select {
		case <-died:
		case <-ctx.Done():
			return nil
		}
	}
}

// look takes the end of a child, if there is one. It is for who has a reason to expect one, and then need not wait until the signal
// has come through.
func (r *reaper) look() {
	if r.all {
		r.reapOne()
	}
}

// reapOne takes the end of one child, whichever it is, and reports whether there was one.
func (r *reaper) reapOne() bool {
	r.mu.Lock()
	var status unix.WaitStatus
	pid, err := waitNow(-1, &status)
	if errors.Is(err, unix.ECHILD) && r.starting == 0 && len(r.waiting) == 0 && r.some == nil {
		r.some = make(chan struct{})
	}
	if err != nil || pid <= 0 {
		r.mu.Unlock()
		return false
	}
	ended := r.waiting[pid]
	delete(r.waiting, pid)
	if ended == nil && r.starting > 0 {
		r.early[pid] = status
	}
	r.mu.Unlock()
	if ended != nil {
		ended(status)
	}
	return true
}

func (r *reaper) waitFor(pid int) {
	for {
		err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	r.mu.Lock()
	var status unix.WaitStatus
	_, _ = waitNow(pid, &status)
	ended := r.waiting[pid]
	delete(r.waiting, pid)
	r.mu.Unlock()
	if ended != nil {
		ended(status)
	}
}

// signal sends to the process group that pid leads, if pid has not been reaped.
func (r *reaper) signal(pid int, number unix.Signal) error {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if _, ok := r.waiting[pid]; !ok {
		return carrel.Errorf(carrel.CodePrecondition, "process_ended", "the process has ended")
	}
	if err := unix.Kill(-pid, number); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("signal process group %d: %w", pid, err)
	}
	return nil
}

// alone reports whether no child is left.
func (r *reaper) alone() bool {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if r.all {
		return r.some != nil
	}
	return r.starting == 0 && len(r.waiting) == 0
}
