package agent

import (
	"context"
	"errors"
	"io"
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/timestamppb"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/carrel"
)

const (
	stdout = iota
	stderr
	streams
)

const (
	// chunkSize is the most that a pump reads at once, eventSize what a viewer is given, in bytes.
	chunkSize = 64 << 10
	eventSize = 256 << 10
	// terminalFull is what a read of a terminal gives at least when there is probably more, in bytes.
	terminalFull = 2 << 10
	// lingerTime is how long output is read after the first program of a process has ended.
	lingerTime = time.Second
	// ownerPatience is how long a pump waits for an owner that takes nothing, awayPatience for one whose connection broke to
	// come back.
	ownerPatience = 10 * time.Second
	awayPatience  = 15 * time.Second
	// steadyPatience is that for a session without a terminal: as at any pipe, the program waits while the connection lives.
	steadyPatience = 24 * time.Hour
	// ownedFactor is how much larger the rings of an owned process may be. All but a quarter of them is behind the
	// owner: what was sent but lost on its way when a connection broke, at most a few MiB, is still there.
	ownedFactor = 4
	// settledBytes of output are not waited with.
	settledBytes = 2 << 10
	// maxViewers of one process.
	maxViewers = 64
)

var chunks = sync.Pool{New: func() any { return new([chunkSize]byte) }}

// process is a command that was started through the agent.
type process struct {
	id      string
	pid     int // set before the process is shown to anyone
	command command
	started time.Time
	kind    string
	user    string       // of the platform, who started it
	shown   bool         // it was started to be looked at
	limits  [streams]int // the largest ring of each stream, in bytes
	now     func() time.Time
	// keep is how long the process is kept when nobody looks; then expire is called. nil: for ever.
	keep   time.Duration
	expire func()
	// patience is how long an owner whose connection broke is waited for.
	patience time.Duration
	budget   *budget
	evict    func(need int64) // makes room in the budget
	input    *input           // nil: none
	session  sessionState

	mu    sync.Mutex // guards what follows
	rings [streams]ring
	// closed streams have no more output.
	closed [streams]bool
	// ended: the first program has been reaped; done: and all streams are closed.
	ended, done bool
	exitCode    int32
	exitSignal  string
	endTime     time.Time
	endedBy     string
	killedBy    string // the platform killed it or a part of it, for this reason
	viewers     int
	alone       time.Time   // since when nobody looks; zero: somebody does
	hangUp      *time.Timer // runs while nobody looks and the process is not kept for ever
	frontGroup  int         // the process group that was last seen in the foreground of the terminal, and since when
	frontSince  time.Time
	owner       *viewer
	changed     chan struct{} // closed at the next change, for viewers; nil: nobody waits
	taken       chan struct{} // closed when the owner has taken something or left, for pumps; nil: nobody waits
}

// show gives the process as the protocol has it.
func (p *process) show() *carrelv1.Process {
	p.mu.Lock()
	defer p.mu.Unlock()
	result := &carrelv1.Process{
		Id: p.id, Pid: int32(p.pid), Args: p.command.args, User: p.command.account.name, Cwd: p.command.cwd, Pty: p.command.pty != nil,
		Running: !p.ended, StartTime: timestamppb.New(p.started),
		StdoutBytes: p.rings[stdout].end, StderrBytes: p.rings[stderr].end,
		Kind: p.kind, StartedBy: p.user, Viewers: int32(p.viewers),
	}
	if p.input != nil {
		result.StdinBytes = p.input.count.Load()
	}
	if !p.ended && !p.alone.IsZero() {
		result.UnwatchedTime = timestamppb.New(p.alone)
	}
	if p.ended {
		result.ExitCode, result.ExitSignal, result.EndedBy, result.EndTime = p.exitCode, p.exitSignal, p.endedBy, timestamppb.New(p.endTime)
	}
	return result
}

