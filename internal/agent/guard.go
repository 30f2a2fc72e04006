package agent

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// growthRate is how fast a processor can use up memory, in bytes per second. Measured in gVisor: up to 0.75 GiB/s for a
	// process that only touches pages.
	growthRate = 768 << 20
	// The guard looks this often, depending on how near the limit is. A look costs 1 to 2 ms of CPU time in gVisor, nearly all
	// for waking up, so it is never more frequent than it must be.
	minLook, maxLook = 10 * time.Millisecond, 2 * time.Second
	// unlimitedLook is how soon a limit is noticed that comes with another run.
	unlimitedLook = time.Minute
	// A use that grew by this much between two looks, in bytes, is looked at more often.
	growing = 1 << 20
	// afterKill is how long killed processes have to give their memory back before others are killed.
	afterKill = 500 * time.Millisecond
	// countedLate is how many looks after their end the memory of killed processes may still be counted.
	countedLate = 10
	// minVictim is the smallest process that is worth ending, in bytes: memory that is in files is not freed so.
	minVictim = 1 << 20
)

// memoryProcess is a candidate for the guard.
type memoryProcess struct {
	pid, parent, group, session int
	resident                    int64 // bytes
}

// memorySource is where the guard looks and how it kills.
type memorySource struct {
	use       func() (int64, error) // bytes
	processes func() ([]memoryProcess, error)
	kill      func(pid int) error
	// holds reports whether a process still has memory.
	holds func(pid int) bool
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
			source.use = func() (int64, error) { return readMeminfo(closer) }
		}
	}
	wait := time.NewTimer(0)
	defer wait.Stop()
	complained := false
	last, stuck := int64(0), false
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
			wait.Reset(unlimitedLook)
			continue
		}
		used, err := source.use()
		if err != nil {
			if !complained {
				a.log.Error("the memory in use cannot be read; the box is not guarded", "error", err)
			}
			complained = true
			wait.Reset(maxLook)
			continue
		}
		limit := guardLimit(id.MemoryBytes)
		if used > limit {
			killed := a.relieve(source, used, limit, stuck)
			a.settle(ctx, source, limit, killed)
			stuck = len(killed) == 0
			last = 0 // look soon
			wait.Reset(minLook)
			continue
		}
		wait.Reset(untilNextLook(used, limit, used > last+growing))
		last = used
	}
}

// guardLimit is the use above which processes are ended, in bytes. It is a little less than what the box has: the kernel
// in the sandbox never reports more in use than there is, so a use that is over the limit looks like one that is at it.
func guardLimit(memory int64) int64 { return memory - memory/64 }

// untilNextLook is the time in which what is left cannot be used up, a quarter of it when the use is growing. The headroom
// that the host gives above the limit is for the time that looking and killing take.
func untilNextLook(used, limit int64, grows bool) time.Duration {
	rate := float64(growthRate * min(8, runtime.NumCPU()))
	if grows {
		rate *= 4
	}
	return min(maxLook, max(minLook, time.Duration(float64(limit-used)/rate*float64(time.Second))))
}

// settle waits until the use is below the limit, at most afterKill; or until the killed processes are gone and the use is still
// rising, or did not come down for a while (it is counted a little later than it is freed).
func (a *Agent) settle(ctx context.Context, source *memorySource, limit int64, killed []int) {
	deadline := time.NewTimer(afterKill)
	defer deadline.Stop()
	tick := time.NewTicker(minLook)
	defer tick.Stop()
	last, over := int64(0), 0
	for {
		select {
		case <-tick.C:
			used, err := source.use()
			if err != nil || used <= limit {
				return
			}
			if !slices.ContainsFunc(killed, source.holds) {
				if over++; over > countedLate || (over > 1 && used > last+growing) {
					return
				}
			}
			last = used
		case <-deadline.C:
			return
		case <-ctx.Done():
			return
		}
	}
}

