package agent

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/agent/identity"
)

// initVariable tells the test's binary to be PID 1 of a namespace; it is the directory to live in.
const initVariable = "CARREL_AGENT_TEST_INIT"

// runAsInit is the agent as PID 1, as cmd/carrel-agent runs it.
func runAsInit() int {
	dir := os.Getenv(initVariable)
	fail := func(err error) int {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fail(err)
	}
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return fail(err)
	}
	for _, name := range []string{"profile", "profile.d"} { // what login shells read
		if err := unix.Mount(filepath.Join(dir, "etc", name), "/etc/"+name, "", unix.MS_BIND, ""); err != nil {
			return fail(err)
		}
	}
	memory := procMemory()
	memory.use = func() (int64, error) { // /proc/meminfo would be the host's
		all, err := listMemory()
		used := int64(0)
		for _, one := range all {
			if one.pid != 1 {
				used += one.resident
			}
		}
		return used, err
	}
	program := filepath.Join(dir, "program") // where other users may execute it
	if err := os.Link(os.Args[0], program); err != nil {
		return fail(err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
	defer stop()
	a, err := New(Config{
		Version: "init", IdentityDir: dir, Listen: "127.0.0.1:0", Root: dir, Home: filepath.Join(dir, "home"), Init: true, Owners: []string{program, ownersArgument},
		Env: []string{"PATH=" + defaultPath}, Log: slog.New(slog.NewTextHandler(os.Stderr, nil)), memory: memory,
	})
	if err != nil {
		return fail(err)
	}
	fmt.Println(a.Addr())
	if err := a.Run(ctx); err != nil {
		return fail(err)
	}
	return 0
}

// startInit starts an agent as PID 1 of its own namespace. As in gVisor it may not trace what runs as others.
func startInit(t *testing.T, change func(*identity.Identity)) (*box, *exec.Cmd) {
	t.Helper()
	dir := openDir(t)
	id := testIdentity()
	change(&id)
	require.NoError(t, identity.Write(dir, id))
	for name, text := range map[string]string{
		"etc/skel/.profile": "# hello\n", "etc/passwd": "root:x:0:0::/root:/bin/sh\nnode:x:1000:1000::/home/node:/bin/false\n", "etc/shadow": "root:*:1::::::\n",
		"etc/profile": debianProfile, "etc/profile.d/go.sh": "PATH=$PATH:/added\n",
		"etc/hosts": "127.0.0.1 localhost\n127.0.1.1 before\n", "usr/bin/sudo": "",
	} {
		path := filepath.Join(dir, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, []byte(text), 0o644))
	}
	require.NoError(t, os.Symlink("/run/nowhere/resolv.conf", filepath.Join(dir, "etc/resolv.conf")))
	cmd := exec.Command("setpriv", "--bounding-set=-sys_ptrace", os.Args[0])
	cmd.Env = append(os.Environ(), initVariable+"="+dir)
	cmd.Stderr = testLog{t}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS, Pdeathsig: unix.SIGKILL}
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	address, err := bufio.NewReader(out).ReadString('\n')
	require.NoError(t, err)
	b := &box{t: t, dir: dir, address: strings.TrimSpace(address), identity: id}
	var made []interface{ CloseIdleConnections() }
	processes, control, clients := clients(b.address, id.Key)
	for _, client := range clients {
		made = append(made, client)
	}
	b.processes, b.control = processes, control
	t.Cleanup(func() {
		for _, client := range made {
			client.CloseIdleConnections()
		}
		if cmd.ProcessState == nil {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	})
	return b, cmd
}

func TestPID1PreparesTheBox(t *testing.T) {
	if !asRoot() {
		return // only root can make the namespace
	}
	b, _ := startInit(t, func(id *identity.Identity) { id.Sudo = true })
	s := b.run(sh("id -u; cat .profile; stat -c %U:%a .; ps -o ppid= -p $$ | tr -d ' '; ulimit -Sn"))
	lines := strings.Split(s.out[stdout].String(), "\n")
	require.Equal(t, "1000", lines[0], s.out[stderr].String())
	require.Equal(t, "# hello", lines[1])
	require.Equal(t, "1", lines[3])
	var files unix.Rlimit
	require.NoError(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &files))
	require.Equal(t, fmt.Sprint(min(openFiles, files.Max)), lines[4], "Go raises this limit for itself alone")
	read := func(name string) string {
		data, err := os.ReadFile(filepath.Join(b.dir, "etc", name))
		require.NoError(t, err)
		return string(data)
	}
	require.Equal(t, "root:x:0:0::/root:/bin/sh\ncarrel:x:1000:1000::/home/carrel:/bin/sh\nnode:x:1000:1000::/home/node:/bin/false\n", read("passwd"))
	require.Equal(t, "root:x:0:\ncarrel:x:1000:\n", read("group"))
	require.Contains(t, read("shadow"), "\ncarrel:*:")
	require.Equal(t, "alpha\n", read("hostname"))
	require.Equal(t, "127.0.0.1 localhost\n127.0.1.1\talpha\n", read("hosts"))
	require.Contains(t, read("resolv.conf"), "no name server")
	require.Equal(t, sudoRule, read("sudoers.d/carrel"))
	info, err := os.Stat(filepath.Join(b.dir, "etc/sudoers.d/carrel"))
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o440), info.Mode())
	asked := sh("id -u")
	asked.User = "root"
	require.Equal(t, "0\n", b.run(asked).out[stdout].String())
}

