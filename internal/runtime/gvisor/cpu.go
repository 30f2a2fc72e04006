package gvisor

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"carrel.dev/carrel/internal/runtime"
)

var _ runtime.Meter = (*Runtime)(nil)

// clockTick is the unit of times in /proc/PID/stat. It is 10 ms on every Linux that Go runs on.
const clockTick = 10 * time.Millisecond

// CPUTime implements runtime.Meter: by the accounting of the sandbox's cgroup where there is one, else by adding up its processes.
func (r *Runtime) CPUTime(run string) (time.Duration, error) {
	used, err := r.cgroups.cpuTime(run)
	if err == nil {
		return used, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return 0, err
	}
	pids := r.cgroups.procs(run)
	if len(pids) == 0 {
		state, err := r.readStateFile(run)
		if errors.Is(err, fs.ErrNotExist) {
			return 0, runtime.ErrNotFound
		}
		if err != nil {
			return 0, err
		}
		pids = withChildren([]int{state.Sandbox.Pid, state.GoferPid})
	}
	var total time.Duration
	for _, pid := range pids {
		total += processTime(pid)
	}
	return total, nil
}

// cpuTime reads what the kernel accounts for the cgroup of run; fs.ErrNotExist: it accounts nothing.
func (s cgroupSet) cpuTime(run string) (time.Duration, error) {
	h := s.with("cpu")
	if h == nil {
		return 0, fs.ErrNotExist
	}
	dir := filepath.Join(h.parent, run)
	if !h.v2 {
		data, err := os.ReadFile(filepath.Join(dir, "cpuacct.usage"))
		if err != nil {
			return 0, err
		}
		n, err := strconv.ParseInt(string(bytes.TrimSpace(data)), 10, 64)
		return time.Duration(n), err
	}
	data, err := os.ReadFile(filepath.Join(dir, "cpu.stat"))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(data)) {
		if value, ok := strings.CutPrefix(line, "usage_usec "); ok {
			n, err := strconv.ParseInt(strings.TrimSpace(value), 10, 64)
			return time.Duration(n) * time.Microsecond, err
		}
	}
	return 0, fmt.Errorf("reading the CPU of %s: cpu.stat has no usage_usec", run)
}

// processTime is the CPU time of a process and of those of its children that it has waited for; 0 if it is gone.
func processTime(pid int) time.Duration {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	return statTime(data)
}

// statTime adds utime, stime, cutime and cstime of /proc/PID/stat (proc(5): fields 14 to 17). The name of the program, which is in
// brackets, may hold anything.
func statTime(stat []byte) time.Duration {
	_, rest, ok := bytes.Cut(stat[max(0, bytes.LastIndexByte(stat, ')')):], []byte(")"))
	fields := strings.Fields(string(rest))
	if !ok || len(fields) < 15 {
		return 0
	}
	var ticks int64
	for _, f := range fields[11:15] {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil || n < 0 {
			return 0
		}
		ticks += n
	}
	return time.Duration(ticks) * clockTick
}

// withChildren adds the processes that descend from some.
func withChildren(pids []int) []int {
	for i := 0; i < len(pids); i++ {
		tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pids[i]))
		if err != nil {
			continue
		}
		for _, file := range tasks {
			data, err := os.ReadFile(file)
			if err != nil {
				continue
			}
			for field := range strings.FieldsSeq(string(data)) {
				if pid, err := strconv.Atoi(field); err == nil && !slices.Contains(pids, pid) {
					pids = append(pids, pid)
				}
			}
		}
	}
	return pids
}
