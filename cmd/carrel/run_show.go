package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/term"
	"google.golang.org/protobuf/types/known/structpb"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/client"
)

// interruptTime is how long code whose time is over may take to end when it is interrupted.
const interruptTime = 15 * time.Second

// interrupted is the exit code of who left with Ctrl-C, as shells have it.
const interrupted = 130

// runner follows executions and shows what they put out. The goroutine of run owns what is not said to be guarded.
type runner struct {
	a        *app
	c        *client.Client
	options  runOptions
	box      string
	notebook string

	order  []string // ids, in the order of their turns
	states map[string]carrelv1.ExecutionState
	fresh  bool // the line on standard output is at its beginning
	left   bool // what was begun goes on without us

	cancel context.CancelCauseFunc // ends the watching
	lines  chan string             // answers that were typed
	asked  string                  // the execution that asks; empty: none does
	reader *bufio.Reader

	mu       sync.Mutex // guards what follows
	kernel   string     // to be interrupted
	signals  int
	timedOut bool
}

func newRunner(a *app, c *client.Client, o runOptions) *runner {
	return &runner{a: a, c: c, options: o, states: map[string]carrelv1.ExecutionState{}, fresh: true, lines: make(chan string, 1)}
}

var errLeft = errors.New("left running")

// watchSignals has the first interrupt be one of the code and the second end the watching, which ctx tells.
func (r *runner) watchSignals() (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(context.Background())
	r.cancel = cancel
	caught := make(chan os.Signal, 4)
	signal.Notify(caught, os.Interrupt, syscall.SIGTERM)
	done := make(chan struct{})
	var wait sync.WaitGroup
	wait.Go(func() {
		for {
			select {
			case s := <-caught:
				r.mu.Lock()
				r.signals++
				first := r.signals == 1 && s == os.Interrupt && r.kernel != ""
				r.mu.Unlock()
				if !first {
					cancel(errLeft)
					return
				}
				r.note("interrupted; Ctrl-C again leaves it running")
				wait.Go(func() { r.interrupt(ctx) })
			case <-done:
				return
			}
		}
	})
	return ctx, func() {
		signal.Stop(caught)
		close(done)
		cancel(nil)
		wait.Wait()
	}
}

func (r *runner) interrupt(ctx context.Context) {
	r.mu.Lock()
	kernel := r.kernel
	r.mu.Unlock()
	if _, err := r.c.Interrupt(ctx, r.box, kernel); err != nil && ctx.Err() == nil {
		r.note("it could not be interrupted: " + err.Error())
	}
}

// note says something of Carrel's own.
func (r *runner) note(text string) { fmt.Fprintln(r.a.stderr, "carrel: "+printable(text)) }

// expect waits for the end of an execution.
func (r *runner) expect(e *carrelv1.Execution) {
	r.order = append(r.order, e.GetId())
	r.states[e.GetId()] = e.GetState()
	r.mu.Lock()
	r.kernel = e.GetKernel()
	r.mu.Unlock()
}

func ended(s carrelv1.ExecutionState) bool {
	return s >= carrelv1.ExecutionState_EXECUTION_STATE_OK
}

func (r *runner) allEnded() bool {
	for _, s := range r.states {
		if !ended(s) {
			return false
		}
	}
	return true
}

// watch shows what comes until everything has ended.
func (r *runner) watch(ctx context.Context, o client.WatchOptions) error {
	if r.allEnded() {
		return nil
	}
	if r.options.timeout > 0 {
		timer := time.AfterFunc(r.options.timeout, func() {
			r.mu.Lock()
			r.timedOut = true
			r.mu.Unlock()
			r.note("its time is over; it is interrupted")
			r.interrupt(ctx)
		})
		defer timer.Stop()
		deaf := time.AfterFunc(r.options.timeout+interruptTime, func() { r.cancel(errLeft) })
		defer deaf.Stop()
	}
	link := &linkWatch{a: r.a, leaves: true}
	o.OnLink = link.set
	defer link.end()
	inner, cancel := context.WithCancel(ctx)
	defer cancel()
	events := make(chan *carrelv1.NotebookEvent)
	over := make(chan error, 1)
	go func() {
		over <- r.c.WatchNotebooks(inner, o, func(event *carrelv1.NotebookEvent) error {
			select {
			case events <- event:
				return nil
			case <-inner.Done():
				return client.ErrWatched
			}
		})
	}()
	err := r.take(inner, events, over)
	if cause := context.Cause(ctx); errors.Is(cause, errLeft) {
		return r.leave()
	}
	return err
}

