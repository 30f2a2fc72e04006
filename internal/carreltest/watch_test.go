package carreltest_test

import (
	"errors"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/carreltest"
)

// TestAWatcherSeesEveryState: everyone who watches sees each state in which a box stays, in order, however they watch: one box or all,
// over RPC or REST, at either replica; epochs and generations never fall; and who watches through a gateway that is restarted sees the rest.
// A state that is over before a watcher has looked may be left out: a stream is of what is there, and queues nothing.
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
		last *carrelv1.Box
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
	watch("the client's own, through the gateway", func(v *view) error {
		err := s.Admin.WatchBox(ctx, box.GetId(), func(b *carrelv1.Box) error {
			v.seen <- b
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
	// next is what a watcher sees next.
	next := func(v *view) *carrelv1.Box {
		select {
		case b, ok := <-v.seen:
			if !ok {
				require.NoError(t, <-v.done, v.name)
			}
			require.True(t, ok, "%s: the stream ended before the box did", v.name)
			if v.last != nil {
				require.GreaterOrEqual(t, b.GetEpoch(), v.last.GetEpoch(), v.name)
				require.GreaterOrEqual(t, b.GetGeneration(), v.last.GetGeneration(), v.name)
			}
			v.last = b
			return b
		case <-ctx.Done():
			t.Fatalf("%s: nothing more was seen; the last was %s", v.name, v.last)
			return nil
		}
	}
	own := views[len(views)-1]
	next(own) // its watch is there

	steps := []struct {
		verb  string
		state carrelv1.State
	}{
		{"pause", carrelv1.State_STATE_PAUSED}, {"resume", carrelv1.State_STATE_RUNNING}, {"stop", carrelv1.State_STATE_STOPPED},
		{"start", carrelv1.State_STATE_RUNNING}, {"restart", carrelv1.State_STATE_RUNNING}, {"pause", carrelv1.State_STATE_PAUSED},
		{"start", carrelv1.State_STATE_RUNNING}, {"delete", carrelv1.State_STATE_DELETED},
	}
	generation := box.GetGeneration()
	for i, step := range steps {
		if i == 3 {
			require.NoError(t, s.Gateways[0].Kill())
			require.NoError(t, s.Gateways[0].Start())
		}
		verb(t, s.Admin, step.verb, box.GetId())
		for _, v := range views {
			for {
				if b := next(v); b.GetGeneration() > generation && b.GetState() == step.state {
					break
				}
			}
		}
		generation = own.last.GetGeneration()
	}
	for _, v := range views {
		require.NoError(t, <-v.done, v.name)
	}
	clean(t, s)
}

var errSeen = errors.New("everything was seen")
