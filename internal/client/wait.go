package client

import (
	"context"
	"errors"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/carrel"
)

const (
	pollSlow = time.Second
	pollFast = 250 * time.Millisecond
)

// WaitOperation answers when an operation is done. progress, which may be nil, is called from the
// same goroutine whenever its words changed. An operation that ended without success is an error
// with the operation's reason. It bears a control plane that goes away for patience (default 1 minute).
func (c *Client) WaitOperation(ctx context.Context, op *carrelv1.Operation, patience time.Duration, progress func(*carrelv1.Operation)) (*carrelv1.Operation, error) {
	if patience <= 0 {
		patience = time.Minute
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	wake := make(chan struct{}, 1)
	interval := pollFast
	if carrel.IDKind(op.GetTargetId()) == 'b' && !op.GetDone() {
		// A change of the box makes the next look come at once; the poll makes it come anyway.
		interval = pollSlow
		watched := make(chan struct{})
		defer func() { cancel(); <-watched }()
		go func() {
			defer close(watched)
			_ = c.WatchBox(ctx, op.GetTargetId(), func(*carrelv1.Box) error {
				select {
				case wake <- struct{}{}:
				default:
				}
				return nil
			})
		}()
	}
	words := ""
	seen := c.now()
	for {
		if progress != nil && (op.GetProgress() != words || op.GetDone()) {
			words = op.GetProgress()
			progress(op)
		}
		if op.GetDone() {
			return op, OperationError(op)
		}
		select {
		case <-wake:
		case <-time.After(interval):
		case <-ctx.Done():
			return op, ctx.Err()
		}
		resp, err := c.Operations.GetOperation(ctx, connect.NewRequest(&carrelv1.GetOperationRequest{Id: op.GetId()}))
		switch {
		case err == nil:
			op, seen = resp.Msg, c.now()
		case !broken(err) || c.now().Sub(seen) > patience:
			return op, err
		}
	}
}

// OperationError is the failure of an operation as an error, nil for one that succeeded or goes on.
func OperationError(op *carrelv1.Operation) error {
	f := op.GetError()
	if f == nil || !op.GetDone() {
		return nil
	}
	message := f.GetMessage()
	if next := f.GetNextStep(); next != "" {
		message = endSentence(message) + " " + next
	}
	code := carrel.CodePrecondition
	switch f.GetReason() {
	case "superseded":
		code = carrel.CodeAborted
	case "no_room", "disk_full":
		code = carrel.CodeExhausted
	}
	return &carrel.Error{Code: code, Reason: f.GetReason(), Message: message, Metadata: map[string]string{"operation": op.GetId(), "verb": op.GetVerb()}}
}

func endSentence(s string) string {
	if s == "" {
		return s
	}
	switch s[len(s)-1] {
	case '.', '!', '?', ':':
		return s
	}
	return s + "."
}

// WaitBox answers when the box (id or name) is in one of the states, or with the error
// CodeDeadline when timeout is over. Longer times than the server waits for one request are
// put together from several.
func (c *Client) WaitBox(ctx context.Context, box string, states []carrelv1.State, timeout time.Duration) (*carrelv1.Box, error) {
	end := c.now().Add(timeout)
	for {
		left := min(end.Sub(c.now()), carrel.MaxWait)
		if left < 0 {
			left = 0
		}
		resp, err := c.Boxes.WaitBox(ctx, connect.NewRequest(&carrelv1.WaitBoxRequest{
			Id: box, States: states, Timeout: durationpb.New(max(left, time.Millisecond)),
		}))
		if err == nil {
			return resp.Msg, nil
		}
		if ctx.Err() != nil || !c.now().Before(end) || (carrel.CodeOf(err) != carrel.CodeDeadline && !broken(err)) {
			return nil, err
		}
	}
}

// WatchBox calls f for the box as it is and after every change, until f or the call fails or ctx
// ends. A broken stream is made again, which may repeat the last state.
func (c *Client) WatchBox(ctx context.Context, box string, f func(*carrelv1.Box) error) error {
	waits := newBackOff(100*time.Millisecond, 5*time.Second)
	for {
		err := c.watchOnce(ctx, box, f, waits.Reset)
		if err != nil && !broken(err) || ctx.Err() != nil {
			return err
		}
		select {
		case <-time.After(waits.NextBackOff()):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (c *Client) watchOnce(ctx context.Context, box string, f func(*carrelv1.Box) error, alive func()) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.Boxes.WatchBoxes(ctx, connect.NewRequest(&carrelv1.WatchBoxesRequest{Id: box}))
	if err != nil {
		return err
	}
	defer stream.Close()
	for stream.Receive() {
		alive()
		if b := stream.Msg().GetBox(); b != nil {
			if err := f(b); err != nil {
				return err
			}
		}
	}
	if err := stream.Err(); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}
