package store

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/store/db"
)

// MaxSSHKeys is how many keys one user may have.
const MaxSSHKeys = 100

// SSHKey is a public key by which a user logs in to boxes.
type SSHKey struct {
	ID          string
	User        carrel.UserID
	Name        string
	PublicKey   string // in the form of authorized_keys, without options and comment
	Fingerprint string // SHA256:…
	CreatedAt   time.Time
}

// AddSSHKey keeps a key of key.User, who must be the scope's; ID and CreatedAt are made. A key that the user has already
// is given as it is. Errors: CodeExists "ssh_key_taken" for a key of somebody else's, CodeExhausted "too_many_ssh_keys".
func (s *Store) AddSSHKey(ctx context.Context, scope Scope, key SSHKey) (SSHKey, error) {
	var added SSHKey
	err := s.write(ctx, "AddSSHKey", scope, func(t *tx) error {
		if err := t.LockUserKeys(ctx, string(key.User)); err != nil {
			return fmt.Errorf("lock the user's keys: %w", err)
		}
		known, err := t.sshKeys(ctx, key.User)
		if err != nil {
			return err
		}
		for _, k := range known {
			if k.Fingerprint == key.Fingerprint {
				added = k
				return nil
			}
		}
		if len(known) >= MaxSSHKeys {
			return carrel.Errorf(carrel.CodeExhausted, "too_many_ssh_keys", "you have %d SSH keys, and more are not kept; remove some first with: carrel key remove KEY", len(known))
		}
		added = key
		added.ID, added.CreatedAt = carrel.NewSSHKeyID(), t.now
		_, err = t.InsertSSHKey(ctx, db.InsertSSHKeyParams{
			ID: added.ID, UserID: added.User, Name: added.Name, PublicKey: added.PublicKey, Fingerprint: added.Fingerprint, CreatedAt: added.CreatedAt,
		})
		if violates(err, "ssh_keys_fingerprint_key") {
			return carrel.Errorf(carrel.CodeExists, "ssh_key_taken", "this key is registered for another user; a key belongs to one user only, so make another with: ssh-keygen -t ed25519 (or, if somebody else has registered yours, have an operator remove it with: carrel key remove %s)", key.Fingerprint)
		}
		if err != nil {
			return fmt.Errorf("insert the SSH key: %w", err)
		}
		t.wake(TopicAccess)
		return t.audit(ctx, "", added.ID, added.Fingerprint)
	})
	return added, err
}

// SSHKeys gives the keys of a user, oldest first.
func (s *Store) SSHKeys(ctx context.Context, scope Scope, user carrel.UserID) ([]SSHKey, error) {
	var keys []SSHKey
	err := s.read(ctx, "SSHKeys", scope, func(t *tx) (err error) {
		keys, err = t.sshKeys(ctx, user)
		return err
	})
	return keys, err
}

func (t *tx) sshKeys(ctx context.Context, user carrel.UserID) ([]SSHKey, error) {
	rows, err := t.SSHKeys(ctx, user)
	if err != nil {
		return nil, fmt.Errorf("read the user's SSH keys: %w", err)
	}
	keys := make([]SSHKey, len(rows))
	for i, r := range rows {
		keys[i] = SSHKey{ID: r.ID, User: r.UserID, Name: r.Name, PublicKey: r.PublicKey, Fingerprint: r.Fingerprint, CreatedAt: r.CreatedAt.UTC()}
	}
	return keys, nil
}

