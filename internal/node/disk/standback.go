package disk

import (
	"runtime"
	"sync"

	"golang.org/x/sys/unix"
)

// Background is a goroutine that stands back: it gets the processor time that nobody else wants. Whoever comes to wait for it hurries it, for
// on a busy machine there may be no such time for seconds. The zero value is ready, for one goroutine; it is safe for concurrent use.
type Background struct {
	mu      sync.Mutex // guards what follows
	thread  int        // 0: the goroutine does not stand back, or not any more
	hurried bool
}

// StandBack has the goroutine that calls it stand back, unless it was hurried already. It calls End before it ends: it has a thread of its own from
// here on, which ends with it. Where the machine does not allow it the goroutine goes on as before.
//
// The scheduler takes a core that has nothing but such work for idle, and so puts others there at once (SCHED_IDLE in sched(7)); a mere nice value
// would have them wait for their turn.
func (b *Background) StandBack() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.hurried {
		return
	}
	runtime.LockOSThread() // and never unlocked
	b.thread = unix.Gettid()
	b.schedule(unix.SCHED_IDLE)
}

// Hurry has the goroutine be as any other from now on.
func (b *Background) Hurry() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.hurried = true
	b.schedule(unix.SCHED_NORMAL)
}

// End hurries the goroutine, and lets it go: what it does from here on is waited for by nobody who could hurry it.
func (b *Background) End() {
	b.Hurry()
	b.mu.Lock()
	defer b.mu.Unlock()
	b.thread = 0
}

// schedule is called with mu held.
func (b *Background) schedule(policy uint32) {
	if b.thread != 0 { // else the number may be another thread's
		_ = unix.SchedSetAttr(b.thread, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: policy}, 0)
	}
}
