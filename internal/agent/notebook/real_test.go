package notebook_test

import (
	"context"
	"log/slog"
	"os"
	"os/exec"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/durationpb"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/agent/kernel"
	"carrel.dev/carrel/internal/agent/kernel/kerneltest"
	"carrel.dev/carrel/internal/agent/notebook"
)

// patience is how long a test waits for what should come.
const patience = 2 * time.Minute

// box is what a service needs around it.
type box struct {
	*notebook.Service
	t       *testing.T
	home    string
	kernels *kernel.Manager
	owner   atomic.Value
	close   func()
}

func newBox(t *testing.T) *box {
	t.Helper()
	return openBox(t, kerneltest.Dir(t))
}

func openBox(t *testing.T, home string) *box {
	t.Helper()
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	kernels, err := kernel.NewManager(kernel.Config{Home: home, RuntimeDir: kerneltest.RuntimeDir(t), Start: kerneltest.Starter(t), AsUser: kerneltest.AsUser, Log: log})
	require.NoError(t, err)
	b := &box{t: t, home: home, kernels: kernels}
	b.owner.Store("box-1")
	b.Service, err = notebook.New(notebook.Config{
		Home: home, Kernels: kernels, Owner: func() string { return b.owner.Load().(string) }, AsUser: kerneltest.AsUser, Log: log,
	})
	require.NoError(t, err)
	var once sync.Once
	b.close = func() {
		once.Do(func() {
			kernels.Close(context.Background())
			b.Close()
		})
	}
	t.Cleanup(b.close)
	return b
}

// copyHome makes a home with what another has now.
func copyHome(t *testing.T, from string) string {
	t.Helper()
	to := kerneltest.Dir(t)
	out, err := exec.Command("cp", "-a", from+"/.", to).CombinedOutput()
	require.NoError(t, err, "%s", out)
	return to
}

func limited(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// execute runs code and waits for its end.
func (b *box) execute(request *carrelv1.ExecuteRequest) *carrelv1.Execution {
	b.t.Helper()
	request.Wait = durationpb.New(patience)
	response, err := b.Execute(limited(b.t), request, "alice")
	require.NoError(b.t, err)
	require.True(b.t, response.GetDone())
	require.Len(b.t, response.GetExecutions(), 1)
	return response.GetExecutions()[0]
}

func TestCodeIsExecuted(t *testing.T) {
	b := newBox(t)
	e := b.execute(&carrelv1.ExecuteRequest{Code: "print('hello'); 6*7"})
	require.Equal(t, carrelv1.ExecutionState_EXECUTION_STATE_OK, e.GetState(), e.GetMessage())
	require.Equal(t, int32(1), e.GetExecutionCount())
	require.Len(t, e.GetOutputs(), 2)
	require.Equal(t, "hello\n", e.GetOutputs()[0].AsMap()["text"])
	begin := time.Now()
	for range 20 {
		b.execute(&carrelv1.ExecuteRequest{Code: "1"})
	}
	t.Log("each", time.Since(begin)/20)
	ctx, cancel := context.WithCancel(limited(t))
	err := b.Watch(ctx, &carrelv1.WatchNotebooksRequest{After: "0", Execution: e.GetId()}, func(event *carrelv1.NotebookEvent) error {
		t.Log(event)
		if event.GetLive() {
			cancel()
		}
		return nil
	})
	require.ErrorIs(t, err, context.Canceled)
}

// TestFloodIsKeptInAFile promises that a kernel is never slowed by much output: what is too much is in a file, all of it.
func TestFloodIsKeptInAFile(t *testing.T) {
	b := newBox(t)
	b.execute(&carrelv1.ExecuteRequest{Code: "1"})
	begin := time.Now()
	e := b.execute(&carrelv1.ExecuteRequest{Code: "import sys, time\nt = time.time()\nfor i in range(100): sys.stdout.write(('x' * 99 + '\\n') * 10000)\nsys.stdout.flush()\ntook = time.time() - t"})
	all := time.Since(begin)
	took := b.execute(&carrelv1.ExecuteRequest{Code: "took"})
	t.Logf("all %s, the kernel's part %v s", all, took.GetOutputs()[0].AsMap()["data"])
	info, err := os.Stat(e.GetOutputFile())
	require.NoError(t, err)
	require.Equal(t, int64(100_000_000), info.Size())
}

// ownerOf gives the user id of a file's owner.
func ownerOf(info os.FileInfo) uint32 {
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0
	}
	return stat.Uid
}
