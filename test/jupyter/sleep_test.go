package jupyter_test

import (
	"context"
	"net/http"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
)

// A box that sleeps is not woken by what clients poll, which is told to try again later, but by somebody who does something.
func TestASleepingBoxWakesForSomebody(t *testing.T) {
	b := newBox(t)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	op, err := b.Admin.Boxes.PauseBox(ctx, connect.NewRequest(&carrelv1.PauseBoxRequest{Id: b.id}))
	require.NoError(t, err)
	_, err = b.Admin.WaitOperation(ctx, op.Msg, 0, nil)
	require.NoError(t, err)
	ask := func(method, path, body string) int {
		request, err := http.NewRequestWithContext(ctx, method, b.server.URL+path, strings.NewReader(body))
		require.NoError(t, err)
		request.Header.Set("Authorization", "token "+b.server.Token)
		response, err := http.DefaultClient.Do(request)
		require.NoError(t, err)
		defer response.Body.Close()
		return response.StatusCode
	}
	state := func() carrelv1.State {
		box, err := b.Admin.Boxes.GetBox(ctx, connect.NewRequest(&carrelv1.GetBoxRequest{Id: b.id}))
		require.NoError(t, err)
		return box.Msg.GetState()
	}
	// What the gateway remembers of the running box ends within a moment.
	require.Eventually(t, func() bool { return ask("GET", "api/kernels", "") == http.StatusServiceUnavailable }, patience, 50*time.Millisecond)
	for _, path := range []string{"api/kernels", "api/status", "api/sessions", "api/terminals", "api/kernelspecs"} {
		require.Equal(t, http.StatusServiceUnavailable, ask("GET", path, ""), path)
	}
	require.Equal(t, carrelv1.State_STATE_PAUSED, state())
	require.Equal(t, http.StatusCreated, ask("PUT", "api/contents/note.txt", `{"type":"file","format":"text","content":"awake"}`))
	require.Equal(t, carrelv1.State_STATE_RUNNING, state())
}
