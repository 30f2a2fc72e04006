package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/api/carrel/v1/carrelv1connect"
	"carrel.dev/carrel/internal/carrel"
)

const serverToken = "carrel_sesame"

// server is a small Carrel in memory: enough of the API that the program's own behaviour can be seen. Its
// boxes are where they are asked to be on the second look.
type server struct {
	carrelv1connect.UnimplementedBoxServiceHandler
	carrelv1connect.UnimplementedOperationServiceHandler
	carrelv1connect.UnimplementedUserServiceHandler
	carrelv1connect.UnimplementedTokenServiceHandler
	carrelv1connect.UnimplementedProcessServiceHandler
	keyServer

	mu    sync.Mutex
	boxes map[string]*carrelv1.Box
	ops   map[string]*carrelv1.Operation
	looks map[string]int

	tokens []*carrelv1.Token
}

var serverTime = timestamppb.New(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC))

func startServer(t *testing.T) string {
	s := &server{boxes: map[string]*carrelv1.Box{}, ops: map[string]*carrelv1.Operation{}, looks: map[string]int{}}
	guard := connect.WithInterceptors(connect.UnaryInterceptorFunc(func(next connect.UnaryFunc) connect.UnaryFunc {
		return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
			if b := req.Header().Get("Authorization"); b != "Bearer "+serverToken && b != "Bearer ticket" {
				return nil, wire(carrel.Errorf(carrel.CodeUnauthorized, "bad_token", "this API token is not valid (any more)"))
			}
			return next(ctx, req)
		}
	}))
	mux := http.NewServeMux()
	mux.Handle(carrelv1connect.NewBoxServiceHandler(s, guard))
	mux.Handle(carrelv1connect.NewOperationServiceHandler(s, guard))
	mux.Handle(carrelv1connect.NewUserServiceHandler(s, guard))
	mux.Handle(carrelv1connect.NewTokenServiceHandler(s, guard))
	mux.Handle(carrelv1connect.NewProcessServiceHandler(s, guard))
	mux.Handle(carrelv1connect.NewImageServiceHandler(&imageServer{}, guard))
	mux.Handle(carrelv1connect.NewNotebookServiceHandler(newNotebookServer(), guard))
	mux.Handle(carrelv1connect.NewSSHServiceHandler(&s.keyServer, guard))
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Server", "carrel/9.9.9") })
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	hs := &http.Server{Handler: mux, Protocols: protocols}
	done := make(chan struct{})
	go func() { defer close(done); _ = hs.Serve(listener) }()
	t.Cleanup(func() { hs.Close(); <-done })
	return "http://" + listener.Addr().String()
}

func wire(e *carrel.Error) error {
	ce := connect.NewError(connect.Code(e.Code), fmt.Errorf("%s", e.Message))
	if d, err := connect.NewErrorDetail(&errdetails.ErrorInfo{Reason: e.Reason, Domain: "carrel.dev", Metadata: e.Metadata}); err == nil {
		ce.AddDetail(d)
	}
	return ce
}

func (s *server) find(id string) (*carrelv1.Box, error) {
	for _, b := range s.boxes {
		if b.GetId() == id || b.GetName() == id {
			return b, nil
		}
	}
	return nil, wire(carrel.NotFound("box", id))
}

func (s *server) op(verb carrel.Verb, b *carrelv1.Box) *carrelv1.Operation {
	op := &carrelv1.Operation{Id: fmt.Sprintf("p%019d", len(s.ops)+1), Verb: string(verb), TargetId: b.GetId(), TargetName: b.GetName(), Progress: "starting", CreateTime: serverTime, CreatedBy: "user:ada"}
	s.ops[op.GetId()] = op
	return op
}

func (s *server) CreateBox(_ context.Context, req *connect.Request[carrelv1.CreateBoxRequest]) (*connect.Response[carrelv1.Operation], error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	name := req.Msg.GetName()
	if err := carrel.ValidateName("box", name); err != nil {
		return nil, wire(carrel.Errorf(carrel.CodeOf(err), carrel.ReasonOf(err), "%q is no name for a box", name))
	}
	if _, err := s.find(name); err == nil {
		return nil, wire(carrel.Errorf(carrel.CodeExists, "box_name_taken", "there is a box %q already; choose another name", name))
	}
	b := &carrelv1.Box{
		Id: fmt.Sprintf("b%019d", len(s.boxes)+1), Name: name, Template: "base", TemplateVersion: 1, State: carrelv1.State_STATE_RUNNING, Intent: "running",
		Resources: req.Msg.GetResources(), Labels: req.Msg.GetLabels(), Env: req.Msg.GetEnv(), CreateTime: serverTime,
	}
	s.boxes[b.GetId()] = b
	return connect.NewResponse(s.op(carrel.VerbCreate, b)), nil
}

