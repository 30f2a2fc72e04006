package gateway

import (
	"context"
	"crypto/rand"
	"net/http"
	"regexp"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"

	"carrel.dev/carrel/api/carrel/agent/v1/agentv1connect"
	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/api/carrel/v1/carrelv1connect"
	"carrel.dev/carrel/internal/auth"
	"carrel.dev/carrel/internal/carrel"
)

const (
	// maxNotebookMessage bounds what an agent answers of notebooks, and one event, in bytes: a notebook of 32 MiB and what stands around it.
	maxNotebookMessage = 36 << 20
	// maxNotebookRequest bounds a request, in bytes: code, edits, and cells that are pasted with their pictures.
	maxNotebookRequest = 16 << 20
	// maxExecuteWait is how long Execute may wait.
	maxExecuteWait = 10 * time.Minute
)

// notebookPath is every REST path of NotebookService.
var notebookPath = regexp.MustCompile(`^/v1/(boxes/[^/]+/(execute|executions/[^/]+|interrupt|status|kernelspecs|kernels(/[^/]+)?|notebooks(:edit)?|complete|inspect|usage)|sessions/[^/]+/(execute|interrupt|status|complete|inspect))$`)

// notebooks is the public NotebookService: every call goes on to the box's agent.
type notebooks struct{ gateway *Gateway }

var _ carrelv1connect.NotebookServiceHandler = (*notebooks)(nil)

// notebookCall is a call to the agent of one box. Revocation ends its context with the reason.
type notebookCall struct {
	ctx   context.Context
	pass  pass
	agent agentv1connect.NotebookServiceClient
	conn  *agentConn
	end   func()
}

