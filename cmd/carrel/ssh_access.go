package main

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/crypto/ssh"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/client"
)

const (
	// renewCertificate is how long before its end a certificate is renewed.
	renewCertificate = time.Hour
	// gatewayFresh is how long the gateway's address and host keys are believed without asking.
	gatewayFresh = 24 * time.Hour
	// sshAccessTime bounds everything that is asked for before ssh begins.
	sshAccessTime = 20 * time.Second
	// sshAlias is the name of the gateway in known_hosts.
	sshAlias = "carrel-gateway"
)

// sshAccess is what OpenSSH needs to log in to boxes of one context: a key of its own, a certificate for it, the
// gateway's address and host keys. It lies in a directory that only the user can read.
type sshAccess struct {
	dir     string
	context client.Context
	name    string // of the context; empty: it is named by its URL
	gateway sshGateway
}

// sshGateway is gateway.json.
type sshGateway struct {
	Host string    `json:"host"`
	Port string    `json:"port"`
	Time time.Time `json:"time"`
	// Of whom it was learned, in whose name; see sshAccess.learnedFrom.
	From string `json:"from"`
}

func (s *sshAccess) key() string         { return filepath.Join(s.dir, "id_ed25519") }
func (s *sshAccess) certificate() string { return filepath.Join(s.dir, "id_ed25519-cert.pub") }
func (s *sshAccess) knownHosts() string  { return filepath.Join(s.dir, "known_hosts") }

// learnedFrom names a Carrel and a token. A context that now means others has what was learned before no longer: another installation at
// the same address has other host keys, and a certificate ends with its token.
func (s *sshAccess) learnedFrom() string {
	sum := sha256.Sum256([]byte(s.context.URL + "\n" + s.context.Token))
	return hex.EncodeToString(sum[:12])
}

// sshAccess makes everything ready. What is there and good is used without asking anybody, so that logins go on while the
// control plane is away; with anew it is asked for all the same, if that is possible.
func (a *app) sshAccess(ctx context.Context, anew bool) (*sshAccess, error) {
	ctx, cancel := context.WithTimeout(ctx, sshAccessTime)
	defer cancel()
	file, path, err := a.contexts()
	if err != nil {
		return nil, err
	}
	chosen, name, err := file.Resolve(a.flags, client.ChoiceFromEnv(a.getenv))
	if err != nil {
		return nil, err
	}
	folder := name
	if folder == "" {
		sum := sha256.Sum256([]byte(chosen.URL))
		folder = "url-" + hex.EncodeToString(sum[:6])
	}
	s := &sshAccess{dir: filepath.Join(filepath.Dir(path), "ssh", folder), context: chosen, name: name}
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return nil, sshFileError(s.dir, err)
	}
	public, err := s.ensureKey()
	if err != nil {
		return nil, err
	}
	known := s.readGateway()
	if known && !anew && s.certificateGood(public, renewCertificate) {
		return s, nil
	}
	c, err := client.New(client.Config{Context: chosen, UserAgent: "carrel/" + version()})
	if err != nil {
		return nil, err
	}
	defer c.Close()
	if err := s.learn(ctx, c, public); err != nil {
		if s.certificateGood(public, 0) && s.gateway.Port != "" {
			return s, nil // what there is still works
		}
		return nil, err
	}
	return s, nil
}

func sshFileError(path string, err error) error {
	return &carrel.Error{Code: carrel.CodePrecondition, Reason: "ssh_files", Cause: err, Message: fmt.Sprintf("%s cannot be used for SSH: %v", path, err)}
}

// ensureKey gives the public part of the key, which is made at the first time.
func (s *sshAccess) ensureKey() (ssh.PublicKey, error) {
	data, err := os.ReadFile(s.key())
	if errors.Is(err, fs.ErrNotExist) {
		_, private, makeErr := ed25519.GenerateKey(rand.Reader)
		if makeErr != nil {
			return nil, fmt.Errorf("make SSH key: %w", makeErr)
		}
		block, makeErr := ssh.MarshalPrivateKey(private, "carrel")
		if makeErr != nil {
			return nil, fmt.Errorf("encode SSH key: %w", makeErr)
		}
		data = pem.EncodeToMemory(block)
		err = s.write(s.key(), data)
	}
	if err != nil {
		return nil, sshFileError(s.key(), err)
	}
	signer, err := ssh.ParsePrivateKey(data)
	if err != nil {
		return nil, sshFileError(s.key(), fmt.Errorf("%w; remove it, another one is made then", err))
	}
	return signer.PublicKey(), nil
}

