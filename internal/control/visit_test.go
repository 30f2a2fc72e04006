package control_test

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"net/url"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ssh"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	linkv1 "carrel.dev/carrel/api/carrel/link/v1"
	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	carrelv1connect "carrel.dev/carrel/api/carrel/v1/carrelv1connect"
	"carrel.dev/carrel/internal/auth"
	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/store"
)

func (u *user) ssh() carrelv1connect.SSHServiceClient {
	return carrelv1connect.NewSSHServiceClient(u.http, u.r.http.URL)
}

func (u *user) id() string {
	u.r.t.Helper()
	me, err := u.users.WhoAmI(u.r.t.Context(), req(&carrelv1.WhoAmIRequest{}))
	require.NoError(u.r.t, err)
	return me.Msg.GetUser().GetId()
}

// publicKey makes a key and gives it as a line of authorized_keys.
func publicKey(t *testing.T, key any) string {
	t.Helper()
	if key == nil {
		public, _, err := ed25519.GenerateKey(nil)
		require.NoError(t, err)
		key = public
	}
	public, err := ssh.NewPublicKey(key)
	require.NoError(t, err)
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(public)))
}

func TestWhichSSHKeysAreTaken(t *testing.T) {
	r := newReplica(t)
	service := r.newUser("maya", "default", auth.RoleMember).ssh()
	rsaKey := func(bits int) any {
		key, err := rsa.GenerateKey(rand.Reader, bits)
		require.NoError(t, err)
		return &key.PublicKey
	}
	ecdsaKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	line := publicKey(t, nil)
	certificate, err := service.CreateSSHCertificate(t.Context(), req(&carrelv1.CreateSSHCertificateRequest{PublicKey: line}))
	require.NoError(t, err)
	const dsa = "ssh-dss AAAAB3NzaC1kc3MAAACBAOWPBQvKWQ=="
	for name, row := range map[string]struct{ text, refused, called string }{
		"ed25519":               {line + " ada@laptop\n", "", "ada@laptop"},
		"without a comment":     {publicKey(t, nil), "", "ssh-ed25519"},
		"ecdsa":                 {publicKey(t, &ecdsaKey.PublicKey) + " work", "", "work"},
		"rsa":                   {publicKey(t, rsaKey(3072)) + " old", "", "old"},
		"with lines around it":  {"\n  " + publicKey(t, nil) + " spaced  \r\n", "", "spaced"},
		"a strange comment":     {publicKey(t, nil) + " a\x1bb", "", "ab"},
		"small rsa":             {publicKey(t, rsaKey(2048)), "the RSA key has 2048 bits and must have from 3072", ""},
		"dsa":                   {dsa, "this is no public key", ""},
		"a certificate":         {certificate.Msg.GetCertificate(), "keys of the type ssh-ed25519-cert-v01@openssh.com are not taken", ""},
		"a private key":         {"-----BEGIN OPENSSH PRIVATE KEY-----\nx\n", "must never leave your machine", ""},
		"two keys":              {line + "\n" + line, "one key at a time", ""},
		"options":               {`command="true" ` + line, "the key has options", ""},
		"nothing":               {" \n", "there is no key", ""},
		"nonsense":              {"hello", "this is no public key", ""},
		"a line that is broken": {line[:len(line)-10], "this is no public key", ""},
		"far too long":          {line + strings.Repeat(" x", 20_000), "longer than", ""},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := service.AddSSHKey(t.Context(), req(&carrelv1.AddSSHKeyRequest{PublicKey: row.text}))
			if row.refused != "" {
				require.Equal(t, "bad_ssh_key", reason(err), "%v", err)
				require.Contains(t, message(t, err), row.refused)
				return
			}
			require.NoError(t, err)
			require.Equal(t, row.called, got.Msg.GetName())
			require.Len(t, strings.Fields(got.Msg.GetPublicKey()), 2, "type and key, and nothing else")
			require.True(t, strings.HasPrefix(got.Msg.GetFingerprint(), "SHA256:"))
		})
	}
	list, err := service.ListSSHKeys(t.Context(), req(&carrelv1.ListSSHKeysRequest{}))
	require.NoError(t, err)
	require.Len(t, list.Msg.GetKeys(), 6)
	_, err = r.newUser("noah", "default", auth.RoleMember).ssh().AddSSHKey(t.Context(), req(&carrelv1.AddSSHKeyRequest{PublicKey: line}))
	require.Equal(t, "ssh_key_taken", reason(err))
	_, err = service.RemoveSSHKey(t.Context(), req(&carrelv1.RemoveSSHKeyRequest{Id: "ada@laptop"}))
	require.NoError(t, err)
	_, err = service.RemoveSSHKey(t.Context(), req(&carrelv1.RemoveSSHKeyRequest{Id: "ada@laptop"}))
	require.Equal(t, carrel.CodeNotFound, code(err))
}

