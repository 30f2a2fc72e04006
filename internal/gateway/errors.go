package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"connectrpc.com/connect"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"

	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/client"
)

func errTicketStale(box carrel.BoxID) error {
	return carrel.Errorf(carrel.CodeUnauthorized, client.ReasonTicketStale, "this ticket is of an earlier run of box %s; get a new one and try again", box)
}

// errNotRunning says what to do about a box that has no live run. state may be empty: not known.
func errNotRunning(box carrel.BoxID, state carrel.State) *carrel.Error {
	e := carrel.Errorf(carrel.CodePrecondition, client.ReasonBoxNotRunning, "box %s is not running: `carrel show %s` says why, `carrel start %s` starts or resumes it", box, box, box)
	switch state {
	case carrel.StatePaused, carrel.StatePausing:
		e.Message = fmt.Sprintf("box %s is paused: `carrel resume %s` brings it back with its memory", box, box)
	case carrel.StateStopped, carrel.StateStopping:
		e.Message = fmt.Sprintf("box %s is stopped: `carrel start %s` starts it", box, box)
	case carrel.StateProvisioning, carrel.StateResuming:
		e.Message = fmt.Sprintf("box %s is not ready yet: `carrel wait %s --state RUNNING` waits for it", box, box)
	case carrel.StateFailed:
		e.Message = fmt.Sprintf("box %s has failed: `carrel show %s` says why and what to do", box, box)
	case carrel.StateDeleting, carrel.StateDeleted:
		e.Message = fmt.Sprintf("box %s is deleted", box)
	}
	e.Metadata = map[string]string{"box": string(box)}
	if state != "" {
		e.Metadata["state"] = string(state)
	}
	return e
}

func errUnavailable(reason string, cause error, format string, args ...any) *carrel.Error {
	e := carrel.Errorf(carrel.CodeUnavailable, reason, format, args...)
	e.Cause = cause
	e.RetryAfter = time.Second
	return e
}

// own makes any error a *carrel.Error fit to be shown: others than *carrel.Error are internal, logged
// whole and shown with their request id only.
func own(ctx context.Context, log *slog.Logger, request string, err error) *carrel.Error {
	var e *carrel.Error
	if errors.As(err, &e) {
		return e
	}
	switch {
	case errors.Is(err, context.Canceled):
		return carrel.Errorf(carrel.CodeAborted, "canceled", "the request was given up")
	case errors.Is(err, context.DeadlineExceeded):
		return carrel.Errorf(carrel.CodeDeadline, "deadline", "the time given for the request was over")
	}
	log.ErrorContext(ctx, "internal error", "error", err, "request", request)
	return carrel.Errorf(carrel.CodeInternal, "internal", "internal error (request %s)", request)
}

func details(e *carrel.Error) []proto.Message {
	list := []proto.Message{&errdetails.ErrorInfo{Reason: e.Reason, Domain: "carrel.dev", Metadata: e.Metadata}}
	if e.RetryAfter > 0 {
		list = append(list, &errdetails.RetryInfo{RetryDelay: durationpb.New(e.RetryAfter)})
	}
	return list
}

// toConnect is the one place where errors of the data plane cross into RPC.
func toConnect(e *carrel.Error) *connect.Error {
	ce := connect.NewError(connect.Code(e.Code), errors.New(e.Message))
	for _, m := range details(e) {
		if d, err := connect.NewErrorDetail(m); err == nil {
			ce.AddDetail(d)
		}
	}
	if e.RetryAfter > 0 {
		ce.Meta().Set("Retry-After", retryAfter(e))
	}
	return ce
}

func retryAfter(e *carrel.Error) string {
	return strconv.Itoa(int(max((e.RetryAfter+time.Second-1)/time.Second, 1)))
}

// errorInterceptor turns the handlers' errors into RPC errors.
type errorInterceptor struct{ log *slog.Logger }

func (i errorInterceptor) convert(ctx context.Context, header http.Header, err error) error {
	if err == nil {
		return nil
	}
	var ce *connect.Error
	if errors.As(err, &ce) && !connect.IsWireError(err) {
		var e *carrel.Error
		if !errors.As(err, &e) {
			return ce // connect's own: a message too large, a stream that cannot be written
		}
	}
	return toConnect(own(ctx, i.log, header.Get(headerRequestID), err))
}

