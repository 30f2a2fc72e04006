package notebook_test

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/durationpb"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/carrel"
)

const (
	stateOK        = carrelv1.ExecutionState_EXECUTION_STATE_OK
	stateError     = carrelv1.ExecutionState_EXECUTION_STATE_ERROR
	stateCancelled = carrelv1.ExecutionState_EXECUTION_STATE_CANCELLED
	stateLost      = carrelv1.ExecutionState_EXECUTION_STATE_LOST
)

// watcher collects events until it is told to stop.
type watcher struct {
	t      *testing.T
	mu     sync.Mutex
	events []*carrelv1.NotebookEvent
	more   chan struct{}
}

func (b *box) watch(request *carrelv1.WatchNotebooksRequest) *watcher {
	b.t.Helper()
	w := &watcher{t: b.t, more: make(chan struct{}, 1)}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = b.Watch(ctx, request, func(event *carrelv1.NotebookEvent) error {
			w.mu.Lock()
			w.events = append(w.events, event)
			w.mu.Unlock()
			select {
			case w.more <- struct{}{}:
			default:
			}
			return nil
		})
	}()
	b.t.Cleanup(func() {
		cancel()
		<-done
	})
	return w
}

// until waits for an event and gives all that came before it, and it.
func (w *watcher) until(what string, is func(*carrelv1.NotebookEvent) bool) []*carrelv1.NotebookEvent {
	w.t.Helper()
	limit := time.NewTimer(patience)
	defer limit.Stop()
	for seen := 0; ; {
		w.mu.Lock()
		events := w.events
		w.mu.Unlock()
		for ; seen < len(events); seen++ {
			if is(events[seen]) {
				return events[:seen+1]
			}
		}
		select {
		case <-w.more:
		case <-limit.C:
			require.FailNow(w.t, "an event did not come", "%s; there were %v", what, events)
		}
	}
}

// start queues code and does not wait.
func (b *box) start(request *carrelv1.ExecuteRequest) []*carrelv1.Execution {
	b.t.Helper()
	response, err := b.Execute(limited(b.t), request, "alice")
	require.NoError(b.t, err)
	return response.GetExecutions()
}

// ended waits for the end of an execution.
func (b *box) ended(w *watcher, id string) *carrelv1.Execution {
	b.t.Helper()
	events := w.until("the end of "+id, func(e *carrelv1.NotebookEvent) bool { return e.GetExecution() == id && e.GetEnded() != nil })
	got, err := b.GetExecution(limited(b.t), &carrelv1.GetExecutionRequest{Execution: id})
	require.NoError(b.t, err)
	require.Equal(b.t, events[len(events)-1].GetEnded().GetState(), got.GetState())
	return got
}

func textOf(e *carrelv1.Execution) string {
	var all strings.Builder
	for _, output := range e.GetOutputs() {
		if text, ok := output.AsMap()["text"].(string); ok {
			all.WriteString(text)
		}
	}
	return all.String()
}

func TestErrorsStopTheQueueOrNot(t *testing.T) {
	b := newBox(t)
	w := b.watch(&carrelv1.WatchNotebooksRequest{After: "0"})
	first := b.start(&carrelv1.ExecuteRequest{Code: "import os, time\nwhile not os.path.exists('go'): time.sleep(0.01)\n1/0"})[0]
	second := b.start(&carrelv1.ExecuteRequest{Code: "print('goes on')"})[0]
	b.put("go", "") // both are queued
	e := b.ended(w, first.GetId())
	require.Equal(t, stateError, e.GetState())
	shown := e.GetOutputs()[0].AsMap()
	require.Equal(t, "error", shown["output_type"])
	require.Equal(t, "ZeroDivisionError", shown["ename"])
	require.NotEmpty(t, shown["traceback"])
	require.Equal(t, "goes on\n", textOf(b.ended(w, second.GetId())))

	first = b.start(&carrelv1.ExecuteRequest{Code: "while not os.path.exists('on'): time.sleep(0.01)\n1/0", StopOnError: true})[0]
	second = b.start(&carrelv1.ExecuteRequest{Code: "print('never')"})[0]
	b.put("on", "")
	require.Equal(t, stateError, b.ended(w, first.GetId()).GetState())
	e = b.ended(w, second.GetId())
	require.Equal(t, stateCancelled, e.GetState())
	require.NotEmpty(t, e.GetMessage())
}

