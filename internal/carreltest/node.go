package carreltest

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"

	"github.com/stretchr/testify/require"

	"carrel.dev/carrel/internal/node"
	"carrel.dev/carrel/internal/node/disk"
	"carrel.dev/carrel/internal/node/netpool"
	"carrel.dev/carrel/internal/node/proxy"
	"carrel.dev/carrel/internal/runtime"
	"carrel.dev/carrel/internal/runtime/fake"
)

// Node is a machine with sandboxes, which go on whatever happens to the two processes on it. The embedded part is the node
// daemon.
type Node struct {
	*Part
	Proxy *Part
	// Runtime has the sandboxes; their names are the ids of runs.
	Runtime *fake.Runtime
	// ToControl is the daemon's wire to control, ToProxy that of gateways to the proxy.
	ToControl, ToProxy *Wire

	s      *Stack
	dir    string
	behind *replicas // of ToProxy
	daemon atomic.Pointer[node.Daemon]
	fault  atomic.Pointer[func(step, run string) error]
}

func (s *Stack) startNodes() {
	for i := range s.options.Nodes {
		s.Nodes = append(s.Nodes, s.startNode(fmt.Sprintf("node-%d", i)))
	}
}

func (s *Stack) startNode(name string) *Node {
	t := s.t
	n := &Node{s: s, dir: s.path(name), behind: newReplicas("tcp")}
	n.ToControl, n.ToProxy = s.newWire(s.controls), s.newWire(n.behind)
	require.NoError(t, os.MkdirAll(n.runDir(), 0o711))
	require.NoError(t, os.WriteFile(n.agentPath(), []byte("#!/bin/sh\n# the agent of these sandboxes lives in the test\n"), 0o755))
	pool, err := n.openPool(t.Context())
	require.NoError(t, err)
	// One node builds the image, and no one may wait until the others have it.
	_, _, err = images{pool}.add(imageYAML)
	require.NoError(t, err)
	n.Runtime, err = fake.New(fake.Config{Root: filepath.Join(n.dir, "sandboxes"), Agent: n.serveAgent, Fault: n.step})
	require.NoError(t, err)
	t.Cleanup(func() {
		s.agents.close(n)
		require.NoError(t, n.Runtime.Close())
	})
	n.Proxy = &Part{name: name + "-proxy", begin: n.beginProxy}
	n.Part = &Part{name: name, begin: n.begin}
	for _, p := range []*Part{n.Proxy, n.Part} {
		require.NoError(t, p.Start())
		s.atEnd(p)
	}
	return n
}

func (n *Node) dataDir() string   { return filepath.Join(n.dir, "data") }
func (n *Node) runDir() string    { return filepath.Join(n.dir, "run") }
func (n *Node) socket() string    { return filepath.Join(n.dir, "proxy.sock") }
func (n *Node) agentPath() string { return filepath.Join(n.dir, "agent") }

// ImageDir has the files of the images that the node holds.
func (n *Node) ImageDir() string { return filepath.Join(n.dataDir(), "pool", "images") }

func (n *Node) openPool(ctx context.Context) (*disk.Pool, error) {
	return disk.Open(ctx, disk.Config{Dir: n.dataDir(), RunDir: n.runDir(), SizeBytes: n.s.options.PoolBytes, Logger: n.s.log})
}

func (n *Node) beginProxy() (*life, error) {
	l := newLife()
	return begun(l, func() error {
		p, err := proxy.New(proxy.Config{
			Socket: n.socket(), NodeUID: os.Getuid(), Dir: filepath.Join(n.dir, "proxy"), Listen: "127.0.0.1:0", Logger: n.s.log.With("part", n.Proxy.name),
		})
		if err != nil {
			return err
		}
		address := p.Addr().String()
		n.behind.add(address)
		l.leave = append(l.leave, func() { n.behind.remove(address) })
		l.sever = append(l.sever, func() { n.behind.remove(address); n.ToProxy.Cut() })
		l.run("proxy", p.Run)
		return nil
	}())
}

func (n *Node) begin() (*life, error) {
	l := newLife()
	hold := &tether{Runtime: n.Runtime}
	l.sever = append(l.sever, func() { hold.cut.Store(true) }, n.ToControl.Down)
	n.ToControl.Up()
	return begun(l, func() error {
		pool, err := n.openPool(l.ctx)
		if err != nil {
			return err
		}
		d, err := node.New(node.Config{
			DataDir: n.dataDir(), RunDir: n.runDir(), Pool: pool, Runtime: hold, Networks: netpool.Loopback{}, Images: images{pool},
			ControlURL: "https://" + n.ToControl.Addr(), CAFile: n.s.caFile, JoinTokenFile: n.s.join, Name: n.name,
			ProxyAddress: n.ToProxy.Addr(), ProxySocket: n.socket(), AgentPath: n.agentPath(), Version: version, Logger: n.s.log.With("part", n.name),
		})
		if err != nil {
			return err
		}
		n.daemon.Store(d)
		l.run("node", d.Run)
		return nil
	}())
}