// call finds the agent of the box that a request names, or of the box of the run that it names, if the bearer gives scope.
func (n *notebooks) call(ctx context.Context, header http.Header, message boxRequest, scope, used string) (*notebookCall, error) {
	g := n.gateway
	box, err := g.boxOfRequest(ctx, header, message)
	if err != nil {
		return nil, err
	}
	// A page sends what was typed again and again until it is taken; it does not wake the box by that.
	uses := used == activityExec || used == activityInput && header.Get(headerUI) == ""
	allowed, err := g.arrive(ctx, header, box, message.GetOrg(), scope, uses)
	if err != nil {
		return nil, err
	}
	g.log.DebugContext(ctx, "notebooks of box", "box", allowed.Box, "user", allowed.User, "scope", scope, "request", header.Get(headerRequestID))
	if used != "" {
		g.touch(allowed, used)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	release := g.guard(allowed, cancel)
	conn, done := g.agents.get(allowed)
	return &notebookCall{ctx: ctx, pass: allowed, agent: conn.notebooks, conn: conn, end: func() {
		release()
		done()
		cancel(nil)
	}}, nil
}

// sessionRequest is a request that may name a run in place of a box.
type sessionRequest interface{ GetSession() string }

// boxOfRequest is the box that a request is about.
func (g *Gateway) boxOfRequest(ctx context.Context, header http.Header, message boxRequest) (string, error) {
	named, ok := message.(sessionRequest)
	if !ok || named.GetSession() == "" {
		return message.GetBox(), nil
	}
	if message.GetBox() != "" {
		return "", carrel.Errorf(carrel.CodeInvalid, "box_and_session", "the request names a box and a session; one of them is enough")
	}
	return g.boxOfSession(ctx, header, named.GetSession(), message.GetOrg())
}

// boxOfSession is the box whose newest run has an id. Who shows nothing that lets them in anywhere does not learn whether there is such a run.
func (g *Gateway) boxOfSession(ctx context.Context, header http.Header, session, org string) (string, error) {
	unknown := carrel.NotFound("session", clip(session))
	r, live, known := g.routes.ofRun(carrel.RunID(session))
	if !known {
		if _, err := g.allow(ctx, header, session, org, auth.ScopeView); carrel.CodeOf(err) == carrel.CodeUnauthorized {
			return "", err
		}
		return "", unknown
	}
	if _, err := g.allow(ctx, header, string(r.Box), org, auth.ScopeView); err != nil {
		switch carrel.CodeOf(err) {
		case carrel.CodeNotFound, carrel.CodeDenied:
			return "", unknown
		}
		return "", err
	}
	if !live {
		return "", errNotRunning(r.Box, "")
	}
	return string(r.Box), nil
}

// failed makes an error of the call fit to be shown.
func (c *notebookCall) failed(err error) error {
	if cause := context.Cause(c.ctx); cause != nil {
		return cause
	}
	return fromAgent(c.ctx, c.pass.Box, err)
}

// bare is a request as the agent takes it, which knows of no box.
func bare[Q proto.Message](message Q) Q {
	message = proto.CloneOf(message)
	m := message.ProtoReflect()
	for _, name := range []string{"box", "org", "session"} {
		if field := m.Descriptor().Fields().ByName(protoreflect.Name(name)); field != nil {
			m.Clear(field)
		}
	}
	return message
}

// notebookUnary passes one call on.
func notebookUnary[Q, R any](ctx context.Context, n *notebooks, req *connect.Request[Q], scope, used string,
	method func(agentv1connect.NotebookServiceClient, context.Context, *connect.Request[Q]) (*connect.Response[R], error),
) (*connect.Response[R], error) {
	message, _ := any(req.Msg).(boxRequest)
	call, err := n.call(ctx, req.Header(), message, scope, used)
	if err != nil {
		return nil, err
	}
	defer call.end()
	resp, err := method(call.agent, call.ctx, connect.NewRequest(req.Msg))
	if err != nil {
		return nil, call.failed(err)
	}
	return connect.NewResponse(resp.Msg), nil
}

// Execute waits here too: when the connection to the box breaks while it does, the same question is asked again, which the agent knows by its id.
func (n *notebooks) Execute(ctx context.Context, req *connect.Request[carrelv1.ExecuteRequest]) (*connect.Response[carrelv1.ExecuteResponse], error) {
	wait := req.Msg.GetWait()
	if wait != nil && (wait.CheckValid() != nil || wait.AsDuration() < 0 || wait.AsDuration() > maxExecuteWait) {
		return nil, carrel.Errorf(carrel.CodeInvalid, "bad_wait", "the request waits for %s; it may be from 0 to 10 minutes: watch the execution for longer ones", wait.AsDuration())
	}
	call, err := n.call(ctx, req.Header(), req.Msg, auth.ScopeExec, activityExec)
	if err != nil {
		return nil, err
	}
	defer call.end()
	message := bare(req.Msg)
	if message.RequestId == "" {
		message.RequestId = rand.Text()
	}
	until := n.gateway.now().Add(wait.AsDuration())
	again := newRetry(n.gateway, call.pass)
	for {
		resp, err := call.agent.Execute(call.ctx, connect.NewRequest(message))
		if err == nil {
			return connect.NewResponse(resp.Msg), nil
		}
		if err = call.failed(err); wait == nil {
			return nil, err
		}
		if err := again.wait(call.ctx, err, false); err != nil {
			return nil, err
		}
		message.Wait = durationpb.New(max(until.Sub(n.gateway.now()), 0))
	}
}

func (n *notebooks) GetExecution(ctx context.Context, req *connect.Request[carrelv1.GetExecutionRequest]) (*connect.Response[carrelv1.Execution], error) {
	return notebookUnary(ctx, n, req, auth.ScopeView, "", agentv1connect.NotebookServiceClient.GetExecution)
}

func (n *notebooks) AnswerInput(ctx context.Context, req *connect.Request[carrelv1.AnswerInputRequest]) (*connect.Response[carrelv1.AnswerInputResponse], error) {
	return notebookUnary(ctx, n, req, auth.ScopeExec, activityExec, agentv1connect.NotebookServiceClient.AnswerInput)
}

func (n *notebooks) Interrupt(ctx context.Context, req *connect.Request[carrelv1.InterruptRequest]) (*connect.Response[carrelv1.InterruptResponse], error) {
	return notebookUnary(ctx, n, req, auth.ScopeExec, activityExec, agentv1connect.NotebookServiceClient.Interrupt)
}

func (n *notebooks) GetStatus(ctx context.Context, req *connect.Request[carrelv1.GetStatusRequest]) (*connect.Response[carrelv1.NotebookStatus], error) {
	return notebookUnary(ctx, n, req, auth.ScopeView, "", agentv1connect.NotebookServiceClient.GetStatus)
}

func (n *notebooks) ListKernelSpecs(ctx context.Context, req *connect.Request[carrelv1.ListKernelSpecsRequest]) (*connect.Response[carrelv1.ListKernelSpecsResponse], error) {
	return notebookUnary(ctx, n, req, auth.ScopeView, "", agentv1connect.NotebookServiceClient.ListKernelSpecs)
}

func (n *notebooks) StartKernel(ctx context.Context, req *connect.Request[carrelv1.StartKernelRequest]) (*connect.Response[carrelv1.Kernel], error) {
	return notebookUnary(ctx, n, req, auth.ScopeExec, activityExec, agentv1connect.NotebookServiceClient.StartKernel)
}

func (n *notebooks) RestartKernel(ctx context.Context, req *connect.Request[carrelv1.RestartKernelRequest]) (*connect.Response[carrelv1.Kernel], error) {
	return notebookUnary(ctx, n, req, auth.ScopeExec, activityExec, agentv1connect.NotebookServiceClient.RestartKernel)
}

func (n *notebooks) ShutdownKernel(ctx context.Context, req *connect.Request[carrelv1.ShutdownKernelRequest]) (*connect.Response[carrelv1.ShutdownKernelResponse], error) {
	return notebookUnary(ctx, n, req, auth.ScopeExec, activityExec, agentv1connect.NotebookServiceClient.ShutdownKernel)
}

func (n *notebooks) GetNotebook(ctx context.Context, req *connect.Request[carrelv1.GetNotebookRequest]) (*connect.Response[carrelv1.Notebook], error) {
	return notebookUnary(ctx, n, req, auth.ScopeView, "", agentv1connect.NotebookServiceClient.GetNotebook)
}

func (n *notebooks) EditNotebook(ctx context.Context, req *connect.Request[carrelv1.EditNotebookRequest]) (*connect.Response[carrelv1.EditNotebookResponse], error) {
	return notebookUnary(ctx, n, req, auth.ScopeExec, activityInput, agentv1connect.NotebookServiceClient.EditNotebook)
}

func (n *notebooks) CompleteCode(ctx context.Context, req *connect.Request[carrelv1.CompleteCodeRequest]) (*connect.Response[carrelv1.CompleteCodeResponse], error) {
	return notebookUnary(ctx, n, req, auth.ScopeExec, activityInput, agentv1connect.NotebookServiceClient.CompleteCode)
}

func (n *notebooks) InspectCode(ctx context.Context, req *connect.Request[carrelv1.InspectCodeRequest]) (*connect.Response[carrelv1.InspectCodeResponse], error) {
	return notebookUnary(ctx, n, req, auth.ScopeExec, activityInput, agentv1connect.NotebookServiceClient.InspectCode)
}

func (n *notebooks) GetUsage(ctx context.Context, req *connect.Request[carrelv1.GetUsageRequest]) (*connect.Response[carrelv1.BoxUsage], error) {
	return notebookUnary(ctx, n, req, auth.ScopeView, "", agentv1connect.NotebookServiceClient.GetUsage)
}

// WatchNotebooks passes the events on at the pace of the client, who holds up this stream alone: at most agentWindow of it waits here.
func (n *notebooks) WatchNotebooks(ctx context.Context, req *connect.Request[carrelv1.WatchNotebooksRequest], out *connect.ServerStream[carrelv1.NotebookEvent]) error {
	call, err := n.call(ctx, req.Header(), req.Msg, auth.ScopeView, "")
	if err != nil {
		return err
	}
	defer call.end()
	n.gateway.metrics.streamSockets.WithLabelValues("rpc").Inc()
	defer n.gateway.metrics.streamSockets.WithLabelValues("rpc").Dec()
	watch := newNotebookWatch(n.gateway, call.pass, call.conn, req.Msg)
	return watch.follow(call.ctx, func(event *carrelv1.NotebookEvent, wrote func()) error {
		if err := out.Send(event); err != nil {
			return err
		}
		if wrote != nil {
			wrote()
		}
		return nil
	})
}
