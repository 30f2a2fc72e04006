package gateway_test

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	agentv1 "carrel.dev/carrel/api/carrel/agent/v1"
	"carrel.dev/carrel/api/carrel/agent/v1/agentv1connect"
	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/carrel"
)

// fakeNotebooks is the agent's NotebookService without kernels: a journal that the test writes, and whoever watches reads at their own pace.
type fakeNotebooks struct {
	agentv1connect.UnimplementedNotebookServiceHandler
	agentv1connect.UnimplementedForwardServiceHandler
	agentv1connect.UnimplementedFileServiceHandler

	mu       sync.Mutex
	journal  []*carrelv1.NotebookEvent
	first    int // sequence of journal[0]
	changed  chan struct{}
	executed map[string]int                 // how often each request id came
	requests []*carrelv1.ExecuteRequest     // as they came
	finish   chan *carrelv1.ExecuteResponse // what those who wait get
	users    []string
	ports    []uint32
	files    int // streams of file changes that were begun

	sent    atomic.Int64 // bytes of events that Send has taken
	watches atomic.Int64
	ahead   atomic.Int64 // of the box's clock, in nanoseconds
}

func newFakeNotebooks() *fakeNotebooks {
	return &fakeNotebooks{first: 1, changed: make(chan struct{}), executed: map[string]int{}, finish: make(chan *carrelv1.ExecuteResponse, 10), ports: []uint32{8000}}
}

// CompleteCode says what it was asked.
func (n *fakeNotebooks) CompleteCode(_ context.Context, request *connect.Request[carrelv1.CompleteCodeRequest]) (*connect.Response[carrelv1.CompleteCodeResponse], error) {
	m := request.Msg
	return connect.NewResponse(&carrelv1.CompleteCodeResponse{Completions: []*carrelv1.Completion{{Text: m.GetPath() + " " + m.GetCode()}}, End: m.GetCursor()}), nil
}

// InspectCode refuses as a kernel does that executes.
func (n *fakeNotebooks) InspectCode(context.Context, *connect.Request[carrelv1.InspectCodeRequest]) (*connect.Response[carrelv1.InspectCodeResponse], error) {
	return nil, connect.NewError(connect.CodeFailedPrecondition, carrel.Errorf(carrel.CodePrecondition, "kernel_busy", "the kernel is executing"))
}

// handler serves what an agent does.
func (a *fakeAgent) handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle(agentv1connect.NewProcessServiceHandler(a))
	mux.Handle(agentv1connect.NewNotebookServiceHandler(a.notebooks))
	mux.Handle(agentv1connect.NewForwardServiceHandler(a.notebooks))
	mux.Handle(agentv1connect.NewFileServiceHandler(a.notebooks))
	return mux
}

func (n *fakeNotebooks) now() *timestamppb.Timestamp {
	return timestamppb.New(time.Now().Add(time.Duration(n.ahead.Load())))
}

// write puts events into the journal and gives the cursor of the last.
func (n *fakeNotebooks) write(events ...*carrelv1.NotebookEvent) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, event := range events {
		event.Cursor = "j1." + strconv.Itoa(n.first+len(n.journal))
		event.Time = n.now()
		n.journal = append(n.journal, event)
	}
	close(n.changed)
	n.changed = make(chan struct{})
	return "j1." + strconv.Itoa(n.first+len(n.journal)-1)
}

// say writes stream outputs.
func (n *fakeNotebooks) say(texts ...string) string {
	var events []*carrelv1.NotebookEvent
	for _, text := range texts {
		events = append(events, outputEvent(text))
	}
	return n.write(events...)
}

func outputEvent(text string) *carrelv1.NotebookEvent {
	output, err := structpb.NewStruct(map[string]any{"output_type": "stream", "name": "stdout", "text": text})
	if err != nil {
		panic(err)
	}
	return &carrelv1.NotebookEvent{Path: "a.ipynb", Execution: "e1", Event: &carrelv1.NotebookEvent_Output{Output: output}}
}

// forget drops what is before a cursor.
func (n *fakeNotebooks) forget(before int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.journal = n.journal[before-n.first:]
	n.first = before
}

