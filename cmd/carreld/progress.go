package main

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/term"
)

// progress prints what is going on: on a terminal one line that is written over, elsewhere a line when
// something has changed. It is safe for concurrent use.
type progress struct {
	w        io.Writer
	terminal bool

	mu   sync.Mutex // guards open, and each step's last
	open bool       // the last line has no end yet
}

func newProgress(w io.Writer) *progress {
	f, ok := w.(*os.File)
	return &progress{w: w, terminal: ok && term.IsTerminal(int(f.Fd()))}
}

// step is one thing that takes a while.
type step struct {
	p     *progress
	title string
	began time.Time
	last  string // what was said of it last
}

func (p *progress) step(title string) *step {
	s := &step{p: p, title: title, began: time.Now()}
	s.update("")
	return s
}

// update says how far the step is.
func (s *step) update(detail string) {
	text := s.title + " ..."
	if detail != "" {
		text += " " + detail
	}
	s.p.mu.Lock()
	defer s.p.mu.Unlock()
	if !s.p.terminal {
		if text == s.last {
			return
		}
		s.last = text
		if detail != "" { // the title alone is printed when the step is done
			fmt.Fprintln(s.p.w, text)
		}
		return
	}
	fmt.Fprintf(s.p.w, "\r\033[K%.*s", s.p.width(), text)
	s.p.open = true
}

// done ends the step.
func (s *step) done() {
	s.p.line("%s: done (%s)", s.title, roughly(time.Since(s.began)))
}

// line prints one line of its own.
func (p *progress) line(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.open {
		fmt.Fprint(p.w, "\r\033[K")
		p.open = false
	}
	fmt.Fprintf(p.w, format+"\n", args...)
}

func (p *progress) width() int {
	if f, ok := p.w.(*os.File); ok {
		if w, _, err := term.GetSize(int(f.Fd())); err == nil && w > 1 {
			return w - 1
		}
	}
	return 79
}

// roughly is a duration for people.
func roughly(d time.Duration) string {
	switch {
	case d < time.Second:
		return d.Round(time.Millisecond).String()
	case d < time.Minute:
		return d.Round(100 * time.Millisecond).String()
	}
	return d.Round(time.Second).String()
}
