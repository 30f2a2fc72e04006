package main

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
)

// A script that waits for room must not wait in silence, and not fill its log either.
func TestWaitingIsSaidOnceWhereThereIsNoTerminal(t *testing.T) {
	var said bytes.Buffer
	line := (&app{stderr: &said}).progressLine(nil)
	for _, progress := range []string{"new", "waiting to try again (attempt 1): no node has room", "waiting to try again (attempt 2): no node has room", "running"} {
		line.show(&carrelv1.Operation{Verb: "create", TargetName: "dev", Progress: progress})
	}
	require.Equal(t, "carrel: create of dev: waiting to try again (attempt 1): no node has room\n", said.String())
}
