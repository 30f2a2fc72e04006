package gateway_test

import (
	"testing"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/gateway"
)

// A page that is left open reads again whatever a program in the box writes: that is nobody's presence, and keeps no box awake.
func TestReadingAgainIsNobodysPresence(t *testing.T) {
	s := newFileStack(t)
	require.False(t, gateway.WorkedIn(s.gateway, s.box), "looking is nothing")
	noted := func(want bool, what string) {
		t.Helper()
		require.Equal(t, want, gateway.WorkedIn(s.gateway, s.box), what)
	}
	rpc := s.service(s.bearer)
	read := func(path string) {
		t.Helper()
		stream, err := rpc.ReadFile(testContext(t), connect.NewRequest(&carrelv1.ReadFileRequest{Box: string(s.box), Path: path}))
		require.NoError(t, err)
		for stream.Receive() { //nolint:revive // to its end
		}
		require.NoError(t, stream.Err())
		require.NoError(t, stream.Close())
	}
	for range 2 {
		for _, name := range []string{"a", "b", "c"} {
			require.Equal(t, 200, s.do("PUT", "/~/"+name, "text").status)
			noted(true, "each write is somebody's")
		}
	}
	require.Equal(t, 200, s.do("GET", "/~/a", "").status)
	noted(true, "somebody reads")
	for range 3 {
		require.Equal(t, 200, s.do("GET", "/~/a", "").status)
		noted(false, "and a program reads it again")
	}
	require.Equal(t, 206, s.do("GET", "/~/a", "", "Range", "bytes=0-1").status)
	noted(false, "or a part of it")
	read("b")
	noted(true, "somebody reads")
	read("b")
	noted(false, "and a program reads it again")
	require.Equal(t, 200, s.do("HEAD", "/~/c", "").status)
	_, err := rpc.StatFile(testContext(t), connect.NewRequest(&carrelv1.StatFileRequest{Box: string(s.box), Path: "c"}))
	require.NoError(t, err)
	_, err = rpc.ListFiles(testContext(t), connect.NewRequest(&carrelv1.ListFilesRequest{Box: string(s.box), Path: "."}))
	require.NoError(t, err)
	noted(false, "who looks is nobody")
	require.Equal(t, 200, s.do("GET", "/~/c", "", "Carrel-Activity", "none").status)
	noted(false, "nor who says so")
	require.Equal(t, 200, s.do("GET", "/~/c", "").status)
	noted(true, "somebody reads what nobody read before")
	require.Equal(t, 200, s.do("PUT", "/~/c", "a program's", "Carrel-Activity", "none").status)
	noted(false, "nor a writer that says so")
}
