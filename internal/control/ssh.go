package control

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"encoding/binary"
	"fmt"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"connectrpc.com/connect"
	"golang.org/x/crypto/ssh"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	carrelv1connect "carrel.dev/carrel/api/carrel/v1/carrelv1connect"
	"carrel.dev/carrel/internal/auth"
	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/store"
)

const (
	// MaxSSHCertificate is the longest life of a user's certificate.
	MaxSSHCertificate     = 24 * time.Hour
	defaultSSHCertificate = 8 * time.Hour
	minSSHCertificate     = time.Minute
	// sshClockSkew is how far a client's clock may be behind.
	sshClockSkew = 5 * time.Minute

	minRSABits   = 3072
	maxRSABits   = 16384
	maxSSHKey    = 16 << 10 // bytes of text
	maxKeyName   = 100      // bytes
	exampleOfKey = "ssh-keygen -t ed25519"
)

type sshService struct {
	carrelv1connect.UnimplementedSSHServiceHandler
	s *Server
}

// readSSHKey reads a public key as a person has it, a line of authorized_keys or a .pub file, and refuses what nobody should log in with.
func readSSHKey(text string) (key ssh.PublicKey, comment string, err error) {
	bad := func(format string, args ...any) error {
		return carrel.Errorf(carrel.CodeInvalid, "bad_ssh_key", format, args...)
	}
	text = strings.TrimSpace(text)
	switch {
	case text == "":
		return nil, "", bad("there is no key; give the contents of a .pub file, such as ~/.ssh/id_ed25519.pub")
	case strings.Contains(text, "PRIVATE KEY"):
		return nil, "", bad("this is a private key, which must never leave your machine; give the .pub file beside it")
	case len(text) > maxSSHKey:
		return nil, "", bad("the key is longer than %d bytes", maxSSHKey)
	case strings.ContainsAny(text, "\n\r\x00"):
		return nil, "", bad("give one key at a time, on one line")
	}
	key, comment, options, _, err := ssh.ParseAuthorizedKey([]byte(text))
	if err != nil {
		return nil, "", bad("this is no public key; give the contents of a .pub file, such as ~/.ssh/id_ed25519.pub")
	}
	if len(options) > 0 {
		return nil, "", bad("the key has options (%s), which would have no effect here; give it without them", short(strings.Join(options, ",")))
	}
	switch key.Type() {
	case ssh.KeyAlgoED25519, ssh.KeyAlgoSKED25519, ssh.KeyAlgoECDSA256, ssh.KeyAlgoECDSA384, ssh.KeyAlgoECDSA521, ssh.KeyAlgoSKECDSA256:
	case ssh.KeyAlgoRSA:
		if err := checkRSA(key); err != nil {
			return nil, "", err
		}
	default:
		return nil, "", bad("keys of the type %s are not taken; make one with: %s", short(key.Type()), exampleOfKey)
	}
	return key, comment, nil
}

func checkRSA(key ssh.PublicKey) error {
	crypto, ok := key.(ssh.CryptoPublicKey)
	if !ok {
		return fmt.Errorf("RSA key of the type %T", key)
	}
	public, ok := crypto.CryptoPublicKey().(*rsa.PublicKey)
	if !ok {
		return fmt.Errorf("RSA key of the type %T", crypto.CryptoPublicKey())
	}
	if bits := public.N.BitLen(); bits < minRSABits || bits > maxRSABits {
		return carrel.Errorf(carrel.CodeInvalid, "bad_ssh_key", "the RSA key has %d bits and must have from %d to %d; a better one is made with: %s", bits, minRSABits, maxRSABits, exampleOfKey)
	}
	return nil
}

func (k sshService) AddSSHKey(ctx context.Context, req *connect.Request[carrelv1.AddSSHKeyRequest]) (*connect.Response[carrelv1.SSHKey], error) {
	key, comment, err := readSSHKey(req.Msg.GetPublicKey())
	if err != nil {
		return nil, err
	}
	name := req.Msg.GetName()
	if name == "" {
		if name = plainName(comment); name == "" {
			name = key.Type()
		}
	}
	if plainName(name) != name {
		return nil, carrel.Errorf(carrel.CodeInvalid, "bad_name", "the name of a key has at most %d bytes of printable text", maxKeyName)
	}
	user := accessOf(ctx).principal.User
	added, err := k.s.store.AddSSHKey(ctx, scopeOf(ctx), store.SSHKey{
		User: user, Name: name, PublicKey: authorizedKey(key), Fingerprint: ssh.FingerprintSHA256(key),
	})
	if err != nil {
		return nil, fmt.Errorf("add SSH key: %w", err)
	}
	return reply(sshKeyProto(added))
}

