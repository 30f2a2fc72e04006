package store

import (
	"context"

	"carrel.dev/carrel/internal/store/db"
)

// Transact lets tests run statements of their own in a writing transaction of the store.
func (s *Store) Transact(ctx context.Context, scope Scope, fn func(db.DBTX) error) error {
	return s.write(ctx, "Test", scope, func(t *tx) error { return fn(t.raw) })
}

// ListenBackend is the process of PostgreSQL that serves the listening connection; 0: none yet.
func (s *Store) ListenBackend() uint32 {
	s.wake.mu.Lock()
	defer s.wake.mu.Unlock()
	return s.wake.backend
}

// Subscriptions counts who listens.
func (s *Store) Subscriptions() int {
	s.wake.mu.Lock()
	defer s.wake.mu.Unlock()
	n := 0
	for _, subs := range s.wake.subs {
		n += len(subs)
	}
	return n
}
