package carrel

import (
	"errors"
	"fmt"
	"time"
)

// Code is the closed set of what can go wrong between Carrel and a person or program. The values are
// gRPC's status codes, so that every protocol shows the same.
type Code int

const (
	CodeInvalid      Code = 3  // the request can never succeed as it is
	CodeDeadline     Code = 4  // the time given was over
	CodeNotFound     Code = 5  // there is no such thing, or the caller may not see it
	CodeExists       Code = 6  // the name is taken
	CodeDenied       Code = 7  // the caller may see it but not do this
	CodeExhausted    Code = 8  // no room, over quota
	CodePrecondition Code = 9  // wrong state for this verb
	CodeAborted      Code = 10 // changed meanwhile, superseded
	CodeInternal     Code = 13 // a fault of ours; the message is not shown
	CodeUnavailable  Code = 14 // try again
	CodeUnauthorized Code = 16 // who are you
)

// Error is the one error type whose message is shown to a person. Everything that is not an *Error is
// internal: logged whole, shown as "internal error" with a request id.
type Error struct {
	Code Code
	// Reason is stable and machine readable, such as "box_name_taken".
	Reason string
	// Message says what happened, to what and why, and what to do next, in a sentence or two.
	Message string
	// Metadata has the values of the message for programs.
	Metadata map[string]string
	// RetryAfter is how long to wait before trying again; 0: does not apply.
	RetryAfter time.Duration
	// Cause is logged and never shown.
	Cause error
}

func (e *Error) Error() string {
	if e.Cause != nil {
		return fmt.Sprintf("%s: %s: %v", e.Reason, e.Message, e.Cause)
	}
	return e.Reason + ": " + e.Message
}

func (e *Error) Unwrap() error { return e.Cause }

// Errorf makes an Error. The format's result is shown to a person.
func Errorf(code Code, reason, format string, args ...any) *Error {
	return &Error{Code: code, Reason: reason, Message: fmt.Sprintf(format, args...)}
}

// NotFound says that there is no such thing, or that the caller may not know of it: the two are
// indistinguishable on purpose.
func NotFound(kind, name string) *Error {
	return Errorf(CodeNotFound, kind+"_not_found", "there is no %s %q (or you may not see it)", kind, name)
}

// CodeOf is the code of the first *Error in err's chain, CodeInternal for any other error, 0 for nil.
func CodeOf(err error) Code {
	if err == nil {
		return 0
	}
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	return CodeInternal
}

// ReasonOf is the reason of the first *Error in err's chain, or "".
func ReasonOf(err error) string {
	var e *Error
	if errors.As(err, &e) {
		return e.Reason
	}
	return ""
}
