package store_test

import (
	"errors"
	"fmt"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/store"
	"carrel.dev/carrel/internal/store/db"
)

// A statement that answers nothing is sent with the next one; what goes wrong with it is said by its name, and takes the transaction back.
func TestStatementsThatAnswerNothingFailWithTheNext(t *testing.T) {
	w := newWorld(t)
	const insert = "-- name: Later :exec\ninsert into settings_of_test (n) values ($1)"
	w.sql("create table settings_of_test (n int primary key)")
	defer w.sql("drop table settings_of_test")
	w.sql("grant all on settings_of_test to carrel_system")
	add := func(tx db.DBTX, n int) {
		_, err := tx.Exec(t.Context(), insert, n)
		require.NoError(t, err, "it waits")
	}
	count := func() (n int) {
		require.NoError(t, w.Transact(t.Context(), store.SystemScope(), func(tx db.DBTX) error {
			return tx.QueryRow(t.Context(), "select count(*) from settings_of_test").Scan(&n)
		}))
		return n
	}

	require.NoError(t, w.Transact(t.Context(), store.SystemScope(), func(tx db.DBTX) error {
		add(tx, 1)
		add(tx, 2)
		return nil
	}), "sent with the commit")
	require.Equal(t, 2, count())

	require.NoError(t, w.Transact(t.Context(), store.SystemScope(), func(tx db.DBTX) error {
		add(tx, 3)
		var n int
		if err := tx.QueryRow(t.Context(), "select count(*) from settings_of_test").Scan(&n); err != nil {
			return err
		}
		require.Equal(t, 3, n, "what waited is done before what is asked next")
		rows, err := tx.Query(t.Context(), "select n from settings_of_test order by n")
		if err != nil {
			return err
		}
		all, err := pgx.CollectRows(rows, pgx.RowTo[int])
		require.Equal(t, []int{1, 2, 3}, all)
		return err
	}))

	for name, then := range map[string]func(db.DBTX) error{
		"the commit": func(db.DBTX) error { return nil },
		"a row": func(tx db.DBTX) error {
			var n int
			return tx.QueryRow(t.Context(), "select 1").Scan(&n)
		},
		"rows": func(tx db.DBTX) error {
			rows, err := tx.Query(t.Context(), "select 1")
			if err != nil {
				return err
			}
			_, err = pgx.CollectRows(rows, pgx.RowTo[int])
			return err
		},
		"a statement that counts": func(tx db.DBTX) error {
			_, err := tx.Exec(t.Context(), "update settings_of_test set n = n")
			return err
		},
	} {
		err := w.Transact(t.Context(), store.SystemScope(), func(tx db.DBTX) error {
			add(tx, 4)
			add(tx, 1)
			return then(tx)
		})
		require.ErrorContains(t, err, "Later", name)
		require.ErrorContains(t, err, "settings_of_test_pkey", name)
		require.Equal(t, 3, count(), "after %s nothing is left of the transaction", name)
	}

	refused := errors.New("refused")
	require.ErrorIs(t, w.Transact(t.Context(), store.SystemScope(), func(tx db.DBTX) error {
		add(tx, 5)
		return refused
	}), refused)
	require.Equal(t, 3, count(), "what was never sent was never done")
}

// An error that the caller passes over must not end as a commit of half of it.
func TestATransactionThatFailedIsNotCommitted(t *testing.T) {
	w := newWorld(t)
	err := w.Transact(t.Context(), store.SystemScope(), func(tx db.DBTX) error {
		_, err := tx.Exec(t.Context(), "select 1/0")
		require.Error(t, err)
		return nil
	})
	require.ErrorIs(t, err, pgx.ErrTxCommitRollback)
}

// When the server was started again, every connection that lay idle is dead: callers notice nothing.
func TestManyDeadConnectionsFailNobody(t *testing.T) {
	w := newWorld(t)
	box := w.create("box")
	_, mark, err := w.ChangedBoxes(t.Context(), store.SystemScope(), "", "", 0)
	require.NoError(t, err)
	w.sql("update boxes set intent = 'deleted', deleted_at = now(), changed_xid = pg_current_xact_id()::text::bigint where id = $1", box.ID)
	for name, use := range map[string]func() error{
		"a read": func() error {
			_, _, err := w.ListBoxes(t.Context(), w.scope, store.ListBoxes{})
			return err
		},
		"a write": func() error {
			_, err := w.CreateUser(t.Context(), w.operator, string(carrel.NewUserID()), false)
			return err
		},
		"a write that asks nothing": func() error {
			return w.Transact(t.Context(), store.SystemScope(), func(tx db.DBTX) error {
				_, err := tx.Exec(t.Context(), "-- name: Later :exec\nupdate boxes set name = name")
				return err
			})
		},
		"changes": func() error {
			boxes, _, err := w.ChangedBoxes(t.Context(), store.SystemScope(), "", "", mark)
			if err == nil && len(boxes) != 1 {
				err = fmt.Errorf("%d boxes changed; it was one that was deleted", len(boxes))
			}
			return err
		},
	} {
		for range 2 {
			for _, err := range together(12, func(int) error { return use() }) {
				require.NoError(t, err, name)
			}
			w.sql("select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()")
		}
		require.NoError(t, use(), name)
	}
}