// RemoveSSHKey takes a key (id, fingerprint or name) from a user; by id or fingerprint from anybody for the platform's scope.
// Errors: CodeNotFound, and CodeInvalid "ssh_key_ambiguous" for a name that several keys have.
func (s *Store) RemoveSSHKey(ctx context.Context, scope Scope, user carrel.UserID, ref string) (SSHKey, error) {
	var removed SSHKey
	err := s.write(ctx, "RemoveSSHKey", scope, func(t *tx) error {
		user := user
		if scope.Platform {
			switch owner, err := t.SSHKeyOwner(ctx, ref); {
			case err == nil:
				user = owner
			case !errors.Is(err, pgx.ErrNoRows):
				return fmt.Errorf("find the owner of the SSH key: %w", err)
			}
		}
		if err := t.LockUserKeys(ctx, string(user)); err != nil {
			return fmt.Errorf("lock the user's keys: %w", err)
		}
		keys, err := t.sshKeys(ctx, user)
		if err != nil {
			return err
		}
		var meant []SSHKey
		for _, k := range keys {
			if k.ID == ref || k.Fingerprint == ref {
				meant = []SSHKey{k}
				break
			}
			if k.Name == ref {
				meant = append(meant, k)
			}
		}
		switch len(meant) {
		case 0:
			return carrel.Errorf(carrel.CodeNotFound, "ssh_key_not_found", "you have no SSH key %q; those that you have are shown by: carrel key list", ref)
		case 1:
		default:
			return carrel.Errorf(carrel.CodeInvalid, "ssh_key_ambiguous", "%d of your SSH keys are called %q; name one by its id or fingerprint, which are shown by: carrel key list", len(meant), ref)
		}
		removed = meant[0]
		if err := t.DeleteSSHKey(ctx, removed.ID); err != nil {
			return fmt.Errorf("delete the SSH key: %w", err)
		}
		t.wake(TopicAccess)
		return t.audit(ctx, "", removed.ID, removed.Fingerprint)
	})
	return removed, err
}

// The visibilities of a port.
const (
	PortPrivate = "private" // who may use the box
	PortOrg     = "org"     // members of its organisation
	PortPublic  = "public"  // everybody
)

// BoxPort says who may reach a port of a box by its URL.
type BoxPort struct {
	Port       int    `json:"port"`
	Visibility string `json:"visibility"`
}

// MaxBoxPorts is how many ports of one box may have a visibility of their own.
const MaxBoxPorts = 200

// SetBoxPort says who may reach a port. The check runs on the locked box.
func (s *Store) SetBoxPort(ctx context.Context, scope Scope, box carrel.BoxID, port BoxPort, check func(*Box) error) error {
	return s.write(ctx, "SetBoxPort", scope, func(t *tx) error {
		b, err := t.lockBox(ctx, box)
		if err != nil {
			return err
		}
		if err := checkBox(b, "", check); err != nil {
			return err
		}
		ports, err := t.boxPorts(ctx, box)
		if err != nil {
			return err
		}
		if len(ports) >= MaxBoxPorts && port.Visibility != PortPrivate {
			return carrel.Errorf(carrel.CodeExhausted, "too_many_ports", "box %s has %d ports with a visibility of their own, and more are not kept; make some private first", b.Name, len(ports))
		}
		err = t.PutBoxPort(ctx, db.PutBoxPortParams{
			OrgID: b.Org, BoxID: box, Port: int32(port.Port), Visibility: port.Visibility, SetBy: t.actor(), SetAt: t.now,
		})
		if err != nil {
			return fmt.Errorf("write the port: %w", err)
		}
		if err := t.BoxHasChanged(ctx, t.now, box); err != nil { // gateways hear of it as of any change
			return fmt.Errorf("touch the box: %w", err)
		}
		t.wake(TopicWatch)
		what := fmt.Sprintf("port %d is %s", port.Port, port.Visibility)
		if err := t.event(ctx, b.Org, box, "", "port", what, t.actor()); err != nil {
			return err
		}
		return t.audit(ctx, b.Org, string(box), what)
	})
}

// BoxPorts gives the ports of a box that are not private, lowest first.
func (s *Store) BoxPorts(ctx context.Context, scope Scope, box carrel.BoxID) ([]BoxPort, error) {
	var ports []BoxPort
	err := s.read(ctx, "BoxPorts", scope, func(t *tx) (err error) {
		ports, err = t.boxPorts(ctx, box)
		return err
	})
	return ports, err
}

