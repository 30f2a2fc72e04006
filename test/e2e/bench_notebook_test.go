//go:build bench

package e2e

import (
	"fmt"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
)

const notebookRounds = 8

// importing is the first cell on every side: imports that a prepared kernel has done, and an output.
const importing = "import numpy, pandas, matplotlib.pyplot\nprint(numpy.arange(4).sum())"

// TestBenchNotebook measures from the request for a box to the first output of its notebook's kernel: cloned from the prebuild, and taken from a
// warm pool of one, each against a box of the same image and size without a prebuild, in which the kernel is started and imports the same libraries.
// Interleaved: each round has all three, in turns.
func TestBenchNotebook(t *testing.T) {
	s := newStack(t, options{images: "python", pool: notebookPool})
	s.push("name: cold\n" + smallNotebook)
	made := s.awaitPrebuild(s.push(s.likePython("cloned")))
	s.awaitPrebuild(s.push(s.likePython("pooled")))
	pool := func(n int32) {
		_, err := s.client.Templates.UpdateTemplatePool(s.ctx(), connect.NewRequest(&carrelv1.UpdateTemplatePoolRequest{Name: "pooled", Size: n}))
		require.NoError(t, err)
	}
	round := 0
	first := func(template, from string) time.Duration {
		t.Helper()
		round++
		name := fmt.Sprint("bench-", round)
		began := time.Now()
		box := s.create(name, warm(template))
		ran := time.Now()
		require.Equal(t, "6", s.python(name, importing))
		took := time.Since(began)
		require.Equal(t, from, box.GetStartedFrom(), box.GetNotice())
		t.Logf("%-8s runs after %4d ms, first output after %4d ms", template, ran.Sub(began).Milliseconds(), took.Milliseconds())
		s.remove(name)
		return took
	}
	taken := func() time.Duration {
		pool(1)
		s.eventually("a box waits", func() bool {
			got, err := s.client.Templates.GetTemplate(s.ctx(), connect.NewRequest(&carrelv1.GetTemplateRequest{Name: "pooled"}))
			return err == nil && got.Msg.GetPoolReady() == 1
		})
		defer pool(0) // before it is filled again
		return first("pooled", "pool")
	}
	clone, pools := comparison{name: "create → first output of a notebook, cloned from the prebuild", aim: 0.35}, comparison{name: "the same, taken from a warm pool", aim: 0.10}
	first("cold", "fresh") // what is read once
	for i := range notebookRounds {
		var cold, cloned, warm time.Duration
		sides := []func(){
			func() { cold = first("cold", "fresh") },
			func() { cloned = first("cloned", "prebuild") },
			func() { warm = taken() },
		}
		for n := range sides {
			sides[(i+n)%len(sides)]()
		}
		clone.add(cloned, cold)
		pools.add(warm, cold)
	}
	t.Logf("a prebuild of %d MB, made in %s", made.GetSizeBytes()>>20, made.GetBuildTime().AsDuration())
	fmt.Printf("\n| what | Carrel ms | cold boot, kernel start, imports, ms | ratio | aim |\n| --- | --- | --- | --- | --- |\n%s\n%s\n", clone.row(), pools.row())
}
