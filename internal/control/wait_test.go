package control

import (
	"testing"

	"github.com/stretchr/testify/require"

	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/store"
)

func TestAPauseThatWasUndoneEndsTheWaitOfWhoAskedForIt(t *testing.T) {
	undone := func(by string) *store.Box {
		return &store.Box{Name: "one", BoxView: carrel.BoxView{
			Intent: carrel.IntentPaused, IntentBy: by, Generation: 2, Epoch: 1,
			Run: &carrel.RunView{ID: "r", Epoch: 1, Phase: carrel.PhaseRunning, Generation: 2, FailedOrder: carrel.OrderPause, Reason: "active", Message: "it was used"},
		}}
	}
	done, err := answers(undone("user:u1"), []carrel.State{carrel.StatePaused}, 0)
	require.False(t, done)
	require.ErrorContains(t, err, "could not be paused", "it does not come about without a new request")

	done, err = answers(undone(carrel.RuleIdle.Actor()), []carrel.State{carrel.StatePaused}, 0)
	require.False(t, done)
	require.NoError(t, err, "the policy tries again by itself")
	done, err = answers(undone(carrel.RuleIdle.Actor()), []carrel.State{carrel.StateRunning}, 0)
	require.True(t, done)
	require.NoError(t, err)
}
