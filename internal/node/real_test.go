package node_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"

	"carrel.dev/carrel/api/carrel/agent/v1/agentv1connect"
	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/auth"
	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/node"
	"carrel.dev/carrel/internal/node/disk"
	"carrel.dev/carrel/internal/node/netpool"
	"carrel.dev/carrel/internal/node/proxy"
	"carrel.dev/carrel/internal/runtime"
	"carrel.dev/carrel/internal/runtime/gvisor"
	"carrel.dev/carrel/internal/runtime/runtimetest"
	"carrel.dev/carrel/internal/tunnel"
)

// tool is a binary of the repository: from the environment, or bin/NAME, or built.
func tool(t *testing.T, variable, name, source string) string {
	t.Helper()
	if path := os.Getenv(variable); path != "" {
		return path
	}
	path, err := filepath.Abs(filepath.Join("../../bin", name))
	require.NoError(t, err)
	if _, err := os.Stat(path); err == nil {
		return path
	}
	require.NotEmpty(t, source, "run `make bin/%s`, or set %s", name, variable)
	return goBuild(t, source)
}

func goBuild(t *testing.T, source string) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "program")
	command := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", out, source)
	command.Env = append(os.Environ(), "CGO_ENABLED=0")
	text, err := command.CombinedOutput()
	require.NoError(t, err, string(text))
	return out
}

// realNode is a daemon, its proxy and gVisor in this process, with the test's small control.
type realNode struct {
	*world
	runDir string
	cgroup string
	runsc  string // of the next start; empty: the one of the repository
	rt     *gvisor.Runtime
	pool   *disk.Pool
	proxy  *proxy.Proxy
	signer *auth.TicketSigner
	stop   func()
}

func newRealNode(t *testing.T) *realNode {
	t.Helper()
	runDir, err := os.MkdirTemp("/run", "cnr")
	require.NoError(t, err)
	runtimetest.LeakCheck(t, filepath.Base(runDir))
	n := &realNode{world: &world{t: t, dir: shortTempDir(t), control: newControl(t)}, runDir: runDir, cgroup: "/" + filepath.Base(runDir)}
	public, private, err := ed25519.GenerateKey(nil)
	require.NoError(t, err)
	n.control.keys, n.signer = [][]byte{public}, auth.NewTicketSigner(private)
	t.Cleanup(func() {
		n.stop()
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		left, err := n.rt.List(ctx)
		require.NoError(t, err)
		for _, s := range left {
			require.NoError(t, n.rt.Destroy(ctx, s.Run))
		}
		require.NoError(t, n.rt.Purge(ctx))
		nets, err := netpool.Open(ctx, netpool.Config{Instance: n.dir, RunDir: n.runDir, Range: "100.126.0.0/20", Logger: slog.New(slog.DiscardHandler)}, nil)
		require.NoError(t, err)
		require.NoError(t, nets.Remove(ctx))
		require.NoError(t, n.pool.Unmount())
		require.NoError(t, os.RemoveAll(n.runDir))
	})
	n.start()
	n.makeImage()
	return n
}

