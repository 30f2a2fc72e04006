package client

import (
	"context"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/carrel"
)

// LogOptions of Logs.
type LogOptions struct {
	Streams // Stdout and Stderr
	Box     string
	// Process is the process whose output is wanted; empty: the newest that the agent remembers.
	Process string
	// Since is the first byte wanted of each stream.
	Since int64
	// Follow goes on until the process has ended.
	Follow bool
}

// Logs writes what the box keeps of a process's output. It is not an error that the process failed.
func (c *Client) Logs(ctx context.Context, o LogOptions) error {
	if o.Process == "" {
		list, err := c.ListProcesses(ctx, o.Box)
		if err != nil {
			return err
		}
		if len(list) == 0 {
			return carrel.Errorf(carrel.CodeNotFound, "process_not_found", "nothing was started in box %s that it remembers: `carrel exec %s -- COMMAND` starts something", o.Box, o.Box)
		}
		newest := list[0]
		for _, p := range list {
			if !p.GetStartTime().AsTime().Before(newest.GetStartTime().AsTime()) {
				newest = p
			}
		}
		o.Process = newest.GetId()
	}
	if o.Follow {
		_, err := c.Attach(ctx, AttachOptions{Box: o.Box, Process: o.Process, StdoutOffset: o.Since, StderrOffset: o.Since, Streams: o.Streams})
		return err
	}
	s := newSession(c, o.Box, o.Streams)
	s.process = o.Process
	s.offsets[carrelv1.Stream_STREAM_STDOUT], s.offsets[carrelv1.Stream_STREAM_STDERR] = o.Since, o.Since
	return c.persist(ctx, o.Box, startFor, func() int64 { return s.offsets[1] + s.offsets[2] }, func(ctx context.Context, ticket Ticket) error {
		stream, err := c.Processes.AttachProcess(ctx, withTicket(&carrelv1.AttachProcessRequest{
			Box: ticket.Box, Process: o.Process,
			StdoutOffset: s.offsets[carrelv1.Stream_STREAM_STDOUT], StderrOffset: s.offsets[carrelv1.Stream_STREAM_STDERR],
		}, ticket))
		if err != nil {
			return err
		}
		var until *carrelv1.Process // what there was when it began
		for stream.Receive() {
			switch e := stream.Msg().GetEvent().(type) {
			case *carrelv1.ProcessEvent_Started:
				until = e.Started
			case *carrelv1.ProcessEvent_Output:
				err = s.output(e.Output)
			case *carrelv1.ProcessEvent_Gap:
				err = s.gap(e.Gap.GetStream(), e.Gap.GetNextOffset())
			case *carrelv1.ProcessEvent_Exited:
				return nil
			}
			if err != nil {
				return localError{err}
			}
			if until != nil && s.offsets[carrelv1.Stream_STREAM_STDOUT] >= until.GetStdoutBytes() && s.offsets[carrelv1.Stream_STREAM_STDERR] >= until.GetStderrBytes() {
				return nil
			}
		}
		if err := stream.Err(); err != nil {
			return err
		}
		return errCut
	})
}
