package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/structpb"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/api/carrel/v1/carrelv1connect"
	"carrel.dev/carrel/internal/carrel"
)

// notebookServer has kernels of a small language, a word and its argument on a line:
//
//	say X      X on standard output
//	warn X     X on standard error
//	show X     X is a result
//	picture N  a picture of N bytes
//	ask X      asks X and says the answer; secret X the same for a password
//	fail X     fails
//	hang       until it is interrupted
type notebookServer struct {
	carrelv1connect.UnimplementedNotebookServiceHandler

	mu         sync.Mutex
	kernels    []*carrelv1.Kernel
	started    int
	executions map[string]*carrelv1.Execution
	answers    map[string]chan string
	events     []*carrelv1.NotebookEvent
	changed    chan struct{}
	broken     bool // the connection broke once already
}

func newNotebookServer() *notebookServer {
	return &notebookServer{
		kernels:    []*carrelv1.Kernel{{Id: "k1", Spec: "python3", DisplayName: "Python 3", State: carrelv1.KernelState_KERNEL_STATE_IDLE, Path: "/home/carrel/plot.ipynb", StartTime: serverTime}},
		executions: map[string]*carrelv1.Execution{}, answers: map[string]chan string{}, changed: make(chan struct{}),
	}
}

// emit tells those who watch; the caller holds mu.
func (s *notebookServer) emit(event *carrelv1.NotebookEvent) {
	event.Cursor = "j1." + strconv.Itoa(len(s.events)+1)
	s.events = append(s.events, event)
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *notebookServer) GetStatus(context.Context, *connect.Request[carrelv1.GetStatusRequest]) (*connect.Response[carrelv1.NotebookStatus], error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return connect.NewResponse(&carrelv1.NotebookStatus{Kernels: s.kernels, Cursor: "j1." + strconv.Itoa(len(s.events))}), nil
}

func (s *notebookServer) ListKernelSpecs(context.Context, *connect.Request[carrelv1.ListKernelSpecsRequest]) (*connect.Response[carrelv1.ListKernelSpecsResponse], error) {
	return connect.NewResponse(&carrelv1.ListKernelSpecsResponse{Specs: []*carrelv1.KernelSpec{{Name: "python3", Language: "python"}}, DefaultSpec: "python3"}), nil
}

func (s *notebookServer) StartKernel(_ context.Context, req *connect.Request[carrelv1.StartKernelRequest]) (*connect.Response[carrelv1.Kernel], error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.started++
	k := &carrelv1.Kernel{Id: fmt.Sprint("own", s.started), Spec: req.Msg.GetSpec(), DisplayName: "Python 3", State: carrelv1.KernelState_KERNEL_STATE_IDLE, StartTime: serverTime}
	s.kernels = append(s.kernels, k)
	return connect.NewResponse(k), nil
}

func (s *notebookServer) RestartKernel(_ context.Context, req *connect.Request[carrelv1.RestartKernelRequest]) (*connect.Response[carrelv1.Kernel], error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, k := range s.kernels {
		if k.GetId() == req.Msg.GetKernel() {
			k.Restarts++
			return connect.NewResponse(k), nil
		}
	}
	return nil, wire(carrel.NotFound("kernel", req.Msg.GetKernel()))
}

func (s *notebookServer) ShutdownKernel(_ context.Context, req *connect.Request[carrelv1.ShutdownKernelRequest]) (*connect.Response[carrelv1.ShutdownKernelResponse], error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, k := range s.kernels {
		if k.GetId() == req.Msg.GetKernel() {
			s.kernels = append(s.kernels[:i], s.kernels[i+1:]...)
			return connect.NewResponse(&carrelv1.ShutdownKernelResponse{}), nil
		}
	}
	return nil, wire(carrel.NotFound("kernel", req.Msg.GetKernel()))
}

func (s *notebookServer) Interrupt(_ context.Context, req *connect.Request[carrelv1.InterruptRequest]) (*connect.Response[carrelv1.InterruptResponse], error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := int32(0)
	for id, e := range s.executions {
		if e.GetState() == carrelv1.ExecutionState_EXECUTION_STATE_RUNNING && (req.Msg.GetKernel() == "" || req.Msg.GetKernel() == e.GetKernel()) {
			n++
			close(s.answers[id])
		}
	}
	return connect.NewResponse(&carrelv1.InterruptResponse{Executions: n}), nil
}

func (s *notebookServer) AnswerInput(_ context.Context, req *connect.Request[carrelv1.AnswerInputRequest]) (*connect.Response[carrelv1.AnswerInputResponse], error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answers[req.Msg.GetExecution()] <- req.Msg.GetValue()
	return connect.NewResponse(&carrelv1.AnswerInputResponse{}), nil
}

func (s *notebookServer) GetExecution(_ context.Context, req *connect.Request[carrelv1.GetExecutionRequest]) (*connect.Response[carrelv1.Execution], error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.executions[req.Msg.GetExecution()]; e != nil {
		return connect.NewResponse(e), nil
	}
	return nil, wire(carrel.NotFound("execution", req.Msg.GetExecution()))
}

