package notebook_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/agent/kernel/kerneltest"
	"carrel.dev/carrel/internal/carrel"
)

// put writes a file into the home as the user, in one step.
func (b *box) put(name, text string) string {
	b.t.Helper()
	path := filepath.Join(b.home, name)
	require.NoError(b.t, kerneltest.AsUser(func() error {
		if err := os.WriteFile(path+".new", []byte(text), 0o640); err != nil {
			return err
		}
		return os.Rename(path+".new", path)
	}))
	return path
}

func (b *box) get(path string) *carrelv1.Notebook {
	b.t.Helper()
	got, err := b.GetNotebook(limited(b.t), &carrelv1.GetNotebookRequest{Path: path})
	require.NoError(b.t, err)
	return got
}

// cells gives the cells of a notebook as it is shown.
func (b *box) cells(path string) (cells []map[string]any) {
	b.t.Helper()
	for _, one := range b.get(path).GetContent().AsMap()["cells"].([]any) {
		cells = append(cells, one.(map[string]any))
	}
	return cells
}

func (b *box) edit(path string, edits ...*carrelv1.NotebookEdit) *carrelv1.EditNotebookResponse {
	b.t.Helper()
	got, err := b.EditNotebook(limited(b.t), &carrelv1.EditNotebookRequest{Path: path, Edits: edits}, "alice")
	require.NoError(b.t, err)
	return got
}

// create makes a notebook with cells of code.
func (b *box) create(path string, cells ...*carrelv1.NotebookEdit) {
	b.t.Helper()
	_, err := b.EditNotebook(limited(b.t), &carrelv1.EditNotebookRequest{Path: path, Create: true, Edits: cells}, "alice")
	require.NoError(b.t, err)
}

func insertCode(id, after, source string) *carrelv1.NotebookEdit {
	fields, err := structpb.NewStruct(map[string]any{"id": id, "cell_type": "code", "source": source, "metadata": map[string]any{}, "outputs": []any{}})
	if err != nil {
		panic(err)
	}
	return &carrelv1.NotebookEdit{Edit: &carrelv1.NotebookEdit_Insert{Insert: &carrelv1.InsertCell{After: after, Cell: fields}}}
}

func setSource(id, source string, expected *string) *carrelv1.NotebookEdit {
	return &carrelv1.NotebookEdit{Edit: &carrelv1.NotebookEdit_Source{Source: &carrelv1.SetCellSource{Cell: id, Source: source, Expected: expected}}}
}

func clearOutputs(id string) *carrelv1.NotebookEdit {
	return &carrelv1.NotebookEdit{Edit: &carrelv1.NotebookEdit_ClearOutputs{ClearOutputs: id}}
}

// saved waits until the file of a notebook is as wanted and gives it.
func (b *box) saved(path string, wanted func(text string) bool) string {
	b.t.Helper()
	text, done := "", false
	defer func() {
		if !done {
			b.t.Log(path, "has", text)
		}
	}()
	require.Eventually(b.t, func() bool {
		data, _ := os.ReadFile(filepath.Join(b.home, path))
		text = string(data)
		return wanted(text)
	}, patience, 10*time.Millisecond, "%s has not what it should", path)
	done = true
	return text
}

func has(parts ...string) func(string) bool {
	return func(text string) bool {
		for _, part := range parts {
			if !strings.Contains(text, part) {
				return false
			}
		}
		return true
	}
}

func (b *box) run(path string, cells ...string) []*carrelv1.Execution {
	b.t.Helper()
	response, err := b.Execute(limited(b.t), &carrelv1.ExecuteRequest{Path: path, Cells: cells, Wait: durationpb.New(patience)}, "alice")
	require.NoError(b.t, err)
	require.True(b.t, response.GetDone())
	return response.GetExecutions()
}

