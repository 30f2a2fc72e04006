package agent

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"
	"strings"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"

	agentv1 "carrel.dev/carrel/api/carrel/agent/v1"
	"carrel.dev/carrel/api/carrel/agent/v1/agentv1connect"
	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/lazyflush"
)

const (
	maxMessage = 2 << 20 // of a request, in bytes: the largest input and arguments fit
	maxLease   = 10 * time.Minute
	maxGrace   = 10 * time.Minute
	// startWait is how long the news that a command was started waits for its output or end. Few commands take longer to
	// say something, and while one starts everything else that happens in a sandbox makes it slower: measured on two
	// busy cores, by a quarter.
	startWait = 20 * time.Millisecond
)

// newServer makes a server for HTTP/2 without TLS. Windows are wide, for bulk input over a path with some delay.
func newServer(handler http.Handler, log *slog.Logger) *http.Server {
	server := &http.Server{
		Handler: handler, ReadHeaderTimeout: 10 * time.Second, MaxHeaderBytes: 64 << 10,
		Protocols: new(http.Protocols),
		ErrorLog:  slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams: 256, MaxReadFrameSize: 256 << 10,
			MaxReceiveBufferPerConnection: 16 << 20, MaxReceiveBufferPerStream: 4 << 20,
			SendPingTimeout: time.Minute, PingTimeout: 30 * time.Second,
		},
	}
	server.Protocols.SetUnencryptedHTTP2(true)
	return server
}

// handlers gives what serves each target that speaks HTTP.
func (a *Agent) handlers() map[targetKind]http.Handler {
	options := connect.WithHandlerOptions(
		connect.WithReadMaxBytes(maxMessage),
		// Compression costs the box more than it saves on the way.
		connect.WithCompression("gzip", nil, nil),
		connect.WithRecover(func(_ context.Context, spec connect.Spec, _ http.Header, reason any) error {
			a.log.Error("a call panicked", "procedure", spec.Procedure, "reason", fmt.Sprint(reason), "stack", string(debug.Stack()))
			return carrel.Errorf(carrel.CodeInternal, "internal", "internal error of the box's agent; its log says more")
		}),
		connect.WithInterceptors(wireErrors{log: func(_ context.Context, procedure string, err error) {
			a.log.Error("a call failed", "procedure", procedure, "error", err)
		}}),
	)
	processes, control := http.NewServeMux(), http.NewServeMux()
	path, service := agentv1connect.NewProcessServiceHandler(processService{a}, options)
	processes.Handle(path, lazyflush.Handler(service))
	processes.Handle(agentv1connect.NewForwardServiceHandler(forwardService{a}, options))
	processes.Handle(agentv1connect.NewFileServiceHandler(newFileService(a), options))
	processes.Handle(agentv1connect.NewNotebookServiceHandler(notebookService{notebooks: a.notebooks}, options, connect.WithReadMaxBytes(maxNotebookMessage)))
	control.Handle(agentv1connect.NewControlServiceHandler(controlService{a: a}, options))
	return map[targetKind]http.Handler{targetAgent: processes, targetControl: control, targetJupyter: a.jupyter}
}

type processService struct{ a *Agent }

// HeaderUser is the header of a request by which a gateway says which user of the platform asks.
const HeaderUser = "Carrel-User"

func userOf[T any](request *connect.Request[T]) string {
	return printable(request.Header().Get(HeaderUser))
}

func (s processService) Start(ctx context.Context, request *connect.Request[carrelv1.StartProcessRequest]) (*connect.Response[carrelv1.Process], error) {
	p, _, err := s.a.startProcess(ctx, request.Msg, userOf(request), false)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(p.describe(&glance{})), nil
}

func (s processService) Run(ctx context.Context, request *connect.Request[carrelv1.StartProcessRequest], stream *connect.ServerStream[carrelv1.ProcessEvent]) error {
	p, v, err := s.a.startProcess(ctx, request.Msg, userOf(request), true)
	if err != nil {
		return err
	}
	defer v.leave()
	if p.input == nil { // who gives input waits for this
		p.settle(startWait)
	}
	return s.follow(ctx, p, v, stream)
}

