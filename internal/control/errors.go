package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/http"
	"strconv"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/protobuf/types/known/durationpb"

	"carrel.dev/carrel/internal/carrel"
)

// errorDomain is the domain of google.rpc.ErrorInfo.
const errorDomain = "carrel.dev"

// wireError is the one place where an error becomes what a client sees: a *carrel.Error with its reason,
// metadata and time to wait; whatever connect itself has to say; and everything else only as
// "internal error", with the request id under which it is logged.
func (s *Server) wireError(ctx context.Context, method string, err error) error {
	if err == nil {
		return nil
	}
	known := s.explain(ctx, method, err)
	if known == nil {
		return err
	}
	ce := connect.NewError(connect.Code(known.Code), errors.New(known.Message))
	details := []*errdetails.ErrorInfo{{Reason: known.Reason, Domain: errorDomain, Metadata: known.Metadata}}
	for _, d := range details {
		if detail, err := connect.NewErrorDetail(d); err == nil {
			ce.AddDetail(detail)
		}
	}
	if known.RetryAfter > 0 {
		if detail, err := connect.NewErrorDetail(&errdetails.RetryInfo{RetryDelay: durationpb.New(known.RetryAfter)}); err == nil {
			ce.AddDetail(detail)
		}
		ce.Meta().Set("Retry-After", retryAfter(known.RetryAfter))
	}
	return ce
}

// explain gives what to show of an error; nil: it is one of connect's own, to be shown as it is.
func (s *Server) explain(ctx context.Context, method string, err error) *carrel.Error {
	log := s.log.With("method", method, "request", requestID(ctx))
	var known *carrel.Error
	if errors.As(err, &known) && known.Code != carrel.CodeInternal {
		if known.Cause != nil {
			log.LogAttrs(ctx, slog.LevelWarn, "request refused", slog.String("reason", known.Reason), slog.Any("error", err))
		}
		return known
	}
	var wire *connect.Error
	if known == nil && errors.As(err, &wire) {
		return nil
	}
	switch {
	case errors.Is(ctx.Err(), context.Canceled):
		return carrel.Errorf(carrel.Code(connect.CodeCanceled), "canceled", "the request was given up by who made it")
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		log.Warn("request took too long", "error", err)
		return carrel.Errorf(carrel.CodeDeadline, "deadline", "the request took too long; what it asked for may still come about. Look, and try again with the same request id")
	}
	log.Error("internal error", "error", err)
	e := carrel.Errorf(carrel.CodeInternal, "internal", "internal error (request %s)", requestID(ctx))
	e.Metadata = map[string]string{"request": requestID(ctx)}
	return e
}

func retryAfter(d time.Duration) string {
	return strconv.Itoa(max(1, int(math.Ceil(d.Seconds()))))
}

// httpStatuses are the HTTP statuses of the codes, as in google.rpc.Code.
var httpStatuses = map[connect.Code]int{
	connect.CodeCanceled:           499,
	connect.CodeInvalidArgument:    http.StatusBadRequest,
	connect.CodeDeadlineExceeded:   http.StatusGatewayTimeout,
	connect.CodeNotFound:           http.StatusNotFound,
	connect.CodeAlreadyExists:      http.StatusConflict,
	connect.CodePermissionDenied:   http.StatusForbidden,
	connect.CodeResourceExhausted:  http.StatusTooManyRequests,
	connect.CodeFailedPrecondition: http.StatusBadRequest,
	connect.CodeAborted:            http.StatusConflict,
	connect.CodeUnavailable:        http.StatusServiceUnavailable,
	connect.CodeUnauthenticated:    http.StatusUnauthorized,
}

// writeHTTPError answers a plain HTTP request with an error in the shape that REST clients get everywhere:
// google.rpc.Status as JSON.
func (s *Server) writeHTTPError(ctx context.Context, w http.ResponseWriter, method string, err error) {
	known := s.explain(ctx, method, err)
	if known == nil {
		var wire *connect.Error
		errors.As(err, &wire)
		known = carrel.Errorf(carrel.Code(wire.Code()), wire.Code().String(), "%s", wire.Message())
	}
	status, ok := httpStatuses[connect.Code(known.Code)]
	if !ok {
		status = http.StatusInternalServerError
	}
	type detail map[string]any
	body := struct {
		Code    int      `json:"code"`
		Message string   `json:"message"`
		Details []detail `json:"details"`
	}{int(known.Code), known.Message, []detail{{
		"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": known.Reason, "domain": errorDomain, "metadata": known.Metadata,
	}}}
	if known.RetryAfter > 0 {
		w.Header().Set("Retry-After", retryAfter(known.RetryAfter))
		body.Details = append(body.Details, detail{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": fmt.Sprintf("%gs", known.RetryAfter.Seconds())})
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // a client that is gone needs no answer
}
