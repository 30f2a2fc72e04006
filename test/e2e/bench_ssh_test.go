//go:build bench

package e2e

import (
	"bufio"
	"crypto/ed25519"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ssh"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/client"
)

const (
	sshPeerPort  = int32(9000) // of sshpeer in the box
	echoBlocks   = 30          // on each side, in turns
	echoBlock    = 20          // keystrokes
	echoPause    = 5 * time.Millisecond
	bulkBytes    = 256 << 20
	bulkRounds   = 3
	idleSSH      = 500
	idleSSHUsers = 3 // the gateway lets a user have 200
)

// sshTarget is a server that the same client speaks to, with the same settings and key.
type sshTarget struct {
	*sshClient
	name, aim string
	login     string
	program   string // sshpeer there
}

// sshBench is one run of the benchmark of SSH.
type sshBench struct {
	*sshClient
	t       *testing.T
	address string // of sshpeer in the box, from the host
	program string // sshpeer on the host
	rows    []string
}

// TestBenchSSH measures SSH: what a key and bulk data cost above bare TCP into the same box, how long a command takes, and what an idle connection
// weighs. CARREL_BENCH names parts, separated by commas, to measure those alone.
func TestBenchSSH(t *testing.T) {
	s := newStack(t, options{})
	box := s.create("dev", resources)
	b := &sshBench{t: t, sshClient: s.newSSHClient(t), program: s.putProgram("dev", "sshpeer")}
	_, err := s.client.Exec(s.ctx(), client.ExecOptions{Box: "dev", Args: []string{"./sshpeer", "serve", fmt.Sprintf(":%d", sshPeerPort)}, Detach: true})
	require.NoError(t, err)
	s.awaitListener("dev", sshPeerPort)
	inside, _, err := net.SplitHostPort(s.agentAddress(box))
	require.NoError(t, err)
	s.letThrough(inside)
	b.address = net.JoinHostPort(inside, fmt.Sprint(sshPeerPort))

	only := strings.FieldsFunc(os.Getenv("CARREL_BENCH"), func(r rune) bool { return r == ',' })
	for _, part := range []struct {
		name string
		run  func()
	}{{"idle", b.idle}, {"echo", b.echo}, {"connect", b.connect}, {"bulk", b.bulk}} {
		if len(only) == 0 || slices.Contains(only, part.name) {
			part.run()
		}
	}
	t.Logf("\n| what | Carrel | other | ratio | aim |\n| --- | --- | --- | --- | --- |\n%s\n", strings.Join(b.rows, "\n"))
	s.remove("dev")
}

func (b *sshBench) report(format string, args ...any) {
	b.rows = append(b.rows, fmt.Sprintf(format, args...))
	b.t.Log(b.rows[len(b.rows)-1])
}

// idle opens connections with a session each in which nothing was started.
func (b *sshBench) idle() {
	users := []*sshClient{b.sshClient}
	for i := 1; i < idleSSHUsers; i++ {
		users = append(users, b.s.newUser(fmt.Sprintf("user%d", i)).newSSHClient(b.t))
	}
	gateway := b.s.rolePID("gateway")
	before := resident(b.t, gateway)
	var open []*ssh.Client
	for i := range idleSSH {
		conn, err := users[i%len(users)].dial(b.t)
		require.NoError(b.t, err, "%s", lazy(b.s.logs))
		_, requests, err := conn.OpenChannel("session", nil)
		require.NoError(b.t, err)
		go ssh.DiscardRequests(requests)
		open = append(open, conn)
	}
	each := (resident(b.t, gateway) - before) / idleSSH * 1024
	for _, conn := range open {
		_ = conn.Close()
	}
	b.report("| memory of the gateway per idle connection with a session, of %d, KiB | %.0f | | | reported |", idleSSH, each)
}

