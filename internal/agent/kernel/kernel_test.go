package kernel_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"carrel.dev/carrel/internal/agent/kernel"
	"carrel.dev/carrel/internal/agent/kernel/kerneltest"
	"carrel.dev/carrel/internal/carrel"
)

// newFake makes a manager whose kernels are played by the test: "tcp" and "ipc", which are interrupted by message and by signal.
func newFake(t *testing.T, change func(*kernel.Config)) (*kernel.Manager, *kerneltest.Fake) {
	t.Helper()
	fake := kerneltest.NewFake(t)
	m := newManager(t, func(c *kernel.Config) {
		c.Start = fake.Start
		kerneltest.Spec(t, c.Home, "tcp", fmt.Sprintf(kerneltest.FakeSpec, "fake", "message"))
		kerneltest.Spec(t, c.Home, "ipc", fmt.Sprintf(kerneltest.FakeSpec, "ipykernel-fake", "signal"))
		if change != nil {
			change(c)
		}
	})
	return m, fake
}

func start(t *testing.T, m *kernel.Manager, spec string) *kernel.Kernel {
	t.Helper()
	k, err := m.Start(wait(t), kernel.Options{Spec: spec})
	require.NoError(t, err)
	require.NoError(t, k.Ready(wait(t)))
	return k
}

func connect(t *testing.T, k *kernel.Kernel, config kernel.ClientConfig) *kernel.Client {
	t.Helper()
	c, err := k.Connect(config)
	require.NoError(t, err)
	t.Cleanup(c.Close)
	got, err := c.Receive(wait(t))
	require.NoError(t, err)
	require.Equal(t, kernel.State, got.Channel, "the state comes first")
	return c
}

// phase waits until a client is told of a phase.
func phase(t *testing.T, c *kernel.Client, wanted kernel.Phase) kernel.Info {
	t.Helper()
	for {
		got, err := c.Receive(wait(t))
		require.NoError(t, err, "wait for %s", wanted)
		if got.Channel == kernel.State && got.Info.Phase == wanted {
			return got.Info
		}
	}
}

func TestBothTransports(t *testing.T) {
	for _, spec := range []string{"tcp", "ipc"} {
		t.Run(spec, func(t *testing.T) {
			m, _ := newFake(t, nil)
			k := start(t, m, spec)
			require.Equal(t, kernel.Idle, k.Info().Phase)
			outputs, reply := execute(t, connect(t, k, kernel.ClientConfig{}), "x")
			require.Equal(t, "execute_reply", reply.Head().Type)
			require.Len(t, outputs, 3)
			require.NoError(t, k.Shutdown(wait(t)))
			require.Empty(t, m.List())
		})
	}
}

func TestConnectionFilesAreTheUsersAlone(t *testing.T) {
	var dir string
	m, _ := newFake(t, func(c *kernel.Config) { dir, _ = c.RuntimeDir() })
	k := start(t, m, "tcp")
	files, err := filepath.Glob(filepath.Join(dir, "*", "connection.json"))
	require.NoError(t, err)
	require.Len(t, files, 1)
	info, err := os.Stat(files[0])
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm())
	info, err = os.Stat(filepath.Dir(files[0]))
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o700), info.Mode().Perm())
	require.NoError(t, k.Shutdown(wait(t)))
	files, err = filepath.Glob(filepath.Join(dir, "*"))
	require.NoError(t, err)
	require.Empty(t, files, "nothing is left of a kernel")
}

// TestMessagesAreKeptAsTheyAre promises bytes, numbers, order of keys and buffers of any size.
func TestMessagesAreKeptAsTheyAre(t *testing.T) {
	content := `{"z": 1.50, "a": 12345678901234567890, "text": "é\u00e9", "z2" :[ ]}`
	big := bytes.Repeat([]byte("0123456789abcdef"), 2<<20)
	m, fake := newFake(t, nil)
	fake.Execute = func(k *kerneltest.FakeKernel, request kerneltest.Parts, _ string) {
		k.Publish("display_data", request, content, []byte{}, big, []byte{0, 1})
	}
	outputs, _ := execute(t, connect(t, start(t, m, "ipc"), kernel.ClientConfig{QueueBytes: 100 << 20}), "x")
	i := slices.IndexFunc(outputs, func(r kernel.Received) bool { return r.Message.Head().Type == "display_data" })
	require.Equal(t, content, string(outputs[i].Message.Content))
	require.Len(t, outputs[i].Message.Buffers, 3)
	require.Equal(t, big, outputs[i].Message.Buffers[1])
}

