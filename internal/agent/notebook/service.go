package notebook

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/agent/kernel"
	"carrel.dev/carrel/internal/agent/notebook/journal"
	"carrel.dev/carrel/internal/carrel"
)

const (
	// stateDir is where the box's home has what is kept about executions.
	stateDir = ".local/state/carrel"
	// maxEnded executions are remembered after their end, maxEndedBytes of their outputs.
	maxEnded      = 1000
	maxEndedBytes = 32 << 20
	// maxRequests is how many request ids are remembered.
	maxRequests = 1000
	maxCode     = 1 << 20
	maxAnswer   = 64 << 10
	maxCells    = 10_000
	maxWait     = 10 * time.Minute
	keepAlive   = 10 * time.Second
)

// Config of a Service. Home, Kernels, Owner and Log are needed.
type Config struct {
	// Home of the box's user.
	Home    string
	Kernels *kernel.Manager
	// Owner gives the id of the box: the journal of another box is not this one's.
	Owner func() string
	// AsUser runs a function with the rights of the box's user; nil: just runs it.
	AsUser func(func() error) error
	// MaxNotebook is the largest file that is opened as a notebook, in bytes; in memory it is some times as large. 0: 256 MiB.
	MaxNotebook int64
	Log         *slog.Logger
}

// Service executes, and keeps notebooks. Its methods are safe for concurrent use. It does nothing and has no goroutines until it is first used.
type Service struct {
	config Config
	log    *slog.Logger
	now    func() time.Time
	ctx    context.Context // ends with Close
	stop   context.CancelFunc
	wg     sync.WaitGroup
	ready  sync.Once
	unhook func()

	began     time.Time // what was on the disk before is of an earlier life
	maxSpills int64

	pruning  sync.Mutex // held while files with output are removed; before mu
	starting sync.Mutex // held while a kernel is looked for or started, so that nobody starts a second

	mu         sync.Mutex // guards what follows
	journal    *journal.Journal
	runners    map[string]*runner
	executions map[string]*execution
	ended      []*execution // oldest first
	endedBytes int64
	requests   map[string]*pendingRequest
	order      []string // of requests
	lastActive time.Time
	closed     bool
	documents  map[string]*document
	opened     int64             // documents so far
	swept      map[string]bool   // directories from which was removed what saves had left
	behind     map[string]behind // notebooks that are not open whose files may not have everything, by path
}

// pendingRequest is what belongs to a request id.
type pendingRequest struct {
	ready      chan struct{}
	executions []*execution
	edit       *carrelv1.EditNotebookResponse
	err        error
}

// New makes a Service. The caller calls Close in the end.
func New(config Config) (*Service, error) {
	if config.Home == "" || config.Kernels == nil || config.Owner == nil || config.Log == nil {
		return nil, errors.New("notebooks: Home, Kernels, Owner and Log are needed")
	}
	if config.AsUser == nil {
		config.AsUser = func(f func() error) error { return f() }
	}
	if config.MaxNotebook <= 0 {
		config.MaxNotebook = maxNotebook
	}
	ctx, stop := context.WithCancel(context.Background())
	return &Service{
		config: config, log: config.Log, now: time.Now, ctx: ctx, stop: stop, runners: map[string]*runner{}, executions: map[string]*execution{},
		requests: map[string]*pendingRequest{}, documents: map[string]*document{}, behind: map[string]behind{}, swept: map[string]bool{}, began: time.Now(), maxSpills: maxSpills,
	}, nil
}

// open makes the service ready at its first use.
func (s *Service) open() error {
	s.ready.Do(func() {
		recovered := &recovery{live: map[string]*carrelv1.Execution{}, documents: map[string]behind{}}
		opened, err := journal.Open(journal.Config{
			Dir: filepath.Join(s.config.Home, stateDir, "journal"), Owner: s.config.Owner(), AsUser: s.config.AsUser, Log: s.log,
			State: s.unfinished, Recover: recovered.take,
		})
		if err != nil {
			s.log.Error("the journal could not be opened", "error", err)
			return
		}
		s.mu.Lock()
		s.journal = opened
		s.behind = recovered.unsaved()
		for _, shown := range recovered.executions() {
			s.lose(shown)
		}
		s.wg.Go(s.recover)
		s.mu.Unlock()
		s.unhook = s.config.Kernels.OnChange(s.kernelChanged)
	})
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.journal == nil || s.closed {
		return carrel.Errorf(carrel.CodeUnavailable, "box_stopping", "the box is being stopped")
	}
	return nil
}