func TestCellsAreExecutedAndSaved(t *testing.T) {
	b := newBox(t)
	b.create("a.ipynb", insertCode("two", "", "x + 1"), insertCode("one", "", "x = 41\nprint('é')"))
	response, err := b.Execute(limited(t), &carrelv1.ExecuteRequest{Path: "a.ipynb", All: true, Wait: durationpb.New(patience)}, "alice")
	require.NoError(t, err)
	require.Len(t, response.GetExecutions(), 2)
	require.Equal(t, "alice", response.GetExecutions()[0].GetStartedBy())
	text := b.saved("a.ipynb", has(`"42"`, `"execution_count": 2`))
	require.Contains(t, text, `"name": "python3"`)
	require.True(t, strings.HasSuffix(text, "}\n"))

	shown := b.get("a.ipynb")
	require.NotNil(t, shown.GetKernel())
	require.Empty(t, shown.GetUnsaved())
	cells := b.cells("a.ipynb")
	require.Equal(t, "one", cells[0]["id"])
	require.Equal(t, "x = 41\nprint('é')", cells[0]["source"])
	require.Equal(t, "é\n", cells[0]["outputs"].([]any)[0].(map[string]any)["text"])

	// Code that is of no cell runs in the same kernel and is written nowhere.
	e := b.execute(&carrelv1.ExecuteRequest{Path: "a.ipynb", Code: "print(x)"})
	require.Equal(t, "41\n", textOf(e))
	require.NotContains(t, b.saved("a.ipynb", has(`"42"`)), "print(x)")
}

// TestFilesAreThoseOfJupyter promises that nbformat finds nothing to change in what is written.
func TestFilesAreThoseOfJupyter(t *testing.T) {
	b := newBox(t)
	b.create("a.ipynb", insertCode("c", "", "from IPython.display import display, JSON, HTML\nprint('a\\x0bb\\x85c\\u2028d\\x7f\"\\\\')\ndisplay(JSON({'b': [1, 2.5], 'a': 'x\\ny'}), HTML('<p>\\n</p>\\n'))\n1/0"))
	b.edit("a.ipynb", &carrelv1.NotebookEdit{Edit: &carrelv1.NotebookEdit_Metadata{Metadata: &carrelv1.SetCellMetadata{Cell: "c", Metadata: must(structpb.NewStruct(map[string]any{"tags": []any{"é", "<&>"}, "n": 1, "f": 0.5}))}}})
	b.run("a.ipynb", "c")
	b.saved("a.ipynb", has("ZeroDivisionError", "tags"))
	require.NoError(t, b.Flush(limited(t)))
	path := filepath.Join(b.home, "a.ipynb")
	ours, err := os.ReadFile(path)
	require.NoError(t, err)
	script := "import nbformat, sys\nnb = nbformat.read(sys.argv[1], as_version=4)\nnbformat.validate(nb)\nnbformat.write(nb, sys.argv[1])"
	out, err := exec.Command("/usr/bin/python3", "-c", script, path).CombinedOutput()
	require.NoError(t, err, "%s", out)
	theirs, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, string(theirs), string(ours))
}

func must[T any](value T, err error) T {
	if err != nil {
		panic(err)
	}
	return value
}

