package e2e

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/api/carrel/v1/carrelv1connect"
)

// sshClient is a person's machine: a key, and OpenSSH's settings for one stack.
type sshClient struct {
	s      *stack
	dir    string
	host   string
	port   string
	config string
}

// newSSHClient makes a key, registers it and writes a configuration in which every host is a box.
func (s *stack) newSSHClient(t *testing.T) *sshClient {
	t.Helper()
	dir := t.TempDir()
	c := &sshClient{s: s, dir: dir, config: filepath.Join(dir, "config")}
	key := filepath.Join(dir, "id")
	out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", filepath.Base(dir), "-f", key).CombinedOutput()
	require.NoError(t, err, "%s", out)
	public, err := os.ReadFile(key + ".pub")
	require.NoError(t, err)
	api := s.sshService()
	_, err = api.AddSSHKey(s.ctx(), connect.NewRequest(&carrelv1.AddSSHKeyRequest{PublicKey: string(public), Name: filepath.Base(t.Name())}))
	require.NoError(t, err)
	blob := strings.Fields(string(public))[1]
	s.eventually("the gateway knows the key", func() bool {
		data, err := os.ReadFile(filepath.Join(s.data, "gateway", "grants.json"))
		return err == nil && strings.Contains(string(data), blob)
	})
	info, err := api.GetSSHInfo(s.ctx(), connect.NewRequest(&carrelv1.GetSSHInfoRequest{}))
	require.NoError(t, err)
	c.host, c.port, err = net.SplitHostPort(info.Msg.GetAddress())
	require.NoError(t, err)
	if c.host == "" {
		c.host = "127.0.0.1"
	}
	known := ""
	for _, k := range info.Msg.GetHostKeys() {
		known += "carrel " + k + "\n"
	}
	require.NoError(t, os.WriteFile(filepath.Join(dir, "known_hosts"), []byte(known), 0o600))
	require.NoError(t, os.WriteFile(c.config, []byte(strings.Join([]string{
		"Host *", "  HostName " + c.host, "  Port " + c.port, "  HostKeyAlias carrel",
		"  IdentityFile " + key, "  IdentitiesOnly yes", "  UserKnownHostsFile " + filepath.Join(dir, "known_hosts"), "  StrictHostKeyChecking yes",
		"  GlobalKnownHostsFile /dev/null", "  BatchMode yes", "  ConnectTimeout 30", "",
	}, "\n")), 0o600))
	return c
}

func (s *stack) sshService() carrelv1connect.SSHServiceClient { return s.client.SSH }

