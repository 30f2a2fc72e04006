package carreltest_test

import (
	"errors"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/carreltest"
)

// TestAWatcherSeesEveryState: everyone who watches sees each state that a box settles in, in order, however they watch: one box or all,
// over RPC or REST, at either replica; epochs and generations never fall; and who watches through a gateway that is restarted sees the rest.
func TestAWatcherSeesEveryState(t *testing.T) {
	if testing.Short() {
		return // nodes need root
	}
	t.Parallel()
	s := carreltest.Start(t, carreltest.Options{Controls: 2, Reconcilers: 2})
	ctx := bounded(t)
	box := create(t, s.Admin, "dev")

	type view struct {
		name string
		seen chan *carrelv1.Box
		done chan error
	}
	var views []*view
	watch := func(name string, follow func(v *view) error) {
		v := &view{name: name, seen: make(chan *carrelv1.Box, 1000), done: make(chan error, 1)}
		go func() {
			err := follow(v)
			close(v.seen)
			v.done <- err
		}()
		views = append(views, v)
	}
	for i, c := range s.Controls {
		direct := c.Client(s.AdminToken, carreltest.Org)
		for _, id := range []string{box.GetId(), ""} {
			stream, err := direct.Boxes.WatchBoxes(ctx, request(&carrelv1.WatchBoxesRequest{Id: id}))
			require.NoError(t, err)
			for stream.Receive() && !stream.Msg().GetSynced() {
			}
			require.NoError(t, stream.Err())
			watch(fmt.Sprintf("replica %d, box %q", i, id), func(v *view) error {
				defer stream.Close()
				for stream.Receive() {
					if b := stream.Msg().GetBox(); b != nil {
						v.seen <- b
						if b.GetState() == carrelv1.State_STATE_DELETED {
							return nil
						}
					}
				}
				return fmt.Errorf("the stream ended: %w", stream.Err())
			})
		}
	}
	restarted := make(chan struct{}, 1000)
	watch("the client's own, through the gateway", func(v *view) error {
		err := s.Admin.WatchBox(ctx, box.GetId(), func(b *carrelv1.Box) error {
			v.seen <- b
			restarted <- struct{}{}
			if b.GetState() == carrelv1.State_STATE_DELETED {
				return errSeen
			}
			return nil
		})
		if errors.Is(err, errSeen) {
			return nil
		}
		return err
	})
	<-restarted

	steps := []struct {
		verb  string
		state carrelv1.State
	}{
		{"pause", carrelv1.State_STATE_PAUSED}, {"resume", carrelv1.State_STATE_RUNNING}, {"stop", carrelv1.State_STATE_STOPPED},
		{"start", carrelv1.State_STATE_RUNNING}, {"restart", carrelv1.State_STATE_RUNNING}, {"pause", carrelv1.State_STATE_PAUSED},
		{"start", carrelv1.State_STATE_RUNNING}, {"delete", carrelv1.State_STATE_DELETED},
	}
	var want []carrelv1.State
	for i, step := range steps {
		if i == 3 {
			for len(restarted) > 0 {
				<-restarted
			}
			require.NoError(t, s.Gateways[0].Kill())
			require.NoError(t, s.Gateways[0].Start())
			<-restarted // the client's watch is back
		}
		verb(t, s.Admin, step.verb, box.GetId())
		want = append(want, step.state)
	}
	settled := map[carrelv1.State]bool{
		carrelv1.State_STATE_RUNNING: true, carrelv1.State_STATE_PAUSED: true, carrelv1.State_STATE_STOPPED: true,
		carrelv1.State_STATE_DELETED: true, carrelv1.State_STATE_FAILED: true,
	}
	for _, v := range views {
		require.NoError(t, <-v.done, v.name)
		var states []carrelv1.State
		var before *carrelv1.Box
		key := ""
		for b := range v.seen {
			if before != nil {
				require.GreaterOrEqual(t, b.GetEpoch(), before.GetEpoch(), v.name)
				require.GreaterOrEqual(t, b.GetGeneration(), before.GetGeneration(), v.name)
			}
			before = b
			// A state of the same run for the same intent again is the same one.
			if now := fmt.Sprint(b.GetState(), b.GetEpoch(), b.GetGeneration()); settled[b.GetState()] && now != key {
				key = now
				if b.GetGeneration() > box.GetGeneration() {
					states = append(states, b.GetState())
				}
			}
		}
		require.Equal(t, want, states, v.name)
	}
	clean(t, s)
}

var errSeen = errors.New("everything was seen")
