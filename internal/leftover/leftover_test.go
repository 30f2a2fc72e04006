package leftover_test

import (
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"carrel.dev/carrel/internal/leftover"
)

func TestWhatEndsLateIsNoLeftover(t *testing.T) {
	before := goleak.IgnoreCurrent()
	end, ended := make(chan struct{}), make(chan struct{})
	go func() {
		<-end
		close(ended)
	}()
	require.ErrorContains(t, goleak.Find(before), "TestWhatEndsLateIsNoLeftover", "it is there for longer than goleak waits")
	close(end)
	require.NoError(t, leftover.Find(before))
	<-ended
}