// command is a program of OpenSSH's with the settings.
func (c *sshClient) command(name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(c.s.ctx(), name, append([]string{"-F", c.config}, args...)...)
	cmd.Env = append(os.Environ(), "SSH_AUTH_SOCK=")
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// ssh runs a command in a box.
func (c *sshClient) ssh(t *testing.T, box string, args ...string) result {
	t.Helper()
	return c.run(t, c.command("ssh", append([]string{"-l", box, "gateway"}, args...)...), "")
}

func (c *sshClient) run(t *testing.T, cmd *exec.Cmd, stdin string) result {
	t.Helper()
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if stdin != "" {
		cmd.Stdin = strings.NewReader(stdin)
	}
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil {
		require.ErrorAs(t, err, &exit, "%s", lazy(c.s.logs))
	}
	return result{stdout: out.String(), stderr: errs.String(), code: cmd.ProcessState.ExitCode()}
}

// TestSSH drives boxes with the programs that people have: OpenSSH's client and what stands on it.
func TestSSH(t *testing.T) {
	s := newStack(t, options{images: "base"})
	const path = "/opt/tool/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	s.create("dev", func(r *carrelv1.CreateBoxRequest) { r.Template, r.Env = "base", map[string]string{"PATH": path} })
	c := s.newSSHClient(t)

	t.Run("a login shell has the box's PATH", func(t *testing.T) {
		require.Equal(t, path+"\n", c.ssh(t, "dev", "echo $PATH").stdout)
		r := c.run(t, c.command("ssh", "-tt", "-l", "dev", "gateway"), "echo path=$PATH=\nexit\n")
		require.Contains(t, r.stdout, "path="+path+"=", r.stderr)
	})

	t.Run("a command's streams and status", func(t *testing.T) {
		r := c.run(t, c.command("ssh", "-l", "dev", "gateway", "cat; echo err >&2; exit 7"), "from stdin\n")
		require.Equal(t, result{"from stdin\n", "err\n", 7}, r)
	})
	t.Run("names", func(t *testing.T) {
		for _, name := range []string{"dev", "dev.default", s.await("dev", running).GetId()} {
			require.Equal(t, "dev\n", c.ssh(t, name, "hostname").stdout, name)
		}
	})
	t.Run("a box that is not there", func(t *testing.T) {
		r := c.ssh(t, "nobody", "true")
		require.Equal(t, 255, r.code)
		require.Contains(t, r.stderr, `there is no box "nobody"`)
	})
	t.Run("a key that nobody registered", func(t *testing.T) {
		stranger := filepath.Join(t.TempDir(), "id")
		out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", stranger).CombinedOutput()
		require.NoError(t, err, "%s", out)
		settings, err := os.ReadFile(c.config)
		require.NoError(t, err)
		other := *c
		other.config = filepath.Join(filepath.Dir(stranger), "config")
		require.NoError(t, os.WriteFile(other.config, bytes.ReplaceAll(settings, []byte(filepath.Join(c.dir, "id")), []byte(stranger)), 0o600))
		r := other.ssh(t, "dev", "true")
		require.Equal(t, 255, r.code)
		require.Contains(t, r.stderr, "Permission denied (publickey)")
	})
	t.Run("exit signal", func(t *testing.T) {
		r := c.run(t, c.command("ssh", "-v", "-l", "dev", "gateway", "kill -9 $$"), "")
		require.Equal(t, 255, r.code)
		require.Contains(t, r.stderr, "exit-signal")
	})
	t.Run("environment", func(t *testing.T) {
		cmd := c.command("ssh", "-o", "SendEnv=LC_TEST GIT_PROTOCOL LD_PRELOAD", "-l", "dev", "gateway", `echo "$LC_TEST,$GIT_PROTOCOL,$LD_PRELOAD,$HOME,$USER,$LOGNAME,$SHELL,${SSH_CONNECTION:+yes},$0"`)
		cmd.Env = append(cmd.Env, "LC_TEST=de", "GIT_PROTOCOL=version=2", "LD_PRELOAD=")
		require.Equal(t, "de,version=2,,/home/carrel,carrel,carrel,/bin/bash,yes,bash\n", strings.ReplaceAll(c.run(t, cmd, "").stdout, "/bin/bash\n", "bash\n"))
	})
	t.Run("a terminal with its modes", func(t *testing.T) {
		r := c.run(t, c.command("ssh", "-tt", "-l", "dev", "gateway", "stty size; stty -a | tr ' ' '\n' | grep -x -e -*echo; tty; echo $TERM; echo err >&2"), "")
		require.Zero(t, r.code, r.stderr)
		require.Contains(t, r.stdout, "/dev/pts/")
		require.Contains(t, r.stdout, "echo\r\n")
		require.Contains(t, r.stdout, "err\r\n")
	})
	t.Run("a login shell", func(t *testing.T) {
		r := c.run(t, c.command("ssh", "-l", "dev", "gateway"), "shopt -q login_shell && echo login\nexit 3\n")
		require.Equal(t, "login\n", r.stdout)
		require.Equal(t, 3, r.code)
	})
	t.Run("X11 is refused, the session goes on", func(t *testing.T) {
		cmd := c.command("ssh", "-v", "-X", "-o", "ForwardX11Trusted=yes", "-l", "dev", "gateway", "echo on")
		cmd.Env = append(cmd.Env, "DISPLAY=:99")
		require.Equal(t, "on\n", c.run(t, cmd, "").stdout)
	})
	t.Run("copies", func(t *testing.T) { c.copies(t) })
	t.Run("git", func(t *testing.T) { c.git(t) })
	t.Run("sshfs", func(t *testing.T) { c.sshfs(t) })
	t.Run("forwards", func(t *testing.T) { c.forwards(t) })
	t.Run("agent", func(t *testing.T) { c.agent(t) })
	t.Run("many sessions on one connection", func(t *testing.T) { c.master(t) })
	t.Run("jump", func(t *testing.T) { c.jump(t) })
	t.Run("rekeying under load", func(t *testing.T) {
		const size = 32 << 20
		cmd := c.command("ssh", "-o", "RekeyLimit=1M", "-l", "dev", "gateway", "cat")
		data := bytes.Repeat([]byte("0123456789abcdef"), size/16)
		var out bytes.Buffer
		cmd.Stdin, cmd.Stdout = bytes.NewReader(data), &out
		require.NoError(t, cmd.Run())
		require.True(t, bytes.Equal(data, out.Bytes()), "%d of %d bytes came back", out.Len(), size)
	})
	t.Run("a large transfer both ways", func(t *testing.T) {
		const size = 128 << 20
		cmd := c.command("ssh", "-l", "dev", "gateway", "tee /dev/null | md5sum; head -c "+strconv.Itoa(size)+" /dev/zero | md5sum >&2")
		cmd.Stdin = io.LimitReader(zeros{}, size)
		var out, errs bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &errs
		require.NoError(t, cmd.Run())
		require.Equal(t, errs.String(), out.String())
	})
	t.Run("a box that is paused or stopped is woken", func(t *testing.T) {
		s.pause("dev")
		r := c.run(t, c.command("ssh", "-tt", "-l", "dev", "gateway", "echo awake"), "")
		require.Equal(t, "awake\r\n", r.stdout, r.stderr)
		require.Contains(t, r.stderr, "box dev is")
		s.stopBox("dev")
		r = c.ssh(t, "dev", "echo awake")
		require.Equal(t, result{"awake\n", "", 0}, r)
	})
	t.Run("VS Code's way in", func(t *testing.T) { c.vscode(t) })
	t.Run("a shell outlives its transport", func(t *testing.T) { c.keptShell(t) })
	t.Run("ssh-audit finds no fault", func(t *testing.T) {
		// Its exit code is also that of algorithms which are newer than it.
		out, _ := exec.CommandContext(s.ctx(), "ssh-audit", "-n", "-p", c.port, c.host).CombinedOutput()
		require.Contains(t, string(out), "(kex) curve25519-sha256")
		require.NotContains(t, string(out), "[fail]")
	})
}

// zeros is endless input.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

// box is a host of the configuration that stands for a box, for programs that want HOST:PATH.
func (c *sshClient) rsh() string { return "ssh -F " + c.config + " -l dev" }

func (c *sshClient) copies(t *testing.T) {
	local := filepath.Join(t.TempDir(), "tree")
	require.NoError(t, os.MkdirAll(filepath.Join(local, "sub"), 0o755))
	data := bytes.Repeat([]byte("carrel "), 300_000)
	require.NoError(t, os.WriteFile(filepath.Join(local, "sub", "a file"), data, 0o640))
	for name, args := range map[string][]string{"scp": {"scp", "-q", "-rp"}, "scp -O": {"scp", "-q", "-O", "-rp"}} {
		dir := strings.ReplaceAll(name, " ", "")
		up := append(append([]string{}, args[1:]...), local, "dev@gateway:"+dir)
		r := c.run(t, c.command(args[0], up...), "")
		require.Equal(t, result{}, r, name)
		require.Equal(t, "640\n", c.ssh(t, "dev", "stat -c %a '"+dir+"/sub/a file'").stdout, name)
		back := filepath.Join(t.TempDir(), "back")
		require.Equal(t, result{}, c.run(t, c.command(args[0], append(append([]string{}, args[1:]...), "dev@gateway:"+dir, back)...), ""), name)
		got, err := os.ReadFile(filepath.Join(back, "sub", "a file"))
		require.NoError(t, err)
		require.True(t, bytes.Equal(data, got), name)
	}
	batch := filepath.Join(t.TempDir(), "batch")
	require.NoError(t, os.WriteFile(batch, []byte("mkdir d\nput "+strconv.Quote(filepath.Join(local, "sub", "a file"))+" d/x\nrename d/x d/y\nchmod 600 d/y\nls -l d\nln -s y d/z\nrm d/y\nbye\n"), 0o600))
	r := c.run(t, c.command("sftp", "-q", "-b", batch, "dev@gateway"), "")
	require.Zero(t, r.code, r.stderr)
	require.Contains(t, r.stdout, "-rw-------")

	rsync := func(from, to string) {
		t.Helper()
		out, err := exec.CommandContext(c.s.ctx(), "rsync", "-a", "--delete", "-e", c.rsh(), from, to).CombinedOutput()
		require.NoError(t, err, "%s", out)
	}
	rsync(local+"/", "gateway:synced")
	back := filepath.Join(t.TempDir(), "synced")
	rsync("gateway:synced/", back)
	got, err := os.ReadFile(filepath.Join(back, "sub", "a file"))
	require.NoError(t, err)
	require.True(t, bytes.Equal(data, got))
}

func (c *sshClient) git(t *testing.T) {
	require.Zero(t, c.ssh(t, "dev", "git init -q --bare repo.git").code)
	work := filepath.Join(t.TempDir(), "work")
	git := func(args ...string) {
		t.Helper()
		cmd := exec.CommandContext(c.s.ctx(), "git", args...)
		cmd.Env = append(os.Environ(), "GIT_SSH_COMMAND=ssh -F "+c.config, "GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@b", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@b", "GIT_CONFIG_GLOBAL=/dev/null")
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "%v: %s", args, out)
	}
	git("clone", "-q", "dev@gateway:repo.git", work)
	require.NoError(t, os.WriteFile(filepath.Join(work, "f"), []byte("content"), 0o600))
	git("-C", work, "add", "f")
	git("-C", work, "commit", "-q", "-m", "first")
	git("-C", work, "push", "-q", "origin", "HEAD:main")
	again := filepath.Join(t.TempDir(), "again")
	git("clone", "-q", "-b", "main", "ssh://dev@gateway/home/carrel/repo.git", again)
	require.FileExists(t, filepath.Join(again, "f"))
}

func (c *sshClient) sshfs(t *testing.T) {
	mount := t.TempDir()
	out, err := exec.CommandContext(c.s.ctx(), "sshfs", "-F", c.config, "dev@gateway:", mount).CombinedOutput()
	require.NoError(t, err, "%s", out)
	defer func() {
		out, err := exec.Command("fusermount", "-u", mount).CombinedOutput()
		require.NoError(t, err, "%s", out)
	}()
	require.NoError(t, os.WriteFile(filepath.Join(mount, "mounted"), []byte("through sshfs"), 0o600))
	require.Equal(t, "through sshfs", c.ssh(t, "dev", "cat mounted").stdout)
}

// await polls until condition holds.
func (c *sshClient) await(t *testing.T, what string, condition func() bool) {
	t.Helper()
	deadline := time.Now().Add(settleTime)
	for !condition() {
		require.True(t, time.Now().Before(deadline), "%s\n%s", what, lazy(c.s.logs))
		<-time.After(20 * time.Millisecond)
	}
}

// background runs ssh until the test's end or stop.
func (c *sshClient) background(t *testing.T, args ...string) (stop func()) {
	t.Helper()
	cmd := c.command("ssh", append([]string{"-l", "dev"}, args...)...)
	var errs lockedBuffer
	cmd.Stderr = &errs
	require.NoError(t, cmd.Start())
	done := make(chan struct{})
	go func() { defer close(done); _ = cmd.Wait() }()
	stop = func() {
		_ = cmd.Process.Kill()
		<-done
	}
	t.Cleanup(func() {
		stop()
		if t.Failed() {
			t.Log(errs.String())
		}
	})
	return stop
}

// freePort is one of this machine that nobody listens on now, and that the kernel gives to none of those who take any.
func freePort(t *testing.T) string {
	t.Helper()
	for range 1000 {
		port := strconv.Itoa(20_000 + rand.IntN(12_000))
		if l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", port)); err == nil {
			require.NoError(t, l.Close())
			return port
		}
	}
	require.FailNow(t, "no port is free")
	return ""
}

