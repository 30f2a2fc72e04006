package carreltest

import (
	"context"
	"errors"
	"fmt"
	"sync"
)

// Part is one process of the ring. Its methods are safe for concurrent use and answer when it is done.
type Part struct {
	name  string
	begin func() (*life, error)

	mu  sync.Mutex // held while it is started or ended; guards now
	now *life      // nil: it does not run
}

// life is a part from one start to its end.
type life struct {
	ctx    context.Context
	cancel context.CancelFunc
	work   sync.WaitGroup
	leave  []func() // when it stops: take no new work
	sever  []func() // when it is killed: nothing from it reaches anybody
	after  []func() // when everything has ended, last first

	mu     sync.Mutex // guards what follows
	killed bool
	errs   []error
}

func newLife() *life {
	l := &life{}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	return l
}

// run adds what the part does until its context ends.
func (l *life) run(what string, f func(context.Context) error) {
	l.work.Go(func() {
		err := f(l.ctx)
		if err == nil {
			return
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		if !l.killed {
			l.errs = append(l.errs, fmt.Errorf("%s: %w", what, err))
		}
	})
}

func (l *life) end(kill bool) error {
	if kill {
		l.mu.Lock()
		l.killed = true
		l.mu.Unlock()
		each(l.sever)
	}
	each(l.leave)
	l.cancel()
	l.work.Wait()
	for i := len(l.after) - 1; i >= 0; i-- {
		l.after[i]()
	}
	return errors.Join(l.errs...)
}

func each(list []func()) {
	for _, f := range list {
		f()
	}
}

// Name says which part it is, such as control-0.
func (p *Part) Name() string { return p.name }

// Start starts the part unless it runs.
func (p *Part) Start() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.now != nil {
		return nil
	}
	l, err := p.begin()
	if err != nil {
		return fmt.Errorf("start %s: %w", p.name, err)
	}
	p.now = l
	return nil
}

// Stop ends the part as a signal would: what it does comes to a good end. A part that does not run is stopped.
func (p *Part) Stop() error { return p.end(false) }

// Kill ends the part as a power cut would. Its files stay as they are.
func (p *Part) Kill() error { return p.end(true) }

func (p *Part) end(kill bool) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.now == nil {
		return nil
	}
	err := p.now.end(kill)
	p.now = nil
	if err != nil {
		return fmt.Errorf("end %s: %w", p.name, err)
	}
	return nil
}

// Running reports whether the part was started and not ended.
func (p *Part) Running() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.now != nil
}
