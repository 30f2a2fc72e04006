package store

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/store/db"
)

// Bootstrap is what the first start makes.
type Bootstrap struct {
	// AdminToken is the first administrator's; User and Description are ignored. There is one at a time: a new id revokes
	// the one before. An id that is there already is left as it is; CodePrecondition, admin_token_revoked, when it was
	// revoked.
	AdminToken NewToken
}

// Bootstrapped is what is there after it.
type Bootstrapped struct {
	Cluster Cluster
	Admin   carrel.UserID
}

// AdminName is the name of the first administrator.
const AdminName = "admin"

// AdminTokenDescription tells the administrator's token from those that the administrator made; no other may have it.
const AdminTokenDescription = "first administrator"

// Bootstrap makes the cluster's id, the organisations system and default, the user admin (operator, owner of
// both) and the administrator's token, whatever of it is missing. Any number of processes may call it at once.
func (s *Store) Bootstrap(ctx context.Context, b Bootstrap) (Bootstrapped, error) {
	var done Bootstrapped
	err := s.write(ctx, "Bootstrap", SystemScope(), func(t *tx) error {
		if err := t.LockBootstrap(ctx); err != nil {
			return fmt.Errorf("wait for others: %w", err)
		}
		c, err := t.GetCluster(ctx)
		switch {
		case errors.Is(err, pgx.ErrNoRows):
			if c, err = t.firstStart(ctx); err != nil {
				return err
			}
		case err != nil:
			return err
		}
		admin, err := t.GetUser(ctx, AdminName)
		if err != nil {
			return fmt.Errorf("find the first administrator: %w", err)
		}
		done = Bootstrapped{Cluster: Cluster{ID: c.ID, Incarnation: c.Incarnation, SystemOrg: c.SystemOrg, DefaultOrg: c.DefaultOrg}, Admin: admin.ID}
		if b.AdminToken.ID == "" {
			return nil
		}
		return t.putAdminToken(ctx, admin.ID, b.AdminToken)
	})
	return done, err
}

func (t *tx) putAdminToken(ctx context.Context, admin carrel.UserID, token NewToken) error {
	n, err := t.InsertToken(ctx, db.InsertTokenParams{
		ID: token.ID, UserID: admin, Description: AdminTokenDescription, Hash: token.Hash, CreatedAt: t.now, ExpiresAt: timePtr(token.ExpiresAt),
	})
	if err != nil {
		return fmt.Errorf("keep the administrator's token: %w", err)
	}
	if n == 0 {
		revoked, err := t.TokenRevoked(ctx, token.ID)
		if err != nil {
			return fmt.Errorf("read the administrator's token: %w", err)
		}
		if revoked {
			return carrel.Errorf(carrel.CodePrecondition, "admin_token_revoked", "the administrator's token %s was revoked", token.ID)
		}
		return nil
	}
	old, err := t.RevokeOtherTokens(ctx, t.now, admin, AdminTokenDescription, token.ID)
	if err != nil {
		return fmt.Errorf("revoke the administrator's former token: %w", err)
	}
	t.wake(TopicAccess)
	for _, id := range old {
		if err := t.audit(ctx, "", string(id), "replaced by "+string(token.ID)); err != nil {
			return err
		}
	}
	return nil
}

func (t *tx) firstStart(ctx context.Context) (db.GetClusterRow, error) {
	c := db.GetClusterRow{ID: string(carrel.NewOrgID())[1:], Incarnation: 1, SystemOrg: carrel.NewOrgID(), DefaultOrg: carrel.NewOrgID()}
	admin := carrel.NewUserID()
	_, system := t.InsertOrg(ctx, c.SystemOrg, "system", true, t.now)
	_, first := t.InsertOrg(ctx, c.DefaultOrg, "default", false, t.now)
	_, user := t.InsertUser(ctx, admin, AdminName, true, t.now)
	return c, errors.Join(
		system, first, user,
		t.InsertCluster(ctx, c.ID, c.SystemOrg, c.DefaultOrg),
		t.PutMember(ctx, c.SystemOrg, admin, "owner"),
		t.PutMember(ctx, c.DefaultOrg, admin, "owner"),
	)
}

// Cluster names this installation.
func (s *Store) Cluster(ctx context.Context) (Cluster, error) {
	var cluster Cluster
	err := s.read(ctx, "Cluster", SystemScope(), func(t *tx) (err error) {
		cluster, err = t.cluster(ctx)
		return err
	})
	return cluster, err
}

