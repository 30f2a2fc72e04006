package proxy_test

import (
	"io"
	"testing"

	"github.com/stretchr/testify/require"

	"carrel.dev/carrel/internal/auth"
	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/node/proxy"
)

func TestARemovedGatewayIsCutOffAndRefused(t *testing.T) {
	w := newWorld(t)
	a := newAgent(t, w.run)
	require.NoError(t, w.client.SetRoutes(t.Context(), []proxy.Route{w.route(a)}))
	removed := carrel.NewGatewayID()
	stays, leaves := w.gateway, w.transport(auth.Peer{Role: auth.PeerGateway, ID: string(removed)})
	say := func(s *stream) error {
		if _, err := s.out.Write([]byte("x")); err != nil {
			return err
		}
		_, err := io.ReadFull(s.in, make([]byte, 1))
		return err
	}
	theirs := w.open("agent")
	require.NoError(t, say(theirs))
	w.gateway = leaves
	its := w.open("agent")
	require.NoError(t, say(its))

	identity := w.identity()
	identity.RevokedPeers = []string{string(removed), string(carrel.NewNodeID())}
	require.NoError(t, w.client.SetIdentity(t.Context(), identity))
	_, err := io.ReadAll(its.in)
	require.Error(t, err, "what was open to it is cut")
	after, err := w.connect("agent", w.ticket(nil))
	require.NoError(t, err)
	require.Equal(t, 403, after.status)
	require.NoError(t, say(theirs), "another gateway's goes on")
	w.gateway = stays
	require.NoError(t, say(w.open("agent")))

	w.stop()
	w.start() // it remembers
	w.gateway = w.transport(auth.Peer{Role: auth.PeerGateway, ID: string(removed)})
	after, err = w.connect("agent", w.ticket(nil))
	require.NoError(t, err)
	require.Equal(t, 403, after.status)
}
