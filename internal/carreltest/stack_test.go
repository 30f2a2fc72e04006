package carreltest_test

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/carreltest"
)

func TestABoxLivesThroughTheWholeRing(t *testing.T) {
	if testing.Short() {
		return // nodes need root
	}
	t.Parallel()
	s := carreltest.Start(t, carreltest.Options{})
	box := create(t, s.Admin, "dev")
	require.Equal(t, carrelv1.State_STATE_RUNNING, box.GetState())
	out, errs, code := exec(t, s.Admin, "dev", "echo kept > file; echo out; echo err >&2; exit 3")
	require.Equal(t, []any{"out\n", "err\n", 3}, []any{out, errs, code})
	box = verb(t, s.Admin, "pause", "dev")
	require.Equal(t, carrelv1.State_STATE_PAUSED, box.GetState())
	box = verb(t, s.Admin, "resume", "dev")
	require.Equal(t, "memory", box.GetStartedFrom())
	out, _, _ = exec(t, s.Admin, "dev", "cat file")
	require.Equal(t, "kept\n", out)
	box = verb(t, s.Admin, "stop", "dev")
	require.Equal(t, carrelv1.State_STATE_STOPPED, box.GetState())
	box = verb(t, s.Admin, "start", "dev")
	require.Equal(t, "disk", box.GetStartedFrom())
	require.EqualValues(t, 3, box.GetEpoch())

	require.NoError(t, s.Nodes[0].KillSandbox(box.GetRunId()))
	s.Eventually("it was started again", func() error {
		now, err := s.Admin.Boxes.GetBox(t.Context(), request(&carrelv1.GetBoxRequest{Id: "dev"}))
		if err == nil && (now.Msg.GetEpoch() != 4 || now.Msg.GetState() != carrelv1.State_STATE_RUNNING) {
			err = fmt.Errorf("%v", now.Msg)
		}
		return err
	})
	out, _, _ = exec(t, s.Admin, "dev", "cat file")
	require.Equal(t, "kept\n", out)
	box = verb(t, s.Admin, "restart", "dev")
	require.Equal(t, carrelv1.State_STATE_RUNNING, box.GetState())
	verb(t, s.Admin, "delete", "dev")
	clean(t, s)
}
