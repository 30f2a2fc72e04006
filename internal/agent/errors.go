package agent

import (
	"context"
	"errors"

	"connectrpc.com/connect"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/protobuf/types/known/durationpb"

	"carrel.dev/carrel/internal/carrel"
)

// wireErrors is the one place where errors of this package become those of the protocol.
type wireErrors struct {
	log func(ctx context.Context, procedure string, err error)
}

func (w wireErrors) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, request connect.AnyRequest) (connect.AnyResponse, error) {
		response, err := next(ctx, request)
		if err != nil {
			return nil, w.convert(ctx, request.Spec().Procedure, err)
		}
		return response, nil
	}
}

func (w wireErrors) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

func (w wireErrors) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, conn connect.StreamingHandlerConn) error {
		if err := next(ctx, conn); err != nil {
			return w.convert(ctx, conn.Spec().Procedure, err)
		}
		return nil
	}
}

func (w wireErrors) convert(ctx context.Context, procedure string, err error) error {
	var own *carrel.Error
	var wire *connect.Error
	switch {
	case errors.As(err, &own):
	case errors.As(err, &wire):
		return err
	case errors.Is(err, context.DeadlineExceeded):
		own = carrel.Errorf(carrel.CodeDeadline, "deadline", "the time given was over; try again with more")
	case errors.Is(err, context.Canceled):
		return connect.NewError(connect.CodeCanceled, err)
	default:
		w.log(ctx, procedure, err)
		own = carrel.Errorf(carrel.CodeInternal, "internal", "internal error of the box's agent; its log says more")
	}
	result := connect.NewError(connect.Code(own.Code), errors.New(own.Message))
	if detail, err := connect.NewErrorDetail(&errdetails.ErrorInfo{Reason: own.Reason, Domain: "carrel.dev", Metadata: own.Metadata}); err == nil {
		result.AddDetail(detail)
	}
	if own.RetryAfter > 0 {
		if detail, err := connect.NewErrorDetail(&errdetails.RetryInfo{RetryDelay: durationpb.New(own.RetryAfter)}); err == nil {
			result.AddDetail(detail)
		}
	}
	return result
}
