package notebook

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestRepliesAreReadWithCare promises that what a kernel says of completions is shown, and that nothing it says is out of bounds.
func TestRepliesAreReadWithCare(t *testing.T) {
	var reply completeReply
	require.NoError(t, json.Unmarshal([]byte(`{"matches": ["bake", "bar", "odd"], "cursor_start": 2, "cursor_end": 4, "metadata": {"_jupyter_types_experimental": [
		{"text": "bake", "type": "function", "signature": "(sugar, butter=2)", "start": 2, "end": 4}, {"text": "bar", "type": "<unknown>"}]}}`), &reply))
	got := reply.show(4, 4)
	require.False(t, got.GetTruncated())
	require.Equal(t, []int32{2, 4}, []int32{got.GetStart(), got.GetEnd()})
	require.Len(t, got.GetCompletions(), 3)
	require.Equal(t, "function", got.GetCompletions()[0].GetType())
	require.Equal(t, "(sugar, butter=2)", got.GetCompletions()[0].GetSignature())
	require.Empty(t, got.GetCompletions()[1].GetType())

	for _, places := range [][2]int32{{-1, 2}, {3, 2}, {0, 5}} {
		got = completeReply{Matches: []string{"x"}, Start: places[0], End: places[1]}.show(4, 3)
		require.Empty(t, got.GetCompletions(), "%v", places)
		require.Equal(t, []int32{3, 3}, []int32{got.GetStart(), got.GetEnd()})
	}
	got = completeReply{Matches: []string{strings.Repeat("x", 2000), "y"}, Start: 0, End: 0}.show(0, 0)
	require.Len(t, got.GetCompletions(), 1)
	require.True(t, got.GetTruncated())
}
