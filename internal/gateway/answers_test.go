package gateway

import (
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Whoever asks with many tokens takes a bounded amount of memory.
func TestAnswersAreBounded(t *testing.T) {
	a := newAnswers[int, string]()
	for n := range maxAnswers + 5 {
		a.remember(n, answer[string]{value: "yes", at: time.Unix(int64(n), 0)})
		require.LessOrEqual(t, len(a.known), maxAnswers)
		known, ok := a.of(n)
		require.True(t, ok, "the newest is there")
		require.Equal(t, "yes", known.value)
	}
	_, ok := a.of(0)
	require.False(t, ok)
	a.remember(-1, answer[string]{err: errors.New("no")})
	a.forget(func(_ int, known answer[string]) bool { return known.err != nil })
	_, ok = a.of(-1)
	require.False(t, ok)
	require.Len(t, a.known, 5)
}
