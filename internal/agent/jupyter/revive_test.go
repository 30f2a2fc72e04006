package jupyter

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"carrel.dev/carrel/internal/agent/kernel"
	"carrel.dev/carrel/internal/agent/kernel/kerneltest"
)

// statuses gives what a client is told by the server, and not by the kernel, of how the kernel is.
type statuses struct {
	t *testing.T
	v *viewer
	c *socket
}

func (s statuses) until(wanted ...string) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), time.Minute)
	defer cancel()
	var seen []string
	for len(wanted) > 0 {
		one, err := s.v.next(ctx, s.c)
		require.NoError(s.t, err, "after %v; %v is to come", seen, wanted)
		var content struct {
			State string `json:"execution_state"`
		}
		require.NoError(s.t, json.Unmarshal(one.message.Content, &content))
		if head := one.message.Head(); head.Type != "status" || head.Session == "fake" {
			continue
		}
		seen = append(seen, content.State)
		require.Equal(s.t, wanted[0], content.State, "after %v", seen)
		wanted = wanted[1:]
	}
}

// TestAKernelThatDiesIsStartedAgainForItsClients promises what clients of Jupyter expect: they are told "restarting" and find a new process, and "dead"
// when that does not help.
func TestAKernelThatDiesIsStartedAgainForItsClients(t *testing.T) {
	kernels, fake := newFakeKernels(t)
	r := newRig(t, func(c *Config) { c.Kernels = kernels })
	k, err := kernels.Start(t.Context(), kernel.Options{Spec: "fake"})
	require.NoError(t, err)
	require.NoError(t, k.Ready(t.Context()))

	var clients []statuses
	for i := range 2 {
		c := &socket{cancel: func(error) {}}
		v, _, err := r.s.viewers.attach(k, fmt.Sprint("client ", i), c)
		require.NoError(t, err)
		clients = append(clients, statuses{t, v, c})
		clients[i].until("idle")
	}
	for i := range maxRevivals {
		fake.Last().Die()
		for _, c := range clients {
			c.until("restarting")
		}
		require.NoError(t, k.Ready(t.Context()))
		require.Equal(t, i+1, k.Info().Restarts, "once for all clients")
	}
	fake.Last().Die()
	for _, c := range clients {
		c.until("dead")
	}
	require.Equal(t, kernel.Dead, k.Info().Phase)
}

// TestAKernelThatDiedUnseenIsStartedAgainForItsFirstClient: one that ended at its very start, before any client was there, is no different.
func TestAKernelThatDiedUnseenIsStartedAgainForItsFirstClient(t *testing.T) {
	kernels, fake := newFakeKernels(t)
	r := newRig(t, func(c *Config) { c.Kernels = kernels })
	k, err := kernels.Start(t.Context(), kernel.Options{Spec: "fake"})
	require.NoError(t, err)
	require.NoError(t, k.Ready(t.Context()))
	fake.Last().Die()
	require.Eventually(t, func() bool { return k.Info().Phase == kernel.Dead }, time.Minute, time.Millisecond)

	c := &socket{cancel: func(error) {}}
	v, _, err := r.s.viewers.attach(k, "client", c)
	require.NoError(t, err)
	statuses{t, v, c}.until("restarting")
	require.NoError(t, k.Ready(t.Context()))
	require.Equal(t, 1, k.Info().Restarts)
}

// newFakeKernels gives a manager whose kernels are fake ones.
func newFakeKernels(t *testing.T) (*kernel.Manager, *kerneltest.Fake) {
	t.Helper()
	home := kerneltest.Dir(t)
	kerneltest.Spec(t, home, "fake", fmt.Sprintf(kerneltest.FakeSpec, "fake", "signal"))
	fake := kerneltest.NewFake(t)
	kernels, err := kernel.NewManager(kernel.Config{Home: home, RuntimeDir: kerneltest.RuntimeDir(t), Start: fake.Start, AsUser: kerneltest.AsUser, Log: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	t.Cleanup(func() { kernels.Close(context.Background()) })
	return kernels, fake
}