// says connects and gives what comes in answer to a line.
func says(network, address, line string) string {
	conn, err := net.DialTimeout(network, address, settleTime)
	if err != nil {
		return ""
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(tryTime))
	_, _ = io.WriteString(conn, line+"\n")
	text, _ := bufio.NewReader(conn).ReadString('\n')
	return strings.TrimSpace(text)
}

// echoServer answers every line in a box, on TCP port 7777 and at the socket /tmp/echo.
const echoServer = `python3 -c '
import socket, threading
def serve(s):
    s.listen(64)
    while True:
        c, _ = s.accept()
        def talk(c=c):
            f = c.makefile("rwb")
            for line in f:
                f.write(b"box " + line)
                f.flush()
        threading.Thread(target=talk, daemon=True).start()
import os
try: os.unlink("/tmp/echo")
except FileNotFoundError: pass
t = socket.socket(); t.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1); t.bind(("127.0.0.1", 7777))
u = socket.socket(socket.AF_UNIX); u.bind("/tmp/echo")
threading.Thread(target=serve, args=(t,), daemon=True).start()
serve(u)
'`

func (c *sshClient) forwards(t *testing.T) {
	c.s.background("dev", "exec "+echoServer)
	local, socks, remote := freePort(t), freePort(t), "8123"
	dir := t.TempDir()
	outside, err := net.Listen("tcp", "127.0.0.1:0") // what -R leads to
	require.NoError(t, err)
	defer outside.Close()
	go func() {
		for {
			conn, err := outside.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				line, _ := bufio.NewReader(conn).ReadString('\n')
				_, _ = fmt.Fprintf(conn, "outside %s", line)
			}()
		}
	}()
	c.background(t, "-N", "-o", "ExitOnForwardFailure=yes", "-L", local+":localhost:7777", "-L", dir+"/sock:/tmp/echo", "-D", socks,
		"-R", remote+":"+outside.Addr().String(), "-R", "/tmp/remote:"+outside.Addr().String(), "gateway")
	c.await(t, "-L", func() bool { return says("tcp", "127.0.0.1:"+local, "hello") == "box hello" })
	c.await(t, "-L to a socket", func() bool { return says("unix", dir+"/sock", "hello") == "box hello" })
	require.Equal(t, "box through socks", socks5(t, "127.0.0.1:"+socks, "localhost", 7777, "through socks"))
	ask := func(script string) func() bool {
		return func() bool { return strings.Contains(c.ssh(t, "dev", script).stdout, "outside hi") }
	}
	c.await(t, "-R", ask(`python3 -c 'import socket; s=socket.create_connection(("localhost",`+remote+`)); s.sendall(b"hi\n"); print(s.recv(100).decode())'`))
	c.await(t, "-R from a socket", ask(`python3 -c 'import socket; s=socket.socket(socket.AF_UNIX); s.connect("/tmp/remote"); s.sendall(b"hi\n"); print(s.recv(100).decode())'`))
	// Nobody listens: that connection is refused, the others go on.
	nobody := freePort(t)
	c.background(t, "-N", "-L", nobody+":localhost:1234", "gateway")
	c.await(t, "a forward to a port that nobody listens on", func() bool {
		conn, err := net.Dial("tcp", "127.0.0.1:"+nobody)
		if err != nil {
			return false
		}
		defer conn.Close()
		_, err = conn.Read(make([]byte, 1))
		return err != nil
	})
	require.Equal(t, "box again", says("tcp", "127.0.0.1:"+local, "again"))
}

