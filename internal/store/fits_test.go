package store_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/store"
)

// TestWhatNoNodeCouldHoldIsRefused: a box for which there is no room now waits; one for which there never will be is not made.
func TestWhatNoNodeCouldHoldIsRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx := t.Context()
	require.NoError(t, w.RecordReport(ctx, w.node, []store.Report{{Facts: facts(1)}}))
	fits := carrel.DefaultResources
	fits.CPUMillis *= 4 // cores are given out more than once
	require.NoError(t, w.CheckFits(ctx, fits), "exactly the node")
	for what, grow := range map[string]func(*carrel.Resources){
		"CPU":    func(r *carrel.Resources) { r.CPUMillis++ },
		"memory": func(r *carrel.Resources) { r.MemoryBytes++ },
		"disk":   func(r *carrel.Resources) { r.HomeBytes++ },
	} {
		large := fits
		grow(&large)
		err := w.CheckFits(ctx, large)
		require.Equal(t, carrel.ReasonTooLarge, carrel.ReasonOf(err), "%s: %v", what, err)
		require.ErrorContains(t, err, "of "+what+", and the largest node gives")
	}
	large := fits
	large.MemoryBytes *= 2
	_, err := w.JoinNode(ctx, store.Join{Name: "silent", Region: "here"})
	require.NoError(t, err)
	require.NoError(t, w.CheckFits(ctx, large), "who joined and said nothing yet may be large enough")
}
