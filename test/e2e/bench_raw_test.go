//go:build bench

package e2e

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"
	"golang.org/x/net/http2"

	"carrel.dev/carrel/api/carrel/agent/v1/agentv1connect"
	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/agent/identity"
	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/node/disk"
	"carrel.dev/carrel/internal/node/netpool"
	"carrel.dev/carrel/internal/runtime"
	"carrel.dev/carrel/internal/runtime/gvisor"
)

// raw is the baseline: runsc itself on the identical bundle, with networks, homes and cgroups that were
// prepared before the clock starts.
type raw struct {
	t     testing.TB
	s     *stack
	rt    *gvisor.Runtime
	nets  *netpool.Pool
	root  string
	image string
	agent string
	home  string // golden
	dir   string // in the pool, for homes and captures
	shown string // the command
}

func newRaw(t testing.TB, s *stack) *raw {
	root := s.runDir + "-raw"
	r := &raw{t: t, s: s, root: root, dir: filepath.Join(s.data, "node", "pool", "raw")}
	require.NoError(t, os.MkdirAll(r.dir, 0o700))
	runsc, err := filepath.Glob(filepath.Join(s.data, "node", "bin", "runsc-*"))
	require.NoError(t, err)
	require.NotEmpty(t, runsc)
	agents, err := filepath.Glob(filepath.Join(s.data, "node", "bin", "agent-*"))
	require.NoError(t, err)
	require.NotEmpty(t, agents)
	r.agent = agents[0]
	overlay := filepath.Join(s.data, "node", "pool", "overlay")
	r.rt, err = gvisor.New(gvisor.Config{Runsc: runsc[0], Root: root, OverlayDir: overlay, CgroupParent: "/carrel-raw"})
	require.NoError(t, err)
	r.nets, err = netpool.Open(context.Background(), netpool.Config{Instance: root, RunDir: root, Range: strings.Replace(s.netRange, "100.", "101.", 1), Ready: 1, Logger: slog.New(slog.DiscardHandler)}, nil)
	require.NoError(t, err)
	stopNets, netsDone := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.nets.Run(stopNets) }()
	t.Cleanup(func() {
		netsDone()
		<-done
		require.NoError(t, r.nets.Remove(context.Background()))
		boxes, err := r.rt.List(context.Background())
		require.NoError(t, err)
		for _, box := range boxes {
			require.NoError(t, r.rt.Destroy(context.Background(), box.Run))
		}
		_ = os.RemoveAll(r.dir)
		_ = os.RemoveAll(root)
	})
	return r
}

// rawBox is one sandbox of the baseline.
type rawBox struct {
	r       *raw
	id      string
	spec    runtime.Spec
	key     string
	network netpool.Network
	p       *gvisor.Prepared
	client  agentv1connect.ProcessServiceClient
}

// checkIdentical reads the bundle of one of Carrel's boxes, takes image and home from it, and requires that the
// baseline's bundle says the same but for names.
func (r *raw) checkIdentical(name string) {
	answer, err := r.s.client.Boxes.GetBox(r.s.ctx(), connect.NewRequest(&carrelv1.GetBoxRequest{Id: name}))
	require.NoError(r.t, err)
	box := answer.Msg
	homes, err := filepath.Glob(filepath.Join(r.s.data, "node", "pool", "golden", "*"))
	require.NoError(r.t, err)
	for _, home := range homes {
		if info, err := os.Stat(home); err == nil && info.Size() == benchResources.GetHomeBytes() {
			r.home = home
		}
	}
	require.NotEmpty(r.t, r.home)
	r.image = filepath.Join(r.s.runDir, "images", strings.TrimPrefix(box.GetImageDigest(), "sha256:"))
	if _, err := os.Stat(r.image); err != nil {
		found, _ := filepath.Glob(filepath.Join(r.s.runDir, "images", "*"+strings.TrimPrefix(box.GetImageDigest(), "sha256:")+"*"))
		require.NotEmpty(r.t, found)
		r.image = found[0]
	}
	other := r.prepare("", false)
	ours := bundle(r.t, filepath.Join(r.s.runDir, "runs", box.GetRunId(), "bundle"), box.GetRunId(), r.s.runDir)
	theirs := bundle(r.t, other.p.Bundle, other.id, r.root)
	require.Equal(r.t, ours, theirs, "the baseline must be the same sandbox")
	r.shown = other.p.String()
	other.destroy()
}

