package kernel_test

import (
	"context"
	"encoding/json"
	"log/slog"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"carrel.dev/carrel/internal/agent/kernel"
	"carrel.dev/carrel/internal/agent/kernel/kerneltest"
)

// patience is how long a test waits for what should come.
const patience = 3 * time.Minute

func newManager(t *testing.T, change func(*kernel.Config)) *kernel.Manager {
	t.Helper()
	config := kernel.Config{Home: kerneltest.Dir(t), RuntimeDir: kerneltest.RuntimeDir(t), Start: kerneltest.Starter(t), AsUser: kerneltest.AsUser, Log: slog.New(slog.NewTextHandler(os.Stderr, nil))}
	if change != nil {
		change(&config)
	}
	m, err := kernel.NewManager(config)
	require.NoError(t, err)
	t.Cleanup(func() { m.Close(context.Background()) })
	return m
}

func wait(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// execute runs code and gives what came until the kernel was idle and had replied.
func execute(t *testing.T, c *kernel.Client, code string) (outputs []kernel.Received, reply *kernel.Message) {
	t.Helper()
	ctx := wait(t)
	request, err := kernel.NewMessage("execute_request", "test", map[string]any{"code": code, "silent": false, "store_history": true, "allow_stdin": true, "stop_on_error": true})
	require.NoError(t, err)
	require.NoError(t, c.Send(kernel.Shell, request))
	idle := false
	for !idle || reply == nil {
		got, err := c.Receive(ctx)
		require.NoError(t, err)
		if got.Channel == kernel.State || got.Message.ParentHead().ID != request.Head().ID {
			continue
		}
		if got.Channel == kernel.Shell {
			reply = got.Message
			continue
		}
		var content struct {
			State string `json:"execution_state"`
		}
		require.NoError(t, json.Unmarshal(got.Message.Content, &content))
		idle = idle || content.State == "idle"
		outputs = append(outputs, got)
	}
	return outputs, reply
}

func TestRealKernel(t *testing.T) {
	m := newManager(t, nil)
	k, err := m.Start(wait(t), kernel.Options{Spec: "python3"})
	require.NoError(t, err)
	require.NoError(t, k.Ready(wait(t)))
	c, err := k.Connect(kernel.ClientConfig{Session: "test"})
	require.NoError(t, err)
	outputs, reply := execute(t, c, "print('hello'); 6*7")
	require.Contains(t, string(reply.Content), `"ok"`)
	var types []string
	for _, one := range outputs {
		types = append(types, one.Message.Head().Type)
	}
	require.Equal(t, []string{"status", "execute_input", "stream", "execute_result", "status"}, types)
	require.JSONEq(t, `{"name": "stdout", "text": "hello\n"}`, string(outputs[2].Message.Content))
	require.NoError(t, k.Interrupt(wait(t)))
	require.NoError(t, k.Restart(wait(t)))
	require.NoError(t, k.Ready(wait(t)))
	_, reply = execute(t, c, "1")
	require.Contains(t, string(reply.Content), `"execution_count": 1`)
}
