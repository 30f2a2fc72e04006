package main

import (
	"os"
	"sync"
	"time"

	"carrel.dev/carrel/internal/client"
)

func forwardedSignals() []os.Signal { return []os.Signal{os.Interrupt} }

func signalName(os.Signal) string { return "INT" }

// watchSize sends the terminal's size whenever it has changed. Windows has no signal for that: it looks.
func watchSize(size func() *client.TerminalSize) (<-chan client.TerminalSize, func()) {
	sizes := make(chan client.TerminalSize, 1)
	done := make(chan struct{})
	var wait sync.WaitGroup
	wait.Go(func() {
		last := *size()
		ticker := time.NewTicker(500 * time.Millisecond)
		defer ticker.Stop()
		for {
			select {
			case <-ticker.C:
				now := *size()
				if now == last {
					continue
				}
				last = now
				select {
				case <-sizes: // an older one that nobody took
				default:
				}
				sizes <- now
			case <-done:
				return
			}
		}
	})
	return sizes, func() {
		close(done)
		wait.Wait()
	}
}