var netns = regexp.MustCompile(`"[^"]*/netns/[^"]*"`)

// bundle reads config.json with everything that names one box taken out.
func bundle(t testing.TB, dir, run, root string) string {
	data, err := os.ReadFile(filepath.Join(dir, "config.json"))
	require.NoError(t, err)
	var v any
	require.NoError(t, json.Unmarshal(data, &v))
	data, err = json.MarshalIndent(v, "", " ")
	require.NoError(t, err)
	text := netns.ReplaceAllString(string(data), `"NETNS"`)
	for _, pair := range [][2]string{{run, "RUN"}, {root + "/images", "IMAGES"}, {root, "ROOT"}, {"carrel-raw", "carrel"}, {`"hostname": "model"`, `"hostname": "raw"`}, {"/identities/RUN", "/identity/RUN"}} {
		text = strings.ReplaceAll(text, pair[0], pair[1])
	}
	return regexp.MustCompile(`"[^"]*/images/`).ReplaceAllString(strings.ReplaceAll(text, "IMAGES", "ROOT/images"), `"IMAGES/`)
}

func (r *raw) command() string { return r.shown }

// prepare does everything that comes before runsc is called.
func (r *raw) prepare(capture string, memory bool) *rawBox {
	ctx := context.Background()
	b := &rawBox{r: r, id: string(carrel.NewRunID())}
	var err error
	b.network, err = r.nets.Take(ctx)
	require.NoError(r.t, err)
	home := filepath.Join(r.dir, b.id+".img")
	from := r.home
	if capture != "" {
		from = filepath.Join(capture, "home.img")
	}
	require.NoError(r.t, disk.Clone(from, home))
	key := make([]byte, 32)
	_, _ = rand.Read(key)
	b.key = hex.EncodeToString(key)
	dir := filepath.Join(r.root, "identity", b.id)
	require.NoError(r.t, os.MkdirAll(dir, 0o700))
	m := benchResources
	require.NoError(r.t, identity.Write(dir, identity.Identity{RunID: b.id, BoxID: string(carrel.NewBoxID()), BoxName: "raw", Key: b.key, MemoryBytes: m.GetMemoryBytes(), Processes: m.GetProcesses(), Sudo: true}))
	headroom := 256*carrel.MiB + m.GetMemoryBytes()/20
	b.spec = runtime.Spec{
		Run: b.id, Hostname: "raw", Image: r.image, Home: home, Agent: r.agent, Identity: dir, Sudo: true, From: capture, WithMemory: memory,
		Network: runtime.Network{Namespace: b.network.Namespace, AgentNetwork: "tcp", AgentAddress: b.network.Agent()},
		Limits:  runtime.Limits{CPUMillis: m.GetCpuMillis(), Memory: m.GetMemoryBytes(), Headroom: headroom, Processes: m.GetProcesses(), Root: m.GetRootBytes(), Tmp: m.GetTmpBytes(), Shm: m.GetShmBytes()},
	}
	b.p, err = r.rt.Prepare(ctx, b.spec)
	require.NoError(r.t, err)
	return b
}

// start runs the raw command.
func (b *rawBox) start() {
	require.NoError(b.r.t, b.p.Run(context.Background()))
	b.p.Close()
	// The runtime's own note that a sandbox began whole, which its Freeze and Save want to see.
	require.NoError(b.r.t, os.WriteFile(filepath.Join(b.r.root, "runs", b.id, "started"), nil, 0o600))
	b.client = agentv1connect.NewProcessServiceClient(&http.Client{Transport: &http2.Transport{
		AllowHTTP: true, DialTLSContext: func(ctx context.Context, _, _ string, _ *tls.Config) (net.Conn, error) { return b.dial(ctx) },
	}}, "http://agent")
}