func (s processService) Attach(ctx context.Context, request *connect.Request[carrelv1.AttachProcessRequest], stream *connect.ServerStream[carrelv1.ProcessEvent]) error {
	p, err := s.a.processes.get(request.Msg.GetProcess())
	if err != nil {
		return err
	}
	v, err := p.viewAs(userOf(request), [streams]int64{request.Msg.GetStdoutOffset(), request.Msg.GetStderrOffset()})
	if err != nil {
		return err
	}
	defer v.leave()
	return s.follow(ctx, p, v, stream)
}

// follow sends a process's events until its end or the viewer's.
func (s processService) follow(ctx context.Context, p *process, v *viewer, stream *connect.ServerStream[carrelv1.ProcessEvent]) error {
	if err := stream.Send(&carrelv1.ProcessEvent{Event: &carrelv1.ProcessEvent_Started{Started: p.describe(&glance{})}}); err != nil {
		return err
	}
	idle := time.NewTimer(s.a.config.KeepAlive)
	defer idle.Stop()
	for {
		event, done, err := v.event(ctx, idle.C)
		if err != nil {
			return err
		}
		if event == nil {
			event = &carrelv1.ProcessEvent{Event: &carrelv1.ProcessEvent_KeepAlive{KeepAlive: &carrelv1.KeepAlive{}}}
		}
		if err := stream.Send(event); err != nil {
			return err
		}
		if done {
			return nil
		}
		idle.Reset(s.a.config.KeepAlive)
	}
}

func (s processService) List(context.Context, *connect.Request[carrelv1.ListProcessesRequest]) (*connect.Response[carrelv1.ListProcessesResponse], error) {
	response := &carrelv1.ListProcessesResponse{}
	now := &glance{}
	for _, p := range s.a.processes.list() {
		response.Processes = append(response.Processes, p.describe(now))
	}
	return connect.NewResponse(response), nil
}

func (s processService) Get(_ context.Context, request *connect.Request[carrelv1.GetProcessRequest]) (*connect.Response[carrelv1.Process], error) {
	p, err := s.a.processes.get(request.Msg.GetProcess())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(p.describe(&glance{})), nil
}

func (s processService) WriteInput(ctx context.Context, request *connect.Request[carrelv1.WriteInputRequest]) (*connect.Response[carrelv1.WriteInputResponse], error) {
	p, err := s.a.processes.get(request.Msg.GetProcess())
	if err != nil {
		return nil, err
	}
	if p.input == nil {
		return nil, carrel.Errorf(carrel.CodePrecondition, "no_input", "the process was started without standard input")
	}
	next, err := p.write(ctx, request.Msg.GetWriter(), request.Msg.GetOffset(), request.Msg.GetData(), request.Msg.GetEof())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&carrelv1.WriteInputResponse{NextOffset: next}), nil
}

func (s processService) Signal(_ context.Context, request *connect.Request[carrelv1.SignalProcessRequest]) (*connect.Response[carrelv1.SignalProcessResponse], error) {
	p, err := s.a.processes.get(request.Msg.GetProcess())
	if err != nil {
		return nil, err
	}
	name := request.Msg.GetSignal()
	number := unix.SignalNum("SIG" + strings.TrimPrefix(strings.ToUpper(name), "SIG"))
	if number == 0 {
		return nil, carrel.Errorf(carrel.CodeInvalid, "bad_signal", "%q is no signal; use a name such as TERM, INT or KILL", name)
	}
	if number == unix.SIGHUP && p.command.pty != nil {
		err = s.a.hangUp(p) // what is said to a terminal is said to everything on it
	} else {
		err = s.a.reaper.signal(p.pid, number)
	}
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&carrelv1.SignalProcessResponse{}), nil
}

