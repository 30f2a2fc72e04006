package jupyter

import (
	"context"
	"encoding/json"
	"errors"
	"sync"
	"time"

	"carrel.dev/carrel/internal/agent/kernel"
	"carrel.dev/carrel/internal/carrel"
)

const (
	// attachedBytes is how much may wait for a client that is connected; one that is behind by more is cut off.
	attachedBytes = 64 << 20
	// awayBytes is how much is kept for a client that is not; the oldest output is dropped for more, and the client told so.
	awayBytes = 16 << 20
	// awayTime is how long a viewer waits for its client to come back.
	awayTime = time.Hour
	// maxAway bounds the viewers without a client, maxViewers all of them.
	maxAway    = 16
	maxViewers = 256
)

// item is one message that waits for a client.
type item struct {
	channel kernel.Channel
	message *kernel.Message
}

// viewer is one client's place at a kernel.
type viewer struct {
	server  *Server
	key     viewerKey
	kernel  *kernel.Kernel
	client  *kernel.Client
	stop    context.CancelFunc // ends pumping
	ended   chan struct{}      // closed when nothing comes from the kernel any more
	changed chan struct{}      // has one when something was put

	mu      sync.Mutex // guards what follows
	queue   []item
	size    int64
	dropped int
	over    error // why nothing comes any more; nil: something may
	socket  *socket
	left    time.Time // since when no client is there; zero: one is
}

// viewerKey says whose place it is: a client names itself with a session id and shows the same when it comes back.
type viewerKey struct{ kernel, session string }

// viewers has the viewers of all kernels.
type viewers struct {
	server *Server
	tasks  sync.WaitGroup

	mu     sync.Mutex // guards what follows
	closed bool
	byKey  map[viewerKey]*viewer
	// restarting are the kernels that a client had restarted by REST: clients of Jupyter do not expect to be told.
	restarting map[string]int
	deaths     map[string]*deaths // by kernel
}

func newViewers(s *Server) *viewers {
	return &viewers{server: s, byKey: map[viewerKey]*viewer{}, restarting: map[string]int{}, deaths: map[string]*deaths{}}
}

const (
	// maxRevivals is how often a kernel is started again that dies before it has lived for stableTime, as in Jupyter.
	maxRevivals = 5
	stableTime  = 10 * time.Second
)

// deaths are those of a kernel's processes.
type deaths struct {
	run     int // the last process that died
	inARow  int
	revived bool // it was started again for that
}

// revive has a kernel that died started again, as clients of Jupyter expect, and reports whether it is. All viewers of the kernel ask for the same
// death; the first has it done.
func (vs *viewers) revive(k *kernel.Kernel, info kernel.Info) bool {
	vs.mu.Lock()
	defer vs.mu.Unlock()
	d := vs.deaths[info.ID]
	if d == nil {
		d = &deaths{}
		vs.deaths[info.ID] = d
	}
	if d.run == info.Run {
		return d.revived
	}
	if info.Since.Sub(info.Started) >= stableTime {
		d.inARow = 0
	}
	d.run, d.inARow = info.Run, d.inARow+1
	d.revived = d.inARow <= maxRevivals && !vs.closed
	if d.revived {
		vs.tasks.Go(func() {
			if err := k.Revive(vs.server.ctx); err != nil {
				vs.server.log.Warn("a kernel that died could not be started again", "kernel", info.ID, "error", err)
				vs.mu.Lock()
				d.revived = false
				vs.mu.Unlock()
				vs.tell(info.ID, "dead")
			}
		})
	}
	return d.revived
}

func (vs *viewers) forget(id string) {
	vs.mu.Lock()
	defer vs.mu.Unlock()
	delete(vs.deaths, id)
}

// tell tells all clients of a kernel how it is.
func (vs *viewers) tell(id, status string) {
	vs.mu.Lock()
	var all []*viewer
	for key, v := range vs.byKey {
		if key.kernel == id {
			all = append(all, v)
		}
	}
	vs.mu.Unlock()
	for _, v := range all {
		v.tell(status)
	}
}

func (v *viewer) tell(status string) {
	v.put(item{kernel.IOPub, serverMessage("status", nil, map[string]any{"execution_state": status}, v.server.now())})
}

