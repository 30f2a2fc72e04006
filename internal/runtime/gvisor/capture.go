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
	// captureProgram says which binary saved the memory. Captures of Carrel's first versions have none, and those versions
	// do not mind it: nothing may be added to captureFile itself, where they refuse what they do not know.
	captureProgram = "memory/program.json"
)

// capture is capture.json. It is written last, so a capture without it was never finished. Its hashes are of the
// small files, on which runsc's own answer to damage is to crash; the large ones (pages, upper.tar) are known here
// by their size alone: who keeps captures hashes them as it keeps them.
//
// The form may not change, and nothing be added to it: a Carrel that is put back in the place of a newer one still
// has to start its boxes.
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

// savedBy is captureProgram.
type savedBy struct {
	SHA256 string `json:"sha256"` // of the binary, in hex
}

// captureNames are the files that a capture must have, and whether capture.json has their hash.
func captureNames(memory bool) map[string]bool {
	names := map[string]bool{captureUpper: false}
	if memory {
		names[captureState], names[captureMeta], names[capturePages] = true, true, false
	}
	return names
}

// describe looks at the files that Save made with a runsc, and writes capture.json.
func describe(dir string, memory bool, runsc program) error {
	c := capture{Format: captureFormat, Runtime: "gvisor", Version: runsc.Version, Memory: memory, Files: map[string]captureItem{}}
	names := captureNames(memory)
	if memory && runsc.SHA256 != "" {
		data, err := json.Marshal(savedBy{runsc.SHA256})
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, captureProgram), append(data, '\n'), 0o600); err != nil {
			return fmt.Errorf("describing what was saved: %w", err)
		}
		names[captureProgram] = true
	}
	for name, hashed := range names {
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

// checkCapture verifies that the capture in dir is whole and can be used as asked, and chooses the program for that.
func (r *Runtime) checkCapture(dir string, withMemory bool) (program, error) {
	c, err := readCapture(dir)
	if err != nil {
		return program{}, err
	}
	runsc := r.programs.newest()
	if withMemory {
		if runsc, err = r.programs.forMemory(dir, c); err != nil {
			return program{}, err
		}
	}
	names := captureNames(c.Memory)
	if _, is := c.Files[captureProgram]; is && c.Memory {
		names[captureProgram] = true
	}
	for name, hashed := range names {
		if withMemory == (name == captureUpper) {
			continue // with memory, the root's changes are in it; without, only they are used
		}
		if err := c.check(dir, name, hashed); err != nil {
			return program{}, err
		}
	}
	return runsc, nil
}

// readCapture reads capture.json.
func readCapture(dir string) (capture, error) {
	var c capture
	data, err := readRegular(filepath.Join(dir, captureFile), maxCaptureFile)
	if err != nil {
		return c, damaged(err)
	}
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&c); err != nil {
		return c, damaged(fmt.Errorf("reading %s: %w", captureFile, err))
	}
	if c.Format != captureFormat || c.Runtime != "gvisor" {
		return c, fmt.Errorf("%w: it is of runtime %q, format %d", runtime.ErrIncompatible, c.Runtime, c.Format)
	}
	return c, nil
}

// check compares a file with what was saved.
func (c capture) check(dir, name string, hashed bool) error {
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
	return nil
}

// savedBy is the SHA-256 of the binary that saved the memory; "": that was not written down.
func (c capture) savedBy(dir string) (string, error) {
	if _, is := c.Files[captureProgram]; !is {
		return "", nil
	}
	if err := c.check(dir, captureProgram, true); err != nil {
		return "", err
	}
	data, err := readRegular(filepath.Join(dir, captureProgram), maxCaptureFile)
	if err != nil {
		return "", damaged(err)
	}
	var by savedBy
	if err := json.Unmarshal(data, &by); err != nil {
		return "", damaged(fmt.Errorf("reading %s: %w", captureProgram, err))
	}
	return by.SHA256, nil
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