// A key is whoever's registered it first; that somebody else's was registered is mended by an operator, and by nobody else.
func TestAnOperatorFreesAKeyThatAStrangerRegistered(t *testing.T) {
	r := newReplica(t)
	stranger, owner := r.newUser("maya", "default", auth.RoleMember).ssh(), r.newUser("noah", "default", auth.RoleMember).ssh()
	line := publicKey(t, nil)
	key, err := stranger.AddSSHKey(t.Context(), req(&carrelv1.AddSSHKeyRequest{PublicKey: line}))
	require.NoError(t, err)
	_, err = owner.AddSSHKey(t.Context(), req(&carrelv1.AddSSHKeyRequest{PublicKey: line}))
	require.Equal(t, "ssh_key_taken", reason(err))
	require.ErrorContains(t, err, "carrel key remove "+key.Msg.GetFingerprint())
	for _, ref := range []string{key.Msg.GetFingerprint(), key.Msg.GetId()} {
		_, err = owner.RemoveSSHKey(t.Context(), req(&carrelv1.RemoveSSHKeyRequest{Id: ref}))
		require.Equal(t, carrel.CodeNotFound, code(err))
	}
	operator := r.asAdmin().ssh()
	_, err = operator.RemoveSSHKey(t.Context(), req(&carrelv1.RemoveSSHKeyRequest{Id: key.Msg.GetName()}))
	require.Equal(t, carrel.CodeNotFound, code(err), "names are each user's own")
	_, err = operator.RemoveSSHKey(t.Context(), req(&carrelv1.RemoveSSHKeyRequest{Id: key.Msg.GetFingerprint()}))
	require.NoError(t, err)
	_, err = owner.AddSSHKey(t.Context(), req(&carrelv1.AddSSHKeyRequest{PublicKey: line}))
	require.NoError(t, err)
}

