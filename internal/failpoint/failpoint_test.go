package failpoint

import (
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// waitLimit bounds what must happen at once.
const waitLimit = time.Minute

const childVariable = "CARREL_FAILPOINT_TEST_CHILD"

// TestMain is also the process that is killed: it hits two steps.
func TestMain(m *testing.M) {
	if os.Getenv(childVariable) == "" {
		os.Exit(m.Run())
	}
	for _, step := range []string{"a/first", "a/second"} {
		if err := Hit(step); err != nil {
			os.Stdout.WriteString(err.Error())
			os.Exit(3)
		}
	}
	os.Stdout.WriteString("through")
}

// child runs the process, and answers what it printed, or "killed".
func child(t *testing.T, setting string) string {
	t.Helper()
	exe, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), childVariable+"=1", Variable+"="+setting)
	out, err := cmd.Output()
	if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		require.Equal(t, syscall.SIGKILL, status.Signal())
		return "killed"
	}
	if err != nil {
		var exit *exec.ExitError
		require.ErrorAs(t, err, &exit)
	}
	return string(out)
}

func TestActionsOfOneProcess(t *testing.T) {
	require.Equal(t, "through", child(t, ""))
	require.Equal(t, "through", child(t, "a/third=kill"))
	require.Equal(t, "killed", child(t, "a/second=kill"))
	require.Equal(t, "failpoint a/first", child(t, "a/second=kill,a/first=error"))
	require.Equal(t, "failpoint a/second", child(t, "a/second=errors"))
}

func TestActionsOutliveTheProcess(t *testing.T) {
	dir := Dir(t.TempDir())
	run := func() string { return child(t, "@"+string(dir)) }
	require.Equal(t, "through", run(), "nothing is armed")
	for action, want := range map[string][]string{
		ActionError:  {"failpoint a/second", "through"},
		ActionKill:   {"killed", "through"},
		ActionRepeat: {"killed", "killed", "through"},
		ActionErrors: {"failpoint a/second", "failpoint a/second", "failpoint a/second"},
	} {
		require.NoError(t, dir.Arm("a/second", action))
		for i, w := range want {
			require.Equal(t, w, run(), "%s, process %d", action, i)
		}
		left, err := dir.Disarm("a/second")
		require.NoError(t, err)
		if action != ActionErrors {
			require.Empty(t, left, action)
		}
	}
}

func TestAStepHoldsItsProcess(t *testing.T) {
	dir := Dir(t.TempDir())
	require.NoError(t, dir.Arm("a/first", ActionWait))
	ended := make(chan string, 1)
	go func() { ended <- child(t, "@"+string(dir)) }()
	require.Eventually(t, func() bool {
		held, err := dir.Held("a/first")
		return err == nil && held
	}, waitLimit, waitPoll)
	require.NoError(t, dir.Arm("a/first", ActionKill))
	require.Equal(t, "killed", <-ended)
	action, err := dir.Armed("a/first")
	require.NoError(t, err)
	require.Empty(t, action)
}

func TestStepsAreNoted(t *testing.T) {
	dir := Dir(t.TempDir())
	require.NoError(t, dir.Note())
	require.Equal(t, "through", child(t, "@"+string(dir)))
	require.Equal(t, "through", child(t, "@"+string(dir)))
	names, err := dir.Noted()
	require.NoError(t, err)
	require.Equal(t, []string{"a/first", "a/second", "a/first", "a/second"}, names)
	require.NoError(t, dir.Note())
	names, err = dir.Noted()
	require.NoError(t, err)
	require.Empty(t, names)
	files, err := filepath.Glob(filepath.Join(string(dir), ".arm-*"))
	require.NoError(t, err)
	require.Empty(t, files)
}