func TestEditsAreAllOrNone(t *testing.T) {
	b := newBox(t)
	b.create("a.ipynb", insertCode("one", "", "1"), insertCode("two", "one", "2"))
	w := b.watch(&carrelv1.WatchNotebooksRequest{Path: "a.ipynb"})
	w.until("live", func(e *carrelv1.NotebookEvent) bool { return e.GetLive() })
	for reason, edits := range map[string][]*carrelv1.NotebookEdit{
		"cell_not_found": {setSource("one", "changed", nil), setSource("none", "x", nil)},
		"cell_changed":   {setSource("two", "changed", nil), setSource("one", "x", proto.String("something else"))},
		"cell_exists":    {setSource("one", "changed", nil), insertCode("two", "", "x")},
		"bad_cell":       {setSource("one", "changed", nil), insertCode("not an id", "", "x")},
		"bad_edit":       {setSource("one", "changed", nil), {}},
	} {
		_, err := b.EditNotebook(limited(t), &carrelv1.EditNotebookRequest{Path: "a.ipynb", Edits: edits}, "alice")
		require.Equal(t, reason, carrel.ReasonOf(err), "%v", err)
	}
	cells := b.cells("a.ipynb")
	require.Equal(t, "1", cells[0]["source"])
	require.Equal(t, "2", cells[1]["source"])

	move := &carrelv1.NotebookEdit{Edit: &carrelv1.NotebookEdit_Move{Move: &carrelv1.MoveCell{Cell: "one", After: "two"}}}
	kind := &carrelv1.NotebookEdit{Edit: &carrelv1.NotebookEdit_Type{Type: &carrelv1.SetCellType{Cell: "one", Type: "markdown"}}}
	answer := b.edit("a.ipynb", setSource("one", "# text", proto.String("1")), move, kind, insertCode("three", "two", "3"))
	events := w.until("the edit", func(e *carrelv1.NotebookEvent) bool { return e.GetEdited() != nil })
	edited := events[len(events)-1]
	require.Equal(t, answer.GetCursor(), edited.GetCursor())
	require.Equal(t, answer.GetRevision(), edited.GetEdited().GetRevision())
	require.Equal(t, "alice", edited.GetEdited().GetUser())
	cells = b.cells("a.ipynb")
	require.Equal(t, []any{"two", "three", "one"}, []any{cells[0]["id"], cells[1]["id"], cells[2]["id"]})
	require.Equal(t, "markdown", cells[2]["cell_type"])
	require.NotContains(t, cells[2], "outputs")
	b.edit("a.ipynb", &carrelv1.NotebookEdit{Edit: &carrelv1.NotebookEdit_Remove{Remove: "three"}})
	require.Len(t, b.cells("a.ipynb"), 2)
	b.saved("a.ipynb", func(text string) bool { return has("# text")(text) && !has(`"three"`)(text) })

	request := &carrelv1.EditNotebookRequest{Path: "a.ipynb", RequestId: "r", Edits: []*carrelv1.NotebookEdit{insertCode("four", "", "4")}}
	first := must(b.EditNotebook(limited(t), request, "alice"))
	second := must(b.EditNotebook(limited(t), request, "alice"))
	require.Equal(t, first.GetRevision(), second.GetRevision(), "a repeated request is one edit")
}

func TestCellsAreExecutedAsTheyWereSeen(t *testing.T) {
	b := newBox(t)
	b.create("a.ipynb", insertCode("one", "", "1"))
	_, err := b.Execute(limited(t), &carrelv1.ExecuteRequest{Path: "a.ipynb", Cells: []string{"one"}, Sources: map[string]string{"one": "2"}}, "")
	require.Equal(t, "cell_changed", carrel.ReasonOf(err))
	_, err = b.Execute(limited(t), &carrelv1.ExecuteRequest{Path: "a.ipynb", Cells: []string{"none"}}, "")
	require.Equal(t, "cell_not_found", carrel.ReasonOf(err))
}

func TestClearedOutputsGoOn(t *testing.T) {
	b := newBox(t)
	b.create("a.ipynb", insertCode("one", "", "print('before', flush=True)\ninput()\nprint('after')"))
	w := b.watch(&carrelv1.WatchNotebooksRequest{After: "0"})
	id := b.start(&carrelv1.ExecuteRequest{Path: "a.ipynb", All: true, AllowInput: true})[0].GetId()
	w.until("a question", func(e *carrelv1.NotebookEvent) bool { return e.GetQuestion() != nil })
	b.saved("a.ipynb", has(`"before\n"`))
	require.Len(t, b.get("a.ipynb").GetExecutions(), 1)
	b.edit("a.ipynb", clearOutputs("*"))
	require.Empty(t, b.cells("a.ipynb")[0]["outputs"])
	require.NoError(t, b.AnswerInput(limited(t), &carrelv1.AnswerInputRequest{Execution: id}))
	b.ended(w, id)
	text := b.saved("a.ipynb", has(`"after\n"`))
	require.NotContains(t, text, `"before\n"`)
	b.edit("a.ipynb", clearOutputs("one"))
	b.saved("a.ipynb", has(`"execution_count": null`, `"outputs": []`))
}

const plain = `{"cells": [{"cell_type": "code", "id": "one", "metadata": {}, "execution_count": null, "outputs": [], "source": ["a = 1\n", "a"]},
 {"cell_type": "markdown", "id": "two", "metadata": {}, "source": "text"}], "metadata": {"custom": 1}, "nbformat": 4, "nbformat_minor": 5, "strange": {"x": 12345678901234567890}}`

