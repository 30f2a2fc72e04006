package corpus

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Real starts Debian's Jupyter server with a home of its own, and ends it with the test.
func Real(t testing.TB) Server {
	t.Helper()
	const token = "the-real-servers-token"
	home, err := os.MkdirTemp("/tmp", "jupyter-real-")
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(home) })
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	port := listener.Addr().(*net.TCPAddr).Port
	require.NoError(t, listener.Close())
	log, err := os.Create(filepath.Join(home, "server.log"))
	require.NoError(t, err)
	defer log.Close()
	// The limits of output are off: what they drop depends on the moment.
	cmd := exec.Command("/usr/bin/python3", "/usr/bin/jupyter-server", "--no-browser", "--ip=127.0.0.1", fmt.Sprintf("--port=%d", port), "--ServerApp.port_retries=0",
		"--ServerApp.token="+token, "--ServerApp.allow_root=True", "--ServerApp.iopub_data_rate_limit=0", "--ServerApp.iopub_msg_rate_limit=0",
		"--ServerApp.root_dir="+home, "--ServerApp.disable_check_xsrf=True")
	cmd.Dir = home
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=" + home, "LANG=C.UTF-8"}
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	require.NoError(t, cmd.Start(), "Debian's jupyter-server: `make install-test` installs it")
	ended := make(chan struct{})
	go func() { _ = cmd.Wait(); close(ended) }()
	t.Cleanup(func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM)
		select {
		case <-ended:
		case <-time.After(20 * time.Second):
		}
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		<-ended
	})
	server := Server{URL: fmt.Sprintf("http://127.0.0.1:%d/", port), Token: token}
	require.Eventually(t, func() bool {
		select {
		case <-ended:
			text, _ := os.ReadFile(log.Name())
			require.FailNow(t, "the real server ended", string(text))
		default:
		}
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		return server.Do(ctx, "GET", "api/status", nil, nil) == nil
	}, 2*time.Minute, 100*time.Millisecond, "the real server does not answer")
	return server
}

// Compare has both servers do the whole corpus at the same time, with a protocol, and fails the test where they are not the same.
func Compare(t testing.TB, real, ours Server, protocol string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	type result struct {
		steps [][]string
		err   error
	}
	results := make(chan result, 1)
	go func() {
		steps, err := Play(ctx, real, protocol)
		results <- result{steps, err}
	}()
	got, err := Play(ctx, ours, protocol)
	want := <-results
	require.NoError(t, want.err, "the real server")
	require.NoError(t, err, "Carrel")
	require.GreaterOrEqual(t, len(want.steps), 60)
	messages := 0
	for _, step := range want.steps {
		messages += len(step)
	}
	if different := Differences(want.steps, got); len(different) > 0 {
		t.Errorf("%d of %d steps are not the same:\n%s", len(different), len(Steps), strings.Join(different, "\n"))
	}
	t.Logf("%d steps, %d messages", len(want.steps), messages)
}
