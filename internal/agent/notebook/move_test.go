package notebook_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/agent/kernel/kerneltest"
	"carrel.dev/carrel/internal/carrel"
)

// asking makes a notebook and executes a cell of it that has shown something, waits for an answer, and shows more then.
func (b *box) asking(path string) (w *watcher, id string) {
	b.t.Helper()
	b.create(path, insertCode("one", "", "x = 41\nprint('before', flush=True)\ninput()\nprint('after')"), insertCode("two", "one", "x + 1"))
	w = b.watch(&carrelv1.WatchNotebooksRequest{After: "0"})
	id = b.start(&carrelv1.ExecuteRequest{Path: path, Cells: []string{"one"}, AllowInput: true})[0].GetId()
	w.questions(1)
	b.saved(path, has(`"before\n"`))
	return w, id
}

// follows checks that all of the notebook of asking is at another path now, and nothing at the one before.
func (b *box) follows(w *watcher, id, before, now string) {
	b.t.Helper()
	require.NoError(b.t, b.AnswerInput(limited(b.t), &carrelv1.AnswerInputRequest{Execution: id}))
	b.ended(w, id)
	b.saved(now, has(`"before\n"`, `"after\n"`))
	got, err := b.GetExecution(limited(b.t), &carrelv1.GetExecutionRequest{Execution: id})
	require.NoError(b.t, err)
	require.Equal(b.t, filepath.Join(b.home, now), got.GetPath())
	w.until("that it is gone", func(e *carrelv1.NotebookEvent) bool {
		return e.GetPath() == filepath.Join(b.home, before) && e.GetReloaded().GetRemoved()
	})
	b.run(now, "two")
	b.saved(now, has(`"42"`)) // in the same kernel
	_, err = b.GetNotebook(limited(b.t), &carrelv1.GetNotebookRequest{Path: before})
	require.Equal(b.t, "file_not_found", carrel.ReasonOf(err))
	require.NoError(b.t, b.Flush(limited(b.t)))
	require.NoFileExists(b.t, filepath.Join(b.home, before))
}

// moveFile renames through the service, as the box's file API and Jupyter's do.
func (b *box) moveFile(from, to string) error {
	from, to = filepath.Join(b.home, from), filepath.Join(b.home, to)
	return b.Move(from, to, func() error { return kerneltest.AsUser(func() error { return os.Rename(from, to) }) })
}

// TestOutputsFollowANotebookThatIsRenamed promises that what runs goes on in the notebook under its new name, whichever way it got that.
func TestOutputsFollowANotebookThatIsRenamed(t *testing.T) {
	b := newBox(t)
	rename := func(from, to string) {
		require.NoError(t, os.Rename(filepath.Join(b.home, from), filepath.Join(b.home, to)))
	}
	mkdir := func(name string) {
		require.NoError(t, kerneltest.AsUser(func() error { return os.Mkdir(filepath.Join(b.home, name), 0o755) }))
	}

	w, id := b.asking("a.ipynb")
	require.NoError(t, b.moveFile("a.ipynb", "b.ipynb"))
	b.follows(w, id, "a.ipynb", "b.ipynb")

	mkdir("work")
	w, id = b.asking("work/a.ipynb")
	require.NoError(t, b.moveFile("work", "play"))
	b.follows(w, id, "work/a.ipynb", "play/a.ipynb")

	w, id = b.asking("c.ipynb")
	rename("c.ipynb", "d.ipynb") // by mv
	b.follows(w, id, "c.ipynb", "d.ipynb")

	w, id = b.asking("e.ipynb")
	rename("e.ipynb", "play/e.ipynb")
	b.follows(w, id, "e.ipynb", "play/e.ipynb")

	w, id = b.asking("play/f.ipynb")
	rename("play", "plays")
	b.follows(w, id, "play/f.ipynb", "plays/f.ipynb")
}

