package gateway_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/carrel"
)

func TestARemovedNodeIsNotSpokenTo(t *testing.T) {
	s := newStack(t)
	list := func() error {
		_, err := s.processes(s.ticket(nil)).ListProcesses(testContext(t), request(&carrelv1.ListProcessesRequest{Box: string(s.box)}))
		return err
	}
	require.NoError(t, list())
	route := s.route(1)
	s.control.mu.Lock()
	s.control.revoked = []string{string(carrel.NewGatewayID()), route.GetNodeId()}
	s.control.mu.Unlock()
	s.control.setRoute(route) // control still has a route there: the box's run was never ended
	require.Eventually(t, func() bool { return carrel.ReasonOf(list()) == "node_removed" }, within, within/1000)

	s.stopControl()
	s.stopGateway()
	s.startGateway()
	require.Eventually(t, func() bool { return carrel.ReasonOf(list()) == "node_removed" }, within, within/1000, "it remembers")
}
