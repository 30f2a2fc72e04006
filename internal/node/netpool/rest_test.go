package netpool

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// Who takes a network starts a box, and is not to share the machine with what makes the next one; but a pool that runs empty is filled at once.
func TestThePoolIsFilledWhenItIsHalfEmptyOrNobodyTakes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &Pool{ready: make(chan Network, 4), wake: make(chan struct{}, 1)}
		for range cap(p.ready) {
			p.ready <- Network{}
		}
		rested := func() (after time.Duration) {
			began := time.Now()
			require.True(t, p.rest(t.Context()))
			return time.Since(began)
		}
		take := func() {
			<-p.ready
			p.refill()
		}

		require.Equal(t, fillAfter, rested(), "nobody took one")

		time.AfterFunc(fillAfter/2, take)
		require.Equal(t, fillAfter/2+fillAfter, rested(), "one was taken meanwhile")

		take()
		require.Zero(t, rested(), "half of it is gone")
	})
}