func (s processService) Resize(_ context.Context, request *connect.Request[carrelv1.ResizeProcessRequest]) (*connect.Response[carrelv1.ResizeProcessResponse], error) {
	p, err := s.a.processes.get(request.Msg.GetProcess())
	if err != nil {
		return nil, err
	}
	if p.command.pty == nil {
		return nil, carrel.Errorf(carrel.CodePrecondition, "no_terminal", "the process was started without a terminal")
	}
	size, err := winsize(request.Msg.GetSize())
	if err != nil {
		return nil, err
	}
	if err := resize(p.input.file, size); err != nil {
		return nil, carrel.Errorf(carrel.CodePrecondition, "process_ended", "the process has ended")
	}
	return connect.NewResponse(&carrelv1.ResizeProcessResponse{}), nil
}

type controlService struct {
	agentv1connect.UnimplementedControlServiceHandler
	a *Agent
}

func (s controlService) Ready(ctx context.Context, _ *connect.Request[agentv1.ReadyRequest]) (*connect.Response[agentv1.ReadyResponse], error) {
	if err := s.a.refresh(); err != nil {
		return nil, noIdentity(err)
	}
	if err := s.a.awaitPrepared(ctx); err != nil {
		return nil, err
	}
	s.a.mu.Lock()
	defer s.a.mu.Unlock()
	return connect.NewResponse(&agentv1.ReadyResponse{Version: s.a.config.Version, RunId: s.a.identity.RunID, Restores: s.a.restores}), nil
}

func noIdentity(err error) error {
	return &carrel.Error{Code: carrel.CodeUnavailable, Reason: "no_identity", Message: "the agent could not take its identity", Cause: err}
}

func (s controlService) Identify(context.Context, *connect.Request[agentv1.IdentifyRequest]) (*connect.Response[agentv1.IdentifyResponse], error) {
	if err := s.a.refresh(); err != nil {
		return nil, noIdentity(err)
	}
	id, _ := s.a.current()
	return connect.NewResponse(&agentv1.IdentifyResponse{BoxName: id.BoxName}), nil
}

func (s controlService) Quiesce(ctx context.Context, request *connect.Request[agentv1.QuiesceRequest]) (*connect.Response[agentv1.QuiesceResponse], error) {
	lease := time.Duration(request.Msg.GetLeaseMillis()) * time.Millisecond
	if lease <= 0 || lease > maxLease {
		return nil, carrel.Errorf(carrel.CodeInvalid, "bad_lease", "the lease is %d ms; it must be from 1 to %d", request.Msg.GetLeaseMillis(), maxLease.Milliseconds())
	}
	if err := s.a.quiesce(ctx, lease); err != nil {
		return nil, err
	}
	return connect.NewResponse(&agentv1.QuiesceResponse{}), nil
}

func (s controlService) Unquiesce(context.Context, *connect.Request[agentv1.UnquiesceRequest]) (*connect.Response[agentv1.UnquiesceResponse], error) {
	s.a.gate.open()
	return connect.NewResponse(&agentv1.UnquiesceResponse{}), nil
}

func (s controlService) Shutdown(ctx context.Context, request *connect.Request[agentv1.ShutdownRequest]) (*connect.Response[agentv1.ShutdownResponse], error) {
	grace := time.Duration(request.Msg.GetGraceMillis()) * time.Millisecond
	if grace < 0 || grace > maxGrace {
		return nil, carrel.Errorf(carrel.CodeInvalid, "bad_grace", "the grace time is %d ms; it must be from 0 to %d", request.Msg.GetGraceMillis(), maxGrace.Milliseconds())
	}
	limited, cancel := context.WithTimeout(ctx, grace)
	defer cancel()
	s.a.shutDown(limited)
	if err := s.a.notebooks.service.Flush(ctx); err != nil {
		s.a.log.Warn("not everything of notebooks is on the disk before the box stops", "error", err)
	}
	if err := s.a.sync(ctx); err != nil {
		return nil, err
	}
	return connect.NewResponse(&agentv1.ShutdownResponse{}), nil
}
