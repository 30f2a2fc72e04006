package proxy_test

import (
	"io"
	"net"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"

	"carrel.dev/carrel/internal/node/proxy"
)

func TestAPortIsReachedPastTheAgentWhereItCanBe(t *testing.T) {
	w := newWorld(t)
	a := newAgent(t, w.run)
	require.NoError(t, w.client.SetRoute(t.Context(), w.route(a)))
	direct, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	go func() {
		for {
			c, err := direct.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, "past the agent")
			_ = c.Close()
		}
	}()
	port := direct.Addr().(*net.TCPAddr).Port
	answer := func(target string) string {
		s := w.open(target)
		_ = s.out.Close()
		got, err := io.ReadAll(s.in)
		require.NoError(t, err)
		return string(got)
	}
	require.Equal(t, "past the agent", answer(proxy.PortTarget(port)))
	require.Equal(t, "end", answer("tcp/localhost:"+strconv.Itoa(port)), "who names an address in the box is taken at their word: the agent dials it")
	require.NoError(t, direct.Close())
	require.Equal(t, "end", answer(proxy.PortTarget(port)), "what does not answer from outside, the agent dials")

	own, err := w.connect(proxy.PortTarget(a.listener.Addr().(*net.TCPAddr).Port), w.ticket(nil))
	require.NoError(t, err)
	require.Equal(t, "target_refused", own.reason, "the agent's own port")
	for _, target := range []string{"port/", "port/0", "port/65536", "port/-1", "port/http", "port/80 control"} {
		s, err := w.connect(target, w.ticket(nil))
		require.NoError(t, err)
		require.Equal(t, 400, s.status, target)
	}
}