func TestPID1ReapsWhatLostItsParent(t *testing.T) {
	if !asRoot() {
		return
	}
	b, _ := startInit(t, func(*identity.Identity) {})
	for i := range 20 {
		s := b.run(sh(fmt.Sprintf("for i in 1 2 3 4 5; do (setsid sh -c 'exec sleep 0.0%d' > /dev/null 2>&1 &) ; done; exit %d", i, i)))
		require.EqualValues(t, i, s.exited.GetExitCode(), "its own children's ends are not lost to it")
	}
	eventually(t, func() bool {
		return b.run(sh("ps -eo stat,comm --no-headers | grep -v -e ps -e grep -e sh | grep -c -e Z -e sleep")).out[stdout].String() == "0\n"
	}, "no zombie is left")
}

func TestPID1LimitsTheProcessesOfTheUser(t *testing.T) {
	if !asRoot() {
		return
	}
	b, _ := startInit(t, func(id *identity.Identity) { id.Processes = 60 })
	s := b.run(sh("for i in $(seq 200); do sleep 1000 & done; echo never"))
	require.NotZero(t, s.exited.GetExitCode())
	require.NotContains(t, s.out[stdout].String(), "never")
	require.Contains(t, strings.ToLower(s.out[stderr].String()), "fork")
	require.NotEmpty(t, b.list(), "the agent works on")
}

func TestPID1EndsTheLargestProcessBeforeMemoryIsOut(t *testing.T) {
	if !asRoot() {
		return
	}
	b, _ := startInit(t, func(id *identity.Identity) { id.MemoryBytes = 200 << 20 })
	neighbour := b.start(sh("sleep 1000"))
	s := b.run(sh("head -c 1000000000 /dev/zero | tail -c 1000000000 | wc -c; echo after; exit 9"))
	require.Contains(t, s.out[stdout].String(), "after", "only the largest process is ended")
	require.Equal(t, "memory", s.exited.GetEndedBy())
	s = b.run(&carrelv1.StartProcessRequest{Args: []string{"awk", "BEGIN { s = \"0123456789\"; for (i = 0; ; i++) kept[i] = s i s i s i s i }"}})
	require.Equal(t, "KILL", s.exited.GetExitSignal())
	require.Equal(t, "memory", s.exited.GetEndedBy())
	require.True(t, b.get(neighbour.GetId()).GetRunning())
}

func TestTERMShutsPID1Down(t *testing.T) {
	if !asRoot() {
		return
	}
	b, cmd := startInit(t, func(*identity.Identity) {})
	p := b.start(sh("trap 'touch said; exit 0' TERM; echo ready; while :; do sleep 0.01; done"))
	eventually(t, func() bool { return b.get(p.GetId()).GetStdoutBytes() > 0 }, "it runs")
	require.NoError(t, cmd.Process.Signal(unix.SIGTERM))
	require.NoError(t, cmd.Wait(), "the agent ends well")
	_, err := os.Stat(filepath.Join(b.dir, "home", "said"))
	require.NoError(t, err, "processes were told")
}

func TestTheGuardLooksMoreOftenTheNearerTheLimit(t *testing.T) {
	const limit = 64 << 30
	require.Equal(t, maxLook, untilNextLook(0, limit, false))
	require.Equal(t, minLook, untilNextLook(limit, limit, false))
	far, near, fast := untilNextLook(limit-256<<20, limit, false), untilNextLook(limit-128<<20, limit, false), untilNextLook(limit-256<<20, limit, true)
	require.InDelta(t, far.Seconds(), 2*near.Seconds(), 0.001)
	require.Less(t, fast, near)
}

func TestAnAccountTakesItsPlaceOnce(t *testing.T) {
	line := func([]string) string { return "carrel:x:1000:" }
	for _, c := range [][2]string{
		{"", "root:x:0:\ncarrel:x:1000:\n"},
		{"root:x:0:\n", "root:x:0:\ncarrel:x:1000:\n"},
		{"root:x:0:\nnode:x:1000:\nlast:x:7:", "root:x:0:\ncarrel:x:1000:\nnode:x:1000:\nlast:x:7:\n"},
		{"carrel:x:5:\nb:x:1000:\n", "carrel:x:1000:\nb:x:1000:\n"},
	} {
		once := putAccount(c[0], line)
		require.Equal(t, c[1], once)
		require.Equal(t, once, putAccount(once, line))
	}
}

// TestAResumeLeavesWhatIsTheSame: what a user changed in the box's own files stays when the box goes on as what it was, and a new name is written.
func TestAResumeLeavesWhatIsTheSame(t *testing.T) {
	root := t.TempDir()
	a := &Agent{config: Config{Root: root}, base: map[string]string{}}
	before := identity.Identity{RunID: "r1", BoxID: "b1", BoxName: "dev"}
	require.NoError(t, a.applyIdentity(before, identity.Identity{}))
	hosts := filepath.Join(root, "etc", "hosts")
	text, err := os.ReadFile(hosts)
	require.NoError(t, err)
	require.Contains(t, string(text), "127.0.1.1\tdev\n")
	own := []byte("127.0.0.1 localhost\n127.0.1.1 mine\n")
	require.NoError(t, os.WriteFile(hosts, own, 0o644))

	next := before
	next.RunID = "r2"
	require.NoError(t, a.applyIdentity(next, before))
	text, err = os.ReadFile(hosts)
	require.NoError(t, err)
	require.Equal(t, string(own), string(text))

	before, next.BoxName = next, "other"
	require.NoError(t, a.applyIdentity(next, before))
	text, err = os.ReadFile(hosts)
	require.NoError(t, err)
	require.Contains(t, string(text), "127.0.1.1\tother\n")
}