func TestRepliesGoToWhoAskedAndOutputToAll(t *testing.T) {
	m, fake := newFake(t, nil)
	fake.Execute = func(k *kerneltest.FakeKernel, request kerneltest.Parts, _ string) {
		k.Reply("stdin", "input_request", request, `{"prompt": "?", "password": false}`)
		k.Publish("stream", request, `{"name": "stdout", "text": "x"}`)
	}
	k := start(t, m, "tcp")
	one, other := connect(t, k, kernel.ClientConfig{}), connect(t, k, kernel.ClientConfig{})
	request, err := kernel.NewMessage("execute_request", "s", map[string]string{"code": "x"})
	require.NoError(t, err)
	require.NoError(t, one.Send(kernel.Shell, request))
	channels := func(c *kernel.Client, done func(map[kernel.Channel]int) bool) (got map[kernel.Channel]int) {
		got = map[kernel.Channel]int{}
		// Until what the next request of a client of its own brings.
		marker, err := kernel.NewMessage("comm_info_request", "s", map[string]string{})
		require.NoError(t, err)
		for !done(got) {
			next, err := c.Receive(wait(t))
			require.NoError(t, err, "%v", got)
			got[next.Channel]++
		}
		require.NoError(t, c.Send(kernel.Control, marker))
		for {
			next, err := c.Receive(wait(t))
			require.NoError(t, err)
			if next.Channel == kernel.Control {
				require.Equal(t, marker.Head().ID, next.Message.ParentHead().ID)
				return got
			}
			got[next.Channel]++
		}
	}
	got := channels(one, func(got map[kernel.Channel]int) bool {
		return got[kernel.IOPub] == 4 && got[kernel.Shell] == 1 && got[kernel.Stdin] == 1
	})
	require.Equal(t, 1, got[kernel.Shell])
	require.Equal(t, 1, got[kernel.Stdin])
	require.Equal(t, 4, got[kernel.IOPub])
	got = channels(other, func(got map[kernel.Channel]int) bool { return got[kernel.IOPub] == 4 })
	require.Zero(t, got[kernel.Shell]+got[kernel.Stdin])
	require.Equal(t, 4, got[kernel.IOPub])
}

// TestSlowClientsAreCutAndPatientOnesAreWaitedFor promises that one who takes nothing holds nobody up.
func TestSlowClientsAreCutAndPatientOnesAreWaitedFor(t *testing.T) {
	m, fake := newFake(t, nil)
	text := strings.Repeat("x", 100_000)
	fake.Execute = func(k *kerneltest.FakeKernel, request kerneltest.Parts, _ string) {
		for range 50 {
			k.Publish("stream", request, `{"name": "stdout", "text": "`+text+`"}`)
		}
	}
	k := start(t, m, "ipc")
	slow := connect(t, k, kernel.ClientConfig{QueueBytes: 300_000})
	patient := connect(t, k, kernel.ClientConfig{QueueBytes: 300_000, Patient: true})
	outputs, _ := execute(t, patient, "x")
	streams := slices.DeleteFunc(outputs, func(r kernel.Received) bool { return r.Message.Head().Type != "stream" })
	require.Len(t, streams, 50, "a patient client gets everything")
	var err error
	for err == nil {
		_, err = slow.Receive(wait(t))
	}
	require.Equal(t, "client_too_slow", carrel.ReasonOf(err))
}

