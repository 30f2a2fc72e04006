package gvisor

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/runtime"
)

// program is a binary of runsc.
type program struct {
	Path    string `json:"path"`
	SHA256  string `json:"sha256,omitempty"` // in hex; empty: not known
	Version string `json:"version"`          // as it says itself
	foreign bool   // Path is of another version, for want of it
}

// programPrefix and its SHA-256 are the name of a binary in Config.Programs.
const programPrefix = "runsc-"

// versionTime is what a binary may take to say its version.
const versionTime = 30 * time.Second

// programs are the binaries of runsc on this machine. It is safe for concurrent use.
type programs struct {
	mu     sync.Mutex // guards the rest
	newer  program    // that of new sandboxes
	former []program  // others, by path
}

// find looks for the binaries. A former one that does not say its version is left alone, and nothing goes on with it.
func (p *programs) find(runsc, dir string, log *slog.Logger) error {
	version, err := versionOf(runsc)
	if err != nil {
		return err
	}
	p.newer = program{Path: runsc, Version: version}
	if dir == "" {
		return nil
	}
	own, err := os.Stat(runsc)
	if err != nil {
		return err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("looking for binaries of former versions: %w", err)
	}
	for _, e := range entries {
		sum, ok := strings.CutPrefix(e.Name(), programPrefix)
		if raw, err := hex.DecodeString(sum); !ok || err != nil || len(raw) != 32 || !e.Type().IsRegular() {
			continue
		}
		path := filepath.Join(dir, e.Name())
		if info, err := os.Stat(path); err == nil && os.SameFile(info, own) {
			p.newer.SHA256 = sum
			continue
		}
		version, err := versionOf(path)
		if err != nil {
			log.Error("a binary of a former version cannot be used", "path", path, "error", err)
			continue
		}
		p.former = append(p.former, program{Path: path, SHA256: sum, Version: version})
	}
	return nil
}

// versionOf asks a binary for its version.
func versionOf(path string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), versionTime)
	defer cancel()
	out, err := exec.CommandContext(ctx, path, "--version").Output()
	if err != nil {
		return "", fmt.Errorf("asking %s for its version: %w", path, err)
	}
	version := parseVersion(string(out))
	if version == "" || version == "VERSION_MISSING" {
		return "", fmt.Errorf("%s names no version, so captures could be restored by another one; build it with `make bin/runsc`", path)
	}
	return version, nil
}

func parseVersion(out string) string {
	line, _, _ := strings.Cut(out, "\n")
	version, ok := strings.CutPrefix(line, "runsc version ")
	if !ok {
		return ""
	}
	return strings.TrimSpace(version)
}

// newest is the program of new sandboxes.
func (p *programs) newest() program {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.newer
}

// all begins with the program of new sandboxes.
func (p *programs) all() []program {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]program{p.newer}, p.former...)
}

// formerVersions are those with which only what exists already goes on, sorted.
func (p *programs) formerVersions() []string {
	var versions []string
	all := p.all()
	for _, f := range all[1:] {
		if f.Version != all[0].Version {
			versions = append(versions, f.Version)
		}
	}
	slices.Sort(versions)
	return slices.Compact(versions)
}

// choose finds the very binary, else one of the same version.
func (p *programs) choose(sum, version string) (program, bool) {
	all := p.all()
	for _, is := range []func(program) bool{
		func(c program) bool { return sum != "" && c.SHA256 == sum },
		func(c program) bool { return c.Version == version },
	} {
		if i := slices.IndexFunc(all, is); i >= 0 {
			return all[i], true
		}
	}
	return program{}, false
}

// forMemory is the program with which the memory of a capture goes on.
func (p *programs) forMemory(dir string, c capture) (program, error) {
	if !c.Memory {
		return program{}, fmt.Errorf("%w: it holds no memory", runtime.ErrIncompatible)
	}
	sum, err := c.savedBy(dir)
	if err != nil {
		return program{}, err
	}
	chosen, ok := p.choose(sum, c.Version)
	if !ok {
		return program{}, fmt.Errorf("%w: its memory is of runsc %s, which is not on this machine any more; this is %s", runtime.ErrIncompatible, c.Version, p.newest().Version)
	}
	return chosen, nil
}

