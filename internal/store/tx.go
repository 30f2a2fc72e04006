package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/store/db"
)

// tx is one transaction of a method. What it must do besides its rows (raise revisions, wake) it collects, and
// it is done at the end, in the order of locks, and after the commit.
type tx struct {
	*db.Queries
	raw    *pipeline
	s      *Store
	scope  Scope
	method string
	now    time.Time
	raised map[carrel.NodeID]bool
	topics map[string]bool
}

// maxAttempts bounds how often a transaction is begun again after a deadlock.
const maxAttempts = 6

// write runs fn in a transaction and commits. fn may run several times: it must set what it answers anew each time.
func (s *Store) write(ctx context.Context, method string, scope Scope, fn func(*tx) error) error {
	return s.transact(ctx, method, scope, true, fn)
}

// read runs fn on one snapshot of the database; it cannot write. fn may run several times, as in write.
func (s *Store) read(ctx context.Context, method string, scope Scope, fn func(*tx) error) error {
	return s.transact(ctx, method, scope, false, fn)
}

func (s *Store) transact(ctx context.Context, method string, scope Scope, write bool, fn func(*tx) error) error {
	for attempt := 1; ; attempt++ {
		begun, err := s.attempt(ctx, method, scope, write, fn)
		if err == nil {
			return nil
		}
		// A pooled connection that died while it lay idle fails at the beginning: the next is a new one.
		again := isDeadlock(err) || !begun && attempt == 1 && isConnection(err)
		if !again || attempt >= maxAttempts || ctx.Err() != nil {
			return mapError(ctx, fmt.Errorf("%s: %w", method, err))
		}
		delay := time.NewTimer(time.Duration(rand.Int64N(int64(attempt) * int64(10*time.Millisecond))))
		select {
		case <-delay.C:
		case <-ctx.Done():
			delay.Stop()
		}
	}
}

func (s *Store) attempt(ctx context.Context, method string, scope Scope, write bool, fn func(*tx) error) (begun bool, err error) {
	begin, err := scope.begin(write)
	if err != nil {
		return false, err
	}
	pool, err := s.pool(scope)
	if err != nil {
		return false, err
	}
	raw, err := openPipeline(ctx, pool, begin)
	if err != nil {
		return false, fmt.Errorf("begin: %w", err)
	}
	// Microseconds are what PostgreSQL keeps: an answer has the same times as a later read.
	t := &tx{
		Queries: db.New(raw), raw: raw, s: s, scope: scope, method: method, now: s.cfg.Now().UTC().Truncate(time.Microsecond),
		raised: map[carrel.NodeID]bool{}, topics: map[string]bool{},
	}
	defer func() {
		begun = raw.begun
		if !begun && ctx.Err() == nil && raw.conn.Conn().IsClosed() {
			pool.Reset() // what cut this connection while it lay idle has cut others
		}
		if err == nil && !write {
			go raw.end(ctx) // nobody waits for the end of what has only read
		} else {
			raw.end(ctx)
		}
	}()
	return false, s.fill(ctx, t, write, fn)
}

// fill runs fn in its transaction, and commits what it wrote.
func (s *Store) fill(ctx context.Context, t *tx, write bool, fn func(*tx) error) error {
	if err := fn(t); err != nil || !write {
		return err
	}
	for _, node := range sortedKeys(t.raised) {
		if err := t.RaiseRevision(ctx, node); err != nil {
			return fmt.Errorf("raise the revision of node %s: %w", node, err)
		}
		t.topics[TopicNode(node)] = true
	}
	if err := t.raw.commit(ctx); err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	s.countCommit(t.method)
	for topic := range t.topics {
		s.Wake(topic)
	}
	return nil
}

// raise notes that a node's desired set changes by this transaction.
func (t *tx) raise(node carrel.NodeID) { t.raised[node] = true }

func (t *tx) wake(topic string) { t.topics[topic] = true }

// actor is how the principal is called in events and audit entries.
func (t *tx) actor() string {
	if t.scope.User != "" {
		return "user:" + string(t.scope.User)
	}
	return "carrel"
}

func (t *tx) audit(ctx context.Context, org carrel.OrgID, target, detail string) error {
	err := t.InsertAudit(ctx, db.InsertAuditParams{OrgID: org, At: t.now, Actor: t.actor(), Method: t.method, Target: target, Detail: detail})
	if err != nil {
		return fmt.Errorf("write the audit entry: %w", err)
	}
	return nil
}

func (t *tx) event(ctx context.Context, org carrel.OrgID, box carrel.BoxID, run carrel.RunID, kind, message, actor string) error {
	err := t.InsertEvent(ctx, db.InsertEventParams{
		ID: carrel.NewEventID(), OrgID: org, BoxID: box, RunID: run, At: t.now, Kind: kind, Message: message, Actor: actor,
	})
	if err != nil {
		return fmt.Errorf("write the event: %w", err)
	}
	return nil
}

// hold makes the rest of the transaction conditional on the lease: nobody can take it before the commit.
func (t *tx) hold(ctx context.Context, lease Lease) error {
	_, err := t.HoldLease(ctx, lease.Name, lease.Holder, lease.Term, t.now)
	if errors.Is(err, pgx.ErrNoRows) {
		return ErrLeaseLost
	}
	return err
}

