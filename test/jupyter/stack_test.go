// Package jupyter tests the boxes' Jupyter servers with clients that others wrote: @jupyterlab/services in Node, Debian's Jupyter server as a
// client of a gateway, and plain Python. The ring is real but for the sandbox: a box's programs run on the machine, as a user without rights.
package jupyter_test

import (
	"context"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/carreltest"
	"carrel.dev/carrel/test/jupyter/corpus"
)

func TestMain(m *testing.M) {
	code := carreltest.Main(m)
	os.Exit(code)
}

// patience bounds everything that one client does.
const patience = 5 * time.Minute

// box is a box of a ring, with its Jupyter server.
type box struct {
	*carreltest.Stack
	id     string
	server corpus.Server
}

func newBox(t *testing.T) *box {
	t.Helper()
	s := carreltest.Start(t, carreltest.Options{PoolBytes: carrel.GiB}) // room for the one box
	t.Cleanup(http.DefaultClient.CloseIdleConnections)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	op, err := s.Admin.Boxes.CreateBox(ctx, connect.NewRequest(&carrelv1.CreateBoxRequest{Name: "lab"}))
	require.NoError(t, err)
	_, err = s.Admin.WaitOperation(ctx, op.Msg, 0, nil)
	require.NoError(t, err)
	return &box{Stack: s, id: op.Msg.GetTargetId(), server: corpus.Server{URL: s.URL + "/jupyter/lab/", Token: s.AdminToken}}
}

// node runs a script of this folder with the packages that its package-lock.json names.
func node(t *testing.T, b *box, script string, env ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	packages(t, ctx)
	runScript(t, ctx, b, append(env, "NODE_NO_WARNINGS=1"), "../../scripts/node.sh", "node", script)
}

// packages fetches what the scripts need, once for a state of package-lock.json.
func packages(t *testing.T, ctx context.Context) {
	t.Helper()
	lock, err := os.ReadFile("package-lock.json")
	require.NoError(t, err)
	if have, err := os.ReadFile("node_modules/.carrel-lock"); err == nil && string(have) == string(lock) {
		return
	}
	out, err := exec.CommandContext(ctx, "../../scripts/node.sh", "npm", "ci").CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.NoError(t, os.WriteFile("node_modules/.carrel-lock", lock, 0o644))
}

func python(t *testing.T, b *box, script string, env ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	home, err := os.MkdirTemp("/tmp", "jupyter-client-")
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(home) })
	runScript(t, ctx, b, append(env, "HOME="+home), "/usr/bin/python3", script)
}

// runScript has a script test the box's Jupyter server. It knows it by its environment.
func runScript(t *testing.T, ctx context.Context, b *box, env []string, args ...string) {
	t.Helper()
	program, err := filepath.Abs(args[0])
	require.NoError(t, err)
	cmd := exec.CommandContext(ctx, program, args[1:]...)
	cmd.Env = append(os.Environ(), "JUPYTER_URL="+b.server.URL, "JUPYTER_TOKEN="+b.server.Token, "PYTHONDONTWRITEBYTECODE=1")
	cmd.Env = append(cmd.Env, env...)
	cmd.WaitDelay = 10 * time.Second
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	t.Logf("%s", out)
}