// wake lets viewers look again. p.mu is held.
func (p *process) wake() {
	if p.changed != nil {
		close(p.changed)
		p.changed = nil
	}
}

// wakePumps lets pumps look again at the owner. p.mu is held.
func (p *process) wakePumps() {
	if p.taken != nil {
		close(p.taken)
		p.taken = nil
	}
}

// append adds output of one stream. It waits only for the owner, and only as the package says.
func (p *process) append(stream int, data []byte) {
	var patience *time.Timer
	for len(data) > 0 {
		p.mu.Lock()
		r := &p.rings[stream]
		if size := r.wanted(len(data), p.limits[stream]); size > len(r.buf) {
			// Only this pump grows this ring, so it is as it was when the lock is taken again.
			more := int64(size - len(r.buf))
			first := len(r.buf) == 0
			p.mu.Unlock()
			size = p.afford(more, first, size)
			p.mu.Lock()
			r.grow(size)
		}
		n := len(data)
		if p.owner != nil {
			n = min(n, p.room(stream))
		}
		if n > 0 {
			r.write(data[:n])
			data = data[n:]
			p.wake()
			p.mu.Unlock()
			continue
		}
		if p.taken == nil {
			p.taken = make(chan struct{})
		}
		owner, taken, wait := p.owner, p.taken, ownerPatience
		switch {
		case p.awayOwner():
			wait = p.patience - p.now().Sub(owner.away)
		case owner != nil && owner.steady:
			wait = steadyPatience
		}
		p.mu.Unlock()
		if patience == nil {
			patience = time.NewTimer(wait)
			defer patience.Stop()
		} else {
			patience.Reset(wait)
		}
		select {
		case <-taken:
		case <-patience.C:
			p.disown(owner)
		}
	}
}

// room is how much more of a stream fits without a loss for the owner: the part of the ring that was never used, and else a quarter
// of it less what the owner has not taken yet. p.mu is held and there is an owner.
func (p *process) room(stream int) int {
	r := &p.rings[stream]
	ahead := min(len(r.buf), max(len(r.buf)/ownedFactor, minRing))
	behind := r.end - p.owner.cursor[stream]
	return int(max(int64(len(r.buf))-(r.end-r.start), int64(ahead)-behind, 0))
}

// awayOwner reports whether the process has an owner whose connection broke. p.mu is held.
func (p *process) awayOwner() bool { return p.owner != nil && !p.owner.away.IsZero() }

// afford takes more bytes from the budget for a ring that is to be size large, and gives the size that it may have.
func (p *process) afford(more int64, first bool, size int) int {
	if p.budget.take(more) {
		return size
	}
	p.evict(more)
	if p.budget.take(more) {
		return size
	}
	if first {
		p.budget.force(minRing)
		return minRing
	}
	return 0
}

// disown makes v a viewer like all others.
func (p *process) disown(v *viewer) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.owner == v {
		p.owner = nil
		p.wakePumps()
	}
}

// dropOutput forgets the output that is kept.
func (p *process) dropOutput() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := range p.rings {
		p.budget.give(int64(p.rings[i].drop()))
	}
	p.wake()
}

// pump reads one stream to its end, or until lingerTime after the process's, and reports whether others have it open then. The file
// stays open.
func (p *process) pump(stream int, file *os.File) (open bool) {
	raw, err := file.SyscallConn()
	grown := false
	for err == nil {
		var n int
		var buf *[chunkSize]byte
		var readErr error
		// The buffer is taken when there is something to read: idle processes have none.
		err = raw.Read(func(fd uintptr) bool {
			buf = chunks.Get().(*[chunkSize]byte)
			read := readOnce
			if p.command.pty != nil {
				read = readTerminal
			}
			n, readErr = read(int(fd), buf[:])
			if errors.Is(readErr, unix.EAGAIN) {
				chunks.Put(buf)
				buf = nil
				return false
			}
			return true
		})
		if buf == nil {
			break
		}
		if n == chunkSize && !grown && p.command.pty == nil { // much comes: more of it may wait
			_ = raw.Control(func(fd uintptr) { _ = fcntlNow(int(fd), unix.F_SETPIPE_SZ, pipeSize) })
			grown = true
		}
		if n > 0 {
			p.append(stream, buf[:n])
		}
		chunks.Put(buf)
		if err == nil {
			err = readErr
		}
	}
	if os.IsTimeout(err) {
		open = p.empty(stream, file)
	}
	p.mu.Lock()
	p.closed[stream] = true
	p.wake()
	p.mu.Unlock()
	return open
}

