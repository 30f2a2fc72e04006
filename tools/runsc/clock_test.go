package main

import (
	"reflect"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/sentry/kernel"
	"gvisor.dev/gvisor/pkg/sentry/syscalls/linux"
)

func TestTheClockIsCalibratedOnce(t *testing.T) {
	var c calibration
	start := time.Now()
	for _, step := range []struct {
		after time.Duration
		want  bool
	}{{0, false}, {calibrationTime / 2, false}, {calibrationTime, true}, {calibrationTime + 1, false}, {time.Hour, false}} {
		if got := c.due(start.Add(step.after)); got != step.want {
			t.Errorf("after %s: due is %t", step.after, got)
		}
	}
}

// If gVisor names things in another way, the first second of a sandbox is slow again and nothing else says so.
func TestWhatTheCalibrationNeedsIsThere(t *testing.T) {
	k := &kernel.Kernel{}
	if paramPage(k) != nil {
		t.Error("a page out of nothing")
	}
	if field, ok := reflect.TypeFor[kernel.Kernel]().FieldByName("vdsoParams"); !ok || field.Type != reflect.TypeFor[*kernel.VDSOParamPage]() {
		t.Error("the kernel has no parameter page of that name")
	}
	for name, table := range map[string]*kernel.SyscallTable{"amd64": linux.AMD64, "arm64": linux.ARM64} {
		found := false
		for _, call := range table.Table {
			found = found || call.Name == "clock_gettime"
		}
		if !found {
			t.Errorf("%s has no clock_gettime", name)
		}
	}
}
