package client

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/timestamppb"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/carrel"
)

// A box was deleted and one of the same name made: what was known of the name is not believed for long.
func TestANameThatLeadsToAnotherBoxIsFollowed(t *testing.T) {
	var made atomic.Bool // the second box
	b := &boxes{ticket: func(int64) (*carrelv1.Ticket, error) {
		box := "old"
		if made.Load() {
			box = "new"
		}
		return &carrelv1.Ticket{Ticket: "ticket of " + box, BoxId: box, ExpireTime: timestamppb.New(time.Now().Add(10 * time.Minute))}, nil
	}}
	gone := carrel.Errorf(carrel.CodePrecondition, ReasonBoxNotRunning, "it is not running")
	ways := map[string]func(c *Client, name string, try func(box string) error) error{
		"calls": func(c *Client, name string, try func(string) error) error {
			_, err := boxCall(t.Context(), c, name, startFor, func(_ context.Context, ticket Ticket) (*connect.Response[carrelv1.ExecuteResponse], error) {
				return connect.NewResponse(&carrelv1.ExecuteResponse{}), try(ticket.Box)
			})
			return err
		},
		"transfers": func(c *Client, name string, try func(string) error) error {
			return c.persist(t.Context(), name, startFor, never, func(_ context.Context, ticket Ticket) error { return try(ticket.Box) })
		},
	}
	for what, way := range ways {
		made.Store(false)
		c := serve(t, b, time.Now)
		require.NoError(t, way(c, "lab", func(string) error { return nil }), what)
		made.Store(true)
		var tried []string
		try := func(box string) error {
			tried = append(tried, box)
			if box == "old" {
				return gone
			}
			return nil
		}
		require.NoError(t, way(c, "lab", try), what)
		require.Equal(t, []string{"old", "new"}, tried, what)

		// Of a box that is only not running, and by its id, it is said.
		tried = nil
		err := way(c, "lab", func(box string) error { tried = append(tried, box); return gone })
		require.Equal(t, ReasonBoxNotRunning, carrel.ReasonOf(err), what)
		err = way(c, "new", func(box string) error { tried = append(tried, box); return gone })
		require.Equal(t, ReasonBoxNotRunning, carrel.ReasonOf(err), what)
		require.Equal(t, []string{"new", "new"}, tried, what)
	}
}

// Who may only look at a box gets no ticket for it, and looks at it by the API token.
func TestWhoMayOnlyLookGoesWithTheAPIToken(t *testing.T) {
	c := serve(t, &boxes{ticket: func(int64) (*carrelv1.Ticket, error) {
		return nil, wireError(connect.CodePermissionDenied, ReasonRoleTooLow)
	}}, time.Now)
	looked := false
	require.NoError(t, c.persist(t.Context(), "lab", startFor, never, func(_ context.Context, ticket Ticket) error {
		looked = true
		require.Equal(t, Ticket{Box: "lab"}, ticket)
		return nil
	}))
	require.True(t, looked)
}