func TestInterruptEndsWhatRunsAndCancelsWhatWaits(t *testing.T) {
	b := newBox(t)
	w := b.watch(&carrelv1.WatchNotebooksRequest{After: "0"})
	first := b.start(&carrelv1.ExecuteRequest{Code: "import time\nprint('on')\ntime.sleep(1000)"})[0]
	second := b.start(&carrelv1.ExecuteRequest{Code: "1"})[0]
	w.until("output", func(e *carrelv1.NotebookEvent) bool { return e.GetOutput() != nil })
	require.Len(t, b.Working(), 1)
	answer, err := b.Interrupt(limited(t), &carrelv1.InterruptRequest{})
	require.NoError(t, err)
	require.Equal(t, int32(2), answer.GetExecutions())
	require.Equal(t, stateError, b.ended(w, first.GetId()).GetState())
	require.Equal(t, stateCancelled, b.ended(w, second.GetId()).GetState())
	require.Equal(t, "3\n", textOf(b.execute(&carrelv1.ExecuteRequest{Code: "print(3)"})), "the kernel goes on")
	require.Empty(t, b.Working())
}

func TestKernelsThatDieAreStartedAgain(t *testing.T) {
	b := newBox(t)
	w := b.watch(&carrelv1.WatchNotebooksRequest{After: "0"})
	first := b.start(&carrelv1.ExecuteRequest{Code: "import os, time\nprint('last words', flush=True)\nwhile not os.path.exists('go'): time.sleep(0.01)\nos.kill(os.getpid(), 9)"})[0]
	second := b.start(&carrelv1.ExecuteRequest{Code: "1"})[0]
	w.until("output", func(e *carrelv1.NotebookEvent) bool { return e.GetOutput() != nil }) // what it has not sent dies with it
	b.put("go", "")
	e := b.ended(w, first.GetId())
	require.Equal(t, stateLost, e.GetState())
	require.Contains(t, e.GetMessage(), "killed")
	require.Contains(t, textOf(e), "last words")
	require.Equal(t, stateCancelled, b.ended(w, second.GetId()).GetState())
	status, err := b.Status()
	require.NoError(t, err)
	require.Equal(t, carrelv1.KernelState_KERNEL_STATE_DEAD, status.GetKernels()[0].GetState())
	require.NotEmpty(t, status.GetKernels()[0].GetMessage())

	e = b.execute(&carrelv1.ExecuteRequest{Code: "print('anew')"})
	require.Equal(t, "anew\n", textOf(e))
	require.Equal(t, int32(1), e.GetExecutionCount())
	status, err = b.Status()
	require.NoError(t, err)
	require.Len(t, status.GetKernels(), 1)
	require.Equal(t, int32(1), status.GetKernels()[0].GetRestarts())
}

func TestRestartLosesWhatRuns(t *testing.T) {
	b := newBox(t)
	w := b.watch(&carrelv1.WatchNotebooksRequest{After: "0"})
	first := b.start(&carrelv1.ExecuteRequest{Code: "x = 1\nprint('on')\nimport time\ntime.sleep(1000)"})[0]
	w.until("output", func(e *carrelv1.NotebookEvent) bool { return e.GetOutput() != nil })
	k, err := b.RestartKernel(limited(t), &carrelv1.RestartKernelRequest{Kernel: first.GetKernel()})
	require.NoError(t, err)
	require.Equal(t, first.GetKernel(), k.GetId())
	require.Equal(t, stateLost, b.ended(w, first.GetId()).GetState())
	require.Equal(t, stateError, b.execute(&carrelv1.ExecuteRequest{Code: "x"}).GetState())
	require.NoError(t, b.ShutdownKernel(limited(t), &carrelv1.ShutdownKernelRequest{Kernel: first.GetKernel()}))
	status, err := b.Status()
	require.NoError(t, err)
	require.Empty(t, status.GetKernels())
}

