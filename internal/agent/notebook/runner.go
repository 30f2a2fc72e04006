package notebook

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"time"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/agent/kernel"
	"carrel.dev/carrel/internal/carrel"
)

const (
	// pace is the least time between two events with text of an execution.
	pace = 25 * time.Millisecond
	// eventText is the most text of one event, in bytes.
	eventText = 256 << 10
	// runnerQueue is how much a kernel may be ahead of its runner, in bytes. Beyond it waits.
	runnerQueue = 16 << 20
	// maxQueued executions of one kernel.
	maxQueued = 10_000
	// keptRequests is how many of the last executions of a kernel still get output, such as that of threads, and keptDisplays how many
	// outputs can be updated.
	keptRequests = 64
	keptDisplays = 4096
)

// runner executes for one kernel. Its fields are guarded by Service.mu.
type runner struct {
	s       *Service
	k       *kernel.Kernel
	client  *kernel.Client
	session string

	queue    []*execution
	current  *execution
	reviving bool
	died     bool // the kernel's process has ended by itself; what was queued since waits for the next
	requests map[string]*execution
	order    []string // of requests, oldest first
	displays map[string][]*output
	// shown are all of displays, oldest first, and shownBytes what they have.
	shown      []*output
	shownBytes int64
}

// runner gives the one of a kernel. s.mu is held.
func (s *Service) runner(k *kernel.Kernel) (*runner, error) {
	if r := s.runners[k.ID()]; r != nil {
		return r, nil
	}
	session := kernel.NewID()
	client, err := k.Connect(kernel.ClientConfig{Session: session, QueueBytes: runnerQueue, Patient: true})
	if err != nil {
		return nil, err
	}
	r := &runner{s: s, k: k, client: client, session: session, requests: map[string]*execution{}, displays: map[string][]*output{}}
	s.runners[k.ID()] = r
	s.wg.Go(r.run)
	return r, nil
}

// run takes what the kernel says until it is gone.
func (r *runner) run() {
	for {
		got, err := r.client.Receive(r.s.ctx)
		if err != nil {
			break
		}
		if got.Channel == kernel.State {
			r.changed(got.Info)
			continue
		}
		r.take(got)
	}
	r.client.Close()
	r.s.mu.Lock()
	defer r.s.mu.Unlock()
	delete(r.s.runners, r.k.ID())
	why := "its kernel was shut down"
	if r.s.ctx.Err() != nil {
		why = "the box was stopped"
	}
	r.drop(lost, why)
}

// changed follows the kernel's state.
func (r *runner) changed(info kernel.Info) {
	r.s.mu.Lock()
	defer r.s.mu.Unlock()
	switch info.Phase {
	case kernel.Dead:
		r.reviving, r.died = false, true
		r.drop(lost, "the kernel died: "+info.Message)
		r.displays, r.shown, r.shownBytes = map[string][]*output{}, nil, 0
	case kernel.Restarting: // by whoever
		r.displays, r.shown, r.shownBytes = map[string][]*output{}, nil, 0
		why := "the kernel was restarted"
		if !r.died {
			r.cancelBefore(info.Since, why)
		}
		if e := r.current; e != nil && e.process <= info.Run {
			r.finish(e, lost, why)
		}
	case kernel.Idle, kernel.Busy:
		r.reviving, r.died = false, false
		r.kick()
	}
}

// drop ends the current execution and cancels all others. s.mu is held.
func (r *runner) drop(state carrelv1.ExecutionState, why string) int {
	count := r.cancel(why)
	if e := r.current; e != nil {
		count++
		r.finish(e, state, why)
	}
	return count
}

// cancel cancels what waits. s.mu is held.
func (r *runner) cancel(why string) int {
	return r.cancelBefore(time.Time{}, why)
}

// cancelBefore cancels what was queued before a time; the zero time: all. s.mu is held.
func (r *runner) cancelBefore(at time.Time, why string) int {
	var waiting, later []*execution
	for _, e := range r.queue {
		if at.IsZero() || e.queuedAt.Before(at) {
			waiting = append(waiting, e)
		} else {
			later = append(later, e)
		}
	}
	r.queue = later
	for _, e := range waiting {
		r.finish(e, cancelled, why)
	}
	return len(waiting)
}