func (n *realNode) start() {
	t := n.t
	t.Helper()
	level := slog.LevelWarn
	if os.Getenv("CARREL_TEST_VERBOSE") != "" {
		level = slog.LevelDebug
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
	data := filepath.Join(n.dir, "data")
	pool, err := disk.Open(t.Context(), disk.Config{Dir: data, RunDir: n.runDir, SizeBytes: 3 * carrel.GiB, Logger: log})
	require.NoError(t, err)
	if n.runsc == "" {
		n.runsc = tool(t, "CARREL_RUNSC", "runsc", "")
	}
	programs := filepath.Join(data, "bin")
	runsc, _, err := disk.InstallBinary(programs, "runsc", n.runsc)
	require.NoError(t, err)
	rt, err := gvisor.New(gvisor.Config{
		Runsc: runsc, Programs: programs, Root: n.runDir, OverlayDir: pool.OverlayDir(), CgroupParent: n.cgroup, Logger: log,
	})
	require.NoError(t, err)
	socket := filepath.Join(n.dir, "proxy.sock")
	p, err := proxy.New(proxy.Config{Socket: socket, Dir: filepath.Join(n.dir, "proxy"), Listen: "127.0.0.1:0", Logger: log})
	require.NoError(t, err)
	token, ca := filepath.Join(n.dir, "token"), filepath.Join(n.dir, "ca.pem")
	require.NoError(t, os.WriteFile(token, []byte("secret\n"), 0o600))
	require.NoError(t, os.WriteFile(ca, n.control.ca.PEM(), 0o600))
	d, err := node.New(node.Config{
		DataDir: data, RunDir: n.runDir, Pool: pool, Runtime: rt, NetRange: "100.126.0.0/20", InstanceID: n.dir,
		ControlURL: n.control.addr, CAFile: ca, JoinTokenFile: token, Name: "n1", ProxyAddress: p.Addr().String(), ProxySocket: socket,
		AgentPath: tool(t, "CARREL_AGENT", "carrel-agent", "../../cmd/carrel-agent"), Logger: log,
	})
	require.NoError(t, err)
	n.rt, n.pool, n.proxy = rt, pool, p
	ctx, cancel := context.WithCancel(context.Background())
	var group sync.WaitGroup
	group.Go(func() { require.NoError(t, p.Run(ctx)) })
	group.Go(func() { require.NoError(t, d.Run(ctx)) })
	n.stop = sync.OnceFunc(func() { cancel(); group.Wait() })
	n.eventually("the node is ready", func() bool { return d.Ready(ctx) == nil })
}

// makeImage makes an image with the programs of testdata.
func (n *realNode) makeImage() {
	root := filepath.Join(n.dir, "image")
	for _, d := range []string{"bin", "etc", "proc", "sys", "dev", "tmp", "home/carrel", "run", "var"} {
		require.NoError(n.t, os.MkdirAll(filepath.Join(root, d), 0o755))
	}
	for _, name := range []string{"hold", "listen"} {
		data, err := os.ReadFile(goBuild(n.t, "./testdata/"+name))
		require.NoError(n.t, err)
		require.NoError(n.t, os.WriteFile(filepath.Join(root, "bin", name), data, 0o755))
	}
	path := filepath.Join(n.pool.ImageDir(), strings.Replace(imageDigest(baseImage), ":", "-", 1)+".erofs")
	out, err := exec.Command("mkfs.erofs", "-T0", "-Enoinline_data", path, root).CombinedOutput()
	require.NoError(n.t, err, string(out))
}

// agent opens the process service of a box, through the proxy as a gateway does.
func (n *realNode) agent(b *box) agentv1connect.ProcessServiceClient {
	n.t.Helper()
	return agentv1connect.NewProcessServiceClient(n.client(b), "http://agent")
}

// client speaks to the agent of a box.
func (n *realNode) client(b *box) *http.Client {
	n.t.Helper()
	cert, err := n.control.ca.Issue(auth.Peer{Role: auth.PeerGateway, ID: string(carrel.NewGatewayID())}, auth.Names{}, time.Now())
	require.NoError(n.t, err)
	ticket, err := n.signer.Sign(auth.Ticket{Box: b.id, Org: "o", User: "u", Epoch: b.epoch, Scopes: []string{auth.ScopeExec}, Expires: time.Now().Add(time.Minute)})
	require.NoError(n.t, err)
	h2c := new(http.Protocols)
	h2c.SetUnencryptedHTTP2(true)
	config := &tls.Config{
		Certificates: []tls.Certificate{cert}, InsecureSkipVerify: true, NextProtos: []string{tunnel.Protocol},
		VerifyConnection: auth.VerifyPeer(n.control.ca.Pool(), "c1", string(n.control.node), auth.PeerProxy),
	}
	inner := &http.Transport{Protocols: h2c, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		raw, err := net.Dial("tcp", n.proxy.Addr().String())
		if err != nil {
			return nil, err
		}
		return tunnel.Open(ctx, raw, config, string(b.id), http.Header{proxy.HeaderTarget: {"agent"}, proxy.HeaderTicket: {ticket}})
	}}
	n.t.Cleanup(inner.CloseIdleConnections)
	return &http.Client{Transport: inner}
}

// count reads what the program hold has written: its pid, how often it counted, and the sum of its memory.
func (n *realNode) count(b *box) (pid, count int, sum string) {
	n.t.Helper()
	c, err := n.lookAtCount(b)
	require.NoError(n.t, err)
	return c.pid, c.count, c.sum
}

// counted is what the program hold wrote.
type counted struct {
	pid, count int
	sum        string
}

// lookAtCount fails if the program has not written yet.
func (n *realNode) lookAtCount(b *box) (c counted, err error) {
	n.t.Helper()
	mnt := filepath.Join(n.dir, "mnt")
	require.NoError(n.t, os.MkdirAll(mnt, 0o700))
	copied := filepath.Join(n.pool.Root(), "look.img")
	require.NoError(n.t, disk.Clone(n.pool.HomePath(b.run), copied))
	defer os.Remove(copied)
	out, err := exec.Command("mount", "-o", "loop,ro,noload", copied, mnt).CombinedOutput()
	require.NoError(n.t, err, string(out))
	defer func() { require.NoError(n.t, syscall.Unmount(mnt, 0)) }()
	data, err := os.ReadFile(filepath.Join(mnt, "home", "count"))
	if err != nil {
		return c, err
	}
	_, err = fmt.Fscanf(bytes.NewReader(data), "%d %d %s", &c.pid, &c.count, &c.sum)
	return c, err
}

