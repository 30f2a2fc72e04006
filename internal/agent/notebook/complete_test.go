package notebook_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/carrel"
)

func textsOf(response *carrelv1.CompleteCodeResponse) (texts []string) {
	for _, one := range response.GetCompletions() {
		texts = append(texts, one.GetText())
	}
	return texts
}

// TestCompletionsComeFromTheKernel promises what the kernel knows, at places counted in code points, and that asking is not executing.
func TestCompletionsComeFromTheKernel(t *testing.T) {
	b := newBox(t)
	_, err := b.CompleteCode(limited(t), &carrelv1.CompleteCodeRequest{Code: "a"})
	require.Equal(t, "no_kernel", carrel.ReasonOf(err), "none is started for it")
	b.execute(&carrelv1.ExecuteRequest{Code: "apricot_jam = 1\ndef apricot_tart(sugar, butter=2):\n    'Bakes a tart.'"})
	before, err := b.Status()
	require.NoError(t, err)

	// A character outside of the basic plane is one code point, and two of UTF-16.
	code := "x = '😀'; aprico"
	length := int32(len([]rune(code)))
	got, err := b.CompleteCode(limited(t), &carrelv1.CompleteCodeRequest{Code: code, Cursor: length})
	require.NoError(t, err)
	require.Subset(t, textsOf(got), []string{"apricot_jam", "apricot_tart"})
	require.Equal(t, []int32{length - 6, length}, []int32{got.GetStart(), got.GetEnd()})

	seen, err := b.InspectCode(limited(t), &carrelv1.InspectCodeRequest{Code: "apricot_tart(1)", Cursor: 12})
	require.NoError(t, err)
	require.True(t, seen.GetFound())
	require.Contains(t, seen.GetText(), "Bakes a tart.")
	seen, err = b.InspectCode(limited(t), &carrelv1.InspectCodeRequest{Code: "nothing_of_the_kind", Cursor: 3})
	require.NoError(t, err)
	require.False(t, seen.GetFound())

	after, err := b.Status()
	require.NoError(t, err)
	require.Equal(t, before.GetCursor(), after.GetCursor(), "nobody is told that the kernel is busy")
	e := b.execute(&carrelv1.ExecuteRequest{Code: "1"})
	require.Equal(t, int32(2), e.GetExecutionCount(), "nothing was counted")
}

// TestABusyKernelIsNotAsked promises an answer at once while the kernel executes, and answers again when it is done.
func TestABusyKernelIsNotAsked(t *testing.T) {
	b := newBox(t)
	w := b.watch(&carrelv1.WatchNotebooksRequest{After: "0"})
	first := b.start(&carrelv1.ExecuteRequest{Code: "import time\nprint('on')\ntime.sleep(1000)"})[0]
	w.until("output", func(e *carrelv1.NotebookEvent) bool { return e.GetOutput() != nil })
	_, err := b.CompleteCode(limited(t), &carrelv1.CompleteCodeRequest{Code: "prin", Cursor: 4})
	require.Equal(t, "kernel_busy", carrel.ReasonOf(err))
	_, err = b.InspectCode(limited(t), &carrelv1.InspectCodeRequest{Code: "print", Cursor: 4})
	require.Equal(t, "kernel_busy", carrel.ReasonOf(err))
	_, err = b.Interrupt(limited(t), &carrelv1.InterruptRequest{})
	require.NoError(t, err)
	b.ended(w, first.GetId())
	got, err := b.CompleteCode(limited(t), &carrelv1.CompleteCodeRequest{Code: "prin", Cursor: 4})
	require.NoError(t, err)
	require.Contains(t, textsOf(got), "print")
}

func TestQuestionsAreBounded(t *testing.T) {
	b := newBox(t)
	for reason, request := range map[string]*carrelv1.CompleteCodeRequest{
		"code_too_large": {Code: strings.Repeat("x", 1<<20+1)},
		"bad_cursor":     {Code: "é", Cursor: 2},
		"bad_path":       {Path: "a\x00b"},
	} {
		_, err := b.CompleteCode(limited(t), request)
		require.Equal(t, reason, carrel.ReasonOf(err))
	}
	_, err := b.CompleteCode(limited(t), &carrelv1.CompleteCodeRequest{Code: "é", Cursor: -1})
	require.Equal(t, "bad_cursor", carrel.ReasonOf(err))
	b.execute(&carrelv1.ExecuteRequest{Code: "class Many:\n    def __dir__(self): return [f'a{i}' for i in range(2000)]\n    def _ipython_key_completions_(self): return []\nmany = Many()\ndef told(): pass\ntold.__doc__ = 'd' * 100_000"})
	got, err := b.CompleteCode(limited(t), &carrelv1.CompleteCodeRequest{Code: "many.", Cursor: 5})
	require.NoError(t, err)
	require.Len(t, got.GetCompletions(), 500)
	require.True(t, got.GetTruncated())
	seen, err := b.InspectCode(limited(t), &carrelv1.InspectCodeRequest{Code: "told", Cursor: 4})
	require.NoError(t, err)
	require.LessOrEqual(t, len(seen.GetText()), 64<<10)
	require.True(t, seen.GetTruncated())
}

// TestANotebooksKernelIsAskedByItsPath promises that a notebook is completed by what ran in it.
func TestANotebooksKernelIsAskedByItsPath(t *testing.T) {
	b := newBox(t)
	require.NoError(t, os.MkdirAll(filepath.Join(b.home, "work"), 0o777))
	_, err := b.CompleteCode(limited(t), &carrelv1.CompleteCodeRequest{Path: "work/a.ipynb", Code: "pl"})
	require.Equal(t, "no_kernel", carrel.ReasonOf(err))
	b.execute(&carrelv1.ExecuteRequest{Path: "work/a.ipynb", Code: "plum = 1"})
	got, err := b.CompleteCode(limited(t), &carrelv1.CompleteCodeRequest{Path: "work/a.ipynb", Code: "plu", Cursor: 3})
	require.NoError(t, err)
	require.Contains(t, textsOf(got), "plum")
}