func (t *tx) cluster(ctx context.Context) (Cluster, error) {
	c, err := t.GetCluster(ctx)
	if err != nil {
		return Cluster{}, fmt.Errorf("read the cluster: %w", err)
	}
	return Cluster{ID: c.ID, Incarnation: c.Incarnation, SystemOrg: c.SystemOrg, DefaultOrg: c.DefaultOrg}, nil
}

// RaiseIncarnation is called after PostgreSQL was restored with possible loss: epochs given from then on are
// above all that were given before.
func (s *Store) RaiseIncarnation(ctx context.Context) (Cluster, error) {
	var cluster Cluster
	err := s.write(ctx, "RaiseIncarnation", SystemScope(), func(t *tx) (err error) {
		if err := errors.Join(t.RaiseIncarnation(ctx), t.RaiseAllRevisions(ctx)); err != nil {
			return err
		}
		t.wake(topicAll)
		cluster, err = t.cluster(ctx)
		return err
	})
	return cluster, err
}

// CreateOrg makes an organisation with its first owner. A taken name is refused with CodeExists, org_name_taken.
// The scope must be a platform one.
func (s *Store) CreateOrg(ctx context.Context, scope Scope, name string, owner carrel.UserID) (Org, error) {
	var org Org
	err := s.write(ctx, "CreateOrg", scope, func(t *tx) error {
		org = Org{ID: carrel.NewOrgID(), Name: name, CreatedAt: t.now}
		_, err := t.InsertOrg(ctx, org.ID, name, false, t.now)
		if violates(err, "orgs_name_key") {
			return carrel.Errorf(carrel.CodeExists, "org_name_taken", "there is an organisation called %q already; take another name", name)
		}
		if err != nil {
			return fmt.Errorf("insert the organisation: %w", err)
		}
		if err := t.PutMember(ctx, org.ID, owner, "owner"); err != nil {
			return fmt.Errorf("make the first owner: %w", err)
		}
		t.wake(TopicAccess)
		return t.audit(ctx, org.ID, string(org.ID), name)
	})
	return org, err
}

// GetOrg reads an organisation by id or name.
func (s *Store) GetOrg(ctx context.Context, scope Scope, ref string) (Org, error) {
	var org Org
	err := s.read(ctx, "GetOrg", scope, func(t *tx) error {
		r, err := t.GetOrg(ctx, ref)
		if errors.Is(err, pgx.ErrNoRows) {
			return carrel.NotFound("organisation", ref)
		}
		org = Org{ID: r.ID, Name: r.Name, System: r.System, CreatedAt: r.CreatedAt.UTC()}
		return err
	})
	return org, err
}

// ListOrgs gives the organisations of the scope, by name.
func (s *Store) ListOrgs(ctx context.Context, scope Scope) ([]Org, error) {
	var orgs []Org
	err := s.read(ctx, "ListOrgs", scope, func(t *tx) error {
		orgs = nil
		rows, err := t.ListOrgs(ctx)
		for _, r := range rows {
			orgs = append(orgs, Org{ID: r.ID, Name: r.Name, System: r.System, CreatedAt: r.CreatedAt.UTC()})
		}
		return err
	})
	return orgs, err
}

// SetMember gives a user (id or name) a role in an organisation. The last owner keeps theirs
// (CodePrecondition, last_owner).
func (s *Store) SetMember(ctx context.Context, scope Scope, org carrel.OrgID, user, role string) (Member, error) {
	var member Member
	err := s.write(ctx, "SetMember", scope, func(t *tx) error {
		u, err := t.member(ctx, org, user)
		if err != nil {
			return err
		}
		if role != "owner" {
			if err := t.keepOwner(ctx, org, u.ID); err != nil {
				return err
			}
		}
		if err := t.PutMember(ctx, org, u.ID, role); err != nil {
			return fmt.Errorf("write the membership: %w", err)
		}
		member = Member{Org: org, User: u.ID, UserName: u.Name, Role: role}
		t.wake(TopicAccess)
		return t.audit(ctx, org, string(u.ID), role)
	})
	return member, err
}

// member locks the organisation's membership and finds a user.
func (t *tx) member(ctx context.Context, org carrel.OrgID, user string) (db.User, error) {
	if err := t.LockMembers(ctx, string(org)); err != nil {
		return db.User{}, fmt.Errorf("lock the membership: %w", err)
	}
	if _, err := t.GetOrg(ctx, string(org)); errors.Is(err, pgx.ErrNoRows) {
		return db.User{}, carrel.NotFound("organisation", string(org))
	} else if err != nil {
		return db.User{}, err
	}
	u, err := t.GetUser(ctx, user)
	if errors.Is(err, pgx.ErrNoRows) {
		return u, carrel.NotFound("user", user)
	}
	return u, err
}

