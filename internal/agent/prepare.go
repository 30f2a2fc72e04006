package agent

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/agent/identity"
	"carrel.dev/carrel/internal/carrel"
)

// Warmer keeps a kernel that runs before anybody asks for one, so that the first notebook of a box need not wait for its start and
// imports. It is handed to the agent as Config.Warmer.
type Warmer interface {
	// Warm starts the kernel with this name, has it run code, and answers when it is idle again, or with why that did not succeed. The next
	// session that wants a kernel of this name takes this one. It is called at most once, at a fresh start, and ctx bounds it.
	Warm(ctx context.Context, kernel, code string) error
	// Adopt is called when the box became another one (it was cloned from memory, or handed to a user), before anybody gets into it: every warm
	// kernel gets new keys and random seeds, and env is added to its environment. It may be called without a warm kernel, and more than once.
	Adopt(ctx context.Context, env map[string]string) error
}

const (
	// prepareTail is how much of what a failed set-up command said last is told, in bytes.
	prepareTail = 400
	// adoptTime is what warm kernels have to become those of another box.
	adoptTime = 10 * time.Second
)

// preparation is how far the box is with what its identity tells it to prepare. A restored box is as far as it was.
type preparation struct {
	done chan struct{} // closed in the end
	err  error         // read after done is closed
}

// prepare does what is to be done before the box is ready.
func (a *Agent) prepare(ctx context.Context) {
	defer close(a.prepared.done)
	id, _ := a.current()
	p := id.Prepare
	if p == nil {
		return
	}
	began := a.now()
	ctx, cancel := context.WithTimeoutCause(ctx, time.Duration(p.TimeoutMillis)*time.Millisecond, errPrepareTime)
	defer cancel()
	if err := a.doPrepare(ctx, p); err != nil {
		if context.Cause(ctx) == errPrepareTime { //nolint:errorlint // the very value
			err = fmt.Errorf("%w after %s: %w", errPrepareTime, time.Duration(p.TimeoutMillis)*time.Millisecond, err)
		}
		a.prepared.err = err
		a.log.Error("the box could not be prepared", "error", err, "run", id.RunID)
		return
	}
	a.log.Info("the box is prepared", "run", id.RunID, "took", a.now().Sub(began))
}

const errPrepareTime = prepareError("it took too long and was ended")

type prepareError string

func (e prepareError) Error() string { return string(e) }

func (a *Agent) doPrepare(ctx context.Context, p *identity.Preparation) error {
	for i, line := range p.Setup {
		if err := a.setup(ctx, line); err != nil {
			return fmt.Errorf("set-up command %d of %d: %w", i+1, len(p.Setup), err)
		}
	}
	if p.Kernel == "" {
		return nil
	}
	if a.config.Warmer == nil {
		return prepareError("this agent cannot keep kernels")
	}
	if err := a.config.Warmer.Warm(ctx, p.Kernel, p.Imports); err != nil {
		return fmt.Errorf("kernel %s: %w", p.Kernel, err)
	}
	return nil
}

// setup runs one command to its end.
func (a *Agent) setup(ctx context.Context, line string) error {
	p, _, err := a.startProcess(ctx, &carrelv1.StartProcessRequest{Args: []string{"/bin/sh", "-c", line}, Kind: "setup"}, "", false)
	if err != nil {
		return fmt.Errorf("start: %w", err)
	}
	v, err := p.view([streams]int64{})
	if err != nil {
		return fmt.Errorf("follow: %w", err)
	}
	defer v.leave()
	var tail []byte
	for {
		event, done, err := v.event(ctx, nil)
		if err != nil {
			_ = a.reaper.signal(p.pid, unix.SIGKILL)
			return fmt.Errorf("wait for its end: %w%s", err, said(tail))
		}
		if output := event.GetOutput(); output != nil {
			tail = append(tail, output.GetData()...)
			tail = tail[max(0, len(tail)-prepareTail):]
		}
		if done {
			if code := event.GetExited().GetExitCode(); code != 0 {
				return fmt.Errorf("it ended with code %d%s", code, said(tail))
			}
			return nil
		}
	}
}

// said is what a command said last, as a part of a message.
func said(tail []byte) string {
	text := strings.TrimSpace(string(bytes.ToValidUTF8(tail, nil)))
	if text == "" {
		return ""
	}
	return " and said last: " + text
}

// awaitPrepared answers when the box is prepared, or with why it is not.
func (a *Agent) awaitPrepared(ctx context.Context) error {
	select {
	case <-a.prepared.done:
	case <-ctx.Done():
		return fmt.Errorf("wait until the box is prepared: %w", ctx.Err())
	}
	if err := a.prepared.err; err != nil {
		return carrel.Errorf(carrel.CodePrecondition, carrel.ReasonPrepareFailed, "%s", err)
	}
	return nil
}

// adopt makes warm kernels those of the box as it is now.
func (a *Agent) adopt() error {
	if a.config.Warmer == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), adoptTime)
	defer cancel()
	id, base := a.current()
	env := maps.Clone(base)
	if env == nil {
		env = map[string]string{}
	}
	maps.Copy(env, id.Env)
	return a.config.Warmer.Adopt(ctx, env)
}

// machineID is the same in the whole life of a box, and no other box's.
func machineID(box string) string {
	sum := sha256.Sum256([]byte("carrel machine " + box))
	return hex.EncodeToString(sum[:16])
}

// setUpMachine gives the machine an id of its own, where it has none or that of the box whose copy this is. One that somebody chose stays.
func (a *Agent) setUpMachine(box, before string) error {
	if box == "" {
		return nil
	}
	return edit(a.etc("machine-id"), 0o444, true, func(text string) string {
		now := strings.TrimSpace(text)
		if now != "" && now != "uninitialized" && (before == "" || now != machineID(before)) {
			return text
		}
		return machineID(box) + "\n"
	})
}

// setHostname tells the kernel the box's name. A sandbox that begins has it already; only one that goes on as another box needs it.
func setHostname(name string) error {
	var u unix.Utsname
	if err := unix.Uname(&u); err == nil && unix.ByteSliceToString(u.Nodename[:]) == name {
		return nil
	}
	if err := unix.Sethostname([]byte(name)); err != nil {
		return fmt.Errorf("set the host name: %w", err)
	}
	return nil
}
