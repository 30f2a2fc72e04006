package client

import (
	"context"
	"errors"
	"time"

	"connectrpc.com/connect"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/carrel"
)

// kernelStart is how long a call that may start a kernel is tried when its connection breaks.
const kernelStart = 2 * time.Minute

// Execute queues code or cells in a box (the request's Box, an id or a name). The request is taken once, however often its connection breaks. Its
// RequestId is filled in if it is empty.
func (c *Client) Execute(ctx context.Context, request *carrelv1.ExecuteRequest) (*carrelv1.ExecuteResponse, error) {
	if request.RequestId == "" {
		request.RequestId = newRequestID()
	}
	return boxCall(Arriving(ctx), c, request.GetBox(), kernelStart, func(ctx context.Context, ticket Ticket) (*connect.Response[carrelv1.ExecuteResponse], error) {
		request.Box = ticket.Box
		return c.Notebooks.Execute(ctx, withTicket(request, ticket))
	})
}

// GetExecution shows an execution with what it has put out so far.
func (c *Client) GetExecution(ctx context.Context, box, execution string) (*carrelv1.Execution, error) {
	return boxCall(ctx, c, box, startFor, func(ctx context.Context, ticket Ticket) (*connect.Response[carrelv1.Execution], error) {
		return c.Notebooks.GetExecution(ctx, withTicket(&carrelv1.GetExecutionRequest{Box: ticket.Box, Execution: execution}, ticket))
	})
}

// AnswerInput answers what an execution asks for.
func (c *Client) AnswerInput(ctx context.Context, box, execution, value string) error {
	_, err := boxCall(Arriving(ctx), c, box, startFor, func(ctx context.Context, ticket Ticket) (*connect.Response[carrelv1.AnswerInputResponse], error) {
		return c.Notebooks.AnswerInput(ctx, withTicket(&carrelv1.AnswerInputRequest{Box: ticket.Box, Execution: execution, Value: value}, ticket))
	})
	return err
}

// Interrupt interrupts a kernel (an id), or all that are busy, and tells how many executions that ended.
func (c *Client) Interrupt(ctx context.Context, box, kernel string) (int, error) {
	resp, err := boxCall(Arriving(ctx), c, box, startFor, func(ctx context.Context, ticket Ticket) (*connect.Response[carrelv1.InterruptResponse], error) {
		return c.Notebooks.Interrupt(ctx, withTicket(&carrelv1.InterruptRequest{Box: ticket.Box, Kernel: kernel}, ticket))
	})
	return int(resp.GetExecutions()), err
}

// NotebookStatus shows the kernels of a box and what they do.
func (c *Client) NotebookStatus(ctx context.Context, box string) (*carrelv1.NotebookStatus, error) {
	return boxCall(ctx, c, box, startFor, func(ctx context.Context, ticket Ticket) (*connect.Response[carrelv1.NotebookStatus], error) {
		return c.Notebooks.GetStatus(ctx, withTicket(&carrelv1.GetStatusRequest{Box: ticket.Box}, ticket))
	})
}

// KernelSpecs shows which kernels a box can start.
func (c *Client) KernelSpecs(ctx context.Context, box string) (*carrelv1.ListKernelSpecsResponse, error) {
	return boxCall(ctx, c, box, startFor, func(ctx context.Context, ticket Ticket) (*connect.Response[carrelv1.ListKernelSpecsResponse], error) {
		return c.Notebooks.ListKernelSpecs(ctx, withTicket(&carrelv1.ListKernelSpecsRequest{Box: ticket.Box}, ticket))
	})
}

// StartKernel starts a kernel of its own, or with a path gives the one of that notebook. An answer that is lost leaves a kernel behind.
func (c *Client) StartKernel(ctx context.Context, box, spec, path string) (*carrelv1.Kernel, error) {
	return boxCall(Arriving(ctx), c, box, startFor, func(ctx context.Context, ticket Ticket) (*connect.Response[carrelv1.Kernel], error) {
		return c.Notebooks.StartKernel(ctx, withTicket(&carrelv1.StartKernelRequest{Box: ticket.Box, Spec: spec, Path: path}, ticket))
	})
}

