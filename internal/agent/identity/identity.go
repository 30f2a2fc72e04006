// Package identity is the file by which a node tells the agent in a box which run it is: written by the
// node into a directory that only root in the box can read, read by the agent at its start and after
// every restore. It must not import anything but the standard library, so that both sides can use it.
// Words: a key is what a client of the agent has to know; it is made for each run and ends with it.
package identity

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

const (
	// Directory is where the agent finds its identity in the box.
	Directory = "/.carrel/identity"
	// FileName is the file in it.
	FileName = "identity.json"
	// maxSize of the file, in bytes: the largest environment, startup and set-up commands, with room for their quoting.
	maxSize = 4 << 20
)

// Identity is what an agent is told of its run.
type Identity struct {
	RunID   string `json:"run_id"`
	BoxID   string `json:"box_id"`
	BoxName string `json:"box_name"`
	// Key is 64 hexadecimal digits.
	Key string `json:"key"`
	// MemoryBytes is what processes may use together before the largest is ended; 0: no limit.
	MemoryBytes int64 `json:"memory_bytes"`
	// Processes and threads of one user; 0: no limit.
	Processes int64             `json:"processes"`
	Env       map[string]string `json:"env,omitempty"`
	// Sudo lets the user become root.
	Sudo bool `json:"sudo,omitempty"`
	// Startup are shell commands, run as the user at each cold start.
	Startup []string `json:"startup,omitempty"`
	// Prepare is done at a fresh start, before the box is ready; nil: nothing.
	Prepare *Preparation `json:"prepare,omitempty"`
}

// Preparation says what is done before a box is ready: set-up commands, then a kernel is started and runs code.
type Preparation struct {
	// Setup are shell commands, run as the user, one after the other.
	Setup []string `json:"setup,omitempty"`
	// Kernel is the name of a Jupyter kernel; empty: none. Imports is code for it.
	Kernel  string `json:"kernel,omitempty"`
	Imports string `json:"imports,omitempty"`
	// TimeoutMillis is how long all of it may take.
	TimeoutMillis int64 `json:"timeout_millis"`
}

var (
	keyPattern  = regexp.MustCompile(`^[0-9a-f]{64}$`)
	namePattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9-]{0,62}$`)
)

// Parse reads one JSON object and checks every field. Fields that it does not know are passed over: an
// agent in a snapshot may be older than the node that resumes it.
func Parse(data []byte) (Identity, error) {
	var id Identity
	decoder := json.NewDecoder(bytes.NewReader(data))
	if err := decoder.Decode(&id); err != nil {
		return Identity{}, fmt.Errorf("decode identity: %w", err)
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return Identity{}, errors.New("decode identity: something follows the object")
	}
	if err := id.Validate(); err != nil {
		return Identity{}, err
	}
	return id, nil
}

// Validate checks every field.
func (id Identity) Validate() error {
	switch {
	case !namePattern.MatchString(id.RunID):
		return fmt.Errorf("identity: %q is no run id", id.RunID)
	case id.BoxID != "" && !namePattern.MatchString(id.BoxID):
		return fmt.Errorf("identity: %q is no box id", id.BoxID)
	case !namePattern.MatchString(id.BoxName):
		return fmt.Errorf("identity: %q is no box name", id.BoxName)
	case !keyPattern.MatchString(id.Key):
		return errors.New("identity: the key is not 64 hexadecimal digits")
	case id.MemoryBytes < 0 || id.Processes < 0:
		return errors.New("identity: a limit is negative")
	case len(id.Startup) > 64:
		return fmt.Errorf("identity: %d startup commands; at most 64 are run", len(id.Startup))
	}
	for name, value := range id.Env {
		if name == "" || strings.ContainsAny(name, "=\x00") || strings.ContainsRune(value, 0) {
			return fmt.Errorf("identity: the environment variable %q is not usable", name)
		}
	}
	for _, command := range id.Startup {
		if command == "" || strings.ContainsRune(command, 0) {
			return errors.New("identity: a startup command is empty or has a zero byte")
		}
	}
	return id.Prepare.validate()
}

func (p *Preparation) validate() error {
	switch {
	case p == nil:
		return nil
	case len(p.Setup) > 64:
		return fmt.Errorf("identity: %d set-up commands; at most 64 are run", len(p.Setup))
	case p.TimeoutMillis <= 0:
		return fmt.Errorf("identity: preparing may take %d ms; it must be more", p.TimeoutMillis)
	}
	for _, command := range p.Setup {
		if command == "" || strings.ContainsRune(command, 0) {
			return errors.New("identity: a set-up command is empty or has a zero byte")
		}
	}
	return nil
}

// Read reads and checks the identity in directory.
func Read(directory string) (Identity, error) {
	file, err := os.Open(filepath.Join(directory, FileName))
	if err != nil {
		return Identity{}, fmt.Errorf("read identity: %w", err)
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, maxSize+1))
	if err != nil {
		return Identity{}, fmt.Errorf("read identity: %w", err)
	}
	if len(data) > maxSize {
		return Identity{}, fmt.Errorf("read identity: it is larger than %d bytes", maxSize)
	}
	return Parse(data)
}

// Write checks id and writes it into directory, which exists, replacing the one that is there; only its
// owner can read it. The directory is not synced: a node that restarts writes the identity again.
func Write(directory string, id Identity) error {
	if err := id.Validate(); err != nil {
		return err
	}
	data, err := json.Marshal(id)
	if err != nil {
		return fmt.Errorf("encode identity: %w", err)
	}
	if len(data) > maxSize {
		return fmt.Errorf("write identity: it is larger than %d bytes", maxSize)
	}
	name := filepath.Join(directory, FileName)
	if err := os.Remove(name + ".new"); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("write identity: %w", err)
	}
	if err := os.WriteFile(name+".new", data, 0o400); err != nil {
		return fmt.Errorf("write identity: %w", err)
	}
	if err := os.Rename(name+".new", name); err != nil {
		return fmt.Errorf("write identity: %w", err)
	}
	return nil
}