// readOnce reads what is there. The end of a stream is io.EOF.
func readOnce(fd int, buf []byte) (int, error) {
	n, err := readNow(fd, buf)
	switch {
	case errors.Is(err, unix.EIO): // a terminal whose other side is closed
		return 0, io.EOF
	case err != nil:
		return 0, err
	case n == 0:
		return 0, io.EOF
	}
	return n, nil
}

// readTerminal is readOnce for a terminal, which gives some 4 KiB at most, however much it has: after a read of about that, it reads again. What
// a flood writes then goes its way in pieces sixteen times as large; what is typed and echoed is not waited for.
func readTerminal(fd int, buf []byte) (int, error) {
	n, err := readOnce(fd, buf)
	for last := n; err == nil && last >= terminalFull && n < len(buf); n += last {
		last, err = readOnce(fd, buf[n:])
	}
	if n > 0 {
		return n, nil // an error comes again
	}
	return 0, err
}

// empty takes what is in a pipe or terminal now, which is what a program that has ended left there, and
// reports whether others have it open.
func (p *process) empty(stream int, file *os.File) bool {
	raw, err := file.SyscallConn()
	if err != nil {
		return false
	}
	buf := chunks.Get().(*[chunkSize]byte)
	defer chunks.Put(buf)
	for left := pipeSize; left > 0; {
		var n int
		var readErr error
		if err := raw.Control(func(fd uintptr) { n, readErr = readOnce(int(fd), buf[:min(left, chunkSize)]) }); err != nil {
			return false
		}
		if readErr != nil {
			return errors.Is(readErr, unix.EAGAIN)
		}
		p.append(stream, buf[:n])
		left -= n
	}
	return true
}

// settle waits until something came of the process: its end, or more output than a few lines. It waits at most
// patience.
func (p *process) settle(patience time.Duration) {
	timer := time.NewTimer(patience)
	defer timer.Stop()
	for {
		p.mu.Lock()
		if p.done || p.rings[stdout].end+p.rings[stderr].end >= settledBytes {
			p.mu.Unlock()
			return
		}
		if p.changed == nil {
			p.changed = make(chan struct{})
		}
		changed := p.changed
		p.mu.Unlock()
		select {
		case <-changed:
		case <-timer.C:
			return
		}
	}
}

// reaped notes how the first program ended.
func (p *process) reaped(status unix.WaitStatus, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ended, p.endTime = true, now
	p.exitCode = int32(status.ExitStatus())
	if status.Signaled() {
		number := status.Signal()
		p.exitCode = 128 + int32(number)
		p.exitSignal = signalName(number)
	}
	if p.killedBy != "" && p.exitCode != 0 {
		p.endedBy = p.killedBy
	}
	p.watched() // there is nothing left to hang up
	p.wake()
}

// killed notes that the platform killed a part of the process, and why.
func (p *process) killed(why string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.killedBy = why
}

func (p *process) finished() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.done = true
	p.wake()
}

func signalName(number unix.Signal) string {
	if name := unix.SignalName(number); name != "" {
		return name[len("SIG"):]
	}
	return strconv.Itoa(int(number))
}