// RestartKernel gives a kernel a new process.
func (c *Client) RestartKernel(ctx context.Context, box, kernel string) (*carrelv1.Kernel, error) {
	return boxCall(Arriving(ctx), c, box, startFor, func(ctx context.Context, ticket Ticket) (*connect.Response[carrelv1.Kernel], error) {
		return c.Notebooks.RestartKernel(ctx, withTicket(&carrelv1.RestartKernelRequest{Box: ticket.Box, Kernel: kernel}, ticket))
	})
}

// ShutdownKernel ends a kernel.
func (c *Client) ShutdownKernel(ctx context.Context, box, kernel string) error {
	_, err := boxCall(Arriving(ctx), c, box, startFor, func(ctx context.Context, ticket Ticket) (*connect.Response[carrelv1.ShutdownKernelResponse], error) {
		return c.Notebooks.ShutdownKernel(ctx, withTicket(&carrelv1.ShutdownKernelRequest{Box: ticket.Box, Kernel: kernel}, ticket))
	})
	return err
}

// boxCall makes one call for a box with a ticket, again with a new one or when the connection broke, for at most patience.
func boxCall[R any](ctx context.Context, c *Client, box string, patience time.Duration, call func(context.Context, Ticket) (*connect.Response[R], error)) (*R, error) {
	var answer *R
	err := newSession(c, box, Streams{}).call(ctx, patience, func(ctx context.Context, ticket Ticket) error {
		resp, err := call(ctx, ticket)
		if err == nil {
			answer = resp.Msg
		}
		return err
	})
	return answer, err
}

// WatchOptions says which events of notebooks are wanted.
type WatchOptions struct {
	Box string
	// After, Path and Execution are those of carrel.v1.WatchNotebooksRequest.
	After, Path, Execution string
	// ReconnectFor is how long a broken connection is tried again; default 5 minutes.
	ReconnectFor time.Duration
	// OnLink is called, by the caller's goroutine, when the connection broke and when it is back.
	OnLink func(state Link, err error)
}

// ErrWatched ends a watch without an error.
var ErrWatched = errors.New("what was wanted has been seen")

// WatchNotebooks calls each for every event, in order and each once, until each fails, with ErrWatched without an error, or ctx ends. A connection that
// breaks, also because the box is paused, is made again and goes on behind the last event.
func (c *Client) WatchNotebooks(ctx context.Context, o WatchOptions, each func(*carrelv1.NotebookEvent) error) error {
	patience := o.ReconnectFor
	if patience == 0 {
		patience = defaultReconnect
	}
	moved, down := int64(0), false
	err := c.persist(ctx, o.Box, patience, func() int64 { return moved }, func(ctx context.Context, ticket Ticket) error {
		err := c.watchNotebooks(ctx, ticket, &o, func(event *carrelv1.NotebookEvent) error {
			moved++
			if down && o.OnLink != nil {
				o.OnLink(LinkUp, nil)
			}
			down = false
			if err := each(event); err != nil {
				return localError{err}
			}
			return nil
		})
		var local localError
		if !errors.As(err, &local) && moved > 0 && !down && ctx.Err() == nil {
			down = true
			if o.OnLink != nil {
				o.OnLink(LinkDown, err)
			}
		}
		return err
	})
	if errors.Is(err, ErrWatched) {
		return nil
	}
	return err
}

// watchNotebooks is one connection of WatchNotebooks; it moves o.After on.
func (c *Client) watchNotebooks(ctx context.Context, ticket Ticket, o *WatchOptions, each func(*carrelv1.NotebookEvent) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	watchdog := time.AfterFunc(silence, cancel)
	defer watchdog.Stop()
	stream, err := c.Notebooks.WatchNotebooks(ctx, withTicket(&carrelv1.WatchNotebooksRequest{
		Box: ticket.Box, After: o.After, Path: o.Path, Execution: o.Execution,
	}, ticket))
	if err != nil {
		return err
	}
	defer func() {
		cancel() // first: Close would else read what is still to come
		_ = stream.Close()
	}()
	for stream.Receive() {
		watchdog.Stop() // what is done with an event may take as long as it likes
		event := stream.Msg()
		if err := each(event); err != nil {
			return err
		}
		if event.GetCursor() != "" {
			o.After = event.GetCursor()
		}
		watchdog.Reset(silence)
	}
	if err := stream.Err(); err != nil && !errors.Is(err, context.Canceled) && carrel.CodeOf(err) != carrel.CodeAborted {
		return err
	}
	return errCut
}
