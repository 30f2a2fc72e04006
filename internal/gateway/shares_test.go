package gateway

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"carrel.dev/carrel/internal/carrel"
)

// takeAll takes shares one by one until there is none for the holder.
func takeAll(s *shares, h holder) (leaves []func()) {
	for {
		leave, ok := s.take(h, 1)
		if !ok {
			return leaves
		}
		leaves = append(leaves, leave)
	}
}

func TestWhoeverComesNextFindsRoom(t *testing.T) {
	s := newShares(1200)
	require.Len(t, takeAll(s, holder{"o1", "u1"}), 400, "a user has half of what an organisation may have")
	leaves := takeAll(s, holder{"o1", "u2"})
	require.NotEmpty(t, leaves, "another user of the organisation")
	for u := range 20 {
		takeAll(s, holder{"o1", carrel.UserID(rune('a' + u))})
	}
	require.LessOrEqual(t, s.held(), int64(600), "one organisation has half at most, by however many users")
	for _, org := range []carrel.OrgID{"o2", "o3", "o4", "o5", "o6"} {
		require.NotEmpty(t, takeAll(s, holder{org, "v"}), "organisation %s", org)
	}
	for _, leave := range leaves {
		leave()
		leave() // gives back once
	}
	require.Greater(t, len(takeAll(s, holder{"o7", "v"})), 50, "what was given back can be taken")
}

func TestNothingIsLeftOfSharesThatWereGivenBack(t *testing.T) {
	s := newShares(100)
	for range 3 {
		for _, leave := range append(takeAll(s, holder{"o1", "u1"}), takeAll(s, holder{"o2", ""})...) {
			leave()
		}
	}
	require.Zero(t, s.held())
	require.Empty(t, s.orgs)
	require.Empty(t, s.users)
}

func TestSomethingLargeWaitsForItsTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShares(100)
		first, err := s.wait(t.Context(), holder{"o1", "u1"}, 1000)
		require.NoError(t, err, "larger than everything: it is taken when nothing else is there")
		got := make(chan error, 1)
		go func() {
			leave, err := s.wait(t.Context(), holder{"o2", "u2"}, 60)
			if err == nil {
				defer leave()
			}
			got <- err
		}()
		synctest.Wait()
		require.Empty(t, got, "it waits")
		first()
		require.NoError(t, <-got)
		_, err = s.wait(t.Context(), holder{"o1", "u1"}, 100)
		require.NoError(t, err)
		began := time.Now()
		_, err = s.wait(t.Context(), holder{"o2", "u2"}, 1)
		require.Equal(t, "too_much_at_once", carrel.ReasonOf(err))
		require.Equal(t, memoryPatience, time.Since(began))
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_, err = s.wait(ctx, holder{"o2", "u2"}, 1)
		require.ErrorIs(t, err, context.Canceled)
	})
}

// ofStream is messages as an agent's stream has them.
func ofStream(sizes ...int) io.ReadCloser {
	var text []byte
	for _, size := range sizes {
		text = append(binary.BigEndian.AppendUint32(append(text, 0), uint32(size)), make([]byte, size)...)
	}
	return io.NopCloser(bytes.NewReader(text))
}

func TestALargeMessageOfAStreamIsHeldUntilTheNextIsAskedFor(t *testing.T) {
	memory := newShares(1 << 30)
	body := &meteredBody{ReadCloser: ofStream(10, largeMessage+1, 20, 3*largeMessage), stream: true, leave: func() {}}
	body.wait = func(n int64) (func(), error) { return memory.wait(t.Context(), holder{"o1", "u1"}, n) }
	message := func() int {
		head := make([]byte, 5)
		_, err := io.ReadFull(body, head)
		require.NoError(t, err)
		n, err := io.Copy(io.Discard, io.LimitReader(body, int64(binary.BigEndian.Uint32(head[1:]))))
		require.NoError(t, err)
		return int(n)
	}
	require.Equal(t, 10, message())
	require.Zero(t, memory.held())
	require.Equal(t, largeMessage+1, message())
	require.EqualValues(t, largeMessage+1, memory.held())
	require.Equal(t, 20, message())
	require.Zero(t, memory.held(), "the one before is done with")
	require.Equal(t, 3*largeMessage, message())
	require.EqualValues(t, 3*largeMessage, memory.held())
	require.NoError(t, body.Close())
	require.Zero(t, memory.held())
}

func TestALargeMessageIsNotReadWithoutRoom(t *testing.T) {
	full := func(int64) (func(), error) { return nil, errTooMuchAtOnce() }
	for what, body := range map[string]*meteredBody{
		"of a stream":  {ReadCloser: ofStream(50 << 20), stream: true},
		"of one piece": {ReadCloser: io.NopCloser(bytes.NewReader(make([]byte, 50<<20))), size: 50 << 20},
	} {
		body.wait, body.leave = full, func() {}
		n, err := io.Copy(io.Discard, body)
		require.Equal(t, "too_much_at_once", carrel.ReasonOf(err), what)
		require.LessOrEqual(t, n, int64(largeMessage), what)
	}
}