// kick has the kernel execute the next, if it can. s.mu is held.
func (r *runner) kick() {
	if r.current != nil || len(r.queue) == 0 {
		return
	}
	info := r.k.Info()
	switch info.Phase {
	case kernel.Idle, kernel.Busy, kernel.Unresponsive:
	case kernel.Dead:
		r.revive()
		return
	default:
		return // changed comes back
	}
	e := r.queue[0]
	r.queue = r.queue[1:]
	request, err := kernel.NewMessage("execute_request", r.session, map[string]any{
		"code": e.code, "silent": false, "store_history": true, "user_expressions": map[string]any{}, "allow_stdin": e.allowInput, "stop_on_error": false,
	})
	if err == nil {
		e.request, e.process = request.Head().ID, info.Run
		r.current = e
		r.remember(e)
		err = r.client.Send(kernel.Shell, request)
	}
	if err != nil {
		if carrel.ReasonOf(err) == "kernel_not_ready" { // it died just now, which is told soon
			r.queue = append([]*execution{e}, r.queue...)
			r.current = nil
			return
		}
		r.finish(e, lost, "the kernel did not take it: "+messageOf(err))
	}
}

// revive starts a dead kernel again. s.mu is held.
func (r *runner) revive() {
	if r.reviving {
		return
	}
	r.reviving = true
	r.s.wg.Go(func() {
		if err := r.k.Revive(r.s.ctx); err != nil {
			r.s.mu.Lock()
			defer r.s.mu.Unlock()
			r.reviving = false
			r.cancel("its kernel was dead and could not be started again: " + messageOf(err))
		}
	})
}

func messageOf(err error) string {
	var own *carrel.Error
	if errors.As(err, &own) {
		return own.Message
	}
	return err.Error()
}

func (r *runner) remember(e *execution) {
	r.requests[e.request] = e
	r.order = append(r.order, e.request)
	if len(r.order) > keptRequests {
		delete(r.requests, r.order[0])
		r.order = r.order[1:]
	}
}

// take takes one message of the kernel.
func (r *runner) take(got kernel.Received) {
	message := got.Message
	r.s.mu.Lock()
	e := r.requests[message.ParentHead().ID]
	r.s.mu.Unlock()
	if e == nil {
		return // somebody else's
	}
	switch got.Channel {
	case kernel.Shell:
		r.replied(e, message)
	case kernel.Stdin:
		r.asked(e, message)
	case kernel.IOPub:
		r.published(e, message)
	}
}

func (r *runner) replied(e *execution, message *kernel.Message) {
	var content struct {
		Status  string `json:"status"`
		Count   int32  `json:"execution_count"`
		Payload []struct {
			Source string          `json:"source"`
			Data   json.RawMessage `json:"data"`
		} `json:"payload"`
	}
	_ = json.Unmarshal(message.Content, &content)
	r.s.mu.Lock()
	defer r.s.mu.Unlock()
	if r.current != e {
		return
	}
	state := succeeded
	switch content.Status {
	case "ok":
	case "aborted", "abort":
		state = cancelled
	default:
		state = failed
	}
	if e.count == 0 && content.Count > 0 {
		e.count = content.Count
	}
	for _, payload := range content.Payload { // a pager's text, such as that of help
		if data, err := decodeObject(payload.Data); payload.Source == "page" && err == nil {
			r.show(e, &output{fields: map[string]any{"output_type": "display_data", "data": data, "metadata": map[string]any{}}, size: int64(len(payload.Data))})
		}
	}
	e.reply = &state
	r.settle(e)
}

// settle ends an execution of which both the reply and the last output are there. s.mu is held.
func (r *runner) settle(e *execution) {
	if r.current != e || e.reply == nil || !e.idle {
		return
	}
	state, why := *e.reply, ""
	if state == cancelled {
		why = "the kernel did not execute it"
	}
	r.finish(e, state, why)
}

// finish ends an execution, and begins the next. s.mu is held.
func (r *runner) finish(e *execution, state carrelv1.ExecutionState, why string) {
	if e.ended() {
		return
	}
	s := r.s
	r.flush(e)
	if e.timer != nil {
		e.timer.Stop()
	}
	if e.question != nil {
		e.question, e.asked = nil, nil
		s.emit(e.event(&carrelv1.NotebookEvent{Event: &carrelv1.NotebookEvent_Answered{Answered: true}}))
	}
	r.closeSpill(e)
	e.state, e.message, e.endedAt = state, why, s.now()
	if e.request != "" {
		s.lastActive = e.endedAt
	}
	s.emit(e.event(&carrelv1.NotebookEvent{Event: &carrelv1.NotebookEvent_Ended{Ended: e.show(false)}}))
	s.executionEnded(e)
	close(e.done)
	if r.current == e {
		r.current = nil
	}
	if state == failed && e.stopOnError {
		r.cancel("one before it failed")
	}
	r.kick()
}

