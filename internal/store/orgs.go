package store

import (
	"context"

	"carrel.dev/carrel/internal/carrel"
)

// Bootstrap is what the first start makes.
type Bootstrap struct {
	// AdminToken is the first administrator's; User is ignored. An id that is there already is left as it is.
	AdminToken NewToken
}

// Bootstrapped is what is there after it.
type Bootstrapped struct {
	Cluster Cluster
	Admin   carrel.UserID
}

// Bootstrap makes the cluster's id, the organisations system and default, the user admin (operator, owner of
// both) and the administrator's token, whatever of it is missing. Any number of processes may call it at once.
func (s *Store) Bootstrap(ctx context.Context, b Bootstrap) (Bootstrapped, error) { panic("not yet") }

// Cluster names this installation.
func (s *Store) Cluster(ctx context.Context) (Cluster, error) { panic("not yet") }

// RaiseIncarnation is called after PostgreSQL was restored with possible loss: epochs given from then on are
// above all that were given before.
func (s *Store) RaiseIncarnation(ctx context.Context) (Cluster, error) { panic("not yet") }

// CreateOrg makes an organisation with its first owner. A taken name is refused with CodeExists, org_name_taken.
func (s *Store) CreateOrg(ctx context.Context, scope Scope, name string, owner carrel.UserID) (Org, error) {
	panic("not yet")
}

// GetOrg reads an organisation by id or name.
func (s *Store) GetOrg(ctx context.Context, scope Scope, ref string) (Org, error) { panic("not yet") }

// ListOrgs gives the organisations of the scope, by name.
func (s *Store) ListOrgs(ctx context.Context, scope Scope) ([]Org, error) { panic("not yet") }

// SetMember gives a user (id or name) a role in an organisation. The last owner keeps theirs
// (CodePrecondition, last_owner).
func (s *Store) SetMember(ctx context.Context, scope Scope, org carrel.OrgID, user, role string) (Member, error) {
	panic("not yet")
}

// RemoveMember takes a user (id or name) out of an organisation.
func (s *Store) RemoveMember(ctx context.Context, scope Scope, org carrel.OrgID, user string) error {
	panic("not yet")
}

// ListMembers gives the members of an organisation, by name.
func (s *Store) ListMembers(ctx context.Context, scope Scope, org carrel.OrgID) ([]Member, error) {
	panic("not yet")
}

// CreateUser makes a local user. A taken name is refused with CodeExists, user_name_taken.
func (s *Store) CreateUser(ctx context.Context, scope Scope, name string, operator bool) (User, error) {
	panic("not yet")
}

// GetUser reads a user by id or name. Every user can be seen: who may ask is the policy table's business.
func (s *Store) GetUser(ctx context.Context, scope Scope, ref string) (User, error) { panic("not yet") }

// ListUsers gives every user, by name.
func (s *Store) ListUsers(ctx context.Context, scope Scope) ([]User, error) { panic("not yet") }

// UserMembers gives the roles that a user has, by organisation.
func (s *Store) UserMembers(ctx context.Context, user carrel.UserID) ([]Member, error) {
	panic("not yet")
}

// CreateToken keeps a new token of scope's user, or of any user with a platform scope.
func (s *Store) CreateToken(ctx context.Context, scope Scope, token NewToken) (Token, error) {
	panic("not yet")
}

// ListTokens gives the tokens of a user, newest first.
func (s *Store) ListTokens(ctx context.Context, scope Scope, user carrel.UserID) ([]Token, error) {
	panic("not yet")
}

// RevokeToken ends a token for ever. It may be called again.
func (s *Store) RevokeToken(ctx context.Context, scope Scope, id carrel.TokenID) (Token, error) {
	panic("not yet")
}

// LookupToken says who the token with this hash (SHA-256 of the secret) speaks for. One that is unknown, revoked or expired
// is refused with CodeUnauthorized.
func (s *Store) LookupToken(ctx context.Context, hash []byte) (TokenOwner, error) { panic("not yet") }