// attach gives the place of a client, its old one if it is there; fresh says that it is a new one. The socket that had it before is cut.
func (vs *viewers) attach(k *kernel.Kernel, session string, to *socket) (v *viewer, fresh bool, err error) {
	if session == "" { // one that will never come back
		session = kernel.NewID()
	}
	key := viewerKey{k.ID(), session}
	vs.tidy()
	vs.mu.Lock()
	defer vs.mu.Unlock()
	if vs.closed {
		return nil, false, carrel.Errorf(carrel.CodeUnavailable, "box_stopping", "the box is being stopped")
	}
	if v = vs.byKey[key]; v != nil && v.take(to) {
		return v, false, nil
	}
	if len(vs.byKey) >= maxViewers {
		return nil, false, carrel.Errorf(carrel.CodeExhausted, "too_many_clients", "%d clients are connected to kernels of the box; no more can be", maxViewers)
	}
	client, err := k.Connect(kernel.ClientConfig{Session: session, QueueBytes: attachedBytes})
	if err != nil {
		return nil, false, err
	}
	ctx, stop := context.WithCancel(vs.server.ctx)
	v = &viewer{
		server: vs.server, key: key, kernel: k, client: client, stop: stop, ended: make(chan struct{}), changed: make(chan struct{}, 1), socket: to,
	}
	vs.byKey[key] = v
	vs.tasks.Go(func() {
		v.pump(ctx)
		vs.mu.Lock()
		defer vs.mu.Unlock()
		if vs.byKey[key] == v {
			delete(vs.byKey, key)
		}
	})
	return v, true, nil
}

// tidy gives up viewers that waited too long, or that are too many.
func (vs *viewers) tidy() {
	vs.mu.Lock()
	defer vs.mu.Unlock()
	now := vs.server.now()
	for {
		away := 0
		var oldest *viewer
		var since time.Time
		for key, v := range vs.byKey {
			v.mu.Lock()
			left := v.left
			v.mu.Unlock()
			if left.IsZero() {
				continue
			}
			if now.Sub(left) > awayTime {
				v.stop()
				delete(vs.byKey, key)
				continue
			}
			away++
			if oldest == nil || left.Before(since) {
				oldest, since = v, left
			}
		}
		if away <= maxAway {
			return
		}
		oldest.stop()
		delete(vs.byKey, oldest.key)
	}
}

// connected counts the clients that are connected to a kernel.
func (vs *viewers) connected(id string) int {
	vs.mu.Lock()
	defer vs.mu.Unlock()
	n := 0
	for key, v := range vs.byKey {
		if key.kernel != id {
			continue
		}
		v.mu.Lock()
		if v.left.IsZero() {
			n++
		}
		v.mu.Unlock()
	}
	return n
}

// quietly does a restart that clients are not told of.
func (vs *viewers) quietly(id string, restart func() error) error {
	vs.mu.Lock()
	vs.restarting[id]++
	vs.mu.Unlock()
	defer func() {
		vs.mu.Lock()
		if vs.restarting[id]--; vs.restarting[id] == 0 {
			delete(vs.restarting, id)
		}
		vs.mu.Unlock()
	}()
	return restart()
}

func (vs *viewers) quiet(id string) bool {
	vs.mu.Lock()
	defer vs.mu.Unlock()
	return vs.restarting[id] > 0
}

func (vs *viewers) close() {
	vs.mu.Lock()
	vs.closed = true
	vs.mu.Unlock()
	vs.tasks.Wait()
}

// take gives the place to a client that is back; false: nothing comes here any more.
func (v *viewer) take(to *socket) bool {
	v.mu.Lock()
	before := v.socket
	usable := v.over == nil
	if usable {
		v.socket, v.left = to, time.Time{}
	}
	v.mu.Unlock()
	if usable && before != nil {
		before.cut(errStale)
	}
	return usable
}

var errStale = errors.New("the same client has connected again")

// leave is what a client's socket calls in the end.
func (v *viewer) leave(from *socket) {
	v.mu.Lock()
	if v.socket == from {
		v.socket, v.left = nil, v.server.now()
		v.shrink()
	}
	v.mu.Unlock()
	v.server.viewers.tidy()
}

