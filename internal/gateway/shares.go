package gateway

import (
	"context"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"carrel.dev/carrel/internal/carrel"
)

const (
	// maxStreams is how many streams and requests a gateway has under way at once at most; fewer where the machine has less than a MiB of memory or four
	// open files for each.
	maxStreams = 20_000
	// bulkShares is how many shares of streams a transfer of files has: as much more of it may wait here.
	bulkShares = 1 + bulkWindow>>20
	// leastMemory and mostMemory bound how much of the machine's memory large messages may take at once, which is an eighth of it, in bytes.
	leastMemory = 256 << 20
	mostMemory  = 4 << 30
	// memoryPatience is how long a large message waits for others to be done with.
	memoryPatience = 30 * time.Second
)

// holder is on whose account something is held: a user, or nobody that is known, with the boxes of an organisation.
type holder struct {
	org  carrel.OrgID
	user carrel.UserID
}

func (p pass) holder() holder { return holder{p.Org, p.User} }

// shares divides what a gateway has little of. An organisation may hold as much as is left free, so that one alone gets half, two a third each and
// so on, and whoever comes next always finds something; a user may hold half as much as an organisation. It is safe for concurrent use.
type shares struct {
	total    int64
	patience time.Duration // of wait

	mu    sync.Mutex // guards what follows
	used  int64
	orgs  map[carrel.OrgID]int64
	users map[holder]int64
	back  chan struct{} // closed when something was given back; nil: nobody waits
}

func newShares(total int64) *shares {
	return &shares{total: total, patience: memoryPatience, orgs: map[carrel.OrgID]int64{}, users: map[holder]int64{}}
}

// take takes n for a holder if there is so much for them. leave gives it back and must be called; it may be called again.
func (s *shares) take(h holder, n int64) (leave func(), ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.takeNow(h, n)
}

// takeNow is take; the caller holds mu.
func (s *shares) takeNow(h holder, n int64) (leave func(), ok bool) {
	free, org, user := s.total-s.used, s.orgs[h.org], s.users[h]
	// Who holds nothing may take all that is free: something large must not wait for ever.
	if n > free || org > 0 && org+n > free || user > 0 && 2*(user+n) > free {
		return func() {}, false
	}
	s.used += n
	s.orgs[h.org] += n
	s.users[h] += n
	return sync.OnceFunc(func() { s.giveBack(h, n) }), true
}

func (s *shares) giveBack(h holder, n int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.used -= n
	if s.orgs[h.org] -= n; s.orgs[h.org] <= 0 {
		delete(s.orgs, h.org)
	}
	if s.users[h] -= n; s.users[h] <= 0 {
		delete(s.users, h)
	}
	if s.back != nil {
		close(s.back)
		s.back = nil
	}
}

// wait is take for what may have to wait, until ctx ends or patience does. More than there is in all is taken as all.
func (s *shares) wait(ctx context.Context, h holder, n int64) (leave func(), err error) {
	n = min(n, s.total)
	var over <-chan time.Time
	for {
		s.mu.Lock()
		leave, ok := s.takeNow(h, n)
		if ok {
			s.mu.Unlock()
			return leave, nil
		}
		if s.back == nil {
			s.back = make(chan struct{})
		}
		back := s.back
		s.mu.Unlock()
		if over == nil {
			timer := time.NewTimer(s.patience)
			defer timer.Stop()
			over = timer.C
		}
		select {
		case <-back:
		case <-over:
			return nil, errTooMuchAtOnce()
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// held is how much is taken.
func (s *shares) held() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.used
}

func errTooManyStreams(box carrel.BoxID) *carrel.Error {
	e := carrel.Errorf(carrel.CodeExhausted, "too_many_streams",
		"you or your organisation have more connections and requests under way than this gateway has room for, so box %s was not reached; close some, or try again in a moment", box)
	e.RetryAfter = 5 * time.Second
	return e
}

func errTooMuchAtOnce() *carrel.Error {
	e := carrel.Errorf(carrel.CodeExhausted, "too_much_at_once",
		"you or your organisation have more large notebooks, outputs and files on their way through this gateway than it has room for; try again in a moment")
	e.RetryAfter = 5 * time.Second
	return e
}

// machineMemory is how much memory this machine has, in bytes; if that is not to be had, as much as a small one has.
func machineMemory() int64 {
	var info unix.Sysinfo_t
	if unix.Sysinfo(&info) != nil {
		return 2 << 30
	}
	return int64(info.Totalram) * int64(max(info.Unit, 1))
}

// roomForStreams is the number of shares of streams.
func roomForStreams() int64 {
	room := min(maxStreams, machineMemory()>>20)
	var files unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &files) == nil && files.Cur < 4*maxStreams {
		room = min(room, int64(files.Cur)/4)
	}
	return room
}

// roomForMessages is how much large messages may take at once, in bytes.
func roomForMessages() int64 { return max(leastMemory, min(mostMemory, machineMemory()/8)) }
