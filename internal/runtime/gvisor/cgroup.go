package gvisor

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"carrel.dev/carrel/internal/runtime"
)

// A hierarchy is one cgroup file system in which sandboxes get a cgroup: on version 1 there is one for
// each controller (or group of them), on version 2 one for all.
type hierarchy struct {
	mount       string // where it is mounted
	v2          bool
	controllers []string // of those that are used: cpu, memory, pids
	parent      string   // mount + Config.CgroupParent
}

type cgroupSet []hierarchy

// wanted controllers, by the name that Capabilities gives to the limit.
var wanted = map[string]string{"cpu": "cpu", "memory": "memory", "pids": "processes"}

// findCgroups finds where cpu, memory and pids are controlled, and makes the parent cgroup there. What
// cannot be used is said in limitations, and is no error: the sandboxes then run without that limit.
func findCgroups(parent string) (cgroupSet, []string, error) {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, nil, err
	}
	var set cgroupSet
	var limitations []string
	missing := map[string]string{}
	for c := range wanted {
		missing[c] = "this machine has no such cgroup controller mounted"
	}
	for _, h := range parseHierarchies(data) {
		h.parent = filepath.Join(h.mount, parent)
		if h.v2 {
			h.controllers = enableV2(h.mount, h.parent)
		}
		h.controllers = slices.DeleteFunc(slices.Clone(h.controllers), func(c string) bool { return missing[c] == "" })
		if len(h.controllers) == 0 {
			continue
		}
		if err := os.MkdirAll(h.parent, 0o755); err != nil {
			for _, c := range h.controllers {
				missing[c] = err.Error()
			}
			continue
		}
		usable := h
		usable.controllers = nil
		for _, c := range h.controllers {
			if _, err := os.Stat(filepath.Join(h.parent, limitFile(c, h.v2))); err != nil {
				missing[c] = err.Error()
				continue
			}
			delete(missing, c)
			usable.controllers = append(usable.controllers, c)
		}
		if len(usable.controllers) > 0 {
			set = append(set, usable)
		}
	}
	for _, c := range slices.Sorted(mapKeys(missing)) {
		limitations = append(limitations, fmt.Sprintf("the limit on %s is not enforced by the host: %s", wanted[c], missing[c]))
	}
	return set, limitations, nil
}

func mapKeys(m map[string]string) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

// limitFile is a file that a cgroup has if the controller works there.
func limitFile(controller string, v2 bool) string {
	switch {
	case controller == "cpu" && v2:
		return "cpu.max"
	case controller == "cpu":
		return "cpu.cfs_quota_us"
	case controller == "memory" && v2:
		return "memory.max"
	case controller == "memory":
		return "memory.limit_in_bytes"
	}
	return "pids.max"
}

// parseHierarchies reads mountinfo (proc(5)). Version 1 comes first: a controller that is bound there
// does not work in version 2.
func parseHierarchies(mountinfo []byte) []hierarchy {
	var v1, v2 []hierarchy
	seen := map[string]bool{}
	scan := bufio.NewScanner(bytes.NewReader(mountinfo))
	for scan.Scan() {
		left, right, ok := strings.Cut(scan.Text(), " - ")
		fields, tail := strings.Fields(left), strings.Fields(right)
		if !ok || len(fields) < 5 || len(tail) < 3 || fields[3] != "/" {
			continue // fields[3]: only the whole hierarchy, not a part of it mounted elsewhere
		}
		h := hierarchy{mount: fields[4]}
		switch tail[0] {
		case "cgroup":
			for option := range strings.SplitSeq(tail[2], ",") {
				if wanted[option] != "" && !seen[option] {
					seen[option] = true
					h.controllers = append(h.controllers, option)
				}
			}
			if len(h.controllers) > 0 {
				v1 = append(v1, h)
			}
		case "cgroup2":
			h.v2 = true
			v2 = append(v2, h)
		}
	}
	return append(v1, v2...)
}

// enableV2 turns the controllers on for the children of parent and returns those that work.
func enableV2(mount, parent string) []string {
	data, err := os.ReadFile(filepath.Join(mount, "cgroup.controllers"))
	if err != nil {
		return nil
	}
	offered := slices.DeleteFunc(strings.Fields(string(data)), func(c string) bool { return wanted[c] == "" })
	if len(offered) == 0 {
		return nil // version 1 has them all
	}
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return nil
	}
	dirs := []string{mount}
	rel, err := filepath.Rel(mount, parent)
	if err != nil {
		return nil
	}
	dir := mount
	for part := range strings.SplitSeq(rel, "/") {
		dir = filepath.Join(dir, part)
		dirs = append(dirs, dir)
	}
	var on []string
	for _, c := range offered {
		ok := true
		for _, dir := range dirs {
			if os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+c), 0) != nil {
				data, _ := os.ReadFile(filepath.Join(dir, "cgroup.subtree_control"))
				ok = ok && slices.Contains(strings.Fields(string(data)), c)
			}
		}
		if ok {
			on = append(on, c)
		}
	}
	slices.Sort(on)
	return on
}

// enforced lists the limits that hold, in a fixed order.
func (s cgroupSet) enforced() []string {
	var out []string
	for _, c := range []string{"cpu", "memory", "pids"} {
		if s.with(c) != nil {
			out = append(out, wanted[c])
		}
	}
	return out
}

func (s cgroupSet) with(controller string) *hierarchy {
	for i := range s {
		if slices.Contains(s[i].controllers, controller) {
			return &s[i]
		}
	}
	return nil
}

const cpuPeriod = 100_000 // microseconds