// socks5 speaks through a SOCKS proxy.
func socks5(t *testing.T, proxy, host string, port int, line string) string {
	t.Helper()
	conn, err := net.Dial("tcp", proxy)
	require.NoError(t, err)
	defer conn.Close()
	_, err = conn.Write([]byte{5, 1, 0})
	require.NoError(t, err)
	_, err = io.ReadFull(conn, make([]byte, 2))
	require.NoError(t, err)
	_, err = conn.Write(append(append([]byte{5, 1, 0, 3, byte(len(host))}, host...), byte(port>>8), byte(port)))
	require.NoError(t, err)
	_, err = io.ReadFull(conn, make([]byte, 10))
	require.NoError(t, err)
	_, err = io.WriteString(conn, line+"\n")
	require.NoError(t, err)
	text, err := bufio.NewReader(conn).ReadString('\n')
	require.NoError(t, err)
	return strings.TrimSpace(text)
}

func (c *sshClient) agent(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "agent")
	agent := exec.CommandContext(c.s.ctx(), "ssh-agent", "-D", "-a", socket)
	require.NoError(t, agent.Start())
	defer func() { _ = agent.Process.Kill(); _ = agent.Wait() }()
	c.await(t, "ssh-agent", func() bool { _, err := os.Stat(socket); return err == nil })
	add := exec.Command("ssh-add", "-q", filepath.Join(c.dir, "id"))
	add.Env = append(os.Environ(), "SSH_AUTH_SOCK="+socket)
	out, err := add.CombinedOutput()
	require.NoError(t, err, "%s", out)
	cmd := c.command("ssh", "-A", "-l", "dev", "gateway", "ssh-add -l; stat -c %a $SSH_AUTH_SOCK")
	cmd.Env = append(cmd.Env, "SSH_AUTH_SOCK="+socket)
	r := c.run(t, cmd, "")
	require.Contains(t, r.stdout, "ED25519", "%s", r.stderr)
	require.Empty(t, strings.TrimSpace(c.ssh(t, "dev", "echo $SSH_AUTH_SOCK").stdout), "without -A")
}