// plainName is as much of a text as can be the name of a key.
func plainName(s string) string {
	s = strings.TrimSpace(strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) || r == utf8.RuneError {
			return -1
		}
		return r
	}, s))
	for len(s) > maxKeyName {
		_, size := utf8.DecodeLastRuneInString(s)
		s = strings.TrimSpace(s[:len(s)-size])
	}
	return s
}

func (k sshService) ListSSHKeys(ctx context.Context, _ *connect.Request[carrelv1.ListSSHKeysRequest]) (*connect.Response[carrelv1.ListSSHKeysResponse], error) {
	keys, err := k.s.store.SSHKeys(ctx, scopeOf(ctx), accessOf(ctx).principal.User)
	if err != nil {
		return nil, fmt.Errorf("list SSH keys: %w", err)
	}
	return reply(&carrelv1.ListSSHKeysResponse{Keys: each(keys, sshKeyProto)})
}

func (k sshService) RemoveSSHKey(ctx context.Context, req *connect.Request[carrelv1.RemoveSSHKeyRequest]) (*connect.Response[carrelv1.RemoveSSHKeyResponse], error) {
	ref := req.Msg.GetId()
	if ref == "" || len(ref) > maxText {
		return nil, carrel.Errorf(carrel.CodeInvalid, "key_needed", "say which key is meant: its id, its name or its fingerprint")
	}
	if _, err := k.s.store.RemoveSSHKey(ctx, platformScope(ctx), accessOf(ctx).principal.User, ref); err != nil {
		return nil, fmt.Errorf("remove SSH key: %w", err)
	}
	return reply(&carrelv1.RemoveSSHKeyResponse{})
}

func sshKeyProto(k store.SSHKey) *carrelv1.SSHKey {
	return &carrelv1.SSHKey{Id: k.ID, UserId: string(k.User), Name: k.Name, PublicKey: k.PublicKey, Fingerprint: k.Fingerprint, CreateTime: timeProto(k.CreatedAt)}
}

// CreateSSHCertificate signs a key of the caller's. The certificate names the user twice, by id and by name, and the API token that
// asked: it ends with that token and with the user's rights, whatever time is left.
func (k sshService) CreateSSHCertificate(ctx context.Context, req *connect.Request[carrelv1.CreateSSHCertificateRequest]) (*connect.Response[carrelv1.SSHCertificate], error) {
	key, comment, err := readSSHKey(req.Msg.GetPublicKey())
	if err != nil {
		return nil, err
	}
	lifetime := defaultSSHCertificate
	if d := req.Msg.GetLifetime(); d != nil {
		if lifetime = d.AsDuration(); !d.IsValid() || lifetime < minSSHCertificate || lifetime > MaxSSHCertificate {
			return nil, carrel.Errorf(carrel.CodeInvalid, "bad_lifetime", "a certificate lives from %s to %s", carrel.FormatPeriod(minSSHCertificate), carrel.FormatPeriod(MaxSSHCertificate))
		}
	}
	now, p := k.s.now(), accessOf(ctx).principal
	expires := notAfter(p, now.Add(lifetime)).Truncate(time.Second)
	var serial [8]byte
	_, _ = rand.Read(serial[:]) // never fails: crypto/rand ends the process instead
	certificate := &ssh.Certificate{
		Key: key, Serial: binary.BigEndian.Uint64(serial[:]), CertType: ssh.UserCert, KeyId: string(p.User),
		ValidPrincipals: []string{string(p.User), p.UserName},
		ValidAfter:      uint64(now.Add(-sshClockSkew).Unix()), ValidBefore: uint64(expires.Unix()),
		Permissions: ssh.Permissions{Extensions: map[string]string{
			"permit-pty": "", "permit-port-forwarding": "", "permit-agent-forwarding": "", auth.SSHTokenExtension: string(p.Token),
		}},
	}
	if err := certificate.SignCert(rand.Reader, k.s.keys.Load().sshCA); err != nil {
		return nil, fmt.Errorf("sign SSH certificate: %w", err)
	}
	line := authorizedKey(certificate)
	if name := plainName(comment); name != "" {
		line += " " + name
	}
	return reply(&carrelv1.SSHCertificate{Certificate: line + "\n", ExpireTime: timeProto(expires)})
}

func (k sshService) GetSSHInfo(context.Context, *connect.Request[carrelv1.GetSSHInfoRequest]) (*connect.Response[carrelv1.SSHInfo], error) {
	keys := k.s.keys.Load()
	return reply(&carrelv1.SSHInfo{HostKeys: keys.sshHosts, UserCaKeys: keys.sshUserCAs, Address: k.s.config.SSHAddress})
}
