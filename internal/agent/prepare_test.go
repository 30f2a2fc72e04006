package agent

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"

	agentv1 "carrel.dev/carrel/api/carrel/agent/v1"
	"carrel.dev/carrel/internal/agent/identity"
	"carrel.dev/carrel/internal/carrel"
)

// warmKernels is a Warmer that writes down what it is asked for.
type warmKernels struct {
	mu    sync.Mutex
	asked []string
	fail  error
}

func (w *warmKernels) Warm(_ context.Context, kernel, code string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.asked = append(w.asked, "warm "+kernel+": "+code)
	return w.fail
}

func (w *warmKernels) Adopt(_ context.Context, env map[string]string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.asked = append(w.asked, "adopt "+env["MOOD"])
	return w.fail
}

func (w *warmKernels) heard() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]string(nil), w.asked...)
}

// startPrepared starts an agent that has something to prepare.
func startPrepared(t *testing.T, warm *warmKernels, p *identity.Preparation) *Agent {
	t.Helper()
	return startBox(t, func(c *Config, id *identity.Identity) {
		id.Prepare = p
		if warm != nil {
			c.Warmer = warm
		}
	}).Agent
}

func TestABoxIsReadyOnlyWhenItIsPrepared(t *testing.T) {
	warm := &warmKernels{}
	b := startPrepared(t, warm, &identity.Preparation{
		Setup:  []string{"while ! [ -e $HOME/gate ]; do sleep 0.01; done; echo one > $HOME/made", "echo two >> $HOME/made"},
		Kernel: "python3", Imports: "import numpy", TimeoutMillis: 60_000,
	})
	control := controlService{a: b}
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := control.Ready(short, connect.NewRequest(&agentv1.ReadyRequest{}))
	require.ErrorIs(t, err, context.DeadlineExceeded, "its first command still runs")
	home := b.config.Home
	require.NoError(t, os.WriteFile(filepath.Join(home, "gate"), nil, 0o644))
	_, err = control.Ready(t.Context(), connect.NewRequest(&agentv1.ReadyRequest{}))
	require.NoError(t, err)
	made, err := os.ReadFile(filepath.Join(home, "made"))
	require.NoError(t, err)
	require.Equal(t, "one\ntwo\n", string(made), "one after the other")
	require.Equal(t, []string{"warm python3: import numpy"}, warm.heard(), "the kernel comes last")
}

func TestWhatCannotBePreparedSaysWhy(t *testing.T) {
	for name, c := range map[string]struct {
		warm *warmKernels
		do   identity.Preparation
		says []string
	}{
		"a command fails":   {nil, identity.Preparation{Setup: []string{"true", "echo no such package >&2; exit 3", "touch never"}, TimeoutMillis: 60_000}, []string{"command 2 of 3", "code 3", "no such package"}},
		"it takes too long": {nil, identity.Preparation{Setup: []string{"echo busy; exec sleep 600"}, TimeoutMillis: 3000}, []string{"too long", "command 1 of 1", "busy"}},
		"a kernel fails":    {&warmKernels{fail: errors.New("no kernel called julia")}, identity.Preparation{Kernel: "julia", TimeoutMillis: 60_000}, []string{"kernel julia", "no kernel called julia"}},
		"no such kernel":    {nil, identity.Preparation{Kernel: "cobol", TimeoutMillis: 60_000}, []string{"kernel cobol", "the box has no kernel"}},
	} {
		t.Run(name, func(t *testing.T) {
			b := startPrepared(t, c.warm, &c.do)
			_, err := controlService{a: b}.Ready(t.Context(), connect.NewRequest(&agentv1.ReadyRequest{}))
			require.Equal(t, carrel.ReasonPrepareFailed, carrel.ReasonOf(err))
			require.Equal(t, carrel.CodePrecondition, carrel.CodeOf(err))
			for _, words := range c.says {
				require.ErrorContains(t, err, words)
			}
		})
	}
}

func TestABoxThatIsHandedOverTakesItsNewNameAndEnvironment(t *testing.T) {
	warm := &warmKernels{}
	b := startPrepared(t, warm, nil)
	id, _ := b.current()
	control := controlService{a: b}
	same, err := control.Identify(t.Context(), connect.NewRequest(&agentv1.IdentifyRequest{}))
	require.NoError(t, err)
	require.Equal(t, id.BoxName, same.Msg.GetBoxName())
	require.Empty(t, warm.heard(), "nothing changed")

	id.BoxName, id.Env = "mine", map[string]string{"MOOD": "good"}
	require.NoError(t, identity.Write(b.config.IdentityDir, id))
	answer, err := control.Identify(t.Context(), connect.NewRequest(&agentv1.IdentifyRequest{}))
	require.NoError(t, err)
	require.Equal(t, "mine", answer.Msg.GetBoxName())
	require.Equal(t, []string{"adopt good"}, warm.heard())
	now, _ := b.current()
	require.Equal(t, id, now)
	ready, err := control.Ready(t.Context(), connect.NewRequest(&agentv1.ReadyRequest{}))
	require.NoError(t, err)
	require.Zero(t, ready.Msg.GetRestores(), "it is the same run")
}

func TestACloneAdoptsItsKernels(t *testing.T) {
	warm := &warmKernels{}
	b := startPrepared(t, warm, nil)
	id, _ := b.current()
	id.RunID, id.Key = "rbbbbbbbbbbbbbbbbbbb", strings.Repeat("1e", 32)
	require.NoError(t, identity.Write(b.config.IdentityDir, id))
	require.NoError(t, b.refresh())
	require.Empty(t, warm.heard(), "it is the same box, resumed")
	id.RunID, id.BoxID, id.Env = "rccccccccccccccccccc", "bccccccccccccccccccc", map[string]string{"MOOD": "new"}
	require.NoError(t, identity.Write(b.config.IdentityDir, id))
	require.NoError(t, b.refresh())
	require.Equal(t, []string{"adopt new"}, warm.heard())
}

func TestAMachineIDIsTheBoxsOwn(t *testing.T) {
	root := t.TempDir()
	a := &Agent{config: Config{Root: root}}
	path := filepath.Join(root, "etc", "machine-id")
	read := func() string {
		data, err := os.ReadFile(path)
		require.NoError(t, err)
		return strings.TrimSpace(string(data))
	}
	require.NoError(t, a.setUpMachine("bone", ""))
	first := read()
	require.Regexp(t, "^[0-9a-f]{32}$", first)
	require.NoError(t, a.setUpMachine("bone", "bone"))
	require.Equal(t, first, read(), "it stays in the whole life of the box")
	require.NoError(t, a.setUpMachine("btwo", "bone"))
	require.NotEqual(t, first, read(), "a clone has its own")
	require.NoError(t, os.Chmod(path, 0o644))
	require.NoError(t, os.WriteFile(path, []byte("chosen\n"), 0o444))
	require.NoError(t, a.setUpMachine("bthree", "btwo"))
	require.Equal(t, "chosen", read(), "one that somebody chose stays")
}
