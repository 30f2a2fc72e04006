//go:build unix

package main

import (
	"os"
	"os/signal"
	"sync"
	"syscall"

	"carrel.dev/carrel/internal/client"
)

var signalNames = map[syscall.Signal]string{
	syscall.SIGINT: "INT", syscall.SIGTERM: "TERM", syscall.SIGHUP: "HUP", syscall.SIGQUIT: "QUIT",
	syscall.SIGUSR1: "USR1", syscall.SIGUSR2: "USR2",
}

func forwardedSignals() []os.Signal {
	var list []os.Signal
	for s := range signalNames {
		list = append(list, s)
	}
	return list
}

func signalName(s os.Signal) string {
	if n, ok := s.(syscall.Signal); ok {
		return signalNames[n]
	}
	return "TERM"
}

// watchSize sends the terminal's size whenever it has changed.
func watchSize(size func() *client.TerminalSize) (<-chan client.TerminalSize, func()) {
	caught := make(chan os.Signal, 1)
	signal.Notify(caught, syscall.SIGWINCH)
	sizes := make(chan client.TerminalSize, 1)
	done := make(chan struct{})
	var wait sync.WaitGroup
	wait.Go(func() {
		for {
			select {
			case <-caught:
				select {
				case <-sizes: // an older one that nobody took
				default:
				}
				sizes <- *size()
			case <-done:
				return
			}
		}
	})
	return sizes, func() {
		signal.Stop(caught)
		close(done)
		wait.Wait()
	}
}
