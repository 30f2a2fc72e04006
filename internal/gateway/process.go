package gateway

import (
	"context"
	"errors"

	"connectrpc.com/connect"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/api/carrel/v1/carrelv1connect"
	"carrel.dev/carrel/internal/auth"
	"carrel.dev/carrel/internal/carrel"
)

// processes is the public ProcessService: every call goes on to the box's agent.
type processes struct{ gateway *Gateway }

var _ carrelv1connect.ProcessServiceHandler = (*processes)(nil)

const maxInputBytes = 1 << 20

// boxRequest is what every request of the service has.
type boxRequest interface {
	GetBox() string
	GetOrg() string
}

// agent finds the agent of the box that a request names, if its bearer gives scope.
func (p *processes) agent(ctx context.Context, req connect.AnyRequest, scope string) (*agentConn, pass, func(), error) {
	message, _ := req.Any().(boxRequest)
	kind := activityOf(message)
	allowed, err := p.gateway.arrive(ctx, req.Header(), message.GetBox(), message.GetOrg(), scope, kind == activityExec)
	if err != nil {
		return nil, pass{}, nil, err
	}
	if kind != "" {
		p.gateway.touch(allowed, kind)
	}
	p.gateway.log.DebugContext(ctx, "call to box", "method", req.Spec().Procedure, "box", allowed.Box, "user", allowed.User, "request", req.Header().Get(headerRequestID))
	conn, done := p.gateway.agents.get(allowed)
	return conn, allowed, done, nil
}

// activityOf is what a request tells of its user's presence; empty: nothing, it only looks.
func activityOf(request boxRequest) string {
	switch request.(type) {
	case *carrelv1.StartProcessRequest, *carrelv1.SignalProcessRequest:
		return activityExec
	case *carrelv1.WriteInputRequest:
		return activityInput
	}
	return ""
}

// unary passes one call on.
func unary[Q, R any](ctx context.Context, p *processes, req *connect.Request[Q], scope string,
	method func(*agentConn, context.Context, *connect.Request[Q]) (*connect.Response[R], error),
) (*connect.Response[R], error) {
	conn, allowed, done, err := p.agent(ctx, req, scope)
	if err != nil {
		return nil, err
	}
	defer done()
	resp, err := method(conn, ctx, connect.NewRequest(req.Msg))
	if err != nil {
		return nil, fromAgent(ctx, allowed.Box, err)
	}
	return connect.NewResponse(resp.Msg), nil
}

// follow passes a stream on, message by message, until its end or that of the user's right. A client that does not read holds up this stream alone:
// at most agentWindow of it waits here.
func follow[Q any](ctx context.Context, p *processes, req *connect.Request[Q], scope string, out *connect.ServerStream[carrelv1.ProcessEvent],
	method func(*agentConn, context.Context, *connect.Request[Q]) (*connect.ServerStreamForClient[carrelv1.ProcessEvent], error),
) error {
	conn, allowed, done, err := p.agent(ctx, req, scope)
	if err != nil {
		return err
	}
	defer done()
	ctx, cancel := context.WithCancelCause(ctx)
	defer p.gateway.guard(allowed, cancel)()
	in, err := method(conn, ctx, connect.NewRequest(req.Msg))
	if err != nil {
		cancel(nil)
		return fromAgent(ctx, allowed.Box, err)
	}
	defer func() {
		cancel(nil) // first: Close would else read what is still to come
		_ = in.Close()
	}()
	p.gateway.metrics.streams.Inc()
	defer p.gateway.metrics.streams.Dec()
	for in.Receive() {
		if err := out.Send(in.Msg()); err != nil {
			return err
		}
	}
	var cut *carrel.Error
	if errors.As(context.Cause(ctx), &cut) {
		return cut
	}
	return fromAgent(ctx, allowed.Box, in.Err())
}

func (p *processes) StartProcess(ctx context.Context, req *connect.Request[carrelv1.StartProcessRequest]) (*connect.Response[carrelv1.Process], error) {
	return unary(ctx, p, req, auth.ScopeExec, (*agentConn).Start)
}

func (p *processes) RunProcess(ctx context.Context, req *connect.Request[carrelv1.StartProcessRequest], out *connect.ServerStream[carrelv1.ProcessEvent]) error {
	return follow(ctx, p, req, auth.ScopeExec, out, (*agentConn).Run)
}

func (p *processes) AttachProcess(ctx context.Context, req *connect.Request[carrelv1.AttachProcessRequest], out *connect.ServerStream[carrelv1.ProcessEvent]) error {
	return follow(ctx, p, req, auth.ScopeView, out, (*agentConn).Attach)
}

func (p *processes) ListProcesses(ctx context.Context, req *connect.Request[carrelv1.ListProcessesRequest]) (*connect.Response[carrelv1.ListProcessesResponse], error) {
	return unary(ctx, p, req, auth.ScopeView, (*agentConn).List)
}

func (p *processes) GetProcess(ctx context.Context, req *connect.Request[carrelv1.GetProcessRequest]) (*connect.Response[carrelv1.Process], error) {
	return unary(ctx, p, req, auth.ScopeView, (*agentConn).Get)
}

func (p *processes) WriteInput(ctx context.Context, req *connect.Request[carrelv1.WriteInputRequest]) (*connect.Response[carrelv1.WriteInputResponse], error) {
	if len(req.Msg.GetData()) > maxInputBytes {
		return nil, carrel.Errorf(carrel.CodeInvalid, "input_too_large", "%d bytes of input in one write; at most %d are taken", len(req.Msg.GetData()), maxInputBytes)
	}
	return unary(ctx, p, req, auth.ScopeExec, (*agentConn).WriteInput)
}

func (p *processes) SignalProcess(ctx context.Context, req *connect.Request[carrelv1.SignalProcessRequest]) (*connect.Response[carrelv1.SignalProcessResponse], error) {
	return unary(ctx, p, req, auth.ScopeExec, (*agentConn).Signal)
}

func (p *processes) ResizeProcess(ctx context.Context, req *connect.Request[carrelv1.ResizeProcessRequest]) (*connect.Response[carrelv1.ResizeProcessResponse], error) {
	return unary(ctx, p, req, auth.ScopeExec, (*agentConn).Resize)
}
