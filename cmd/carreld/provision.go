package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/images"
	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/client"
	"carrel.dev/carrel/internal/wholefile"
	"carrel.dev/carrel/templates"
)

// systemOrg owns what is shipped.
const systemOrg = "system"

// shipped is the state file of up: the fingerprint of each definition that was built and pushed.
type shipped struct {
	Done map[string]string `json:"done"`
	// Toured: the tour came to its end once.
	Toured bool `json:"toured"`
}

func (p *platform) client() (*client.Client, error) {
	return client.New(client.Config{Context: client.Context{URL: p.url(), Token: p.adminToken}, UserAgent: "carreld/" + version})
}

func (p *platform) state() (shipped, error) {
	state := shipped{Done: map[string]string{}}
	if err := readJSON(p.path("up.json"), &state); err != nil {
		return state, fmt.Errorf("read state: %w", err)
	}
	return state, nil
}

// shippedNames are the images that are to be built, in this order; each has a template of its name.
func (p *platform) shippedNames() ([]string, error) {
	entries, err := images.Files.ReadDir(".")
	if err != nil {
		return nil, fmt.Errorf("read shipped images: %w", err)
	}
	var names []string
	for _, entry := range entries {
		name, isYAML := strings.CutSuffix(entry.Name(), ".yaml")
		if isYAML && (len(p.config.Up.Images) == 0 || slices.Contains(p.config.Up.Images, name)) {
			names = append(names, name)
		}
	}
	return names, nil
}

// provision builds the shipped images of these names and pushes the templates that use them, as far as they are new or have changed. One
// that was there before and can't be made anew, without a network say, is no error.
func (p *platform) provision(ctx context.Context, names []string) error {
	c, err := p.client()
	if err != nil {
		return err
	}
	defer c.Close()
	state, err := p.state()
	if err != nil {
		return err
	}
	for _, name := range names {
		image, err := images.Files.ReadFile(name + ".yaml")
		if err != nil {
			return fmt.Errorf("read shipped image: %w", err)
		}
		template, err := templates.Files.ReadFile(name + ".yaml")
		if err != nil {
			return fmt.Errorf("read shipped template: %w", err)
		}
		mark := fingerprint(append(slices.Clone(image), template...))
		if state.Done[name] == mark {
			continue
		}
		err = p.buildImage(ctx, c, name, image)
		if err == nil {
			_, err = c.Templates.PushTemplate(ctx, connect.NewRequest(&carrelv1.PushTemplateRequest{Org: systemOrg, Yaml: string(template)}))
			err = client.Error(err)
		}
		if err != nil && state.Done[name] != "" && ctx.Err() == nil {
			p.out.line("The template %s stays as it was until the next `make up`: %v", name, err)
			continue
		}
		if err != nil {
			return fmt.Errorf("make the template %s: %w", name, err)
		}
		state.Done[name] = mark
		if err := p.saveState(state); err != nil {
			return err
		}
	}
	return nil
}

func (p *platform) saveState(state shipped) error {
	text, err := json.Marshal(state)
	if err != nil {
		return fmt.Errorf("encode state: %w", err)
	}
	return wholefile.WriteOwned(p.path("up.json"), text, 0o600, 0, 0)
}

func (p *platform) buildImage(ctx context.Context, c *client.Client, name string, definition []byte) error {
	step := p.out.step(fmt.Sprintf("Building the image %s (some minutes, once)", name))
	answer, err := c.Images.BuildImage(ctx, connect.NewRequest(&carrelv1.BuildImageRequest{Org: systemOrg, Yaml: string(definition)}))
	if err != nil {
		return fmt.Errorf("build image %s: %w", name, client.Error(err))
	}
	if err := awaitOperation(ctx, c, answer.Msg, step.update); err != nil {
		return fmt.Errorf("build image %s: %w", name, err)
	}
	step.done()
	return nil
}

// awaitOperation waits for the end of an operation and gives its error, if it has one.
func awaitOperation(ctx context.Context, c *client.Client, op *carrelv1.Operation, progress func(string)) error {
	for pause := 50 * time.Millisecond; !op.GetDone(); pause = min(2*pause, 500*time.Millisecond) {
		progress(op.GetProgress())
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return ctx.Err()
		}
		answer, err := c.Operations.GetOperation(ctx, connect.NewRequest(&carrelv1.GetOperationRequest{Id: op.GetId()}))
		if err != nil {
			return client.Error(err)
		}
		op = answer.Msg
	}
	if f := op.GetError(); f != nil {
		return carrel.Errorf(carrel.CodeAborted, f.GetReason(), "%s %s", f.GetMessage(), f.GetNextStep())
	}
	return nil
}

// writeContext lets the CLI of the person who started us find this Carrel.
func (p *platform) writeContext() error {
	uid, gid := -1, -1
	var path string
	if name := os.Getenv("SUDO_USER"); name != "" && os.Getenv(client.EnvConfig) == "" {
		person, err := user.Lookup(name)
		if err != nil {
			return fmt.Errorf("look up who started Carrel: %w", err)
		}
		uid, _ = strconv.Atoi(person.Uid)
		gid, _ = strconv.Atoi(person.Gid)
		path = filepath.Join(person.HomeDir, ".config", "carrel", "config.yaml")
	} else {
		var err error
		if path, err = client.ContextsPath(os.Getenv); err != nil {
			return err
		}
	}
	// What is made here is theirs; what is there already stays as it is.
	owned := []string{path}
	for dir := filepath.Dir(path); ; dir = filepath.Dir(dir) {
		if _, err := os.Lstat(dir); err == nil || dir == filepath.Dir(dir) {
			break
		}
		owned = append(owned, dir)
	}
	contexts, err := client.LoadContexts(path)
	if err != nil {
		return err
	}
	const name = "local"
	if contexts.Contexts == nil {
		contexts.Contexts = map[string]client.Context{}
	}
	contexts.Contexts[name] = client.Context{URL: p.url(), Token: p.adminToken, Org: "default"}
	if contexts.Current == "" {
		contexts.Current = name
	}
	if err := contexts.Save(path); err != nil {
		return err
	}
	if uid >= 0 {
		for _, made := range owned {
			if err := os.Lchown(made, uid, gid); err != nil {
				return fmt.Errorf("give context to %s: %w", os.Getenv("SUDO_USER"), err)
			}
		}
	}
	return nil
}
