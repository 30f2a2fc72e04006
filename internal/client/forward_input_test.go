package client

import (
	"context"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/require"

	"carrel.dev/carrel/internal/carrel"
)

// Who ends a session by its context hears that, also when the input hears of the context's end first.
func TestInputThatCannotBeReadKeepsItsCause(t *testing.T) {
	s := newSession(nil, "box", Streams{Stdin: iotest.ErrReader(context.Canceled)})
	var said error
	s.fail = func(err error) { said = err }
	done := make(chan struct{})
	s.readInput(make(chan piece), done)
	<-done
	require.ErrorIs(t, said, context.Canceled)
	require.Equal(t, "stdin_unreadable", carrel.ReasonOf(said))
}