// keepOwner refuses to take the role of the only owner.
func (t *tx) keepOwner(ctx context.Context, org carrel.OrgID, user carrel.UserID) error {
	m, err := t.GetMember(ctx, org, user)
	if errors.Is(err, pgx.ErrNoRows) || err == nil && m.Role != "owner" {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read the membership: %w", err)
	}
	others, err := t.CountOtherOwners(ctx, org, user)
	if err != nil {
		return fmt.Errorf("count the owners: %w", err)
	}
	if others == 0 {
		return carrel.Errorf(carrel.CodePrecondition, "last_owner", "this is the only owner of the organisation; make somebody else an owner first")
	}
	return nil
}

// RemoveMember takes a user (id or name) out of an organisation.
func (s *Store) RemoveMember(ctx context.Context, scope Scope, org carrel.OrgID, user string) error {
	return s.write(ctx, "RemoveMember", scope, func(t *tx) error {
		u, err := t.member(ctx, org, user)
		if err != nil {
			return err
		}
		if err := t.keepOwner(ctx, org, u.ID); err != nil {
			return err
		}
		n, err := t.DeleteMember(ctx, org, u.ID)
		if err != nil {
			return fmt.Errorf("delete the membership: %w", err)
		}
		if n == 0 {
			return carrel.NotFound("member", user)
		}
		t.wake(TopicAccess)
		return t.audit(ctx, org, string(u.ID), "")
	})
}

// ListMembers gives the members of an organisation, by name.
func (s *Store) ListMembers(ctx context.Context, scope Scope, org carrel.OrgID) ([]Member, error) {
	var members []Member
	err := s.read(ctx, "ListMembers", scope, func(t *tx) error {
		members = nil
		rows, err := t.ListMembers(ctx, org)
		for _, r := range rows {
			members = append(members, Member{Org: r.OrgID, User: r.UserID, UserName: r.UserName, Role: r.Role})
		}
		return err
	})
	return members, err
}

// CreateUser makes a local user. A taken name is refused with CodeExists, user_name_taken. The scope must be a platform one.
func (s *Store) CreateUser(ctx context.Context, scope Scope, name string, operator bool) (User, error) {
	var user User
	err := s.write(ctx, "CreateUser", scope, func(t *tx) error {
		user = User{ID: carrel.NewUserID(), Name: name, Operator: operator, CreatedAt: t.now}
		_, err := t.InsertUser(ctx, user.ID, name, operator, t.now)
		if violates(err, "users_name_key") {
			return carrel.Errorf(carrel.CodeExists, "user_name_taken", "there is a user called %q already; take another name", name)
		}
		if err != nil {
			return fmt.Errorf("insert the user: %w", err)
		}
		t.wake(TopicAccess)
		return t.audit(ctx, "", string(user.ID), name)
	})
	return user, err
}

// GetUser reads a user by id or name. Every user can be seen: who may ask is the policy table's business.
func (s *Store) GetUser(ctx context.Context, scope Scope, ref string) (User, error) {
	var user User
	err := s.read(ctx, "GetUser", scope, func(t *tx) error {
		r, err := t.GetUser(ctx, ref)
		if errors.Is(err, pgx.ErrNoRows) {
			return carrel.NotFound("user", ref)
		}
		user = User{ID: r.ID, Name: r.Name, Operator: r.Operator, CreatedAt: r.CreatedAt.UTC()}
		return err
	})
	return user, err
}

// ListUsers gives every user, by name.
func (s *Store) ListUsers(ctx context.Context, scope Scope) ([]User, error) {
	var users []User
	err := s.read(ctx, "ListUsers", scope, func(t *tx) error {
		users = nil
		rows, err := t.ListUsers(ctx)
		for _, r := range rows {
			users = append(users, User{ID: r.ID, Name: r.Name, Operator: r.Operator, CreatedAt: r.CreatedAt.UTC()})
		}
		return err
	})
	return users, err
}

// UserMembers gives the roles that a user has, by organisation.
func (s *Store) UserMembers(ctx context.Context, user carrel.UserID) ([]Member, error) {
	var members []Member
	err := s.read(ctx, "UserMembers", SystemScope(), func(t *tx) (err error) {
		members, err = t.membersOf(ctx, user)
		return err
	})
	return members, err
}

