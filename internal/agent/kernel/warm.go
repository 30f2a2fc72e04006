package kernel

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// A warm kernel is one that was started before anybody asked: it is in no list until Start takes it for somebody.

// Warm starts a kernel, has it run code, and keeps it for the next who starts one with the same spec. code that fails is an error.
func (m *Manager) Warm(ctx context.Context, spec, code string) error {
	k, err := m.Start(ctx, Options{Spec: spec, hidden: true})
	if err != nil {
		return err
	}
	if err = k.Ready(ctx); err == nil && code != "" {
		err = k.silently(ctx, code)
	}
	if err != nil {
		return errors.Join(err, k.Shutdown(context.WithoutCancel(ctx)))
	}
	return nil
}

// warm gives the warm kernels.
func (m *Manager) warm() (all []*Kernel) {
	for _, k := range m.all() {
		k.mu.Lock()
		hidden := k.options.hidden
		k.mu.Unlock()
		if hidden {
			all = append(all, k)
		}
	}
	return all
}

// Adopt makes warm kernels those of another box, before they work for it: with keys and random seeds of their own, and env. Kernels that cannot be
// changed so are started again, which leaves them without what they had loaded.
func (m *Manager) Adopt(ctx context.Context, env map[string]string) error {
	var problems error
	for _, k := range m.warm() {
		if k.Info().Phase == Dead {
			problems = errors.Join(problems, k.Shutdown(ctx))
			continue
		}
		err := errors.New("its kind of kernel cannot be changed while it runs")
		if k.Spec().isPython() {
			err = k.renew(ctx, env)
		}
		if err != nil {
			m.log.Info("a warm kernel is started again for this box", "kernel", k.id, "reason", err)
			problems = errors.Join(problems, k.Restart(ctx))
		}
	}
	return problems
}

// take gives a warm kernel for who starts one; nil: there is none that fits.
func (m *Manager) take(ctx context.Context, spec Spec, options Options) *Kernel {
	if len(options.Env) > 0 || options.hidden {
		return nil
	}
	for _, k := range m.warm() {
		k.mu.Lock()
		fits := k.options.hidden && k.phase == Idle && !k.silent && k.spec.Name == spec.Name
		if fits {
			k.options, k.prepared, k.shared = options, true, options.Shared
			k.created = time.Now()
			k.activity = k.created
		}
		k.mu.Unlock()
		if !fits {
			continue
		}
		if k.Spec().isPython() {
			// It goes before whatever its new clients ask for, so there is no need to wait.
			if err := k.order(pythonCall(map[string]any{"cwd": options.Cwd, "env": map[string]string{"JPY_SESSION_NAME": options.Path}})); err != nil {
				m.log.Warn("a warm kernel has not the directory of its notebook", "kernel", k.id, "error", err)
			}
		}
		return k
	}
	return nil
}

// renew gives a kernel another key and other random numbers.
func (k *Kernel) renew(ctx context.Context, env map[string]string) error {
	key := NewID()
	k.mu.Lock()
	r := k.run
	r.keys = [][]byte{r.keys[0], []byte(key)}
	file := r.file
	k.mu.Unlock()
	if err := k.silently(ctx, pythonCall(map[string]any{"env": env, "key": key, "seed": true})); err != nil {
		return err
	}
	k.mu.Lock()
	r.keys = [][]byte{[]byte(key)}
	k.mu.Unlock()
	file.Key = key
	path := filepath.Join(r.dir, "connection.json")
	if err := k.m.config.AsUser(func() error {
		next := path + ".new"
		if err := file.write(next); err != nil {
			return err
		}
		return os.Rename(next, path)
	}); err != nil {
		return fmt.Errorf("write the connection file of a kernel: %w", err)
	}
	k.mu.Lock()
	r.file = file
	k.mu.Unlock()
	return nil
}

// python is run in kernels of IPython, in a name space of its own. What it is told is in the variable told.
const python = `
import os, random, sys, uuid
from IPython import get_ipython
os.environ.update(told.get("env") or {})
if told.get("cwd"):
    os.chdir(told["cwd"])
if told.get("seed"):
    random.seed(os.urandom(64))
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(list(os.urandom(64)))
    if "_ssl" in sys.modules: # OpenSSL notices forks, and no copies of the whole machine
        sys.modules["_ssl"].RAND_add(os.urandom(64), 64.0)
    if "torch" in sys.modules:
        sys.modules["torch"].seed()
if told.get("key"):
    session = get_ipython().kernel.session
    session.session = str(uuid.uuid4())
    session.key = told["key"].encode()
`

// pythonCall makes the code that runs python.
func pythonCall(told map[string]any) string {
	// Twice in JSON: a JSON string is a Python string.
	inner, _ := json.Marshal(told)
	code, _ := json.Marshal(python)
	text, _ := json.Marshal(string(inner))
	return fmt.Sprintf("exec(%s, {'told': __import__('json').loads(%s)})", code, text)
}

func executeSilently(session, code string) (Message, error) {
	return NewMessage("execute_request", session, map[string]any{
		"code": code, "silent": true, "store_history": false, "user_expressions": map[string]any{}, "allow_stdin": false, "stop_on_error": false,
	})
}

// order has the kernel run code without waiting for it.
func (k *Kernel) order(code string) error {
	message, err := executeSilently(k.session, code)
	if err != nil {
		return err
	}
	k.mu.Lock()
	r := k.run
	connected := r != nil && r.connected
	k.mu.Unlock()
	if !connected {
		return errors.New("the kernel is not connected")
	}
	return k.sendTo(r, Shell, message)
}

// silently has the kernel run code and waits until it is idle again. Code that fails is an error.
func (k *Kernel) silently(ctx context.Context, code string) error {
	c, err := k.Connect(ClientConfig{Session: k.session})
	if err != nil {
		return err
	}
	defer c.Close()
	message, err := executeSilently(k.session, code)
	if err != nil {
		return err
	}
	if err := c.Send(Shell, message); err != nil {
		return err
	}
	id := message.Head().ID
	idle, replied := false, false
	for !idle || !replied {
		got, err := c.Receive(ctx)
		if err != nil {
			return fmt.Errorf("wait for code to end: %w", err)
		}
		switch {
		case got.Channel == State:
			if got.Info.Phase == Dead || got.Info.Phase == Restarting {
				return fmt.Errorf("the kernel died: %s", got.Info.Message)
			}
		case got.Message.ParentHead().ID != id:
		case got.Channel == Shell:
			var reply struct {
				Status string `json:"status"`
				Name   string `json:"ename"`
				Value  string `json:"evalue"`
			}
			if json.Unmarshal(got.Message.Content, &reply) != nil || reply.Status != "ok" {
				return fmt.Errorf("the code failed: %s: %s", printable(reply.Name), printable(reply.Value))
			}
			replied = true
		case got.Channel == IOPub:
			idle = idle || got.Message.Head().Type == "status" && statusOf(got.Message) == "idle"
		}
	}
	return nil
}
