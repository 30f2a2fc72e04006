package client

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/genproto/googleapis/rpc/errdetails"

	"carrel.dev/carrel/internal/carrel"
)

// Error turns what a call answered into a *carrel.Error: the server's own with its reason and metadata
// (google.rpc.ErrorInfo and RetryInfo details), or one made here when no server answered. nil, errors
// that are one already and ends of the caller's context stay as they are.
func Error(err error) error {
	var own *carrel.Error
	if err == nil || errors.As(err, &own) {
		return err
	}
	var ce *connect.Error
	if !errors.As(err, &ce) {
		return err
	}
	if !connect.IsWireError(err) {
		switch {
		case errors.Is(err, context.Canceled):
			return fmt.Errorf("call: %w", context.Canceled)
		case errors.Is(err, context.DeadlineExceeded):
			return &carrel.Error{Code: carrel.CodeDeadline, Reason: "deadline", Message: "the server did not answer in the time given; try again", Cause: err}
		case ce.Code() == connect.CodeInternal && strings.HasPrefix(ce.Message(), "marshal message"):
			return &carrel.Error{Code: carrel.CodeInvalid, Reason: "not_text", Message: "the request can't be sent: something in it that has to be text is not UTF-8", Cause: err}
		}
		return &carrel.Error{Code: carrel.CodeUnavailable, Reason: ReasonUnreachable, Message: "no connection to the server: " + ce.Message(), Cause: err}
	}
	result := &carrel.Error{Code: codeOf(ce.Code()), Reason: ce.Code().String(), Message: ce.Message()}
	for _, detail := range ce.Details() {
		value, err := detail.Value()
		if err != nil {
			continue
		}
		switch d := value.(type) {
		case *errdetails.ErrorInfo:
			result.Reason = d.GetReason()
			result.Metadata = d.GetMetadata()
		case *errdetails.RetryInfo:
			result.RetryAfter = d.GetRetryDelay().AsDuration()
		}
	}
	if result.RetryAfter == 0 {
		if after, err := time.ParseDuration(ce.Meta().Get("Retry-After") + "s"); err == nil && after > 0 {
			result.RetryAfter = after
		}
	}
	return result
}

// ReasonUnreachable marks errors that this package made because no server answered.
const ReasonUnreachable = "unreachable"

// Reasons that a gateway gives and that a session acts upon.
const (
	ReasonBoxNotRunning = "box_not_running"
	ReasonBoxNotUp      = "box_not_up"     // it is coming up: try again
	ReasonTicketExpired = "ticket_expired" // get a new one
	ReasonTicketStale   = "ticket_stale"   // of another run of the box: get a new one
	ReasonRoleTooLow    = "role_too_low"   // a ticket is for more than the caller may do
)

func codeOf(code connect.Code) carrel.Code {
	switch code {
	case connect.CodeOutOfRange:
		return carrel.CodeInvalid
	case connect.CodeCanceled:
		return carrel.CodeAborted
	case connect.CodeUnknown, connect.CodeDataLoss:
		return carrel.CodeInternal
	case connect.CodeUnimplemented:
		return carrel.CodePrecondition
	}
	return carrel.Code(code)
}

// broken reports whether err says that a connection, not the call, went wrong, so that the same call
// may succeed on another one.
func broken(err error) bool {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return false
	}
	switch carrel.CodeOf(err) {
	case carrel.CodeUnavailable:
		return true
	case carrel.CodeAborted:
		return carrel.ReasonOf(err) == connect.CodeCanceled.String()
	}
	return false
}

// outdated reports whether err asks for a new ticket.
func outdated(err error) bool {
	reason := carrel.ReasonOf(err)
	return carrel.CodeOf(err) == carrel.CodeUnauthorized && (reason == ReasonTicketExpired || reason == ReasonTicketStale || reason == "bad_ticket")
}
