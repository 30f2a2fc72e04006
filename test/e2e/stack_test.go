// Package e2e tests Carrel as people get it: `carreld up` with real PostgreSQL and real gVisor, spoken to
// through the gateway with the client library and the CLI's binary. Each stack has directories, ports, links and names
// of its own and is checked for leaks at its end. Needs root and `make build`.
package e2e

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/durationpb"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/client"
	"carrel.dev/carrel/internal/failpoint"
)

const (
	running = carrelv1.State_STATE_RUNNING
	paused  = carrelv1.State_STATE_PAUSED
	stopped = carrelv1.State_STATE_STOPPED
	failed  = carrelv1.State_STATE_FAILED
	deleted = carrelv1.State_STATE_DELETED
)

const (
	// settleTime bounds every wait for something that must happen by itself, on a machine that has much else to do.
	settleTime = 5 * time.Minute
	// tryTime is after how long an attempt that may have got lost is made again.
	tryTime = 30 * time.Second
)

var stackNumber atomic.Int32

// bin is the folder with the binaries under test.
func bin(t testing.TB) string {
	dir := os.Getenv("CARREL_BIN")
	if dir == "" {
		var err error
		dir, err = filepath.Abs("../../bin")
		require.NoError(t, err)
	}
	for _, name := range []string{"carreld", "carrel", "carrel-agent", "runsc"} {
		_, err := os.Stat(filepath.Join(dir, name))
		require.NoError(t, err, "run `make build` first")
	}
	return dir
}

// options of a stack.
type options struct {
	images string // default tiny
	pool   string // default 12GiB
	agent  string // the binary for new boxes; default that of bin
	runsc  string // as agent
	faults bool   // its steps can be armed
	armed  []fault
}

// stack is one running Carrel.
type stack struct {
	t        testing.TB
	opts     options
	data     string
	runDir   string
	netRange string
	home     string // with the CLI's context
	url      string
	token    string
	client   *client.Client

	faults   failpoint.Dir
	armed    map[string]string // step to action, as far as it is not known that it happened
	pending  []fault           // for the next verb
	happened func(fault)
	witness  *carrelv1.Box // lives all the time and counts as no leftover

	up     *exec.Cmd
	ended  chan error
	output *lockedBuffer
}

// lockedBuffer keeps what a process prints.
type lockedBuffer struct {
	mu  sync.Mutex // guards buf
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// newStack starts a Carrel of its own. At the end of the test it is brought down and checked for leaks.
func newStack(t testing.TB, opts options) *stack {
	t.Helper()
	if testing.Short() {
		t.Skip("needs root and gVisor; the normal run has it")
	}
	require.Zero(t, os.Geteuid(), "the end-to-end tests need root")
	if opts.images == "" {
		opts.images = "tiny"
	}
	if opts.pool == "" {
		opts.pool = "12GiB"
	}
	n := int(stackNumber.Add(1))
	name := fmt.Sprintf("%d-%d", os.Getpid(), n)
	// Short paths: Unix sockets below them may have 107 bytes.
	data := filepath.Join("/var/tmp", "carrel-e2e-"+name)
	require.NoError(t, os.MkdirAll(data, 0o711))
	s := &stack{
		t: t, opts: opts, data: data, runDir: "/run/carrel-e2e-" + name,
		netRange: fmt.Sprintf("100.%d.%d.0/24", 65+os.Getpid()%60, (os.Getpid()/60+n)%256),
		home:     filepath.Join(data, "home"), faults: failpoint.Dir(filepath.Join(data, "faults")), armed: map[string]string{},
	}
	require.NoError(t, os.Mkdir(string(s.faults), 0o777))
	require.NoError(t, os.Chmod(string(s.faults), 0o777)) // every role takes what is meant for it away
	s.arm(opts.armed)
	t.Cleanup(s.destroy) // comes after the next, however that ends
	t.Cleanup(s.tearDown)
	s.start()
	return s
}

func imageDir(t testing.TB) string {
	dir, err := filepath.Abs("../../.cache/images")
	require.NoError(t, err)
	require.NoError(t, os.MkdirAll(dir, 0o755))
	return dir
}

// start runs `carreld up` and waits until it is ready.
func (s *stack) start() {
	s.t.Helper()
	config := filepath.Join(s.data, "config.yaml")
	agent := cmp.Or(s.opts.agent, filepath.Join(bin(s.t), "carrel-agent"))
	runsc := cmp.Or(s.opts.runsc, filepath.Join(bin(s.t), "runsc"))
	require.NoError(s.t, os.WriteFile(config, fmt.Appendf(nil, "node:\n  agent: %s\n  runsc: %s\n", agent, runsc), 0o600))
	s.up = exec.Command(filepath.Join(bin(s.t), "carreld"), "up", "--config", config,
		"--data", s.data, "--http", "127.0.0.1:0", "--ssh", "127.0.0.1:0", "--control-listen", "127.0.0.1:0", "--proxy-listen", "127.0.0.1:0",
		"--run-dir", s.runDir, "--net-range", s.netRange, "--image-dir", imageDir(s.t), "--images", s.opts.images, "--pool-size", s.opts.pool)
	s.up.Env = append(os.Environ(), "HOME="+s.home, "XDG_CONFIG_HOME=", "CARREL_CONFIG="+filepath.Join(s.home, "config.yaml"))
	if s.opts.faults {
		s.up.Env = append(s.up.Env, failpoint.Variable+"=@"+string(s.faults))
	}
	s.output = &lockedBuffer{}
	out, err := s.up.StdoutPipe()
	require.NoError(s.t, err)
	s.up.Stderr = s.output
	s.up.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	require.NoError(s.t, s.up.Start())
	ready := make(chan string, 1)
	s.ended = make(chan error, 1)
	go func() {
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			fmt.Fprintln(s.output, lines.Text())
			if url, ok := strings.CutPrefix(lines.Text(), "carrel is ready at "); ok {
				ready <- url
			}
		}
		s.ended <- s.up.Wait()
	}()
	select {
	case s.url = <-ready:
	case err := <-s.ended:
		s.ended <- err
		require.NoError(s.t, fmt.Errorf("up ended: %w\n%s", err, s.logs()))
	case <-time.After(8 * time.Minute):
		require.FailNow(s.t, "up did not get ready", s.logs())
	}
	token, err := os.ReadFile(filepath.Join(s.data, "admin-token"))
	require.NoError(s.t, err)
	s.token = strings.TrimSpace(string(token))
	s.client, err = client.New(client.Config{Context: client.Context{URL: s.url, Token: s.token, Org: "default"}})
	require.NoError(s.t, err)
}