// take takes events and typed answers until everything has ended.
func (r *runner) take(ctx context.Context, events <-chan *carrelv1.NotebookEvent, over <-chan error) error {
	for {
		select {
		case event := <-events:
			if err := r.event(ctx, event); err != nil {
				return err
			}
			if r.allEnded() {
				return nil
			}
		case line := <-r.lines:
			r.answer(ctx, line)
		case err := <-over:
			return err
		}
	}
}

// leave ends the watching, and says how to come back.
func (r *runner) leave() error {
	r.left = true
	r.endLine()
	for _, id := range r.order {
		if !ended(r.states[id]) {
			r.note(fmt.Sprintf("it goes on in the box; `carrel run %s --attach %s` follows it", r.box, id))
			break
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.timedOut {
		return exitError(1)
	}
	return exitError(interrupted)
}

func (r *runner) event(ctx context.Context, event *carrelv1.NotebookEvent) error {
	id := event.GetExecution()
	if event.GetGap() {
		r.note("some of what it put out is no longer kept")
		return r.refresh(ctx)
	}
	if _, ours := r.states[id]; !ours {
		return nil
	}
	switch e := event.GetEvent().(type) {
	case *carrelv1.NotebookEvent_Started:
		r.states[id] = carrelv1.ExecutionState_EXECUTION_STATE_RUNNING
		r.progress(id)
	case *carrelv1.NotebookEvent_Output:
		return r.output(e.Output)
	case *carrelv1.NotebookEvent_DisplayUpdate:
		return r.show(e.DisplayUpdate.GetData().GetFields())
	case *carrelv1.NotebookEvent_Truncated:
		r.truncated(e.Truncated.GetFile(), e.Truncated.GetBytes())
	case *carrelv1.NotebookEvent_Question:
		r.ask(ctx, id, e.Question)
	case *carrelv1.NotebookEvent_Answered:
		r.asked = ""
	case *carrelv1.NotebookEvent_Ended:
		r.ended(e.Ended)
	}
	return nil
}

// refresh looks which executions ended in what was missed.
func (r *runner) refresh(ctx context.Context) error {
	for _, id := range r.order {
		if ended(r.states[id]) {
			continue
		}
		e, err := r.c.GetExecution(ctx, r.box, id)
		if err != nil {
			return err
		}
		if ended(e.GetState()) {
			r.ended(e)
		}
	}
	return nil
}

// progress tells a person which cell is run.
func (r *runner) progress(id string) {
	if r.notebook == "" || r.options.json || !isTerminal(r.a.stderr) {
		return
	}
	r.endLine()
	fmt.Fprintf(r.a.stderr, "── cell %d of %d\n", slices.Index(r.order, id)+1, len(r.order))
}

// output shows an output as nbformat has it.
func (r *runner) output(output *structpb.Struct) error {
	fields := output.GetFields()
	switch fields["output_type"].GetStringValue() {
	case "stream":
		text := joined(fields["text"])
		if fields["name"].GetStringValue() == "stderr" {
			return r.print(r.a.stderr, text)
		}
		return r.print(r.a.stdout, text)
	case "error":
		var lines []string
		for _, line := range fields["traceback"].GetListValue().GetValues() {
			lines = append(lines, line.GetStringValue())
		}
		text := strings.Join(lines, "\n")
		if text == "" {
			text = fields["ename"].GetStringValue() + ": " + fields["evalue"].GetStringValue()
		}
		r.endLine()
		if !isTerminal(r.a.stderr) {
			text = ansi.ReplaceAllString(text, "")
		}
		return r.print(r.a.stderr, text+"\n")
	}
	return r.show(fields["data"].GetStructValue().GetFields())
}

// show shows the richest form of a result that is fit for a terminal: pictures are named, the rest is text.
func (r *runner) show(data map[string]*structpb.Value) error {
	r.endLine()
	var kinds []string
	for kind := range data {
		kinds = append(kinds, kind)
	}
	slices.Sort(kinds)
	pictures := 0
	for _, kind := range kinds {
		if strings.HasPrefix(kind, "image/") {
			pictures++
			text := joined(data[kind])
			size := len(text)
			if kind != "image/svg+xml" {
				size = len(strings.TrimRight(strings.Join(strings.Fields(text), ""), "=")) * 3 / 4
			}
			if err := r.print(r.a.stdout, fmt.Sprintf("[%s %s]\n", printable(kind), kilobytes(size))); err != nil {
				return err
			}
		}
	}
	if pictures > 0 {
		return nil // the text of a picture says no more
	}
	if text, ok := data["text/plain"]; ok {
		return r.print(r.a.stdout, strings.TrimSuffix(joined(text), "\n")+"\n")
	}
	if len(kinds) > 0 {
		return r.print(r.a.stdout, "["+printable(strings.Join(kinds, ", "))+"]\n")
	}
	return nil
}

func kilobytes(n int) string {
	if n < 1000 {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%d kB", (n+500)/1000)
}

// joined is text that a notebook may have as one string or as lines.
func joined(value *structpb.Value) string {
	if list := value.GetListValue(); list != nil {
		var all strings.Builder
		for _, line := range list.GetValues() {
			all.WriteString(line.GetStringValue())
		}
		return all.String()
	}
	return value.GetStringValue()
}

// ansi is what colours text in a terminal.
var ansi = regexp.MustCompile("\x1b\\[[0-9;:?]*[ -/]*[@-~]")

func (r *runner) print(w io.Writer, text string) error {
	if r.options.json || text == "" {
		return nil
	}
	if w == r.a.stdout {
		r.fresh = strings.HasSuffix(text, "\n")
	}
	_, err := io.WriteString(w, text)
	return err
}

// endLine begins a new line, if the last one on standard output was not ended.
func (r *runner) endLine() {
	if !r.fresh {
		_ = r.print(r.a.stdout, "\n")
	}
}

func (r *runner) truncated(file string, bytes int64) {
	if file != "" {
		r.endLine()
		r.note(fmt.Sprintf("there is more output than is kept; all of it is in %s in the box (`carrel cp %s:%s .`)", file, r.box, file))
	} else if bytes > 0 {
		r.note(fmt.Sprintf("%d bytes of output are not kept", bytes))
	}
}

func (r *runner) ended(e *carrelv1.Execution) {
	r.states[e.GetId()] = e.GetState()
	if r.asked == e.GetId() {
		r.asked = ""
	}
	if e.GetState() == carrelv1.ExecutionState_EXECUTION_STATE_LOST {
		r.endLine()
		r.note("it did not run to its end: " + e.GetMessage())
	}
}

// ask asks what code asks for.
func (r *runner) ask(ctx context.Context, id string, q *carrelv1.InputQuestion) {
	if r.options.json {
		fmt.Fprint(r.a.stderr, q.GetPrompt())
	} else {
		_ = r.print(r.a.stdout, q.GetPrompt())
	}
	waiting := r.asked != ""
	r.asked = id
	if waiting {
		return // what is typed answers the newer question
	}
	if r.reader == nil {
		r.reader = bufio.NewReader(r.a.stdin)
	}
	go func() { // a read that nobody ends is left behind when all has ended
		line, err := r.readAnswer(q.GetPassword())
		if err != nil && line == "" {
			r.note("it asks for input, and standard input has ended; it is interrupted")
			r.interrupt(ctx)
			return
		}
		select {
		case r.lines <- strings.TrimRight(line, "\r\n"):
		case <-ctx.Done():
		}
	}()
}

func (r *runner) readAnswer(hidden bool) (string, error) {
	if file, ok := r.a.stdin.(*os.File); ok && hidden && term.IsTerminal(int(file.Fd())) {
		text, err := term.ReadPassword(int(file.Fd()))
		fmt.Fprintln(r.a.stderr)
		return string(text), err
	}
	return r.reader.ReadString('\n')
}

func (r *runner) answer(ctx context.Context, line string) {
	id := r.asked
	r.asked, r.fresh = "", true
	if id == "" {
		return // somebody else was faster
	}
	if err := r.c.AnswerInput(ctx, r.box, id, line); err != nil && carrel.ReasonOf(err) != "no_question" {
		r.note("the answer could not be given: " + err.Error())
	}
}

// finish tells how it ended by the exit code.
func (r *runner) finish() error {
	r.endLine()
	failed, unrun := false, 0
	for _, state := range r.states {
		failed = failed || state != carrelv1.ExecutionState_EXECUTION_STATE_OK
		if state == carrelv1.ExecutionState_EXECUTION_STATE_CANCELLED {
			unrun++
		}
	}
	if unrun > 0 {
		r.note(fmt.Sprintf("cells that were not run: %d", unrun))
	}
	if r.options.json {
		if err := r.showJSON(); err != nil {
			return err
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if failed || r.timedOut {
		return exitError(1)
	}
	return nil
}

// showJSON prints the executions with their outputs.
func (r *runner) showJSON() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	all := &carrelv1.ExecuteResponse{Done: true}
	for _, id := range r.order {
		e, err := r.c.GetExecution(ctx, r.box, id)
		if err != nil {
			return err
		}
		all.Executions = append(all.Executions, e)
	}
	text, err := toJSON(all)
	if err != nil {
		return err
	}
	_, err = r.a.stdout.Write(text)
	return err
}

func isTerminal(w io.Writer) bool {
	file, ok := w.(*os.File)
	return ok && term.IsTerminal(int(file.Fd()))
}