func TestRealBox(t *testing.T) {
	if testing.Short() {
		return // gVisor needs root
	}
	n := newRealNode(t)
	b := &box{w: n.world, id: carrel.NewBoxID(), memory_: 1024 * carrel.MiB}
	timed := func(what string, f func()) {
		began := time.Now()
		f()
		t.Logf("%-24s %s", what, time.Since(began).Round(time.Millisecond))
	}
	timed("create", b.start)
	agent := n.agent(b)
	_, err := agent.Start(t.Context(), connect.NewRequest(&carrelv1.StartProcessRequest{Args: []string{"/bin/hold", "256"}}))
	require.NoError(t, err)
	list, err := agent.List(t.Context(), connect.NewRequest(&carrelv1.ListProcessesRequest{}))
	require.NoError(t, err)
	require.Len(t, list.Msg.GetProcesses(), 1)
	n.eventually("the program counts", func() bool {
		out, err := n.once(b)
		return err == nil && out != ""
	})
	var pid, count int
	var sum string
	for i := range 3 {
		timed("pause", b.pause)
		n.eventually("its home is given back", func() bool {
			_, err := os.Lstat(n.pool.HomePath(b.run))
			return errors.Is(err, os.ErrNotExist)
		})
		if i == 1 { // nothing of the daemon but its files is needed
			n.stop()
			n.start()
		}
		timed("resume", b.start)
		require.Equal(t, "memory", b.last().GetStartedFrom())
		var nextPid, nextCount int
		var nextSum string
		n.eventually("it counts on", func() bool {
			require.NoError(t, n.rt.Freeze(t.Context(), b.run)) // so that the home can be looked at
			nextPid, nextCount, nextSum = n.count(b)
			require.NoError(t, n.rt.Thaw(t.Context(), b.run))
			return nextCount > count
		})
		if i > 0 {
			require.Equal(t, pid, nextPid, "it is another process")
			require.Equal(t, sum, nextSum, "its memory is another")
		}
		pid, count, sum = nextPid, nextCount, nextSum
	}
	timed("stop", b.stop)
	timed("start", b.start)
	require.Equal(t, "disk", b.last().GetStartedFrom())
	require.NoError(t, n.rt.Freeze(t.Context(), b.run))
	_, _, same := n.count(b)
	require.NoError(t, n.rt.Thaw(t.Context(), b.run))
	require.Equal(t, sum, same)

	// Its sandbox is killed while nobody looks, and again while the daemon looks.
	n.stop()
	n.kill(b)
	n.start()
	n.eventually("the crash is reported", func() bool { return b.last().GetPhase() == "failed" })
	require.NotEmpty(t, b.last().GetSnapshotId())
	timed("start after a crash", b.start)
	n.kill(b)
	n.eventually("the crash is reported", func() bool { return b.last().GetPhase() == "failed" })
	require.Equal(t, "sandbox_died", b.last().GetReason(), b.last().GetMessage())
	b.start()
	timed("delete", b.delete)
	list2, err := n.rt.List(t.Context())
	require.NoError(t, err)
	require.Equal(t, []runtime.Sandbox{}, append([]runtime.Sandbox{}, list2...))
}

// once runs the program for one count in the box.
func (n *realNode) once(b *box) (string, error) {
	stream, err := n.agent(b).Run(n.t.Context(), connect.NewRequest(&carrelv1.StartProcessRequest{Args: []string{"/bin/hold", "1", "once"}, Cwd: "/tmp"}))
	if err != nil {
		return "", err
	}
	defer stream.Close()
	var out strings.Builder
	for stream.Receive() {
		text, err := json.Marshal(stream.Msg())
		if err != nil {
			return "", err
		}
		out.Write(text)
	}
	return out.String(), stream.Err()
}

// kill ends the sandbox's processes as the kernel would.
func (n *realNode) kill(b *box) {
	n.t.Helper()
	killed := false
	dirs, err := filepath.Glob("/proc/[0-9]*")
	require.NoError(n.t, err)
	for _, d := range dirs {
		data, err := os.ReadFile(filepath.Join(d, "cmdline"))
		if err != nil || !bytes.Contains(data, []byte(b.run)) || !bytes.Contains(data, []byte("boot")) {
			continue
		}
		var pid int
		_, err = fmt.Sscan(filepath.Base(d), &pid)
		require.NoError(n.t, err)
		require.NoError(n.t, syscall.Kill(pid, syscall.SIGKILL))
		killed = true
	}
	require.True(n.t, killed, "no sandbox process was found")
}
