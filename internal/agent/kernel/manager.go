package kernel

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"carrel.dev/carrel/internal/carrel"
)

// maxKernels of a box at a time.
const maxKernels = 64

// Command is what a kernel's process is started with. Env is what comes on top of the box's.
type Command struct {
	Args []string
	Env  map[string]string
	Cwd  string
}

// Process is a started kernel's. Its methods may be called at any time, by several at once.
type Process interface {
	Pid() int
	// Signal signals the process and what it started. One that has ended is an error.
	Signal(unix.Signal) error
	// Done is closed when the process has ended.
	Done() <-chan struct{}
	// Ended says how it ended, for people, such as "exit code 1".
	Ended() string
	// Output is the end of what it wrote to its standard output and error.
	Output() string
}

// Config of a Manager. Home, RuntimeDir, Start and Log are needed.
type Config struct {
	// Home of the box's user.
	Home string
	// RuntimeDir gives the directory for the kernels' connection files and sockets; it is the user's, and its name has at most 60
	// bytes. It is called once, when the first kernel is started.
	RuntimeDir func() (string, error)
	// Start starts a program as the box's user.
	Start func(context.Context, Command) (Process, error)
	// AsUser runs a function with the rights of the box's user; nil: just runs it.
	AsUser func(func() error) error
	// Env gives the environment of the box; nil: none.
	Env func() map[string]string
	// MaxMessage is the largest message that is taken from a kernel, in bytes; larger ones are passed over. 0: 256 MiB.
	MaxMessage int64
	// StartTimeout is how long a kernel may take until it answers; 0: 2 minutes.
	StartTimeout time.Duration
	// Heartbeat is the time between beats; a kernel is unresponsive when it has missed three. 0: 10 seconds.
	Heartbeat time.Duration
	// Grace is how long a kernel has to end when it is asked to; 0: 3 seconds.
	Grace time.Duration
	Log   *slog.Logger
}

// Manager has the kernels of a box. It is safe for concurrent use, and it does nothing and has no goroutines while there is no kernel.
type Manager struct {
	config Config
	log    *slog.Logger
	wg     sync.WaitGroup

	telling sync.Mutex // held while listeners are told

	mu        sync.Mutex // guards what follows
	kernels   map[string]*Kernel
	listeners map[int]func(Info)
	listener  int
	closed    bool
}

// NewManager makes a Manager; the caller calls Close in the end.
func NewManager(config Config) (*Manager, error) {
	if config.Start == nil || config.Log == nil || config.Home == "" || config.RuntimeDir == nil {
		return nil, errors.New("kernels: Home, RuntimeDir, Start and Log are needed")
	}
	if config.AsUser == nil {
		config.AsUser = func(f func() error) error { return f() }
	}
	if config.Env == nil {
		config.Env = func() map[string]string { return nil }
	}
	config.RuntimeDir = sync.OnceValues(config.RuntimeDir)
	config.MaxMessage = cmp.Or(config.MaxMessage, 256<<20)
	config.StartTimeout = cmp.Or(config.StartTimeout, 2*time.Minute)
	config.Heartbeat = cmp.Or(config.Heartbeat, 10*time.Second)
	config.Grace = cmp.Or(config.Grace, 3*time.Second)
	return &Manager{config: config, log: config.Log, kernels: map[string]*Kernel{}, listeners: map[int]func(Info){}}, nil
}

// Options of a kernel that is started.
type Options struct {
	// Spec is the name of a kernelspec; empty: the box's default.
	Spec string
	// Path of the notebook that the kernel belongs to, absolute; empty: none.
	Path string
	// Cwd is the working directory; empty: that of the notebook, else the home.
	Cwd string
	// Env is on top of the box's and the spec's.
	Env map[string]string
	// Shared marks the kernel that executes code without a notebook.
	Shared bool

	hidden bool // it is nobody's yet
}

