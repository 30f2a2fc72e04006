package store

import (
	"context"

	"carrel.dev/carrel/internal/carrel"
)

// GetOperation reads one operation with all that its status is computed from.
func (s *Store) GetOperation(ctx context.Context, scope Scope, id carrel.OperationID) (*Operation, error) {
	panic("not yet")
}

// ListOperations gives a page of operations, newest first. Org and target (id of a box or image), where not
// empty, narrow it.
func (s *Store) ListOperations(ctx context.Context, scope Scope, org carrel.OrgID, target string, page Page) ([]*Operation, string, error) {
	panic("not yet")
}

// ListAudit gives the newest entries of an organisation, newest first, at most limit.
func (s *Store) ListAudit(ctx context.Context, scope Scope, org carrel.OrgID, limit int) ([]AuditEntry, error) {
	panic("not yet")
}
