//go:build bench

package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"sort"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/durationpb"

	"net"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/client"
)

// pairs is how often each side of a comparison is measured.
const pairs = 20

// crowds is how often twenty boxes are created at once on each side.
const crowds = 5

// benchResources are those of every box here, on both sides.
var benchResources = &carrelv1.Resources{CpuMillis: 2000, MemoryBytes: 768 << 20, HomeBytes: 256 << 20, RootBytes: 256 << 20, Processes: 1024, TmpBytes: 64 << 20, ShmBytes: 16 << 20}

// static is a program that needs no libraries, so that both sides measure the way to it and not the loader.
var static = []string{"/sbin/ldconfig", "-V"}

// series are the times of one side, in milliseconds.
type series []float64

func (s series) quantile(q float64) float64 {
	sorted := append(series{}, s...)
	sort.Float64s(sorted)
	return sorted[min(len(sorted)-1, int(math.Ceil(q*float64(len(sorted))))-1)]
}

// comparison is Carrel against raw runsc, pair by pair.
type comparison struct {
	name   string
	carrel series
	raw    series
	aim    float64 // zero: there is none
}

func (c *comparison) add(carrel, raw time.Duration) {
	c.carrel = append(c.carrel, float64(carrel.Microseconds())/1000)
	c.raw = append(c.raw, float64(raw.Microseconds())/1000)
}

func (c *comparison) row() string {
	var ratios series
	for i := range c.carrel {
		ratios = append(ratios, c.carrel[i]/c.raw[i])
	}
	aim := "reported"
	if c.aim > 0 {
		aim = fmt.Sprintf("≤ %.2f", c.aim)
	}
	return fmt.Sprintf("| %s | %.0f / %.0f | %.0f / %.0f | **%.2f** (%.2f to %.2f) | %s |", c.name,
		c.carrel.quantile(0.5), c.carrel.quantile(0.95), c.raw.quantile(0.5), c.raw.quantile(0.95),
		ratios.quantile(0.5), ratios.quantile(0.1), ratios.quantile(0.9), aim)
}

// interleave measures pairs, each time the other side first.
func interleave(c *comparison, ours, raw func(i int) time.Duration) {
	for i := range pairs {
		var a, b time.Duration
		if i%2 == 0 {
			a, b = ours(i), raw(i)
		} else {
			b, a = raw(i), ours(i)
		}
		c.add(a, b)
	}
}

// bench is one run of the benchmark: a stack, and raw runsc beside it.
type bench struct {
	t    *testing.T
	s    *stack
	raw  *raw
	rows []string
}

func (b *bench) report(c *comparison) {
	b.rows = append(b.rows, c.row())
	b.t.Log(c.row())
}

// TestBench measures everything; CARREL_BENCH names parts, separated by commas, to measure those alone.
func TestBench(t *testing.T) {
	s := newStack(t, options{pool: "24GiB"})
	b := &bench{t: t, s: s, raw: newRaw(t, s)}

	// A first box shows what the node prepares; the baseline is held against it.
	s.create("model", resources)
	b.raw.checkIdentical("model")
	t.Logf("the baseline's command:\n%s", b.raw.command())

	only := strings.FieldsFunc(os.Getenv("CARREL_BENCH"), func(r rune) bool { return r == ',' })
	for _, part := range []struct {
		name string
		run  func()
	}{
		{"create", b.create}, {"pause", b.pauseAndResume}, {"exec", b.exec}, {"memory", b.memory}, {"many", b.many}, {"commits", b.commits},
	} {
		if len(only) == 0 || slices.Contains(only, part.name) {
			part.run()
		}
	}
	t.Logf("\n| what | Carrel p50 / p95 ms | raw runsc p50 / p95 ms | ratio, median of pairs (p10 to p90) | aim |\n| --- | --- | --- | --- | --- |\n%s\n", strings.Join(b.rows, "\n"))
	s.remove("model")
}