func TestForeignAndBrokenMessagesArePassedOver(t *testing.T) {
	m, fake := newFake(t, func(c *kernel.Config) { c.MaxMessage = 1 << 20 })
	fake.Execute = func(k *kerneltest.FakeKernel, request kerneltest.Parts, _ string) {
		forged := kerneltest.Parts{Header: request.Header, Parent: request.Header, Metadata: []byte("{}"), Content: []byte(`{"text": "forged"}`)}
		k.SendRaw("iopub", nil, strings.Repeat("0", 64), forged)
		k.Publish("stream", request, `not JSON`)
		k.Publish("stream", request, `["an array"]`)
		k.Publish("stream", request, `{"text": "`+strings.Repeat("x", 2<<20)+`"}`)
		k.Publish("stream", request, `{"text": "good"}`)
	}
	outputs, _ := execute(t, connect(t, start(t, m, "tcp"), kernel.ClientConfig{}), "x")
	require.Len(t, outputs, 4)
	require.JSONEq(t, `{"text": "good"}`, string(outputs[2].Message.Content))
}

func TestInterruptAsTheSpecSays(t *testing.T) {
	m, fake := newFake(t, nil)
	for _, spec := range []string{"tcp", "ipc"} {
		k := start(t, m, spec)
		require.NoError(t, k.Interrupt(wait(t)))
		require.Equal(t, unix.SIGINT, <-fake.Last().Signals)
	}
}

func TestDeathIsTold(t *testing.T) {
	m, fake := newFake(t, nil)
	var mu sync.Mutex
	var told []kernel.Phase
	m.OnChange(func(info kernel.Info) {
		mu.Lock()
		told = append(told, info.Phase)
		mu.Unlock()
	})
	k := start(t, m, "ipc")
	c := connect(t, k, kernel.ClientConfig{})
	fake.Last().Die()
	info := phase(t, c, kernel.Dead)
	require.Contains(t, info.Message, "exit code 3")
	require.Contains(t, info.Message, "last  [31mline", "the last words, without what could do something to a terminal")
	require.Equal(t, "kernel_dead", carrel.ReasonOf(k.Ready(wait(t))))
	message, err := kernel.NewMessage("kernel_info_request", "s", struct{}{})
	require.NoError(t, err)
	require.Equal(t, "kernel_not_ready", carrel.ReasonOf(c.Send(kernel.Shell, message)))
	require.Equal(t, "kernel_not_running", carrel.ReasonOf(k.Interrupt(wait(t))))

	require.NoError(t, k.Restart(wait(t)))
	phase(t, c, kernel.Idle)
	require.Equal(t, 1, k.Info().Restarts)
	_, reply := execute(t, c, "x")
	require.NotNil(t, reply, "clients stay clients")
	require.NoError(t, k.Shutdown(wait(t)))
	for err = nil; err == nil; {
		_, err = c.Receive(wait(t))
	}
	require.Equal(t, "kernel_gone", carrel.ReasonOf(err))
	mu.Lock()
	defer mu.Unlock()
	require.Contains(t, told, kernel.Dead)
	require.Equal(t, kernel.Gone, told[len(told)-1])
}

func TestKernelsThatHangAreTold(t *testing.T) {
	m, fake := newFake(t, func(c *kernel.Config) { c.Heartbeat = 20 * time.Millisecond })
	k := start(t, m, "tcp")
	fake.Last().Deafen()
	c, err := k.Connect(kernel.ClientConfig{}) // the first that it is told may be just this
	require.NoError(t, err)
	t.Cleanup(c.Close)
	info := phase(t, c, kernel.Unresponsive)
	require.NotEmpty(t, info.Message)
	require.NoError(t, k.Ready(wait(t)), "it may only be slow")
}

func TestKernelsThatNeverAnswerAreEnded(t *testing.T) {
	m := newManager(t, func(c *kernel.Config) {
		kerneltest.Spec(t, c.Home, "mute", `{"argv": ["/bin/sleep", "1000"], "display_name": "Mute", "language": "none"}`)
		c.StartTimeout = 200 * time.Millisecond
	})
	k, err := m.Start(wait(t), kernel.Options{Spec: "mute"})
	require.NoError(t, err)
	require.Equal(t, "kernel_dead", carrel.ReasonOf(k.Ready(wait(t))))
	require.Contains(t, k.Info().Message, "did not begin to answer")

	m = newManager(t, func(c *kernel.Config) { // with time enough to end by itself
		kerneltest.Spec(t, c.Home, "ends", `{"argv": ["/bin/sh", "-c", "echo no such module; exit 7"], "display_name": "Ends", "language": "none"}`)
	})
	k, err = m.Start(wait(t), kernel.Options{Spec: "ends"})
	require.NoError(t, err)
	require.Equal(t, "kernel_dead", carrel.ReasonOf(k.Ready(wait(t))))
	require.Contains(t, k.Info().Message, "no such module")
}

