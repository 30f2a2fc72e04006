package store_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/store"
	"carrel.dev/carrel/internal/store/storetest"
)

const patience = 3 * time.Minute

func woken(t *testing.T, sub *store.Subscription, why string) {
	t.Helper()
	select {
	case <-sub.C:
	case <-time.After(patience):
		require.Fail(t, "not woken", why)
	}
}

// listening waits until a store hears, and empties what it was woken for by that.
func listening(t *testing.T, s *store.Store, subs ...*store.Subscription) {
	t.Helper()
	for _, sub := range subs {
		s.Wake("ready")
		woken(t, sub, "ready")
	}
	for _, sub := range subs {
		select {
		case <-sub.C:
		default:
		}
	}
}

func TestWakeUpsReachOtherProcesses(t *testing.T) {
	w := newWorld(t)
	other := w.db.Open(t, store.Config{Now: w.clock.Now})
	due, watch, node := other.Listen(t.Context(), store.TopicBoxes, "ready"), other.Listen(t.Context(), store.TopicWatch, "ready"), other.Listen(t.Context(), store.TopicNode(w.node), "ready")
	listening(t, w.Store, due, watch, node)
	b := w.create("box")
	woken(t, due, "a new box is due")
	woken(t, watch, "a new box is shown")
	w.assign(b.ID)
	woken(t, node, "the node has a new run")
	w.report(b.ID, carrel.PhaseRunning)
	woken(t, watch, "it runs")
	w.ask(b.ID, carrel.VerbPause)
	woken(t, node, "it has another order")
}

func TestAfterReconnectingEverySubscriberIsWoken(t *testing.T) {
	w := newWorld(t)
	listening(t, w.Store, w.Listen(t.Context(), "ready"))
	require.Eventually(t, func() bool { return w.ListenBackend() != 0 }, patience, time.Millisecond)
	a, b := w.Listen(t.Context(), "a"), w.Listen(t.Context(), "b")
	lost := w.ListenBackend()
	w.sql("select pg_terminate_backend($1)", int64(lost))
	woken(t, a, "after the connection was lost")
	woken(t, b, "after the connection was lost")
	require.NotEqual(t, lost, w.ListenBackend())
	w.Wake("a")
	woken(t, a, "over the new connection")
}

func TestWakeUpsAreCoalesced(t *testing.T) {
	w := newWorld(t)
	sub := w.Listen(t.Context(), "x", "ready")
	listening(t, w.Store, sub)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for i := range 2000 {
				w.Wake("x")
				w.Wake(fmt.Sprint("other", i))
			}
		})
	}
	wg.Wait()
	woken(t, sub, "many times")
}

func TestSubscriptionsEnd(t *testing.T) {
	w := newWorld(t)
	before := w.Subscriptions()
	ctx, cancel := context.WithCancel(t.Context())
	first, second := w.Listen(ctx, "a", "b"), w.Listen(ctx, "a")
	require.Equal(t, before+3, w.Subscriptions())
	first.Close()
	first.Close()
	require.Equal(t, before+1, w.Subscriptions())
	cancel()
	require.Eventually(t, func() bool { return w.Subscriptions() == before }, patience, time.Millisecond)
	second.Close()
}

func TestMigrationsAgainAndAtOnce(t *testing.T) {
	db := storetest.NewDatabase(t)
	require.NoError(t, store.Migrate(t.Context(), db.OwnerURL), "a second time")
	conn, err := pgx.Connect(t.Context(), db.OwnerURL)
	require.NoError(t, err)
	defer func() { _ = conn.Close(context.Background()) }()
	_, err = conn.Exec(t.Context(), "drop schema public cascade; create schema public")
	require.NoError(t, err)
	for _, err := range together(4, func(int) error { return store.Migrate(t.Context(), db.OwnerURL) }) {
		require.NoError(t, err)
	}
	s := db.Open(t, store.Config{})
	_, err = s.Bootstrap(t.Context(), store.Bootstrap{})
	require.NoError(t, err)
}

func TestADatabaseThatIsAwayIsSaidSo(t *testing.T) {
	w := newWorld(t)
	_, err := store.Open(t.Context(), store.Config{SystemURL: "postgres:///x?host=" + t.TempDir()})
	requireCode(t, err, carrel.CodeUnavailable, "database_unavailable")
	w.create("box")
	// Every connection is cut, as when PostgreSQL is started again: the next call gets a new one.
	w.sql("select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()")
	_, _, err = w.ListBoxes(t.Context(), w.scope, store.ListBoxes{})
	require.NoError(t, err)
	// No new ones are let in.
	w.sql("alter role carrel_control connection limit 0")
	defer w.sql("alter role carrel_control connection limit -1")
	w.sql("select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()")
	_, err = w.CreateBox(t.Context(), w.scope, w.newBox("b2"))
	requireCode(t, err, carrel.CodeUnavailable, "database_unavailable")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, _, err = w.ListBoxes(ctx, store.SystemScope(), store.ListBoxes{})
	require.ErrorIs(t, err, context.Canceled)
}

func TestAStoreWithoutTheControlRoleServesNoUsers(t *testing.T) {
	w := newWorld(t)
	s, err := store.Open(t.Context(), store.Config{SystemURL: w.db.SystemURL})
	require.NoError(t, err)
	defer s.Close()
	_, _, err = s.ListBoxes(t.Context(), w.scope, store.ListBoxes{})
	require.ErrorContains(t, err, "no connection for requests of users")
	_, err = s.Nodes(t.Context())
	require.NoError(t, err)
	require.NoError(t, s.Ping(t.Context()))
}
