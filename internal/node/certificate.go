package node

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	linkv1 "carrel.dev/carrel/api/carrel/link/v1"
	"carrel.dev/carrel/internal/auth"
	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/node/disk"
)

// certificate is one peer's identity on disk: the key, made once and before anything is asked of control, so that a
// join that was cut short is repeated for the same key; and what control made of it. Both files are for
// root alone.
type certificate struct {
	keyPEM, csrPEM string
	file           certificateFile // empty until control answered
	tls            tls.Certificate
	pool           *x509.CertPool
	path           string
}

type certificateFile struct {
	ID             string   `json:"id"`
	Cluster        string   `json:"cluster"`
	CertificatePEM string   `json:"certificate_pem"`
	CAPEM          string   `json:"ca_pem"`
	TicketKeys     [][]byte `json:"ticket_keys"`
}

// openCertificate reads or begins the identity called name in dir.
func openCertificate(dir, name string) (*certificate, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open identity: %w", err)
	}
	c := &certificate{path: filepath.Join(dir, name+".json")}
	keyPath := filepath.Join(dir, name+".key")
	var kept struct {
		KeyPEM string `json:"key_pem"`
		CSRPEM string `json:"csr_pem"`
	}
	err := readSignedJSON(keyPath, &kept)
	if errors.Is(err, fs.ErrNotExist) {
		key, csr, keyErr := auth.NewCSR()
		if keyErr != nil {
			return nil, fmt.Errorf("open identity: %w", keyErr)
		}
		kept.KeyPEM, kept.CSRPEM = string(key), string(csr)
		err = writeSignedJSON(keyPath, kept)
	}
	if err != nil {
		return nil, fmt.Errorf("open identity: %s: %w", keyPath, err)
	}
	c.keyPEM, c.csrPEM = kept.KeyPEM, kept.CSRPEM
	var file certificateFile
	err = readSignedJSON(c.path, &file)
	if errors.Is(err, fs.ErrNotExist) {
		return c, nil
	}
	if err == nil {
		err = c.take(file)
	}
	if err != nil {
		return nil, fmt.Errorf("open identity: %s: %w", c.path, err)
	}
	return c, nil
}

func (c *certificate) joined() bool { return c.file.ID != "" }

func (c *certificate) take(file certificateFile) error {
	if carrel.IDKind(file.ID) != 'n' || file.Cluster == "" {
		return errors.New("it names no node and cluster")
	}
	pair, err := tls.X509KeyPair([]byte(file.CertificatePEM), []byte(c.keyPEM))
	if err != nil {
		return err
	}
	block, _ := pem.Decode([]byte(file.CertificatePEM))
	if pair.Leaf, err = x509.ParseCertificate(block.Bytes); err != nil {
		return err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM([]byte(file.CAPEM)) {
		return errors.New("there is no certificate authority in it")
	}
	c.file, c.tls, c.pool = file, pair, pool
	return nil
}

// answered makes control's answer the identity, on disk first. A renewal may leave out what does not change; what it
// must not do is to change who the node is.
func (c *certificate) answered(a *linkv1.JoinResponse) error {
	file := certificateFile{ID: a.GetId(), Cluster: a.GetClusterId(), CertificatePEM: a.GetCertificatePem(), CAPEM: a.GetCaPem(), TicketKeys: a.GetTicketKeys()}
	if was := c.file; was.ID != "" {
		if file.ID == "" {
			file.ID = was.ID
		}
		if file.Cluster == "" {
			file.Cluster = was.Cluster
		}
		if file.CAPEM == "" {
			file.CAPEM = was.CAPEM
		}
		if len(file.TicketKeys) == 0 {
			file.TicketKeys = was.TicketKeys
		}
		if file.ID != was.ID || file.Cluster != was.Cluster {
			return fmt.Errorf("control calls this node %s of cluster %s, and it is %s of %s", file.ID, file.Cluster, was.ID, was.Cluster)
		}
	}
	next := *c
	if err := next.take(file); err != nil {
		return fmt.Errorf("take the identity that control gave: %w", err)
	}
	body, err := marshal(file)
	if err != nil {
		return err
	}
	if err := disk.WriteFile(c.path, sign(body), 0o600); err != nil {
		return err
	}
	*c = next
	return nil
}