// write replaces a file so that a kill leaves the old or the new one, readable by its owner alone.
func (s *sshAccess) write(path string, data []byte) error {
	tmp, err := os.CreateTemp(s.dir, ".new-*") // CreateTemp makes it 0600
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name()) // gone already after the rename
	_, err = tmp.Write(data)
	if closeErr := tmp.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	return err
}

// certificateGood reports whether there is a certificate for the key that lives at least that long.
func (s *sshAccess) certificateGood(public ssh.PublicKey, least time.Duration) bool {
	data, err := os.ReadFile(s.certificate())
	if err != nil {
		return false
	}
	key, _, _, _, err := ssh.ParseAuthorizedKey(data)
	certificate, ok := key.(*ssh.Certificate)
	if err != nil || !ok || !bytes.Equal(certificate.Key.Marshal(), public.Marshal()) {
		return false
	}
	return time.Until(time.Unix(int64(min(certificate.ValidBefore, 1<<40)), 0)) > least
}

// readGateway reports whether the gateway is known and was asked for not long ago.
func (s *sshAccess) readGateway() bool {
	data, err := os.ReadFile(filepath.Join(s.dir, "gateway.json"))
	if err != nil || json.Unmarshal(data, &s.gateway) != nil || s.gateway.From != s.learnedFrom() {
		s.gateway = sshGateway{}
		return false
	}
	_, err = os.Stat(s.knownHosts())
	return err == nil && s.gateway.Port != "" && time.Since(s.gateway.Time) < gatewayFresh
}

// learn asks for the gateway and a certificate.
func (s *sshAccess) learn(ctx context.Context, c *client.Client, public ssh.PublicKey) error {
	info, err := answer(c.SSH.GetSSHInfo(ctx, connect.NewRequest(&carrelv1.GetSSHInfoRequest{})))
	if err != nil {
		return err
	}
	host, port, err := net.SplitHostPort(info.GetAddress())
	if err != nil || len(info.GetHostKeys()) == 0 {
		return carrel.Errorf(carrel.CodePrecondition, "no_ssh_gateway", "this Carrel says that it has no SSH gateway (its address is %q)", info.GetAddress())
	}
	if host == "" {
		u, err := client.ParseURL(s.context.URL)
		if err != nil {
			return err
		}
		host = u.Hostname()
	}
	known := ""
	for _, key := range info.GetHostKeys() {
		known += sshAlias + " " + key + "\n"
	}
	if err := s.write(s.knownHosts(), []byte(known)); err != nil {
		return sshFileError(s.knownHosts(), err)
	}
	certificate, err := answer(c.SSH.CreateSSHCertificate(ctx, connect.NewRequest(&carrelv1.CreateSSHCertificateRequest{PublicKey: string(ssh.MarshalAuthorizedKey(public))})))
	if err != nil {
		return err
	}
	if err := s.write(s.certificate(), []byte(certificate.GetCertificate())); err != nil {
		return sshFileError(s.certificate(), err)
	}
	s.gateway = sshGateway{Host: host, Port: port, Time: time.Now(), From: s.learnedFrom()}
	data, err := json.Marshal(s.gateway)
	if err != nil {
		return fmt.Errorf("encode gateway: %w", err)
	}
	if err := s.write(filepath.Join(s.dir, "gateway.json"), data); err != nil {
		return sshFileError(s.dir, err)
	}
	return nil
}

// options are OpenSSH's settings, each NAME and value, for every login by this access.
func (s *sshAccess) options() [][2]string {
	return [][2]string{
		{"HostKeyAlias", sshAlias}, {"UserKnownHostsFile", quotePath(s.knownHosts())}, {"GlobalKnownHostsFile", "none"}, {"StrictHostKeyChecking", "yes"}, {"UpdateHostKeys", "no"},
		{"IdentityFile", quotePath(s.key())}, {"CertificateFile", quotePath(s.certificate())}, {"IdentitiesOnly", "yes"},
		{"PreferredAuthentications", "publickey"}, {"ServerAliveInterval", "30"},
	}
}

// quotePath writes a path as OpenSSH's configuration wants it: in quotes, with / on Windows too, and % doubled.
func quotePath(path string) string {
	return `"` + string(bytes.ReplaceAll([]byte(filepath.ToSlash(path)), []byte("%"), []byte("%%"))) + `"`
}
