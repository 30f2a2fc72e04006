package agent

import (
	"context"
	"io"
	"time"

	"golang.org/x/sys/unix"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/agent/jupyter"
	"carrel.dev/carrel/internal/carrel"
)

// newJupyter makes what serves clients of Jupyter, with the user's rights.
func (a *Agent) newJupyter() (*jupyter.Server, error) {
	calls := make(chan struct{}, maxFileCalls)
	return jupyter.New(jupyter.Config{
		Home: a.config.Home, Terminals: jupyterTerminals{a}, Kernels: a.notebooks.kernels, Move: a.notebooks.service.Move, Sweep: a.notebooks.service.Sweep, Log: a.log, Now: a.now,
		AsUser: func(ctx context.Context, f func() error) error {
			select {
			case calls <- struct{}{}:
				defer func() { <-calls }()
			case <-ctx.Done():
				return ctx.Err()
			}
			return a.runAsUser(f)
		},
	})
}

// jupyterTerminals shows the agent's processes on terminals to clients of Jupyter. They are the same that everybody else sees.
type jupyterTerminals struct{ a *Agent }

// kindTerminal is the kind of a process that is a person's terminal.
const kindTerminal = "terminal"

func (t jupyterTerminals) Start(ctx context.Context, user, cwd string, rows, cols int) (string, error) {
	p, _, err := t.a.startProcess(ctx, &carrelv1.StartProcessRequest{
		Login: true, Kind: kindTerminal, Cwd: cwd, Pty: &carrelv1.TerminalSize{Rows: uint32(rows), Cols: uint32(cols)},
	}, user, false)
	if err != nil {
		return "", err
	}
	return p.id, nil
}

func (t jupyterTerminals) List() []jupyter.Terminal {
	var result []jupyter.Terminal
	for _, p := range t.a.processes.list() {
		p.mu.Lock()
		running := !p.ended
		p.mu.Unlock()
		if running && p.command.pty != nil && p.kind == kindTerminal {
			result = append(result, jupyter.Terminal{ID: p.id, Started: p.started})
		}
	}
	return result
}

func (t jupyterTerminals) get(id string) (*process, error) {
	p, err := t.a.processes.get(id)
	if err == nil && (p.command.pty == nil || p.input == nil) {
		err = carrel.NotFound("terminal", id)
	}
	return p, err
}

func (t jupyterTerminals) View(id, user string) (jupyter.TerminalView, error) {
	p, err := t.get(id)
	if err != nil {
		return nil, err
	}
	v, err := p.viewAs(printable(user), [streams]int64{})
	if err != nil {
		return nil, err
	}
	return &jupyterView{v}, nil
}

func (t jupyterTerminals) Write(ctx context.Context, id string, data []byte) error {
	p, err := t.get(id)
	if err != nil {
		return err
	}
	_, err = p.write(ctx, "", -1, data, false)
	return err
}

func (t jupyterTerminals) Resize(id string, rows, cols int) error {
	p, err := t.get(id)
	if err != nil {
		return err
	}
	size, err := winsize(&carrelv1.TerminalSize{Rows: uint32(rows), Cols: uint32(cols)})
	if err != nil {
		return err
	}
	return resize(p.input.file, size)
}

// endTime is how long a terminal has to end when it is hung up, until it is killed.
const endTime = 2 * time.Second

func (t jupyterTerminals) End(id string) error {
	p, err := t.get(id)
	if err != nil {
		return err
	}
	if err := t.a.hangUp(p); err != nil {
		return nil //nolint:nilerr // it has ended by itself
	}
	v, err := p.viewAs("", [streams]int64{-1, -1})
	if err != nil {
		return err
	}
	defer v.leave()
	// A list that is asked for next has it no more.
	for _, last := range []bool{false, true} {
		ctx, cancel := context.WithTimeout(context.Background(), endTime)
		for done := false; !done && err == nil; {
			_, done, err = v.event(ctx, nil)
		}
		cancel()
		if err == nil || last {
			return nil
		}
		err = nil
		_ = t.a.reaper.signal(p.pid, unix.SIGKILL)
	}
	return nil
}

// jupyterView is a viewer of a terminal, from the beginning of what is kept.
type jupyterView struct{ v *viewer }

func (j *jupyterView) Next(ctx context.Context) ([]byte, error) {
	for {
		event, done, err := j.v.event(ctx, nil)
		switch {
		case err != nil:
			return nil, err
		case done:
			return nil, io.EOF
		case event.GetOutput() != nil:
			return event.GetOutput().GetData(), nil
		}
	}
}

func (j *jupyterView) Close() { j.v.leave() }