func (s *notebookServer) Execute(_ context.Context, req *connect.Request[carrelv1.ExecuteRequest]) (*connect.Response[carrelv1.ExecuteResponse], error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := &carrelv1.Execution{Id: fmt.Sprint("e", len(s.executions)+1), Kernel: req.Msg.GetKernel(), Code: req.Msg.GetCode(), State: carrelv1.ExecutionState_EXECUTION_STATE_RUNNING}
	s.executions[e.GetId()], s.answers[e.GetId()] = e, make(chan string, 1)
	answers := s.answers[e.GetId()]
	s.emit(&carrelv1.NotebookEvent{Execution: e.GetId(), Event: &carrelv1.NotebookEvent_Started{Started: &carrelv1.ExecutionStarted{ExecutionCount: 1}}})
	go s.interpret(e.GetId(), req.Msg.GetCode(), req.Msg.GetAllowInput(), answers)
	return connect.NewResponse(&carrelv1.ExecuteResponse{Executions: []*carrelv1.Execution{{Id: e.GetId(), Kernel: e.GetKernel(), State: carrelv1.ExecutionState_EXECUTION_STATE_QUEUED}}}), nil
}

func (s *notebookServer) interpret(id, code string, input bool, answers chan string) {
	state := carrelv1.ExecutionState_EXECUTION_STATE_OK
	for line := range strings.Lines(code) {
		word, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch word {
		case "say", "warn":
			s.put(id, map[string]any{"output_type": "stream", "name": map[string]string{"say": "stdout", "warn": "stderr"}[word], "text": rest + "\n"})
		case "show":
			s.put(id, map[string]any{"output_type": "execute_result", "data": map[string]any{"text/plain": rest, "text/html": "<b>" + rest + "</b>"}})
		case "picture":
			n, _ := strconv.Atoi(rest)
			s.put(id, map[string]any{"output_type": "display_data", "data": map[string]any{"text/plain": "<Figure>", "image/png": strings.Repeat("AAAA", n/3)}})
		case "ask", "secret":
			if !input {
				s.put(id, map[string]any{"output_type": "stream", "name": "stderr", "text": "nobody can be asked\n"})
				state = carrelv1.ExecutionState_EXECUTION_STATE_ERROR
				break
			}
			s.event(id, &carrelv1.NotebookEvent{Event: &carrelv1.NotebookEvent_Question{Question: &carrelv1.InputQuestion{Prompt: rest + " ", Password: word == "secret"}}})
			answer, ok := <-answers
			if !ok {
				state = carrelv1.ExecutionState_EXECUTION_STATE_ERROR
				break
			}
			s.put(id, map[string]any{"output_type": "stream", "name": "stdout", "text": "the answer is " + answer + "\n"})
		case "fail":
			s.put(id, map[string]any{"output_type": "error", "ename": "Error", "evalue": rest, "traceback": []any{"\x1b[31mTraceback\x1b[0m", "Error: " + rest}})
			state = carrelv1.ExecutionState_EXECUTION_STATE_ERROR
		case "hang":
			<-answers
			s.put(id, map[string]any{"output_type": "error", "ename": "KeyboardInterrupt", "evalue": "", "traceback": []any{"KeyboardInterrupt"}})
			state = carrelv1.ExecutionState_EXECUTION_STATE_ERROR
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.executions[id].State = state
	s.emit(&carrelv1.NotebookEvent{Execution: id, Event: &carrelv1.NotebookEvent_Ended{Ended: &carrelv1.Execution{Id: id, State: state}}})
}

func (s *notebookServer) event(id string, event *carrelv1.NotebookEvent) {
	s.mu.Lock()
	defer s.mu.Unlock()
	event.Execution = id
	s.emit(event)
}

func (s *notebookServer) put(id string, output map[string]any) {
	value, err := structpb.NewStruct(output)
	if err != nil {
		panic(err)
	}
	s.mu.Lock()
	s.executions[id].Outputs = append(s.executions[id].Outputs, value)
	s.mu.Unlock()
	s.event(id, &carrelv1.NotebookEvent{Event: &carrelv1.NotebookEvent_Output{Output: value}})
}

// WatchNotebooks breaks off once after its second event, to be asked again.
func (s *notebookServer) WatchNotebooks(ctx context.Context, req *connect.Request[carrelv1.WatchNotebooksRequest], out *connect.ServerStream[carrelv1.NotebookEvent]) error {
	next, _ := strconv.Atoi(strings.TrimPrefix(req.Msg.GetAfter(), "j1."))
	for sent := 0; ; {
		s.mu.Lock()
		events, changed := s.events[next:], s.changed
		breaks := sent == 2 && !s.broken
		s.broken = s.broken || breaks
		s.mu.Unlock()
		if breaks {
			return wire(carrel.Errorf(carrel.CodeUnavailable, "box_connection_lost", "the connection was lost"))
		}
		if len(events) == 0 {
			select {
			case <-changed:
			case <-ctx.Done():
				return ctx.Err()
			}
			continue
		}
		next++
		if events[0].GetExecution() != req.Msg.GetExecution() && req.Msg.GetExecution() != "" {
			continue
		}
		if err := out.Send(events[0]); err != nil {
			return err
		}
		sent++
	}
}