// pump takes what comes from the kernel until the kernel or the viewer ends.
func (v *viewer) pump(ctx context.Context) {
	defer close(v.ended)
	defer v.client.Close()
	first := true
	for {
		got, err := v.client.Receive(ctx)
		if err != nil {
			v.mu.Lock()
			v.over = err
			v.mu.Unlock()
			v.wake()
			return
		}
		if got.Channel != kernel.State {
			v.put(item{got.Channel, got.Message})
			continue
		}
		// The first tells how the kernel is, and a client that was just connected asks that itself, or waits for the kernel's next word. One that
		// died while nobody was there, at its very start for instance, is started again for the first who comes.
		switch {
		case first && got.Info.Phase == kernel.Dead && v.server.viewers.revive(v.kernel, got.Info):
			// Its next state says so.
		case first:
			v.tell(stateOf(got.Info.Phase))
		case got.Info.Phase == kernel.Gone:
			v.server.viewers.forget(got.Info.ID)
			v.tell("dead")
		case got.Info.Phase == kernel.Dead && !v.server.viewers.revive(v.kernel, got.Info):
			v.tell("dead")
		case got.Info.Phase == kernel.Restarting && !v.server.viewers.quiet(v.key.kernel):
			v.tell("restarting")
		}
		first = false
	}
}

func (v *viewer) wake() {
	select {
	case v.changed <- struct{}{}:
	default:
	}
}

// put never waits: a client that is behind by too much loses its connection, one that is away its oldest output.
func (v *viewer) put(one item) {
	v.server.touch()
	v.mu.Lock()
	v.queue = append(v.queue, one)
	v.size += one.message.Size()
	var slow *socket
	switch {
	case v.socket == nil:
		v.shrink()
	case v.size > attachedBytes:
		slow, v.socket, v.left = v.socket, nil, v.server.now()
		v.shrink()
	}
	v.mu.Unlock()
	v.wake()
	if slow != nil {
		slow.cut(errSlow)
	}
}

var errSlow = errors.New("more waits for this client than is kept; connect again")

// shrink drops what is over awayBytes: output first, the oldest first. v.mu is held.
func (v *viewer) shrink() {
	if v.size <= awayBytes {
		return
	}
	for _, all := range []bool{false, true} {
		kept := v.queue[:0]
		for _, one := range v.queue {
			if v.size > awayBytes && (all || one.channel == kernel.IOPub && !isStatus(one.message)) {
				v.size -= one.message.Size()
				v.dropped++
				continue
			}
			kept = append(kept, one)
		}
		clear(v.queue[len(kept):])
		v.queue = kept
		if v.size <= awayBytes {
			return
		}
	}
}

func isStatus(m *kernel.Message) bool { return m.Head().Type == "status" }

// next waits for what is to be sent to a client. An error is that of the kernel, or of ctx, or errStale when the place is another socket's.
func (v *viewer) next(ctx context.Context, reader *socket) (item, error) {
	for {
		v.mu.Lock()
		switch {
		case v.socket != reader:
			v.mu.Unlock()
			v.wake() // that was for who has the place now
			return item{}, errStale
		case v.dropped > 0:
			text := droppedText(v.dropped)
			v.dropped = 0
			var parent json.RawMessage
			for _, one := range v.queue {
				if one.channel == kernel.IOPub {
					parent = one.message.Parent
					break
				}
			}
			v.mu.Unlock()
			return item{kernel.IOPub, serverMessage("stream", parent, map[string]any{"name": "stderr", "text": text}, v.server.now())}, nil
		case len(v.queue) > 0:
			one := v.queue[0]
			v.queue[0] = item{}
			v.queue = v.queue[1:]
			v.size -= one.message.Size()
			if len(v.queue) == 0 {
				v.queue = nil
			}
			v.mu.Unlock()
			return one, nil
		case v.over != nil:
			v.mu.Unlock()
			return item{}, v.over
		}
		v.mu.Unlock()
		select {
		case <-v.changed:
		case <-ctx.Done():
			return item{}, context.Cause(ctx)
		}
	}
}

// stateOf is a kernel's phase in Jupyter's words.
func stateOf(phase kernel.Phase) string {
	switch phase {
	case kernel.Unresponsive:
		return "busy"
	case kernel.Gone:
		return "dead"
	}
	return string(phase)
}