func (c *sshClient) master(t *testing.T) {
	control := filepath.Join(t.TempDir(), "cm")
	c.background(t, "-M", "-S", control, "-N", "gateway")
	c.await(t, "the master", func() bool { return c.ssh(t, "dev", "-S", control, "-O", "check").code == 0 })
	results := make(chan string)
	const sessions = 12
	for i := range sessions {
		go func() {
			cmd := c.command("ssh", "-S", control, "-l", "dev", "gateway", "head -c 3000000 /dev/zero | wc -c; echo "+strconv.Itoa(i))
			out, err := cmd.Output()
			if err != nil {
				out = []byte(err.Error())
			}
			results <- string(out)
		}()
	}
	for range sessions {
		require.Contains(t, <-results, "3000000\n")
	}
}

// jump: a box is the way to an SSH server that only it reaches. That one is the gateway itself, which the box is given by -R.
func (c *sshClient) jump(t *testing.T) {
	c.background(t, "-N", "-o", "ExitOnForwardFailure=yes", "-R", "8124:"+net.JoinHostPort(c.host, c.port), "gateway")
	c.await(t, "the box reaches the server", func() bool {
		return strings.Contains(c.ssh(t, "dev", `python3 -c 'import socket; print(socket.create_connection(("localhost",8124),5).recv(100))'`).stdout, "SSH-2.0")
	})
	r := c.run(t, c.command("ssh", "-J", "dev@gateway", "-o", "HostName=localhost", "-o", "Port=8124", "dev@inner", "echo twice"), "")
	require.Equal(t, "twice\n", r.stdout, r.stderr)
}