// newUser makes a member of the organisation, and gives the stack as they use it.
func (s *stack) newUser(name string) *stack {
	s.t.Helper()
	_, err := s.client.Users.CreateUser(s.ctx(), connect.NewRequest(&carrelv1.CreateUserRequest{Name: name}))
	require.NoError(s.t, err)
	_, err = s.client.Orgs.SetMember(s.ctx(), connect.NewRequest(&carrelv1.SetMemberRequest{Org: "default", User: name, Role: "member"}))
	require.NoError(s.t, err)
	token, err := s.client.Tokens.CreateToken(s.ctx(), connect.NewRequest(&carrelv1.CreateTokenRequest{User: name}))
	require.NoError(s.t, err)
	theirs := *s
	theirs.token = token.Msg.GetSecret()
	theirs.client, err = client.New(client.Config{Context: client.Context{URL: s.url, Token: theirs.token, Org: "default"}})
	require.NoError(s.t, err)
	s.t.Cleanup(theirs.client.Close)
	return &theirs
}

// echo types keys at a program on a terminal in the box, as fast as they come back and at a person's leisure.
func (b *sshBench) echo() {
	bare, err := net.Dial("tcp", b.address)
	require.NoError(b.t, err)
	defer bare.Close()
	_, err = io.WriteString(bare, "echo\n")
	require.NoError(b.t, err)

	conn, err := b.dial(b.t)
	require.NoError(b.t, err)
	defer conn.Close()
	session, err := conn.NewSession()
	require.NoError(b.t, err)
	in, err := session.StdinPipe()
	require.NoError(b.t, err)
	out, err := session.StdoutPipe()
	require.NoError(b.t, err)
	require.NoError(b.t, session.RequestPty("xterm", 24, 80, ssh.TerminalModes{}))
	require.NoError(b.t, session.Start("./sshpeer echo"))

	ours, theirs := keyboard{b.t, in, bufio.NewReader(out)}, keyboard{b.t, bare, bufio.NewReader(bare)}
	ours.ready()
	theirs.ready()
	for _, pause := range []time.Duration{0, echoPause} {
		what := "one after the other"
		if pause > 0 {
			what = fmt.Sprintf("%s after the last", pause)
		}
		ours.block(pause) // what is made once
		theirs.block(pause)
		var carrel, tcp series
		for i := range echoBlocks {
			if i%2 == 0 {
				carrel = append(carrel, ours.block(pause)...)
			}
			tcp = append(tcp, theirs.block(pause)...)
			if i%2 != 0 {
				carrel = append(carrel, ours.block(pause)...)
			}
		}
		for _, row := range []struct {
			q   float64
			aim string
		}{{0.5, "≤ 2.00"}, {0.95, "reported"}, {0.99, "≤ 2.50"}} {
			a, r := carrel.quantile(row.q), tcp.quantile(row.q)
			b.report("| echo of a key, %s, p%.0f, against bare TCP, ms | %.2f | %.2f | **%.2f** | %s |", what, row.q*100, a, r, a/r, row.aim)
		}
	}
}

// keyboard is where keys are typed and come back.
type keyboard struct {
	t   *testing.T
	in  io.Writer
	out *bufio.Reader
}

// ready waits until the program has the terminal.
func (k keyboard) ready() {
	line, err := k.out.ReadString('\n')
	require.NoError(k.t, err)
	require.Equal(k.t, "ready", strings.TrimSpace(line))
}

// block types some keys and gives how long each took to come back, in milliseconds.
func (k keyboard) block(pause time.Duration) series {
	var times series
	for i := range echoBlock {
		if pause > 0 {
			<-time.After(pause) // a part of the load
		}
		key := 'a' + byte(i)
		began := time.Now()
		_, err := k.in.Write([]byte{key})
		require.NoError(k.t, err)
		got, err := k.out.ReadByte()
		times = append(times, float64(time.Since(began).Microseconds())/1000)
		require.NoError(k.t, err)
		require.Equal(k.t, key, got)
	}
	return times
}

// connect logs in and runs true, against OpenSSH's server on this machine with the same client, settings, key and key exchange: a server of
// Debian 12 would else choose a slower one.
func (b *sshBench) connect() {
	system := b.startSSHD()
	c := &comparison{name: "ssh: connect, run true, against OpenSSH on the host", aim: 1}
	one := func(target sshTarget) func(int) time.Duration {
		return func(int) time.Duration {
			began := time.Now()
			r := target.run(b.t, target.command("ssh", "-o", "KexAlgorithms=curve25519-sha256", "-l", target.login, "gateway", "true"), "")
			took := time.Since(began)
			require.Equal(b.t, result{}, r)
			return took
		}
	}
	ours, theirs := one(b.own()), one(system)
	ours(0) // what is made once
	theirs(0)
	interleave(c, ours, theirs)
	b.rows = append(b.rows, c.row())
	b.t.Log(c.row())
}