func TestCertificatesAreShortAndSayWho(t *testing.T) {
	r := newReplica(t)
	member := r.newUser("maya", "default", auth.RoleMember)
	ctx := t.Context()
	info, err := member.ssh().GetSSHInfo(ctx, req(&carrelv1.GetSSHInfoRequest{}))
	require.NoError(t, err)
	require.Equal(t, ":7022", info.Msg.GetAddress())
	require.Len(t, info.Msg.GetHostKeys(), 1)
	authority, _, _, _, err := ssh.ParseAuthorizedKey([]byte(info.Msg.GetUserCaKeys()[0]))
	require.NoError(t, err)

	create := func(u *user, d time.Duration) (*ssh.Certificate, error) {
		m := &carrelv1.CreateSSHCertificateRequest{PublicKey: publicKey(t, nil) + " ada@laptop"}
		if d != 0 {
			m.Lifetime = durationpb.New(d)
		}
		resp, err := u.ssh().CreateSSHCertificate(ctx, req(m))
		if err != nil {
			return nil, err
		}
		key, comment, _, _, err := ssh.ParseAuthorizedKey([]byte(resp.Msg.GetCertificate()))
		require.NoError(t, err)
		require.Equal(t, "ada@laptop", comment)
		cert := key.(*ssh.Certificate)
		require.EqualValues(t, resp.Msg.GetExpireTime().GetSeconds(), cert.ValidBefore)
		return cert, nil
	}
	cert, err := create(member, 0)
	require.NoError(t, err)
	checker := &ssh.CertChecker{IsUserAuthority: func(k ssh.PublicKey) bool { return string(k.Marshal()) == string(authority.Marshal()) }}
	require.NoError(t, checker.CheckCert("maya", cert))
	require.True(t, checker.IsUserAuthority(cert.SignatureKey))
	require.Equal(t, []string{member.id(), "maya"}, cert.ValidPrincipals)
	require.Equal(t, member.id(), cert.KeyId)
	require.EqualValues(t, ssh.UserCert, cert.CertType)
	secret, err := auth.ParseToken(member.token)
	require.NoError(t, err)
	require.Equal(t, map[string]string{
		"permit-pty": "", "permit-port-forwarding": "", "permit-agent-forwarding": "", auth.SSHTokenExtension: string(secret.ID),
	}, cert.Extensions)
	ends := func(c *ssh.Certificate) time.Duration { return time.Until(time.Unix(int64(c.ValidBefore), 0)) }
	require.InDelta(t, 8*time.Hour, ends(cert), float64(time.Minute))
	cert, err = create(member, 24*time.Hour)
	require.NoError(t, err)
	require.InDelta(t, 24*time.Hour, ends(cert), float64(time.Minute))
	for _, d := range []time.Duration{25 * time.Hour, time.Second, -time.Hour} {
		_, err = create(member, d)
		require.Equal(t, "bad_lifetime", reason(err), d)
	}
	short, err := member.tokens.CreateToken(ctx, req(&carrelv1.CreateTokenRequest{ExpireTime: timestamppb.New(time.Now().Add(time.Hour))}))
	require.NoError(t, err)
	cert, err = create(r.as(short.Msg.GetSecret()), 24*time.Hour)
	require.NoError(t, err)
	require.LessOrEqual(t, ends(cert), time.Hour, "it does not outlive the token that asked")
	_, err = create(r.as(""), 0)
	require.Equal(t, carrel.CodeUnauthorized, code(err))
}

func TestPortsOfABox(t *testing.T) {
	r := newReplica(t)
	r.catalogue()
	member, viewer, ctx := r.newUser("maya", "default", auth.RoleMember), r.newUser("vera", "default", auth.RoleViewer), t.Context()
	id := member.create("dev")
	set := func(u *user, port int32, visibility string) error {
		_, err := u.boxes.SetBoxPort(ctx, req(&carrelv1.SetBoxPortRequest{Id: id, Port: port, Visibility: visibility}))
		return err
	}
	require.NoError(t, set(member, 8080, "org"))
	require.NoError(t, set(member, 80, "public"))
	require.NoError(t, set(member, 22, "private"))
	require.Equal(t, carrel.CodeDenied, code(set(viewer, 80, "public")))
	require.Equal(t, "bad_port", reason(set(member, 0, "org")))
	require.Equal(t, "bad_port", reason(set(member, 65536, "org")))
	require.Equal(t, "bad_visibility", reason(set(member, 80, "")))
	status, _, ports := viewer.rest("GET", "/v1/boxes/dev/ports", "")
	require.Equal(t, 200, status)
	require.Len(t, ports["ports"], 2, "lowest first, without private ones: %v", ports)
	_, _, data := member.raw("POST", "/v1/boxes/dev/ports/8000:url", "{}", map[string]string{"Carrel-Port-Hosts": "http://*.localhost:7070"})
	require.Contains(t, string(data), "http://8000-"+id+".localhost:7070/?carrel_token=")
	made, err := member.boxes.CreatePortURL(ctx, req(&carrelv1.CreatePortURLRequest{Id: id, Port: 8000}))
	require.NoError(t, err)
	u, err := url.Parse(made.Msg.GetUrl())
	require.NoError(t, err)
	require.Equal(t, "/p/"+id+"/8000/", u.Path)
	e := r.newEdge()
	stream, err := e.link.WatchRoutes(within(t), req(&linkv1.WatchRoutesRequest{}))
	require.NoError(t, err)
	require.True(t, stream.Receive(), stream.Err())
	e.learn(stream.Msg().GetTicketKeys())
	pass, err := e.verifier.VerifyPort(u.Query().Get("carrel_token"), time.Now())
	require.NoError(t, err)
	require.Equal(t, member.id(), string(pass.User))
	require.Equal(t, 8000, pass.Port)
	require.InDelta(t, time.Hour, time.Until(pass.Expires), float64(time.Minute))
	_, err = viewer.boxes.CreatePortURL(ctx, req(&carrelv1.CreatePortURLRequest{Id: id, Port: 8000}))
	require.Equal(t, carrel.CodeDenied, code(err))
	_, err = member.boxes.CreatePortURL(ctx, req(&carrelv1.CreatePortURLRequest{Id: id, Port: 8000, Lifetime: durationpb.New(8 * 24 * time.Hour)}))
	require.Equal(t, "bad_lifetime", reason(err))

	m := r.newMachine("n1")
	m.run(id)
	for found := false; !found; {
		require.True(t, stream.Receive(), stream.Err())
		for _, route := range stream.Msg().GetRoutes() {
			found = found || route.GetRunId() != "" && len(route.GetPorts()) == 2
			if found {
				require.Equal(t, "dev", route.GetBoxName())
				public, err := e.verifier.VerifyPort(route.GetPorts()[0].GetJwt(), time.Now())
				require.NoError(t, err)
				require.Equal(t, 80, public.Port)
				require.Empty(t, public.User, "it is nobody's in particular")
			}
		}
	}
}