func (t *tx) boxPorts(ctx context.Context, box carrel.BoxID) ([]BoxPort, error) {
	rows, err := t.BoxPorts(ctx, box)
	if err != nil {
		return nil, fmt.Errorf("read the ports of the box: %w", err)
	}
	var ports []BoxPort
	for _, r := range rows {
		if r.Visibility != PortPrivate {
			ports = append(ports, BoxPort{Port: int(r.Port), Visibility: r.Visibility})
		}
	}
	return ports, nil
}

// Access is who may reach what, for gateways to know while control is away.
type Access struct {
	Users []UserAccess // by id
	// EndedTokens were revoked or have expired since a given time, sorted.
	EndedTokens []carrel.TokenID
}

// UserAccess is what concerns one user.
type UserAccess struct {
	User    carrel.UserID
	Name    string
	Members []OrgMember // by organisation
	Keys    []string    // in the form of authorized_keys, oldest first
}

// OrgMember is a role in an organisation, with its name.
type OrgMember struct {
	Org     carrel.OrgID
	OrgName string
	Role    string
}

// Access reads everything at one moment; tokens that ended after since are named.
func (s *Store) Access(ctx context.Context, since time.Time) (Access, error) {
	var access Access
	err := s.read(ctx, "Access", SystemScope(), func(t *tx) error {
		access = Access{}
		users, err := t.AccessUsers(ctx)
		if err != nil {
			return fmt.Errorf("read users: %w", err)
		}
		members, err := t.AccessMembers(ctx)
		if err != nil {
			return fmt.Errorf("read memberships: %w", err)
		}
		keys, err := t.AccessKeys(ctx)
		if err != nil {
			return fmt.Errorf("read SSH keys: %w", err)
		}
		if access.EndedTokens, err = t.EndedTokens(ctx, since, t.now); err != nil {
			return fmt.Errorf("read ended tokens: %w", err)
		}
		at := make(map[carrel.UserID]int, len(users))
		for i, u := range users {
			at[u.ID] = i
			access.Users = append(access.Users, UserAccess{User: u.ID, Name: u.Name})
		}
		for _, m := range members {
			if i, ok := at[m.UserID]; ok {
				access.Users[i].Members = append(access.Users[i].Members, OrgMember{Org: m.OrgID, OrgName: m.OrgName, Role: m.Role})
			}
		}
		for _, k := range keys {
			if i, ok := at[k.UserID]; ok {
				access.Users[i].Keys = append(access.Users[i].Keys, k.PublicKey)
			}
		}
		return nil
	})
	return access, err
}

// GatewayAudit is something that a gateway decided by itself.
type GatewayAudit struct {
	At     time.Time
	User   carrel.UserID // empty: not known
	Box    carrel.BoxID  // empty: not known
	Action string
	Detail string
}

// AuditGateway keeps what a gateway decided, each with the organisation of its box, where there is such a box.
func (s *Store) AuditGateway(ctx context.Context, gateway carrel.GatewayID, entries []GatewayAudit) error {
	return s.write(ctx, "AuditGateway", SystemScope(), func(t *tx) error {
		orgs := map[carrel.BoxID]carrel.OrgID{}
		for _, e := range entries {
			org, known := orgs[e.Box]
			if !known && carrel.IDKind(string(e.Box)) == 'b' {
				if box, err := t.box(ctx, e.Box); err == nil {
					org = box.Org
				} else if carrel.CodeOf(err) != carrel.CodeNotFound {
					return err
				}
				orgs[e.Box] = org
			}
			actor := "gateway:" + string(gateway)
			if e.User != "" {
				actor = "user:" + string(e.User)
			}
			err := t.InsertAudit(ctx, db.InsertAuditParams{
				OrgID: org, At: e.At, Actor: clean(actor, 64), Method: clean(e.Action, 64), Target: clean(string(e.Box), 64), Detail: clean(strings.TrimSpace(e.Detail), 1024),
			})
			if err != nil {
				return fmt.Errorf("write the audit entry: %w", err)
			}
		}
		return nil
	})
}