// bulk sends zeros down and up.
func (b *sshBench) bulk() {
	servers := []sshTarget{b.own(), b.startGoServer(), b.startSSHD()}
	for _, up := range []bool{false, true} {
		for _, server := range servers { // what is made once, and whether everything arrives
			b.transfer(server, up, bulkBytes/16, true)
		}
		b.compare(servers, up)
	}
}

// compare measures the servers in turns.
func (b *sshBench) compare(servers []sshTarget, up bool) {
	b.t.Helper()
	rates := make([]series, len(servers))
	for round := range bulkRounds {
		for turn := range servers {
			i := (round + turn) % len(servers)
			rates[i] = append(rates[i], b.transfer(servers[i], up, bulkBytes, false))
		}
	}
	name := map[bool]string{false: "down", true: "up"}[up]
	for i, other := range servers[1:] {
		var ratios series
		for round := range bulkRounds {
			ratios = append(ratios, rates[0][round]/rates[i+1][round])
		}
		b.report("| 256 MB %s, against %s, MB/s | %.0f | %.0f | **%.2f** (%.2f to %.2f) | %s |", name, other.name,
			rates[0].quantile(0.5), rates[i+1].quantile(0.5), ratios.quantile(0.5), slices.Min(ratios), slices.Max(ratios), other.aim)
	}
}

// transfer sends bytes one way and gives the rate in MB/s.
func (b *sshBench) transfer(to sshTarget, up bool, size int64, check bool) float64 {
	b.t.Helper()
	direction := map[bool]string{false: "give", true: "take"}[up]
	cmd := to.command("ssh", "-l", to.login, "gateway", to.program, direction, fmt.Sprint(size))
	var out, errs lockedBuffer
	if check {
		cmd.Stdout = &out
	}
	cmd.Stderr = &errs
	if up {
		zeros := filepath.Join(b.t.TempDir(), "zeros")
		require.NoError(b.t, os.WriteFile(zeros, nil, 0o600))
		require.NoError(b.t, os.Truncate(zeros, size))
		input, err := os.Open(zeros)
		require.NoError(b.t, err)
		defer input.Close()
		cmd.Stdin = input
	}
	began := time.Now()
	require.NoError(b.t, cmd.Run(), "%s", lazy(errs.String))
	took := time.Since(began)
	switch {
	case check && up:
		require.Equal(b.t, "done\n", out.String())
	case check:
		require.Len(b.t, out.String(), int(size))
	}
	return float64(size) / 1e6 / took.Seconds()
}

// own is Carrel.
func (b *sshBench) own() sshTarget {
	return sshTarget{sshClient: b.sshClient, login: "dev", program: "./sshpeer"}
}

// against is the same client with the same settings and key, for another server.
func (b *sshBench) against(address string, host ssh.PublicKey) *sshClient {
	b.t.Helper()
	_, port, err := net.SplitHostPort(address)
	require.NoError(b.t, err)
	dir := b.t.TempDir()
	settings, err := os.ReadFile(b.config)
	require.NoError(b.t, err)
	known := filepath.Join(dir, "known_hosts")
	require.NoError(b.t, os.WriteFile(known, append([]byte("carrel "), ssh.MarshalAuthorizedKey(host)...), 0o600))
	text := strings.NewReplacer("Port "+b.port, "Port "+port, filepath.Join(b.dir, "known_hosts"), known, "HostName "+b.host, "HostName 127.0.0.1").Replace(string(settings))
	other := &sshClient{s: b.s, dir: b.dir, host: "127.0.0.1", port: port, config: filepath.Join(dir, "config")}
	require.NoError(b.t, os.WriteFile(other.config, []byte(text), 0o600))
	return other
}

// goProgram stands for sshpeer in commands for startGoServer.
const goProgram = "sshpeer"

