package carreltest_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"connectrpc.com/connect"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/carreltest"
	"carrel.dev/carrel/internal/client"
)

func request[T any](m *T) *connect.Request[T] { return connect.NewRequest(m) }

// reasonOf gives code and reason of an error as a client sees it.
func codeOf(err error) carrel.Code { return carrel.CodeOf(client.Error(err)) }
func reasonOf(err error) string    { return carrel.ReasonOf(client.Error(err)) }

// failed is the error of a call whose answer does not matter.
func failed[T any](_ T, err error) error { return err }

// bounded is a context that ends in time to say what was waited for.
func bounded(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), carreltest.Patience)
	t.Cleanup(cancel)
	return ctx
}

// create makes a box that runs, and gives it.
func create(t *testing.T, c *client.Client, name string) *carrelv1.Box {
	t.Helper()
	op, err := c.Boxes.CreateBox(bounded(t), request(&carrelv1.CreateBoxRequest{Name: name}))
	require.NoError(t, err)
	return finish(t, c, op)
}

// finish waits for an operation about a box, which must succeed, and gives the box.
func finish(t *testing.T, c *client.Client, op *connect.Response[carrelv1.Operation]) *carrelv1.Box {
	t.Helper()
	ctx := bounded(t)
	_, err := c.WaitOperation(ctx, op.Msg, 0, nil)
	require.NoError(t, err)
	if op.Msg.GetVerb() == "delete" {
		return nil
	}
	box, err := c.Boxes.GetBox(ctx, request(&carrelv1.GetBoxRequest{Id: op.Msg.GetTargetId()}))
	require.NoError(t, err)
	return box.Msg
}

// verb does one thing to a box and waits until it is done.
func verb(t *testing.T, c *client.Client, name, box string) *carrelv1.Box {
	t.Helper()
	op, err := ask(bounded(t), c, name, box, "")
	require.NoError(t, err)
	return finish(t, c, op)
}

// ask asks for one thing.
func ask(ctx context.Context, c *client.Client, name, box, requestID string) (*connect.Response[carrelv1.Operation], error) {
	switch name {
	case "start":
		return c.Boxes.StartBox(ctx, request(&carrelv1.StartBoxRequest{Id: box, RequestId: requestID}))
	case "stop":
		return c.Boxes.StopBox(ctx, request(&carrelv1.StopBoxRequest{Id: box, RequestId: requestID}))
	case "pause":
		return c.Boxes.PauseBox(ctx, request(&carrelv1.PauseBoxRequest{Id: box, RequestId: requestID}))
	case "resume":
		return c.Boxes.ResumeBox(ctx, request(&carrelv1.ResumeBoxRequest{Id: box, RequestId: requestID}))
	case "restart":
		return c.Boxes.RestartBox(ctx, request(&carrelv1.RestartBoxRequest{Id: box, RequestId: requestID}))
	case "delete":
		return c.Boxes.DeleteBox(ctx, request(&carrelv1.DeleteBoxRequest{Id: box, RequestId: requestID}))
	}
	return nil, fmt.Errorf("there is no verb %q", name)
}

// exec runs a shell command in a box.
func exec(t *testing.T, c *client.Client, box, script string) (stdout, stderr string, code int) {
	t.Helper()
	var out, errs buffer
	status, err := c.Exec(bounded(t), client.ExecOptions{Box: box, Args: []string{"sh", "-c", script}, Streams: client.Streams{Stdout: &out, Stderr: &errs}})
	require.NoError(t, err)
	return out.String(), errs.String(), status.Code
}

// buffer may be read while it is written.
type buffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// rows reads the database as its superuser does.
func rows[T any](t *testing.T, s *carreltest.Stack, query string, args ...any) []T {
	t.Helper()
	list, err := tryRows[T](t, s, query, args...)
	require.NoError(t, err)
	return list
}

func tryRows[T any](t *testing.T, s *carreltest.Stack, query string, args ...any) ([]T, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), carreltest.Patience)
	defer cancel()
	conn, err := pgx.Connect(ctx, s.OwnerURL)
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	found, err := conn.Query(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(found, pgx.RowTo[T])
}

// clean waits until nothing is left of any box, in the database and on the nodes, and checks that no box ever had two sandboxes
// alive.
func clean(t *testing.T, s *carreltest.Stack) {
	t.Helper()
	s.Eventually("nothing is left", func() error {
		var left []string
		for _, n := range s.Nodes {
			here, err := n.Leftovers(t.Context())
			if err != nil {
				return err
			}
			left = append(left, here...)
		}
		stored, err := tryRows[string](t, s, `
			select 'box ' || name || ' ' || intent from boxes where deleted_at is null
			union all select 'run ' || id || ' ' || phase from runs where ended_at is null
			union all select 'snapshot ' || id from snapshots
			union all select 'chore ' || id from chores where finished_at is null`)
		if err != nil {
			return err
		}
		if left = append(left, stored...); len(left) > 0 {
			return errors.New(strings.Join(left, "\n"))
		}
		return nil
	})
	require.Empty(t, s.Problems())
}

// deleteAll deletes every box that the client sees, and waits until nothing is left.
func deleteAll(t *testing.T, s *carreltest.Stack) {
	t.Helper()
	list, err := s.Admin.Boxes.ListBoxes(bounded(t), request(&carrelv1.ListBoxesRequest{PageSize: 1000}))
	require.NoError(t, err)
	for _, box := range list.Msg.GetBoxes() {
		_, err := ask(bounded(t), s.Admin, "delete", box.GetId(), "")
		require.NoError(t, err)
	}
	clean(t, s)
}
