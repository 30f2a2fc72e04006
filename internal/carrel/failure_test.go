package carrel

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestBackOff(t *testing.T) {
	r := Remedies[ReasonSandboxDied]
	require.Equal(t, time.Second, r.Delay(1))
	require.Equal(t, 2*time.Second, r.Delay(2))
	require.Equal(t, 256*time.Second, r.Delay(9))
	require.Equal(t, MaxDelay, r.Delay(10))
	require.Equal(t, MaxDelay, r.Delay(1_000_000))
}

func TestEveryRemedyTellsWhatToDo(t *testing.T) {
	for reason, r := range Remedies {
		require.True(t, strings.HasSuffix(r.NextStep, ".") || strings.HasSuffix(r.NextStep, "`."), reason)
		if r.Transient {
			require.Positive(t, r.MaxDelay, reason)
			require.LessOrEqual(t, r.MaxDelay, MaxDelay, reason)
		}
	}
}

func TestNewFailure(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	v := &BoxView{Generation: 3, Run: &RunView{ID: "r1", Phase: PhaseFailed, Generation: 3}}
	fail := func(reason string) Failure {
		f := NewFailure(v, reason, "message", true, now)
		v.Failure = &f
		return f
	}

	f := fail(ReasonSandboxDied)
	require.Equal(t, Failure{
		Reason: ReasonSandboxDied, Message: "message", NextStep: Remedies[ReasonSandboxDied].NextStep, Transient: true,
		RetryAt: now.Add(time.Second), Attempts: 1, Generation: 3, RunID: "r1", At: now,
	}, f)
	require.False(t, v.Unrecorded())

	v.Run = &RunView{ID: "r2", Phase: PhaseFailed, Generation: 3}
	require.True(t, v.Unrecorded(), "another run failed")
	require.Equal(t, 2, fail(ReasonAgentSilent).Attempts, "the causes of failed runs count together")

	require.Equal(t, 1, fail(ReasonNoRoom).Attempts, "waiting for room is counted apart")
	require.False(t, v.Unrecorded(), "the run before is still dealt with")
	require.Equal(t, 2, fail(ReasonNoRoom).Attempts)

	v.Generation, v.Run.Generation = 4, 4
	require.Equal(t, 1, fail(ReasonSandboxDied).Attempts, "a new request begins anew")

	for n := 2; n < Remedies[ReasonSandboxDied].MaxAttempts; n++ {
		v.Run = &RunView{ID: NewRunID(), Phase: PhaseFailed, Generation: 4}
		require.True(t, fail(ReasonSandboxDied).Transient)
	}
	v.Run = &RunView{ID: NewRunID(), Phase: PhaseFailed, Generation: 4}
	last := fail(ReasonSandboxDied)
	require.False(t, last.Transient, "it does not try for ever")
	require.Zero(t, last.RetryAt)

	v.Run = &RunView{ID: "r9", Phase: PhaseFailed, Generation: 4, Phases: []PhaseAt{{PhaseRunning, now.Add(-time.Hour), 4}, {PhaseFailed, now, 4}}}
	require.Equal(t, 1, fail(ReasonSandboxDied).Attempts, "a run that was stable begins anew")
}

// A run whose node was silent may fail once the node is back: that is news.
func TestFailureAfterSilenceIsRecorded(t *testing.T) {
	v := &BoxView{Generation: 1, Run: &RunView{ID: "r1", Phase: PhaseRunning, Generation: 1}}
	f := NewFailure(v, ReasonNodeLost, "silent", true, time.Now())
	v.Failure = &f
	require.False(t, v.Unrecorded())
	v.Run.Phase = PhaseFailed
	require.True(t, v.Unrecorded())
}

func TestUnknownReasonsAreAsTheNodeSays(t *testing.T) {
	require.True(t, RemedyOf("new_in_the_next_release", true).Transient)
	require.False(t, RemedyOf("new_in_the_next_release", false).Transient)
	require.False(t, RemedyOf(ReasonSnapshotCorrupt, true).Transient, "the table outweighs the node")
}

func TestCurrentFailure(t *testing.T) {
	v := &BoxView{Generation: 2, Failure: &Failure{Generation: 2, RunID: "r1", Reason: ReasonSandboxDied}}
	require.NotNil(t, v.CurrentFailure())
	v.Run = &RunView{ID: "r2", Phase: PhaseStarting}
	require.NotNil(t, v.CurrentFailure(), "the next attempt has not succeeded yet")
	v.Run.Phases = []PhaseAt{{Phase: PhaseRunning}}
	v.Run.Phase = PhaseRunning
	require.Nil(t, v.CurrentFailure(), "it came up since")
	v.Failure = &Failure{Generation: 2, RunID: "r2", Reason: ReasonNodeLost}
	require.NotNil(t, v.CurrentFailure(), "of the live run itself")
	v.Generation = 3
	require.Nil(t, v.CurrentFailure(), "of an older intent")
}
