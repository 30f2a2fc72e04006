package gvisor

import (
	"testing"

	"carrel.dev/carrel/internal/runtime/runtimetest"
)

func TestConformance(t *testing.T) {
	if testing.Short() {
		return
	}
	runtimetest.Run(t, func(t *testing.T) runtimetest.Harness { return newHarness(t).suite() })
}
