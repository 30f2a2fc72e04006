package carreltest_test

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"carrel.dev/carrel/api/carrel/link/v1/linkv1connect"
	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/carreltest"
	"carrel.dev/carrel/internal/client"
)

func TestARepeatedRequestGivesTheFirstOperation(t *testing.T) {
	if testing.Short() {
		return // nodes need root
	}
	t.Parallel()
	s := carreltest.Start(t, carreltest.Options{Controls: 2, Reconcilers: 2})
	one, two := s.Controls[0].Client(s.AdminToken, carreltest.Org), s.Controls[1].Client(s.AdminToken, carreltest.Org)
	ctx := bounded(t)

	made, err := one.Boxes.CreateBox(ctx, request(&carrelv1.CreateBoxRequest{Name: "dev", RequestId: "c1"}))
	require.NoError(t, err)
	again, err := two.Boxes.CreateBox(ctx, request(&carrelv1.CreateBoxRequest{Name: "dev", RequestId: "c1"}))
	require.NoError(t, err)
	require.Equal(t, made.Msg.GetId(), again.Msg.GetId())
	_, err = two.Boxes.CreateBox(ctx, request(&carrelv1.CreateBoxRequest{Name: "other", RequestId: "c1"}))
	require.Equal(t, carrel.CodeInvalid, codeOf(err), "the same id with other content: %v", err)
	_, err = two.Boxes.CreateBox(ctx, request(&carrelv1.CreateBoxRequest{Name: "dev", RequestId: "c2"}))
	require.Equal(t, carrel.CodeExists, codeOf(err), "another request for the same name: %v", err)
	box := finish(t, one, made)

	// At the same time, at both replicas.
	type answer struct {
		id  string
		err error
	}
	answers := make(chan answer, 8)
	for i := range cap(answers) {
		go func() {
			op, err := ask(ctx, []*client.Client{one, two}[i%2], "pause", box.GetId(), "p1")
			if err != nil {
				answers <- answer{err: err}
				return
			}
			answers <- answer{id: op.Msg.GetId()}
		}()
	}
	first := <-answers
	require.NoError(t, first.err)
	for range cap(answers) - 1 {
		require.Equal(t, first, <-answers)
	}
	_, err = ask(ctx, two, "pause", "b0000000000000000000", "p1")
	require.Error(t, err)
	box = verb(t, two, "pause", "dev")
	require.Equal(t, carrelv1.State_STATE_PAUSED, box.GetState())
	require.Equal(t, []int64{1}, rows[int64](t, s, "select count(*) from snapshots where box_id = $1", box.GetId()))

	// Long after it was done and something else was asked for, too.
	verb(t, one, "resume", "dev")
	old, err := ask(ctx, two, "pause", box.GetId(), "p1")
	require.NoError(t, err)
	require.Equal(t, first.id, old.Msg.GetId())
	require.True(t, old.Msg.GetDone())
	now, err := one.Boxes.GetBox(ctx, request(&carrelv1.GetBoxRequest{Id: "dev"}))
	require.NoError(t, err)
	require.Equal(t, carrelv1.State_STATE_RUNNING, now.Msg.GetState(), "the repetition paused it again")
	require.Equal(t, "running", now.Msg.GetIntent())

	require.Equal(t, []int64{1}, rows[int64](t, s, "select count(*) from operations where verb = 'create'"))
	require.Equal(t, []int64{1}, rows[int64](t, s, "select count(*) from operations where request_id = 'p1'"))
	deleteAll(t, s)
}

// TestACommitWhoseAnswerIsLost: the answer to the proposal of a snapshot never arrives, in the two ways in which answers get
// lost, and the proposal is simply made again.
func TestACommitWhoseAnswerIsLost(t *testing.T) {
	if testing.Short() {
		return // nodes need root
	}
	t.Parallel()
	for name, lose := range map[string]func(*carreltest.Stack){
		"the stream is reset":   func(*carreltest.Stack) {},
		"the connection is cut": func(s *carreltest.Stack) { s.Nodes[0].ToControl.Cut() },
		"the replica dies":      nil,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := carreltest.Start(t, carreltest.Options{Controls: 2})
			box := create(t, s.Admin, "dev")
			exec(t, s.Admin, "dev", "echo kept > file")
			_, err := s.Nodes[0].Runtime.Machine(box.GetRunId()).Memory("counter", func([]byte) []byte { return []byte("41") })
			require.NoError(t, err)
			lost := make(chan struct{}, 16)
			if lose == nil {
				killed := make(chan error, 1)
				lose = func(s *carreltest.Stack) {
					if len(lost) > 0 {
						return
					}
					// Both, one after the other: the answer dies with whichever has it.
					go func() {
						for _, c := range s.Controls {
							if err := c.Kill(); err != nil {
								killed <- err
								return
							}
						}
						for _, c := range s.Controls {
							if err := c.Start(); err != nil {
								killed <- err
								return
							}
						}
						killed <- nil
					}()
				}
				defer func() { require.NoError(t, <-killed) }()
			}
			s.LoseAnswers(linkv1connect.NodeLinkCommitSnapshotProcedure, 3, func() {
				lose(s)
				lost <- struct{}{}
			})
			op, err := ask(bounded(t), s.Admin, "pause", "dev", "")
			require.NoError(t, err)
			<-lost
			// It is committed, the box's processes must not go on, and it is not called paused before the node knows.
			box = finish(t, s.Admin, op)
			require.Equal(t, carrelv1.State_STATE_PAUSED, box.GetState())
			require.Equal(t, []int64{1}, rows[int64](t, s, "select count(*) from snapshots where box_id = $1", box.GetId()))
			require.Equal(t, []int64{1}, rows[int64](t, s, "select count(*) from events where box_id = $1 and kind = 'paused'", box.GetId()))
			require.Equal(t, []int64{1}, rows[int64](t, s, "select count(*) from runs where box_id = $1", box.GetId()))
			s.Eventually("its sandbox is removed, once what was saved is verified", func() error {
				if _, live := s.Sandboxes(box.GetId()); len(live) > 0 {
					return fmt.Errorf("%v", live)
				}
				return nil
			})

			box = verb(t, s.Admin, "resume", "dev")
			require.Equal(t, "memory", box.GetStartedFrom())
			counter, err := s.Nodes[0].Runtime.Machine(box.GetRunId()).Memory("counter", func(old []byte) []byte { return old })
			require.NoError(t, err)
			require.Equal(t, "41", string(counter))
			deleteAll(t, s)
		})
	}
}