// event completes an event of an execution.
func (e *execution) event(event *carrelv1.NotebookEvent) *carrelv1.NotebookEvent {
	event.Path, event.Cell, event.Execution, event.Kernel = e.path, e.cell, e.id, e.kernel
	return event
}

func (r *runner) asked(e *execution, message *kernel.Message) {
	if message.Head().Type != "input_request" {
		return
	}
	var content struct {
		Prompt   string `json:"prompt"`
		Password bool   `json:"password"`
	}
	_ = json.Unmarshal(message.Content, &content)
	r.s.mu.Lock()
	defer r.s.mu.Unlock()
	if r.current != e {
		return
	}
	r.flush(e)
	e.question, e.asked = &carrelv1.InputQuestion{Prompt: cutText(content.Prompt, 64<<10), Password: content.Password}, message
	r.s.emit(e.event(&carrelv1.NotebookEvent{Event: &carrelv1.NotebookEvent_Question{Question: e.question}}))
}

// answer gives the kernel what was asked for. s.mu is held.
func (r *runner) answer(e *execution, value string) error {
	reply, err := kernel.NewMessage("input_reply", r.session, map[string]string{"status": "ok", "value": value})
	if err != nil {
		return err
	}
	reply.Parent = e.asked.Header
	if err := r.client.Send(kernel.Stdin, reply); err != nil {
		return err
	}
	e.question, e.asked = nil, nil
	r.s.emit(e.event(&carrelv1.NotebookEvent{Event: &carrelv1.NotebookEvent_Answered{Answered: true}}))
	return nil
}

// published takes a message of iopub.
func (r *runner) published(e *execution, message *kernel.Message) {
	switch message.Head().Type {
	case "stream":
		r.stream(e, message)
		return
	case "status":
		r.status(e, message)
		return
	case "execute_input":
		var content struct {
			Count int32 `json:"execution_count"`
		}
		_ = json.Unmarshal(message.Content, &content)
		r.s.mu.Lock()
		defer r.s.mu.Unlock()
		e.count = max(content.Count, 0)
		r.announce(e)
		return
	case "clear_output":
		var content struct {
			Wait bool `json:"wait"`
		}
		_ = json.Unmarshal(message.Content, &content)
		r.s.mu.Lock()
		defer r.s.mu.Unlock()
		r.flush(e)
		e.outputs.clear(content.Wait)
		r.s.emit(e.event(&carrelv1.NotebookEvent{Event: &carrelv1.NotebookEvent_ClearOutput{ClearOutput: &carrelv1.ClearOutput{Wait: content.Wait}}}))
		r.s.touched(e)
		return
	case "display_data", "execute_result", "error", "update_display_data":
	default:
		return
	}
	one, err := richOutput(message)
	if err != nil {
		one = &output{fields: map[string]any{"output_type": "error", "ename": "BadOutput", "evalue": "the kernel sent an output that cannot be shown: " + err.Error(), "traceback": []any{}}}
	}
	r.s.mu.Lock()
	defer r.s.mu.Unlock()
	if message.Head().Type == "update_display_data" {
		r.update(e, one)
		return
	}
	r.show(e, one)
}

func (r *runner) status(e *execution, message *kernel.Message) {
	var content struct {
		State string `json:"execution_state"`
	}
	_ = json.Unmarshal(message.Content, &content)
	r.s.mu.Lock()
	defer r.s.mu.Unlock()
	switch {
	case e.ended():
	case content.State == "busy" && e.state == queued:
		e.state, e.startedAt = running, r.s.now()
	case content.State == "idle":
		e.idle = true
		r.settle(e)
	}
}

// announce tells that the execution was started, once. s.mu is held.
func (r *runner) announce(e *execution) {
	if e.announced || e.ended() {
		return
	}
	e.announced = true
	if e.state == queued {
		e.state, e.startedAt = running, r.s.now()
	}
	r.s.executionStarted(e)
	r.s.emit(e.event(&carrelv1.NotebookEvent{Event: &carrelv1.NotebookEvent_Started{Started: &carrelv1.ExecutionStarted{ExecutionCount: e.count}}}))
}

