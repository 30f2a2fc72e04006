package carreltest_test

import (
	"errors"
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/carreltest"
	"carrel.dev/carrel/internal/client"
)

// preparedPool is room for a handful of these boxes.
const preparedPool = 1536 * carrel.MiB

const preparedTemplate = "name: prepared\nimage: base\nresources: {cpu: 0.1, memory: 128MiB, home: 32MiB, root: 32MiB, processes: 64, tmp: 1MiB, shm: 1MiB}\nprebuild:\n  setup: [\"echo %s > prepared\"]\n"

func prepare(t *testing.T, s *carreltest.Stack, word string) *carrelv1.Template {
	t.Helper()
	pushed, err := s.Admin.Templates.PushTemplate(t.Context(), request(&carrelv1.PushTemplateRequest{Org: "system", Yaml: fmt.Sprintf(preparedTemplate, word)}))
	require.NoError(t, err)
	return pushed.Msg
}

// awaitPrebuilds waits until every node has the template's prebuild, and no other.
func awaitPrebuilds(t *testing.T, s *carreltest.Stack, tpl *carrelv1.Template) {
	t.Helper()
	s.Eventually("every node has the prebuild", func() error {
		list, err := s.Admin.Templates.ListPrebuilds(t.Context(), request(&carrelv1.ListPrebuildsRequest{Template: tpl.GetName()}))
		if err != nil {
			return err
		}
		if len(list.Msg.GetPrebuilds()) != len(s.Nodes) {
			return fmt.Errorf("%v", list.Msg.GetPrebuilds())
		}
		for _, p := range list.Msg.GetPrebuilds() {
			if p.GetState() != "ready" || p.GetTemplateId() != tpl.GetId() {
				return fmt.Errorf("%v", p)
			}
		}
		return nil
	})
}

func setPool(t *testing.T, s *carreltest.Stack, size int32) {
	t.Helper()
	_, err := s.Admin.Templates.UpdateTemplatePool(t.Context(), request(&carrelv1.UpdateTemplatePoolRequest{Org: "default", Name: "prepared", Size: size}))
	require.NoError(t, err)
}

func awaitPool(t *testing.T, s *carreltest.Stack, n int32) {
	t.Helper()
	s.Eventually(fmt.Sprintf("%d boxes wait", n), func() error {
		got, err := s.Admin.Templates.GetTemplate(t.Context(), request(&carrelv1.GetTemplateRequest{Name: "prepared"}))
		if err == nil && got.Msg.GetPoolReady() != n {
			err = fmt.Errorf("%d wait", got.Msg.GetPoolReady())
		}
		return err
	})
}

func createPrepared(t *testing.T, s *carreltest.Stack, name string) *carrelv1.Box {
	t.Helper()
	_, err := s.Admin.Boxes.CreateBox(t.Context(), request(&carrelv1.CreateBoxRequest{Name: name, Template: "prepared", Env: map[string]string{"MINE": name}}))
	require.NoError(t, err)
	answer, err := s.Admin.Boxes.WaitBox(bounded(t), request(&carrelv1.WaitBoxRequest{Id: name, States: []carrelv1.State{carrelv1.State_STATE_RUNNING}}))
	require.NoError(t, err)
	require.Equal(t, carrelv1.State_STATE_RUNNING, answer.Msg.GetState(), "%v", answer.Msg)
	return answer.Msg
}

// nothingPrepared closes every node, so that nothing that is prepared is left.
func nothingPrepared(t *testing.T, s *carreltest.Stack) {
	t.Helper()
	nodes, err := s.Admin.Nodes.ListNodes(t.Context(), request(&carrelv1.ListNodesRequest{}))
	require.NoError(t, err)
	for _, n := range nodes.Msg.GetNodes() {
		_, err := s.Admin.Nodes.UpdateNode(t.Context(), request(&carrelv1.UpdateNodeRequest{Id: n.GetId(), Schedulable: false}))
		require.NoError(t, err)
	}
}

