package gateway

import (
	"context"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
)

const (
	defaultUsage = 2 * time.Second
	maxUsage     = time.Minute // between two of a channel
	usageTimeout = 10 * time.Second
)

// files passes the changes of files on. A connection to the box that breaks is made again; what was missed meanwhile is an overflow.
func (w *watch) files(request *carrelv1.WatchFilesRequest) error {
	request = bare(request)
	again := newRetry(w.stream.g, w.stream.pass)
	ready := false // the client has been told so
	for {
		progress, err := w.filesOnce(request, &ready)
		if err := again.wait(w.ctx, err, progress); err != nil {
			return err
		}
	}
}

// filesOnce is one stream of changes. It always ends with an error.
func (w *watch) filesOnce(request *carrelv1.WatchFilesRequest, ready *bool) (progress bool, err error) {
	st := w.stream
	ctx, cancel := context.WithCancel(w.ctx)
	defer cancel()
	stream, err := st.agent.files.Watch(ctx, connect.NewRequest(request))
	if err != nil {
		return false, fromAgent(ctx, st.pass.Box, err)
	}
	defer func() {
		cancel() // first: Close would else read what is still to come
		_ = stream.Close()
	}()
	for stream.Receive() {
		event := stream.Msg()
		progress = true
		if event.GetKind() == "ready" {
			if *ready {
				event.Kind = "overflow"
			}
			*ready = true
		}
		if err := w.send(&carrelv1.StreamEvent{Event: &carrelv1.StreamEvent_File{File: event}}, nil); err != nil {
			return progress, err
		}
	}
	return progress, streamEnd(ctx, st.pass.Box, stream.Err())
}

// usage tells again and again what the box uses, and on which ports programs listen when that has changed. While the box does not
// answer nothing is told.
func (w *watch) usage(request *carrelv1.WatchUsage) error {
	st := w.stream
	every := defaultUsage
	if s := request.GetSeconds(); s != 0 {
		every = min(max(time.Duration(s)*time.Second, time.Second), maxUsage)
	}
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	again := newRetry(st.g, st.pass)
	var before *carrelv1.ListBoxListenersResponse
	for {
		listeners, err := w.usageOnce(before)
		if err == nil {
			before = listeners
			again = newRetry(st.g, st.pass)
			select {
			case <-ticker.C:
			case <-w.ctx.Done():
				return context.Cause(w.ctx)
			}
			continue
		}
		if err := again.wait(w.ctx, err, false); err != nil {
			return err
		}
	}
}

// usageOnce asks once and tells what is to be told. before are the listeners that were told last; nil: none were.
func (w *watch) usageOnce(before *carrelv1.ListBoxListenersResponse) (*carrelv1.ListBoxListenersResponse, error) {
	st := w.stream
	ctx, cancel := context.WithTimeout(w.ctx, usageTimeout)
	defer cancel()
	usage, err := st.agent.usage(ctx, st.g.now)
	if err != nil {
		return nil, fromAgent(ctx, st.pass.Box, err)
	}
	if err := w.send(&carrelv1.StreamEvent{Event: &carrelv1.StreamEvent_Usage{Usage: usage}}, nil); err != nil {
		return nil, err
	}
	listeners, err := st.g.ports.listeners(ctx, st.agent, st.pass.Box, st.origin)
	if err != nil {
		return nil, err
	}
	if before == nil || !proto.Equal(before, listeners) {
		err = w.send(&carrelv1.StreamEvent{Event: &carrelv1.StreamEvent_Listeners{Listeners: listeners}}, nil)
	}
	return listeners, err
}
