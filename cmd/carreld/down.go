package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sync/errgroup"

	"github.com/goccy/go-yaml"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/client"
	"carrel.dev/carrel/internal/service"
)

// downTime bounds how long one box may take to pause, and Carrel to end.
const downTime = 2 * time.Minute

// runDown pauses every running box and then ends `up`. A box that can't be paused keeps everything as it
// is: down says so and ends nothing.
func runDown(ctx context.Context, config *Config, stdout io.Writer) error {
	pid := lockHolder(config.Data)
	if pid == 0 {
		fmt.Fprintf(stdout, "Carrel is not running on %s.\n", config.Data)
		return nil
	}
	// Ports may have been picked by up: what it wrote is what is in force.
	running := &Config{}
	text, err := os.ReadFile(filepath.Join(config.Data, "up.yaml"))
	if err == nil {
		err = yaml.UnmarshalWithOptions(text, running, yaml.Strict())
	}
	if err != nil {
		return fmt.Errorf("read the configuration of the running Carrel: %w", err)
	}
	token, err := service.ReadSecret(filepath.Join(config.Data, "admin-token"))
	if err != nil {
		return err
	}
	c, err := client.New(client.Config{Context: client.Context{URL: "http://" + running.Gateway.HTTP, Token: token}, UserAgent: "carreld/" + version})
	if err != nil {
		return err
	}
	defer c.Close()
	out := newProgress(stdout)
	if err := pauseAll(ctx, c, out); err != nil {
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

// pauseAll pauses the running boxes of every organisation.
func pauseAll(ctx context.Context, c *client.Client, out *progress) error {
	orgs, err := c.Orgs.ListOrgs(ctx, connect.NewRequest(&carrelv1.ListOrgsRequest{}))
	if err != nil {
		return client.Error(err)
	}
	for _, org := range orgs.Msg.GetOrgs() {
		page := ""
		for {
			boxes, err := c.Boxes.ListBoxes(ctx, connect.NewRequest(&carrelv1.ListBoxesRequest{Org: org.GetId(), PageSize: 100, PageToken: page}))
			if err != nil {
				return client.Error(err)
			}
			group, groupCtx := errgroup.WithContext(ctx)
			group.SetLimit(2) // a pause is bound by the disk
			for _, box := range boxes.Msg.GetBoxes() {
				switch box.GetState() {
				case carrelv1.State_STATE_RUNNING, carrelv1.State_STATE_IDLE, carrelv1.State_STATE_PROVISIONING, carrelv1.State_STATE_RESUMING, carrelv1.State_STATE_PAUSING:
					group.Go(func() error { return pauseOne(groupCtx, c, box, out) })
				}
			}
			if err := group.Wait(); err != nil {
				return err
			}
			if page = boxes.Msg.GetNextPageToken(); page == "" {
				break
			}
		}
	}
	return nil
}

// pauseOne pauses a box. One that waits to be started is left as it is: nothing of it runs, and it may wait for ever.
func pauseOne(ctx context.Context, c *client.Client, box *carrelv1.Box, out *progress) error {
	ctx, cancel := context.WithTimeoutCause(ctx, downTime, fmt.Errorf("it is not paused after %s", downTime))
	defer cancel()
	if waits(box) {
		out.line("%s has not started, and nothing of it runs: %s", box.GetName(), box.GetFailure().GetMessage())
		return nil
	}
	step := out.step("Pausing " + box.GetName())
	answer, err := c.Boxes.PauseBox(ctx, connect.NewRequest(&carrelv1.PauseBoxRequest{Id: box.GetId(), Org: box.GetOrgId()}))
	if err != nil {
		return client.Error(err)
	}
	// The wait ends with the operation, or when the box turns out to wait itself.
	waiting, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	err = awaitOperation(waiting, c, answer.Msg, func(progress string) {
		step.update(progress)
		now, err := c.Boxes.GetBox(waiting, connect.NewRequest(&carrelv1.GetBoxRequest{Id: box.GetId()}))
		if err == nil && waits(now.Msg) {
			stop(fmt.Errorf("%s", now.Msg.GetFailure().GetMessage()))
		}
	})
	switch {
	case err == nil:
		step.done()
		return nil
	case ctx.Err() == nil && waiting.Err() != nil:
		out.line("%s has not started, and nothing of it runs: %v", box.GetName(), context.Cause(waiting))
		return nil
	case ctx.Err() != nil:
		err = context.Cause(ctx)
	}
	return fmt.Errorf("pause box %s: %w", box.GetName(), err)
}

// waits reports whether a box is tried again and again to be started.
func waits(box *carrelv1.Box) bool {
	starts := box.GetState() == carrelv1.State_STATE_PROVISIONING || box.GetState() == carrelv1.State_STATE_RESUMING
	return starts && box.GetFailure().GetTransient()
}
