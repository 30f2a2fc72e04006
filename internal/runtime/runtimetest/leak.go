package runtimetest

import (
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// LeakCheck takes stock of mounts, loop devices, network namespaces, cgroups and runsc processes, and compares at
// the end of the test, after all clean-ups that were registered later than this call. What is new and contains one of the
// scopes (a directory, a cgroup, a prefix of names) fails the test; without a scope everything new does. Give a
// scope where other tests run on the same machine.
func LeakCheck(t testing.TB, scopes ...string) {
	t.Helper()
	before := stock(t)
	t.Cleanup(func() {
		var leaked []string
		end := time.Now().Add(5 * time.Second)
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for ; ; <-tick.C {
			leaked = nil
			for thing := range stock(t) {
				if !before[thing] && inScope(thing, scopes) {
					leaked = append(leaked, thing)
				}
			}
			// The kernel takes a moment to take some of them away.
			if len(leaked) == 0 || time.Now().After(end) {
				break
			}
		}
		slices.Sort(leaked)
		for _, thing := range leaked {
			t.Errorf("left over: %s", thing)
		}
	})
}

func inScope(thing string, scopes []string) bool {
	for _, s := range scopes {
		if strings.Contains(thing, s) {
			return true
		}
	}
	return len(scopes) == 0
}

func stock(t testing.TB) map[string]bool {
	all := map[string]bool{}
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatalf("taking stock: %v", err)
	}
	var cgroupMounts []string
	for line := range strings.Lines(string(data)) {
		left, right, _ := strings.Cut(line, " - ")
		fields := strings.Fields(left)
		if len(fields) < 5 {
			continue
		}
		all["mount "+fields[4]] = true
		if strings.HasPrefix(right, "cgroup") {
			cgroupMounts = append(cgroupMounts, fields[4])
		}
	}
	for _, mount := range cgroupMounts {
		err := filepath.WalkDir(mount, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				all["cgroup "+path] = true
			}
			return nil // what goes away meanwhile is no leak
		})
		if err != nil {
			t.Fatalf("taking stock: %v", err)
		}
	}
	maps.Copy(all, glob("loop device of ", "/sys/block/loop*/loop/backing_file"))
	for _, dir := range []string{"/run/netns", "/var/run/netns"} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			continue
		}
		for _, e := range entries {
			all["network namespace "+e.Name()] = true
		}
	}
	procs, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatalf("taking stock: %v", err)
	}
	for _, file := range procs {
		data, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		line := strings.TrimSpace(strings.ReplaceAll(string(data), "\x00", " "))
		if strings.Contains(line, "runsc") {
			all[fmt.Sprintf("process %s: %s", strings.Split(file, "/")[2], line)] = true
		}
	}
	return all
}

func glob(what, pattern string) map[string]bool {
	out := map[string]bool{}
	files, err := filepath.Glob(pattern)
	if err != nil {
		return out
	}
	for _, file := range files {
		if data, err := os.ReadFile(file); err == nil {
			out[what+strings.TrimSpace(string(data))] = true
		}
	}
	return out
}