// TestWhatIsRenamedInVainStays promises that a move that fails changes nothing, and that one onto an open notebook leaves that one's outputs in the journal.
func TestWhatIsRenamedInVainStays(t *testing.T) {
	b := newBox(t)
	w, id := b.asking("a.ipynb")
	require.Error(t, b.moveFile("a.ipynb", "none/b.ipynb"))
	b.create("b.ipynb", insertCode("other", "", "1"))
	require.NoError(t, b.moveFile("b.ipynb", "a.ipynb"))
	require.Equal(t, "other", b.cells("a.ipynb")[0]["id"])
	require.NoError(t, b.AnswerInput(limited(t), &carrelv1.AnswerInputRequest{Execution: id}))
	require.Contains(t, textOf(b.ended(w, id)), "after")
	require.NoError(t, b.Flush(limited(t)))
	b.saved("a.ipynb", func(text string) bool { return has(`"other"`)(text) && !has("after")(text) })

	// One that goes where nobody finds it is said to be gone.
	w, id = b.asking("c.ipynb")
	away := kerneltest.Dir(t)
	require.NoError(t, os.Rename(filepath.Join(b.home, "c.ipynb"), filepath.Join(away, "c.ipynb")))
	w.until("that it is gone", func(e *carrelv1.NotebookEvent) bool { return e.GetReloaded().GetRemoved() })
	require.NoError(t, b.AnswerInput(limited(t), &carrelv1.AnswerInputRequest{Execution: id}))
	require.Contains(t, textOf(b.ended(w, id)), "after")
	require.NoFileExists(t, filepath.Join(b.home, "c.ipynb"))
	require.NoError(t, os.Rename(filepath.Join(away, "c.ipynb"), filepath.Join(b.home, "c.ipynb")))
	b.get("c.ipynb")
	b.saved("c.ipynb", has(`"after\n"`))
}

// TestANotebookIsOneDocumentWhicheverPathLeadsToIt promises that links to a notebook, or to its directory, are the notebook: one kernel, one sequence of events, nothing merged.
func TestANotebookIsOneDocumentWhicheverPathLeadsToIt(t *testing.T) {
	b := newBox(t)
	require.NoError(t, kerneltest.AsUser(func() error { return os.Mkdir(filepath.Join(b.home, "work"), 0o755) }))
	require.NoError(t, os.Symlink("work", filepath.Join(b.home, "dir")))
	require.NoError(t, os.Symlink("dir/a.ipynb", filepath.Join(b.home, "link.ipynb")))
	b.create("dir/a.ipynb", insertCode("one", "", "x = 41\nx"))
	w := b.watch(&carrelv1.WatchNotebooksRequest{After: "0", Path: "link.ipynb"})
	first := b.run("link.ipynb", "one")[0]
	require.Equal(t, filepath.Join(b.home, "work/a.ipynb"), first.GetPath())
	b.edit("dir/a.ipynb", setSource("one", "x + 1", nil))
	b.edit("link.ipynb", insertCode("two", "one", "# last"))
	second := b.run("work/a.ipynb", "one")[0]
	require.Equal(t, first.GetKernel(), second.GetKernel())
	b.ended(w, second.GetId())
	notebooks := []*carrelv1.Notebook{b.get("link.ipynb"), b.get("dir/a.ipynb"), b.get("work/a.ipynb")}
	for _, one := range notebooks {
		require.Equal(t, notebooks[0].GetPath(), one.GetPath())
		require.Equal(t, notebooks[0].GetRevision(), one.GetRevision())
	}
	b.saved("work/a.ipynb", has(`"42"`, "# last"))
	w.mu.Lock()
	for _, event := range w.events {
		require.Nil(t, event.GetReloaded(), "nobody else has written it")
	}
	w.mu.Unlock()
	info, err := os.Lstat(filepath.Join(b.home, "link.ipynb"))
	require.NoError(t, err)
	require.Equal(t, os.ModeSymlink, info.Mode().Type())

	// A link that leads elsewhere from now on is the other notebook, and renaming one does nothing to what it leads to.
	b.create("other.ipynb", insertCode("else", "", "1"))
	require.NoError(t, b.moveFile("link.ipynb", "renamed.ipynb"))
	require.Equal(t, "one", b.cells("renamed.ipynb")[0]["id"])
	require.NoError(t, os.Remove(filepath.Join(b.home, "renamed.ipynb")))
	require.NoError(t, os.Symlink("other.ipynb", filepath.Join(b.home, "renamed.ipynb")))
	require.Equal(t, "else", b.cells("renamed.ipynb")[0]["id"])
	require.NoError(t, b.moveFile("dir/a.ipynb", "dir/b.ipynb"))
	require.Equal(t, second.GetKernel(), b.get("work/b.ipynb").GetKernel().GetId())
	for _, loop := range []string{"x", "y"} {
		require.NoError(t, os.Symlink(map[string]string{"x": "y", "y": "x"}[loop], filepath.Join(b.home, loop)))
	}
	_, err = b.GetNotebook(limited(t), &carrelv1.GetNotebookRequest{Path: "x"})
	require.Error(t, err)
}