// show adds an output. s.mu is held.
func (r *runner) show(e *execution, one *output) {
	r.announce(e)
	r.flush(e)
	if !e.outputs.add(one) {
		r.truncate(e, one.size)
		return
	}
	if one.display != "" {
		r.keep(one)
	}
	r.s.emit(e.event(&carrelv1.NotebookEvent{Event: &carrelv1.NotebookEvent_Output{Output: one.wire()}}))
	r.s.touched(e)
}

// keep has an output updated from now on, in place of the oldest if there are too many. s.mu is held.
func (r *runner) keep(one *output) {
	r.displays[one.display] = append(r.displays[one.display], one)
	r.shown = append(r.shown, one)
	r.shownBytes += one.size
	for len(r.shown) > 1 && (len(r.shown) > keptDisplays || r.shownBytes > maxAllRich) {
		old := r.shown[0]
		r.shown = r.shown[1:]
		r.shownBytes -= old.size
		if rest := slices.DeleteFunc(r.displays[old.display], func(o *output) bool { return o == old }); len(rest) > 0 {
			r.displays[old.display] = rest
		} else {
			delete(r.displays, old.display)
		}
	}
}

// update changes every output with a display_id, whichever cell has it. s.mu is held.
func (r *runner) update(e *execution, one *output) {
	targets := r.displays[one.display]
	if one.display == "" || len(targets) == 0 {
		return
	}
	if one.size > maxRich {
		r.truncate(e, one.size)
		return
	}
	r.flush(e)
	data, metadata := objectOf(one.fields["data"]), objectOf(one.fields["metadata"])
	for _, target := range targets {
		before := target.size
		if !target.resized(one.size) {
			r.truncate(e, one.size)
			return
		}
		r.shownBytes += target.size - before
		target.updated(data, metadata)
	}
	r.s.emit(e.event(&carrelv1.NotebookEvent{Event: &carrelv1.NotebookEvent_DisplayUpdate{DisplayUpdate: &carrelv1.DisplayUpdate{
		DisplayId: one.display, Data: toStruct(data), Metadata: toStruct(metadata),
	}}}))
	r.s.touched(e)
}

// stream takes text.
func (r *runner) stream(e *execution, message *kernel.Message) {
	name, text, ok := message.Stream()
	if !ok || text == "" {
		return
	}
	if name != "stderr" {
		name = "stdout"
	}
	r.s.mu.Lock()
	r.announce(e)
	kept := e.outputs.addText(name, text)
	if kept != "" {
		if e.pending.Len() > 0 && (e.pendingStream != name || e.pending.Len()+len(kept) > eventText) {
			r.flush(e)
		}
		e.pendingStream = name
		e.pending.WriteString(kept)
		switch now := r.s.now(); {
		case now.Sub(e.emitted) >= pace || e.pending.Len() >= eventText || e.ended():
			r.flush(e)
		case e.timer == nil:
			e.timer = time.AfterFunc(pace-now.Sub(e.emitted), func() { r.later(e) })
		}
	}
	file, rest := r.overflow(e, text, kept)
	r.s.mu.Unlock()
	if file != nil {
		file.write(rest)
	}
}

// later puts text into an event that waited for more.
func (r *runner) later(e *execution) {
	r.s.mu.Lock()
	defer r.s.mu.Unlock()
	e.timer = nil
	r.flush(e)
}

// flush puts the text that waits into events. s.mu is held.
func (r *runner) flush(e *execution) {
	if e.pending.Len() == 0 {
		return
	}
	text := e.pending.String()
	e.pending.Reset()
	e.emitted = r.s.now()
	for text != "" {
		part := cutText(text, eventText)
		if part == "" {
			part = text
		}
		text = text[len(part):]
		value := map[string]any{"output_type": "stream", "name": e.pendingStream, "text": part}
		r.s.emit(e.event(&carrelv1.NotebookEvent{Event: &carrelv1.NotebookEvent_Output{Output: toStruct(value)}}))
	}
	r.s.touched(e)
}

// interrupt interrupts the kernel and cancels what waits.
func (r *runner) interrupt(ctx context.Context) (int, error) {
	r.s.mu.Lock()
	count := r.cancel("it was interrupted before it began")
	busy := r.current != nil
	r.s.mu.Unlock()
	if busy {
		count++
	}
	if err := r.k.Interrupt(ctx); err != nil && (busy || count == 0) {
		return count, err
	}
	return count, nil
}
