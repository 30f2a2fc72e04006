package main

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"
)

// Two things that go on at once, where there is no terminal, are not told by turns for ever.
func TestWhatIsSaidOnceIsNotRepeated(t *testing.T) {
	var said bytes.Buffer
	out := newProgress(&said)
	one, two := out.step("One"), out.step("Two")
	for range 3 {
		one.update("goes")
		two.update("goes")
	}
	one.update("ends")
	require.Equal(t, "One ... goes\nTwo ... goes\nOne ... ends\n", said.String())
}