// logs are the last lines of everybody.
func (s *stack) logs() string {
	var all strings.Builder
	all.WriteString(s.output.String())
	paths, _ := filepath.Glob(filepath.Join(s.data, "logs", "*.log"))
	for _, path := range paths {
		data, _ := os.ReadFile(path)
		lines := strings.Split(string(data), "\n")
		fmt.Fprintf(&all, "--- %s\n%s\n", filepath.Base(path), strings.Join(lines[max(0, len(lines)-25):], "\n"))
	}
	return all.String()
}

// stop ends up as Ctrl-C does: boxes go on.
func (s *stack) stop() {
	s.t.Helper()
	s.client.Close()
	_ = s.up.Process.Signal(syscall.SIGINT)
	select {
	case <-s.ended:
	case <-time.After(settleTime):
		require.FailNow(s.t, "up did not end", s.logs())
	}
}

// kill ends up and every role with SIGKILL, PostgreSQL too.
func (s *stack) kill() {
	s.t.Helper()
	s.client.Close()
	pids := []int{s.up.Process.Pid} // first, so that it starts nobody again
	for _, pid := range descendants(s.up.Process.Pid) {
		if s.isOurs(pid) {
			pids = append(pids, pid)
		}
	}
	for _, pid := range pids {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	<-s.ended
}

// rolePID finds a role's process among the children of up.
func (s *stack) rolePID(role string) int {
	s.t.Helper()
	for _, pid := range descendants(s.up.Process.Pid) {
		args := commandLine(pid)
		if role == "postgres" && len(args) > 0 && strings.Contains(args[0], "postgres") && strings.Contains(strings.Join(args, " "), s.data) {
			return pid
		}
		if len(args) > 1 && strings.HasSuffix(args[0], "carreld") && args[1] == role {
			return pid
		}
	}
	require.FailNow(s.t, "no process of role "+role, s.logs())
	return 0
}

func commandLine(pid int) []string {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil || len(data) == 0 {
		return nil
	}
	return strings.Split(strings.TrimSuffix(string(data), "\x00"), "\x00")
}

// isOurs says whether a process is Carrel's or PostgreSQL's, and not a sandbox's.
func (s *stack) isOurs(pid int) bool {
	args := commandLine(pid)
	return len(args) > 0 && (strings.HasSuffix(args[0], "/carreld") || strings.Contains(args[0], "postgres"))
}

// descendants lists the processes below pid, parents first.
func descendants(pid int) []int {
	children := map[int][]int{}
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, path := range stats {
		data, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		end := bytes.LastIndexByte(data, ')')
		fields := strings.Fields(string(data[end+1:]))
		child, _ := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		parent, _ := strconv.Atoi(fields[1])
		children[parent] = append(children[parent], child)
	}
	var all []int
	for queue := children[pid]; len(queue) > 0; {
		next := queue[0]
		queue = append(queue[1:], children[next]...)
		all = append(all, next)
	}
	return all
}

func (s *stack) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 2*settleTime)
	s.t.Cleanup(cancel)
	return ctx
}

