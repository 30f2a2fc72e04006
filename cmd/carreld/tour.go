package main

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/client"
)

// tourBox is the box that the tour makes and removes.
const tourBox = "tour"

// counter counts five times a second and writes down where it is: it shows that a resumed box goes on.
const counter = `i=0; while :; do i=$((i+1)); echo "$i" > ~/count; sleep 0.2; done`

// tour shows a newcomer what a box is: one is made, used, paused and resumed with the same process counting on.
func (p *platform) tour(ctx context.Context) error {
	c, err := p.client()
	if err != nil {
		return err
	}
	defer c.Close()
	template, err := p.tourTemplate(ctx, c)
	if err != nil {
		return err
	}
	p.out.line("\nA short tour, with a box of its own:")
	timed := func(title string, action func() error) error {
		began := time.Now()
		if err := action(); err != nil {
			return fmt.Errorf("%s: %w", title, err)
		}
		p.out.line("  %-58s %8s", title, roughly(time.Since(began)))
		return nil
	}
	_ = p.tourDelete(ctx, c) // of a tour that was broken off
	defer func() {
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
		defer cancel()
		_ = p.tourDelete(clean, c)
	}()
	if err := timed("create a box from the template "+template, func() error {
		_, err := c.Boxes.CreateBox(ctx, connect.NewRequest(&carrelv1.CreateBoxRequest{Name: tourBox, Template: template}))
		if err != nil {
			return client.Error(err)
		}
		return awaitState(ctx, c, tourBox, carrelv1.State_STATE_RUNNING)
	}); err != nil {
		return err
	}
	var kernel string
	if err := timed("run a command in it", func() error {
		kernel, err = output(ctx, c, tourBox, "uname", "-srn")
		return err
	}); err != nil {
		return err
	}
	p.out.line("    %s", kernel)
	if err := timed("start a process that counts", func() error {
		_, err := c.Exec(ctx, client.ExecOptions{Box: tourBox, Args: []string{"sh", "-c", counter}, Detach: true})
		return err
	}); err != nil {
		return err
	}
	before, err := p.count(ctx, c)
	if err != nil {
		return err
	}
	if err := timed("pause it: memory and files are on disk, nothing runs", func() error {
		_, err := c.Boxes.PauseBox(ctx, connect.NewRequest(&carrelv1.PauseBoxRequest{Id: tourBox}))
		if err != nil {
			return client.Error(err)
		}
		return awaitState(ctx, c, tourBox, carrelv1.State_STATE_PAUSED)
	}); err != nil {
		return err
	}
	if err := timed("resume it", func() error {
		_, err := c.Boxes.ResumeBox(ctx, connect.NewRequest(&carrelv1.ResumeBoxRequest{Id: tourBox}))
		if err != nil {
			return client.Error(err)
		}
		return awaitState(ctx, c, tourBox, carrelv1.State_STATE_RUNNING)
	}); err != nil {
		return err
	}
	after, err := p.count(ctx, c)
	if err != nil {
		return err
	}
	p.out.line("    the same process counts on: %s before the pause, %s after it", before, after)
	if err := timed("delete it", func() error { return p.tourDelete(ctx, c) }); err != nil {
		return err
	}
	state, err := p.state()
	if err != nil {
		return err
	}
	state.Toured = true
	return p.saveState(state)
}

// tourTemplate picks the template that a person would.
func (p *platform) tourTemplate(ctx context.Context, c *client.Client) (string, error) {
	answer, err := c.Templates.ListTemplates(ctx, connect.NewRequest(&carrelv1.ListTemplatesRequest{}))
	if err != nil {
		return "", client.Error(err)
	}
	for _, want := range []string{"base", "python", "tiny"} {
		for _, t := range answer.Msg.GetTemplates() {
			if t.GetName() == want {
				return want, nil
			}
		}
	}
	return "", carrel.Errorf(carrel.CodePrecondition, "no_template", "there is no template yet")
}

func (p *platform) tourDelete(ctx context.Context, c *client.Client) error {
	answer, err := c.Boxes.DeleteBox(ctx, connect.NewRequest(&carrelv1.DeleteBoxRequest{Id: tourBox}))
	if err != nil {
		return client.Error(err)
	}
	return awaitOperation(ctx, c, answer.Msg, func(string) {})
}

// count reads the counter, once it is well on its way.
func (p *platform) count(ctx context.Context, c *client.Client) (string, error) {
	return output(ctx, c, tourBox, "sh", "-c", "until [ -s ~/count ] && [ $(cat ~/count) -ge 5 ]; do sleep 0.05; done; cat ~/count")
}

// awaitState waits until a box is in a state; failing is an error at once.
func awaitState(ctx context.Context, c *client.Client, box string, state carrelv1.State) error {
	answer, err := c.Boxes.WaitBox(ctx, connect.NewRequest(&carrelv1.WaitBoxRequest{
		Id: box, States: []carrelv1.State{state}, Timeout: durationpb.New(2 * time.Minute),
	}))
	if err != nil {
		return client.Error(err)
	}
	if answer.Msg.GetState() != state {
		f := answer.Msg.GetFailure()
		return carrel.Errorf(carrel.CodePrecondition, f.GetReason(), "box %s is %s: %s %s", box, answer.Msg.GetState(), f.GetMessage(), f.GetNextStep())
	}
	return nil
}

// output runs a command in a box and gives what it printed, without the white space around it.
func output(ctx context.Context, c *client.Client, box string, args ...string) (string, error) {
	var out, errs bytes.Buffer
	status, err := c.Exec(ctx, client.ExecOptions{Box: box, Args: args, Streams: client.Streams{Stdout: &out, Stderr: &errs}})
	if err != nil {
		return "", err
	}
	if status.Code != 0 {
		return "", fmt.Errorf("%s ended with %d: %s", args[0], status.Code, strings.TrimSpace(errs.String()))
	}
	return strings.TrimSpace(out.String()), nil
}

// linkLifetime is how long the printed link signs a browser in.
const linkLifetime = 15 * time.Minute

// signInLink makes a link to the browser's pages that signs in as the administrator, once; empty: it could not be made, and the sign-in page
// takes the token.
func (p *platform) signInLink(ctx context.Context) string {
	c, err := p.client()
	if err != nil {
		return ""
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	answer, err := c.Ports.OpenWeb(ctx, connect.NewRequest(&carrelv1.OpenWebRequest{Lifetime: durationpb.New(linkLifetime)}))
	if err != nil {
		p.log.Warn("no link to sign in with could be made", "error", err)
		return ""
	}
	return answer.Msg.GetUrl()
}

// hints says how to go on.
func (p *platform) hints(long bool) string {
	if !long {
		return "Press Ctrl-C to stop Carrel; boxes go on. `make down` pauses them first."
	}
	return strings.Join([]string{
		"",
		"How to go on, in another terminal:",
		"  export PATH=$PWD/bin:$PATH",
		"  carrel create dev -t base          a box of your own",
		"  carrel ssh dev                     a shell in it, with your own ssh; carrel config-ssh for editors",
		"  carrel open                        your boxes in the browser, with a terminal, files and notebooks",
		"  carrel open dev 8000               what listens on its port 8000, in the browser",
		"  carrel pause dev                   asleep with its memory; carrel resume dev wakes it",
		"  carrel list                        what there is; carrel --help shows the rest",
		"",
		"The API is at " + p.url() + "/v1/ (" + p.url() + "/openapi.json), the administrator's token in " + p.path("admin-token") + ".",
		"Press Ctrl-C to stop Carrel; boxes go on. `make down` pauses them first.",
	}, "\n")
}