// SetFault is asked at every step of the node's runtime, as fake.Config.Fault is; nil: no faults.
func (n *Node) SetFault(f func(step, run string) error) {
	if f == nil {
		n.fault.Store(nil)
		return
	}
	n.fault.Store(&f)
}

// step is called by the runtime.
func (n *Node) step(step, run string) error {
	if step == "destroy/done" {
		n.s.journal.ended(run)
		n.s.agents.end(run)
	}
	if f := n.fault.Load(); f != nil {
		if err := (*f)(step, run); err != nil {
			return err // a start that fails leaves no sandbox
		}
	}
	if step == "start/done" {
		n.s.journal.started(n.agentOf(run))
	}
	return nil
}

// KillSandbox ends the sandbox of a run as a crash of it would.
func (n *Node) KillSandbox(run string) error {
	if err := n.Runtime.Kill(run, runtime.Exit{}); err != nil {
		return err
	}
	n.s.journal.ended(run)
	n.s.agents.end(run)
	return nil
}

// Leftovers names what the node keeps of runs and snapshots: sandboxes, identities, the ledger, homes and captures in the
// pool.
func (n *Node) Leftovers(ctx context.Context) ([]string, error) {
	list, err := n.Runtime.List(ctx)
	if err != nil {
		return nil, err
	}
	var left []string
	for _, sandbox := range list {
		left = append(left, fmt.Sprintf("%s: sandbox %s (%s)", n.name, sandbox.Run, sandbox.State))
	}
	for _, pattern := range []string{"run/identities/*", "data/ledger/runs/*", "data/ledger/damaged/*", "data/pool/homes/*", "data/pool/snapshots/*", "data/pool/overlay/*"} {
		paths, err := filepath.Glob(filepath.Join(n.dir, pattern))
		if err != nil {
			return nil, err
		}
		left = append(left, paths...)
	}
	return left, nil
}

// tether is what one life of the daemon has of the runtime: nothing once it was killed.
type tether struct {
	runtime.Runtime
	cut atomic.Bool
}

var errCut = errors.New("the process was killed")

func (t *tether) check(err error) error {
	if t.cut.Load() {
		return errCut
	}
	return err
}

func (t *tether) do(f func() error) error {
	if t.cut.Load() {
		return errCut
	}
	return t.check(f())
}

func (t *tether) Start(ctx context.Context, spec runtime.Spec) error {
	return t.do(func() error { return t.Runtime.Start(ctx, spec) })
}

func (t *tether) Freeze(ctx context.Context, run string) error {
	return t.do(func() error { return t.Runtime.Freeze(ctx, run) })
}

func (t *tether) Thaw(ctx context.Context, run string) error {
	return t.do(func() error { return t.Runtime.Thaw(ctx, run) })
}

func (t *tether) Save(ctx context.Context, run, dir string, o runtime.SaveOptions) error {
	return t.do(func() error { return t.Runtime.Save(ctx, run, dir, o) })
}

func (t *tether) Destroy(ctx context.Context, run string) error {
	return t.do(func() error { return t.Runtime.Destroy(ctx, run) })
}

func (t *tether) List(ctx context.Context) (list []runtime.Sandbox, err error) {
	err = t.do(func() error { list, err = t.Runtime.List(ctx); return err })
	return list, err
}

func (t *tether) Wait(ctx context.Context, run string) (exit runtime.Exit, err error) {
	err = t.do(func() error { exit, err = t.Runtime.Wait(ctx, run); return err })
	return exit, err
}

// images makes images of nothing but their definition.
type images struct{ pool *disk.Pool }

func (i images) Build(_ context.Context, definition string, progress func(string)) (string, int64, error) {
	progress("building")
	return i.add(definition)
}

func (i images) Import(_ context.Context, source node.ImportSource, _ func(string)) (string, int64, error) {
	return i.add(fmt.Sprint("imported ", source.Reference, source.Platform, source.Insecure))
}

func (i images) add(text string) (string, int64, error) {
	digest := fmt.Sprintf("sha256:%x", sha256.Sum256([]byte(text)))
	path := filepath.Join(i.pool.ImageDir(), strings.Replace(digest, ":", "-", 1))
	if err := os.WriteFile(path+".json", []byte(`{"config":{"env":["OF_THE_IMAGE=yes","WHOSE=the image's"]}}`), 0o600); err != nil {
		return "", 0, err
	}
	return digest, int64(len(text)), os.WriteFile(path+".erofs", []byte(text), 0o600)
}