// pidsMax is a backstop far above what the agent allows: one process in the sandbox is a process and some
// threads on the host, and the sandbox dies if it cannot make one.
func pidsMax(processes int64) int64 { return 2*processes + 512 }

// create makes the cgroup of a run everywhere and sets its limits. It may exist already.
func (s cgroupSet) create(run string, l runtime.Limits) error {
	for _, h := range s {
		dir := filepath.Join(h.parent, run)
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("making the cgroup: %w", err)
		}
		for _, c := range h.controllers {
			for _, w := range limitWrites(c, h.v2, l) {
				err := os.WriteFile(filepath.Join(dir, w.file), []byte(w.value), 0)
				if w.optional && errors.Is(err, fs.ErrNotExist) {
					continue
				}
				if err != nil {
					return fmt.Errorf("setting a limit of the cgroup: %w", err)
				}
			}
		}
	}
	return nil
}

type limitWrite struct {
	file, value string
	optional    bool // the file is not there on every kernel
}

func limitWrites(controller string, v2 bool, l runtime.Limits) []limitWrite {
	number := func(n int64) string { return strconv.FormatInt(n, 10) }
	quota, memory := number(cpuQuota(l)), number(l.Memory+l.Headroom)
	switch {
	case controller == "cpu" && v2:
		return []limitWrite{{"cpu.max", quota + " " + number(cpuPeriod), false}}
	case controller == "cpu":
		return []limitWrite{{"cpu.cfs_period_us", number(cpuPeriod), false}, {"cpu.cfs_quota_us", quota, false}}
	case controller == "memory" && v2:
		return []limitWrite{{"memory.max", memory, false}, {"memory.swap.max", "0", true}}
	case controller == "memory":
		return []limitWrite{{"memory.limit_in_bytes", memory, false}, {"memory.memsw.limit_in_bytes", memory, true}}
	}
	return []limitWrite{{"pids.max", number(pidsMax(l.Processes)), false}}
}

// cpuQuota is in microseconds per cpuPeriod.
func cpuQuota(l runtime.Limits) int64 { return max(1000, l.CPUMillis*cpuPeriod/1000) }

// spawn calls start on an operating system thread that is in the cgroups of run and ends afterwards, so that
// the process that start makes is in them from its first instruction.
//
// On version 2 that is what clone(2) is for: start gets a file descriptor. On version 1 the thread itself joins, through
// "tasks", which takes tens of microseconds where moving a process that runs already takes milliseconds for
// each hierarchy.
func (s cgroupSet) spawn(run string, start func(cgroupFD int) error) error {
	return onThread(func() error {
		fd := -1
		for _, h := range s {
			dir := filepath.Join(h.parent, run)
			if h.v2 {
				f, err := os.Open(dir)
				if err != nil {
					return fmt.Errorf("opening the cgroup: %w", err)
				}
				defer f.Close()
				fd = int(f.Fd())
				continue
			}
			if err := os.WriteFile(filepath.Join(dir, "tasks"), []byte("0"), 0); err != nil {
				return fmt.Errorf("joining the cgroup: %w", err)
			}
		}
		return start(fd)
	})
}

// onThread runs f on an operating system thread of its own that ends with it, never the process's first: that
// one cannot end, and is what cgroup.procs lists.
func onThread(f func() error) error {
	done := make(chan error)
	go func() {
		goruntime.LockOSThread() // and never unlocked: so the thread ends with the goroutine
		if unix.Gettid() == unix.Getpid() {
			done <- onThread(f)
			goruntime.UnlockOSThread()
			return
		}
		done <- f()
	}()
	return <-done
}

// procs returns the processes in the cgroups of run, this one never.
func (s cgroupSet) procs(run string) []int {
	var out []int
	for _, h := range s {
		data, err := os.ReadFile(filepath.Join(h.parent, run, "cgroup.procs"))
		if err != nil {
			continue
		}
		for field := range strings.FieldsSeq(string(data)) {
			pid, err := strconv.Atoi(field)
			if err == nil && pid > 1 && pid != os.Getpid() && !slices.Contains(out, pid) {
				out = append(out, pid)
			}
		}
	}
	return out
}

// remove removes the cgroups of run. The kernel takes a moment to let go of processes that ended.
func (s cgroupSet) remove(ctx context.Context, run string) error {
	for _, h := range s {
		dir := filepath.Join(h.parent, run)
		err := poll(ctx, 5*time.Second, func() (bool, error) {
			err := os.Remove(dir)
			if errors.Is(err, unix.EBUSY) {
				return false, nil
			}
			if errors.Is(err, fs.ErrNotExist) {
				err = nil
			}
			return true, err
		})
		if err != nil {
			return fmt.Errorf("removing the cgroup %s: %w", dir, err)
		}
	}
	return nil
}

// oomKills says how many processes of run were killed for want of memory.
func (s cgroupSet) oomKills(run string) int {
	h := s.with("memory")
	if h == nil {
		return 0
	}
	file := "memory.oom_control"
	if h.v2 {
		file = "memory.events"
	}
	data, err := os.ReadFile(filepath.Join(h.parent, run, file))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(data)) {
		if value, ok := strings.CutPrefix(line, "oom_kill "); ok {
			n, err := strconv.Atoi(strings.TrimSpace(value))
			if err == nil {
				return n
			}
		}
	}
	return 0
}

// poll calls f at once and then ever less often, until it is done, fails, or the time or ctx is over.
func poll(ctx context.Context, limit time.Duration, f func() (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	wait := time.Millisecond / 2
	for {
		done, err := f()
		if done || err != nil {
			return err
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case <-timer.C:
		}
		wait = min(wait*3/2, 50*time.Millisecond)
	}
}
