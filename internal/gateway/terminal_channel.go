package gateway

import (
	"cmp"
	"context"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/carrel"
)

const (
	// maxTyped is how much input of a channel may wait for its process, in bytes.
	maxTyped = 256 << 10
	// inputOverhead is what a piece of input counts beside its data.
	inputOverhead = 64
	// actTimeout is for a signal or a size.
	actTimeout = 10 * time.Second
)

// channel is one process that a socket looks at.
type channel struct {
	t       *terminals
	number  uint32
	lane    *lane
	ctx     context.Context
	stop    context.CancelFunc
	started chan struct{} // closed when process is there, or will never be
	process string
	live    atomic.Bool
	inputs  sync.WaitGroup

	mu      sync.Mutex // guards what follows
	waiting []*carrelv1.TerminalInput
	size    int  // of what waits, in bytes
	typing  bool // a goroutine gives what waits to the process
	over    bool
}

func newChannel(t *terminals, number uint32) *channel {
	c := &channel{t: t, number: number, lane: t.socket.out.lane(true), started: make(chan struct{})}
	c.ctx, c.stop = context.WithCancel(t.socket.ctx)
	return c
}

// refuse ends a channel that does not begin.
func (c *channel) refuse(err error) {
	c.fail(err)
	close(c.started)
	c.end()
}

// end stops what belongs to the channel.
func (c *channel) end() {
	c.stop()
	c.mu.Lock()
	c.over = true
	c.mu.Unlock()
	c.inputs.Wait()
}

// run follows the process to its end.
func (c *channel) run(start *carrelv1.StartProcessRequest, attach *carrelv1.AttachProcessRequest) {
	defer c.end()
	sure := sync.OnceFunc(func() { close(c.started) })
	defer sure()
	if err := c.follow(start, attach, sure); err != nil && c.ctx.Err() == nil {
		c.fail(err)
	}
}

// follow passes a process's events on until it has ended. When the connection to the box breaks it is made again and goes on at the byte where it
// broke, without the client's noticing.
func (c *channel) follow(start *carrelv1.StartProcessRequest, attach *carrelv1.AttachProcessRequest, known func()) error {
	if start != nil && c.t.pass.view() {
		return errScope(c.t.pass.Box)
	}
	if start != nil {
		start.Kind = cmp.Or(start.GetKind(), "terminal")
		c.t.g.touch(c.t.pass, activityExec)
	}
	replay := newReplay(attach)
	again := newRetry(c.t.g, c.t.pass)
	for {
		events, err := c.connection(start, attach, replay, known)
		if err == nil || c.process == "" {
			return err
		}
		if err := again.wait(c.ctx, err, events > 1); err != nil { // the first says no more than that the process is there
			c.t.lost(err)
			return err
		}
		start, attach = nil, &carrelv1.AttachProcessRequest{Process: c.process, StdoutOffset: replay.next[0], StderrOffset: replay.next[1]}
	}
}

// connection is one stream of the process's events, and how many came. Without an error the process has ended.
func (c *channel) connection(start *carrelv1.StartProcessRequest, attach *carrelv1.AttachProcessRequest, replay *replay, known func()) (events int, err error) {
	ctx, cancel := context.WithCancel(c.ctx)
	defer cancel()
	var stream *connect.ServerStreamForClient[carrelv1.ProcessEvent]
	if start != nil {
		stream, err = c.t.agent.Run(ctx, connect.NewRequest(start))
	} else {
		stream, err = c.t.agent.Attach(ctx, connect.NewRequest(attach))
	}
	if err != nil {
		return 0, fromAgent(c.ctx, c.t.pass.Box, err)
	}
	defer func() {
		cancel() // first: Close would else read what is still to come
		_ = stream.Close()
	}()
	for stream.Receive() {
		events++
		event := stream.Msg()
		again := event.GetStarted() != nil && c.process != "" // the client knows
		if p := event.GetStarted(); p != nil && !again {
			c.process = p.GetId()
			known()
		}
		if event.GetExited() != nil {
			if err := c.goLive(replay.all()); err != nil {
				return events, err
			}
		}
		if !again {
			if err := c.pass(event); err != nil {
				return events, err
			}
		}
		if err := c.goLive(replay.see(event)); err != nil {
			return events, err
		}
		if event.GetExited() != nil {
			return events, nil
		}
	}
	return events, streamEnd(c.ctx, c.t.pass.Box, stream.Err())
}

