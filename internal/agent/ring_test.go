package agent

import (
	"bytes"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestARingKeepsExactlyTheLastBytes(t *testing.T) {
	source := rand.New(rand.NewPCG(1, 2))
	for range 50 {
		const limit = 64 << 10
		var r ring
		var all []byte
		for range 100 {
			piece := make([]byte, source.IntN(30_000))
			for i := range piece {
				piece[i] = byte(source.Uint32())
			}
			if source.IntN(4) > 0 { // the budget may refuse
				r.grow(r.wanted(len(piece), limit))
			} else if len(r.buf) == 0 {
				r.grow(minRing)
			}
			r.write(piece)
			all = append(all, piece...)
			require.EqualValues(t, len(all), r.end)
			require.LessOrEqual(t, len(r.buf), limit)
			require.LessOrEqual(t, r.end-r.start, int64(len(r.buf)))
			at := r.start + source.Int64N(r.end-r.start+1)
			n := source.IntN(100_000)
			got := r.read(nil, at, n)
			require.True(t, bytes.Equal(all[at:min(int(at)+n, len(all))], got))
		}
	}
}

func TestAnOwnerThatTakesNothingHoldsThePumpForABoundedTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &process{budget: &budget{left: 1 << 20}, limits: [streams]int{8 << 10, 8 << 10}, evict: func(int64) {}}
		owner := &viewer{p: p}
		p.owner = owner
		began := time.Now()
		p.append(stdout, make([]byte, 8<<10)) // fits
		require.Zero(t, time.Since(began))

		taken := make(chan struct{})
		go func() {
			defer close(taken)
			<-time.After(ownerPatience - time.Second)
			_, _, _ = owner.poll()
		}()
		p.append(stdout, make([]byte, 4<<10)) // waits for the owner
		<-taken
		require.Equal(t, ownerPatience-time.Second, time.Since(began))

		p.append(stdout, make([]byte, 100<<10)) // the owner takes nothing any more
		require.Equal(t, 2*ownerPatience-time.Second, time.Since(began))
		p.append(stdout, make([]byte, 100<<10))
		require.Equal(t, 2*ownerPatience-time.Second, time.Since(began), "and then nobody waits for it")
		event, _, _ := owner.poll()
		require.NotNil(t, event.GetGap(), "it is told what it missed")
	})
}

func TestABudgetThatIsUsedUpLeavesEveryStreamSomething(t *testing.T) {
	p := &process{budget: &budget{}, limits: [streams]int{1 << 20, 1 << 20}, evict: func(int64) {}}
	p.append(stdout, make([]byte, 100_000))
	require.EqualValues(t, 100_000, p.rings[stdout].end)
	require.Len(t, p.rings[stdout].buf, minRing)
	p.dropOutput()
	require.Zero(t, p.budget.left, "what was taken is given back")
}

func FuzzParseStat(f *testing.F) {
	f.Add([]byte("12 (a) b) (c) S 3 12 4 0 -1 4194304 1 0 0 0 0 0 0 0 20 0 1 0 100 1000 25 18446744073709551615"))
	f.Add([]byte("()"))
	f.Fuzz(func(t *testing.T, data []byte) {
		_, _ = parseStat(1, splitStat(data))
	})
}