// TestChangesByOthersAreTaken promises that nobody's change is written over.
func TestChangesByOthersAreTaken(t *testing.T) {
	b := newBox(t)
	b.put("a.ipynb", plain)
	require.Len(t, b.cells("a.ipynb"), 2)
	w := b.watch(&carrelv1.WatchNotebooksRequest{Path: "a.ipynb"})
	w.until("live", func(e *carrelv1.NotebookEvent) bool { return e.GetLive() })

	b.put("a.ipynb", strings.Replace(plain, "text", "changed by somebody", 1))
	events := w.until("the change", func(e *carrelv1.NotebookEvent) bool { return e.GetReloaded() != nil })
	require.False(t, events[len(events)-1].GetReloaded().GetRemoved())
	require.Equal(t, "changed by somebody", b.cells("a.ipynb")[1]["source"])

	// Both at once: what is only ours and what is only theirs are both there.
	path := filepath.Join(b.home, "a.ipynb")
	require.NoError(t, os.Chmod(path, 0o440)) // ours cannot be in the file before theirs is
	b.edit("a.ipynb", setSource("one", "ours", nil), insertCode("new", "one", "also ours"))
	b.put("a.ipynb", strings.Replace(plain, "text", "theirs", 1))
	text := b.saved("a.ipynb", has(`"ours"`, `"also ours"`, `"theirs"`))
	require.Contains(t, text, "12345678901234567890", "what is not known is kept as it is")

	// Both the same cell: theirs stays, ours comes behind it.
	require.NoError(t, os.Chmod(path, 0o440))
	b.edit("a.ipynb", setSource("two", "our text", nil))
	b.put("a.ipynb", strings.Replace(text, "theirs", "their text", 1))
	b.saved("a.ipynb", has(`"our text"`, `"their text"`))
	require.NotEmpty(t, b.get("a.ipynb").GetRepairs())

	require.NoError(t, os.Remove(path))
	w.until("the removal", func(e *carrelv1.NotebookEvent) bool { return e.GetReloaded().GetRemoved() })
	_, err := b.GetNotebook(limited(t), &carrelv1.GetNotebookRequest{Path: "a.ipynb"})
	require.Equal(t, "file_not_found", carrel.ReasonOf(err))
	_, err = b.EditNotebook(limited(t), &carrelv1.EditNotebookRequest{Path: "a.ipynb", Edits: []*carrelv1.NotebookEdit{clearOutputs("*")}}, "")
	require.Equal(t, "file_not_found", carrel.ReasonOf(err))
	_, err = os.Stat(path)
	require.ErrorIs(t, err, os.ErrNotExist, "what was removed is not made again")
}

func TestOutputsOfWhatRunsSurviveChangesByOthers(t *testing.T) {
	b := newBox(t)
	b.put("a.ipynb", strings.Replace(plain, `["a = 1\n", "a"]`, `["print('shown', flush=True)\n", "input()\n", "print('more')"]`, 1))
	w := b.watch(&carrelv1.WatchNotebooksRequest{After: "0"})
	id := b.start(&carrelv1.ExecuteRequest{Path: "a.ipynb", Cells: []string{"one"}, AllowInput: true})[0].GetId()
	w.until("a question", func(e *carrelv1.NotebookEvent) bool { return e.GetQuestion() != nil })
	b.saved("a.ipynb", has(`"shown\n"`))
	b.put("a.ipynb", strings.Replace(plain, "text", "theirs", 1))
	require.NoError(t, b.AnswerInput(limited(t), &carrelv1.AnswerInputRequest{Execution: id}))
	b.ended(w, id)
	b.saved("a.ipynb", has(`"shown\n"`, `"more\n"`, `"theirs"`))
}

