package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"time"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/client"
)

// linkWatch tells a person of a connection that stays broken, and lets Ctrl-C give up then.
type linkWatch struct {
	a      *app
	raw    bool // the terminal is raw: lines need a carriage return
	leaves bool // an interrupt ends the session and nothing else
	cancel context.CancelFunc

	mu      sync.Mutex // guards what follows
	started bool
	down    bool
	timer   *time.Timer
	told    bool
	gaveUp  bool
	gone    bool // the person has left
}

func (l *linkWatch) set(state client.Link, _ error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.down = state == client.LinkDown
	if l.timer != nil {
		l.timer.Stop()
	}
	if l.down {
		l.timer = time.AfterFunc(noticeAfter, func() {
			l.say("the connection is broken; trying again ("+l.wayOut()+" gives up, the command goes on)", true)
		})
		return
	}
	if l.told {
		l.told = false
		l.line("the connection is back")
	}
}

func (l *linkWatch) say(text string, told bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.down {
		l.told = told
		l.line(text)
	}
}

func (l *linkWatch) line(text string) {
	end := "\n"
	if l.raw {
		end = "\r\n"
	}
	fmt.Fprint(l.a.stderr, end+"carrel: "+text+end)
}

// wayOut is what a person does to end the session without the command.
func (l *linkWatch) wayOut() string {
	if l.raw {
		return "Enter ~ ."
	}
	return "Ctrl-C"
}

// leave ends the session; the command goes on.
func (l *linkWatch) leave() {
	l.mu.Lock()
	l.gone = true
	l.mu.Unlock()
	l.cancel()
}

func (l *linkWatch) left() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.gone
}

func (l *linkWatch) given() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.gaveUp
}

// start says that there is a process to forward signals to.
func (l *linkWatch) start(*carrelv1.Process) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.started = true
}

// forwardSignals passes this program's signals on; before there is a process, and while the connection is
// broken, an interrupt gives up.
func (l *linkWatch) forwardSignals() (<-chan string, func()) {
	caught := make(chan os.Signal, 16)
	signal.Notify(caught, forwardedSignals()...)
	names := make(chan string, 16)
	done := make(chan struct{})
	var wait sync.WaitGroup
	wait.Go(func() {
		for {
			select {
			case s := <-caught:
				name := signalName(s)
				if l.leaves {
					l.leave()
					continue
				}
				l.mu.Lock()
				giveUp := (l.down || !l.started) && (name == "INT" || name == "TERM" || name == "HUP")
				l.gaveUp = l.gaveUp || giveUp && l.started
				l.mu.Unlock()
				if giveUp {
					l.cancel()
					continue
				}
				select {
				case names <- name:
				default: // sixteen wait already
				}
			case <-done:
				return
			}
		}
	})
	return names, func() {
		signal.Stop(caught)
		close(done)
		wait.Wait()
		l.end()
	}
}

// end says nothing more.
func (l *linkWatch) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.timer != nil {
		l.timer.Stop()
	}
}
