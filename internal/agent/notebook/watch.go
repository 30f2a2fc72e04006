package notebook

import (
	"context"
	"errors"
	"time"

	"google.golang.org/protobuf/proto"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/agent/notebook/journal"
	"carrel.dev/carrel/internal/carrel"
)

// Watch sends the events after a cursor and those that come, until ctx ends or send fails. A watcher that is slow is behind, and never keeps anything
// waiting.
func (s *Service) Watch(ctx context.Context, request *carrelv1.WatchNotebooksRequest, send func(*carrelv1.NotebookEvent) error) error {
	if err := s.open(); err != nil {
		return err
	}
	path := ""
	if request.GetPath() != "" {
		var err error
		if path, err = s.path(request.GetPath()); err != nil {
			return err
		}
		path = carrel.EncodeFileName(path) // as events have it
	}
	reader, ok := s.journal.Read(request.GetAfter())
	if !ok {
		return carrel.Errorf(carrel.CodeInvalid, "bad_cursor", "%q is no cursor; give the one of the last event, 0 for all that are kept, or nothing for those from now on", cutText(request.GetAfter(), 100))
	}
	defer reader.Close()
	silent := time.NewTimer(keepAlive)
	defer silent.Stop()
	live := false
	for {
		entries, gap, wait, err := reader.Next()
		switch {
		case errors.Is(err, journal.ErrClosed):
			return carrel.Errorf(carrel.CodeUnavailable, "box_stopping", "the box is being stopped")
		case err != nil:
			return err
		case gap != "":
			err = send(&carrelv1.NotebookEvent{Cursor: gap, Event: &carrelv1.NotebookEvent_Gap{Gap: true}})
		case wait == nil:
			err = sendEntries(entries, path, request.GetExecution(), send)
		case !live:
			live = true
			err = send(&carrelv1.NotebookEvent{Event: &carrelv1.NotebookEvent_Live{Live: true}})
		default:
			select {
			case <-wait:
				continue
			case <-silent.C:
				err = send(&carrelv1.NotebookEvent{Event: &carrelv1.NotebookEvent_KeepAlive{KeepAlive: true}})
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		if err != nil {
			return err
		}
		silent.Reset(keepAlive)
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

func sendEntries(entries []journal.Entry, path, execution string, send func(*carrelv1.NotebookEvent) error) error {
	for _, entry := range entries {
		event := eventOf(entry)
		if event == nil || path != "" && event.GetPath() != path || execution != "" && event.GetExecution() != execution {
			continue
		}
		if err := send(event); err != nil {
			return err
		}
	}
	return nil
}

// eventOf makes the event of an entry; nil: there is none in it.
func eventOf(entry journal.Entry) *carrelv1.NotebookEvent {
	var event *carrelv1.NotebookEvent
	if known, ok := entry.Value.(*carrelv1.NotebookEvent); ok {
		event = &carrelv1.NotebookEvent{
			Time: known.GetTime(), Path: known.GetPath(), Cell: known.GetCell(), Execution: known.GetExecution(), Kernel: known.GetKernel(), Event: known.GetEvent(),
		}
	} else {
		event = &carrelv1.NotebookEvent{}
		if isNote(entry.Data) || proto.Unmarshal(entry.Data, event) != nil {
			return nil
		}
	}
	event.Cursor = entry.Cursor
	return event
}

// lose tells of an execution that ended with the box. s.mu is held.
func (s *Service) lose(shown *carrelv1.Execution) {
	e := &execution{
		id: shown.GetId(), kernel: shown.GetKernel(), path: carrel.DecodeFileName(shown.GetPath()), cell: shown.GetCell(), code: shown.GetCode(), startedBy: shown.GetStartedBy(),
		queuedAt: shown.GetQueueTime().AsTime(), outputs: &outputs{}, done: make(chan struct{}), state: lost, endedAt: s.now(),
		message: "the box was stopped or failed before it had ended",
	}
	close(e.done)
	s.emit(e.event(&carrelv1.NotebookEvent{Event: &carrelv1.NotebookEvent_Ended{Ended: e.show(false)}}))
}

// replay makes an execution from the journal; nil: it is not in what is kept of it.
func (s *Service) replay(id string) *carrelv1.Execution {
	reader, ok := s.journal.Read("0")
	if !ok || id == "" {
		return nil
	}
	defer reader.Close()
	var found *carrelv1.Execution
	kept := &outputs{}
	for {
		entries, _, wait, err := reader.Next()
		if err != nil || wait != nil {
			break
		}
		for _, entry := range entries {
			event := eventOf(entry)
			if found != nil && event.GetDisplayUpdate() != nil && event.GetExecution() != id && event.GetKernel() == found.GetKernel() {
				kept.apply(event)
			}
			if event.GetExecution() == id {
				if e := event.GetQueued(); e != nil && found == nil {
					found = proto.CloneOf(e)
				}
				if e := event.GetEnded(); e != nil {
					code := found.GetCode()
					found = proto.CloneOf(e)
					if found.GetCode() == "" {
						found.Code = code
					}
				}
				kept.apply(event)
			}
		}
	}
	if found == nil {
		return nil
	}
	for _, one := range kept.list {
		found.Outputs = append(found.Outputs, one.wire())
	}
	return found
}

// apply does what an event says to outputs.
func (o *outputs) apply(event *carrelv1.NotebookEvent) {
	if clear := event.GetClearOutput(); clear != nil {
		o.clear(clear.GetWait())
	}
	if update := event.GetDisplayUpdate(); update != nil {
		for _, one := range o.list {
			if one.display != "" && one.display == update.GetDisplayId() {
				one.updated(fromStruct(update.GetData()), fromStruct(update.GetMetadata()))
			}
		}
	}
	shown := event.GetOutput()
	if shown == nil {
		return
	}
	fields := fromStruct(shown)
	if fields["output_type"] == "stream" {
		name, _ := fields["name"].(string)
		text, _ := fields["text"].(string)
		o.settle()
		last := len(o.list) - 1
		if last < 0 || o.list[last].stream != name {
			o.list = append(o.list, &output{stream: name})
			last++
		}
		o.list[last].text.WriteString(text)
		return
	}
	one := &output{fields: fields}
	if transient, ok := fields["transient"].(map[string]any); ok {
		one.display, _ = transient["display_id"].(string)
		delete(fields, "transient")
	}
	o.settle()
	o.list = append(o.list, one)
}