func (s *server) change(id string, verb carrel.Verb, to carrelv1.State) (*connect.Response[carrelv1.Operation], error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b, err := s.find(id)
	if err != nil {
		return nil, err
	}
	b.State = to
	op := s.op(verb, b)
	if to == carrelv1.State_STATE_DELETED {
		delete(s.boxes, b.GetId())
	}
	return connect.NewResponse(op), nil
}

func (s *server) PauseBox(_ context.Context, req *connect.Request[carrelv1.PauseBoxRequest]) (*connect.Response[carrelv1.Operation], error) {
	return s.change(req.Msg.GetId(), carrel.VerbPause, carrelv1.State_STATE_PAUSED)
}

func (s *server) ResumeBox(_ context.Context, req *connect.Request[carrelv1.ResumeBoxRequest]) (*connect.Response[carrelv1.Operation], error) {
	return s.change(req.Msg.GetId(), carrel.VerbResume, carrelv1.State_STATE_RUNNING)
}

func (s *server) StopBox(_ context.Context, req *connect.Request[carrelv1.StopBoxRequest]) (*connect.Response[carrelv1.Operation], error) {
	resp, err := s.change(req.Msg.GetId(), carrel.VerbStop, carrelv1.State_STATE_STOPPED)
	if err == nil && strings.HasPrefix(resp.Msg.GetTargetName(), "full") {
		s.mu.Lock()
		defer s.mu.Unlock()
		resp.Msg.Error = &carrelv1.Failure{Reason: "disk_full", Message: "the node's disk is full", NextStep: "Free some space and stop it again."}
	}
	return resp, err
}

func (s *server) DeleteBox(_ context.Context, req *connect.Request[carrelv1.DeleteBoxRequest]) (*connect.Response[carrelv1.Operation], error) {
	return s.change(req.Msg.GetId(), carrel.VerbDelete, carrelv1.State_STATE_DELETED)
}

func (s *server) GetBox(_ context.Context, req *connect.Request[carrelv1.GetBoxRequest]) (*connect.Response[carrelv1.Box], error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b, err := s.find(req.Msg.GetId())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(b), nil
}

func (s *server) ListBoxes(_ context.Context, req *connect.Request[carrelv1.ListBoxesRequest]) (*connect.Response[carrelv1.ListBoxesResponse], error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := &carrelv1.ListBoxesResponse{}
	for i := range len(s.boxes) + 10 {
		b := s.boxes[fmt.Sprintf("b%019d", i)]
		if b != nil && (req.Msg.GetFilter() == "" || req.Msg.GetFilter() == "name="+b.GetName()) {
			list.Boxes = append(list.Boxes, b)
		}
	}
	return connect.NewResponse(list), nil
}

func (s *server) WaitBox(_ context.Context, req *connect.Request[carrelv1.WaitBoxRequest]) (*connect.Response[carrelv1.Box], error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b, err := s.find(req.Msg.GetId())
	if err != nil {
		return nil, err
	}
	for _, state := range req.Msg.GetStates() {
		if b.GetState() == state {
			return connect.NewResponse(b), nil
		}
	}
	return nil, wire(carrel.Errorf(carrel.CodeDeadline, "wait_over", "%s is still %s", b.GetName(), stateWord(b.GetState())))
}

func (s *server) GetOperation(_ context.Context, req *connect.Request[carrelv1.GetOperationRequest]) (*connect.Response[carrelv1.Operation], error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	op := s.ops[req.Msg.GetId()]
	if op == nil {
		return nil, wire(carrel.NotFound("operation", req.Msg.GetId()))
	}
	if s.looks[op.GetId()]++; s.looks[op.GetId()] >= 1 {
		op.Done, op.Progress, op.EndTime, op.Duration = true, "done", serverTime, durationpb.New(1234*time.Millisecond)
	}
	return connect.NewResponse(op), nil
}

func (s *server) WhoAmI(context.Context, *connect.Request[carrelv1.WhoAmIRequest]) (*connect.Response[carrelv1.WhoAmIResponse], error) {
	return connect.NewResponse(&carrelv1.WhoAmIResponse{
		User: &carrelv1.User{Id: "u0000000000000000001", Name: "ada"}, Orgs: []*carrelv1.Org{{Id: "o0000000000000000001", Name: "default"}},
		Memberships: []*carrelv1.Member{{OrgId: "o0000000000000000001", UserId: "u0000000000000000001", Role: "owner"}},
	}), nil
}

