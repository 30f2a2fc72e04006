package gateway

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"

	linkv1 "carrel.dev/carrel/api/carrel/link/v1"
	"carrel.dev/carrel/internal/auth"
	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/failpoint"
	"carrel.dev/carrel/internal/wholefile"
)

// grant is what one user may do, and by which keys they are known: all that is needed to let them in without control.
type grant struct {
	User    carrel.UserID `json:"user"`
	Name    string        `json:"name"`
	JWT     string        `json:"jwt"` // shown to proxies; a secret
	Issued  time.Time     `json:"issued"`
	Expires time.Time     `json:"expires"`
	SSHKeys []string      `json:"ssh_keys,omitempty"` // in the form of authorized_keys
	Orgs    []orgScope    `json:"orgs,omitempty"`
	// Gone: the user may reach nothing any more, since Issued. It is remembered for as long as tickets of before may live.
	Gone bool `json:"gone,omitempty"`
}

// orgScope is what a user may do with the boxes of an organisation.
type orgScope struct {
	ID    carrel.OrgID `json:"id"`
	Name  string       `json:"name"`
	Scope string       `json:"scope"` // exec or view
}

// scope is what the grant gives in an organisation; empty: nothing.
func (g grant) scope(org carrel.OrgID) string {
	if org == "" || g.Gone {
		return ""
	}
	for _, o := range g.Orgs {
		if o.ID == org {
			return o.Scope
		}
	}
	return ""
}

// orgName is the name of an organisation of the grant; empty if it is none.
func (g grant) orgName(org carrel.OrgID) string {
	for _, o := range g.Orgs {
		if o.ID == org {
			return o.Name
		}
	}
	return ""
}

// grantsFile is grants.json. The file is a cache: one that cannot be read is as none.
type grantsFile struct {
	Version       int                          `json:"version"`
	Cluster       string                       `json:"cluster"`
	Grants        []grant                      `json:"grants"`
	RevokedTokens map[carrel.TokenID]time.Time `json:"revoked_tokens"`
	SSHCAs        []string                     `json:"ssh_cas"`
}

const (
	grantsVersion = 1
	// revokedFor is how long the id of a revoked token is kept; tickets of it have long ended then.
	revokedFor = 25 * time.Hour
	// goneFor is how long it is remembered that somebody may reach nothing any more.
	goneFor = 2 * carrel.TicketLifetime
)

// grantTable is what is known of users. It is safe for concurrent use.
type grantTable struct {
	path  string
	log   *slog.Logger
	now   func() time.Time
	dirty chan struct{}

	mu      sync.Mutex // guards what follows
	cluster string
	loaded  bool // from disk or control
	users   map[carrel.UserID]grant
	keys    map[string]carrel.UserID // by the wire form of the public key
	revoked map[carrel.TokenID]time.Time
	cas     []ssh.PublicKey
}

func openGrants(dir, cluster string, log *slog.Logger, now func() time.Time) *grantTable {
	t := &grantTable{
		path: filepath.Join(dir, "grants.json"), log: log, now: now, dirty: make(chan struct{}, 1), cluster: cluster,
		users: map[carrel.UserID]grant{}, keys: map[string]carrel.UserID{}, revoked: map[carrel.TokenID]time.Time{},
	}
	var file grantsFile
	err := readStrict(t.path, &file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return t
	case err != nil:
		log.Warn("grants on disk are not used", "error", err)
		return t
	case file.Version != grantsVersion || file.Cluster != cluster:
		log.Warn("grants on disk are not used", "version", file.Version, "cluster", file.Cluster)
		return t
	}
	for _, g := range file.Grants {
		t.put(g)
	}
	if file.RevokedTokens != nil {
		t.revoked = file.RevokedTokens
	}
	t.cas = parseKeys(file.SSHCAs)
	t.loaded = true
	return t
}

// parseKeys reads lines of authorized_keys; one that cannot be read is left out.
func parseKeys(lines []string) []ssh.PublicKey {
	var keys []ssh.PublicKey
	for _, line := range lines {
		if key, _, _, _, err := ssh.ParseAuthorizedKey([]byte(line)); err == nil {
			keys = append(keys, key)
		}
	}
	return keys
}

