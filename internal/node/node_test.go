package node_test

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/failpoint"
)

func TestLifeOfABox(t *testing.T) {
	if testing.Short() {
		return // the pool needs root
	}
	w := newWorld(t, "")
	life(t, w)
	w.nothingLeft()
}

// life takes one box through everything, and checks what it remembers at every stage.
func life(t *testing.T, w *world) {
	t.Helper()
	b := w.newBox()
	b.prebuild = string(carrel.NewSnapshotID()) // which is not there
	b.start()
	require.Contains(t, b.last().GetNotice(), "started afresh")
	b.handOver("somebodys")
	require.Equal(t, "pool", b.last().GetStartedFrom())
	b.write("/home/carrel/a", "1")
	b.write("/etc/a", "1")
	b.remember("alive")

	b.pause()
	b.start()
	require.Equal(t, "memory", b.last().GetStartedFrom())
	require.Equal(t, "alive", b.memory(), "what was in memory is lost")
	require.Equal(t, "1", b.read("/home/carrel/a"))
	b.write("/home/carrel/a", "2")
	b.write("/etc/a", "2")

	w.control.with(func() { w.control.refuse = "not_today" })
	b.pause() // again, after the refusal
	b.start()
	require.Equal(t, "alive", b.memory())
	require.Equal(t, "2", b.read("/home/carrel/a"))

	b.stop()
	b.start()
	require.Equal(t, "disk", b.last().GetStartedFrom())
	require.Empty(t, b.memory(), "a stop keeps no memory")
	require.Equal(t, "2", b.read("/home/carrel/a"))
	require.Equal(t, "2", b.read("/etc/a"))
	b.write("/home/carrel/a", "3")
	b.write("/etc/a", "3")

	r := b.crash("memory")
	require.Equal(t, "out_of_memory", r.GetReason())
	require.True(t, r.GetTransient())
	b.start()
	require.Equal(t, "3", b.read("/home/carrel/a"), "the files of a box that crashed are lost")
	require.Equal(t, "2", b.read("/etc/a"), "the root is that of the last snapshot")
	require.Contains(t, b.last().GetNotice(), "had died")
	b.pause()
	b.start()
	b.delete()
}

// failpoints finds the name of every step in the source of the daemon.
func failpoints(t *testing.T) []string {
	t.Helper()
	var names []string
	for _, dir := range []string{".", "disk"} {
		files, err := filepath.Glob(filepath.Join(dir, "*.go"))
		require.NoError(t, err)
		for _, f := range files {
			if strings.HasSuffix(f, "_test.go") {
				continue
			}
			data, err := os.ReadFile(f)
			require.NoError(t, err)
			for _, m := range regexp.MustCompile(`failpoint\.Hit\("([^"]+)"\)`).FindAllSubmatch(data, -1) {
				names = append(names, string(m[1]))
			}
		}
	}
	slices.Sort(names)
	require.Equal(t, slices.Compact(slices.Clone(names)), names, "two steps have the same name")
	require.Greater(t, len(names), 25)
	return names
}

// TestEveryStepFailedKilledAndRepeated lets each step of the daemon fail once, ends the daemon there, and has it done
// again and again, while a box goes through its whole life.
func TestEveryStepFailedKilledAndRepeated(t *testing.T) {
	if testing.Short() {
		return
	}
	// A step that is only done after a kill elsewhere.
	needed := map[string]string{"node/undo/taken-back": "node/snapshot/dead=kill"}
	for _, name := range failpoints(t) {
		for _, action := range []string{failpoint.ActionError, failpoint.ActionKill, failpoint.ActionRepeat} {
			t.Run(name+"="+action, func(t *testing.T) {
				t.Parallel()
				w := newWorld(t, strings.TrimPrefix(needed[name]+","+name+"="+action, ","))
				life(t, w)
				w.nothingLeft()
				left, err := w.failpoints.Armed(name)
				require.NoError(t, err)
				require.Empty(t, left, "the step was not reached as often as it should")
			})
		}
	}
}

func TestBoxesOutliveTheDaemon(t *testing.T) {
	if testing.Short() {
		return
	}
	w := newWorld(t, "")
	b := w.newBox()
	b.start()
	b.remember("alive")
	for i, s := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		w.stop(s)
		w.start()
		require.Equal(t, "alive", b.memory())
		text := fmt.Sprint(i)
		b.write("/home/carrel/a", text)
		require.Equal(t, text, b.read("/home/carrel/a"))
	}
	require.Equal(t, "running", b.last().GetPhase())
	b.pause()
	b.start()
	require.Equal(t, "alive", b.memory())
	b.delete()
	w.nothingLeft()
}
