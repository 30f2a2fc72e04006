package node

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	reapEvery = 2 * time.Second
	// reapAge is how long a child must have been dead and not been waited for to be taken for an orphan.
	// Whoever starts a process with os/exec waits for it at once, and a runtime looks at the status of its
	// sandboxes as soon as they end.
	reapAge = 10 * time.Second
)

// reapOrphans makes this process the one that inherits the processes of sandboxes whose starter has ended, and
// collects those that die, until ctx ends. Children that somebody waits for are left to them.
func reapOrphans(ctx context.Context) error {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("become the subreaper: %w", err)
	}
	ticker := time.NewTicker(reapEvery)
	defer ticker.Stop()
	dead := map[int]time.Time{}
	for {
		select {
		case <-ticker.C:
			dead = reapOnce(dead, time.Now(), reapAge)
		case <-ctx.Done():
			return nil
		}
	}
}

// reapOnce collects the zombies that are in dead for age, and answers those that wait.
func reapOnce(dead map[int]time.Time, now time.Time, age time.Duration) map[int]time.Time {
	next := map[int]time.Time{}
	for _, pid := range children() {
		if !isZombie(pid) {
			continue
		}
		since, known := dead[pid]
		if !known {
			since = now
		}
		if now.Sub(since) < age {
			next[pid] = since
			continue
		}
		if _, err := unix.Wait4(pid, nil, unix.WNOHANG, nil); err != nil {
			next[pid] = since
		}
	}
	return next
}

// children lists the children of all threads of this process.
func children() []int {
	files, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil {
		return nil
	}
	var pids []int
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			continue // the thread has ended
		}
		for _, word := range strings.Fields(string(data)) {
			if pid, err := strconv.Atoi(word); err == nil {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

func isZombie(pid int) bool {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, rest, ok := strings.Cut(string(data), ") ")
	return ok && strings.HasPrefix(rest, "Z")
}
