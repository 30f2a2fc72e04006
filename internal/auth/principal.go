package auth

import (
	"slices"
	"time"

	"carrel.dev/carrel/internal/carrel"
)

// Role is what a user is in an organisation. Each role may do what the ones below it may.
type Role string

const (
	RoleNone   Role = ""
	RoleViewer Role = "viewer" // sees everything, changes nothing
	RoleMember Role = "member" // makes and uses boxes
	RoleAdmin  Role = "admin"  // also templates, images and members
	RoleOwner  Role = "owner"  // also owners
)

// Roles are the roles in an organisation, lowest first.
var Roles = []Role{RoleViewer, RoleMember, RoleAdmin, RoleOwner}

// AtLeast reports whether r may do what least may. An unknown role may do nothing.
func (r Role) AtLeast(least Role) bool {
	have := slices.Index(Roles, r)
	return have >= 0 && have >= slices.Index(Roles, least)
}

// ParseRole checks the name of a role as a person wrote it.
func ParseRole(s string) (Role, error) {
	if r := Role(s); slices.Contains(Roles, r) {
		return r, nil
	}
	return RoleNone, carrel.Errorf(carrel.CodeInvalid, "bad_role", "%q is no role: use viewer, member, admin or owner", s)
}

// Principal is who makes a request: a user, a peer, or (the zero value) nobody.
type Principal struct {
	User     carrel.UserID
	UserName string
	Token    carrel.TokenID // the token that the user proved themselves with
	Expires  time.Time      // when that token ends; zero: never
	Seen     time.Time      // all of this was read after this time; zero: not known
	Operator bool           // platform role
	Roles    map[carrel.OrgID]Role
	Peer     Peer // set for another part of Carrel, never together with User
}

// Anonymous reports whether the principal is nobody.
func (p Principal) Anonymous() bool { return p.User == "" && p.Peer.Role == "" }

// Orgs are the organisations in which the principal has a role, sorted.
func (p Principal) Orgs() []carrel.OrgID {
	orgs := make([]carrel.OrgID, 0, len(p.Roles))
	for org, role := range p.Roles {
		if role.AtLeast(RoleViewer) {
			orgs = append(orgs, org)
		}
	}
	slices.Sort(orgs)
	return orgs
}

// Actor names the principal in events and the audit: user:ID, node:ID, or "".
func (p Principal) Actor() string {
	switch {
	case p.User != "":
		return "user:" + string(p.User)
	case p.Peer.Role != "":
		return string(p.Peer.Role) + ":" + p.Peer.ID
	}
	return ""
}
