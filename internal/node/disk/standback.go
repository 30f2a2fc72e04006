package disk

import (
	"runtime"
	"sync"

	"golang.org/x/sys/unix"
)

// Background is a goroutine that stands back: it gets the processor time that nobody else wants. Whoever comes to wait for it hurries it, for
// on a busy machine there may be no such time for seconds. It is safe for concurrent use.
type Background struct {
	mu     sync.Mutex // guards what follows
	thread int        // 0: the goroutine does not stand back any more
}

// StandBack has the goroutine that calls it stand back until it is hurried. It calls End before it ends: it has a thread of its own from here on,
// which ends with it. Where the machine does not allow it the goroutine goes on as before.
//
// The scheduler takes a core that has nothing but such work for idle, and so puts others there at once (SCHED_IDLE in sched(7)); a mere nice value
// would have them wait for their turn.
func StandBack() *Background {
	runtime.LockOSThread() // and never unlocked
	b := &Background{thread: unix.Gettid()}
	_ = unix.SchedSetAttr(b.thread, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_IDLE}, 0)
	return b
}

// Hurry has the goroutine be as any other from now on.
func (b *Background) Hurry() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.hurry()
}

// hurry is called with mu held.
func (b *Background) hurry() {
	if b.thread != 0 { // else the number may be another thread's
		_ = unix.SchedSetAttr(b.thread, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_NORMAL}, 0)
	}
}

// End hurries the goroutine, and lets it go: what it does from here on is waited for by nobody who could hurry it.
func (b *Background) End() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.hurry()
	b.thread = 0
}
