package control

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"time"

	"connectrpc.com/connect"

	"carrel.dev/carrel/api/carrel/link/v1/linkv1connect"
	carrelv1connect "carrel.dev/carrel/api/carrel/v1/carrelv1connect"
	"carrel.dev/carrel/internal/carrel"
)

// How long a method may take when its client does not say; a client may ask for less.
const (
	unaryTimeout = 30 * time.Second
	waitTimeout  = carrel.MaxWait + 10*time.Second
)

// guard is the one interceptor: who asks, may they, how long, and how errors and panics are shown.
type guard struct{ s *Server }

// WrapUnary is part of connect.Interceptor.
func (g guard) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (resp connect.AnyResponse, err error) {
		method := req.Spec().Procedure
		limit := unaryTimeout
		if method == carrelv1connect.BoxServiceWaitBoxProcedure {
			limit = waitTimeout
		}
		ctx, cancel := context.WithTimeout(ctx, limit)
		defer cancel()
		start := g.s.now()
		defer func() {
			if p := recover(); p != nil {
				resp, err = nil, fmt.Errorf("panic: %v\n%s", p, debug.Stack())
			}
			g.s.note(ctx, method, start, err)
			err = g.s.wireError(ctx, method, err)
		}()
		ctx, a, err := g.s.begin(ctx, method, req.Header())
		if err != nil {
			return nil, err
		}
		resp, err = next(ctx, req)
		if err != nil {
			return nil, err
		}
		if err := a.finish(); err != nil {
			return nil, err
		}
		return resp, nil
	}
}

// WrapStreamingClient is part of connect.Interceptor; control is no client.
func (g guard) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

// WrapStreamingHandler is part of connect.Interceptor.
func (g guard) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, conn connect.StreamingHandlerConn) (err error) {
		method := conn.Spec().Procedure
		start := g.s.now()
		defer func() {
			if p := recover(); p != nil {
				err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
			}
			g.s.note(ctx, method, start, err)
			err = g.s.wireError(ctx, method, err)
		}()
		ctx, stop := context.WithCancel(ctx)
		defer stop()
		defer context.AfterFunc(g.s.draining, stop)()
		ctx, a, err := g.s.begin(ctx, method, conn.RequestHeader())
		if err != nil {
			return err
		}
		err = next(ctx, conn)
		if g.s.draining.Err() != nil {
			return drainError()
		}
		if err != nil {
			return err
		}
		return a.finish()
	}
}

func drainError() error {
	e := carrel.Errorf(carrel.CodeUnavailable, "draining", "this server is stopping; connect again")
	e.RetryAfter = time.Second
	return e
}

// streams are the methods whose duration says nothing: they last as long as somebody wants them to.
var streams = map[string]bool{
	carrelv1connect.BoxServiceWatchBoxesProcedure: true, carrelv1connect.BoxServiceWaitBoxProcedure: true,
	linkv1connect.NodeLinkWatchDesiredProcedure: true, linkv1connect.GatewayLinkWatchRoutesProcedure: true,
}

// note counts what was asked for and logs it: changes always, the rest for those who look closely.
func (s *Server) note(ctx context.Context, method string, start time.Time, err error) {
	took := s.now().Sub(start)
	s.metrics.ended(method, outcome(err), took, streams[method])
	level := slog.LevelDebug
	a := accessOf(ctx)
	if a.rule.Mutates {
		level = slog.LevelInfo
	}
	if !s.log.Enabled(ctx, level) {
		return
	}
	attrs := []slog.Attr{slog.String("method", method), slog.String("request", requestID(ctx)), slog.Duration("took", took)}
	if actor := a.principal.Actor(); actor != "" {
		attrs = append(attrs, slog.String("actor", actor))
	}
	if err != nil {
		attrs = append(attrs, slog.String("reason", outcome(err)))
	}
	s.log.LogAttrs(ctx, level, "request", attrs...)
}

// outcome is "ok", or the reason of an error: one of a small set.
func outcome(err error) string {
	if err == nil {
		return "ok"
	}
	if reason := carrel.ReasonOf(err); reason != "" {
		return reason
	}
	if errors.Is(err, context.Canceled) {
		return "canceled"
	}
	return "internal"
}
