package gvisor

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"carrel.dev/carrel/internal/runtime"
)

// The files of a capture.
const (
	captureFile   = "capture.json"
	captureUpper  = "upper.tar" // the root file system's changes
	captureMemory = "memory"    // the directory that runsc fills and reads
	captureState  = "memory/checkpoint.img"
	captureMeta   = "memory/pages_meta.img"
	capturePages  = "memory/pages.img"
)

// capture is capture.json. It is written last, so a capture without it was never finished. Its hashes are of the
// small files, on which runsc's own answer to damage is to crash; the large ones (pages, upper.tar) are known here
// by their size alone: who keeps captures hashes them as it keeps them.
type capture struct {
	Format  int                    `json:"format"` // 1
	Runtime string                 `json:"runtime"`
	Version string                 `json:"version"` // of runsc
	Memory  bool                   `json:"memory"`
	Files   map[string]captureItem `json:"files"`
}

type captureItem struct {
	Size   int64  `json:"size"`             // bytes
	SHA256 string `json:"sha256,omitempty"` // in hex; empty: not hashed here
}

const (
	captureFormat    = 1
	maxCaptureFile   = 64 << 10
	maxHashedCapture = 1 << 30 // a kernel state larger than this is not believable
)

// captureNames are the files that a capture must have, and whether capture.json has their hash.
func captureNames(memory bool) map[string]bool {
	names := map[string]bool{captureUpper: false}
	if memory {
		names[captureState], names[captureMeta], names[capturePages] = true, true, false
	}
	return names
}

// describe looks at the files that Save made, and writes capture.json.
func (r *Runtime) describe(dir string, memory bool) error {
	c := capture{Format: captureFormat, Runtime: "gvisor", Version: r.version, Memory: memory, Files: map[string]captureItem{}}
	for name, hashed := range captureNames(memory) {
		item, err := inspect(dir, name, hashed)
		if err != nil {
			return fmt.Errorf("looking at what was saved: %w", err)
		}
		c.Files[name] = item
	}
	data, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, captureFile), append(data, '\n'), 0o600); err != nil {
		return fmt.Errorf("describing what was saved: %w", err)
	}
	return nil
}

// inspect opens a file of a capture, which must be regular, and sizes or hashes it.
func inspect(dir, name string, hashed bool) (captureItem, error) {
	f, err := os.OpenFile(filepath.Join(dir, name), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return captureItem{}, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return captureItem{}, err
	}
	if !info.Mode().IsRegular() {
		return captureItem{}, fmt.Errorf("%s is not a regular file", name)
	}
	item := captureItem{Size: info.Size()}
	if !hashed {
		return item, nil
	}
	hash := sha256.New()
	if _, err := io.Copy(hash, io.LimitReader(f, maxHashedCapture)); err != nil {
		return captureItem{}, fmt.Errorf("reading %s: %w", name, err)
	}
	item.SHA256 = hex.EncodeToString(hash.Sum(nil))
	return item, nil
}

// checkCapture verifies that the capture in dir is whole and can be used as asked.
func (r *Runtime) checkCapture(dir string, withMemory bool) error {
	data, err := readRegular(filepath.Join(dir, captureFile), maxCaptureFile)
	if err != nil {
		return damaged(err)
	}
	var c capture
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&c); err != nil {
		return damaged(fmt.Errorf("reading %s: %w", captureFile, err))
	}
	switch {
	case c.Format != captureFormat || c.Runtime != "gvisor":
		return fmt.Errorf("%w: it is of runtime %q, format %d", runtime.ErrIncompatible, c.Runtime, c.Format)
	case withMemory && !c.Memory:
		return fmt.Errorf("%w: it holds no memory", runtime.ErrIncompatible)
	case withMemory && c.Version != r.version:
		return fmt.Errorf("%w: its memory is of runsc %s, and this is %s", runtime.ErrIncompatible, c.Version, r.version)
	}
	names := captureNames(c.Memory)
	for name, hashed := range names {
		if withMemory == (name == captureUpper) {
			continue // with memory, the root's changes are in it; without, only they are used
		}
		want, ok := c.Files[name]
		if !ok {
			return damaged(fmt.Errorf("%s does not name %s", captureFile, name))
		}
		got, err := inspect(dir, name, hashed)
		if err != nil {
			return damaged(err)
		}
		if got != want {
			return damaged(fmt.Errorf("%s is not what was saved (%d bytes, %d expected)", name, got.Size, want.Size))
		}
	}
	return nil
}

// damaged makes err an ErrCorrupt, if it is about the capture and not about this machine.
func damaged(err error) error {
	if errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) || errors.Is(err, unix.ENOMEM) {
		return err
	}
	return fmt.Errorf("%w: %w", runtime.ErrCorrupt, err)
}

// readRegular reads a small regular file.
func readRegular(path string, limit int64) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > limit {
		return nil, fmt.Errorf("%s is not a regular file of at most %d bytes", path, limit)
	}
	return io.ReadAll(io.LimitReader(f, limit))
}