// viewer has one reader's place in the output of a process. It is used by one goroutine.
type viewer struct {
	p      *process
	cursor [streams]int64 // guarded by p.mu
	away   time.Time      // of an owner: since when its connection is broken. Guarded by p.mu
	steady bool           // of an owner: it is waited for as long as its connection lives. Guarded by p.mu
	next   int            // the stream to look at first, so that none starves
	buf    []byte         // of the last output event
}

// view is viewAs for who may do with the process what its user may.
func (p *process) view(offsets [streams]int64) (*viewer, error) { return p.viewAs(p.user, offsets) }

// viewAs makes a viewer from the offsets on; -1 is now. The caller calls leave in the end. An owner whose connection broke comes back only as
// the user of the platform who started the process: who may only look must never make it wait.
func (p *process) viewAs(user string, offsets [streams]int64) (*viewer, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	v := &viewer{p: p}
	for i, offset := range offsets {
		end := p.rings[i].end
		if offset == -1 {
			offset = end
		}
		if offset < 0 || offset > end {
			return nil, carrel.Errorf(carrel.CodeInvalid, "offset_out_of_range", "the offset %d is not in the output of the process, which has %d bytes so far", offset, end)
		}
		v.cursor[i] = offset
	}
	if p.viewers >= maxViewers {
		return nil, carrel.Errorf(carrel.CodeExhausted, "too_many_viewers", "%d viewers look at this process; no more can", maxViewers)
	}
	p.viewers++
	p.watched()
	if p.awayOwner() && user == p.user && offsets[stdout] >= p.rings[stdout].start && offsets[stderr] >= p.rings[stderr].start {
		v.steady = p.owner.steady
		p.owner = v // the owner is back
		p.wakePumps()
	}
	return v, nil
}

// leave ends a viewer. An owner is expected back for awayPatience.
func (v *viewer) leave() {
	p := v.p
	v.buf = nil
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.owner == v {
		v.away = p.now()
		p.wakePumps()
	}
	if p.viewers--; p.viewers == 0 {
		p.unwatched(p.now())
	}
}

// event waits for the next output, gap or the end, at most until ctx ends or idle is received from, which gives
// nil. The last event is Exited; done is true with it. The bytes of an output are good until the next call.
func (v *viewer) event(ctx context.Context, idle <-chan time.Time) (event *carrelv1.ProcessEvent, done bool, err error) {
	for {
		event, done, changed := v.poll()
		if done {
			return &carrelv1.ProcessEvent{Event: &carrelv1.ProcessEvent_Exited{Exited: v.p.show()}}, true, nil
		}
		if event != nil {
			return event, false, nil
		}
		select {
		case <-changed:
		case <-idle:
			return nil, false, nil
		case <-ctx.Done():
			return nil, false, ctx.Err()
		}
	}
}

// poll gives the next output or gap; or that everything was given; or a channel that is closed at the next change.
func (v *viewer) poll() (event *carrelv1.ProcessEvent, done bool, changed <-chan struct{}) {
	p := v.p
	p.mu.Lock()
	defer p.mu.Unlock()
	for range streams {
		i := v.next
		v.next = (v.next + 1) % streams
		r := &p.rings[i]
		name := carrelv1.Stream(i + 1)
		at := v.cursor[i]
		if at < r.start {
			v.cursor[i] = r.start
			return &carrelv1.ProcessEvent{Event: &carrelv1.ProcessEvent_Gap{Gap: &carrelv1.Gap{Stream: name, Offset: at, NextOffset: r.start}}}, false, nil
		}
		if at < r.end {
			v.buf = r.read(v.buf[:0], at, eventSize)
			data := v.buf
			v.cursor[i] += int64(len(data))
			if p.owner == v {
				p.wakePumps()
			}
			return &carrelv1.ProcessEvent{Event: &carrelv1.ProcessEvent_Output{Output: &carrelv1.Output{Stream: name, Offset: at, Data: data}}}, false, nil
		}
	}
	if p.done {
		return nil, true, nil
	}
	if p.changed == nil {
		p.changed = make(chan struct{})
	}
	return nil, false, p.changed
}