func (t *tx) membersOf(ctx context.Context, user carrel.UserID) ([]Member, error) {
	rows, err := t.UserMembers(ctx, user)
	members := make([]Member, len(rows))
	for i, r := range rows {
		members[i] = Member{Org: r.OrgID, User: r.UserID, UserName: r.UserName, Role: r.Role}
	}
	return members, err
}

// CreateToken keeps a new token of scope's user, or of any user with a platform scope.
func (s *Store) CreateToken(ctx context.Context, scope Scope, token NewToken) (Token, error) {
	var created Token
	err := s.write(ctx, "CreateToken", scope, func(t *tx) error {
		created = Token{ID: token.ID, User: token.User, Description: token.Description, CreatedAt: t.now, ExpiresAt: token.ExpiresAt.UTC()}
		n, err := t.InsertToken(ctx, db.InsertTokenParams{
			ID: token.ID, UserID: token.User, Description: token.Description, Hash: token.Hash, CreatedAt: t.now, ExpiresAt: timePtr(token.ExpiresAt),
		})
		if err != nil {
			return fmt.Errorf("insert the token: %w", err)
		}
		if n == 0 {
			return fmt.Errorf("the token id %s is used already", token.ID)
		}
		return t.audit(ctx, "", string(token.ID), string(token.User))
	})
	return created, err
}

// ListTokens gives the tokens of a user, newest first.
func (s *Store) ListTokens(ctx context.Context, scope Scope, user carrel.UserID) ([]Token, error) {
	var tokens []Token
	err := s.read(ctx, "ListTokens", scope, func(t *tx) error {
		tokens = nil
		rows, err := t.ListTokens(ctx, user)
		for _, r := range rows {
			tokens = append(tokens, tokenOf(tokenRow(r)))
		}
		return err
	})
	return tokens, err
}

type tokenRow db.ListTokensRow

func tokenOf(r tokenRow) Token {
	return Token{
		ID: r.ID, User: r.UserID, Description: r.Description, CreatedAt: r.CreatedAt.UTC(), ExpiresAt: timeOf(r.ExpiresAt), RevokedAt: timeOf(r.RevokedAt),
	}
}

// RevokeToken ends a token for ever. It may be called again.
func (s *Store) RevokeToken(ctx context.Context, scope Scope, id carrel.TokenID) (Token, error) {
	var token Token
	err := s.write(ctx, "RevokeToken", scope, func(t *tx) error {
		r, err := t.RevokeToken(ctx, &t.now, id)
		if errors.Is(err, pgx.ErrNoRows) {
			return carrel.NotFound("token", string(id))
		}
		if err != nil {
			return fmt.Errorf("revoke the token: %w", err)
		}
		token = tokenOf(tokenRow(r))
		t.wake(TopicAccess)
		return t.audit(ctx, "", string(id), "")
	})
	return token, err
}

// LookupToken says who the token with this hash (SHA-256 of the secret) speaks for. One that is unknown, revoked or expired
// is refused with CodeUnauthorized.
func (s *Store) LookupToken(ctx context.Context, hash []byte) (TokenOwner, error) {
	var owner TokenOwner
	err := s.read(ctx, "LookupToken", SystemScope(), func(t *tx) error {
		r, err := t.LookupToken(ctx, hash)
		if errors.Is(err, pgx.ErrNoRows) {
			return carrel.Errorf(carrel.CodeUnauthorized, "bad_token", "the token is not valid; log in with one that is")
		}
		if err != nil {
			return err
		}
		owner = TokenOwner{
			Token: tokenOf(tokenRow{ID: r.ID, UserID: r.UserID, Description: r.Description, CreatedAt: r.CreatedAt, ExpiresAt: r.ExpiresAt, RevokedAt: r.RevokedAt}),
			User:  User{ID: r.UserID, Name: r.Name, Operator: r.Operator, CreatedAt: r.UserCreatedAt.UTC()},
		}
		switch {
		case r.RevokedAt != nil:
			return carrel.Errorf(carrel.CodeUnauthorized, "token_revoked", "the token was revoked; log in with another one")
		case r.ExpiresAt != nil && !r.ExpiresAt.After(t.now):
			return carrel.Errorf(carrel.CodeUnauthorized, "token_expired", "the token has expired; log in with another one")
		}
		owner.Members, err = t.membersOf(ctx, r.UserID)
		return err
	})
	return owner, err
}
