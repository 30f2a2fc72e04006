package notebook_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/carrel"
)

// failed makes the home what it is after a failure of the box now, while the file of its notebook a.ipynb cannot be written: what is in the journal is on the disk, and nothing
// else. The file can be written then. It gives a copy of that.
func (b *box) failed() string {
	b.t.Helper()
	require.Error(b.t, b.Flush(limited(b.t)), "the file is not to be written")
	kept := copyHome(b.t, b.home)
	require.NoError(b.t, os.Chmod(filepath.Join(kept, "a.ipynb"), 0o640))
	b.close()
	b.again(kept)
	return kept
}

// again makes a home, which nobody uses, what kept is.
func (b *box) again(kept string) {
	b.t.Helper()
	out, err := exec.Command("sh", "-c", `rm -rf "$1"/* "$1"/.[a-z]* && cp -a "$2"/. "$1"`, "sh", b.home, kept).CombinedOutput()
	require.NoError(b.t, err, "%s", out)
}

// freeze keeps the file of a notebook from being written from now on.
func (b *box) freeze(name string) {
	b.t.Helper()
	require.NoError(b.t, b.Flush(limited(b.t)))
	require.NoError(b.t, os.Chmod(filepath.Join(b.home, name), 0o440))
}

// questions waits until a number of questions were asked.
func (w *watcher) questions(count int) {
	w.t.Helper()
	w.until("a question", func(e *carrelv1.NotebookEvent) bool {
		if e.GetQuestion() != nil {
			count--
		}
		return count == 0
	})
}

const story = `from IPython.display import display, HTML
print('one', flush=True)
h = display(HTML('<b>old</b>'), display_id='d')
input()
print('two', flush=True)
h.update(HTML('<b>new</b>'))
display({'n': 3, 'f': 0.5})
input()`

// TestWhatAFailedBoxDidNotWriteIsWritten promises that outputs that were told are in the notebook in the box's next life: those of what was lost with the box, and those of
// what had ended, also when the next life fails before it has written them, and once.
func TestWhatAFailedBoxDidNotWriteIsWritten(t *testing.T) {
	b := newBox(t)
	b.create("a.ipynb", insertCode("one", "", story), insertCode("two", "one", "print('of the first time')\n7"))
	b.run("a.ipynb", "two")
	w := b.watch(&carrelv1.WatchNotebooksRequest{After: "0"})
	id := b.start(&carrelv1.ExecuteRequest{Path: "a.ipynb", Cells: []string{"one"}, AllowInput: true})[0].GetId()
	w.questions(1)
	b.freeze("a.ipynb")
	require.NoError(t, b.AnswerInput(limited(t), &carrelv1.AnswerInputRequest{Execution: id}))
	w.questions(2)
	require.NoError(t, b.AnswerInput(limited(t), &carrelv1.AnswerInputRequest{Execution: id}))
	b.ended(w, id)
	b.edit("a.ipynb", setSource("two", "print('again', flush=True)\ninput()", proto.String("print('of the first time')\n7")), insertCode("three", "two", "# new"))
	id = b.start(&carrelv1.ExecuteRequest{Path: "a.ipynb", Cells: []string{"two"}, AllowInput: true})[0].GetId()
	w.questions(3)
	w.until("the output, which may come after the question", func(e *carrelv1.NotebookEvent) bool {
		return e.GetExecution() == id && e.GetOutput().AsMap()["text"] == "again\n"
	})
	want := b.cells("a.ipynb")
	b.failed()
	text, err := os.ReadFile(filepath.Join(b.home, "a.ipynb"))
	require.NoError(t, err)
	require.NotContains(t, string(text), "again", "the test is about what is not written")
	require.NotContains(t, string(text), "two\\n\"")

	require.NoError(t, os.Chmod(filepath.Join(b.home, "a.ipynb"), 0o440))
	second := openBox(t, b.home)
	second.Recover()
	require.Equal(t, withoutDisplays(want), withoutDisplays(second.cells("a.ipynb")))
	second.failed()
	third := openBox(t, b.home)
	third.Recover()
	text2 := third.saved("a.ipynb", has(`"again\n"`, `"two\n"`, "<b>new</b>", "# new"))
	require.Equal(t, 1, strings.Count(text2, `"two\n"`))
	require.NotContains(t, text2, `"<b>old`)
	require.NotContains(t, text2, `"of the first time\n"`)
	require.Contains(t, text2, "print('again'")
	require.Equal(t, withoutDisplays(want), withoutDisplays(third.cells("a.ipynb")))
	require.NotEmpty(t, third.get("a.ipynb").GetRepairs(), "people are told")
	got, err := third.GetExecution(limited(t), &carrelv1.GetExecutionRequest{Execution: id})
	require.NoError(t, err)
	require.Equal(t, stateLost, got.GetState())

	// A box that ends in order leaves nothing to be done.
	third.close()
	require.NoError(t, os.Chmod(filepath.Join(third.home, "a.ipynb"), 0o640))
	fourth := openBox(t, third.home)
	fourth.Recover()
	require.Empty(t, fourth.get("a.ipynb").GetRepairs())
	require.Equal(t, withoutDisplays(want), withoutDisplays(fourth.cells("a.ipynb")))
}