func (i errorInterceptor) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		resp, err := next(ctx, req)
		return resp, i.convert(ctx, req.Header(), err)
	}
}

func (i errorInterceptor) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

func (i errorInterceptor) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, conn connect.StreamingHandlerConn) error {
		return i.convert(ctx, conn.RequestHeader(), next(ctx, conn))
	}
}

// reasonAgentFailed: the agent in the box answered, and not as it should.
const reasonAgentFailed = "agent_failed"

const maxAgentMessage = 1024 // bytes of an agent's error that are passed on

// fromAgent makes an error of a call to a box's agent fit to be shown. What an agent says is said by whoever
// is root in the box: its message is shown as the box's, and it cannot claim to speak for the platform about
// who the caller is.
func fromAgent(ctx context.Context, box carrel.BoxID, err error) error {
	if err == nil {
		return nil
	}
	var e *carrel.Error
	if errors.As(err, &e) {
		return e // of the dial
	}
	if ctx.Err() != nil {
		if errors.As(context.Cause(ctx), &e) {
			return e
		}
		return ctx.Err()
	}
	if !connect.IsWireError(err) {
		return errUnavailable("box_connection_lost", err, "the connection to box %s was lost; its processes go on if it runs", box)
	}
	if !errors.As(client.Error(err), &e) {
		return errUnavailable("box_connection_lost", err, "the connection to box %s was lost; its processes go on if it runs", box)
	}
	said := &carrel.Error{Code: e.Code, Reason: e.Reason, Message: clip(e.Message), RetryAfter: min(e.RetryAfter, time.Minute)}
	switch e.Code {
	case carrel.CodeUnauthorized, carrel.CodeInternal:
		said.Code, said.Reason = carrel.CodeUnavailable, reasonAgentFailed
		said.Message = "the agent in the box failed: " + said.Message
	}
	if said.Reason == client.ReasonBoxNotRunning || len(said.Reason) > 64 {
		said.Reason = "agent_refused"
	}
	return said
}

func clip(s string) string {
	s = strings.ToValidUTF8(s, "?")
	if len(s) <= maxAgentMessage {
		return s
	}
	s = s[:maxAgentMessage]
	for !utf8.ValidString(s) {
		s = s[:len(s)-1]
	}
	return s + "…"
}

var errorWriter = connect.NewErrorWriter()

// writeError answers a plain HTTP request with the one error shape: that of the protocol that the
// request speaks, or google.rpc.Status as JSON.
func writeError(w http.ResponseWriter, r *http.Request, e *carrel.Error) {
	writeErrorStatus(w, r, e, httpStatus(e.Code))
}

// writeErrorStatus is writeError with a status that says more than the code.
func writeErrorStatus(w http.ResponseWriter, r *http.Request, e *carrel.Error, status int) {
	if e.RetryAfter > 0 {
		w.Header().Set("Retry-After", retryAfter(e))
	}
	if strings.HasPrefix(r.URL.Path, "/carrel.") && errorWriter.IsSupported(r) {
		_ = errorWriter.Write(w, r, toConnect(e)) // the client is gone
		return
	}
	body := &rpcstatus.Status{Code: int32(e.Code), Message: e.Message}
	for _, m := range details(e) {
		if d, err := anypb.New(m); err == nil {
			body.Details = append(body.Details, d)
		}
	}
	text, err := protojson.Marshal(body)
	if err != nil {
		text = []byte(`{"code":13,"message":"internal error"}`)
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	_, _ = w.Write(append(text, '\n'))
}

func httpStatus(code carrel.Code) int {
	switch code {
	case carrel.CodeInvalid, carrel.CodePrecondition:
		return http.StatusBadRequest
	case carrel.CodeDeadline:
		return http.StatusGatewayTimeout
	case carrel.CodeNotFound:
		return http.StatusNotFound
	case carrel.CodeExists, carrel.CodeAborted:
		return http.StatusConflict
	case carrel.CodeDenied:
		return http.StatusForbidden
	case carrel.CodeExhausted:
		return http.StatusTooManyRequests
	case carrel.CodeUnavailable:
		return http.StatusServiceUnavailable
	case carrel.CodeUnauthorized:
		return http.StatusUnauthorized
	}
	return http.StatusInternalServerError
}
