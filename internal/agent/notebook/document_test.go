package notebook_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/agent/kernel/kerneltest"
)

// put writes a file into the home as the user.
func (b *box) put(name, text string) string {
	b.t.Helper()
	path := filepath.Join(b.home, name)
	require.NoError(b.t, kerneltest.AsUser(func() error { return os.WriteFile(path, []byte(text), 0o640) }))
	return path
}

func (b *box) get(path string) *carrelv1.Notebook {
	b.t.Helper()
	got, err := b.GetNotebook(limited(b.t), &carrelv1.GetNotebookRequest{Path: path})
	require.NoError(b.t, err)
	return got
}

func (b *box) edit(path string, edits ...*carrelv1.NotebookEdit) {
	b.t.Helper()
	_, err := b.EditNotebook(limited(b.t), &carrelv1.EditNotebookRequest{Path: path, Edits: edits}, "alice")
	require.NoError(b.t, err)
}

func codeCell(id, source string) *carrelv1.NotebookEdit {
	fields, err := structpb.NewStruct(map[string]any{"id": id, "cell_type": "code", "source": source, "metadata": map[string]any{}, "outputs": []any{}})
	if err != nil {
		panic(err)
	}
	return &carrelv1.NotebookEdit{Edit: &carrelv1.NotebookEdit_Insert{Insert: &carrelv1.InsertCell{Cell: fields}}}
}

// saved waits until the file of a notebook has a text.
func (b *box) saved(path, text string) string {
	b.t.Helper()
	var data []byte
	require.Eventually(b.t, func() bool {
		data, _ = os.ReadFile(path)
		return len(data) > 0 && (text == "" || contains(string(data), text))
	}, patience, 10*time.Millisecond, "%s in %s", text, data)
	return string(data)
}

func contains(all, part string) bool {
	for i := 0; i+len(part) <= len(all); i++ {
		if all[i:i+len(part)] == part {
			return true
		}
	}
	return false
}

func TestCellsAreExecutedAndSaved(t *testing.T) {
	b := newBox(t)
	_, err := b.EditNotebook(limited(t), &carrelv1.EditNotebookRequest{Path: "a.ipynb", Create: true, Edits: []*carrelv1.NotebookEdit{
		codeCell("two", "x + 1"), codeCell("one", "x = 41\nprint('é')"),
	}}, "alice")
	require.NoError(t, err)
	response, err := b.Execute(limited(t), &carrelv1.ExecuteRequest{Path: "a.ipynb", All: true, Wait: durationpb.New(patience)}, "alice")
	require.NoError(t, err)
	require.True(t, response.GetDone())
	require.Len(t, response.GetExecutions(), 2)
	path := filepath.Join(b.home, "a.ipynb")
	b.saved(path, `"42"`)
}