// relieve kills the largest processes, as many as it takes to come below the limit, notes it with the processes of ours that they
// belong to, and gives their pids. Processes that are small beside what is missing are spared, unless that was no help before.
func (a *Agent) relieve(source *memorySource, used, limit int64, stuck bool) []int {
	all, err := source.processes()
	if err != nil {
		a.log.Error("the processes of the box cannot be listed; nothing is ended for memory", "error", err)
		return nil
	}
	byPid := map[int]memoryProcess{}
	for _, one := range all {
		byPid[one.pid] = one
	}
	slices.SortFunc(all, func(x, y memoryProcess) int { return cmp.Compare(y.resident, x.resident) })
	smallest := int64(minVictim)
	if !stuck {
		smallest = max(smallest, (used-limit)/8)
	}
	var killed []int
	for _, one := range all {
		if used <= limit || one.resident < smallest {
			break
		}
		if one.pid == 1 || one.pid == os.Getpid() {
			continue
		}
		for _, p := range a.owners(one, byPid) {
			p.killed("memory")
		}
		if err := source.kill(one.pid); err != nil {
			if !errors.Is(err, unix.ESRCH) {
				a.log.Error("a large process could not be ended", "pid", one.pid, "error", err)
			}
			continue
		}
		a.log.Warn("ended the largest process because memory was out", "pid", one.pid, "resident", one.resident, "used", used, "limit", limit)
		used -= one.resident
		killed = append(killed, one.pid)
	}
	if len(killed) == 0 {
		a.log.Warn("more memory is used than the box has, but not by processes", "used", used, "limit", limit)
	}
	return killed
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
		use: func() (int64, error) {
			file, err := openMeminfo()
			if err != nil {
				return 0, err
			}
			defer file.Close()
			return readMeminfo(file)
		},
		processes: listMemory,
		kill:      func(pid int) error { return unix.Kill(pid, unix.SIGKILL) },
		holds: func(pid int) bool {
			one, err := readStat(pid)
			return err == nil && one.resident > 0
		},
	}
}

func openMeminfo() (*os.File, error) { return os.Open(filepath.Join(procDir, "meminfo")) }

// readMeminfo reads what gVisor counts for the whole sandbox: MemTotal is the limit of its cgroup, and MemFree what is
// left of it after anonymous memory, tmpfs and cached files. Files that lie on a disk of the host are not in it.
func readMeminfo(file *os.File) (int64, error) {
	var buf [512]byte // both are at the beginning
	n, err := file.ReadAt(buf[:], 0)
	if n == 0 {
		return 0, fmt.Errorf("read meminfo: %w", err)
	}
	total, ok1 := meminfoField(buf[:n], "MemTotal:")
	free, ok2 := meminfoField(buf[:n], "MemFree:")
	if !ok1 || !ok2 {
		return 0, errors.New("read meminfo: it has no MemTotal or MemFree")
	}
	return total - free, nil
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
	pids, err := processIDs()
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	var result []memoryProcess
	for _, pid := range pids {
		if one, err := readStat(pid); err == nil {
			result = append(result, one)
		}
	}
	return result, nil
}

func readStat(pid int) (memoryProcess, error) {
	fields, err := statFields(pid)
	if err != nil {
		return memoryProcess{}, err
	}
	return parseStat(pid, fields)
}

func parseStat(pid int, fields [][]byte) (memoryProcess, error) {
	const parent, group, session, rss = 4 - firstField, 5 - firstField, 6 - firstField, 24 - firstField // rss is in pages
	if len(fields) <= rss {
		return memoryProcess{}, errors.New("read stat: too few fields")
	}
	one := memoryProcess{pid: pid}
	var err1, err2, err3, err4 error
	one.parent, err1 = strconv.Atoi(string(fields[parent]))
	one.session, err2 = strconv.Atoi(string(fields[session]))
	one.resident, err3 = strconv.ParseInt(string(fields[rss]), 10, 64)
	one.group, err4 = strconv.Atoi(string(fields[group]))
	one.resident *= int64(os.Getpagesize())
	return one, errors.Join(err1, err2, err3, err4)
}
