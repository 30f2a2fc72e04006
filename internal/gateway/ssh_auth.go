package gateway

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"carrel.dev/carrel/internal/auth"
	"carrel.dev/carrel/internal/carrel"
)

const (
	optionForceCommand  = "force-command"
	optionSourceAddress = "source-address"
	permitPTY           = "permit-pty"
	permitPorts         = "permit-port-forwarding"
	permitAgent         = "permit-agent-forwarding"
	// maxFingerprints of one login are audited.
	maxFingerprints = 4
)

// errSSHKey is all that a client hears of why its key is not good.
var errSSHKey = errors.New("the key is not accepted")

// sshProof is who logged in, and what the certificate by which they did allows.
type sshProof struct {
	user        carrel.UserID
	fingerprint string
	key         string         // in its wire form; empty for a certificate
	token       carrel.TokenID // of the API token by which a certificate was got: it ends with that
	command     string         // what a certificate forces; empty: anything
	noPTY       bool
	noPorts     bool
	noAgent     bool
}

// sshLogin is one attempt to log in. Its methods are called by the goroutine of the handshake.
type sshLogin struct {
	g    *Gateway
	peer net.Addr
	name string
	seen []string // fingerprints of keys that were offered
}

// checkKey is the callback for each key that a client offers. It does not look at the name: which box is meant, and
// whether there is one, is nobody's business before the key was proved.
func (l *sshLogin) checkKey(meta ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
	l.name = meta.User()
	proof := sshProof{fingerprint: ssh.FingerprintSHA256(key)}
	permissions := &ssh.Permissions{}
	if cert, ok := key.(*ssh.Certificate); ok {
		proof.fingerprint = fmt.Sprintf("certificate %d of %s", cert.Serial, ssh.FingerprintSHA256(cert.Key))
		user, err := l.g.checkCertificate(cert)
		if err != nil {
			l.note(proof.fingerprint)
			return nil, err
		}
		proof.user = user
		proof.restrict(cert)
		if from, ok := cert.CriticalOptions[optionSourceAddress]; ok {
			permissions.CriticalOptions = map[string]string{optionSourceAddress: from} // checked by the library
		}
	} else if user, ok := l.g.userOfKey(key); ok {
		proof.user, proof.key = user, string(key.Marshal())
	} else {
		l.note(proof.fingerprint)
		return nil, errSSHKey
	}
	permissions.ExtraData = map[any]any{sshProof{}: proof}
	return permissions, nil
}

func (l *sshLogin) note(fingerprint string) {
	if len(l.seen) < maxFingerprints && !slices.Contains(l.seen, fingerprint) {
		l.seen = append(l.seen, fingerprint)
	}
}

// refused notes a login that failed, and reports whether anything was tried: connections that come to look at the
// port are not audited.
func (l *sshLogin) refused(err error) bool {
	result := "no_attempt"
	if len(l.seen) > 0 {
		result = "refused"
		l.g.audit(auditEntry{Action: "ssh_refused", Detail: fmt.Sprintf("%s as %q with %s", l.peer, clip(l.name), strings.Join(l.seen, ", "))})
	}
	l.g.metrics.sshLogins.WithLabelValues(result).Inc()
	l.g.log.Debug("an SSH login failed", "peer", l.peer.String(), "error", err)
	return len(l.seen) > 0
}

// checkCertificate finds the user of a certificate that is good now: its first principal is the user's id.
func (g *Gateway) checkCertificate(cert *ssh.Certificate) (carrel.UserID, error) {
	if cert.CertType != ssh.UserCert || len(cert.ValidPrincipals) == 0 || !slices.ContainsFunc(g.sshCAs(), func(ca ssh.PublicKey) bool {
		return bytes.Equal(ca.Marshal(), cert.SignatureKey.Marshal())
	}) {
		return "", errSSHKey
	}
	checker := &ssh.CertChecker{SupportedCriticalOptions: []string{optionForceCommand, optionSourceAddress}, Clock: g.now}
	user := carrel.UserID(cert.ValidPrincipals[0])
	if err := checker.CheckCert(cert.ValidPrincipals[0], cert); err != nil {
		ended := time.Unix(int64(min(cert.ValidBefore, 1<<40)), 0)
		if g.now().After(ended) {
			return "", &ssh.BannerError{Err: err, Message: fmt.Sprintf("carrel: your certificate ended at %s; `carrel ssh` and `carrel config-ssh` get a new one.\r\n", ended.UTC().Format(time.RFC3339))}
		}
		return "", fmt.Errorf("%w: %w", errSSHKey, err)
	}
	if _, known := g.grantOf(user); !known || g.tokenRevoked(carrel.TokenID(cert.Extensions[auth.SSHTokenExtension])) {
		return "", errSSHKey
	}
	return user, nil
}

// restrict takes what a certificate does not permit. One that says nothing of permissions, as those for machines often do,
// permits nothing but commands.
func (p *sshProof) restrict(cert *ssh.Certificate) {
	lacks := func(extension string) bool { _, ok := cert.Extensions[extension]; return !ok }
	p.token = carrel.TokenID(cert.Extensions[auth.SSHTokenExtension])
	p.command = cert.CriticalOptions[optionForceCommand]
	p.noPTY, p.noPorts, p.noAgent = lacks(permitPTY), lacks(permitPorts), lacks(permitAgent)
}

// splitLogin takes NAME, NAME.ORG or an id apart.
func splitLogin(login string) (name, org string) {
	name, org, _ = strings.Cut(login, ".")
	return name, org
}
