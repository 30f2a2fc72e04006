package main

import (
	"bytes"
	"context"
	"net/http"
	"net/http/httptest"
	"testing"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	carrelv1connect "carrel.dev/carrel/api/carrel/v1/carrelv1connect"
	"carrel.dev/carrel/internal/client"
)

// crowded is an API with one box, for which there is no room: it is found out at the second look.
type crowded struct {
	carrelv1connect.UnimplementedBoxServiceHandler
	carrelv1connect.UnimplementedOperationServiceHandler
	asked int // for a pause
}

func (c *crowded) PauseBox(context.Context, *connect.Request[carrelv1.PauseBoxRequest]) (*connect.Response[carrelv1.Operation], error) {
	c.asked++
	return connect.NewResponse(&carrelv1.Operation{Id: "p1", Progress: "new"}), nil
}

func (c *crowded) GetOperation(context.Context, *connect.Request[carrelv1.GetOperationRequest]) (*connect.Response[carrelv1.Operation], error) {
	return connect.NewResponse(&carrelv1.Operation{Id: "p1", Progress: "waiting to try again"}), nil
}

func (c *crowded) GetBox(context.Context, *connect.Request[carrelv1.GetBoxRequest]) (*connect.Response[carrelv1.Box], error) {
	return connect.NewResponse(noRoom()), nil
}

func noRoom() *carrelv1.Box {
	return &carrelv1.Box{
		Id: "b1", Name: "late", State: carrelv1.State_STATE_PROVISIONING,
		Failure: &carrelv1.Failure{Reason: "no_room", Message: "no node has room", Transient: true},
	}
}

// A box that waits for room must not keep Carrel from being stopped: nothing of it runs, and it may wait for ever.
func TestDownDoesNotWaitForABoxThatWaits(t *testing.T) {
	api := &crowded{}
	mux := http.NewServeMux()
	mux.Handle(carrelv1connect.NewBoxServiceHandler(api))
	mux.Handle(carrelv1connect.NewOperationServiceHandler(api))
	server := httptest.NewUnstartedServer(mux)
	server.Config.Protocols = new(http.Protocols)
	server.Config.Protocols.SetHTTP1(true)
	server.Config.Protocols.SetUnencryptedHTTP2(true)
	server.Start()
	defer server.Close()
	c, err := client.New(client.Config{Context: client.Context{URL: server.URL, Token: "carrel_t_s"}})
	require.NoError(t, err)
	defer c.Close()

	var said bytes.Buffer
	require.NoError(t, pauseOne(t.Context(), c, noRoom(), newProgress(&said)))
	require.Zero(t, api.asked, "what waits already is not asked to pause, which would be for later")
	require.Contains(t, said.String(), "late has not started")
	require.Contains(t, said.String(), "no node has room")

	fresh := noRoom()
	fresh.Failure = nil
	said.Reset()
	require.NoError(t, pauseOne(t.Context(), c, fresh, newProgress(&said)))
	require.Equal(t, 1, api.asked)
	require.Contains(t, said.String(), "late has not started")
}
