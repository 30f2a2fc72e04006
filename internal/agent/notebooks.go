package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/timestamppb"

	agentv1 "carrel.dev/carrel/api/carrel/agent/v1"
	"carrel.dev/carrel/api/carrel/agent/v1/agentv1connect"
	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/agent/kernel"
	"carrel.dev/carrel/internal/agent/notebook"
)

const (
	// kernelDir has the sockets of kernels; it is short, because names of sockets are.
	kernelDir = "/run/carrel/kernels"
	// kindKernel is the kind of a process that is a kernel.
	kindKernel = "kernel"
	// maxNotebookMessage is the largest request about notebooks, in bytes: cells with pictures in them fit.
	maxNotebookMessage = 32 << 20
	// maxKernelOutput is how much is told of what a kernel wrote before it died, in bytes.
	maxKernelOutput = 4 << 10
)

// notebooks has the box's kernels and what is executed in them. Nothing of it runs until it is used.
type notebooks struct {
	a       *Agent
	kernels *kernel.Manager
	service *notebook.Service

	mu   sync.Mutex // guards temp
	temp string     // a directory to be removed in the end
}

func (a *Agent) newNotebooks() (*notebooks, error) {
	n := &notebooks{a: a}
	id, _ := a.current()
	var maxMessage, maxNotebook int64
	if id.MemoryBytes > 0 { // in memory they are larger
		maxMessage, maxNotebook = min(256<<20, id.MemoryBytes/4), min(256<<20, id.MemoryBytes/8)
	}
	var err error
	n.kernels, err = kernel.NewManager(kernel.Config{
		Home: a.config.Home, RuntimeDir: n.runtimeDir, Start: n.start, AsUser: a.runAsUser, MaxMessage: maxMessage, Log: a.log,
		Env: func() map[string]string {
			id, base := a.current()
			env := maps.Clone(base)
			if env == nil {
				env = map[string]string{}
			}
			maps.Copy(env, id.Env)
			return env
		},
	})
	if err != nil {
		return nil, fmt.Errorf("make the box's kernels: %w", err)
	}
	n.service, err = notebook.New(notebook.Config{
		Home: a.config.Home, Kernels: n.kernels, AsUser: a.runAsUser, MaxNotebook: maxNotebook, Log: a.log,
		Owner: func() string {
			id, _ := a.current()
			return id.BoxID
		},
	})
	if err != nil {
		return nil, fmt.Errorf("make the box's notebooks: %w", err)
	}
	if a.config.Warmer == nil {
		a.config.Warmer = n
	}
	return n, nil
}

// Warm is Warmer's.
func (n *notebooks) Warm(ctx context.Context, name, code string) error {
	return n.kernels.Warm(ctx, name, code)
}

// Adopt is Warmer's. A journal that came with a copy of another box's memory is that box's.
func (n *notebooks) Adopt(ctx context.Context, env map[string]string) error {
	n.service.Adopt()
	return n.kernels.Adopt(ctx, env)
}

// runtimeDir makes the directory for sockets, empty and the user's.
func (n *notebooks) runtimeDir() (string, error) {
	dir := kernelDir
	if n.a.config.Init {
		// What is there is of the box's life before.
		if err := errors.Join(os.RemoveAll(dir), os.MkdirAll(dir, 0o755)); err != nil {
			return "", err
		}
	} else {
		var err error
		if dir, err = os.MkdirTemp("", "carrel-k"); err != nil {
			return "", err
		}
		n.mu.Lock()
		n.temp = dir
		n.mu.Unlock()
	}
	if unix.Geteuid() == 0 {
		if err := os.Lchown(dir, boxUID, boxUID); err != nil {
			return "", err
		}
	}
	return dir, os.Chmod(dir, 0o700)
}

// close ends kernels and executions, and writes what is not written.
func (n *notebooks) close(ctx context.Context) {
	n.kernels.Close(ctx)
	n.service.Close()
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.temp != "" {
		_ = os.RemoveAll(n.temp)
	}
}

// foreground gives what is executed, as commands in the foreground. What waits for somebody's input is no work.
func (n *notebooks) foreground() (commands []*agentv1.ForegroundCommand) {
	for _, work := range n.service.Working() {
		commands = append(commands, &agentv1.ForegroundCommand{Process: work.ID, Command: cut(printable(work.What), maxCommandLine), StartTime: timestamppb.New(work.Since), Cell: true})
	}
	return commands
}

func cut(text string, limit int) string {
	if len(text) > limit {
		text = strings.ToValidUTF8(text[:limit], "")
	}
	return text
}

// kernelProcess is a process of the agent that is a kernel's.
type kernelProcess struct {
	a    *Agent
	p    *process
	done chan struct{}
}

func (n *notebooks) start(ctx context.Context, command kernel.Command) (kernel.Process, error) {
	p, _, err := n.a.startProcess(ctx, &carrelv1.StartProcessRequest{Args: command.Args, Env: command.Env, Cwd: command.Cwd, Kind: kindKernel}, "", false)
	if err != nil {
		return nil, err
	}
	k := &kernelProcess{a: n.a, p: p, done: make(chan struct{})}
	n.a.wg.Go(k.await)
	return k, nil
}