// programOf is the program that began a sandbox. If its binary is gone it is one of the same version, or else that of new sandboxes, by the
// name of its own version: not everything works with that (its memory cannot be saved), but a sandbox that could not even be
// stopped would be worse.
func (r *Runtime) programOf(run string) (program, error) {
	file, err := r.readRunFile(run)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return program{}, fmt.Errorf("looking for the runsc that began the sandbox: %w", err)
	}
	began := file.Runsc
	if began.Path == "" {
		return r.programByProcess(run)
	}
	_, err = os.Stat(began.Path)
	if err == nil {
		return began, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return program{}, fmt.Errorf("looking for the runsc that began the sandbox: %w", err)
	}
	instead, ok := r.programs.choose(began.SHA256, began.Version)
	if !ok {
		instead = r.programs.newest()
		r.log.Warn("the runsc that began a sandbox is not on this machine any more; another is used", "run", run, "gone", began.Path, "version", began.Version, "used", instead.Path)
	}
	return program{Path: instead.Path, SHA256: began.SHA256, Version: began.Version, foreign: !ok}, nil
}

// programByProcess finds the program of a sandbox whose run.json does not name it by what its process executes. Only programs that
// are known already come into question: a sandbox may say of its process what it likes.
func (r *Runtime) programByProcess(run string) (program, error) {
	state, err := r.readStateFile(run)
	if err != nil {
		return program{}, fmt.Errorf("looking for the runsc that began the sandbox: %w", err)
	}
	exe, err := os.Stat(fmt.Sprintf("/proc/%d/exe", state.Sandbox.Pid))
	if err == nil && r.isOurs(state.Sandbox.Pid, run) {
		for _, p := range r.programs.all() {
			if info, err := os.Stat(p.Path); err == nil && os.SameFile(info, exe) {
				return p, nil
			}
		}
	}
	newest := r.programs.newest()
	r.log.Warn("it is not known which runsc began a sandbox; that of new ones is used", "run", run, "used", newest.Path)
	return newest, nil
}

// VersionOf implements runtime.Keeper.
func (r *Runtime) VersionOf(run string) (string, error) {
	if _, err := r.need(run); err != nil {
		return "", fmt.Errorf("asking for the sandbox's version: %w", err)
	}
	p, err := r.programOf(run)
	return p.Version, err
}

// Sweep implements runtime.Keeper.
func (r *Runtime) Sweep(captures []string) error {
	needed, err := r.neededPrograms(captures)
	if err != nil {
		return fmt.Errorf("removing binaries of former versions: %w", err)
	}
	p := &r.programs
	p.mu.Lock()
	defer p.mu.Unlock()
	var kept []program
	var errs []error
	for _, f := range p.former {
		if use := needed[f.Path]; use != (programUse{}) {
			kept = append(kept, f)
			r.log.Info("a former version of runsc is kept for what still needs it", "version", f.Version, "path", f.Path, "sandboxes", use.sandboxes, "snapshots", use.captures)
			continue
		}
		if err := removeFile(f.Path); err != nil {
			kept = append(kept, f)
			errs = append(errs, fmt.Errorf("removing a binary of a former version: %w", err))
			continue
		}
		r.log.Info("a former version of runsc was removed, since nothing needs it any more", "version", f.Version, "path", f.Path)
	}
	p.former = kept
	return errors.Join(errs...)
}

// programUse counts what needs a program.
type programUse struct{ sandboxes, captures int }

// neededPrograms are the programs that sandboxes and captures need, by path.
func (r *Runtime) neededPrograms(captures []string) (map[string]programUse, error) {
	needed := map[string]programUse{}
	entries, err := os.ReadDir(filepath.Join(r.root, "runs"))
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if carrel.IDKind(e.Name()) == 0 {
			continue
		}
		st, err := r.state(e.Name())
		if err != nil {
			return nil, err
		}
		if !st.alive {
			continue // only Destroy is left, which needs none
		}
		p, err := r.programOf(e.Name())
		if err != nil {
			return nil, err
		}
		use := needed[p.Path]
		use.sandboxes++
		needed[p.Path] = use
	}
	for _, dir := range captures {
		c, err := readCapture(dir)
		if err == nil && c.Memory {
			var p program
			if p, err = r.programs.forMemory(dir, c); err == nil {
				use := needed[p.Path]
				use.captures++
				needed[p.Path] = use
			}
		}
		if err != nil && !errors.Is(err, runtime.ErrIncompatible) {
			return nil, fmt.Errorf("looking at the capture %s: %w", dir, err)
		}
	}
	return needed, nil
}