// TestFilesKeepTheirNature promises that a link stays a link and a mode a mode.
func TestFilesKeepTheirNature(t *testing.T) {
	b := newBox(t)
	b.put("real.ipynb", plain)
	require.NoError(t, os.Symlink("real.ipynb", filepath.Join(b.home, "link.ipynb")))
	b.edit("link.ipynb", setSource("two", "through the link", nil))
	b.saved("real.ipynb", has("through the link"))
	info, err := os.Lstat(filepath.Join(b.home, "link.ipynb"))
	require.NoError(t, err)
	require.Equal(t, os.ModeSymlink, info.Mode().Type())
	info, err = os.Stat(filepath.Join(b.home, "real.ipynb"))
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o640), info.Mode().Perm())
	uid, _, root := kerneltest.Nobody()
	if root {
		require.Equal(t, uid, ownerOf(info))
	}

	require.NoError(t, os.Chmod(filepath.Join(b.home, "real.ipynb"), 0o440))
	b.edit("link.ipynb", setSource("two", "not allowed", nil))
	require.Error(t, b.Flush(limited(t)))
	require.Contains(t, b.get("link.ipynb").GetUnsaved(), "may not write")
	require.Equal(t, "not allowed", b.cells("link.ipynb")[1]["source"])
	require.NoError(t, os.Chmod(filepath.Join(b.home, "real.ipynb"), 0o640))
	require.NoError(t, b.Flush(limited(t)))
	require.Empty(t, b.get("link.ipynb").GetUnsaved())
	b.saved("real.ipynb", has("not allowed"))
}

func TestBadFilesAreSaidAndLeftAlone(t *testing.T) {
	b := newBox(t)
	for name, text := range map[string]string{
		"not json": "print('a script')", "an array": "[1]", "no cells": `{"nbformat": 4}`, "too new": `{"nbformat": 5, "cells": []}`,
		"too old": `{"nbformat": 2, "worksheets": []}`, "half": plain[:len(plain)/2], "deep": strings.Repeat(`{"a":`, 5000) + "1" + strings.Repeat("}", 5000),
	} {
		path := b.put(strings.ReplaceAll(name, " ", "-")+".ipynb", text)
		_, err := b.GetNotebook(limited(t), &carrelv1.GetNotebookRequest{Path: path})
		require.Equal(t, "bad_notebook", carrel.ReasonOf(err), "%s: %v", name, err)
		_, err = b.EditNotebook(limited(t), &carrelv1.EditNotebookRequest{Path: path, Create: true, Edits: []*carrelv1.NotebookEdit{insertCode("x", "", "")}}, "")
		require.Equal(t, "bad_notebook", carrel.ReasonOf(err), name)
		data, err := os.ReadFile(path)
		require.NoError(t, err)
		require.Equal(t, text, string(data), name)
	}
	_, err := b.GetNotebook(limited(t), &carrelv1.GetNotebookRequest{Path: "."})
	require.Equal(t, "is_directory", carrel.ReasonOf(err))
	_, err = b.GetNotebook(limited(t), &carrelv1.GetNotebookRequest{Path: "/dev/zero"})
	require.Equal(t, "not_a_file", carrel.ReasonOf(err))

	// A good one that becomes bad while it is open is not written over either.
	b.put("turns.ipynb", plain)
	b.get("turns.ipynb")
	b.put("turns.ipynb", "now something else")
	b.edit("turns.ipynb", setSource("two", "ours", nil))
	require.Error(t, b.Flush(limited(t)))
	data, err := os.ReadFile(filepath.Join(b.home, "turns.ipynb"))
	require.NoError(t, err)
	require.Equal(t, "now something else", string(data))
}