// begin are the statements that begin a transaction and say what it may see.
func (scope Scope) begin(write bool) ([]statement, error) {
	begin := []statement{{sql: "begin isolation level repeatable read read only"}}
	if write {
		begin[0].sql = "begin isolation level read committed"
	}
	if scope.system {
		return begin, nil
	}
	if scope.User != "" && carrel.IDKind(string(scope.User)) == 0 {
		return nil, fmt.Errorf("scope: %q is no id of a user", scope.User)
	}
	for _, org := range scope.Orgs {
		if carrel.IDKind(string(org)) == 0 {
			return nil, fmt.Errorf("scope: %q is no id of an organisation", org)
		}
	}
	platform := "off"
	if scope.Platform {
		platform = "on"
	}
	return append(begin, statement{
		sql:  "select set_config('carrel.orgs', $1, true), set_config('carrel.platform', $2, true), set_config('carrel.user', $3, true)",
		args: []any{strings.Join(toStrings(scope.Orgs), ","), platform, string(scope.User)},
	}), nil
}

func sqlState(err error) string {
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		return pg.Code
	}
	return ""
}

// violates reports whether err says that a unique index has the value already.
func violates(err error, index string) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && pg.Code == "23505" && pg.ConstraintName == index
}

// lacksImage reports whether err says that the image of a new box or template was deleted.
func lacksImage(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && pg.Code == "23514" && pg.ConstraintName == "image_is_there"
}

func isDeadlock(err error) bool {
	state := sqlState(err)
	return state == "40001" || state == "40P01"
}

// isConnection reports whether PostgreSQL could not be reached or went away.
func isConnection(err error) bool {
	var connect *pgconn.ConnectError
	if errors.As(err, &connect) {
		return true
	}
	if state := sqlState(err); state != "" {
		// 57P: it shuts down or starts; 53300: it has no connection left; 25P03: it ended an idle transaction.
		return strings.HasPrefix(state, "08") || strings.HasPrefix(state, "57P") || state == "53300" || state == "25P03"
	}
	var network net.Error
	return errors.As(err, &network) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed) ||
		pgconn.SafeToRetry(err) || strings.Contains(err.Error(), "conn closed")
}

// mapError gives the errors of the database their meaning. Errors that have one already stay.
func mapError(ctx context.Context, err error) error {
	var known *carrel.Error
	if err == nil || errors.As(err, &known) {
		return err
	}
	if ctx.Err() != nil {
		return fmt.Errorf("%w (%w)", err, context.Cause(ctx))
	}
	unavailable := func(reason, message string) error {
		return &carrel.Error{Code: carrel.CodeUnavailable, Reason: reason, Message: message, RetryAfter: time.Second, Cause: err}
	}
	switch state := sqlState(err); {
	case state == "57014" || state == "55P03" || isDeadlock(err):
		return unavailable("database_busy", "the database is too busy to answer in time; try again")
	case state == "42501":
		e := carrel.Errorf(carrel.CodeDenied, "not_allowed", "this organisation's data may not be changed by you")
		e.Cause = err
		return e
	case state == "22021" || state == "22P05": // the only text of ours that PostgreSQL cannot keep
		e := carrel.Errorf(carrel.CodeInvalid, "bad_text", "a text of the request has a zero byte in it")
		e.Cause = err
		return e
	case isConnection(err):
		return unavailable("database_unavailable", "the database does not answer; running boxes go on, try again in a moment")
	}
	return err
}

func sortedKeys[K ~string, V any](set map[K]V) []K {
	keys := make([]K, 0, len(set))
	for k := range set {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

func toStrings[K ~string](ids []K) []string {
	out := make([]string, len(ids))
	for i, id := range ids {
		out[i] = string(id)
	}
	return out
}

func fromStrings[K ~string](ids []string) []K {
	out := make([]K, len(ids))
	for i, id := range ids {
		out[i] = K(id)
	}
	return out
}

func timeOf(t *time.Time) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.UTC()
}

func timePtr(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC()
	return &t
}

// encode makes jsonb of a value of ours, which cannot fail.
func encode(v any) []byte {
	data, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("store: encode %T: %v", v, err))
	}
	return data
}

func encodeMap(m map[string]string) []byte {
	if m == nil {
		return []byte("{}")
	}
	return encode(m)
}

func encodeList(l []string) []byte {
	if l == nil {
		return []byte("[]")
	}
	return encode(l)
}

func encodeFailure(f *carrel.Failure) []byte {
	if f == nil {
		return nil
	}
	return encode(f)
}

// decode reads jsonb that we wrote.
func decode(data []byte, into any, what string) error {
	if len(data) == 0 {
		return nil
	}
	if err := json.Unmarshal(data, into); err != nil {
		return fmt.Errorf("read %s: %w", what, err)
	}
	return nil
}

func decodeFailure(data []byte) (*carrel.Failure, error) {
	if len(data) == 0 {
		return nil, nil
	}
	var f carrel.Failure
	return &f, decode(data, &f, "a failure")
}

// clean makes a text from a machine fit for PostgreSQL: at most limit bytes, valid UTF-8, no zero bytes.
func clean(s string, limit int) string {
	if len(s) > limit {
		s = s[:limit]
	}
	return strings.ReplaceAll(strings.ToValidUTF8(s, "?"), "\x00", "")
}

// replayed refuses a request id that is used again for something else.
func replayed(request Request, hash []byte) error {
	if !slices.Equal(request.Hash, hash) {
		return carrel.Errorf(carrel.CodeInvalid, "request_id_reused",
			"the request id %q was used before for another request; use a new id for a new request", request.ID)
	}
	return nil
}

func (r Request) check() error {
	if len(r.ID) > 128 || clean(r.ID, 128) != r.ID {
		return carrel.Errorf(carrel.CodeInvalid, "bad_request_id", "a request id has at most 128 bytes of text")
	}
	return nil
}