// pass passes an event of the process on.
func (c *channel) pass(event *carrelv1.ProcessEvent) error {
	out := &carrelv1.TerminalEvent{Channel: c.number}
	switch e := event.GetEvent().(type) {
	case *carrelv1.ProcessEvent_Started:
		out.Event = &carrelv1.TerminalEvent_Started{Started: e.Started}
	case *carrelv1.ProcessEvent_Output:
		out.Event = &carrelv1.TerminalEvent_Output{Output: e.Output}
	case *carrelv1.ProcessEvent_Gap:
		out.Event = &carrelv1.TerminalEvent_Gap{Gap: e.Gap}
	case *carrelv1.ProcessEvent_Exited:
		out.Event = &carrelv1.TerminalEvent_Exited{Exited: e.Exited}
	default:
		return nil
	}
	return c.send(out)
}

// send queues an event for the client. Errors are the end of the channel or of the socket.
func (c *channel) send(event *carrelv1.TerminalEvent) error {
	data, err := c.t.encode(event)
	if err != nil {
		return err
	}
	return c.lane.put(c.ctx, outFrame{data: data})
}

func (c *channel) goLive(now bool) error {
	if !now {
		return nil
	}
	c.live.Store(true)
	return c.send(&carrelv1.TerminalEvent{Channel: c.number, Event: &carrelv1.TerminalEvent_Live{Live: true}})
}

// fail tells what went wrong with the channel or one request of it.
func (c *channel) fail(err error) {
	e := own(c.ctx, c.t.g.log, "", err)
	_ = c.send(&carrelv1.TerminalEvent{Channel: c.number, Event: &carrelv1.TerminalEvent_Error{
		Error: &carrelv1.TerminalError{Code: connect.Code(e.Code).String(), Reason: e.Reason, Message: e.Message},
	}})
}

// enter gives input to the process behind what waits already. What a terminal answers by itself is dropped while old output is replayed,
// since it is an answer to a question of then, and for those who may only look.
func (c *channel) enter(input *carrelv1.TerminalInput) {
	if input.GetAutomatic() && (!c.live.Load() || c.t.pass.view()) {
		return
	}
	if c.t.pass.view() {
		c.fail(errScope(c.t.pass.Box))
		return
	}
	if len(input.GetData()) > 0 && !input.GetAutomatic() {
		c.t.g.touch(c.t.pass, activityInput)
	}
	if !c.queue(input) {
		c.fail(carrel.Errorf(carrel.CodeExhausted, "input_full", "the process has not taken %d KiB of input; give the rest when input_offset has risen", maxTyped>>10))
	}
}

// queue puts input behind what waits, and reports whether there was room for it.
func (c *channel) queue(input *carrelv1.TerminalInput) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	size := len(input.GetData()) + inputOverhead
	if c.size+size > maxTyped {
		return false
	}
	c.waiting, c.size = append(c.waiting, input), c.size+size
	if !c.typing && !c.over {
		c.typing = true
		c.inputs.Go(c.giveInput)
	}
	return true
}

