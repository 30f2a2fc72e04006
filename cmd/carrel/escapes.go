package main

import (
	"os"
	"time"
)

// escapes is typed input in which ~ at the beginning of a line begins a word to this program, as in ssh: ~. leaves the session,
// ~~ is one ~. It is used by one goroutine.
type escapes struct {
	from  *os.File
	leave func()
	fresh bool // what comes is at the beginning of a line
	held  bool // a ~ was typed there
}

// SetReadDeadline ends a Read that waits.
func (e *escapes) SetReadDeadline(t time.Time) error { return e.from.SetReadDeadline(t) }

func (e *escapes) Read(p []byte) (int, error) {
	if len(p) < 2 {
		return e.from.Read(p)
	}
	for {
		// A held ~ may come out before what is read now.
		n, err := e.from.Read(p[1:])
		out := e.pass(p[:0], p[1:1+n])
		if len(out) > 0 || err != nil {
			return len(out), err
		}
	}
}

// pass appends to out what of typed is for the process. out may be the byte before typed: it is never longer than what was read.
func (e *escapes) pass(out, typed []byte) []byte {
	for _, c := range typed {
		if e.held {
			e.held = false
			switch c {
			case '.':
				e.leave()
				continue
			case '~':
				e.fresh = false
				out = append(out, '~')
				continue
			}
			out = append(out, '~')
		} else if e.fresh && c == '~' {
			e.held = true
			continue
		}
		out = append(out, c)
		e.fresh = c == '\r' || c == '\n'
	}
	return out
}
