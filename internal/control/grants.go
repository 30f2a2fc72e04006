package control

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"time"

	linkv1 "carrel.dev/carrel/api/carrel/link/v1"
	"carrel.dev/carrel/internal/auth"
	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/store"
)

const (
	grantsPoll = time.Second
	// grantsShare bounds what looking for changes without having been woken may cost: one part in so many of the time.
	grantsShare = 50
	// endedFor is how long gateways are told of tokens that ended; whatever was signed for them has long ended then.
	endedFor = 25 * time.Hour
)

// granter keeps the grants of all users signed, for every gateway that watches this replica. It is safe for concurrent use.
type granter struct {
	s *Server

	refreshing sync.Mutex // one refresh at a time

	mu      sync.Mutex // guards what follows
	loaded  bool
	version int64 // rises with every change
	users   map[carrel.UserID]*granted
	ended   map[carrel.TokenID]int64 // by the version that first had it
	changed chan struct{}            // closed and replaced with every change
}

// granted is the newest grant of one user.
type granted struct {
	message *linkv1.Grant
	content [sha256.Size]byte // of everything but times and signature
	issued  time.Time
	version int64
}

func newGranter(s *Server) *granter {
	return &granter{s: s, users: map[carrel.UserID]*granted{}, ended: map[carrel.TokenID]int64{}, changed: make(chan struct{})}
}

// news is what a gateway that knows a version does not know.
type news struct {
	grants  []*linkv1.Grant
	ended   []string
	version int64
	next    <-chan struct{} // closed when there are more
}

// since gives what changed after a version, as far as it was heard of; after 0: everything as it is now.
func (g *granter) since(ctx context.Context, version int64) (news, error) {
	if version == 0 {
		if err := g.refresh(ctx); err != nil {
			return news{}, err
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	n := news{version: g.version, next: g.changed}
	for _, u := range g.users {
		if u.version > version && (version > 0 || !u.message.GetGone()) {
			n.grants = append(n.grants, u.message)
		}
	}
	for id, at := range g.ended {
		if at > version {
			n.ended = append(n.ended, string(id))
		}
	}
	slices.Sort(n.ended)
	return n, nil
}

// run looks for changes whenever it is woken, and now and then without that.
func (g *granter) run(ctx context.Context) {
	wake := g.s.store.Listen(ctx, store.TopicAccess)
	defer wake.Close()
	for {
		_, rekeyed := g.s.watchKeys()
		begun := time.Now()
		if err := g.refresh(ctx); err != nil && ctx.Err() == nil {
			g.s.log.Warn("grants can't be refreshed", "error", err)
		}
		poll := time.NewTimer(max(grantsPoll, grantsShare*time.Since(begun)))
		select {
		case <-wake.C:
		case <-rekeyed:
		case <-poll.C:
		case <-ctx.Done():
		}
		poll.Stop()
		if ctx.Err() != nil {
			return
		}
	}
}

// refresh signs what changed, what is half through its life, and what an older key signed.
func (g *granter) refresh(ctx context.Context) error {
	g.refreshing.Lock()
	defer g.refreshing.Unlock()
	access, err := g.s.store.Access(ctx, g.s.now().Add(-endedFor))
	if err != nil {
		return fmt.Errorf("read who may reach what: %w", err)
	}
	now := g.s.now() // after the look: a ticket that was signed for a right which is not there any more is older than its grant
	signer := g.s.keys.Load().signer
	g.mu.Lock()
	known := make(map[carrel.UserID]*granted, len(g.users))
	for user, u := range g.users {
		known[user] = u
	}
	version := g.version + 1
	g.mu.Unlock()

	fresh := map[carrel.UserID]*granted{}
	for _, u := range access.Users {
		old := known[u.User]
		delete(known, u.User)
		message := grantProto(u)
		if len(message.GetOrgs()) == 0 && (old == nil || old.message.GetGone()) {
			continue // nobody needs to hear of them
		}
		content := grantContent(message, signer.KeyID())
		if old != nil && old.content == content && now.Sub(old.issued) < auth.GrantLifetime/2 {
			continue
		}
		if err := signGrant(message, signer, now); err != nil {
			return err
		}
		fresh[u.User] = &granted{message: message, content: content, issued: now, version: version}
	}
	for user, old := range known { // there is no such user any more
		if !old.message.GetGone() {
			message := &linkv1.Grant{UserId: string(user), UserName: old.message.GetUserName(), Gone: true, IssueTime: timeProto(now)}
			fresh[user] = &granted{message: message, issued: now, version: version}
		}
	}
	g.take(version, fresh, access.EndedTokens)
	return nil
}

func (g *granter) take(version int64, fresh map[carrel.UserID]*granted, ended []carrel.TokenID) {
	g.mu.Lock()
	defer g.mu.Unlock()
	changed := len(fresh) > 0 || !g.loaded
	for user, u := range fresh {
		g.users[user] = u
	}
	still := make(map[carrel.TokenID]int64, len(ended))
	for _, id := range ended {
		at, old := g.ended[id]
		if !old {
			at, changed = version, true
		}
		still[id] = at
	}
	g.ended, g.loaded = still, true
	if changed {
		g.version = version
		close(g.changed)
		g.changed = make(chan struct{})
	}
}

// grantProto is what a user may do, not signed yet. Who may reach nothing gets none.
func grantProto(u store.UserAccess) *linkv1.Grant {
	message := &linkv1.Grant{UserId: string(u.User), UserName: u.Name, SshKeys: u.Keys}
	for _, m := range u.Members {
		if scope := auth.ScopeOf(auth.Role(m.Role)); scope != "" && len(message.Orgs) < auth.MaxGrantOrgs {
			message.Orgs = append(message.Orgs, &linkv1.OrgScope{OrgId: string(m.Org), OrgName: m.OrgName, Scope: scope})
		}
	}
	if len(message.Orgs) == 0 {
		message.Gone, message.SshKeys = true, nil
	}
	return message
}

// grantContent is a hash of all that makes one grant another than the one before.
func grantContent(message *linkv1.Grant, keyID string) [sha256.Size]byte {
	text, _ := json.Marshal(struct { // plain data
		Key, Name string
		Keys      []string
		Orgs      []*linkv1.OrgScope
	}{keyID, message.GetUserName(), message.GetSshKeys(), message.GetOrgs()})
	return sha256.Sum256(text)
}

func signGrant(message *linkv1.Grant, signer *auth.TicketSigner, now time.Time) error {
	message.IssueTime, message.ExpireTime = timeProto(now), timeProto(now.Add(auth.GrantLifetime))
	if message.GetGone() {
		return nil
	}
	grant := auth.Grant{User: carrel.UserID(message.GetUserId()), Orgs: map[carrel.OrgID]string{}, Issued: now, Expires: now.Add(auth.GrantLifetime)}
	for _, o := range message.GetOrgs() {
		grant.Orgs[carrel.OrgID(o.GetOrgId())] = o.GetScope()
	}
	text, err := signer.SignGrant(grant)
	message.Jwt = text
	return err
}
