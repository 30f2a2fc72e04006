package store

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// pipeline is one transaction on one connection, with as few round trips as its statements allow. On a machine whose cores sleep between
// requests a round trip costs more than what most statements do. So nothing is sent for itself of which no answer is wanted: the begin waits for
// the first statement, and those that answer nothing (sqlc's `:exec`) for the next one that does, or for the commit. What goes wrong with one
// that waited is the error of the statement that it was sent with; a query whose errors its caller tells apart is an `:execrows`.
//
// It is what sqlc's queries run on, for one goroutine. The arguments of a statement must stay as they are until the next one has answered.
type pipeline struct {
	conn    *pgxpool.Conn
	waiting *pgx.Batch
	sent    bool // of the transaction, something
	begun   bool // the server said so
}

// openPipeline begins a transaction, of which the server hears with the first statement.
func openPipeline(ctx context.Context, pool *pgxpool.Pool, begin []statement) (*pipeline, error) {
	conn, err := pool.Acquire(ctx)
	if err != nil {
		return nil, err
	}
	p := &pipeline{conn: conn, waiting: &pgx.Batch{}}
	for _, s := range begin {
		p.waiting.Queue(s.sql, s.args...)
	}
	return p, nil
}

// statement is one with its arguments.
type statement struct {
	sql  string
	args []any
}

// answersNothing reports whether a statement is one of sqlc's that answer nothing.
func answersNothing(sql string) bool {
	first, _, _ := strings.Cut(sql, "\n")
	return strings.HasPrefix(first, "-- name:") && strings.HasSuffix(first, ":exec")
}

// nameOf is what a statement is called in errors.
func nameOf(sql string) string {
	first, _, _ := strings.Cut(sql, "\n")
	if name, ok := strings.CutPrefix(first, "-- name: "); ok {
		first, _, _ = strings.Cut(name, " ")
	}
	return first
}

// Exec is part of db.DBTX.
func (p *pipeline) Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error) {
	if answersNothing(sql) {
		p.waiting.Queue(sql, args...)
		return pgconn.CommandTag{}, nil
	}
	results, err := p.send(ctx, sql, args)
	if err != nil {
		return pgconn.CommandTag{}, err
	}
	tag, err := results.Exec()
	return tag, errors.Join(err, closeAfter(results, err))
}

// Query is part of db.DBTX.
func (p *pipeline) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	results, err := p.send(ctx, sql, args)
	if err != nil {
		return nil, err
	}
	rows, err := results.Query()
	if err != nil {
		_ = results.Close()
		return nil, err
	}
	return &pipelineRows{Rows: rows, results: results}, nil
}

// QueryRow is part of db.DBTX.
func (p *pipeline) QueryRow(ctx context.Context, sql string, args ...any) pgx.Row {
	results, err := p.send(ctx, sql, args)
	return pipelineRow{results, err}
}

// send sends what waits and a statement, and answers with the results of that one.
func (p *pipeline) send(ctx context.Context, sql string, args []any) (pgx.BatchResults, error) {
	waiting := p.waiting.Len()
	p.waiting.Queue(sql, args...)
	return p.flush(ctx, waiting)
}

// flush sends what waits, and reads the answers of the first n statements.
func (p *pipeline) flush(ctx context.Context, n int) (pgx.BatchResults, error) {
	batch := p.waiting
	p.waiting, p.sent = &pgx.Batch{}, true
	results := p.conn.SendBatch(ctx, batch)
	for _, s := range batch.QueuedQueries[:n] {
		if _, err := results.Exec(); err != nil {
			_ = results.Close()
			sql := s.SQL
			if unsent := (pgx.ErrPreprocessingBatch{}); errors.As(err, &unsent) { // any of them
				sql = unsent.SQL()
			}
			return nil, fmt.Errorf("%s: %w", nameOf(sql), err)
		}
		p.begun = true
	}
	return results, nil
}

// commit sends what waits and the commit. When its answer is lost, the transaction may be committed; so that one that was not begun is known for
// that, its begin never goes with its commit.
func (p *pipeline) commit(ctx context.Context) error {
	if !p.sent {
		results, err := p.flush(ctx, p.waiting.Len())
		if err == nil {
			err = results.Close()
		}
		if err != nil {
			return err
		}
	}
	results, err := p.send(ctx, "commit", nil)
	if err != nil {
		return err
	}
	tag, err := results.Exec()
	if err = errors.Join(err, closeAfter(results, err)); err == nil && tag.String() == "ROLLBACK" {
		err = pgx.ErrTxCommitRollback
	}
	return err
}

// end gives the connection back, and takes the transaction back unless it is committed.
func (p *pipeline) end(ctx context.Context) {
	defer p.conn.Release() // which closes what is in no good state
	if p.open() {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), connectTimeout) // not at the mercy of the caller's patience
		defer cancel()
		_, _ = p.conn.Exec(undo, "rollback")
	}
}

// open reports whether the server has a transaction to end.
func (p *pipeline) open() bool {
	return p.sent && !p.conn.Conn().IsClosed() && p.conn.Conn().PgConn().TxStatus() != 'I'
}

// closeAfter closes results, whose error is told already if there was one.
func closeAfter(results pgx.BatchResults, told error) error {
	if err := results.Close(); told == nil {
		return err
	}
	return nil
}

// pipelineRows are the rows of a query. They are read to their end or closed before the next statement.
type pipelineRows struct {
	pgx.Rows
	results pgx.BatchResults
	err     error
	closed  bool
}

func (r *pipelineRows) Next() bool {
	if r.Rows.Next() {
		return true
	}
	r.Close()
	return false
}

func (r *pipelineRows) Close() {
	if r.closed {
		return
	}
	r.closed = true
	r.Rows.Close()
	r.err = closeAfter(r.results, r.Rows.Err())
}

func (r *pipelineRows) Err() error {
	if err := r.Rows.Err(); err != nil {
		return err
	}
	return r.err
}

// pipelineRow is the row of a query.
type pipelineRow struct {
	results pgx.BatchResults
	err     error
}

func (r pipelineRow) Scan(into ...any) error {
	if r.err != nil {
		return r.err
	}
	err := r.results.QueryRow().Scan(into...)
	return errors.Join(err, closeAfter(r.results, err))
}
