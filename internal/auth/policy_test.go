package auth

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"carrel.dev/carrel/internal/carrel"
)

var update = flag.Bool("update", false, "write the golden files anew")

const testOrg carrel.OrgID = "o1111111111111111111"

// column is one kind of caller of the matrix.
type column struct {
	name string
	p    Principal
}

func columns() []column {
	user := func(role Role) Principal {
		return Principal{User: "u1", Roles: map[carrel.OrgID]Role{testOrg: role}}
	}
	peer := func(role PeerRole) Principal { return Principal{Peer: Peer{Role: role}} }
	return []column{
		{"nobody", Principal{}},
		{"outsider", Principal{User: "u1", Roles: map[carrel.OrgID]Role{"o2": RoleOwner}}},
		{"viewer", user(RoleViewer)},
		{"member", user(RoleMember)},
		{"admin", user(RoleAdmin)},
		{"owner", user(RoleOwner)},
		{"operator", Principal{User: "u1", Operator: true}},
		{"node", peer(PeerNode)},
		{"proxy", peer(PeerProxy)},
		{"gateway", peer(PeerGateway)},
		{"control", peer(PeerControl)},
	}
}

func word(err error) string {
	switch carrel.CodeOf(err) {
	case 0:
		return "yes"
	case carrel.CodeUnauthorized:
		return "who?"
	case carrel.CodeNotFound:
		return "unseen"
	case carrel.CodeDenied:
		return "-"
	}
	return "?"
}

func TestPolicyMatrixIsAsWritten(t *testing.T) {
	var b strings.Builder
	fmt.Fprintf(&b, "%-46s", "")
	for _, c := range columns() {
		fmt.Fprintf(&b, " %-8s", c.name)
	}
	b.WriteString("\n")
	row := func(name string, allow func(Principal) error) {
		fmt.Fprintf(&b, "%-46s", name)
		for _, c := range columns() {
			fmt.Fprintf(&b, " %-8s", word(allow(c.p)))
		}
		b.WriteString("\n")
	}
	for _, method := range slices.Sorted(maps.Keys(policy)) {
		row(strings.TrimPrefix(method, "/"), func(p Principal) error { return Allow(p, method, testOrg) })
	}
	for _, scope := range slices.Sorted(maps.Keys(scopeRoles)) {
		row("ticket scope "+scope, func(p Principal) error { return AllowScope(p, scope, testOrg) })
	}
	lines := strings.Split(b.String(), "\n")
	for i := range lines {
		lines[i] = strings.TrimRight(lines[i], " ")
	}
	got := strings.Join(lines, "\n")
	const golden = "testdata/policy.golden"
	if *update {
		require.NoError(t, os.WriteFile(golden, []byte(got), 0o644))
	}
	want, err := os.ReadFile(golden)
	require.NoError(t, err)
	require.Equal(t, string(want), got, "who may do what has changed; if that is meant: go test ./internal/auth -update")
}

func TestEveryRuleIsComplete(t *testing.T) {
	for method, r := range policy {
		require.NotZero(t, r.Need, method)
		require.Equal(t, r.Need == NeedRole, slices.Contains(Roles, r.Role), "%s: a role belongs to NeedRole only", method)
		require.Equal(t, r.Need == NeedPeer, len(r.Peers) > 0, "%s: peers belong to NeedPeer only", method)
	}
}

func TestAMethodWithoutARowIsForNobody(t *testing.T) {
	p := Principal{User: "u1", Operator: true, Roles: map[carrel.OrgID]Role{testOrg: RoleOwner}}
	require.Equal(t, carrel.CodeDenied, carrel.CodeOf(Allow(p, "/carrel.v1.BoxService/Nonsense", testOrg)))
}

func TestNoOrganisationIsNobodysOrganisation(t *testing.T) {
	p := Principal{User: "u1", Roles: map[carrel.OrgID]Role{"": RoleOwner, testOrg: "emperor"}}
	require.Equal(t, carrel.CodeNotFound, carrel.CodeOf(Allow(p, "/carrel.v1.BoxService/GetBox", "")))
	require.Equal(t, carrel.CodeNotFound, carrel.CodeOf(Allow(p, "/carrel.v1.BoxService/GetBox", testOrg)), "an unknown role is none")
	require.Empty(t, Principal{Roles: map[carrel.OrgID]Role{testOrg: "emperor"}}.Orgs())
}

func TestRolesInclude(t *testing.T) {
	require.True(t, RoleOwner.AtLeast(RoleViewer))
	require.False(t, RoleViewer.AtLeast(RoleMember))
	require.False(t, RoleNone.AtLeast(RoleNone), "no role may do nothing")
	_, err := ParseRole("king")
	require.Equal(t, carrel.CodeInvalid, carrel.CodeOf(err))
	r, err := ParseRole("admin")
	require.NoError(t, err)
	require.Equal(t, RoleAdmin, r)
}
