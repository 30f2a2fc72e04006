package vfork

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// output starts a command and gives what it wrote to its end.
func output(t testing.TB, c Command) (string, syscall.WaitStatus) {
	in, err := os.Open(os.DevNull)
	require.NoError(t, err)
	defer in.Close()
	r, w, err := os.Pipe()
	require.NoError(t, err)
	defer r.Close()
	c.Files = [3]int{int(in.Fd()), int(w.Fd()), int(w.Fd())}
	pid, err := Start(c)
	require.NoError(t, err)
	w.Close()
	data, err := io.ReadAll(r)
	require.NoError(t, err)
	var status syscall.WaitStatus
	_, err = syscall.Wait4(pid, &status, 0, nil)
	require.NoError(t, err)
	return string(data), status
}

func shell(script string) Command {
	return Command{Path: "/bin/sh", Args: []string{"sh", "-c", script}, Env: []string{"A=b"}, Dir: "/tmp"}
}

func TestWhatAProgramGets(t *testing.T) {
	dir := t.TempDir()
	c := shell(`echo "$A $0"; pwd; echo err >&2; exit 7`)
	c.Dir = dir
	got, status := output(t, c)
	require.Equal(t, "b sh\n"+dir+"\nerr\n", got)
	require.Equal(t, 7, status.ExitStatus())
}

// A program begins as any other: no signal blocked, none ignored but what we ignore, in a session of its own, with no file but three.
// ignored is the line of this process's status with the signals that it ignores: what the test asked for, and what whoever runs it did.
func ignored(t *testing.T) string {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	require.NoError(t, err)
	line := regexp.MustCompile(`\nSigIgn:\t([0-9a-f]{16})\n`).FindSubmatch(status)
	require.NotNil(t, line)
	set, err := strconv.ParseUint(string(line[1]), 16, 64)
	require.NoError(t, err)
	require.NotZero(t, set&(1<<(unix.SIGUSR2-1)))
	return string(line[0])
}

func TestSignalsSessionAndFiles(t *testing.T) {
	noticed := make(chan os.Signal, 1)
	signal.Notify(noticed, unix.SIGUSR1, unix.SIGTERM)
	defer signal.Stop(noticed)
	signal.Ignore(unix.SIGUSR2)
	defer signal.Reset(unix.SIGUSR2)
	got, _ := output(t, shell(`cat /proc/self/status; ps -o sid= -p $$; echo $$; ls /proc/$$/fd; true`))
	require.Contains(t, got, "\nSigBlk:\t0000000000000000\n")
	require.Contains(t, got, ignored(t), "what is ignored here is there too")
	require.Contains(t, got, "\nSigCgt:\t0000000000000000\n")
	lines := strings.Fields(got[strings.LastIndex(got, "nonvoluntary_ctxt_switches"):])[2:]
	require.GreaterOrEqual(t, len(lines), 5, got)
	require.Equal(t, lines[0], lines[1], "the session is its own")
	// Whoever runs the tests may have handed on files of their own: there may be no others than with the standard library.
	others, err := exec.Command("/bin/sh", "-c", `true; ls /proc/$$/fd; true`).Output()
	require.NoError(t, err)
	require.Equal(t, strings.Fields(string(others)), lines[2:])
}

func TestCredential(t *testing.T) {
	if os.Geteuid() != 0 || testing.Short() {
		return // only root can become somebody else; the agent's own tests run as root
	}
	c := shell(`id -u; id -g; id -G`)
	c.Credential = &syscall.Credential{Uid: 1000, Gid: 1001, Groups: []uint32{1002, 1003}}
	got, _ := output(t, c)
	require.Equal(t, "1000\n1001\n1001 1002 1003\n", got)
	c.Credential = &syscall.Credential{Uid: 1000, Gid: 1001}
	got, _ = output(t, c)
	require.Equal(t, "1000\n1001\n1001\n", got)
}

func TestWhatFailsInTheChildIsTold(t *testing.T) {
	text := filepath.Join(t.TempDir(), "text")
	require.NoError(t, os.WriteFile(text, []byte("no program"), 0o755))
	null, err := os.Open(os.DevNull)
	require.NoError(t, err)
	defer null.Close()
	files := [3]int{int(null.Fd()), int(null.Fd()), int(null.Fd())}
	for _, one := range []struct {
		c    Command
		want syscall.Errno
	}{
		{Command{Path: "/not/there", Args: []string{"x"}}, syscall.ENOENT},
		{Command{Path: text, Args: []string{"x"}}, syscall.ENOEXEC},
		{Command{Path: "/tmp", Args: []string{"x"}}, syscall.EACCES},
		{Command{Path: "/bin/true", Args: []string{"true"}, Dir: "/not/there"}, syscall.ENOENT},
		{Command{Path: "/bin/true", Args: []string{"true"}, Terminal: true}, syscall.ENOTTY},
		{Command{Path: "/bin/\x00", Args: []string{"true"}}, syscall.EINVAL},
	} {
		one.c.Files = files
		_, err := Start(one.c)
		require.ErrorIs(t, err, one.want, one.c.Path)
	}
	_, err = syscall.Wait4(-1, nil, syscall.WNOHANG, nil)
	require.ErrorIs(t, err, syscall.ECHILD, "no child is left")
}

// Many goroutines start programs while others allocate and the collector runs: neither memory nor stacks may suffer.
func TestManyAtOnce(t *testing.T) {
	stop := make(chan struct{})
	var beside, starts sync.WaitGroup
	beside.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				runtime.GC()
			}
		}
	})
	for worker := range 8 {
		starts.Go(func() {
			for i := range 25 {
				want := fmt.Sprintf("%d-%d", worker, i)
				got, status := output(t, Command{Path: "/bin/echo", Args: []string{"echo", want}})
				if got != want+"\n" || status.ExitStatus() != 0 {
					t.Errorf("got %q for %q", got, want)
				}
			}
		})
	}
	starts.Wait()
	close(stop)
	beside.Wait()
}

// What is not there on a machine is done by the standard library.
func TestPlainly(t *testing.T) {
	r, w, err := os.Pipe()
	require.NoError(t, err)
	defer r.Close()
	c := Command{Path: "/bin/echo", Args: []string{"echo", "hello"}, Files: [3]int{int(w.Fd()), int(w.Fd()), int(w.Fd())}}
	pid, err := c.plainly()
	require.NoError(t, err)
	w.Close()
	data, err := io.ReadAll(r)
	require.NoError(t, err)
	require.Equal(t, "hello\n", string(data))
	_, err = syscall.Wait4(pid, nil, 0, nil)
	require.NoError(t, err)
}

func BenchmarkStart(b *testing.B) {
	null, err := os.Open(os.DevNull)
	require.NoError(b, err)
	defer null.Close()
	files := [3]int{int(null.Fd()), int(null.Fd()), int(null.Fd())}
	path, err := exec.LookPath("true")
	require.NoError(b, err)
	for b.Loop() {
		pid, err := Start(Command{Path: path, Args: []string{"true"}, Files: files})
		require.NoError(b, err)
		_, err = syscall.Wait4(pid, nil, 0, nil)
		require.NoError(b, err)
	}
}