// grantsOf follows a gateway's stream until it has told of a user what is wanted.
func grantsOf(t *testing.T, stream *connect.ServerStreamForClient[linkv1.RoutesUpdate], user string, wanted func(*linkv1.Grant) bool) *linkv1.Grant {
	t.Helper()
	for {
		require.True(t, stream.Receive(), stream.Err())
		for _, g := range stream.Msg().GetGrants() {
			if g.GetUserId() == user && wanted(g) {
				return g
			}
		}
	}
}

func TestGatewaysHearWhoMayReachWhat(t *testing.T) {
	r := newReplica(t)
	ctx := t.Context()
	member := r.newUser("maya", "default", auth.RoleMember)
	user := member.id()
	nobody := r.newUser("nemo", "", auth.RoleNone)
	_, err := member.ssh().AddSSHKey(ctx, req(&carrelv1.AddSSHKeyRequest{PublicKey: publicKey(t, nil)}))
	require.NoError(t, err)
	e := r.newEdge()
	stream, err := e.link.WatchRoutes(within(t), req(&linkv1.WatchRoutesRequest{}))
	require.NoError(t, err)
	require.True(t, stream.Receive(), stream.Err())
	first := stream.Msg()
	require.True(t, first.GetFull())
	require.NotEmpty(t, first.GetSshUserCaKeys())
	e.learn(first.GetTicketKeys())
	var maya *linkv1.Grant
	for _, g := range first.GetGrants() {
		require.NotEqual(t, nobody.id(), g.GetUserId(), "who may reach nothing has no grant")
		if g.GetUserId() == user {
			maya = g
		}
	}
	require.Len(t, maya.GetSshKeys(), 1)
	require.Equal(t, "maya", maya.GetUserName())
	grant, err := e.verifier.VerifyGrant(maya.GetJwt(), time.Now())
	require.NoError(t, err)
	org := carrel.OrgID(maya.GetOrgs()[0].GetOrgId())
	require.Equal(t, "default", maya.GetOrgs()[0].GetOrgName())
	require.True(t, grant.Has(org, auth.ScopeExec))
	require.True(t, grant.Issued.Equal(maya.GetIssueTime().AsTime().Truncate(time.Second)))

	role := func(role string) {
		_, err := r.asAdmin().orgs.SetMember(ctx, req(&carrelv1.SetMemberRequest{Org: "default", User: "maya", Role: role}))
		require.NoError(t, err)
	}
	role("viewer")
	maya = grantsOf(t, stream, user, func(g *linkv1.Grant) bool { return g.GetOrgs()[0].GetScope() == auth.ScopeView })
	grant, err = e.verifier.VerifyGrant(maya.GetJwt(), time.Now())
	require.NoError(t, err)
	require.False(t, grant.Has(org, auth.ScopeExec))
	_, err = r.asAdmin().orgs.RemoveMember(ctx, req(&carrelv1.RemoveMemberRequest{Org: "default", User: "maya"}))
	require.NoError(t, err)
	gone := grantsOf(t, stream, user, (*linkv1.Grant).GetGone)
	require.Empty(t, gone.GetJwt())
	require.Empty(t, gone.GetSshKeys())
	role("owner")
	grantsOf(t, stream, user, func(g *linkv1.Grant) bool { return !g.GetGone() && len(g.GetSshKeys()) == 1 })

	secret, err := auth.ParseToken(member.token)
	require.NoError(t, err)
	_, err = member.tokens.RevokeToken(ctx, req(&carrelv1.RevokeTokenRequest{Id: string(secret.ID)}))
	require.NoError(t, err)
	for told := false; !told; {
		require.True(t, stream.Receive(), stream.Err())
		for _, id := range stream.Msg().GetRevokedTokens() {
			told = told || id == string(secret.ID)
		}
	}
	require.NoError(t, r.server.RotateTicketKey(ctx))
	maya = grantsOf(t, stream, user, func(*linkv1.Grant) bool { return true })
	e.learn(stream.Msg().GetTicketKeys())
	_, err = e.verifier.VerifyGrant(maya.GetJwt(), time.Now())
	require.NoError(t, err, "a new key signs everything anew")
}

