package main

import (
	"reflect"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/sentry/arch"
	"gvisor.dev/gvisor/pkg/sentry/kernel"
)

// calibrationTime is how long the clock of a new or restored sandbox is watched before it is taken for known. What a sample is
// wrong by, at most some 300 ns, makes it run wrong by less than 1 in 50,000 until gVisor looks again, a second later, which
// gVisor corrects without a jump.
const calibrationTime = 20 * time.Millisecond

// calibrateSoon lets programs see the time without a system call soon after a sandbox began or was restored.
//
// gVisor compares its clock with the machine's once a second, and can only tell how fast it runs once it has done so twice.
// For a second each look at the clock is a system call therefore, and a program in Go, such as the agent, looks some 180 times for each
// command that it starts. So who looks at the clock by a system call after calibrationTime has it compared again, once in the life of
// this process.
func calibrateSoon(tables ...*kernel.SyscallTable) {
	soon := &calibration{}
	for _, table := range tables {
		for number, call := range table.Table {
			if call.Name == "clock_gettime" {
				inner := call.Fn
				call.Fn = func(t *kernel.Task, number uintptr, args arch.SyscallArguments) (uintptr, *kernel.SyscallControl, error) {
					if soon.due(time.Now()) {
						calibrate(t.Kernel())
					}
					return inner(t, number, args)
				}
				table.Table[number] = call
			}
		}
		table.Init()
	}
}

// calibration knows when it is time. It is safe for concurrent use.
type calibration struct {
	mu    sync.Mutex
	first time.Time // when somebody first asked; zero: nobody did
	done  bool
}

// due reports, once, whether the first call was calibrationTime ago.
func (c *calibration) due(now time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.done:
		return false
	case c.first.IsZero():
		c.first = now
		return false
	}
	c.done = now.Sub(c.first) >= calibrationTime
	return c.done
}

// calibrate has the clock compared with the machine's now: that is what the timekeeper does when it goes on after a pause. It is
// called by a task within a system call, so that no checkpoint, which waits until no task runs, comes in between.
func calibrate(k *kernel.Kernel) {
	if page := paramPage(k); page != nil {
		k.Timekeeper().Pause()
		k.Timekeeper().Resume(page)
	}
}

// paramPage is the page by which programs know the time. gVisor keeps it to itself; nil: it has none of that name any more, and all
// is as without us.
func paramPage(k *kernel.Kernel) *kernel.VDSOParamPage {
	field := reflect.ValueOf(k).Elem().FieldByName("vdsoParams")
	if !field.IsValid() || field.Type() != reflect.TypeFor[*kernel.VDSOParamPage]() {
		return nil
	}
	return *(**kernel.VDSOParamPage)(field.Addr().UnsafePointer())
}
