package postgres

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// takeOver sees to it that no PostgreSQL works on the data directory: an earlier process of ours may have been killed and
// have left one. Only processes whose working directory and program prove it are touched.
func (s *Server) takeOver(ctx context.Context) error {
	pidFile := filepath.Join(s.data, "postmaster.pid")
	text, err := os.ReadFile(pidFile)
	if errors.Is(err, os.ErrNotExist) {
		return s.awaitHolders(ctx)
	}
	if err != nil {
		return fmt.Errorf("read postmaster.pid: %w", err)
	}
	line, _, _ := strings.Cut(string(text), "\n")
	if pid, err := strconv.Atoi(strings.TrimSpace(line)); err == nil && pid > 1 {
		if err := s.endHolder(ctx, pid); err != nil {
			return err
		}
	}
	if err := s.awaitHolders(ctx); err != nil {
		return err
	}
	// Nobody holds it, so what is left of it is stale. PostgreSQL would refuse to start if another program had the number by now.
	if err := os.Remove(pidFile); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove a stale postmaster.pid: %w", err)
	}
	return nil
}

// endHolder ends a server of this data directory: fast, then without a checkpoint, then by force.
func (s *Server) endHolder(ctx context.Context, pid int) error {
	// The handle comes first, then the check: after it the number cannot mean another process.
	process, err := os.FindProcess(pid)
	if err != nil || !s.holds(pid) {
		return nil
	}
	defer func() { _ = process.Release() }()
	s.log.Warn("an earlier PostgreSQL still runs on the data; shutting it down", "pid", pid)
	for _, step := range []struct {
		signal  syscall.Signal
		patient time.Duration
	}{{syscall.SIGINT, fastStop}, {syscall.SIGQUIT, quitStop}, {syscall.SIGKILL, fastStop}} {
		if err := process.Signal(step.signal); err != nil {
			return nil // it is gone
		}
		gone, err := s.await(ctx, step.patient, func() bool { return !s.holds(pid) })
		if gone || err != nil {
			return err
		}
	}
	return fmt.Errorf("the earlier PostgreSQL (process %d) does not end", pid)
}

// awaitHolders waits for the server processes that a killed server leaves behind: they notice and end.
func (s *Server) awaitHolders(ctx context.Context) error {
	for range 2 {
		gone, err := s.await(ctx, quitStop, func() bool { return len(s.holders()) == 0 })
		if gone || err != nil {
			return err
		}
		for _, pid := range s.holders() {
			process, err := os.FindProcess(pid)
			if err == nil && s.holds(pid) {
				s.log.Warn("ending what an earlier PostgreSQL left", "pid", pid)
				_ = process.Kill()
			}
		}
	}
	return errors.New("processes of an earlier PostgreSQL do not end")
}

// await looks until it is so, the time is over, or ctx ends.
func (s *Server) await(ctx context.Context, patient time.Duration, so func() bool) (bool, error) {
	deadline := time.NewTimer(patient)
	defer deadline.Stop()
	ticker := time.NewTicker(poll)
	defer ticker.Stop()
	for !so() {
		select {
		case <-ticker.C:
		case <-deadline.C:
			return so(), nil
		case <-ctx.Done():
			return false, context.Cause(ctx)
		}
	}
	return true, nil
}

// holders gives every process that holds the data directory.
func (s *Server) holders() []int {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var pids []int
	for _, entry := range entries {
		if pid, err := strconv.Atoi(entry.Name()); err == nil && s.holds(pid) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// holds reports whether a process is a PostgreSQL that works on the data directory: each of them has it as working directory.
func (s *Server) holds(pid int) bool {
	proc := "/proc/" + strconv.Itoa(pid)
	program, err := os.Readlink(proc + "/exe")
	if err != nil || filepath.Base(strings.TrimSuffix(program, " (deleted)")) != "postgres" {
		return false
	}
	there, err := os.Stat(proc + "/cwd")
	if err != nil {
		return false // a zombie has none
	}
	ours, err := os.Stat(s.data)
	return err == nil && os.SameFile(there, ours)
}