func TestGatewaysFindAndWakeBoxesForUsers(t *testing.T) {
	r := newReplica(t)
	r.catalogue()
	ctx := t.Context()
	member, viewer, stranger := r.newUser("maya", "default", auth.RoleMember), r.newUser("vera", "default", auth.RoleViewer), r.newUser("sam", "", auth.RoleNone)
	_, err := r.asAdmin().orgs.CreateOrg(ctx, req(&carrelv1.CreateOrgRequest{Name: "other"}))
	require.NoError(t, err)
	_, err = r.asAdmin().orgs.SetMember(ctx, req(&carrelv1.SetMemberRequest{Org: "other", User: "sam", Role: "owner"}))
	require.NoError(t, err)
	m := r.newMachine("n1")
	id := member.create("dev")
	e := r.newEdge()
	find := func(u *user, name, org string) (*linkv1.FindBoxResponse, error) {
		resp, err := e.link.FindBox(ctx, req(&linkv1.FindBoxRequest{UserId: u.id(), Box: name, Org: org}))
		if err != nil {
			return nil, err
		}
		return resp.Msg, nil
	}
	for _, name := range []string{"dev", id} {
		for _, org := range []string{"", "default"} {
			found, err := find(viewer, name, org)
			require.NoError(t, err)
			require.Equal(t, id, found.GetRoute().GetBoxId())
			require.True(t, found.GetRoute().GetGone())
			require.Equal(t, "PROVISIONING", found.GetState())
		}
	}
	// What is foreign is as what is not there: byte for byte.
	answer := func(u *user, name, org string) string {
		_, err := find(u, name, org)
		require.Equal(t, carrel.CodeNotFound, code(err))
		return strings.ReplaceAll(message(t, err), name, "X")
	}
	unknown := answer(stranger, "nothing", "")
	require.Equal(t, unknown, answer(stranger, "dev", ""))
	require.Equal(t, unknown, answer(stranger, id, ""))
	require.Equal(t, unknown, answer(stranger, string(carrel.NewBoxID()), ""))
	require.Equal(t, unknown, answer(stranger, "dev", "default"))
	require.Equal(t, unknown, answer(stranger, "dev", "nowhere"))
	require.Equal(t, unknown, answer(stranger, "NOT A NAME", ""))

	wake := func(u *user, box string) (string, error) {
		resp, err := e.link.WakeBox(ctx, req(&linkv1.WakeBoxRequest{UserId: u.id(), BoxId: box, Cause: "ssh"}))
		if err != nil {
			return "", err
		}
		return resp.Msg.GetState(), nil
	}
	m.run(id)
	state, err := wake(member, id)
	require.NoError(t, err)
	require.Equal(t, "RUNNING", state)
	generation := m.box(id).Generation
	_, err = member.boxes.StopBox(ctx, req(&carrelv1.StopBoxRequest{Id: id}))
	require.NoError(t, err)
	m.halt(id)
	_, err = wake(viewer, id)
	require.Equal(t, carrel.CodeDenied, code(err))
	_, err = wake(stranger, id)
	require.Equal(t, unknown, strings.ReplaceAll(message(t, err), id, "X"))
	state, err = wake(member, id)
	require.NoError(t, err)
	require.Equal(t, "PROVISIONING", state)
	state, err = wake(member, id)
	require.NoError(t, err)
	require.Equal(t, "PROVISIONING", state)
	require.Equal(t, generation+2, m.box(id).Generation, "who comes second starts nothing again")
	entries, err := r.store.ListAudit(ctx, store.SystemScope(), m.box(id).Org, 10)
	require.NoError(t, err)
	require.Equal(t, "wake", entries[0].Method)
	require.Equal(t, "user:"+member.id(), entries[0].Actor)
	_, err = member.boxes.DeleteBox(ctx, req(&carrelv1.DeleteBoxRequest{Id: id}))
	require.NoError(t, err)
	_, err = wake(member, id)
	require.Equal(t, "box_not_running", reason(err))
}