// Close ends executions, writes everything that is not written, and waits for all of that.
func (s *Service) Close() {
	s.ready.Do(func() {}) // never used, never will be
	s.stop()
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	if s.unhook != nil {
		s.unhook()
	}
	s.wg.Wait()
	s.closeDocuments()
	if s.journal != nil {
		s.journal.Close()
	}
}

// emit puts an event into the journal and gives its cursor. s.mu is held.
func (s *Service) emit(event *carrelv1.NotebookEvent) string {
	if d := s.documents[event.GetPath()]; d != nil && changes(event) {
		d.begins()
	}
	event.Time, event.Path = timestamppb.New(s.now()), carrel.EncodeFileName(event.GetPath())
	data, err := proto.Marshal(event)
	if err != nil {
		s.log.Error("an event could not be written", "error", err)
		return s.journal.Last()
	}
	return s.journal.Append(data, event)
}

// kernelChanged tells of a kernel.
func (s *Service) kernelChanged(info kernel.Info) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.emit(&carrelv1.NotebookEvent{Path: info.Path, Kernel: info.ID, Event: &carrelv1.NotebookEvent_KernelChanged{KernelChanged: s.showKernel(info)}})
}

func (s *Service) showKernel(info kernel.Info) *carrelv1.Kernel {
	waiting := 0
	if r := s.runners[info.ID]; r != nil {
		waiting = len(r.queue)
	}
	return showKernel(info, waiting)
}

// path makes a path of what a request has: absolute, clean, and the notebook's own, whichever links lead to it, so that a file is one document.
func (s *Service) path(text string) (string, error) {
	p := carrel.DecodeFileName(text)
	if strings.ContainsRune(p, 0) || len(p) >= 4096 {
		return "", carrel.Errorf(carrel.CodeInvalid, "bad_path", "%q is no path of a notebook", cutText(text, 100))
	}
	if !filepath.IsAbs(p) {
		p = filepath.Join(s.config.Home, p)
	}
	return s.real(filepath.Clean(p)), nil
}

// real gives a path without links. What is not there yet gets its name in the directory that is there; a path that cannot be followed stays, and using it says why.
func (s *Service) real(path string) string {
	s.mu.Lock()
	open := s.documents[path] != nil // so it was found to have none
	s.mu.Unlock()
	if open {
		return path
	}
	return s.withoutLinks(path)
}

func (s *Service) withoutLinks(path string) string {
	found := path
	_ = s.config.AsUser(func() error {
		if all, err := filepath.EvalSymlinks(path); err == nil {
			found = all
		} else if errors.Is(err, fs.ErrNotExist) {
			found = realName(path)
		}
		return nil
	})
	return found
}

// realName gives a path of which the last part alone may be a link. For AsUser.
func realName(path string) string {
	if dir, err := filepath.EvalSymlinks(filepath.Dir(path)); err == nil {
		return filepath.Join(dir, filepath.Base(path))
	}
	return path
}

// kernelFor gives the kernel that a request means, and starts it if need be. spec is asked for the name of a notebook's.
func (s *Service) kernelFor(ctx context.Context, path, wanted string, spec func() (string, error)) (*kernel.Kernel, error) {
	s.starting.Lock()
	defer s.starting.Unlock()
	if path != "" {
		if k := s.config.Kernels.OfPath(path); k != nil {
			return k, nil
		}
		if wanted == "" {
			var err error
			if wanted, err = spec(); err != nil {
				return nil, err
			}
		}
		return s.config.Kernels.Start(ctx, kernel.Options{Spec: wanted, Path: path})
	}
	if wanted != "" {
		if k, err := s.config.Kernels.Get(wanted); err == nil {
			return k, nil
		}
	}
	name := strings.ToLower(wanted)
	if name == "" {
		_, byDefault, err := s.config.Kernels.Specs()
		if err != nil {
			return nil, err
		}
		name = byDefault
	}
	if k := s.sharedKernel(name); k != nil {
		return k, nil
	}
	return s.config.Kernels.Start(ctx, kernel.Options{Spec: name, Shared: true})
}

// sharedKernel gives the shared kernel of a kernelspec; nil: there is none.
func (s *Service) sharedKernel(spec string) *kernel.Kernel {
	for _, k := range s.config.Kernels.List() {
		if info := k.Info(); info.Shared && info.Spec == spec {
			return k
		}
	}
	return nil
}