func grantOfProto(m *linkv1.Grant) grant {
	g := grant{
		User: carrel.UserID(m.GetUserId()), Name: m.GetUserName(), JWT: m.GetJwt(), Issued: m.GetIssueTime().AsTime(), Expires: m.GetExpireTime().AsTime(),
		SSHKeys: m.GetSshKeys(), Gone: m.GetGone(),
	}
	for _, o := range m.GetOrgs() {
		g.Orgs = append(g.Orgs, orgScope{ID: carrel.OrgID(o.GetOrgId()), Name: o.GetOrgName(), Scope: o.GetScope()})
	}
	return g
}

// put replaces the grant of a user; the caller holds mu, or nobody else has the table yet.
func (t *grantTable) put(g grant) {
	for _, line := range t.users[g.User].SSHKeys {
		for _, key := range parseKeys([]string{line}) {
			if wire := string(key.Marshal()); t.keys[wire] == g.User {
				delete(t.keys, wire)
			}
		}
	}
	if g.Gone {
		g.Orgs, g.SSHKeys, g.JWT = nil, nil, ""
	}
	t.users[g.User] = g
	for _, key := range parseKeys(g.SSHKeys) {
		t.keys[string(key.Marshal())] = g.User
	}
}

// apply takes what an update of control says of users.
func (t *grantTable) apply(update *linkv1.RoutesUpdate) {
	full := update.GetFull()
	if !full && len(update.GetGrants()) == 0 && len(update.GetRevokedTokens()) == 0 && len(update.GetSshUserCaKeys()) == 0 {
		return
	}
	now := t.now()
	t.mu.Lock()
	if full {
		t.loaded = true
		told := map[carrel.UserID]bool{}
		for _, m := range update.GetGrants() {
			told[carrel.UserID(m.GetUserId())] = true
		}
		for user, old := range t.users {
			if !told[user] && !old.Gone {
				t.put(grant{User: user, Name: old.Name, Issued: now, Gone: true})
			}
		}
	}
	for _, m := range update.GetGrants() {
		g := grantOfProto(m)
		if carrel.IDKind(string(g.User)) != 'u' {
			t.log.Warn("grant of control is not usable", "user", g.User)
			continue
		}
		t.put(g)
	}
	for _, id := range update.GetRevokedTokens() {
		if _, known := t.revoked[carrel.TokenID(id)]; !known {
			t.revoked[carrel.TokenID(id)] = now
		}
	}
	if cas := parseKeys(update.GetSshUserCaKeys()); len(cas) > 0 || full {
		t.cas = cas
	}
	t.forget(now)
	t.mu.Unlock()
	t.touch()
}

// forget drops what cannot matter any more; the caller holds mu.
func (t *grantTable) forget(now time.Time) {
	maps.DeleteFunc(t.users, func(_ carrel.UserID, g grant) bool { return g.Gone && now.Sub(g.Issued) > goneFor })
	maps.DeleteFunc(t.revoked, func(_ carrel.TokenID, at time.Time) bool { return now.Sub(at) > revokedFor })
}

func (t *grantTable) touch() {
	select {
	case t.dirty <- struct{}{}:
	default:
	}
}

func (t *grantTable) setCluster(cluster string) {
	t.mu.Lock()
	t.cluster = cluster
	t.mu.Unlock()
}

// of is the grant of a user who may reach something.
func (t *grantTable) of(user carrel.UserID) (grant, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	g, ok := t.users[user]
	return g, ok && !g.Gone
}

// heardOf reports whether control has said what a user may do, be it nothing any more.
func (t *grantTable) heardOf(user carrel.UserID) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	_, heard := t.users[user]
	return heard
}

// good says why a pass has ended before its time: nil if it has not. What is not known of does not end a pass, since
// control may have given it after the newest grant that came.
func (t *grantTable) good(p pass) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, token := range []carrel.TokenID{p.Token, p.from} {
		if _, revoked := t.revoked[token]; revoked && token != "" {
			return errTokenRevoked(p.Box)
		}
	}
	if p.User == "" {
		return nil
	}
	g, known := t.users[p.User]
	if p.header != headerGrant && (!known || p.Issued.After(g.Issued)) {
		return nil
	}
	for _, scope := range p.Scopes {
		if !auth.Covers(g.scope(p.Org), scope) {
			return errRightsEnded(p.Box)
		}
	}
	if p.key != "" && t.keys[p.key] != p.User {
		return errKeyRemoved(p.Box)
	}
	return nil
}