func TestOneNameInTwoOrganisations(t *testing.T) {
	r := newReplica(t)
	r.catalogue()
	ctx := t.Context()
	admin := r.asAdmin()
	_, err := admin.orgs.CreateOrg(ctx, req(&carrelv1.CreateOrgRequest{Name: "other"}))
	require.NoError(t, err)
	m := r.newMachine("n1")
	first := admin.create("dev")
	op, err := admin.boxes.CreateBox(ctx, req(&carrelv1.CreateBoxRequest{Name: "dev", Org: "other"}))
	require.NoError(t, err)
	e := r.newEdge()
	find := func(org string) (*connect.Response[linkv1.FindBoxResponse], error) {
		return e.link.FindBox(ctx, req(&linkv1.FindBoxRequest{UserId: admin.id(), Box: "dev", Org: org}))
	}
	_, err = find("")
	require.Equal(t, "organisation_needed", reason(err))
	found, err := find("other")
	require.NoError(t, err)
	require.Equal(t, op.Msg.GetTargetId(), found.Msg.GetRoute().GetBoxId())
	m.run(first)
	found, err = find("")
	require.NoError(t, err)
	require.Equal(t, first, found.Msg.GetRoute().GetBoxId(), "the one that runs is meant")
}

func TestGatewaysShareSecrets(t *testing.T) {
	c := newCluster(t)
	one, two := c.replica(), c.replica()
	secrets := func(r *replica) *linkv1.GetSecretsResponse {
		resp, err := r.newEdge().link.GetSecrets(t.Context(), req(&linkv1.GetSecretsRequest{}))
		require.NoError(t, err)
		return resp.Msg
	}
	a, b := secrets(one), secrets(two)
	require.Len(t, a.GetCookieKeys(), 1)
	require.Len(t, a.GetCookieKeys()[0], 32)
	require.Equal(t, a.GetCookieKeys(), b.GetCookieKeys())
	public := func(m *linkv1.GetSecretsResponse) string {
		signer, err := ssh.ParsePrivateKey(m.GetSshHostKeys()[0])
		require.NoError(t, err)
		return string(ssh.MarshalAuthorizedKey(signer.PublicKey()))
	}
	require.Equal(t, public(a), public(b))
	info, err := one.asAdmin().ssh().GetSSHInfo(t.Context(), req(&carrelv1.GetSSHInfoRequest{}))
	require.NoError(t, err)
	require.Equal(t, info.Msg.GetHostKeys()[0]+"\n", public(a))
	require.NotContains(t, c.logs.String(), "PRIVATE KEY")
}
