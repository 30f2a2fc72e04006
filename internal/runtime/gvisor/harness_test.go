package gvisor

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	goruntime "runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"carrel.dev/carrel/internal/runtime"
	"carrel.dev/carrel/internal/runtime/runtimetest"
)

// built is what all tests of this process share: the probe, an image and a formatted home.
type built struct{ dir, probe, image, home string }

// buildDir is set once it exists.
var buildDir atomic.Pointer[string]

var build = sync.OnceValues(func() (built, error) {
	dir, err := os.MkdirTemp("", "carrel-rt-")
	if err != nil {
		return built{}, err
	}
	buildDir.Store(&dir)
	b := built{dir: dir, probe: filepath.Join(dir, "probe"), image: filepath.Join(dir, "image.erofs"), home: filepath.Join(dir, "home.img")}
	_, here, _, _ := goruntime.Caller(0)
	root := filepath.Join(dir, "root")
	script := `set -e
		cd "$1/../runtimetest/testdata/probe" && CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o "$2" .
		mkdir -p "$5/etc" "$5/proc" "$5/sys" "$5/dev" "$5/tmp" "$5/home" && printf 'from the image' > "$5/etc/from-the-image"
		mkfs.erofs -T0 "$3" "$5"
		mkdir -p "$5-home/home" && chown 1000:1000 "$5-home/home"
		truncate -s 32M "$4" && mkfs.ext4 -q -E lazy_itable_init=0,lazy_journal_init=0 -d "$5-home" "$4"`
	out, err := exec.Command("sh", "-c", script, "sh", filepath.Dir(here), b.probe, b.image, b.home, root).CombinedOutput()
	if err != nil {
		return b, fmt.Errorf("building what the tests need: %w: %s", err, out)
	}
	return b, nil
})

func TestMain(m *testing.M) {
	if os.Getenv(childVariable) != "" {
		os.Exit(child())
	}
	code := m.Run()
	if dir := buildDir.Load(); dir != nil {
		_ = os.RemoveAll(*dir)
	}
	os.Exit(code)
}

// runscPath is CARREL_RUNSC, or bin/runsc of this repository.
func runscPath(t testing.TB) string { return builtPath(t, "CARREL_RUNSC", "runsc") }

// nextPath is CARREL_RUNSC_NEXT, or bin/runsc-next of this repository: another version of runscPath.
func nextPath(t testing.TB) string { return builtPath(t, "CARREL_RUNSC_NEXT", "runsc-next") }

// builtPath is what a variable of the environment names, or a binary of this repository.
func builtPath(t testing.TB, variable, name string) string {
	if path := os.Getenv(variable); path != "" {
		return path
	}
	_, here, _, _ := goruntime.Caller(0)
	path := filepath.Join(filepath.Dir(here), "../../../bin", name)
	_, err := os.Stat(path)
	require.NoError(t, err, "run `make bin/%s`, or set %s", name, variable)
	return path
}

// sums remembers the SHA-256 of binaries, by path.
var sums sync.Map

// install gives a harness a binary as a node installs it, and returns its path.
func (h *harness) install(t testing.TB, binary string) string {
	sum, known := sums.Load(binary)
	if !known {
		out, err := exec.Command("sha256sum", binary).Output()
		require.NoError(t, err)
		sum, _, _ = strings.Cut(string(out), " ")
		sums.Store(binary, sum)
	}
	path := filepath.Join(h.cfg.Programs, programPrefix+sum.(string))
	if _, err := os.Stat(path); err == nil {
		return path
	}
	if os.Link(binary, path) != nil { // it is on another disk
		run(t, "cp "+binary+" "+path)
	}
	return path
}

// upgraded is a harness on the same state with another binary for new sandboxes.
func (h *harness) upgraded(t testing.TB, binary string) *harness {
	next := *h
	next.cfg.Runsc = h.install(t, binary)
	return &next
}

// harness is a runtime in a directory and cgroup of its own.
type harness struct {
	cfg Config
	tag string
}

// newHarness needs root and runsc: tests under -short do without.
func newHarness(t testing.TB) *harness {
	root, err := os.MkdirTemp("/run", "carrel-rt-")
	require.NoError(t, err)
	tag := strings.TrimPrefix(root, "/run/")
	overlay, err := os.MkdirTemp("", "carrel-rt-overlay-")
	require.NoError(t, err)
	h := &harness{tag: tag, cfg: Config{Programs: t.TempDir(), Root: root, OverlayDir: overlay, CgroupParent: "/" + tag, Logger: slog.New(slog.NewTextHandler(t.Output(), nil))}}
	h.cfg.Runsc = h.install(t, runscPath(t))
	runtimetest.LeakCheck(t, tag, "carrel-rt-overlay-", "nsrt"+netTag(tag))
	t.Cleanup(func() {
		h.install(t, runscPath(t)) // a test may have swept it away
		rt := h.open(t)
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		require.NoError(t, rt.Purge(ctx))
		entries, err := os.ReadDir(overlay)
		require.NoError(t, err)
		for _, e := range entries {
			t.Errorf("left over in the overlay directory: %s", e.Name())
		}
		require.NoError(t, os.Remove(root), "something was left in the root")
		require.NoError(t, os.RemoveAll(overlay))
	})
	return h
}

func (h *harness) open(t testing.TB) *Runtime {
	rt, err := New(h.cfg)
	require.NoError(t, err)
	return rt
}

func netTag(tag string) string { return tag[len(tag)-8:] }

func run(t testing.TB, line string) {
	t.Helper()
	args := strings.Fields(line)
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	require.NoError(t, err, "%s: %s", line, out)
}

// subnet numbers the networks of this process.
var subnet atomic.Int32