// startGoServer serves SSH in this process: what is asked for is had from sshpeer in the box over bare TCP.
func (b *sshBench) startGoServer() sshTarget {
	b.t.Helper()
	_, key, err := ed25519.GenerateKey(nil)
	require.NoError(b.t, err)
	signer, err := ssh.NewSignerFromSigner(key)
	require.NoError(b.t, err)
	config := &ssh.ServerConfig{PublicKeyCallback: func(ssh.ConnMetadata, ssh.PublicKey) (*ssh.Permissions, error) { return nil, nil }}
	config.AddHostKey(signer)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(b.t, err)
	b.t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			raw, err := listener.Accept()
			if err != nil {
				return
			}
			go b.serveGo(raw, config)
		}
	}()
	return sshTarget{
		sshClient: b.against(listener.Addr().String(), signer.PublicKey()), name: "Go's SSH server on the host", aim: "≥ 0.70", login: "dev", program: goProgram,
	}
}

func (b *sshBench) serveGo(raw net.Conn, config *ssh.ServerConfig) {
	conn, channels, requests, err := ssh.NewServerConn(raw, config)
	if err != nil {
		return
	}
	defer conn.Close()
	go ssh.DiscardRequests(requests)
	for channel := range channels {
		ch, requests, err := channel.Accept()
		if err != nil {
			return
		}
		go func() {
			for request := range requests {
				_ = request.Reply(request.Type == "exec", nil)
				var command struct{ Text string }
				if request.Type == "exec" && ssh.Unmarshal(request.Payload, &command) == nil {
					go b.carryGo(ch, strings.TrimPrefix(command.Text, goProgram+" "))
				}
			}
		}()
	}
}

// carryGo connects a channel with sshpeer in the box.
func (b *sshBench) carryGo(ch ssh.Channel, wanted string) {
	defer ch.Close()
	status := struct{ Status uint32 }{1}
	inside, err := net.Dial("tcp", b.address)
	if err == nil {
		defer inside.Close()
		_, err = io.WriteString(inside, wanted+"\n")
	}
	if err == nil {
		go func() { _, _ = io.Copy(inside, ch) }()
		if _, err = io.Copy(ch, inside); err == nil {
			status.Status = 0
		}
	}
	_, _ = ch.SendRequest("exit-status", false, ssh.Marshal(status))
}

// startSSHD runs Debian's OpenSSH server, without what is not SSH: PAM, DNS, the message of the day, and what a home's .bashrc does, which
// Debian's bash reads when sshd starts it.
func (b *sshBench) startSSHD() sshTarget {
	b.t.Helper()
	dir := b.t.TempDir()
	key := filepath.Join(dir, "host")
	out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key).CombinedOutput()
	require.NoError(b.t, err, "%s", out)
	public, err := os.ReadFile(key + ".pub")
	require.NoError(b.t, err)
	host, _, _, _, err := ssh.ParseAuthorizedKey(public)
	require.NoError(b.t, err)
	require.NoError(b.t, os.MkdirAll("/run/sshd", 0o755)) // it wants an empty one
	port := freePort(b.t)
	config := filepath.Join(dir, "sshd_config")
	require.NoError(b.t, os.WriteFile(config, fmt.Appendf(nil, `ListenAddress 127.0.0.1
Port %s
HostKey %s
PidFile none
AuthorizedKeysFile %s
StrictModes no
PermitRootLogin yes
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
UseDNS no
PrintMotd no
SetEnv HOME=%s
LogLevel ERROR
`, port, key, filepath.Join(b.dir, "id.pub"), b.t.TempDir()), 0o600))
	var errs lockedBuffer
	sshd := exec.Command("/usr/sbin/sshd", "-D", "-e", "-f", config)
	sshd.Stderr = &errs
	require.NoError(b.t, sshd.Start())
	b.t.Cleanup(func() {
		_ = sshd.Process.Signal(syscall.SIGTERM)
		_ = sshd.Wait()
	})
	address := net.JoinHostPort("127.0.0.1", port)
	require.Eventually(b.t, func() bool {
		conn, err := net.Dial("tcp", address)
		if err == nil {
			conn.Close()
		}
		return err == nil
	}, 10*time.Second, 10*time.Millisecond, "%s", lazy(errs.String))
	return sshTarget{sshClient: b.against(address, host), name: "OpenSSH on the host and nothing of the box", aim: "reported", login: "root", program: b.program}
}