func TestSpecsAreFound(t *testing.T) {
	m := newManager(t, func(c *kernel.Config) {
		kerneltest.Spec(t, c.Home, "Mine", `{"argv": ["x"], "display_name": "Mine", "language": "l", "env": {"A": "${B}/c"}}`)
		kerneltest.Spec(t, c.Home, "broken", `{"argv": []}`)
		kerneltest.Spec(t, c.Home, "nonsense", `[`)
		kerneltest.Spec(t, c.Home, "huge", strings.Repeat(" ", 300<<10))
		require.NoError(t, unix.Mkfifo(filepath.Join(c.Home, "fifo"), 0o600))
		kerneltest.Spec(t, c.Home, "waits", ``)
		path := filepath.Join(c.Home, ".local/share/jupyter/kernels/waits/kernel.json")
		require.NoError(t, os.Remove(path))
		require.NoError(t, os.Symlink(filepath.Join(c.Home, "fifo"), path))
	})
	specs, byDefault, err := m.Specs()
	require.NoError(t, err)
	require.Equal(t, "python3", byDefault)
	var names []string
	for _, spec := range specs {
		names = append(names, spec.Name)
	}
	require.Contains(t, names, "mine")
	for _, bad := range []string{"broken", "nonsense", "huge", "waits"} {
		require.NotContains(t, names, bad)
	}
	_, err = m.Start(wait(t), kernel.Options{Spec: "cobol"})
	require.Equal(t, "kernelspec_not_found", carrel.ReasonOf(err))
}

// TestWarmKernelsAreAdopted promises that a prepared kernel has what it loaded, and neither the key nor the random numbers of whoever has a copy.
func TestWarmKernelsAreAdopted(t *testing.T) {
	m := newManager(t, nil)
	require.NoError(t, m.Warm(wait(t), "python3", "import random, json\nloaded = 42\nrandom.seed(1)"))
	require.Empty(t, m.List(), "it is nobody's yet")
	require.NoError(t, m.Adopt(wait(t), map[string]string{"MINE": "yes"}))
	require.NoError(t, m.Adopt(wait(t), map[string]string{"MINE": "again"}))
	k, err := m.Start(wait(t), kernel.Options{Spec: "python3", Path: "/tmp/a.ipynb", Cwd: "/tmp"})
	require.NoError(t, err)
	require.True(t, k.Info().Prepared)
	require.Equal(t, "/tmp/a.ipynb", k.Info().Path)
	require.Len(t, m.List(), 1)
	c := connect(t, k, kernel.ClientConfig{})
	outputs, _ := execute(t, c, "import os; random.seed(1) if False else None; print(loaded, os.environ['MINE'], os.getcwd(), random.random() == 0.13436424411240122)")
	text := ""
	for _, one := range outputs {
		var content struct {
			Text  string `json:"text"`
			Count int    `json:"execution_count"`
		}
		require.NoError(t, json.Unmarshal(one.Message.Content, &content))
		text += content.Text
		if one.Message.Head().Type == "execute_input" {
			require.Equal(t, 1, content.Count, "what was loaded does not count")
		}
	}
	require.Equal(t, "42 again /tmp False\n", text)
	second, err := m.Start(wait(t), kernel.Options{Spec: "python3"})
	require.NoError(t, err)
	require.False(t, second.Info().Prepared, "there was one")

	err = m.Warm(wait(t), "python3", "import not_there")
	require.ErrorContains(t, err, "not_there")
	require.Len(t, m.List(), 2)
}

func TestNothingRunsWithoutKernels(t *testing.T) {
	m := newManager(t, nil)
	m.Close(context.Background())
	_, err := m.Start(wait(t), kernel.Options{Spec: "python3"})
	require.Equal(t, "box_stopping", carrel.ReasonOf(err))
}