// TestWhoeverRestartsAKernelEndsWhatRuns promises that no queue stays behind what will never end, also when it was not this service that restarted the
// kernel but, say, a client of Jupyter.
func TestWhoeverRestartsAKernelEndsWhatRuns(t *testing.T) {
	b := newBox(t)
	w := b.watch(&carrelv1.WatchNotebooksRequest{After: "0"})
	first := b.start(&carrelv1.ExecuteRequest{Code: "print('on')\nimport time\ntime.sleep(1000)"})[0]
	second := b.start(&carrelv1.ExecuteRequest{Code: "1"})[0]
	w.until("output", func(e *carrelv1.NotebookEvent) bool { return e.GetOutput() != nil })
	k, err := b.kernels.Get(first.GetKernel())
	require.NoError(t, err)
	require.NoError(t, k.Restart(limited(t)))
	third := b.start(&carrelv1.ExecuteRequest{Code: "print(3)"})[0]
	require.Equal(t, stateLost, b.ended(w, first.GetId()).GetState())
	require.Equal(t, stateCancelled, b.ended(w, second.GetId()).GetState())
	require.Equal(t, "3\n", textOf(b.ended(w, third.GetId())), "what was asked for after that is executed")
}

func TestWhoeverIsThereAnswersInput(t *testing.T) {
	b := newBox(t)
	w := b.watch(&carrelv1.WatchNotebooksRequest{After: "0"})
	id := b.start(&carrelv1.ExecuteRequest{Code: "import getpass\nname = input('name? ')\nword = getpass.getpass('word? ')\nprint(name, word)", AllowInput: true})[0].GetId()
	asked := func(prompt string, password bool) {
		events := w.until(prompt, func(e *carrelv1.NotebookEvent) bool { return e.GetQuestion().GetPrompt() == prompt })
		require.Equal(t, password, events[len(events)-1].GetQuestion().GetPassword())
	}
	asked("name? ", false)
	require.Empty(t, b.Working(), "what waits for a person is no work")
	got, err := b.GetExecution(limited(t), &carrelv1.GetExecutionRequest{Execution: id})
	require.NoError(t, err)
	require.Equal(t, "name? ", got.GetQuestion().GetPrompt())
	require.NoError(t, b.AnswerInput(limited(t), &carrelv1.AnswerInputRequest{Execution: id, Value: "Ada"}))
	err = b.AnswerInput(limited(t), &carrelv1.AnswerInputRequest{Execution: id, Value: "Eve"})
	if err != nil { // else it was the answer to the second question already
		require.Equal(t, "no_question", carrel.ReasonOf(err))
		asked("word? ", true)
		require.NoError(t, b.AnswerInput(limited(t), &carrelv1.AnswerInputRequest{Execution: id, Value: "Eve"}))
	}
	require.Equal(t, "Ada Eve\n", textOf(b.ended(w, id)))

	e := b.execute(&carrelv1.ExecuteRequest{Code: "input()"})
	require.Equal(t, stateError, e.GetState(), "without leave to ask it fails at once")

	id = b.start(&carrelv1.ExecuteRequest{Code: "input('again? ')", AllowInput: true})[0].GetId()
	asked("again? ", false)
	_, err = b.Interrupt(limited(t), &carrelv1.InterruptRequest{})
	require.NoError(t, err)
	require.Equal(t, stateError, b.ended(w, id).GetState())
	require.Equal(t, "no_question", carrel.ReasonOf(b.AnswerInput(limited(t), &carrelv1.AnswerInputRequest{Execution: id})))
}