func (b *bench) create() {
	c := &comparison{name: "create → first output of a command", aim: 1.4}
	interleave(c, func(i int) time.Duration {
		name := fmt.Sprintf("create-%d", i)
		began := time.Now()
		b.s.createAndRun(b.t, name)
		took := time.Since(began)
		b.s.remove(name)
		return took
	}, func(int) time.Duration {
		box := b.raw.prepare("", false)
		began := time.Now()
		box.start()
		box.run(static...)
		took := time.Since(began)
		box.destroy()
		return took
	})
	b.report(c)
}

// pauseAndResume resumes as the other side does, when the former sandbox is gone, and once more as soon as the box is paused.
func (b *bench) pauseAndResume() {
	pause := &comparison{name: "pause of a process with 256 MB", aim: 1.3}
	resume := &comparison{name: "resume → first output of a command", aim: 1.25}
	atOnce := &comparison{name: "the same as soon as the box is paused"}
	b.s.create("sleeper", resources)
	b.s.holdMemory("sleeper")
	sleeper := b.raw.prepare("", false)
	sleeper.start()
	sleeper.background("python3", "-c", holder)
	sleeper.run("sh", "-c", "until [ -s /tmp/state ]; do sleep 0.05; done")
	var resumes [3][]time.Duration
	resumed := func() time.Duration {
		began := time.Now()
		b.s.resumeAndRun(b.t, "sleeper")
		return time.Since(began)
	}
	interleave(pause, func(int) time.Duration {
		box, err := b.s.client.Boxes.GetBox(b.s.ctx(), connect.NewRequest(&carrelv1.GetBoxRequest{Id: "sleeper"}))
		require.NoError(b.t, err)
		run := box.Msg.GetRunId()
		require.NotEmpty(b.t, run)
		began := time.Now()
		b.s.pause("sleeper")
		took := time.Since(began)
		b.s.eventually("the former sandbox is gone", func() bool {
			_, err := os.Stat(filepath.Join(b.s.runDir, "runs", run))
			return errors.Is(err, os.ErrNotExist)
		})
		resumes[0] = append(resumes[0], resumed())
		b.s.pause("sleeper")
		resumes[2] = append(resumes[2], resumed())
		return took
	}, func(int) time.Duration {
		took, capture := sleeper.checkpoint()
		next := b.raw.prepare(capture, true)
		sleeper.destroy()
		began := time.Now()
		next.start()
		next.run(static...)
		resumes[1] = append(resumes[1], time.Since(began))
		sleeper = next
		return took
	})
	for i := range resumes[0] {
		resume.add(resumes[0][i], resumes[1][i])
		atOnce.add(resumes[2][i], resumes[1][i])
	}
	sleeper.destroy()
	b.s.remove("sleeper")
	b.report(pause)
	b.report(resume)
	b.report(atOnce)
}

// exec compares with runsc exec as it is, and with one that gives the program the environment that Carrel's commands have: of that
// depends what the program does (for LANG it reads a dozen files), and so what both sides measure.
func (b *bench) exec() {
	c := &comparison{name: "exec of a static binary, against `runsc exec`", aim: 0.7}
	same := &comparison{name: "the same, against `runsc exec` with the same environment", aim: 0.7}
	b.s.create("exec", resources)
	environment := strings.Split(strings.TrimSpace(b.s.exec("exec", "env").stdout), "\n")
	b.s.exec("exec", static...)
	target := b.raw.prepare("", false)
	target.start()
	target.run(static...)
	var times [3]time.Duration
	for i := range pairs {
		for j := range times {
			switch which := (i + j) % len(times); which {
			case 0:
				began := time.Now()
				require.Zero(b.t, b.s.exec("exec", static...).code)
				times[which] = time.Since(began)
			case 1:
				times[which] = target.runscExec(nil, static...)
			case 2:
				times[which] = target.runscExec(environment, static...)
			}
		}
		c.add(times[0], times[1])
		same.add(times[0], times[2])
	}
	target.destroy()
	b.s.remove("exec")
	b.report(c)
	b.report(same)
}