// Execute queues code or cells. user is who asks.
func (s *Service) Execute(ctx context.Context, request *carrelv1.ExecuteRequest, user string) (*carrelv1.ExecuteResponse, error) {
	if err := s.open(); err != nil {
		return nil, err
	}
	if err := checkExecute(request); err != nil {
		return nil, err
	}
	all, err := s.once(ctx, request.GetRequestId(), func() ([]*execution, error) { return s.enqueue(ctx, request, user) })
	if err != nil {
		return nil, err
	}
	done := true
	if request.GetWait() != nil {
		done = s.await(ctx, all, min(request.GetWait().AsDuration(), maxWait))
	}
	response := &carrelv1.ExecuteResponse{}
	var forgotten []int
	s.mu.Lock()
	for i, e := range all {
		done = done && e.ended()
		response.Executions = append(response.Executions, e.show(request.GetWait() != nil))
		if e.forgotten && request.GetWait() != nil {
			forgotten = append(forgotten, i)
		}
	}
	s.mu.Unlock()
	for _, i := range forgotten {
		if shown := s.replay(response.GetExecutions()[i].GetId()); shown != nil {
			response.Executions[i] = shown
		}
	}
	response.Done = done
	return response, nil
}

func checkExecute(request *carrelv1.ExecuteRequest) error {
	ways := 0
	for _, is := range []bool{len(request.GetCells()) > 0, request.GetAll(), request.GetCode() != ""} {
		if is {
			ways++
		}
	}
	switch {
	case ways != 1:
		return carrel.Errorf(carrel.CodeInvalid, "bad_execution", "say what to execute: one of code, cells of a notebook, or all of its cells")
	case request.GetCode() == "" && request.GetPath() == "":
		return carrel.Errorf(carrel.CodeInvalid, "bad_execution", "cells are those of a notebook; give its path")
	case len(request.GetCode()) > maxCode:
		return carrel.Errorf(carrel.CodeInvalid, "code_too_large", "the code has %d bytes; at most %d are executed at once. Put it into a file and execute that", len(request.GetCode()), maxCode)
	case len(request.GetCells()) > maxCells:
		return carrel.Errorf(carrel.CodeInvalid, "bad_execution", "%d cells are named; at most %d can be at once", len(request.GetCells()), maxCells)
	case len(request.GetRequestId()) > 128:
		return carrel.Errorf(carrel.CodeInvalid, "bad_request_id", "the request id has %d bytes; at most 128 are taken", len(request.GetRequestId()))
	case request.GetWait() != nil && (!request.GetWait().IsValid() || request.GetWait().AsDuration() < 0):
		return carrel.Errorf(carrel.CodeInvalid, "bad_wait", "the time to wait is no time")
	}
	return nil
}

