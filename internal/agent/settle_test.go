package agent

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func settling() *process {
	return &process{budget: &budget{left: 1 << 20}, limits: [streams]int{1 << 20, 1 << 20}, evict: func(int64) {}}
}

// The sleeps here are on synctest's clock and take no time: they say when something happens.

func TestAStartIsToldWithTheEndOfAShortCommand(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := settling()
		began := time.Now()
		go func() {
			time.Sleep(3 * time.Millisecond)
			p.append(stdout, []byte("a line\n")) // a few lines are waited with
			time.Sleep(2 * time.Millisecond)
			p.finished()
		}()
		p.settle(startWait)
		require.Equal(t, 5*time.Millisecond, time.Since(began))
	})
}

func TestAStartIsToldWithMuchOutputAndAfterAWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := settling()
		began := time.Now()
		go func() {
			time.Sleep(4 * time.Millisecond)
			p.append(stderr, make([]byte, settledBytes))
		}()
		p.settle(startWait)
		require.Equal(t, 4*time.Millisecond, time.Since(began))

		began = time.Now()
		settling().settle(startWait)
		require.Equal(t, startWait, time.Since(began))
	})
}
