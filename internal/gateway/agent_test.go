package gateway_test

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"

	"carrel.dev/carrel/api/carrel/agent/v1/agentv1connect"
	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/carrel"
)

// fakeAgent runs small built-in programs and keeps all of their output:
//
//	echo A…       A on stdout, "to stderr" on stderr
//	cat           stdin to stdout until end-of-file
//	generate N    N bytes of pattern
//	hold          nothing, until a signal ends it
//	slow N        N lines, each once the test has let it go
type fakeAgent struct {
	agentv1connect.UnimplementedProcessServiceHandler
	mu        sync.Mutex
	processes map[string]*fakeProcess
	requests  map[string]*fakeProcess
	starts    atomic.Int64
	attaches  atomic.Int64
	replay    atomic.Pointer[chan struct{}] // closed when an attach may tell what is there; nil: at once
	step      chan struct{}                 // one for each line of slow
	refuse    atomic.Pointer[connect.Error]
	notebooks *fakeNotebooks
}

func newFakeAgent() *fakeAgent {
	return &fakeAgent{processes: map[string]*fakeProcess{}, requests: map[string]*fakeProcess{}, step: make(chan struct{}, 1000), notebooks: newFakeNotebooks()}
}

type fakeProcess struct {
	id string

	mu      sync.Mutex
	out     [3][]byte
	first   [3]int64 // offset of out[i][0]
	input   []byte
	rows    uint32
	done    *carrelv1.Process
	changed chan struct{}
}

func (p *fakeProcess) touch() { close(p.changed); p.changed = make(chan struct{}) }

func (p *fakeProcess) write(stream carrelv1.Stream, data []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.out[stream] = append(p.out[stream], data...)
	p.touch()
}

func (p *fakeProcess) exit(code int32, signal string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.done == nil {
		p.done = &carrelv1.Process{Id: p.id, ExitCode: code, ExitSignal: signal}
		p.touch()
	}
}

// forget drops output before an offset, as a ring does.
func (p *fakeProcess) forget(stream carrelv1.Stream, n int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.out[stream] = p.out[stream][n-p.first[stream]:]
	p.first[stream] = n
}

// pattern is what generate writes: every 8 bytes tell their offset.
func pattern(from, n int64) []byte {
	data := make([]byte, 0, n+8)
	for at := from; at < from+n; at += 8 {
		for shift := 24; shift >= 0; shift -= 4 {
			data = append(data, "0123456789abcdef"[at>>3>>shift&15])
		}
		data = append(data, '\n')
	}
	return data[:n]
}

func (a *fakeAgent) start(req *carrelv1.StartProcessRequest) (*fakeProcess, error) {
	if e := a.refuse.Load(); e != nil {
		return nil, e
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if p := a.requests[req.GetRequestId()]; p != nil && req.GetRequestId() != "" {
		return p, nil
	}
	a.starts.Add(1)
	p := &fakeProcess{id: "p" + strconv.Itoa(len(a.processes)+1), changed: make(chan struct{}), rows: req.GetPty().GetRows()}
	a.processes[p.id], a.requests[req.GetRequestId()] = p, p
	args := req.GetArgs()
	switch args[0] {
	case "echo":
		for _, s := range args[1:] {
			p.write(carrelv1.Stream_STREAM_STDOUT, []byte(s+"\n"))
		}
		p.write(carrelv1.Stream_STREAM_STDERR, []byte("to stderr\n"))
		p.exit(0, "")
	case "exit":
		code, _ := strconv.Atoi(args[1])
		p.exit(int32(code), "")
	case "generate":
		n, _ := strconv.ParseInt(args[1], 10, 64)
		p.write(carrelv1.Stream_STREAM_STDOUT, pattern(0, n))
		p.exit(0, "")
	case "slow":
		n, _ := strconv.Atoi(args[1])
		go func() {
			for i := range n {
				<-a.step
				p.write(carrelv1.Stream_STREAM_STDOUT, fmt.Appendf(nil, "line %d\n", i))
			}
			p.exit(7, "")
		}()
	case "cat", "hold":
	default:
		p.exit(127, "")
	}
	return p, nil
}

func (a *fakeAgent) get(id string) (*fakeProcess, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if p := a.processes[id]; p != nil {
		return p, nil
	}
	return nil, connect.NewError(connect.CodeNotFound, carrel.NotFound("process", id))
}

func (a *fakeAgent) Start(_ context.Context, req *connect.Request[carrelv1.StartProcessRequest]) (*connect.Response[carrelv1.Process], error) {
	p, err := a.start(req.Msg)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&carrelv1.Process{Id: p.id, Running: true}), nil
}

func (a *fakeAgent) Run(ctx context.Context, req *connect.Request[carrelv1.StartProcessRequest], out *connect.ServerStream[carrelv1.ProcessEvent]) error {
	p, err := a.start(req.Msg)
	if err != nil {
		return err
	}
	if err := out.Send(&carrelv1.ProcessEvent{Event: &carrelv1.ProcessEvent_Started{Started: &carrelv1.Process{Id: p.id}}}); err != nil {
		return err
	}
	return p.follow(ctx, [3]int64{}, out)
}