// vscode does what VS Code Remote-SSH does: one connection with a script on a shell's standard input that unpacks a server which came
// over sftp, starts it in the background and prints its port; then a SOCKS forward to that port with a long channel.
func (c *sshClient) vscode(t *testing.T) {
	archive := filepath.Join(t.TempDir(), "server.tar.gz")
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "server.sh"), []byte("#!/bin/sh\nexec python3 -u -c '\nimport socket\ns=socket.socket(); s.bind((\"127.0.0.1\",0)); s.listen(8)\nprint(\"listening on\", s.getsockname()[1])\nwhile True:\n  c,_=s.accept()\n  f=c.makefile(\"rwb\")\n  for l in f:\n    f.write(b\"server \"+l); f.flush()\n'\n"), 0o755))
	out, err := exec.Command("tar", "-C", dir, "-czf", archive, "server.sh").CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.Equal(t, result{}, c.run(t, c.command("scp", "-q", archive, "dev@gateway:server.tar.gz"), ""))
	r := c.run(t, c.command("ssh", "-T", "-l", "dev", "gateway", "bash"), `
mkdir -p ~/.server && tar -C ~/.server -xzf ~/server.tar.gz
~/.server/server.sh > ~/.server/log 2>&1 < /dev/null &
echo $! > ~/.server/pid
until grep -q listening ~/.server/log; do sleep 0.1; done
echo "port=$(sed 's/.* //' ~/.server/log)="
`)
	require.Zero(t, r.code, r.stderr)
	_, port, _ := strings.Cut(r.stdout, "port=")
	port, _, _ = strings.Cut(port, "=")
	local := freePort(t)
	c.background(t, "-T", "-L", local+":127.0.0.1:"+port, "gateway", "exec sleep 1000")
	c.await(t, "the server that was started before is still there", func() bool { return says("tcp", "127.0.0.1:"+local, "hello") == "server hello" })
}