// Start starts a kernel, or takes a warm one, and answers when its process runs; Kernel.Ready waits until it can be used.
func (m *Manager) Start(ctx context.Context, options Options) (*Kernel, error) {
	spec, err := m.spec(options.Spec)
	if err != nil {
		return nil, err
	}
	if options.Cwd == "" {
		options.Cwd = m.config.Home
		if options.Path != "" {
			options.Cwd = filepath.Dir(options.Path)
		}
	}
	if k := m.take(ctx, spec, options); k != nil {
		m.tell(k)
		return k, nil
	}
	k := newKernel(m, spec, options)
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		return nil, carrel.Errorf(carrel.CodeUnavailable, "box_stopping", "the box is being stopped and starts no kernels")
	}
	if len(m.kernels) >= maxKernels {
		m.mu.Unlock()
		return nil, carrel.Errorf(carrel.CodeExhausted, "too_many_kernels", "%d kernels run in the box; shut one down first", maxKernels)
	}
	m.kernels[k.id] = k
	m.mu.Unlock()
	if err := k.first(ctx); err != nil {
		m.forget(k)
		return nil, err
	}
	m.tell(k)
	return k, nil
}

// List gives the kernels, oldest first, without those that are nobody's.
func (m *Manager) List() []*Kernel {
	return slices.DeleteFunc(m.all(), func(k *Kernel) bool {
		k.mu.Lock()
		defer k.mu.Unlock()
		return k.options.hidden
	})
}

func (m *Manager) all() []*Kernel {
	m.mu.Lock()
	result := make([]*Kernel, 0, len(m.kernels))
	for _, k := range m.kernels {
		result = append(result, k)
	}
	m.mu.Unlock()
	slices.SortFunc(result, func(a, b *Kernel) int {
		return cmp.Or(a.begun().Compare(b.begun()), strings.Compare(a.id, b.id))
	})
	return result
}

// Get gives the kernel with an id.
func (m *Manager) Get(id string) (*Kernel, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if k := m.kernels[id]; k != nil && !k.Info().hidden {
		return k, nil
	}
	return nil, carrel.NotFound("kernel", id)
}

// OfPath gives the kernel that belongs to a notebook; nil: none does.
func (m *Manager) OfPath(path string) *Kernel {
	for _, k := range m.List() {
		if path != "" && k.Path() == path {
			return k
		}
	}
	return nil
}

// OnChange has f called with every change of a kernel's state, in their order, until remove. f must not wait for kernels, nor call
// OnChange or remove. A kernel that was shut down is told with Gone.
func (m *Manager) OnChange(f func(Info)) (remove func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.listener++
	number := m.listener
	m.listeners[number] = f
	return func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.listeners, number)
	}
}

// tell tells the listeners how a kernel is now.
func (m *Manager) tell(k *Kernel) {
	m.telling.Lock()
	defer m.telling.Unlock()
	m.mu.Lock()
	order := make([]int, 0, len(m.listeners))
	for number := range m.listeners {
		order = append(order, number)
	}
	slices.Sort(order)
	var all []func(Info)
	for _, number := range order {
		all = append(all, m.listeners[number])
	}
	m.mu.Unlock()
	info := k.Info()
	if info.hidden {
		return
	}
	for _, f := range all {
		f(info)
	}
}

func (m *Manager) forget(k *Kernel) {
	m.mu.Lock()
	delete(m.kernels, k.id)
	m.mu.Unlock()
}

// Close ends all kernels and waits for everything.
func (m *Manager) Close(ctx context.Context) {
	m.mu.Lock()
	m.closed = true
	m.mu.Unlock()
	var ending sync.WaitGroup
	for _, k := range m.all() {
		ending.Go(func() {
			if err := k.Shutdown(ctx); err != nil {
				m.log.Warn("a kernel could not be shut down", "kernel", k.id, "error", err)
			}
		})
	}
	ending.Wait()
	m.wg.Wait()
}
