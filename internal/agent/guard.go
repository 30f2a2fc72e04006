package agent

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

const (
	procDir = "/proc"
	// growthRate is how fast processes can use up memory, in bytes per second. Measured in gVisor on two busy cores: up to 0.75
	// GiB/s for a process that only touches pages.
	growthRate = 2 << 30
	// The guard looks this often, depending on how near the limit is.
	minLook, maxLook = 10 * time.Millisecond, time.Second
	// afterKill is how long a killed process has to give its memory back before the next one is killed.
	afterKill = 500 * time.Millisecond
	// minVictim is the smallest process that is worth ending, in bytes: memory that is in files is not freed so.
	minVictim = 1 << 20
)

// memoryUse of a box, in bytes.
type memoryUse struct {
	used  int64
	total int64 // what there is, the headroom above the box's limit included
}

// memoryProcess is a candidate for the guard.
type memoryProcess struct {
	pid, parent, session int
	resident             int64 // bytes
}

// memorySource is where the guard looks and how it kills.
type memorySource struct {
	use       func() (memoryUse, error)
	processes func() ([]memoryProcess, error)
	kill      func(pid int) error
}

// guardMemory ends the largest process whenever the processes of the box together use more than the identity allows,
// before the host's limit, which would end the whole box. It sleeps as long as there is no process at all, and else
// for as long as the memory that is left must last.
func (a *Agent) guardMemory(ctx context.Context) {
	source := a.config.memory
	if source == nil {
		source = procMemory()
		if closer, err := openMeminfo(); err == nil {
			defer closer.Close()
			source.use = func() (memoryUse, error) { return readMeminfo(closer) }
		}
	}
	wait := time.NewTimer(0)
	defer wait.Stop()
	complained := false
	for {
		select {
		case <-wait.C:
		case <-ctx.Done():
			return
		}
		select {
		case <-a.reaper.children():
		case <-ctx.Done():
			return
		}
		id, _ := a.current()
		if id.MemoryBytes == 0 {
			wait.Reset(maxLook)
			continue
		}
		use, err := source.use()
		if err != nil {
			if !complained {
				a.log.Error("the memory in use cannot be read; the box is not guarded", "error", err)
			}
			complained = true
			wait.Reset(maxLook)
			continue
		}
		if use.used > id.MemoryBytes {
			a.relieve(source, use.used, id.MemoryBytes)
			wait.Reset(a.settle(ctx, source, id.MemoryBytes))
			continue
		}
		wait.Reset(untilNextLook(use, id.MemoryBytes))
	}
}

// untilNextLook is the time in which what is left, with half of the headroom, cannot be used up.
func untilNextLook(use memoryUse, limit int64) time.Duration {
	left := limit - use.used + max(0, use.total-limit)/2
	return min(maxLook, max(minLook, time.Duration(float64(left)/growthRate*float64(time.Second))))
}

// settle waits until the use is below the limit, at most afterKill, and gives how long to wait before the next look.
func (a *Agent) settle(ctx context.Context, source *memorySource, limit int64) time.Duration {
	deadline := time.NewTimer(afterKill)
	defer deadline.Stop()
	tick := time.NewTicker(minLook)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			if use, err := source.use(); err != nil || use.used <= limit {
				return minLook
			}
		case <-deadline.C:
			return 0
		case <-ctx.Done():
			return 0
		}
	}
}

// relieve kills the largest process and notes it with the process of ours that it belongs to.
func (a *Agent) relieve(source *memorySource, used, limit int64) {
	all, err := source.processes()
	if err != nil {
		a.log.Error("the processes of the box cannot be listed; nothing is ended for memory", "error", err)
		return
	}
	parents := map[int]memoryProcess{}
	var largest memoryProcess
	for _, one := range all {
		parents[one.pid] = one
		if one.pid != 1 && one.pid != os.Getpid() && one.resident > largest.resident {
			largest = one
		}
	}
	if largest.resident < minVictim {
		a.log.Warn("more memory is used than the box has, but not by processes", "used", used, "limit", limit)
		return
	}
	ours := a.owners(largest, parents)
	for _, p := range ours {
		p.killed("memory")
	}
	if err := source.kill(largest.pid); err != nil && !errors.Is(err, unix.ESRCH) {
		a.log.Error("the largest process could not be ended", "pid", largest.pid, "error", err)
		return
	}
	a.log.Warn("ended the largest process because memory was out", "pid", largest.pid, "resident", largest.resident, "used", used, "limit", limit)
}