func (h *harness) spec(t testing.TB) runtime.Spec {
	b, err := build()
	require.NoError(t, err)
	dir := t.TempDir()
	spec := runtime.Spec{
		Run: runtimetest.NewRun(), Hostname: "box", Image: b.image, Home: filepath.Join(dir, "home.img"),
		Agent: b.probe, Identity: filepath.Join(dir, "identity"), Env: []string{"PATH=/usr/bin:/bin"},
		Limits: runtime.Limits{CPUMillis: 2000, Memory: 192 << 20, Headroom: 64 << 20, Processes: 256, Root: 64 << 20, Tmp: 8 << 20, Shm: 8 << 20},
	}
	require.NoError(t, os.Mkdir(spec.Identity, 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(spec.Identity, "identity.json"), []byte("{}"), 0o400))
	run(t, "cp --sparse=always "+b.home+" "+spec.Home)
	n := subnet.Add(1)
	name := fmt.Sprintf("nsrt%s%d", netTag(h.tag), n)
	third, fourth := (os.Getpid()*7+int(n)/60)%250, int(n)%60*4
	spec.Network = runtime.Network{
		Namespace: "/run/netns/" + name, AgentNetwork: "tcp",
		AgentAddress: fmt.Sprintf("10.213.%d.%d:1", third, fourth+2),
	}
	t.Cleanup(func() { run(t, "ip netns del "+name) })
	run(t, "ip netns add "+name)
	host := fmt.Sprintf("rt%d-%d", os.Getpid()%1000000, n)
	run(t, fmt.Sprintf("ip link add %s type veth peer name eth0 netns %s", host, name))
	run(t, fmt.Sprintf("ip addr add 10.213.%d.%d/30 dev %s", third, fourth+1, host))
	run(t, fmt.Sprintf("ip link set %s up", host))
	run(t, fmt.Sprintf("ip -n %s link set lo up", name))
	h.renew(t, spec)
	return spec
}

// renew sets the address that runsc takes away from the namespace.
func (h *harness) renew(t testing.TB, spec runtime.Spec) {
	name := filepath.Base(spec.Network.Namespace)
	address, _, _ := strings.Cut(spec.Network.AgentAddress, ":")
	run(t, fmt.Sprintf("ip -n %s addr replace %s/30 dev eth0", name, address))
	run(t, fmt.Sprintf("ip -n %s link set eth0 up", name))
}

func (h *harness) kill(t testing.TB, runID string) {
	st, err := h.open(t).state(runID)
	require.NoError(t, err)
	require.True(t, st.alive)
	require.NoError(t, unix.Kill(st.pid, unix.SIGKILL))
}

func (h *harness) readHome(t testing.TB, image, name string) []byte {
	dir := t.TempDir()
	// The image was copied while it was mounted: its journal is replayed as after a power cut.
	run(t, "mount -o loop,noatime "+image+" "+dir)
	defer run(t, "umount "+dir)
	data, err := os.ReadFile(filepath.Join(dir, homeSubdir, name))
	if os.IsNotExist(err) {
		return nil
	}
	require.NoError(t, err)
	return data
}

func (h *harness) badSpecs(t testing.TB) map[string]runtime.Spec {
	out := map[string]runtime.Spec{}
	bad := func(what string, change func(*runtime.Spec)) {
		spec := h.spec(t)
		change(&spec)
		out[what] = spec
	}
	bad("no agent", func(s *runtime.Spec) { s.Agent += "-missing" })
	bad("no image", func(s *runtime.Spec) { s.Image += "-missing" })
	bad("no home", func(s *runtime.Spec) { s.Home += "-missing" })
	bad("no network namespace", func(s *runtime.Spec) { s.Network.Namespace += "-missing" })
	bad("an agent that is no program", func(s *runtime.Spec) { s.Agent = s.Home })
	bad("a home that is no file system", func(s *runtime.Spec) {
		s.Home = filepath.Join(t.TempDir(), "home")
		require.NoError(t, os.WriteFile(s.Home, make([]byte, 1<<20), 0o600))
	})
	bad("a home without the directory", func(s *runtime.Spec) {
		s.Home = filepath.Join(t.TempDir(), "home")
		run(t, "truncate -s 8M "+s.Home)
		run(t, "mkfs.ext4 -q "+s.Home)
	})
	bad("a home that is a directory", func(s *runtime.Spec) { s.Home = t.TempDir() })
	bad("an image that is not EROFS", func(s *runtime.Spec) { s.Image = s.Home })
	bad("memory without a capture", func(s *runtime.Spec) { s.WithMemory = true })
	bad("a relative path", func(s *runtime.Spec) { s.Home = "home.img" })
	bad("no limit", func(s *runtime.Spec) { s.Limits.Root = 0 })
	bad("a capture that is not there", func(s *runtime.Spec) { s.From = filepath.Join(t.TempDir(), "missing") })
	return out
}

func (h *harness) suite() runtimetest.Harness {
	return runtimetest.Harness{
		Open:     func(t *testing.T) runtime.Runtime { return h.open(t) },
		Upgrade:  func(t *testing.T) runtime.Runtime { return h.upgraded(t, nextPath(t)).open(t) },
		Spec:     func(t *testing.T) runtime.Spec { return h.spec(t) },
		Renew:    func(t *testing.T, spec runtime.Spec) { h.renew(t, spec) },
		ReadHome: func(t *testing.T, image, name string) []byte { return h.readHome(t, image, name) },
		Kill:     func(t *testing.T, run string) { h.kill(t, run) },
		BadSpecs: func(t *testing.T) map[string]runtime.Spec { return h.badSpecs(t) },
	}
}