func TestOutputsAreThoseOfNbformat(t *testing.T) {
	b := newBox(t)
	e := b.execute(&carrelv1.ExecuteRequest{Code: "from IPython.display import display, HTML, clear_output\nimport sys\nprint('gone')\nclear_output()\nprint('a'); print('b'); print('c', file=sys.stderr)\nhandle = display(HTML('<b>1</b>'), display_id='d')\nhandle.update(HTML('<b>2</b>'))\nprint('waits')\n"})
	outputs := e.GetOutputs()
	require.Len(t, outputs, 4, "%v", outputs)
	require.Equal(t, map[string]any{"output_type": "stream", "name": "stdout", "text": "a\nb\n"}, outputs[0].AsMap())
	require.Equal(t, map[string]any{"output_type": "stream", "name": "stderr", "text": "c\n"}, outputs[1].AsMap())
	require.Equal(t, "<b>2</b>", outputs[2].AsMap()["data"].(map[string]any)["text/html"])
	require.Equal(t, map[string]any{"display_id": "d"}, outputs[2].AsMap()["transient"])

	// A display of one cell is updated by another.
	b.execute(&carrelv1.ExecuteRequest{Code: "handle.update(HTML('<b>3</b>'))"})
	got, err := b.GetExecution(limited(t), &carrelv1.GetExecutionRequest{Execution: e.GetId()})
	require.NoError(t, err)
	require.Equal(t, "<b>3</b>", got.GetOutputs()[2].AsMap()["data"].(map[string]any)["text/html"])

	e = b.execute(&carrelv1.ExecuteRequest{Code: "for i in range(5):\n    clear_output(wait=True)\n    print(i)"})
	require.Equal(t, "4\n", textOf(e))
	e = b.execute(&carrelv1.ExecuteRequest{Code: "print('stays')\nclear_output(wait=True)"})
	require.Equal(t, "stays\n", textOf(e))
}

func TestOutputOfThreadsComesAfterTheEnd(t *testing.T) {
	b := newBox(t)
	w := b.watch(&carrelv1.WatchNotebooksRequest{After: "0"})
	id := b.start(&carrelv1.ExecuteRequest{Code: "import threading, sys\ngo = threading.Event()\ndef late():\n    go.wait()\n    print('late', flush=True)\nthreading.Thread(target=late).start()"})[0].GetId()
	require.Equal(t, stateOK, b.ended(w, id).GetState())
	b.execute(&carrelv1.ExecuteRequest{Code: "go.set()"})
	w.until("late output", func(e *carrelv1.NotebookEvent) bool {
		text, _ := e.GetOutput().AsMap()["text"].(string)
		return strings.Contains(text, "late")
	})
}

func TestWatchersGetEverythingOnceFromAnyCursor(t *testing.T) {
	b := newBox(t)
	w := b.watch(&carrelv1.WatchNotebooksRequest{})
	w.until("live", func(e *carrelv1.NotebookEvent) bool { return e.GetLive() })
	id := b.start(&carrelv1.ExecuteRequest{Code: "for i in range(300): print(i, flush=True)"})[0].GetId()
	all := w.until("the end", func(e *carrelv1.NotebookEvent) bool { return e.GetExecution() == id && e.GetEnded() != nil })
	still := func(e *carrelv1.NotebookEvent) bool { return e.GetKeepAlive() } // on a machine where the kernel starts slowly
	all = slices.DeleteFunc(slices.Clone(all[1:]), still)
	require.NotEmpty(t, all[0].GetCursor())
	for _, from := range []int{0, 1, len(all) / 2, len(all) - 2} {
		again := b.watch(&carrelv1.WatchNotebooksRequest{After: all[from].GetCursor()})
		got := again.until("the end", func(e *carrelv1.NotebookEvent) bool { return e.GetExecution() == id && e.GetEnded() != nil })
		got = slices.DeleteFunc(slices.Clone(got), still)
		require.Len(t, got, len(all)-from-1)
		for i, event := range got {
			require.Equal(t, all[from+1+i].GetCursor(), event.GetCursor())
		}
	}
	var text strings.Builder
	for _, event := range all {
		if shown, ok := event.GetOutput().AsMap()["text"].(string); ok {
			text.WriteString(shown)
		}
	}
	var want strings.Builder
	for i := range 300 {
		fmt.Fprintln(&want, i)
	}
	require.Equal(t, want.String(), text.String())

	err := b.Watch(limited(t), &carrelv1.WatchNotebooksRequest{After: "nonsense"}, func(*carrelv1.NotebookEvent) error { return nil })
	require.Equal(t, "bad_cursor", carrel.ReasonOf(err))
	stranger := b.watch(&carrelv1.WatchNotebooksRequest{After: "other.7"})
	got := stranger.until("a gap", func(e *carrelv1.NotebookEvent) bool { return e.GetGap() })
	require.Len(t, got, 1, "what is of another journal begins with a gap")
}