// giveInput gives what waits to the process, piece by piece, until nothing waits.
func (c *channel) giveInput() {
	<-c.started
	for {
		c.mu.Lock()
		if len(c.waiting) == 0 || c.ctx.Err() != nil || c.process == "" {
			c.typing, c.waiting, c.size = false, nil, 0
			c.mu.Unlock()
			return
		}
		input := c.waiting[0]
		c.waiting = c.waiting[1:]
		c.mu.Unlock()
		response, err := c.t.agent.WriteInput(c.ctx, connect.NewRequest(&carrelv1.WriteInputRequest{
			Process: c.process, Offset: input.GetOffset(), Data: input.GetData(), Eof: input.GetEof(), Writer: input.GetWriter(),
		}))
		c.mu.Lock()
		c.size -= len(input.GetData()) + inputOverhead
		c.mu.Unlock()
		switch {
		case err == nil:
			_ = c.send(&carrelv1.TerminalEvent{Channel: c.number, Event: &carrelv1.TerminalEvent_InputOffset{InputOffset: response.Msg.GetNextOffset()}})
		case c.ctx.Err() == nil:
			c.fail(fromAgent(c.ctx, c.t.pass.Box, err))
		}
	}
}

// act does something quick beside the input, so that a signal reaches a process that takes no input.
func (c *channel) act(do func(ctx context.Context, process string) error) {
	if c.t.pass.view() {
		c.fail(errScope(c.t.pass.Box))
		return
	}
	if !c.t.begin() {
		c.fail(carrel.Errorf(carrel.CodeExhausted, "too_many_requests", "%d signals and sizes are under way; try again in a moment", maxActs))
		return
	}
	c.t.socket.parts.Go(func() {
		defer c.t.done()
		ctx, cancel := context.WithTimeout(c.ctx, actTimeout)
		defer cancel()
		select {
		case <-c.started:
		case <-ctx.Done():
			return
		}
		if c.process == "" {
			return
		}
		if err := do(ctx, c.process); err != nil && c.ctx.Err() == nil {
			c.fail(fromAgent(ctx, c.t.pass.Box, err))
		}
	})
}

func (c *channel) resize(ctx context.Context, process string, size *carrelv1.TerminalSize) error {
	_, err := c.t.agent.Resize(ctx, connect.NewRequest(&carrelv1.ResizeProcessRequest{Process: process, Size: size}))
	return err
}

func (c *channel) signal(ctx context.Context, process, name string) error {
	_, err := c.t.agent.Signal(ctx, connect.NewRequest(&carrelv1.SignalProcessRequest{Process: process, Signal: strings.TrimSpace(name)}))
	return err
}

// replay knows when all output that existed when a channel was opened has been passed on.
type replay struct {
	next, until [2]int64 // by stream
	known, over bool
}

func newReplay(attach *carrelv1.AttachProcessRequest) *replay {
	return &replay{next: [2]int64{attach.GetStdoutOffset(), attach.GetStderrOffset()}}
}

// see takes an event into account and reports whether the replay ended with it.
func (r *replay) see(event *carrelv1.ProcessEvent) bool {
	switch e := event.GetEvent().(type) {
	case *carrelv1.ProcessEvent_Started:
		r.known = true
		r.until = [2]int64{e.Started.GetStdoutBytes(), e.Started.GetStderrBytes()}
		for i, offset := range r.next {
			if offset == -1 {
				r.next[i] = r.until[i]
			}
		}
	case *carrelv1.ProcessEvent_Output:
		r.note(e.Output.GetStream(), e.Output.GetOffset()+int64(len(e.Output.GetData())))
	case *carrelv1.ProcessEvent_Gap:
		r.note(e.Gap.GetStream(), e.Gap.GetNextOffset())
	}
	return r.known && r.next[0] >= r.until[0] && r.next[1] >= r.until[1] && r.all()
}

// all ends the replay, and reports whether it was still going on.
func (r *replay) all() bool {
	before := r.over
	r.over = true
	return !before
}

func (r *replay) note(stream carrelv1.Stream, next int64) {
	if i := int(stream) - 1; i >= 0 && i < len(r.next) {
		r.next[i] = next
	}
}