// dial asks the agent until it answers.
func (b *rawBox) dial(ctx context.Context) (net.Conn, error) {
	deadline := time.Now().Add(30 * time.Second)
	for {
		c, err := (&net.Dialer{Timeout: 5 * time.Millisecond}).DialContext(ctx, "tcp", b.network.Agent())
		if err == nil {
			_, err = fmt.Fprintf(c, "carrel/1 %s agent\n", b.key)
			if err == nil {
				var line string
				if line, err = bufio.NewReaderSize(c, 16).ReadString('\n'); err == nil && line == "ok\n" {
					return c, nil
				}
			}
			c.Close()
		}
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("the agent does not answer: %w", err)
		}
	}
}

// run runs a command through the agent to its end, with output.
func (b *rawBox) run(args ...string) {
	stream, err := b.client.Run(context.Background(), connect.NewRequest(&carrelv1.StartProcessRequest{Args: args}))
	require.NoError(b.r.t, err)
	defer stream.Close()
	for stream.Receive() {
		if p := stream.Msg().GetExited(); p != nil {
			require.Zero(b.r.t, p.GetExitCode())
			return
		}
	}
	require.NoError(b.r.t, stream.Err())
	require.FailNow(b.r.t, "the command has no end")
}

func (b *rawBox) background(args ...string) {
	_, err := b.client.Start(context.Background(), connect.NewRequest(&carrelv1.StartProcessRequest{Args: args}))
	require.NoError(b.r.t, err)
}

// checkpoint is the raw pause: freeze, checkpoint, then hash and sync what was written. It answers how long
// that took, and a capture that a restore can begin from.
func (b *rawBox) checkpoint() (time.Duration, string) {
	dir := filepath.Join(b.r.dir, "capture-"+b.id)
	memory := filepath.Join(dir, "memory")
	require.NoError(b.r.t, os.MkdirAll(memory, 0o700))
	began := time.Now()
	b.runsc("pause", b.id)
	b.runsc("checkpoint", "-leave-running", "-image-path", memory, b.id)
	hashAndSync(b.r.t, memory)
	took := time.Since(began)
	// The capture of the product's form, which Prepare reads, is not part of the raw command's time.
	product := filepath.Join(b.r.dir, "product-"+b.id)
	require.NoError(b.r.t, os.MkdirAll(product, 0o700))
	require.NoError(b.r.t, b.r.rt.Freeze(context.Background(), b.id))
	require.NoError(b.r.t, b.r.rt.Save(context.Background(), b.id, product, runtime.SaveOptions{Memory: true}))
	require.NoError(b.r.t, disk.Clone(b.spec.Home, filepath.Join(product, "home.img")))
	require.NoError(b.r.t, os.RemoveAll(dir))
	return took, product
}

// runsc calls the binary with the state root of the sandbox.
func (b *rawBox) runsc(args ...string) {
	command := exec.Command(b.p.Args[0], append([]string{"--root", filepath.Join(b.r.root, "runsc")}, args...)...)
	var errs bytes.Buffer
	command.Stderr = &errs
	require.NoError(b.r.t, command.Run(), "%v: %s", args, &errs)
}

// runscExec runs a command with the environment of the sandbox and, over it, entries of NAME=VALUE.
func (b *rawBox) runscExec(environment []string, args ...string) time.Duration {
	command := []string{"exec", "-user", "1000:1000"}
	for _, entry := range environment {
		command = append(command, "-env", entry)
	}
	began := time.Now()
	b.runsc(append(append(command, b.id), args...)...)
	return time.Since(began)
}

func (b *rawBox) destroy() {
	b.p.Close()
	require.NoError(b.r.t, b.r.rt.Destroy(context.Background(), b.id))
	b.r.nets.Release(b.network)
	_ = os.Remove(b.spec.Home)
	if b.spec.From != "" {
		_ = os.RemoveAll(b.spec.From)
	}
}
