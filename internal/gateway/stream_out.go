package gateway

import (
	"context"
	"slices"
	"sync"
	"time"
)

const (
	// laneBytes is how much of one channel may wait for its turn on a socket; a single larger frame may too.
	laneBytes = 256 << 10
	// promptBytes is how little a prompt lane must have waiting to go before others.
	promptBytes = 4 << 10
	// maxPrompt is how many frames in a row go before those of others.
	maxPrompt = 8
)

// outbox puts the frames of many channels in the order in which one socket sends them: in turn, a frame of each, except that the little
// that a terminal says to a key goes first. A flood on one channel so delays the others by one frame of it.
type outbox struct {
	mu     sync.Mutex    // guards what follows and the lanes
	ready  []*lane       // that have frames, in the order of their turns
	prompt int           // frames in a row that went before others
	ending bool          // nothing more is taken
	ended  chan struct{} // closed with close
	wake   chan struct{} // a lane has become ready, or the end has come
	idle   chan struct{} // closed when nothing waits or is written; nil: nobody asks
	busy   bool          // a frame is being written
}

// lane is the queue of one channel.
type lane struct {
	out    *outbox
	prompt bool
	frames []outFrame
	size   int           // of frames, in bytes
	room   chan struct{} // closed when frames have left; nil: nobody waits
}

// outFrame is one message to the client.
type outFrame struct {
	data  []byte
	wrote func() // called when it has been written; nil: nobody asks
}

func newOutbox() *outbox {
	return &outbox{ended: make(chan struct{}), wake: make(chan struct{}, 1)}
}

// lane begins a queue. prompt: what it has goes first while it is little.
func (o *outbox) lane(prompt bool) *lane { return &lane{out: o, prompt: prompt} }

// put waits until there is room for a frame, and queues it. One larger than the lane is waited for until it is written, so that whoever puts it holds
// what it takes in memory. Errors: the end of ctx; errSocketClosed.
func (l *lane) put(ctx context.Context, f outFrame) error {
	o := l.out
	if len(f.data) > laneBytes {
		wrote, gone := f.wrote, make(chan struct{})
		f.wrote = func() {
			close(gone)
			if wrote != nil {
				wrote()
			}
		}
		if err := l.queue(ctx, f); err != nil {
			return err
		}
		select {
		case <-gone:
			return nil
		case <-o.ended:
			return errSocketClosed
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return l.queue(ctx, f)
}

// queue is put without waiting for the frame to be written.
func (l *lane) queue(ctx context.Context, f outFrame) error {
	o := l.out
	for {
		o.mu.Lock()
		if o.ending {
			o.mu.Unlock()
			return errSocketClosed
		}
		if l.size == 0 || l.size+len(f.data) <= laneBytes {
			l.add(f)
			o.mu.Unlock()
			return nil
		}
		if l.room == nil {
			l.room = make(chan struct{})
		}
		room := l.room
		o.mu.Unlock()
		select {
		case <-room:
		case <-o.ended:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// offer queues a frame if nothing of its lane waits, and never waits itself.
func (l *lane) offer(data []byte) {
	l.out.mu.Lock()
	defer l.out.mu.Unlock()
	if l.size == 0 && !l.out.ending {
		l.add(outFrame{data: data})
	}
}

// add queues a frame; the caller holds mu.
func (l *lane) add(f outFrame) {
	if len(l.frames) == 0 {
		l.out.ready = append(l.out.ready, l)
	}
	l.frames = append(l.frames, f)
	l.size += len(f.data)
	select {
	case l.out.wake <- struct{}{}:
	default:
	}
}

// next takes the frame whose turn it is; false: there is none.
func (o *outbox) next() (outFrame, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.busy = false
	if len(o.ready) == 0 {
		if o.idle != nil {
			close(o.idle)
			o.idle = nil
		}
		return outFrame{}, false
	}
	at := slices.IndexFunc(o.ready, func(l *lane) bool { return l.prompt && l.size <= promptBytes })
	if at > 0 && o.prompt < maxPrompt {
		o.prompt++
	} else {
		at, o.prompt = 0, 0
	}
	l := o.ready[at]
	f := l.frames[0]
	l.frames[0] = outFrame{}
	l.frames = l.frames[1:]
	l.size -= len(f.data)
	o.ready = slices.Delete(o.ready, at, at+1)
	if len(l.frames) > 0 {
		o.ready = append(o.ready, l)
	}
	if l.room != nil {
		close(l.room)
		l.room = nil
	}
	o.busy = true
	return f, true
}

// run writes frames until close, or until one cannot be written; it closes the outbox then.
func (o *outbox) run(write func([]byte) error) {
	defer o.close()
	for {
		f, ok := o.next()
		if !ok {
			select {
			case <-o.wake:
			case <-o.ended:
				return
			}
			continue
		}
		if write(f.data) != nil {
			return
		}
		if f.wrote != nil {
			f.wrote()
		}
		select {
		case <-o.ended:
			return
		default:
		}
	}
}

// flush takes nothing more and waits until what was queued is written, for patience at most.
func (o *outbox) flush(patience time.Duration) {
	o.mu.Lock()
	o.ending = true
	if len(o.ready) == 0 && !o.busy {
		o.mu.Unlock()
		return
	}
	if o.idle == nil {
		o.idle = make(chan struct{})
	}
	idle := o.idle
	o.mu.Unlock()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-idle:
	case <-o.ended:
	case <-timer.C:
	}
}

// close ends the outbox; what waits is dropped. It may be called again.
func (o *outbox) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.ending = true
	select {
	case <-o.ended:
	default:
		close(o.ended)
	}
}
