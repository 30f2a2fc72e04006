package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/goccy/go-yaml"

	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/control"
	"carrel.dev/carrel/internal/service"
	"carrel.dev/carrel/internal/store"
)

const (
	// downTime bounds how long one box may take to pause, what is prepared to be given up, and Carrel to end.
	downTime = 2 * time.Minute
	// downPoll is how often it is looked at what is waited for.
	downPoll = 100 * time.Millisecond
	// restTime is how long nothing is prepared after `down` was killed.
	restTime = 30 * time.Second
)

// runDown pauses every running box, gives up what is only prepared, and then ends `up`. A box that can't be paused keeps everything as it
// is: down says so and ends nothing.
func runDown(ctx context.Context, config *Config, stdout io.Writer) error {
	pid := lockHolder(config.Data)
	if pid == 0 {
		fmt.Fprintf(stdout, "Carrel is not running on %s.\n", config.Data)
		return nil
	}
	// Files may be elsewhere than here is said: what up wrote is what is in force.
	running := &Config{}
	text, err := os.ReadFile(filepath.Join(config.Data, "up.yaml"))
	if err == nil {
		err = yaml.UnmarshalWithOptions(text, running, yaml.Strict())
	}
	if err != nil {
		return fmt.Errorf("read the configuration of the running Carrel: %w", err)
	}
	out := newProgress(stdout)
	if err := quiet(ctx, running, out); err != nil {
		return fmt.Errorf("%w; Carrel goes on running. Ctrl-C in its terminal stops it without pausing", err)
	}
	step := out.step("Stopping Carrel")
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("stop process %d: %w", pid, err)
	}
	deadline := time.Now().Add(downTime)
	for lockHolder(config.Data) == pid {
		if time.Now().After(deadline) {
			return carrel.Errorf(carrel.CodeDeadline, "still_running", "process %d has not ended after %s", pid, downTime)
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	step.done()
	return nil
}

// quiet brings every box to rest. It speaks to the database and not to the API: there no one person may see every organisation's boxes.
func quiet(ctx context.Context, config *Config, out *progress) error {
	d := config.Control.Database
	system, err := service.ReadSecret(d.SystemURLFile)
	if err != nil {
		return err
	}
	api, err := service.ReadSecret(d.ControlURLFile)
	if err != nil {
		return err
	}
	s, err := store.Open(ctx, store.Config{SystemURL: system, ControlURL: api})
	if err != nil {
		return fmt.Errorf("open store: %w", err)
	}
	defer s.Close()
	return (&quieting{store: s, out: out}).run(ctx)
}

// quieting is one `down`.
type quieting struct {
	store *store.Store
	out   *progress
	scope store.Scope
}

func (q *quieting) run(ctx context.Context) error {
	admin, err := q.store.GetUser(ctx, store.Scope{Platform: true}, store.AdminName)
	if err != nil {
		return fmt.Errorf("find the administrator: %w", err)
	}
	q.scope = store.Scope{User: admin.ID, Platform: true}
	if err := q.store.Rest(ctx, restTime); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	var keeper sync.WaitGroup
	keeper.Go(func() { q.keepAtRest(ctx) })
	err = q.pauseAll(ctx)
	if err == nil {
		err = q.awaitEmpty(ctx)
	}
	cancel()
	keeper.Wait()
	if err != nil {
		over, done := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer done()
		return errors.Join(err, q.store.Rest(over, 0))
	}
	return nil // the next start ends the rest
}

// keepAtRest has nothing prepared until ctx ends. If that can't be written for a while, what is prepared meanwhile is only found again by the
// next start.
func (q *quieting) keepAtRest(ctx context.Context) {
	for {
		select {
		case <-time.After(restTime / 3):
			_ = q.store.Rest(ctx, restTime)
		case <-ctx.Done():
			return
		}
	}
}

// awake are the states in which something of a box runs, or is about to.
var awake = []carrel.State{carrel.StateRunning, carrel.StateIdle, carrel.StateProvisioning, carrel.StateResuming, carrel.StatePausing}

// pauseAll pauses the running boxes of every organisation.
func (q *quieting) pauseAll(ctx context.Context) error {
	list := store.ListBoxes{State: awake, Page: store.Page{Size: 100}}
	for {
		boxes, next, err := q.store.ListBoxes(ctx, q.scope, list)
		if err != nil {
			return err
		}
		group, groupCtx := errgroup.WithContext(ctx)
		group.SetLimit(2) // a pause is bound by the disk
		for _, box := range boxes {
			group.Go(func() error { return q.pause(groupCtx, box) })
		}
		if err := group.Wait(); err != nil {
			return err
		}
		if list.Page.Token = next; next == "" {
			return nil
		}
	}
}

// pause pauses a box. One that waits to be started is left as it is: nothing of it runs, and it may wait for ever.
func (q *quieting) pause(ctx context.Context, box *store.Box) error {
	ctx, cancel := context.WithTimeoutCause(ctx, downTime, fmt.Errorf("it is not paused after %s", downTime))
	defer cancel()
	if q.leave(box) {
		return nil
	}
	step := q.out.step("Pausing " + box.Name)
	var op *store.Operation
	for {
		var err error
		if op == nil {
			op, err = q.store.SetIntent(ctx, q.scope, store.SetIntent{Box: box.ID, Verb: carrel.VerbPause, Intent: carrel.IntentPaused, Check: control.CheckPause})
		} else {
			op, err = q.store.GetOperation(ctx, q.scope, op.ID)
		}
		switch {
		case ctx.Err() != nil:
			return fmt.Errorf("pause box %s: %w", box.Name, context.Cause(ctx))
		case carrel.ReasonOf(err) == "wrong_state":
			step.done() // somebody stopped it meanwhile, or it has failed
			return nil
		case carrel.CodeOf(err) == carrel.CodeUnavailable: // between two starts, say
		case err != nil:
			return fmt.Errorf("pause box %s: %w", box.Name, err)
		case op.Box != nil && q.leave(op.Box):
			return nil
		default:
			status := op.Status()
			if f := status.Failure; status.Done && f != nil {
				return fmt.Errorf("pause box %s: %s %s", box.Name, f.Message, f.NextStep)
			}
			if status.Done {
				step.done()
				return nil
			}
			step.update(status.Progress)
		}
		select {
		case <-time.After(downPoll):
		case <-ctx.Done():
		}
	}
}

// leave reports whether a box is tried again and again to be started, and says so.
func (q *quieting) leave(box *store.Box) bool {
	state, failure := carrel.StateOf(&box.BoxView), box.CurrentFailure()
	waits := (state == carrel.StateProvisioning || state == carrel.StateResuming || state == carrel.StatePausing) && !box.Live() && failure != nil && failure.Transient
	if waits {
		q.out.line("%s has not started, and nothing of it runs: %s", box.Name, failure.Message)
	}
	return waits
}

// awaitEmpty waits until nothing runs any more on machines that answer: boxes of pools and prebuilds are given up while Carrel is to rest.
func (q *quieting) awaitEmpty(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, downTime)
	defer cancel()
	var step *step
	for {
		runs, err := q.runs(ctx)
		switch {
		case err == nil && runs == 0:
			if step != nil {
				step.done()
			}
			return nil
		case errors.Is(ctx.Err(), context.DeadlineExceeded):
			q.out.line("%d boxes still run after %s. They go on, and the next start finds them again.", runs, downTime)
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil && carrel.CodeOf(err) != carrel.CodeUnavailable:
			return err
		}
		if step == nil {
			step = q.out.step("Giving up what was prepared")
		}
		select {
		case <-time.After(downPoll):
		case <-ctx.Done():
		}
	}
}

// runs counts what runs.
func (q *quieting) runs(ctx context.Context) (int, error) {
	nodes, err := q.store.Nodes(ctx)
	runs := 0
	for _, n := range nodes {
		if n.RemovedAt.IsZero() && time.Since(n.LastSeen) < restTime {
			runs += n.Runs
		}
	}
	return runs, err
}
