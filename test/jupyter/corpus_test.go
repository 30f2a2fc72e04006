package jupyter_test

import (
	"testing"

	"carrel.dev/carrel/test/jupyter/corpus"
)

// What clients see of a kernel is the same as at a real Jupyter server, by both of the protocols of their WebSockets.
func TestMessagesAgreeWithARealServer(t *testing.T) {
	real := corpus.Real(t)
	b := newBox(t)
	for name, protocol := range map[string]string{"JSON": "", "v1": corpus.V1} {
		t.Run(name, func(t *testing.T) { corpus.Compare(t, real, b.server, protocol) })
	}
}
