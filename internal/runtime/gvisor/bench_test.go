package gvisor

import (
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"carrel.dev/carrel/internal/runtime"
	"carrel.dev/carrel/internal/runtime/runtimetest/probe"
)

// BenchmarkAgainstRunsc times every method next to the bare runsc command that it stands on, in turns, with a process
// of 256 MB: the same bundle, flags, home, network and cgroups. It reports medians in milliseconds.
func BenchmarkAgainstRunsc(b *testing.B) {
	h := newHarness(b)
	rt, ctx := h.open(b), context.Background()
	times := map[string][]float64{}
	note := func(name string, begin time.Time) {
		times[name] = append(times[name], float64(time.Since(begin).Microseconds())/1000)
	}
	ask := func(spec runtime.Spec, op string, n int64) {
		_, err := probe.Ask(ctx, func(ctx context.Context) (net.Conn, error) { return rt.Dial(ctx, spec.Run) }, probe.Request{Op: op, N: n})
		require.NoError(b, err)
	}
	runsc := func(spec runtime.Spec, args ...string) {
		out, err := exec.Command(h.cfg.Runsc, append(append(rt.globalArgs(spec.Run), args...), spec.Run)...).CombinedOutput()
		require.NoError(b, err, "%s", out)
	}
	raw := func(spec runtime.Spec, name string) {
		begin := time.Now()
		p, err := rt.Prepare(ctx, spec)
		require.NoError(b, err)
		note("prepare-"+name, begin)
		begin = time.Now()
		require.NoError(b, p.Run(ctx))
		note("raw-"+name, begin)
		p.Close()
		require.NoError(b, rt.markStarted(spec.Run))
		ask(spec, "nonce", 0)
		note("raw-"+name+"-answer", begin)
	}
	ours := func(spec runtime.Spec, name string) {
		begin := time.Now()
		require.NoError(b, rt.Start(ctx, spec))
		note(name, begin)
		ask(spec, "nonce", 0)
		note(name+"-answer", begin)
	}
	destroy := func(spec runtime.Spec) {
		begin := time.Now()
		require.NoError(b, rt.Destroy(ctx, spec.Run))
		note("destroy", begin)
		h.renew(b, spec)
	}
	spec := h.spec(b)
	spec.Limits.Memory, spec.Limits.Headroom = 512<<20, 256<<20
	home := filepath.Join(b.TempDir(), "home")
	next := func() runtime.Spec {
		spec.Run = string([]byte("r")) + spec.Run[1:19] + string("abcdefghijklmnopqrstuvwxyz"[time.Now().UnixNano()%26])
		run(b, "cp --sparse=always "+home+" "+spec.Home)
		return spec
	}
	run(b, "cp --sparse=always "+spec.Home+" "+home)
	for range b.N {
		raw(next(), "start")
		destroy(spec)
		ours(next(), "start")
		ask(spec, "hog", 256<<20)
		begin := time.Now()
		require.NoError(b, rt.Freeze(ctx, spec.Run))
		note("freeze", begin)
		dir := b.TempDir()
		begin = time.Now()
		runsc(spec, "checkpoint", "-leave-running", "-image-path="+filepath.Join(dir, "raw"))
		note("raw-save", begin)
		require.NoError(b, os.RemoveAll(filepath.Join(dir, "raw")))
		begin = time.Now()
		require.NoError(b, rt.Save(ctx, spec.Run, dir, runtime.SaveOptions{Memory: true}))
		note("save", begin)
		run(b, "cp --sparse=always "+spec.Home+" "+home)
		begin = time.Now()
		require.NoError(b, rt.Thaw(ctx, spec.Run))
		note("thaw", begin)
		destroy(spec)
		spec.From, spec.WithMemory = dir, true
		raw(next(), "restore")
		destroy(spec)
		ours(next(), "restore")
		destroy(spec)
		spec.From, spec.WithMemory = "", false
		require.NoError(b, os.RemoveAll(dir))
	}
	b.ReportMetric(0, "ns/op")
	for name, all := range times {
		slices.Sort(all)
		b.ReportMetric(all[len(all)/2], name+"-ms")
	}
}