// TestSlowWatchersHoldNobodyUp promises that one who takes nothing slows neither the kernel nor others.
func TestSlowWatchersHoldNobodyUp(t *testing.T) {
	b := newBox(t)
	b.execute(&carrelv1.ExecuteRequest{Code: "1"})
	ctx, cancel := context.WithCancel(limited(t))
	stuck := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = b.Watch(ctx, &carrelv1.WatchNotebooksRequest{After: "0"}, func(*carrelv1.NotebookEvent) error {
			<-stuck
			return nil
		})
	}()
	e := b.execute(&carrelv1.ExecuteRequest{Code: "for i in range(20): print('x' * 100000)"})
	require.Equal(t, stateOK, e.GetState())
	cancel()
	close(stuck)
	<-done
}

func TestRepeatedRequestsExecuteOnce(t *testing.T) {
	b := newBox(t)
	request := &carrelv1.ExecuteRequest{Code: "1", RequestId: "r"}
	first := b.start(request)
	second := b.start(request)
	require.Equal(t, first[0].GetId(), second[0].GetId())
	e := b.execute(&carrelv1.ExecuteRequest{Code: "2"})
	require.Equal(t, int32(2), e.GetExecutionCount())
}

func TestWaitEnds(t *testing.T) {
	b := newBox(t)
	response, err := b.Execute(limited(t), &carrelv1.ExecuteRequest{Code: "input()", AllowInput: true, Wait: durationpb.New(time.Millisecond)}, "")
	require.NoError(t, err)
	require.False(t, response.GetDone())
}

func TestBadRequestsSayWhatIsWrong(t *testing.T) {
	b := newBox(t)
	for reason, request := range map[string]*carrelv1.ExecuteRequest{
		"bad_execution":        {},
		"code_too_large":       {Code: strings.Repeat("x", 1<<20+1)},
		"kernelspec_not_found": {Code: "1", Kernel: "cobol"},
		"file_not_found":       {Path: "none.ipynb", All: true},
		"bad_request_id":       {Code: "1", RequestId: strings.Repeat("r", 129)},
		"bad_wait":             {Code: "1", Wait: durationpb.New(-time.Second)},
	} {
		_, err := b.Execute(limited(t), request, "")
		require.Equal(t, reason, carrel.ReasonOf(err), "%v", err)
	}
	_, err := b.Execute(limited(t), &carrelv1.ExecuteRequest{All: true}, "")
	require.Equal(t, "bad_execution", carrel.ReasonOf(err))
	_, err = b.GetExecution(limited(t), &carrelv1.GetExecutionRequest{Execution: "none"})
	require.Equal(t, "execution_not_found", carrel.ReasonOf(err))
}

