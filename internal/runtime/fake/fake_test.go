package fake_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"

	"carrel.dev/carrel/internal/runtime"
	"carrel.dev/carrel/internal/runtime/fake"
	"carrel.dev/carrel/internal/runtime/runtimetest"
	"carrel.dev/carrel/internal/runtime/runtimetest/probe"
)

// world is one Root with the Runtimes that were opened on it.
type world struct {
	root  string
	fault func(step, run string) error
	last  *fake.Runtime
}

func (w *world) open(t *testing.T) runtime.Runtime { return w.openVersion(t, "") }

func (w *world) openVersion(t *testing.T, version string, former ...string) runtime.Runtime {
	if w.last != nil {
		require.NoError(t, w.last.Close())
	}
	var rt *fake.Runtime
	var err error
	opened := make(chan struct{}) // an agent may be called before New answers
	rt, err = fake.New(fake.Config{Root: w.root, Fault: w.fault, Version: version, Former: former, Agent: func(run string, conn net.Conn) {
		<-opened
		probe.Serve(conn, &state{m: rt.Machine(run), kill: func(e runtime.Exit) error { return rt.Kill(run, e) }})
	}})
	require.NoError(t, err)
	close(opened)
	w.last = rt
	return rt
}

func newWorld(t *testing.T, fault func(step, run string) error) *world {
	w := &world{root: t.TempDir(), fault: fault}
	t.Cleanup(func() {
		if w.last != nil {
			require.NoError(t, w.last.Close())
		}
	})
	return w
}

// state is the probe of a fake sandbox.
type state struct {
	m    *fake.Machine
	kill func(runtime.Exit) error
}

func (s *state) Do(req probe.Request) (probe.Response, error) {
	number := func(key string, change func(n int64) int64) (probe.Response, error) {
		data, err := s.m.Memory(key, func(old []byte) []byte {
			n, _ := strconv.ParseInt(string(old), 10, 64)
			return strconv.AppendInt(nil, change(n), 10)
		})
		n, _ := strconv.ParseInt(string(data), 10, 64)
		return probe.Response{N: n}, err
	}
	switch req.Op {
	case "nonce":
		data, err := s.m.Memory("nonce", func(old []byte) []byte {
			if old == nil {
				return []byte(runtimetest.NewRun())
			}
			return old
		})
		return probe.Response{Data: data}, err
	case "next":
		return number("next", func(n int64) int64 { return n + 1 })
	case "hog":
		return number("hog", func(n int64) int64 {
			return int64(crc32.ChecksumIEEE(fmt.Appendf(nil, "%d %d", n, req.N)))
		})
	case "checksum":
		return number("hog", func(n int64) int64 { return n })
	case "read":
		if req.Path == runtimetest.ImageFile {
			if _, err := s.m.ReadFile("removed " + req.Path); errors.Is(err, fs.ErrNotExist) {
				return probe.Response{Data: []byte("from the image")}, nil
			}
		}
		data, err := s.m.ReadFile(req.Path)
		return probe.Response{Data: data}, err
	case "write":
		return probe.Response{}, s.m.WriteFile(req.Path, req.Data)
	case "remove":
		return probe.Response{}, s.m.WriteFile("removed "+req.Path, nil)
	case "exit":
		return probe.Response{}, s.kill(runtime.Exit{Reason: "exited", Message: "it ended", Code: int(req.N)})
	}
	return probe.Response{}, errors.New("unknown request " + req.Op)
}

func newSpec(t *testing.T) runtime.Spec {
	dir := t.TempDir()
	spec := runtime.Spec{Run: runtimetest.NewRun(), Image: filepath.Join(dir, "image"), Home: filepath.Join(dir, "home")}
	require.NoError(t, os.WriteFile(spec.Image, []byte("image"), 0o600))
	require.NoError(t, os.WriteFile(spec.Home, make([]byte, 64<<10), 0o600))
	return spec
}

func TestConformance(t *testing.T) {
	runtimetest.Run(t, func(t *testing.T) runtimetest.Harness {
		w := newWorld(t, nil)
		return runtimetest.Harness{
			Open: w.open, Spec: newSpec,
			Upgrade: func(t *testing.T) runtime.Runtime { return w.openVersion(t, "fake-2", "fake-1") },
			Renew:   func(*testing.T, runtime.Spec) {},
			ReadHome: func(t *testing.T, image, name string) []byte {
				all, err := fake.ReadHome(image)
				require.NoError(t, err)
				return all["/home/carrel/"+name]
			},
			Kill: func(t *testing.T, run string) { require.NoError(t, w.last.Kill(run, runtime.Exit{})) },
			BadSpecs: func(t *testing.T) map[string]runtime.Spec {
				home, image := newSpec(t), newSpec(t)
				home.Home += "-missing"
				image.Image += "-missing"
				return map[string]runtime.Spec{"no home": home, "no image": image}
			},
		}
	})
}

func TestAFaultFailsItsStep(t *testing.T) {
	var fail string
	w := newWorld(t, func(step, _ string) error {
		if step == fail {
			return errors.New("asked for")
		}
		return nil
	})
	rt, ctx := w.open(t), context.Background()
	spec := newSpec(t)
	for _, fail = range []string{"start", "start/done"} {
		require.ErrorContains(t, rt.Start(ctx, spec), "asked for")
		list, err := rt.List(ctx)
		require.NoError(t, err)
		require.Empty(t, list, "a failed start left something")
	}
	fail = ""
	require.NoError(t, rt.Start(ctx, spec))
	for _, fail = range []string{"freeze", "freeze/done"} {
		require.ErrorContains(t, rt.Freeze(ctx, spec.Run), "asked for")
	}
	fail = ""
	require.NoError(t, rt.Freeze(ctx, spec.Run))
	fail = "save/done"
	require.ErrorContains(t, rt.Save(ctx, spec.Run, t.TempDir(), runtime.SaveOptions{}), "asked for")
	fail = "start"
	require.Error(t, rt.Start(ctx, spec))
	list, err := rt.List(ctx)
	require.NoError(t, err)
	require.Equal(t, []runtime.Sandbox{{Run: spec.Run, State: runtime.StateFrozen}}, list, "a failed call took another's sandbox away")
}

func TestTheAgentListensWhereTheSpecSays(t *testing.T) {
	w := newWorld(t, nil)
	rt, ctx := w.open(t), context.Background()
	spec := newSpec(t)
	spec.Network.AgentNetwork, spec.Network.AgentAddress = "unix", filepath.Join(t.TempDir(), "agent")
	require.NoError(t, rt.Start(ctx, spec))
	for range 2 { // also after a restart
		conn, err := net.Dial("unix", spec.Network.AgentAddress)
		require.NoError(t, err)
		_, err = conn.Write([]byte("{\"op\":\"nonce\"}\n"))
		require.NoError(t, err)
		line := make([]byte, 100)
		n, err := conn.Read(line)
		require.NoError(t, err)
		require.True(t, bytes.HasPrefix(line[:n], []byte(`{"data"`)), "%s", line[:n])
		require.NoError(t, conn.Close())
		rt = w.open(t)
	}
	require.NoError(t, rt.Destroy(ctx, spec.Run))
	_, err := net.Dial("unix", spec.Network.AgentAddress)
	require.Error(t, err)
}