// withoutDisplays gives cells without what is in no file.
func withoutDisplays(cells []map[string]any) []map[string]any {
	for _, one := range cells {
		outputs, _ := one["outputs"].([]any)
		for _, output := range outputs {
			delete(output.(map[string]any), "transient")
		}
	}
	return cells
}

// TestRecoveryLeavesAloneWhatSomebodyElseChanged promises that outputs are put into a file that was changed meanwhile only where they belong.
func TestRecoveryLeavesAloneWhatSomebodyElseChanged(t *testing.T) {
	const code = "print('before', flush=True)\ninput()\nprint('after')"
	b := newBox(t)
	b.create("a.ipynb", insertCode("one", "", code), insertCode("two", "one", "words"), insertCode("three", "two", "more"))
	w := b.watch(&carrelv1.WatchNotebooksRequest{After: "0"})
	id := b.start(&carrelv1.ExecuteRequest{Path: "a.ipynb", Cells: []string{"one"}, AllowInput: true})[0].GetId()
	w.questions(1)
	b.saved("a.ipynb", has(`"before\n"`))
	b.freeze("a.ipynb")
	require.NoError(t, b.AnswerInput(limited(t), &carrelv1.AnswerInputRequest{Execution: id}))
	b.ended(w, id)
	b.edit("a.ipynb", setSource("two", "ours", proto.String("words")), insertCode("four", "two", "also ours"))
	kept := b.failed()

	// next is the box's next life, in which somebody was faster.
	var n *box
	next := func(change func(text string) string) *box {
		t.Helper()
		if n != nil {
			n.close()
		}
		b.again(kept)
		n := openBox(t, b.home)
		text, err := os.ReadFile(filepath.Join(n.home, "a.ipynb"))
		require.NoError(t, err)
		changed := change(string(text))
		require.NotEqual(t, string(text), changed)
		n.put("a.ipynb", changed)
		n.Recover()
		return n
	}
	replace := func(old, now string) func(string) string {
		return func(text string) string { return strings.Replace(text, old, now, 1) }
	}

	n = next(replace(`"more"`, `"theirs"`))
	text := n.saved("a.ipynb", has(`"after\n"`))
	require.True(t, has(`"theirs"`, `"ours"`, `"also ours"`)(text), text)

	n = next(replace(`"words"`, `"their words"`))
	n.saved("a.ipynb", has(`"after\n"`, `"their words"`, `"ours"`))

	n = next(replace(`print('before'`, `print('else'`))
	text = n.saved("a.ipynb", has(`"ours"`))
	require.NotContains(t, text, `"after\n"`, "it is not what this cell puts out")
	require.Contains(t, text, "print('else'")
	require.Contains(t, strings.Join(n.get("a.ipynb").GetRepairs(), "\n"), "journal alone")

	n = next(replace(`"before\n"`, `"something else\n"`))
	text = n.saved("a.ipynb", has(`"ours"`))
	require.NotContains(t, text, `"after\n"`, "somebody else has executed it since")

	n = next(func(text string) string {
		at := strings.Index(text, "\"cell_type\": \"code\",\n   \"execution_count\": null,\n   \"id\": \"two\"")
		require.Positive(t, at)
		start, first := strings.LastIndex(text[:at], "{"), strings.Index(text, "{\n   \"cell_type\"")
		return text[:first] + text[start:]
	})
	text = n.saved("a.ipynb", has(`"ours"`))
	require.NotContains(t, text, `"after\n"`, "a cell that was removed stays away")
	require.NotContains(t, text, `"id": "one"`)
	n.close()

	// A file that is nobody's notebook any more is not touched, nor is one that is gone made again.
	b.again(kept)
	n = openBox(t, b.home)
	n.put("a.ipynb", "something else")
	n.Recover()
	_, err := n.GetNotebook(limited(t), &carrelv1.GetNotebookRequest{Path: "a.ipynb"})
	require.Equal(t, "bad_notebook", carrel.ReasonOf(err))
	n.close()
	data, err := os.ReadFile(filepath.Join(n.home, "a.ipynb"))
	require.NoError(t, err)
	require.Equal(t, "something else", string(data))
	b.again(kept)
	n = openBox(t, b.home)
	away := filepath.Join(n.home, "away")
	require.NoError(t, os.Rename(filepath.Join(n.home, "a.ipynb"), away))
	n.Recover()
	_, err = n.GetNotebook(limited(t), &carrelv1.GetNotebookRequest{Path: "a.ipynb"})
	require.Equal(t, "file_not_found", carrel.ReasonOf(err))
	n.close()
	_, err = os.Stat(filepath.Join(n.home, "a.ipynb"))
	require.ErrorIs(t, err, os.ErrNotExist)
	// It is recognized when it is there again, in whichever life.
	n = openBox(t, n.home)
	n.execute(&carrelv1.ExecuteRequest{Code: "1"})
	require.NoError(t, os.Rename(away, filepath.Join(n.home, "a.ipynb")))
	n.get("a.ipynb")
	n.saved("a.ipynb", has(`"after\n"`, `"ours"`))
}
