package client

import (
	"context"
	"errors"
	"io"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/cenkalti/backoff/v5"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"carrel.dev/carrel/api/carrel/v1/carrelv1connect"
	"carrel.dev/carrel/internal/carrel"
)

const (
	headerRequestID = "X-Request-Id"
	maxTries        = 5
	// maxRetryAfter is the longest that a call waits because a server said so.
	maxRetryAfter = 5 * time.Second
)

// interceptor gives every call its bearer, organisation and request id, repeats those that may be
// repeated when nobody answered, and turns errors into *carrel.Error.
type interceptor struct {
	token, org, agent string
	// ends is told of each box (id or name) whose run a call has ended or is about to; nil: nobody is.
	ends func(box string)
}

// endsRun has the calls after which a box's next run is another one.
var endsRun = map[string]bool{
	carrelv1connect.BoxServiceStartBoxProcedure: true, carrelv1connect.BoxServiceResumeBoxProcedure: true, carrelv1connect.BoxServiceRestartBoxProcedure: true,
	carrelv1connect.BoxServicePauseBoxProcedure: true, carrelv1connect.BoxServiceStopBoxProcedure: true, carrelv1connect.BoxServiceDeleteBoxProcedure: true,
}

var _ connect.Interceptor = (*interceptor)(nil)

func (i *interceptor) header(h interface {
	Get(string) string
	Set(string, string)
}) {
	if h.Get("Authorization") == "" && i.token != "" {
		h.Set("Authorization", "Bearer "+i.token)
	}
	if h.Get(headerRequestID) == "" {
		h.Set(headerRequestID, newRequestID())
	}
	h.Set("User-Agent", i.agent)
}

func (i *interceptor) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		i.header(req.Header())
		repeatable := i.prepare(req.Spec().Procedure, req.Any())
		call := func() (connect.AnyResponse, error) {
			resp, err := next(ctx, req)
			if err == nil {
				return resp, nil
			}
			err = Error(err)
			if !repeatable || !broken(err) || ctx.Err() != nil {
				return nil, backoff.Permanent(err)
			}
			return nil, err
		}
		policy := &politeBackOff{base: newBackOff(50*time.Millisecond, time.Second)}
		resp, err := backoff.Retry(ctx, func() (connect.AnyResponse, error) {
			resp, err := call()
			policy.last = err
			return resp, err
		}, backoff.WithBackOff(policy), backoff.WithMaxTries(maxTries), backoff.WithMaxElapsedTime(30*time.Second))
		if err != nil {
			return nil, unwrapPermanent(err)
		}
		if about, ok := req.Any().(interface{ GetId() string }); ok && i.ends != nil && endsRun[req.Spec().Procedure] {
			i.ends(about.GetId())
		}
		return resp, nil
	}
}

// politeBackOff waits at least as long as the server asked for, and gives up when that is too long.
type politeBackOff struct {
	base backoff.BackOff
	last error
}

func (p *politeBackOff) Reset() { p.base.Reset() }

func (p *politeBackOff) NextBackOff() time.Duration {
	wait := p.base.NextBackOff()
	var e *carrel.Error
	if errors.As(p.last, &e) && e.RetryAfter > wait {
		if e.RetryAfter > maxRetryAfter {
			return backoff.Stop
		}
		return e.RetryAfter
	}
	return wait
}

func newBackOff(first, most time.Duration) *backoff.ExponentialBackOff {
	b := backoff.NewExponentialBackOff()
	b.InitialInterval, b.MaxInterval, b.Multiplier, b.RandomizationFactor = first, most, 2, 0.5
	return b
}

func unwrapPermanent(err error) error {
	var p *backoff.PermanentError
	if errors.As(err, &p) {
		return p.Unwrap()
	}
	return err
}

func (i *interceptor) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return func(ctx context.Context, spec connect.Spec) connect.StreamingClientConn {
		return &streamConn{StreamingClientConn: next(ctx, spec), interceptor: i}
	}
}

func (i *interceptor) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return next
}

type streamConn struct {
	connect.StreamingClientConn
	interceptor *interceptor
}

// Send completes the headers only now: those of the call are added after the stream was made, so that one that was set before would
// be sent beside its bearer, and the server would take the first.
func (s *streamConn) Send(m any) error {
	s.interceptor.header(s.RequestHeader())
	s.interceptor.prepare(s.Spec().Procedure, m)
	if err := s.StreamingClientConn.Send(m); err != nil && !errors.Is(err, io.EOF) {
		return Error(err)
	} else {
		return err
	}
}

func (s *streamConn) Receive(m any) error {
	err := s.StreamingClientConn.Receive(m)
	if err == nil || errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) && !isConnectError(err) {
		return err
	}
	return Error(err)
}

func isConnectError(err error) bool {
	var ce *connect.Error
	return errors.As(err, &ce)
}

// prepare fills the organisation and the request id of a message where it has such fields and they
// are empty, and reports whether the call may be repeated: it only reads, names its own effect
// (request_id, offset), or sets something to a value.
func (i *interceptor) prepare(procedure string, message any) bool {
	m, ok := message.(proto.Message)
	if !ok {
		return false
	}
	r := m.ProtoReflect()
	service, method, _ := strings.Cut(strings.TrimPrefix(procedure, "/"), "/")
	if service != "carrel.v1.OrgService" && i.org != "" {
		fillString(r, "org", i.org)
	}
	if fillString(r, "request_id", newRequestID()) {
		return true
	}
	for _, prefix := range []string{"Get", "List", "Wait", "WhoAmI", "Watch", "CreateTicket", "WriteInput", "ResizeProcess", "RevokeToken", "SetMember", "RemoveMember", "UpdateNode"} {
		if strings.HasPrefix(method, prefix) {
			return true
		}
	}
	return false
}

// fillString sets a string field that is empty, and reports whether the message has it.
func fillString(m protoreflect.Message, name protoreflect.Name, value string) bool {
	field := m.Descriptor().Fields().ByName(name)
	if field == nil || field.Kind() != protoreflect.StringKind || field.IsList() {
		return false
	}
	if m.Get(field).String() == "" {
		m.Set(field, protoreflect.ValueOfString(value))
	}
	return true
}