// once gives what the first request with an id made. After an error the next one begins anew.
func (s *Service) once(ctx context.Context, id string, make func() ([]*execution, error)) ([]*execution, error) {
	if id == "" {
		return make()
	}
	entry, first := s.request("execute " + id)
	if !first {
		select {
		case <-entry.ready:
			return entry.executions, entry.err
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	entry.executions, entry.err = make()
	s.answered("execute "+id, entry)
	return entry.executions, entry.err
}

func (s *Service) request(id string) (entry *pendingRequest, first bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if entry := s.requests[id]; entry != nil {
		return entry, false
	}
	entry = &pendingRequest{ready: make(chan struct{})}
	s.requests[id] = entry
	s.order = append(s.order, id)
	if len(s.order) > maxRequests {
		delete(s.requests, s.order[0])
		s.order = s.order[1:]
	}
	return entry, true
}

func (s *Service) answered(id string, entry *pendingRequest) {
	if entry.err != nil {
		s.mu.Lock()
		delete(s.requests, id)
		s.order = slices.DeleteFunc(s.order, func(other string) bool { return other == id })
		s.mu.Unlock()
	}
	close(entry.ready)
}

// enqueue makes the executions of a request and queues them.
func (s *Service) enqueue(ctx context.Context, request *carrelv1.ExecuteRequest, user string) ([]*execution, error) {
	path := ""
	if request.GetPath() != "" {
		var err error
		if path, err = s.path(request.GetPath()); err != nil {
			return nil, err
		}
	}
	var doc *document
	if request.GetCode() == "" {
		var err error
		if doc, err = s.document(ctx, path); err != nil {
			return nil, err
		}
		defer s.release(doc)
	}
	k, err := s.kernelFor(ctx, path, request.GetKernel(), func() (string, error) { return s.specOf(ctx, path) })
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	r, err := s.runner(k)
	if err != nil {
		return nil, err
	}
	var all []*execution
	if doc == nil {
		all = []*execution{{code: request.GetCode()}}
	} else if all, err = doc.toExecute(request); err != nil {
		return nil, err
	}
	if len(r.queue)+len(all) > maxQueued {
		return nil, carrel.Errorf(carrel.CodeExhausted, "queue_full", "%d executions wait for this kernel; interrupt it or wait", len(r.queue))
	}
	for _, e := range all {
		e.id, e.kernel, e.path, e.startedBy, e.queuedAt = newExecutionID(), k.ID(), path, user, s.now()
		e.stopOnError, e.allowInput = request.GetStopOnError(), request.GetAllowInput()
		e.state, e.outputs, e.done = queued, &outputs{}, make(chan struct{})
		s.executions[e.id] = e
		r.queue = append(r.queue, e)
		s.emit(e.event(&carrelv1.NotebookEvent{Event: &carrelv1.NotebookEvent_Queued{Queued: e.show(false)}}))
	}
	r.kick()
	return all, nil
}

// await waits until all have ended and reports whether they have in time.
func (s *Service) await(ctx context.Context, all []*execution, limit time.Duration) bool {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	for _, e := range all {
		select {
		case <-e.done:
		case <-timer.C:
			return false
		case <-ctx.Done():
			return false
		}
	}
	return true
}

// remembered files an execution that has ended, and forgets old ones. s.mu is held.
func (s *Service) remembered(e *execution) {
	s.ended = append(s.ended, e)
	e.kept = e.outputs.text + e.outputs.rich
	s.endedBytes += e.kept
	for len(s.ended) > 1 && (len(s.ended) > maxEnded || s.endedBytes > maxEndedBytes) {
		old := s.ended[0]
		s.ended = s.ended[1:]
		s.endedBytes -= old.kept
		delete(s.executions, old.id)
		// Who remembers it by its request does not keep what it had put out, nor its notebook.
		old.forgotten, old.outputs, old.document = true, &outputs{}, nil
	}
}

// GetExecution gives an execution, also one that ended a while ago.
func (s *Service) GetExecution(_ context.Context, request *carrelv1.GetExecutionRequest) (*carrelv1.Execution, error) {
	if err := s.open(); err != nil {
		return nil, err
	}
	s.mu.Lock()
	e := s.executions[request.GetExecution()]
	if e != nil {
		defer s.mu.Unlock()
		return e.show(true), nil
	}
	s.mu.Unlock()
	if shown := s.replay(request.GetExecution()); shown != nil {
		return shown, nil
	}
	return nil, carrel.NotFound("execution", request.GetExecution())
}

// AnswerInput answers what an execution asked for.
func (s *Service) AnswerInput(_ context.Context, request *carrelv1.AnswerInputRequest) error {
	if err := s.open(); err != nil {
		return err
	}
	if len(request.GetValue()) > maxAnswer {
		return carrel.Errorf(carrel.CodeInvalid, "answer_too_large", "the answer has %d bytes; at most %d are taken", len(request.GetValue()), maxAnswer)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.executions[request.GetExecution()]
	if e == nil {
		return carrel.NotFound("execution", request.GetExecution())
	}
	r := s.runners[e.kernel]
	if e.question == nil || r == nil {
		return carrel.Errorf(carrel.CodePrecondition, "no_question", "the execution does not ask for anything now; perhaps somebody else has answered")
	}
	return r.answer(e, request.GetValue())
}

// Interrupt interrupts kernels.
func (s *Service) Interrupt(ctx context.Context, request *carrelv1.InterruptRequest) (*carrelv1.InterruptResponse, error) {
	if err := s.open(); err != nil {
		return nil, err
	}
	var targets []*kernel.Kernel
	switch {
	case request.GetKernel() != "":
		k, err := s.config.Kernels.Get(request.GetKernel())
		if err != nil {
			return nil, err
		}
		targets = append(targets, k)
	case request.GetPath() != "":
		path, err := s.path(request.GetPath())
		if err != nil {
			return nil, err
		}
		k := s.config.Kernels.OfPath(path)
		if k == nil {
			return nil, carrel.Errorf(carrel.CodePrecondition, "no_kernel", "the notebook %q has no kernel now", request.GetPath())
		}
		targets = append(targets, k)
	default:
		for _, k := range s.config.Kernels.List() {
			s.mu.Lock()
			r := s.runners[k.ID()]
			working := r != nil && (r.current != nil || len(r.queue) > 0)
			s.mu.Unlock()
			if working || k.Info().Phase == kernel.Busy {
				targets = append(targets, k)
			}
		}
	}
	response := &carrelv1.InterruptResponse{}
	for _, k := range targets {
		s.mu.Lock()
		r, err := s.runner(k)
		s.mu.Unlock()
		if err != nil {
			return nil, err
		}
		count, err := r.interrupt(ctx)
		response.Executions += int32(count)
		if err != nil {
			return nil, err
		}
	}
	return response, nil
}

// Status tells what kernels there are and what they do.
func (s *Service) Status() (*carrelv1.NotebookStatus, error) {
	if err := s.open(); err != nil {
		return nil, err
	}
	status := &carrelv1.NotebookStatus{}
	kernels := s.config.Kernels.List()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, k := range kernels {
		status.Kernels = append(status.Kernels, s.showKernel(k.Info()))
	}
	status.Executions = s.working("")
	status.Cursor = s.journal.Last()
	return status, nil
}

// working gives the executions that have not ended, of a notebook or of all. s.mu is held.
func (s *Service) working(path string) (result []*carrelv1.Execution) {
	var all []*execution
	for _, r := range s.runners {
		if r.current != nil {
			all = append(all, r.current)
		}
		all = append(all, r.queue...)
	}
	slices.SortStableFunc(all, func(a, b *execution) int { return a.queuedAt.Compare(b.queuedAt) })
	for _, e := range all {
		if path == "" || e.path == path {
			result = append(result, e.show(true))
		}
	}
	return result
}

// KernelSpecs lists what kernels the box can start.
func (s *Service) KernelSpecs() (*carrelv1.ListKernelSpecsResponse, error) {
	specs, byDefault, err := s.config.Kernels.Specs()
	if err != nil {
		return nil, err
	}
	response := &carrelv1.ListKernelSpecsResponse{DefaultSpec: byDefault}
	for _, spec := range specs {
		response.Specs = append(response.Specs, &carrelv1.KernelSpec{Name: spec.Name, DisplayName: spec.DisplayName, Language: spec.Language})
	}
	return response, nil
}

// StartKernel starts a kernel, or gives the one that a notebook has.
func (s *Service) StartKernel(ctx context.Context, request *carrelv1.StartKernelRequest) (*carrelv1.Kernel, error) {
	if err := s.open(); err != nil {
		return nil, err
	}
	var k *kernel.Kernel
	var err error
	if request.GetPath() == "" {
		k, err = s.config.Kernels.Start(ctx, kernel.Options{Spec: request.GetSpec()})
	} else {
		var path string
		if path, err = s.path(request.GetPath()); err != nil {
			return nil, err
		}
		k, err = s.kernelFor(ctx, path, request.GetSpec(), func() (string, error) { return s.specOf(ctx, path) })
	}
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.showKernel(k.Info()), nil
}

// RestartKernel starts a kernel's process anew.
func (s *Service) RestartKernel(ctx context.Context, request *carrelv1.RestartKernelRequest) (*carrelv1.Kernel, error) {
	if err := s.open(); err != nil {
		return nil, err
	}
	k, err := s.config.Kernels.Get(request.GetKernel())
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	if r := s.runners[k.ID()]; r != nil {
		r.drop(lost, "the kernel was restarted")
	}
	s.mu.Unlock()
	// It is done whole, also when nobody waits for it any more: half of it is a dead kernel.
	if err := k.Restart(context.WithoutCancel(ctx)); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.showKernel(k.Info()), nil
}

// ShutdownKernel ends a kernel for good.
func (s *Service) ShutdownKernel(ctx context.Context, request *carrelv1.ShutdownKernelRequest) error {
	if err := s.open(); err != nil {
		return err
	}
	k, err := s.config.Kernels.Get(request.GetKernel())
	if err != nil {
		return err
	}
	return k.Shutdown(ctx)
}
