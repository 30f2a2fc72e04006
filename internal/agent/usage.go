package agent

import (
	"fmt"
	"runtime"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/timestamppb"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
)

// clockTick is the unit of times in /proc/PID/stat and /proc/stat, in milliseconds.
const clockTick = 10

// usage tells what the box uses of what it may.
func (a *Agent) usage(now time.Time) (*carrelv1.BoxUsage, error) {
	id, _ := a.current()
	used := &carrelv1.BoxUsage{Time: timestamppb.New(now), CpuLimitMillis: int64(runtime.NumCPU()) * 1000, ProcessesLimit: int32(id.Processes)}
	file, err := openMeminfo()
	if err != nil {
		return nil, fmt.Errorf("read the memory in use: %w", err)
	}
	defer file.Close()
	if used.MemoryBytes, err = readMeminfo(file); err != nil {
		return nil, err
	}
	used.MemoryLimitBytes = id.MemoryBytes
	if used.GetMemoryLimitBytes() == 0 {
		var buf [512]byte
		n, _ := file.ReadAt(buf[:], 0)
		used.MemoryLimitBytes, _ = meminfoField(buf[:n], "MemTotal:")
	}
	used.CpuMillis, used.Processes = a.processorTime()
	used.HomeBytes, used.HomeLimitBytes = diskUse(a.config.Home)
	used.RootBytes, used.RootLimitBytes = diskUse(a.config.Root)
	return used, nil
}

// diskUse gives how much of the file system at a path is used and how much fits; 0 where nobody knows.
func diskUse(path string) (used, limit int64) {
	var stat unix.Statfs_t
	if err := unix.Statfs(path, &stat); err != nil || stat.Blocks == 0 || stat.Blocks > 1<<50/uint64(max(stat.Bsize, 1)) {
		return 0, 0
	}
	taken := int64(stat.Blocks - stat.Bfree)
	return taken * stat.Bsize, (taken + int64(stat.Bavail)) * stat.Bsize
}

// processorTime gives the processor time of everything that ran in the box, in milliseconds, and how many processes there are. Time of processes
// that have ended counts with those that waited for them, in the end the agent.
func (a *Agent) processorTime() (millis int64, processes int32) {
	pids, err := processIDs()
	if err != nil {
		return 0, 0
	}
	ticks := int64(0)
	for _, pid := range pids {
		fields, err := statFields(pid)
		if err != nil {
			continue
		}
		if pid != 1 {
			processes++
		}
		const user, ended = 14 - firstField, 18 - firstField // user, system, those of ended children
		if len(fields) < ended {
			continue
		}
		for _, field := range fields[user:ended] {
			if n, err := strconv.ParseInt(string(field), 10, 64); err == nil {
				ticks += n
			}
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	// Between the end of a process and its being waited for its time is nowhere: what was told is never taken back.
	a.processorMillis = max(a.processorMillis, ticks*clockTick)
	return a.processorMillis, processes
}