// memory measures at rest, when both were just used.
func (b *bench) memory() {
	c := &comparison{name: "memory of an idle box (PSS, MB instead of ms)", aim: 1.2}
	for i := range 5 {
		box := b.s.create(fmt.Sprintf("idle-%d", i), resources)
		b.s.exec(box.GetName(), static...)
		other := b.raw.prepare("", false)
		other.start()
		other.run(static...)
		ours, theirs := pss(b.t, box.GetRunId()), pss(b.t, other.id)
		c.carrel = append(c.carrel, ours)
		c.raw = append(c.raw, theirs)
		other.destroy()
		b.s.remove(box.GetName())
	}
	b.report(c)
}

// many creates twenty at once: the 99th percentile of twenty is the slowest.
func (b *bench) many() {
	defer smallBoxes()()
	c := &comparison{name: "the slowest of 20 created at once", aim: 1.5}
	for round := range crowds {
		ours := atOnce(b.t, func(i int) { b.s.createAndRun(b.t, fmt.Sprintf("many-%d-%d", round, i)) })
		for i := range 20 {
			b.s.remove(fmt.Sprintf("many-%d-%d", round, i))
		}
		boxes := make([]*rawBox, 20)
		for i := range boxes {
			boxes[i] = b.raw.prepare("", false)
		}
		theirs := atOnce(b.t, func(i int) {
			boxes[i].start()
			boxes[i].run(static...)
		})
		for _, box := range boxes {
			box.destroy()
		}
		c.add(ours, theirs)
	}
	b.report(c)
}

// smallBoxes lets twenty boxes have room beside the model, on a machine of two cores and in the pool, until what it
// answers is called.
func smallBoxes() (undo func()) {
	cpu, memory := benchResources.CpuMillis, benchResources.MemoryBytes
	benchResources.CpuMillis, benchResources.MemoryBytes = 280, 256<<20
	return func() { benchResources.CpuMillis, benchResources.MemoryBytes = cpu, memory }
}

func (b *bench) commits() {
	defer smallBoxes()()
	text := "Commits per operation: " + b.s.countCommits()
	b.rows = append(b.rows, "", text)
	b.t.Log(text)
}

func resources(r *carrelv1.CreateBoxRequest) { r.Resources = benchResources }

// createAndRun is what a program does that wants a box: ask, wait, run.
func (s *stack) createAndRun(t *testing.T, name string) {
	_, err := s.client.Boxes.CreateBox(s.ctx(), connect.NewRequest(&carrelv1.CreateBoxRequest{Name: name, Template: "tiny", Resources: benchResources}))
	require.NoError(t, err)
	s.waitAndRun(t, name)
}

func (s *stack) resumeAndRun(t *testing.T, name string) {
	_, err := s.client.Boxes.ResumeBox(s.ctx(), connect.NewRequest(&carrelv1.ResumeBoxRequest{Id: name}))
	require.NoError(t, err)
	s.waitAndRun(t, name)
}

func (s *stack) waitAndRun(t *testing.T, name string) {
	answer, err := s.client.Boxes.WaitBox(s.ctx(), connect.NewRequest(&carrelv1.WaitBoxRequest{Id: name, States: []carrelv1.State{running}, Timeout: durationpb.New(settleTime)}))
	require.NoError(t, err)
	require.Equal(t, running, answer.Msg.GetState(), "%v", answer.Msg.GetFailure())
	var out bytes.Buffer
	status, err := s.client.Exec(s.ctx(), client.ExecOptions{Box: name, Args: static, Streams: client.Streams{Stdout: &out}})
	require.NoError(t, err)
	require.Zero(t, status.Code)
	require.NotEmpty(t, out.Bytes())
}

func (s *stack) holdMemory(name string) {
	status, err := s.client.Exec(s.ctx(), client.ExecOptions{Box: name, Args: []string{"python3", "-c", holder}, Detach: true})
	require.NoError(s.t, err)
	require.NotEmpty(s.t, status.Process)
	s.progressOf(name)
}

// atOnce runs twenty of something and answers how long the slowest took.
func atOnce(t *testing.T, one func(i int)) time.Duration {
	var group errgroup.Group
	var mu sync.Mutex // guards slowest
	var slowest time.Duration
	began := time.Now()
	for i := range 20 {
		group.Go(func() error {
			one(i)
			mu.Lock()
			defer mu.Unlock()
			slowest = max(slowest, time.Since(began))
			return nil
		})
	}
	require.NoError(t, group.Wait())
	return slowest
}