// TestWhatRanWhenTheBoxEndedIsLost promises that the next life of a box says so, and still has what was shown.
func TestWhatRanWhenTheBoxEndedIsLost(t *testing.T) {
	b := newBox(t)
	w := b.watch(&carrelv1.WatchNotebooksRequest{After: "0"})
	id := b.start(&carrelv1.ExecuteRequest{Code: "print('shown', flush=True)\nimport time\ntime.sleep(1000)"})[0].GetId()
	events := w.until("output", func(e *carrelv1.NotebookEvent) bool { return e.GetOutput() != nil })
	cursor := events[len(events)-1].GetCursor()
	require.NoError(t, b.Flush(limited(t)))
	// As when the box's power goes: what is on the disk now is what there is.
	home := copyHome(t, b.home)

	next := openBox(t, home)
	after := next.watch(&carrelv1.WatchNotebooksRequest{After: cursor})
	got := after.until("the end", func(e *carrelv1.NotebookEvent) bool { return e.GetEnded() != nil })
	for _, event := range got {
		require.False(t, event.GetGap(), "the watcher has missed nothing")
	}
	require.Equal(t, stateLost, got[len(got)-1].GetEnded().GetState())
	e, err := next.GetExecution(limited(t), &carrelv1.GetExecutionRequest{Execution: id})
	require.NoError(t, err)
	require.Equal(t, stateLost, e.GetState())
	require.Equal(t, "shown\n", textOf(e))
}

func TestCloneBeginsItsOwnJournal(t *testing.T) {
	b := newBox(t)
	w := b.watch(&carrelv1.WatchNotebooksRequest{After: "0"})
	b.execute(&carrelv1.ExecuteRequest{Code: "secret = 1; print('of the other box')"})
	events := w.until("an end", func(e *carrelv1.NotebookEvent) bool { return e.GetEnded() != nil })
	b.owner.Store("box-2")
	b.Adopt()
	again := b.watch(&carrelv1.WatchNotebooksRequest{After: events[len(events)-1].GetCursor()})
	got := again.until("live", func(e *carrelv1.NotebookEvent) bool { return e.GetLive() })
	require.Len(t, got, 2)
	require.True(t, got[0].GetGap())
	require.NoError(t, b.Flush(limited(t)))
	files, err := os.ReadDir(b.home + "/.local/state/carrel/journal")
	require.NoError(t, err)
	for _, file := range files {
		data, err := os.ReadFile(b.home + "/.local/state/carrel/journal/" + file.Name())
		require.NoError(t, err)
		require.NotContains(t, string(data), "of the other box")
	}
}

// TestFloodWithoutRoomIsSaid promises that a box without room executes on.
func TestFloodWithoutRoomIsSaid(t *testing.T) {
	if os.Geteuid() != 0 {
		return // a file system of its own needs root
	}
	home := smallDisk(t, "48m")
	b := openBox(t, home)
	e := b.execute(&carrelv1.ExecuteRequest{Code: "import sys\nfor i in range(10): sys.stdout.write(('x' * 99 + '\\n') * 10000)"})
	require.Equal(t, stateOK, e.GetState())
	require.Contains(t, textOf(e), "the box's disk is almost full")
	require.Equal(t, "on\n", textOf(b.execute(&carrelv1.ExecuteRequest{Code: "print('on')"})))
}

// TestAFloodsMemoryIsGivenBack promises that the agent, which has no small part of a box's memory while a kernel floods, does not keep it.
func TestAFloodsMemoryIsGivenBack(t *testing.T) {
	b := newBox(t)
	kept := func() uint64 {
		var stats runtime.MemStats
		runtime.ReadMemStats(&stats)
		return stats.HeapIdle - stats.HeapReleased + stats.HeapInuse
	}
	debug.FreeOSMemory()
	before := kept()
	e := b.execute(&carrelv1.ExecuteRequest{Code: "import sys\nfor i in range(60): sys.stdout.write(('x' * 99 + '\\n') * 10000)"})
	require.Equal(t, stateOK, e.GetState())
	require.Eventually(t, func() bool { return kept() < before+32<<20 }, patience, 20*time.Millisecond, "what 60 MB of text took is not given back")
}

// smallDisk mounts a directory that has little room, for the kernels' user.
func smallDisk(t *testing.T, size string) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "d")
	require.NoError(t, err)
	require.NoError(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "size="+size+",mode=777"))
	t.Cleanup(func() {
		_ = unix.Unmount(dir, unix.MNT_DETACH)
		_ = os.Remove(dir)
	})
	return dir
}