func errTokenRevoked(box carrel.BoxID) *carrel.Error {
	return carrel.Errorf(carrel.CodeUnauthorized, "token_revoked", "the API token by which you reached box %s was revoked or has expired; log in with another one", box)
}

func errKeyRemoved(box carrel.BoxID) *carrel.Error {
	return carrel.Errorf(carrel.CodeUnauthorized, "key_removed", "the SSH key by which you reached box %s was removed; log in with another one", box)
}

func errRightsEnded(box carrel.BoxID) *carrel.Error {
	return carrel.Errorf(carrel.CodeUnauthorized, "rights_ended", "your right to box %s was taken away; ask an administrator of its organisation", box)
}

// keepSaved writes the table to disk soon after it changed, and at the end.
func (t *grantTable) keepSaved(ctx context.Context) error {
	return keepSaved(ctx, t.dirty, t.save, func(err error) { t.log.Warn("grants not saved", "error", err) })
}

func (t *grantTable) save() error {
	t.mu.Lock()
	if !t.loaded || t.cluster == "" {
		t.mu.Unlock()
		return nil
	}
	file := grantsFile{
		Version: grantsVersion, Cluster: t.cluster, Grants: slices.Collect(maps.Values(t.users)), RevokedTokens: maps.Clone(t.revoked), SSHCAs: []string{},
	}
	for _, key := range t.cas {
		file.SSHCAs = append(file.SSHCAs, string(bytes.TrimSpace(ssh.MarshalAuthorizedKey(key))))
	}
	t.mu.Unlock()
	slices.SortFunc(file.Grants, func(a, b grant) int { return cmp.Compare(a.User, b.User) })
	data, err := json.Marshal(file)
	if err != nil {
		return err
	}
	if err := failpoint.Hit("gateway/grants/save"); err != nil {
		return err
	}
	return wholefile.Write(t.path, data, 0o600)
}

// grantOf is what is known of a user who may reach something: a user whose name or id stands in a valid certificate has to
// be known here too.
func (g *Gateway) grantOf(user carrel.UserID) (grant, bool) { return g.grants.of(user) }

// userOfKey finds the user who registered a public key.
func (g *Gateway) userOfKey(key ssh.PublicKey) (carrel.UserID, bool) {
	g.grants.mu.Lock()
	defer g.grants.mu.Unlock()
	user, ok := g.grants.keys[string(key.Marshal())]
	return user, ok
}

// sshCAs are the authorities whose user certificates count, none if control never told.
func (g *Gateway) sshCAs() []ssh.PublicKey {
	g.grants.mu.Lock()
	defer g.grants.mu.Unlock()
	return slices.Clone(g.grants.cas)
}

// passOf makes a pass of what is known here, without control, for a user who has proved who they are. Errors:
// CodeNotFound for a box that is foreign or not known of here, alike (findBox asks control too); CodeDenied when the
// user may look at the box but not do this; CodePrecondition "box_not_running"; CodeUnauthorized when the
// grant has run out because control has been away for a day.
func (g *Gateway) passOf(user carrel.UserID, box carrel.BoxID, scope string) (pass, error) {
	known, found := g.grants.of(user)
	r, live, ok := g.routes.of(box)
	have := known.scope(r.Org)
	switch {
	case !found || !ok || have == "":
		return pass{}, carrel.NotFound("box", clip(string(box)))
	case !auth.Covers(have, scope):
		return pass{}, errScope(box)
	case !live:
		return pass{}, errNotRunning(box, "")
	case !g.now().Before(known.Expires):
		return pass{}, carrel.Errorf(carrel.CodeUnauthorized, "grant_expired", "the control plane has been away for too long: nobody can be let in to box %s until it is back", box)
	}
	return pass{
		Ticket: auth.Ticket{Box: box, Org: r.Org, Epoch: r.Epoch, User: user, Scopes: []string{have}, Issued: known.Issued, Expires: known.Expires},
		header: headerGrant, proof: known.JWT,
	}, nil
}