// pss is what the processes of a sandbox keep in memory, in MB, shared pages divided among those that share them.
func pss(t *testing.T, run string) float64 {
	var total float64
	for _, pid := range sandboxProcesses(run) {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(data)) {
			if rest, ok := strings.CutPrefix(line, "Pss:"); ok {
				kb, err := strconv.ParseFloat(strings.Fields(rest)[0], 64)
				require.NoError(t, err)
				total += kb / 1024
			}
		}
	}
	require.NotZero(t, total)
	return total
}

// sandboxProcesses are the processes in a run's cgroup.
func sandboxProcesses(run string) []int {
	var pids []int
	for _, pattern := range []string{"/sys/fs/cgroup/memory/carrel*/" + run + "/cgroup.procs", "/sys/fs/cgroup/carrel*/" + run + "/cgroup.procs", "/sys/fs/cgroup/memory/carrel*/*/" + run + "/cgroup.procs"} {
		files, _ := filepath.Glob(pattern)
		for _, file := range files {
			data, _ := os.ReadFile(file)
			for field := range strings.FieldsSeq(string(data)) {
				pid, _ := strconv.Atoi(field)
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

var commitMetric = regexp.MustCompile(`(?m)^carrel_store_commits_total\{.*?\} (\S+)$`)

// commits adds up the commits of control and reconcile so far.
func (s *stack) commits() float64 {
	var total float64
	for _, role := range []string{"control", "reconcile"} {
		socket := filepath.Join(s.data, "ops", role, "ops.sock")
		c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		}}}
		response, err := c.Get("http://ops/metrics")
		require.NoError(s.t, err)
		body, err := io.ReadAll(response.Body)
		response.Body.Close()
		require.NoError(s.t, err)
		matches := commitMetric.FindAllStringSubmatch(string(body), -1)
		require.NotEmpty(s.t, matches, "no commits in the metrics of %s", role)
		for _, match := range matches {
			n, err := strconv.ParseFloat(match[1], 64)
			require.NoError(s.t, err)
			total += n
		}
	}
	return total
}

// countCommits counts what create, pause, resume, stop and delete cost, less what the platform commits at rest in the same time.
func (s *stack) countCommits() string {
	const rounds = 10
	began, before := time.Now(), s.commits()
	<-time.After(5 * time.Second) // the measured quantity is the rate at rest
	rest := (s.commits() - before) / time.Since(began).Seconds()
	var parts []string
	measure := func(name string, action func(i int)) {
		began, before := time.Now(), s.commits()
		for i := range rounds {
			action(i)
		}
		s.eventually("the last reports have arrived", func() bool { return true })
		n := (s.commits() - before - rest*time.Since(began).Seconds()) / rounds
		parts = append(parts, fmt.Sprintf("%s %.1f", name, n))
	}
	box := func(i int) string { return fmt.Sprintf("commits-%d", i) }
	measure("create", func(i int) { s.create(box(i), resources) })
	measure("pause", func(i int) { s.pause(box(i)) })
	measure("resume", func(i int) { s.resume(box(i)) })
	measure("stop", func(i int) { s.stopBox(box(i)) })
	measure("start", func(i int) { s.startBox(box(i)) })
	measure("delete", func(i int) { s.remove(box(i)) })
	return strings.Join(parts, ", ") + fmt.Sprintf(" (at rest %.2f a second)", rest)
}

// hashAndSync is what durability costs anybody: every byte written is hashed and every file synced.
func hashAndSync(t testing.TB, dir string) {
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	for _, entry := range entries {
		f, err := os.Open(filepath.Join(dir, entry.Name()))
		require.NoError(t, err)
		h := sha256.New()
		_, err = io.Copy(h, f)
		require.NoError(t, err)
		require.NoError(t, unix.Fdatasync(int(f.Fd())))
		require.NoError(t, f.Close())
	}
}