// await waits for the end of the process.
func (k *kernelProcess) await() {
	defer close(k.done)
	for {
		k.p.mu.Lock()
		if k.p.ended {
			k.p.mu.Unlock()
			return
		}
		if k.p.changed == nil {
			k.p.changed = make(chan struct{})
		}
		changed := k.p.changed
		k.p.mu.Unlock()
		<-changed
	}
}

func (k *kernelProcess) Pid() int                        { return k.p.pid }
func (k *kernelProcess) Signal(number unix.Signal) error { return k.a.reaper.signal(k.p.pid, number) }
func (k *kernelProcess) Done() <-chan struct{}           { return k.done }

func (k *kernelProcess) Ended() string {
	shown := k.p.show()
	switch {
	case shown.GetEndedBy() == "memory":
		return "the box's memory was used up, and it used the most"
	case shown.GetExitSignal() != "":
		return "signal " + shown.GetExitSignal()
	}
	return fmt.Sprintf("exit code %d", shown.GetExitCode())
}

func (k *kernelProcess) Output() string {
	k.p.mu.Lock()
	defer k.p.mu.Unlock()
	var all []byte
	for i := range k.p.rings {
		r := &k.p.rings[i]
		all = r.read(all, max(r.start, r.end-maxKernelOutput), maxKernelOutput)
	}
	return string(all)
}

// notebookService serves what the gateway asks for.
type notebookService struct {
	agentv1connect.UnimplementedNotebookServiceHandler
	*notebooks
}

func respond[T any](message *T, err error) (*connect.Response[T], error) {
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(message), nil
}

func (s notebookService) Execute(ctx context.Context, request *connect.Request[carrelv1.ExecuteRequest]) (*connect.Response[carrelv1.ExecuteResponse], error) {
	return respond(s.service.Execute(ctx, request.Msg, userOf(request)))
}

func (s notebookService) GetExecution(ctx context.Context, request *connect.Request[carrelv1.GetExecutionRequest]) (*connect.Response[carrelv1.Execution], error) {
	return respond(s.service.GetExecution(ctx, request.Msg))
}

func (s notebookService) AnswerInput(ctx context.Context, request *connect.Request[carrelv1.AnswerInputRequest]) (*connect.Response[carrelv1.AnswerInputResponse], error) {
	return respond(&carrelv1.AnswerInputResponse{}, s.service.AnswerInput(ctx, request.Msg))
}

func (s notebookService) Interrupt(ctx context.Context, request *connect.Request[carrelv1.InterruptRequest]) (*connect.Response[carrelv1.InterruptResponse], error) {
	return respond(s.service.Interrupt(ctx, request.Msg))
}

func (s notebookService) GetStatus(context.Context, *connect.Request[carrelv1.GetStatusRequest]) (*connect.Response[carrelv1.NotebookStatus], error) {
	return respond(s.service.Status())
}

func (s notebookService) ListKernelSpecs(context.Context, *connect.Request[carrelv1.ListKernelSpecsRequest]) (*connect.Response[carrelv1.ListKernelSpecsResponse], error) {
	return respond(s.service.KernelSpecs())
}

func (s notebookService) StartKernel(ctx context.Context, request *connect.Request[carrelv1.StartKernelRequest]) (*connect.Response[carrelv1.Kernel], error) {
	return respond(s.service.StartKernel(ctx, request.Msg))
}

func (s notebookService) RestartKernel(ctx context.Context, request *connect.Request[carrelv1.RestartKernelRequest]) (*connect.Response[carrelv1.Kernel], error) {
	return respond(s.service.RestartKernel(ctx, request.Msg))
}

func (s notebookService) ShutdownKernel(ctx context.Context, request *connect.Request[carrelv1.ShutdownKernelRequest]) (*connect.Response[carrelv1.ShutdownKernelResponse], error) {
	return respond(&carrelv1.ShutdownKernelResponse{}, s.service.ShutdownKernel(ctx, request.Msg))
}

func (s notebookService) GetNotebook(ctx context.Context, request *connect.Request[carrelv1.GetNotebookRequest]) (*connect.Response[carrelv1.Notebook], error) {
	return respond(s.service.GetNotebook(ctx, request.Msg))
}

func (s notebookService) EditNotebook(ctx context.Context, request *connect.Request[carrelv1.EditNotebookRequest]) (*connect.Response[carrelv1.EditNotebookResponse], error) {
	return respond(s.service.EditNotebook(ctx, request.Msg, userOf(request)))
}

func (s notebookService) WatchNotebooks(ctx context.Context, request *connect.Request[carrelv1.WatchNotebooksRequest], stream *connect.ServerStream[carrelv1.NotebookEvent]) error {
	return s.service.Watch(ctx, request.Msg, stream.Send)
}

func (s notebookService) CompleteCode(ctx context.Context, request *connect.Request[carrelv1.CompleteCodeRequest]) (*connect.Response[carrelv1.CompleteCodeResponse], error) {
	return respond(s.service.CompleteCode(ctx, request.Msg))
}

func (s notebookService) InspectCode(ctx context.Context, request *connect.Request[carrelv1.InspectCodeRequest]) (*connect.Response[carrelv1.InspectCodeResponse], error) {
	return respond(s.service.InspectCode(ctx, request.Msg))
}

func (s notebookService) GetUsage(context.Context, *connect.Request[carrelv1.GetUsageRequest]) (*connect.Response[carrelv1.BoxUsage], error) {
	return respond(s.a.usage(time.Now()))
}