func (a *fakeAgent) Attach(ctx context.Context, req *connect.Request[carrelv1.AttachProcessRequest], out *connect.ServerStream[carrelv1.ProcessEvent]) error {
	a.attaches.Add(1)
	p, err := a.get(req.Msg.GetProcess())
	if err != nil {
		return err
	}
	if goOn := a.replay.Load(); goOn != nil {
		select {
		case <-*goOn:
		case <-ctx.Done():
			return ctx.Err()
		}
		if err := out.Send(&carrelv1.ProcessEvent{Event: &carrelv1.ProcessEvent_Started{Started: &carrelv1.Process{Id: p.id}}}); err != nil {
			return err
		}
	}
	return p.follow(ctx, [3]int64{0, req.Msg.GetStdoutOffset(), req.Msg.GetStderrOffset()}, out)
}

func (p *fakeProcess) follow(ctx context.Context, at [3]int64, out *connect.ServerStream[carrelv1.ProcessEvent]) error {
	for {
		p.mu.Lock()
		var events []*carrelv1.ProcessEvent
		for _, stream := range []carrelv1.Stream{carrelv1.Stream_STREAM_STDOUT, carrelv1.Stream_STREAM_STDERR} {
			if at[stream] < p.first[stream] {
				events = append(events, &carrelv1.ProcessEvent{Event: &carrelv1.ProcessEvent_Gap{Gap: &carrelv1.Gap{Stream: stream, Offset: at[stream], NextOffset: p.first[stream]}}})
				at[stream] = p.first[stream]
			}
			data := p.out[stream][at[stream]-p.first[stream]:]
			data = data[:min(len(data), 32<<10)]
			if len(data) > 0 {
				events = append(events, &carrelv1.ProcessEvent{Event: &carrelv1.ProcessEvent_Output{Output: &carrelv1.Output{Stream: stream, Offset: at[stream], Data: data}}})
				at[stream] += int64(len(data))
			}
		}
		done, changed := p.done, p.changed
		p.mu.Unlock()
		for _, e := range events {
			if err := out.Send(e); err != nil {
				return err
			}
		}
		if len(events) > 0 {
			continue
		}
		if done != nil {
			return out.Send(&carrelv1.ProcessEvent{Event: &carrelv1.ProcessEvent_Exited{Exited: done}})
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (a *fakeAgent) List(context.Context, *connect.Request[carrelv1.ListProcessesRequest]) (*connect.Response[carrelv1.ListProcessesResponse], error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	list := &carrelv1.ListProcessesResponse{}
	for id := range a.processes {
		list.Processes = append(list.Processes, &carrelv1.Process{Id: id})
	}
	return connect.NewResponse(list), nil
}

func (a *fakeAgent) Get(_ context.Context, req *connect.Request[carrelv1.GetProcessRequest]) (*connect.Response[carrelv1.Process], error) {
	p, err := a.get(req.Msg.GetProcess())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&carrelv1.Process{Id: p.id}), nil
}

func (a *fakeAgent) WriteInput(_ context.Context, req *connect.Request[carrelv1.WriteInputRequest]) (*connect.Response[carrelv1.WriteInputResponse], error) {
	p, err := a.get(req.Msg.GetProcess())
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	have := int64(len(p.input))
	data := req.Msg.GetData()
	if skip := have - req.Msg.GetOffset(); skip >= 0 && skip <= int64(len(data)) {
		data = data[skip:]
	} else {
		data = nil
	}
	// A pipe takes what fits: show the client a short write now and then.
	if len(data) > 100_000 {
		data = data[:100_000]
	}
	p.input = append(p.input, data...)
	next := int64(len(p.input))
	eof := req.Msg.GetEof() && next == req.Msg.GetOffset()+int64(len(req.Msg.GetData()))
	p.mu.Unlock()
	p.write(carrelv1.Stream_STREAM_STDOUT, data)
	if eof {
		p.exit(0, "")
	}
	return connect.NewResponse(&carrelv1.WriteInputResponse{NextOffset: next}), nil
}

func (a *fakeAgent) Signal(_ context.Context, req *connect.Request[carrelv1.SignalProcessRequest]) (*connect.Response[carrelv1.SignalProcessResponse], error) {
	p, err := a.get(req.Msg.GetProcess())
	if err != nil {
		return nil, err
	}
	p.exit(143, req.Msg.GetSignal())
	return connect.NewResponse(&carrelv1.SignalProcessResponse{}), nil
}

func (a *fakeAgent) Resize(_ context.Context, req *connect.Request[carrelv1.ResizeProcessRequest]) (*connect.Response[carrelv1.ResizeProcessResponse], error) {
	p, err := a.get(req.Msg.GetProcess())
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	p.rows = req.Msg.GetSize().GetRows()
	p.mu.Unlock()
	return connect.NewResponse(&carrelv1.ResizeProcessResponse{}), nil
}

// within is a bounded wait for tests.
const within = 3 * time.Minute
