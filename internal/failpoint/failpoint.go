// Package failpoint lets a test stop, fail, kill or hold a process between two named steps. A step is one
// call of Hit with a literal name, made after the work that it names; the crash tests find every name by reading the
// source, so a new step is covered by itself. Without CARREL_FAILPOINTS in the environment Hit costs one comparison.
//
// What happens at a step is its action:
//
//   - error: the first Hit returns an error, as when the machine failed. errors: every Hit does.
//   - kill: the first Hit ends the process with SIGKILL.
//   - repeat: the first two Hits end the process. The work before the mark was done and nobody remembers it, so it
//     is done a second time over what the first has left, is forgotten again, and is done a third time. A step passes
//     only if its work may be repeated, and if what takes it up again after a kill may itself be killed there.
//   - wait: Hit does not return until a test arms the step with something else, which then happens, or disarms it.
package failpoint

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Variable is the environment variable with the failpoints of a process: NAME=ACTION, separated by commas. They are
// those of one process, which forgets what it has done; repeat and wait make no sense there. "@DIR" instead names a directory of
// armed steps, a Dir: what happens once is disarmed there, so that a process that is started again does not do it again.
const Variable = "CARREL_FAILPOINTS"

// The actions of a step.
const (
	ActionError  = "error"
	ActionErrors = "errors"
	ActionKill   = "kill"
	ActionRepeat = "repeat"
	ActionWait   = "wait"
)

// waiting is what a step is armed with while a process is held there.
const waiting = "waiting"

// waitPoll is how often a process that is held looks whether it may go on.
const waitPoll = 5 * time.Millisecond

// Error is what Hit returns where a test asked for it. It is like a fault of the machine: transient.
type Error string

func (e Error) Error() string { return "failpoint " + string(e) }

var (
	setting = os.Getenv(Variable)
	mu      sync.Mutex // guards done, and what lies between reading and changing an armed step
	done    = map[string]bool{}
)

// Enabled says whether this process runs under a test that may stop it at its steps.
func Enabled() bool { return setting != "" }

// Hit marks the step called name, such as "node/pause/saved". It is safe for concurrent use.
func Hit(name string) error {
	if setting == "" {
		return nil
	}
	dir, ok := strings.CutPrefix(setting, "@")
	for {
		var action string
		var err error
		if ok {
			action, err = Dir(dir).take(name)
		} else {
			action = once(name)
		}
		switch {
		case err != nil:
			return fmt.Errorf("failpoint %s: %w", name, err)
		case action == ActionKill:
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		case action == waiting:
			<-time.After(waitPoll)
		case action != "":
			return Error(name)
		default:
			return nil
		}
	}
}

// once finds the action of a step in the environment.
func once(name string) string {
	mu.Lock()
	defer mu.Unlock()
	for entry := range strings.SplitSeq(setting, ",") {
		key, action, _ := strings.Cut(strings.TrimSpace(entry), "=")
		if key != name || done[name] {
			continue
		}
		done[name] = action != ActionErrors
		return action
	}
	return ""
}

// Dir is a directory with the armed steps of other processes: a file for each, with its action in it. Processes of any
// user read them; what happens once is disarmed by who may write to the directory. Its methods are safe for concurrent
// use, also by processes.
type Dir string

// notes is the file with the steps that were hit.
const notes = "notes"

func (d Dir) path(name string) string {
	return filepath.Join(string(d), strings.ReplaceAll(name, "/", "+"))
}

// Arm sets the action of a step, in the place of the one that it had.
func (d Dir) Arm(name, action string) error {
	f, err := os.CreateTemp(string(d), ".arm-*")
	if err != nil {
		return err
	}
	_, err = f.WriteString(action)
	if err = errors.Join(err, f.Chmod(0o644), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), d.path(name))
}

// Disarm takes the action of a step away and says what it was; it is empty if there was none.
func (d Dir) Disarm(name string) (string, error) {
	action, err := d.Armed(name)
	if action == "" || err != nil {
		return "", err
	}
	if err := os.Remove(d.path(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	return action, nil
}

// Armed is the action of a step, empty if it has none. A step armed to repeat is armed to kill after the first time.
func (d Dir) Armed(name string) (string, error) {
	data, err := os.ReadFile(d.path(name))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return string(data), err
}

// Held says whether a process waits at a step.
func (d Dir) Held(name string) (bool, error) {
	action, err := d.Armed(name)
	return action == waiting, err
}

// Note has every step that is hit from now on noted.
func (d Dir) Note() error {
	return errors.Join(os.WriteFile(d.path(notes), nil, 0o666), os.Chmod(d.path(notes), 0o666))
}

// Noted are the steps that were hit since Note, each as often as it was.
func (d Dir) Noted() ([]string, error) {
	data, err := os.ReadFile(d.path(notes))
	return strings.Fields(string(data)), err
}

// take gives the action of a step, and changes it to the one of its next Hit.
func (d Dir) take(name string) (string, error) {
	mu.Lock()
	defer mu.Unlock()
	if f, err := os.OpenFile(d.path(notes), os.O_APPEND|os.O_WRONLY, 0); err == nil {
		_, err = f.WriteString(name + "\n")
		if err = errors.Join(err, f.Close()); err != nil {
			return "", err
		}
	}
	action, err := d.Armed(name)
	if err != nil {
		return "", err
	}
	switch action {
	case ActionError, ActionKill:
		_, err = d.Disarm(name)
	case ActionRepeat:
		action, err = ActionKill, d.Arm(name, ActionKill)
	case ActionWait:
		action, err = waiting, d.Arm(name, waiting)
	}
	return action, err
}