func TestOldAndOddNotebooksAreConverted(t *testing.T) {
	b := newBox(t)
	b.put("three.ipynb", `{"nbformat": 3, "nbformat_minor": 0, "metadata": {"name": "x"}, "worksheets": [{"cells": [
		{"cell_type": "heading", "level": 2, "source": ["A ", "title"], "metadata": {}},
		{"cell_type": "code", "language": "python", "collapsed": false, "input": ["1 +\n", "1"], "prompt_number": 7, "metadata": {}, "outputs": [
			{"output_type": "pyout", "prompt_number": 7, "text": ["2"], "png": "aGk=", "metadata": {}},
			{"output_type": "stream", "stream": "stderr", "text": ["oh\n"]},
			{"output_type": "pyerr", "ename": "E", "evalue": "v", "traceback": ["t"]}]}]}]}`)
	cells := b.cells("three.ipynb")
	require.Equal(t, "## A title", cells[0]["source"])
	require.Equal(t, "1 +\n1", cells[1]["source"])
	require.InEpsilon(t, 7, cells[1]["execution_count"], 0)
	outputs := cells[1]["outputs"].([]any)
	require.Equal(t, map[string]any{"text/plain": "2", "image/png": "aGk="}, outputs[0].(map[string]any)["data"])
	require.Equal(t, "execute_result", outputs[0].(map[string]any)["output_type"])
	require.Equal(t, map[string]any{"output_type": "stream", "name": "stderr", "text": "oh\n"}, outputs[1])
	require.Equal(t, "error", outputs[2].(map[string]any)["output_type"])
	require.NotEmpty(t, b.get("three.ipynb").GetRepairs())

	odd := b.put("odd.ipynb", `{"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [
		{"cell_type": "code", "id": "a", "source": "1", "outputs": [17, {"output_type": "display_data", "data": {"text/plain": ["x", "y"]}}]},
		{"cell_type": "code", "id": "a", "source": "2", "outputs": [], "metadata": {}}, {"cell_type": "poem", "id": "b c", "source": "3"}, 4]}`)
	cells = b.cells("odd.ipynb")
	require.Len(t, cells, 4)
	ids := map[any]bool{}
	for _, one := range cells {
		ids[one["id"]] = true
	}
	require.Len(t, ids, 4)
	require.Len(t, b.get("odd.ipynb").GetRepairs(), 6, "%v", b.get("odd.ipynb").GetRepairs())
	before, err := os.ReadFile(odd)
	require.NoError(t, err)
	require.Contains(t, string(before), "poem", "reading changes nothing")
}

func TestTooMuchIsLeftOutOfWhatIsShownAlone(t *testing.T) {
	b := newBox(t)
	big := strings.Repeat("x", 17<<20)
	text, err := json.Marshal(map[string]any{"nbformat": 4, "nbformat_minor": 5, "metadata": map[string]any{}, "cells": []any{map[string]any{
		"cell_type": "code", "id": "a", "source": "1", "metadata": map[string]any{}, "execution_count": nil, "outputs": []any{
			map[string]any{"output_type": "stream", "name": "stdout", "text": big}, map[string]any{"output_type": "stream", "name": "stderr", "text": "small"},
		},
	}}})
	require.NoError(t, err)
	b.put("big.ipynb", string(text))
	outputs := b.cells("big.ipynb")[0]["outputs"].([]any)
	require.Contains(t, outputs[0].(map[string]any)["text"], "left out")
	require.Equal(t, "small", outputs[1].(map[string]any)["text"])
	b.edit("big.ipynb", setSource("a", "changed", nil))
	b.saved("big.ipynb", has("changed", big[:100]))
}

// TestFullDiskIsSaidAndNothingIsLost promises that work goes on in memory, and into the file when there is room again.
func TestFullDiskIsSaidAndNothingIsLost(t *testing.T) {
	if os.Geteuid() != 0 {
		return // a file system of its own needs root
	}
	b := openBox(t, smallDisk(t, "2m"))
	b.create("a.ipynb", insertCode("one", "", "print('x' * 3000)\nprint('complete')"))
	require.NoError(t, b.Flush(limited(t)))
	before, err := os.ReadFile(filepath.Join(b.home, "a.ipynb"))
	require.NoError(t, err)
	w := b.watch(&carrelv1.WatchNotebooksRequest{After: "0"})
	b.execute(&carrelv1.ExecuteRequest{Path: "a.ipynb", Code: "1"}) // what a kernel writes when it starts needs room
	filler := filepath.Join(b.home, "filler")
	_ = os.WriteFile(filler, make([]byte, 4<<20), 0o600) // as much as fits
	b.start(&carrelv1.ExecuteRequest{Path: "a.ipynb", All: true})
	w.until("the trouble", func(e *carrelv1.NotebookEvent) bool { return strings.Contains(e.GetUnsaved(), "full") })
	now, err := os.ReadFile(filepath.Join(b.home, "a.ipynb"))
	require.NoError(t, err)
	require.Equal(t, string(before), string(now), "the file is whole")
	require.Contains(t, b.get("a.ipynb").GetUnsaved(), "full")
	require.NoError(t, os.Remove(filler))
	b.saved("a.ipynb", has("complete\\n"))
	require.NoError(t, b.Flush(limited(t)))
	require.Empty(t, b.get("a.ipynb").GetUnsaved())
}