// owners gives the live processes of ours that one belongs to: by its session, or through its parents.
func (a *Agent) owners(one memoryProcess, all map[int]memoryProcess) []*process {
	var result []*process
	pids := []int{one.pid, one.session}
	for range len(all) { // a list read while it changes may have a circle
		parent, ok := all[one.parent]
		if !ok || parent.pid <= 1 {
			break
		}
		pids = append(pids, parent.pid)
		one = parent
	}
	for _, p := range a.processes.list() {
		if slices.Contains(pids, p.pid) && p.show().GetRunning() {
			result = append(result, p)
		}
	}
	return result
}

// procMemory looks into /proc.
func procMemory() *memorySource {
	return &memorySource{
		use: func() (memoryUse, error) {
			file, err := openMeminfo()
			if err != nil {
				return memoryUse{}, err
			}
			defer file.Close()
			return readMeminfo(file)
		},
		processes: listMemory,
		kill:      func(pid int) error { return unix.Kill(pid, unix.SIGKILL) },
	}
}

func openMeminfo() (*os.File, error) { return os.Open(filepath.Join(procDir, "meminfo")) }

// readMeminfo reads what gVisor counts for the whole sandbox: MemTotal is the limit of its cgroup, and MemFree what is
// left of it after anonymous memory, tmpfs and cached files. Files that lie on a disk of the host are not in it.
func readMeminfo(file *os.File) (memoryUse, error) {
	var buf [512]byte // both are at the beginning
	n, err := file.ReadAt(buf[:], 0)
	if n == 0 {
		return memoryUse{}, fmt.Errorf("read meminfo: %w", err)
	}
	total, ok1 := meminfoField(buf[:n], "MemTotal:")
	free, ok2 := meminfoField(buf[:n], "MemFree:")
	if !ok1 || !ok2 {
		return memoryUse{}, errors.New("read meminfo: it has no MemTotal or MemFree")
	}
	return memoryUse{used: total - free, total: total}, nil
}

// meminfoField gives a field in bytes.
func meminfoField(data []byte, name string) (int64, bool) {
	_, rest, ok := bytes.Cut(data, []byte(name))
	if !ok {
		return 0, false
	}
	fields := bytes.Fields(rest[:min(len(rest), 64)])
	if len(fields) == 0 {
		return 0, false
	}
	value, err := strconv.ParseInt(string(fields[0]), 10, 64)
	return value << 10, err == nil
}

// listMemory lists the processes of the box with their memory.
func listMemory() ([]memoryProcess, error) {
	entries, err := os.ReadDir(procDir)
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	var result []memoryProcess
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		if one, err := readStat(pid); err == nil {
			result = append(result, one)
		}
	}
	slices.SortFunc(result, func(a, b memoryProcess) int { return cmp.Compare(a.pid, b.pid) })
	return result, nil
}

// readStat reads /proc/PID/stat. The name in parentheses may have anything in it, parentheses included.
func readStat(pid int) (memoryProcess, error) {
	data, err := os.ReadFile(filepath.Join(procDir, strconv.Itoa(pid), "stat"))
	if err != nil {
		return memoryProcess{}, err
	}
	return parseStat(pid, data)
}

func parseStat(pid int, data []byte) (memoryProcess, error) {
	fields := bytes.Fields(data[bytes.LastIndexByte(data, ')')+1:])
	// From the third field on: state, ppid, pgrp, session, …; rss in pages is the 24th of all.
	const parent, session, rss = 4 - 3, 6 - 3, 24 - 3
	if len(fields) <= rss {
		return memoryProcess{}, errors.New("read stat: too few fields")
	}
	one := memoryProcess{pid: pid}
	var err1, err2, err3 error
	one.parent, err1 = strconv.Atoi(string(fields[parent]))
	one.session, err2 = strconv.Atoi(string(fields[session]))
	one.resident, err3 = strconv.ParseInt(string(fields[rss]), 10, 64)
	one.resident *= int64(os.Getpagesize())
	return one, errors.Join(err1, err2, err3)
}
