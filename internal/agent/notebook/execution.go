package notebook

import (
	"crypto/rand"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/agent/kernel"
	"carrel.dev/carrel/internal/carrel"
)

// Execution states, by short names.
const (
	queued    = carrelv1.ExecutionState_EXECUTION_STATE_QUEUED
	running   = carrelv1.ExecutionState_EXECUTION_STATE_RUNNING
	succeeded = carrelv1.ExecutionState_EXECUTION_STATE_OK
	failed    = carrelv1.ExecutionState_EXECUTION_STATE_ERROR
	cancelled = carrelv1.ExecutionState_EXECUTION_STATE_CANCELLED
	lost      = carrelv1.ExecutionState_EXECUTION_STATE_LOST
)

// execution is code that is executed once. Everything but the first fields is guarded by Service.mu.
type execution struct {
	id, kernel, path, cell, code string
	startedBy                    string
	stopOnError, allowInput      bool
	queuedAt                     time.Time
	done                         chan struct{} // closed when it has ended
	document                     *document     // of the cell; nil: none

	state          carrelv1.ExecutionState
	count          int32
	startedAt      time.Time
	endedAt        time.Time
	message        string
	outputs        *outputs
	question       *carrelv1.InputQuestion
	asked          *kernel.Message // what question is of
	truncatedBytes int64
	outputFile     string
	kept           int64 // what its outputs were counted as at its end, in bytes
	forgotten      bool  // its outputs are in the journal alone

	// While it runs.
	request          string // id of the message to the kernel; empty: not sent
	process          int    // which of the kernel's processes it was sent to
	idle             bool   // the kernel has said that it is done
	reply            *carrelv1.ExecutionState
	announced        bool // the event that it was started is out
	pendingStream    string
	pending          strings.Builder // text that is in outputs and in no event yet
	emitted          time.Time       // when text was last put into an event
	timer            *time.Timer
	spill            *spill
	toldTruncation   int64
	toldTruncationAt time.Time
}

func newExecutionID() string { return "e" + strings.ToLower(rand.Text())[:15] }

// ended reports whether the execution has ended. Service.mu is held.
func (e *execution) ended() bool { return e.state != queued && e.state != running }

// show gives the execution as the protocol has it, with outputs if wanted. Service.mu is held.
func (e *execution) show(withOutputs bool) *carrelv1.Execution {
	shown := &carrelv1.Execution{
		Id: e.id, Kernel: e.kernel, Path: carrel.EncodeFileName(e.path), Cell: e.cell, Code: e.code, State: e.state, ExecutionCount: e.count,
		QueueTime: stamp(e.queuedAt), StartTime: stamp(e.startedAt), EndTime: stamp(e.endedAt), TruncatedBytes: e.truncatedBytes,
		OutputFile: carrel.EncodeFileName(e.outputFile), Question: e.question, StartedBy: e.startedBy,
		Message: strings.ToValidUTF8(e.message, "\ufffd"),
	}
	if withOutputs {
		for _, one := range e.outputs.list {
			shown.Outputs = append(shown.Outputs, one.wire())
		}
	}
	return shown
}

func stamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

// showKernel gives a kernel as the protocol has it.
func showKernel(info kernel.Info, waiting int) *carrelv1.Kernel {
	states := map[kernel.Phase]carrelv1.KernelState{
		kernel.Starting: carrelv1.KernelState_KERNEL_STATE_STARTING, kernel.Idle: carrelv1.KernelState_KERNEL_STATE_IDLE,
		kernel.Busy: carrelv1.KernelState_KERNEL_STATE_BUSY, kernel.Unresponsive: carrelv1.KernelState_KERNEL_STATE_UNRESPONSIVE,
		kernel.Dead: carrelv1.KernelState_KERNEL_STATE_DEAD, kernel.Gone: carrelv1.KernelState_KERNEL_STATE_DEAD,
		kernel.Restarting: carrelv1.KernelState_KERNEL_STATE_RESTARTING,
	}
	shown := &carrelv1.Kernel{
		Id: info.ID, Spec: info.Spec, DisplayName: info.DisplayName, Language: info.Language, Path: carrel.EncodeFileName(info.Path), State: states[info.Phase],
		StartTime: stamp(info.Started), ActivityTime: stamp(info.Activity), Restarts: int32(info.Restarts), Queued: int32(waiting), Message: info.Message,
		Pid: int32(info.Pid), Prepared: info.Prepared,
	}
	if info.Phase == kernel.Gone {
		shown.Message = "it was shut down"
	}
	return shown
}