// terminal is ssh in a terminal of its own, as a person sits before it.
type terminal struct {
	t     *testing.T
	c     *sshClient
	cmd   *exec.Cmd
	stdin io.WriteCloser
	out   lockedBuffer
	done  chan struct{}
}

func (c *sshClient) terminal(t *testing.T, args ...string) *terminal {
	t.Helper()
	p := &terminal{t: t, c: c, cmd: c.command("ssh", append([]string{"-tt", "-l", "dev"}, append(args, "gateway")...)...), done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = &p.out, &p.out
	var err error
	p.stdin, err = p.cmd.StdinPipe()
	require.NoError(t, err)
	require.NoError(t, p.cmd.Start())
	go func() { defer close(p.done); _ = p.cmd.Wait() }()
	t.Cleanup(p.kill)
	return p
}

func (p *terminal) typeLine(line string) {
	p.t.Helper()
	_, err := io.WriteString(p.stdin, line)
	require.NoError(p.t, err)
}

// sees waits until the screen has shown text.
func (p *terminal) sees(text string) {
	p.t.Helper()
	deadline := time.Now().Add(settleTime)
	for !strings.Contains(p.out.String(), text) {
		require.True(p.t, time.Now().Before(deadline), "never saw %q:\n%s\n%s", text, p.out.String(), lazy(p.c.s.logs))
		<-time.After(10 * time.Millisecond)
	}
}

func (p *terminal) kill() {
	_ = p.cmd.Process.Kill()
	<-p.done
}

func (c *sshClient) keptShell(t *testing.T) {
	shells := func() string {
		return strings.TrimSpace(c.s.sh("dev", "ps -eo args | grep -c '^-bash' || true"))
	}
	c.await(t, "no shell is left", func() bool { return shells() == "0" })
	first := c.terminal(t)
	first.typeLine("marker=before; cd /tmp; echo m-$((40+2))\n")
	first.sees("m-42")
	first.kill() // the transport is lost: nobody says good-bye
	second := c.terminal(t)
	second.sees("Rejoin it? [Y/n]")
	second.sees("A shell of yours from ")
	second.typeLine("y")
	second.sees("m-42") // replayed
	second.typeLine("echo $marker-$PWD\n")
	second.sees("before-/tmp")
	second.typeLine("exit\n")
	<-second.done
	c.await(t, "the shell has ended", func() bool { return shells() == "0" })

	third := c.terminal(t)
	third.typeLine("echo here-$((1+1))\n")
	third.sees("here-2")
	require.NotContains(t, third.out.String(), "Rejoin")
	third.typeLine("~.") // at the beginning of a line
	<-third.done
	c.await(t, "a shell whose user said good-bye is hung up", func() bool { return shells() == "0" })
}
