package lazyflush

import (
	"bufio"
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
)

// counting counts the flushes that reach the connection.
type counting struct {
	http.ResponseWriter
	flushes *atomic.Int64
}

func (c counting) Flush() {
	c.flushes.Add(1)
	c.ResponseWriter.(http.Flusher).Flush()
}

func serve(t *testing.T, handler http.HandlerFunc) (*http.Response, *atomic.Int64) {
	flushes := new(atomic.Int64)
	lazy := Handler(handler)
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		lazy.ServeHTTP(counting{w, flushes}, r)
	}))
	server.EnableHTTP2 = true
	server.StartTLS()
	t.Cleanup(server.Close)
	request, err := http.NewRequestWithContext(context.Background(), http.MethodGet, server.URL, nil)
	require.NoError(t, err)
	response, err := server.Client().Do(request)
	require.NoError(t, err)
	require.Equal(t, 2, response.ProtoMajor)
	t.Cleanup(func() { response.Body.Close() })
	return response, flushes
}

func TestFlushedWhileTheHandlerWaits(t *testing.T) {
	seen := make(chan struct{})
	response, _ := serve(t, func(w http.ResponseWriter, r *http.Request) {
		for range 3 {
			_, _ = io.WriteString(w, "line\n")
			w.(http.Flusher).Flush()
			select {
			case <-seen:
			case <-r.Context().Done():
				return
			}
		}
	})
	lines := bufio.NewReader(response.Body)
	for range 3 {
		line, err := lines.ReadString('\n')
		require.NoError(t, err)
		require.Equal(t, "line\n", line)
		seen <- struct{}{}
	}
	_, err := lines.ReadString('\n')
	require.ErrorIs(t, err, io.EOF)
}

func TestNeighboursLeaveTogetherAndWhole(t *testing.T) {
	const parts = 10_000
	response, flushes := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		for range parts {
			_, _ = io.WriteString(w, "0123456789")
			w.(http.Flusher).Flush()
		}
	})
	all, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	require.Equal(t, strings.Repeat("0123456789", parts), string(all))
	require.Less(t, flushes.Load(), int64(parts))
}

func TestAPanicLeavesNothingBehind(t *testing.T) {
	response, _ := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "part")
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	})
	_, err := io.ReadAll(response.Body)
	require.Error(t, err)
}