// create makes a box and waits until it runs.
func (s *stack) create(name string, change ...func(*carrelv1.CreateBoxRequest)) *carrelv1.Box {
	s.t.Helper()
	request := &carrelv1.CreateBoxRequest{Name: name, Template: "tiny"}
	for _, c := range change {
		c(request)
	}
	_, err := s.client.Boxes.CreateBox(s.ctx(), connect.NewRequest(request))
	require.NoError(s.t, err)
	return s.await(name, running)
}

// await waits until a box is in a state.
func (s *stack) await(name string, state carrelv1.State) *carrelv1.Box {
	s.t.Helper()
	answer, err := s.client.Boxes.WaitBox(s.ctx(), connect.NewRequest(&carrelv1.WaitBoxRequest{
		Id: name, States: []carrelv1.State{state}, Timeout: durationpb.New(settleTime),
	}))
	require.NoError(s.t, err, "%s", lazy(s.logs))
	require.Equal(s.t, state, answer.Msg.GetState(), "%v\n%s", answer.Msg.GetFailure(), lazy(s.logs))
	return answer.Msg
}

// lazy is text that is made only when it is printed.
type lazy func() string

func (l lazy) String() string { return l() }

func (s *stack) pause(name string) *carrelv1.Box {
	s.t.Helper()
	_, err := s.client.Boxes.PauseBox(s.ctx(), connect.NewRequest(&carrelv1.PauseBoxRequest{Id: name}))
	require.NoError(s.t, err)
	return s.await(name, paused)
}

func (s *stack) resume(name string) *carrelv1.Box {
	s.t.Helper()
	_, err := s.client.Boxes.ResumeBox(s.ctx(), connect.NewRequest(&carrelv1.ResumeBoxRequest{Id: name}))
	require.NoError(s.t, err)
	return s.await(name, running)
}

func (s *stack) stopBox(name string) *carrelv1.Box {
	s.t.Helper()
	_, err := s.client.Boxes.StopBox(s.ctx(), connect.NewRequest(&carrelv1.StopBoxRequest{Id: name}))
	require.NoError(s.t, err)
	return s.await(name, stopped)
}

func (s *stack) startBox(name string) *carrelv1.Box {
	s.t.Helper()
	_, err := s.client.Boxes.StartBox(s.ctx(), connect.NewRequest(&carrelv1.StartBoxRequest{Id: name}))
	require.NoError(s.t, err)
	return s.await(name, running)
}

// remove deletes a box and waits until it is gone.
func (s *stack) remove(name string) {
	s.t.Helper()
	answer, err := s.client.Boxes.DeleteBox(s.ctx(), connect.NewRequest(&carrelv1.DeleteBoxRequest{Id: name}))
	require.NoError(s.t, err)
	s.await(answer.Msg.GetTargetId(), deleted)
}

// result of a command in a box.
type result struct {
	stdout, stderr string
	code           int
}

// exec runs a command in a box to its end.
func (s *stack) exec(box string, args ...string) result {
	s.t.Helper()
	return s.execWith(client.ExecOptions{Box: box, Args: args})
}

func (s *stack) execWith(o client.ExecOptions) result {
	s.t.Helper()
	var out, errs bytes.Buffer
	o.Stdout, o.Stderr = &out, &errs
	status, err := s.client.Exec(s.ctx(), o)
	require.NoError(s.t, err, "%s", lazy(s.logs))
	return result{stdout: out.String(), stderr: errs.String(), code: status.Code}
}

// sh runs a shell script in a box that must succeed, and gives what it printed.
func (s *stack) sh(box, script string) string {
	s.t.Helper()
	r := s.exec(box, "sh", "-c", script)
	require.Zero(s.t, r.code, "%s: %s%s", script, r.stdout, r.stderr)
	return strings.TrimSpace(r.stdout)
}

// background starts a script that goes on.
func (s *stack) background(box, script string) string {
	s.t.Helper()
	status, err := s.client.Exec(s.ctx(), client.ExecOptions{Box: box, Args: []string{"sh", "-c", script}, Detach: true})
	require.NoError(s.t, err, "%s", lazy(s.logs))
	return status.Process
}

// eventually polls until condition holds.
func (s *stack) eventually(what string, condition func() bool) {
	s.t.Helper()
	deadline := time.Now().Add(settleTime)
	for !condition() {
		if time.Now().After(deadline) {
			require.FailNow(s.t, what, s.logs())
		}
		<-time.After(20 * time.Millisecond)
	}
}

// carrel runs the CLI.
func (s *stack) carrel(args ...string) result {
	s.t.Helper()
	command := exec.Command(filepath.Join(bin(s.t), "carrel"), args...)
	command.Env = append(os.Environ(), "HOME="+s.home, "CARREL_CONFIG="+filepath.Join(s.home, "config.yaml"))
	var out, errs bytes.Buffer
	command.Stdout, command.Stderr = &out, &errs
	err := command.Run()
	if err != nil {
		var exit *exec.ExitError
		require.ErrorAs(s.t, err, &exit)
	}
	return result{stdout: out.String(), stderr: errs.String(), code: command.ProcessState.ExitCode()}
}