func (n *fakeNotebooks) WatchNotebooks(ctx context.Context, req *connect.Request[carrelv1.WatchNotebooksRequest], out *connect.ServerStream[carrelv1.NotebookEvent]) error {
	n.watches.Add(1)
	n.mu.Lock()
	next := n.first + len(n.journal)
	n.mu.Unlock()
	if after := req.Msg.GetAfter(); after == "0" {
		next = 0
	} else if after != "" {
		at, err := strconv.Atoi(strings.TrimPrefix(after, "j1."))
		if err != nil {
			return connect.NewError(connect.CodeInvalidArgument, err)
		}
		next = at + 1
	}
	send := func(event *carrelv1.NotebookEvent) error {
		err := out.Send(event)
		n.sent.Add(int64(proto.Size(event)))
		return err
	}
	live := false
	for {
		n.mu.Lock()
		var events []*carrelv1.NotebookEvent
		if next < n.first {
			if next > 0 {
				events = append(events, &carrelv1.NotebookEvent{Cursor: "j1." + strconv.Itoa(n.first-1), Event: &carrelv1.NotebookEvent_Gap{Gap: true}})
			}
			next = n.first
		}
		if at := next - n.first; at < len(n.journal) {
			events = append(events, n.journal[at])
			next++
		}
		changed := n.changed
		n.mu.Unlock()
		for _, event := range events {
			if err := send(event); err != nil {
				return err
			}
		}
		if len(events) > 0 {
			continue
		}
		if !live {
			live = true
			if err := send(&carrelv1.NotebookEvent{Event: &carrelv1.NotebookEvent_Live{Live: true}}); err != nil {
				return err
			}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (n *fakeNotebooks) Execute(ctx context.Context, req *connect.Request[carrelv1.ExecuteRequest]) (*connect.Response[carrelv1.ExecuteResponse], error) {
	n.mu.Lock()
	n.executed[req.Msg.GetRequestId()]++
	n.requests = append(n.requests, proto.CloneOf(req.Msg))
	n.users = append(n.users, req.Header().Get("Carrel-User"))
	n.mu.Unlock()
	if req.Msg.GetWait() == nil {
		return connect.NewResponse(&carrelv1.ExecuteResponse{Executions: []*carrelv1.Execution{{Id: "e1", Code: req.Msg.GetCode(), State: carrelv1.ExecutionState_EXECUTION_STATE_QUEUED}}}), nil
	}
	select {
	case answer := <-n.finish:
		return connect.NewResponse(answer), nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (n *fakeNotebooks) executions() (ids, calls int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.executed), len(n.requests)
}

func (n *fakeNotebooks) GetStatus(context.Context, *connect.Request[carrelv1.GetStatusRequest]) (*connect.Response[carrelv1.NotebookStatus], error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return connect.NewResponse(&carrelv1.NotebookStatus{Cursor: fmt.Sprint("j1.", n.first+len(n.journal)-1), Kernels: []*carrelv1.Kernel{{Id: "k1", State: carrelv1.KernelState_KERNEL_STATE_IDLE}}}), nil
}

func (n *fakeNotebooks) GetNotebook(_ context.Context, req *connect.Request[carrelv1.GetNotebookRequest]) (*connect.Response[carrelv1.Notebook], error) {
	switch path := req.Msg.GetPath(); path {
	case "large.ipynb":
		content, err := structpb.NewStruct(map[string]any{"data": strings.Repeat("x", 30<<20)})
		if err != nil {
			return nil, err
		}
		return connect.NewResponse(&carrelv1.Notebook{Path: path, Content: content}), nil
	case "bomb.ipynb":
		values := make([]*structpb.Value, 1<<20+1)
		for i := range values {
			values[i] = structpb.NewNullValue()
		}
		content := &structpb.Struct{Fields: map[string]*structpb.Value{"cells": structpb.NewListValue(&structpb.ListValue{Values: values})}}
		return connect.NewResponse(&carrelv1.Notebook{Path: path, Content: content}), nil
	}
	return nil, connect.NewError(connect.CodeNotFound, carrel.NotFound("notebook", req.Msg.GetPath()))
}

func (n *fakeNotebooks) EditNotebook(context.Context, *connect.Request[carrelv1.EditNotebookRequest]) (*connect.Response[carrelv1.EditNotebookResponse], error) {
	return connect.NewResponse(&carrelv1.EditNotebookResponse{Revision: 7}), nil
}

func (n *fakeNotebooks) GetUsage(context.Context, *connect.Request[carrelv1.GetUsageRequest]) (*connect.Response[carrelv1.BoxUsage], error) {
	return connect.NewResponse(&carrelv1.BoxUsage{Time: n.now(), MemoryBytes: 42}), nil
}

func (n *fakeNotebooks) listen(ports ...uint32) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.ports = ports
}

func (n *fakeNotebooks) ListListeners(context.Context, *connect.Request[agentv1.ListListenersRequest]) (*connect.Response[agentv1.ListListenersResponse], error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	list := &agentv1.ListListenersResponse{}
	for _, port := range n.ports {
		list.Listeners = append(list.Listeners, &agentv1.Listener{Port: port, Process: "python3"})
	}
	return connect.NewResponse(list), nil
}

// Watch tells of one file, and then of nothing.
func (n *fakeNotebooks) Watch(ctx context.Context, req *connect.Request[carrelv1.WatchFilesRequest], out *connect.ServerStream[carrelv1.FileEvent]) error {
	n.mu.Lock()
	n.files++
	n.mu.Unlock()
	for _, event := range []*carrelv1.FileEvent{{Kind: "ready"}, {Kind: "created", Path: req.Msg.GetPath() + "/x"}} {
		if err := out.Send(event); err != nil {
			return err
		}
	}
	<-ctx.Done()
	return ctx.Err()
}