// TestBoxesBeginFromPrebuilds: on every node, each version from its own, and without where that fails.
func TestBoxesBeginFromPrebuilds(t *testing.T) {
	if testing.Short() {
		return // nodes need root
	}
	t.Parallel()
	s := carreltest.Start(t, carreltest.Options{Nodes: 2, PoolBytes: preparedPool})
	awaitPrebuilds(t, s, prepare(t, s, "one"))
	box := createPrepared(t, s, "first")
	require.Equal(t, "prebuild", box.GetStartedFrom())
	out, _, _ := exec(t, s.Admin, "first", "echo $MINE")
	require.Equal(t, "first\n", out)
	verb(t, s.Admin, "pause", "first")
	require.Equal(t, "memory", verb(t, s.Admin, "resume", "first").GetStartedFrom())

	awaitPrebuilds(t, s, prepare(t, s, "two"))
	require.Equal(t, "prebuild", createPrepared(t, s, "second").GetStartedFrom())

	// Every node fails to start one sandbox: the box begins afresh, in the same run.
	for _, n := range s.Nodes {
		var failed atomic.Bool
		n.SetFault(func(step, _ string) error {
			if step == "start" && failed.CompareAndSwap(false, true) {
				return errors.New("the machine is not in the mood")
			}
			return nil
		})
	}
	third := createPrepared(t, s, "third")
	require.Equal(t, "fresh", third.GetStartedFrom())
	require.Contains(t, third.GetNotice(), "could not be cloned")
	require.EqualValues(t, 1, third.GetEpoch())
	out, _, _ = exec(t, s.Admin, "third", "cat prepared")
	require.Equal(t, "two\n", out, "its set-up was done at the start")
	for _, name := range []string{"first", "second", "third"} {
		verb(t, s.Admin, "delete", name)
	}
	nothingPrepared(t, s)
	clean(t, s)
}

// TestPreparedBoxesAreTaken: whatever dies while somebody takes one, it becomes theirs, or they get another.
func TestPreparedBoxesAreTaken(t *testing.T) {
	if testing.Short() {
		return // nodes need root
	}
	t.Parallel()
	s := carreltest.Start(t, carreltest.Options{PoolBytes: 2 * preparedPool})
	awaitPrebuilds(t, s, prepare(t, s, "one"))
	setPool(t, s, 1)
	n := s.Nodes[0]
	take := func(name string, meanwhile func()) *carrelv1.Box {
		t.Helper()
		awaitPool(t, s, 1)
		_, err := s.Admin.Boxes.CreateBox(t.Context(), request(&carrelv1.CreateBoxRequest{Name: name, Template: "prepared", Env: map[string]string{"MINE": name}}))
		require.NoError(t, err)
		if meanwhile != nil {
			meanwhile()
		}
		var box *carrelv1.Box
		s.Eventually(name+" runs and is its owner's", func() error { // what dies just after it ran is started again
			answer, err := s.Admin.Boxes.WaitBox(bounded(t), request(&carrelv1.WaitBoxRequest{Id: name, States: []carrelv1.State{carrelv1.State_STATE_RUNNING}}))
			if err != nil {
				return err
			}
			box = answer.Msg
			var out buffer
			if _, err := s.Admin.Exec(bounded(t), client.ExecOptions{Box: name, Args: []string{"sh", "-c", "echo $MINE"}, Streams: client.Streams{Stdout: &out}}); err != nil {
				return err
			}
			if out.String() != name+"\n" {
				return fmt.Errorf("it says it is %q", out.String())
			}
			return nil
		})
		return box
	}
	require.Equal(t, "pool", take("plain", nil).GetStartedFrom())
	awaitPool(t, s, 1)
	require.NoError(t, n.Kill())
	require.Equal(t, "pool", take("while-the-node-is-away", func() { require.NoError(t, n.Start()) }).GetStartedFrom())
	awaitPool(t, s, 1)
	require.NoError(t, n.Proxy.Kill())
	require.Equal(t, "pool", take("while-the-proxy-is-away", func() { require.NoError(t, n.Proxy.Start()) }).GetStartedFrom())
	died := take("that-dies", func() {
		got, err := s.Admin.Boxes.GetBox(t.Context(), request(&carrelv1.GetBoxRequest{Id: "that-dies"}))
		require.NoError(t, err)
		require.NoError(t, n.KillSandbox(got.Msg.GetRunId()))
	})
	require.Positive(t, died.GetEpoch())

	paused := take("paused", nil)
	verb(t, s.Admin, "pause", "paused")
	require.Equal(t, "memory", verb(t, s.Admin, "resume", "paused").GetStartedFrom())
	out, _, _ := exec(t, s.Admin, "paused", "echo $MINE")
	require.Equal(t, "paused\n", out)
	require.NotEmpty(t, paused.GetId())

	token := s.NewUser("operator-not", "default", "owner")
	_, err := s.Client(token, "default").Templates.UpdateTemplatePool(t.Context(), request(&carrelv1.UpdateTemplatePoolRequest{Name: "prepared", Size: 5}))
	require.Equal(t, carrel.CodeDenied, codeOf(err), "a pool is an operator's to size")
	nothingPrepared(t, s)
	for _, name := range []string{"plain", "while-the-node-is-away", "while-the-proxy-is-away", "that-dies", "paused"} {
		verb(t, s.Admin, "delete", name)
	}
	clean(t, s)
}
