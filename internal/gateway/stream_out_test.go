package gateway

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// order takes n frames in the order in which they would be written.
func order(t *testing.T, o *outbox, n int) (names []string) {
	t.Helper()
	for range n {
		f, ok := o.next()
		require.True(t, ok)
		if f.wrote != nil {
			f.wrote()
		}
		names = append(names, string(f.data[:1]))
	}
	return names
}

func fill(name string, size int) outFrame {
	data := make([]byte, size)
	copy(data, name)
	return outFrame{data: data}
}

func TestAKeysEchoGoesBeforeAFlood(t *testing.T) {
	o := newOutbox()
	flood, other, terminal := o.lane(false), o.lane(false), o.lane(true)
	for range 4 {
		require.NoError(t, flood.put(t.Context(), fill("f", 64<<10)))
		require.NoError(t, other.put(t.Context(), fill("o", 100)))
	}
	require.NoError(t, terminal.put(t.Context(), fill("t", 10)))
	require.Equal(t, []string{"t", "f", "o", "f", "o", "f", "o", "f", "o"}, order(t, o, 9), "and the others in turn")
	_, ok := o.next()
	require.False(t, ok)

	// A terminal that floods waits for its turn as all do.
	for range 4 {
		require.NoError(t, terminal.put(t.Context(), fill("t", 60<<10)))
		require.NoError(t, flood.put(t.Context(), fill("f", 60<<10)))
	}
	require.Equal(t, []string{"t", "f", "t", "f", "t", "f", "t", "f"}, order(t, o, 8))
}

func TestManyEchoesStarveNobody(t *testing.T) {
	o := newOutbox()
	flood := o.lane(false)
	require.NoError(t, flood.put(t.Context(), fill("f", 64<<10)))
	terminals := make([]*lane, 20)
	for i := range terminals {
		terminals[i] = o.lane(true)
		require.NoError(t, terminals[i].put(t.Context(), fill("t", 10)))
	}
	require.Contains(t, order(t, o, maxPrompt+1), "f")
}

func TestALaneHoldsLittleAndThenWaits(t *testing.T) {
	o := newOutbox()
	l := o.lane(false)
	large := make(chan error, 1)
	go func() { large <- l.put(t.Context(), fill("a", 10<<20)) }() // one frame of any size
	require.Eventually(t, func() bool {
		o.mu.Lock()
		defer o.mu.Unlock()
		return l.size > 0
	}, time.Minute, time.Millisecond)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorIs(t, l.put(ctx, fill("b", 1)), context.Canceled)
	waited := make(chan error, 1)
	go func() { waited <- l.put(t.Context(), fill("c", 1)) }()
	require.Eventually(t, func() bool {
		o.mu.Lock()
		defer o.mu.Unlock()
		return l.room != nil
	}, time.Minute, time.Millisecond)
	require.Empty(t, large, "whoever has something large waits until it is written")
	require.Equal(t, []string{"a"}, order(t, o, 1))
	require.NoError(t, <-large)
	require.NoError(t, <-waited)
	require.NoError(t, l.put(t.Context(), fill("d", laneBytes-1)))
	go func() { waited <- l.put(t.Context(), fill("e", 1)) }()
	o.close()
	require.ErrorIs(t, <-waited, errSocketClosed)
}

func TestWhatWasQueuedIsSaidBeforeTheEnd(t *testing.T) {
	o := newOutbox()
	l := o.lane(false)
	var written []string
	require.NoError(t, l.put(t.Context(), fill("a", 1)))
	require.NoError(t, l.put(t.Context(), fill("b", 1)))
	done := make(chan struct{})
	go func() {
		defer close(done)
		o.run(func(data []byte) error { written = append(written, string(data)); return nil })
	}()
	o.flush(time.Minute)
	require.ErrorIs(t, l.put(t.Context(), fill("c", 1)), errSocketClosed)
	o.close()
	<-done
	require.Equal(t, []string{"a", "b"}, written)
}

func TestLagIsByTheBoxsClockBroughtToOurs(t *testing.T) {
	now := time.Now()
	conn := &agentConn{}
	require.True(t, conn.clock.stale(now))
	conn.clock.note(now.Add(-100*time.Millisecond), now.Add(100*time.Millisecond), timestamppb.New(now.Add(time.Hour))) // an hour ahead
	require.False(t, conn.clock.stale(now))
	require.True(t, conn.clock.stale(now.Add(2*time.Minute)))
	require.Equal(t, 5*time.Second, conn.lag(now.Add(5*time.Second), timestamppb.New(now.Add(time.Hour))))
	require.Zero(t, conn.lag(now, timestamppb.New(now.Add(2*time.Hour))))
	conn.clock.note(now, now.Add(time.Minute), timestamppb.New(now)) // says too little
	require.Equal(t, 5*time.Second, conn.lag(now.Add(5*time.Second), timestamppb.New(now.Add(time.Hour))))
}

func TestGapsAreCounted(t *testing.T) {
	require.EqualValues(t, 7, between("j1.3", "j1.10"))
	require.EqualValues(t, 1, between("j1.3", "j2.10"), "of another journal it is not known")
	require.EqualValues(t, 1, between("", "j1.10"))
	require.EqualValues(t, 1, between("j1.10", "j1.3"))
}