func (s *server) CreateToken(_ context.Context, req *connect.Request[carrelv1.CreateTokenRequest]) (*connect.Response[carrelv1.CreateTokenResponse], error) {
	return connect.NewResponse(&carrelv1.CreateTokenResponse{Token: &carrelv1.Token{Id: "t0000000000000000001", Description: req.Msg.GetDescription()}, Secret: "carrel_secret"}), nil
}

// ListTokens has one more when two were revoked: somebody made it with one of those.
func (s *server) ListTokens(context.Context, *connect.Request[carrelv1.ListTokensRequest]) (*connect.Response[carrelv1.ListTokensResponse], error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := len(s.tokens); n < 3 {
		s.tokens = append(s.tokens, &carrelv1.Token{Id: fmt.Sprintf("t%019d", n+1)}, &carrelv1.Token{Id: fmt.Sprintf("t%019d", n+2)})
	}
	resp := &carrelv1.ListTokensResponse{}
	for _, token := range s.tokens {
		resp.Tokens = append(resp.Tokens, proto.CloneOf(token))
	}
	return connect.NewResponse(resp), nil
}

func (s *server) RevokeToken(_ context.Context, req *connect.Request[carrelv1.RevokeTokenRequest]) (*connect.Response[carrelv1.RevokeTokenResponse], error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, token := range s.tokens {
		if token.GetId() == req.Msg.GetId() {
			token.RevokeTime = serverTime
			return connect.NewResponse(&carrelv1.RevokeTokenResponse{}), nil
		}
	}
	return nil, wire(carrel.NotFound("token", req.Msg.GetId()))
}

func (s *server) CreateTicket(_ context.Context, req *connect.Request[carrelv1.CreateTicketRequest]) (*connect.Response[carrelv1.Ticket], error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b, err := s.find(req.Msg.GetId())
	if err != nil {
		return nil, err
	}
	if b.GetState() != carrelv1.State_STATE_RUNNING {
		e := carrel.Errorf(carrel.CodePrecondition, "box_not_running", "box %s is paused; bring it back with its memory with: carrel resume %s", b.GetName(), b.GetName())
		e.Metadata = map[string]string{"state": "PAUSED"}
		return nil, wire(e)
	}
	return connect.NewResponse(&carrelv1.Ticket{Ticket: "ticket", BoxId: b.GetId(), ExpireTime: timestamppb.New(time.Now().Add(time.Hour))}), nil
}

// RunProcess knows `say WORD…`, `fail CODE` and nothing else.
func (s *server) RunProcess(_ context.Context, req *connect.Request[carrelv1.StartProcessRequest], out *connect.ServerStream[carrelv1.ProcessEvent]) error {
	end := &carrelv1.Process{Id: "p1"}
	events := []*carrelv1.ProcessEvent{{Event: &carrelv1.ProcessEvent_Started{Started: &carrelv1.Process{Id: "p1"}}}}
	switch args := req.Msg.GetArgs(); args[0] {
	case "say":
		text := strings.Join(args[1:], " ") + "\n"
		for _, v := range []string{"A"} {
			if req.Msg.GetEnv()[v] != "" {
				text += v + "=" + req.Msg.GetEnv()[v] + "\n"
			}
		}
		events = append(events, &carrelv1.ProcessEvent{Event: &carrelv1.ProcessEvent_Output{Output: &carrelv1.Output{Stream: carrelv1.Stream_STREAM_STDOUT, Data: []byte(text)}}})
	case "fail":
		_, _ = fmt.Sscan(args[1], &end.ExitCode)
		events = append(events, &carrelv1.ProcessEvent{Event: &carrelv1.ProcessEvent_Output{Output: &carrelv1.Output{Stream: carrelv1.Stream_STREAM_STDERR, Data: []byte("it failed\n")}}})
	}
	for _, e := range append(events, &carrelv1.ProcessEvent{Event: &carrelv1.ProcessEvent_Exited{Exited: end}}) {
		if err := out.Send(e); err != nil {
			return err
		}
	}
	return nil
}

func (s *server) StartProcess(context.Context, *connect.Request[carrelv1.StartProcessRequest]) (*connect.Response[carrelv1.Process], error) {
	return connect.NewResponse(&carrelv1.Process{Id: "p7", Running: true}), nil
}

func (s *server) WriteInput(_ context.Context, req *connect.Request[carrelv1.WriteInputRequest]) (*connect.Response[carrelv1.WriteInputResponse], error) {
	return connect.NewResponse(&carrelv1.WriteInputResponse{NextOffset: req.Msg.GetOffset() + int64(len(req.Msg.GetData()))}), nil
}
