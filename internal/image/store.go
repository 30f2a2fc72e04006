package image

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/failpoint"
)

// Description is what is known of an image beside its files. It is kept as JSON beside the EROFS file.
type Description struct {
	// Digest is "sha256:" and 64 hexadecimal digits, of the EROFS file.
	Digest string `json:"digest"`
	Size   int64  `json:"size"`
	// Source is "build" or the reference that it was imported from.
	Source string `json:"source"`
	// Name is the definition's, for a build.
	Name string `json:"name,omitempty"`
	// Key is the definition's, for a build.
	Key string `json:"key,omitempty"`
	// Manifest is the digest of the OCI manifest, for an import.
	Manifest string `json:"manifest,omitempty"`
	// Platform is such as linux/amd64.
	Platform string        `json:"platform"`
	Config   ProcessConfig `json:"config"`
	// Packages are the Debian packages in it, as name=version, sorted.
	Packages []string  `json:"packages,omitempty"`
	Files    int64     `json:"files"`
	Created  time.Time `json:"created"`
}

// ProcessConfig is how an image would like its processes to begin.
type ProcessConfig struct {
	Env        []string `json:"env,omitempty"` // KEY=VALUE
	User       string   `json:"user,omitempty"`
	WorkingDir string   `json:"working_dir,omitempty"`
	Entrypoint []string `json:"entrypoint,omitempty"`
	Cmd        []string `json:"cmd,omitempty"`
}

// Result is an image that lies ready.
type Result struct {
	Digest string
	Path   string // of the EROFS file
	Size   int64  // in bytes
	// Cached says that nothing had to be built or imported.
	Cached      bool
	Description Description
}

var digestPattern = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)

// store is the directory of a Builder:
//
//	sha256-HEX.erofs   an image, complete: it gets this name by rename after its description is there
//	sha256-HEX.json    its Description
//	keys/KEY.json      the digest that a definition's key was built to
//	tmp/NAME/          work in progress, locked by the process that does it
//	lock               held for a moment by whoever makes or sweeps directories in tmp
type store struct {
	dir string

	mu       sync.Mutex
	verified map[string]fileIdentity // digest → the file that was hashed in the life of this process
}

type fileIdentity struct {
	inode   uint64
	size    int64
	changed syscall.Timespec
}

func openStore(dir string) (*store, error) {
	for _, d := range []string{dir, filepath.Join(dir, "keys"), filepath.Join(dir, "tmp")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return nil, fmt.Errorf("making the image directory: %w", err)
		}
	}
	s := &store{dir: dir, verified: map[string]fileIdentity{}}
	if err := s.sweep(); err != nil {
		return nil, err
	}
	return s, nil
}

func (s *store) imagePath(digest string) string {
	return filepath.Join(s.dir, strings.Replace(digest, ":", "-", 1)+".erofs")
}

func (s *store) descriptionPath(digest string) string {
	return filepath.Join(s.dir, strings.Replace(digest, ":", "-", 1)+".json")
}

func (s *store) keyPath(key string) string { return filepath.Join(s.dir, "keys", key+".json") }

// withLock runs f while no other process makes or sweeps work directories.
func (s *store) withLock(f func() error) error {
	file, err := os.OpenFile(filepath.Join(s.dir, "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return fmt.Errorf("locking the image directory: %w", err)
	}
	defer file.Close()
	if err := flock(file, syscall.LOCK_EX); err != nil {
		return fmt.Errorf("locking the image directory: %w", err)
	}
	return f()
}

func flock(file *os.File, how int) error {
	for {
		err := syscall.Flock(int(file.Fd()), how)
		if !errors.Is(err, syscall.EINTR) {
			return err
		}
	}
}

// sweep removes what a killed process left: work directories that nobody has locked, descriptions without
// an image, and half-written small files.
func (s *store) sweep() error {
	return s.withLock(func() error {
		work, err := os.ReadDir(filepath.Join(s.dir, "tmp"))
		if err != nil {
			return fmt.Errorf("sweeping the image directory: %w", err)
		}
		for _, d := range work {
			path := filepath.Join(s.dir, "tmp", d.Name())
			file, err := os.Open(path)
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return fmt.Errorf("sweeping the image directory: %w", err)
			}
			locked := flock(file, syscall.LOCK_EX|syscall.LOCK_NB)
			if locked == nil {
				err = os.RemoveAll(path)
			}
			file.Close()
			if err != nil {
				return fmt.Errorf("sweeping the image directory: %w", err)
			}
		}
		descriptions, err := filepath.Glob(filepath.Join(s.dir, "sha256-*.json"))
		if err != nil {
			return fmt.Errorf("sweeping the image directory: %w", err)
		}
		for _, d := range descriptions {
			// Another process may be between the two renames of put, which it does under the lock.
			if _, err := os.Stat(strings.TrimSuffix(d, ".json") + ".erofs"); errors.Is(err, fs.ErrNotExist) {
				if err := os.Remove(d); err != nil && !errors.Is(err, fs.ErrNotExist) {
					return fmt.Errorf("sweeping the image directory: %w", err)
				}
			}
		}
		return nil
	})
}

// workDir is a directory for work in progress. It is removed by close, or by the next sweep of any process
// if this one is killed.
type workDir struct {
	path string
	lock *os.File
}

func (s *store) newWork() (*workDir, error) {
	w := &workDir{path: filepath.Join(s.dir, "tmp", strings.ToLower(rand.Text()))}
	err := s.withLock(func() error {
		if err := os.Mkdir(w.path, 0o755); err != nil {
			return err
		}
		lock, err := os.Open(w.path)
		if err != nil {
			return err
		}
		w.lock = lock
		return flock(lock, syscall.LOCK_EX)
	})
	if err != nil {
		return nil, fmt.Errorf("making a work directory: %w", err)
	}
	return w, nil
}

func (w *workDir) close() error {
	err := os.RemoveAll(w.path)
	w.lock.Close()
	if err != nil {
		return fmt.Errorf("removing a work directory: %w", err)
	}
	return nil
}

// put gives a finished EROFS file and its description their names, and makes both durable. The file
// is moved. d's Digest and Size are filled in.
func (s *store) put(ctx context.Context, file string, d *Description) (Result, error) {
	digest, size, err := hashFile(ctx, file, true)
	if err != nil {
		return Result{}, err
	}
	d.Digest, d.Size = digest, size
	if err := failpoint.Hit("image/put/hashed"); err != nil {
		return Result{}, err
	}
	err = s.withLock(func() error {
		if err := s.writeJSON(s.descriptionPath(digest), d); err != nil {
			return err
		}
		if err := failpoint.Hit("image/put/described"); err != nil {
			return err
		}
		// The same image may be in use: as long as it is whole, its file stays, and with it its pages in memory.
		if old, _, err := hashFile(ctx, s.imagePath(digest), false); err == nil && old == digest {
			return nil
		}
		if err := os.Chmod(file, 0o444); err != nil {
			return err
		}
		if err := os.Rename(file, s.imagePath(digest)); err != nil {
			return err
		}
		return syncDir(s.dir)
	})
	if err != nil {
		return Result{}, fmt.Errorf("keeping the image: %w", err)
	}
	if err := failpoint.Hit("image/put/renamed"); err != nil {
		return Result{}, err
	}
	s.markVerified(digest)
	return s.result(*d), nil
}

func (s *store) result(d Description) Result {
	return Result{Digest: d.Digest, Path: s.imagePath(d.Digest), Size: d.Size, Description: d}
}

func (s *store) markVerified(digest string) {
	if id, err := identify(s.imagePath(digest)); err == nil {
		s.mu.Lock()
		s.verified[digest] = id
		s.mu.Unlock()
	}
}

func identify(path string) (fileIdentity, error) {
	info, err := os.Stat(path)
	if err != nil {
		return fileIdentity{}, err
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return fileIdentity{}, errors.ErrUnsupported
	}
	return fileIdentity{inode: stat.Ino, size: info.Size(), changed: stat.Mtim}, nil
}

// find returns an image that is there. The first time in the life of this process, and whenever the file
// is another one than before, it is hashed; a damaged one is put aside and refused.
func (s *store) find(ctx context.Context, digest string) (Result, error) {
	if !digestPattern.MatchString(digest) {
		return Result{}, carrel.Errorf(carrel.CodeInvalid, "bad_digest", "%q is no image digest; it is sha256: and 64 hexadecimal digits", clip(digest))
	}
	missing := carrel.Errorf(carrel.CodeNotFound, "image_missing", "the image %s is not on this machine; build or import it again", digest)
	data, err := os.ReadFile(s.descriptionPath(digest))
	if errors.Is(err, fs.ErrNotExist) {
		return Result{}, missing
	}
	if err != nil {
		return Result{}, fmt.Errorf("reading an image's description: %w", err)
	}
	now, err := identify(s.imagePath(digest))
	if errors.Is(err, fs.ErrNotExist) {
		return Result{}, missing
	}
	if err != nil {
		return Result{}, fmt.Errorf("looking at an image: %w", err)
	}
	var d Description
	damaged := json.Unmarshal(data, &d) != nil || d.Digest != digest
	s.mu.Lock()
	known, ok := s.verified[digest]
	s.mu.Unlock()
	if !damaged && (!ok || known != now) {
		actual, _, err := hashFile(ctx, s.imagePath(digest), false)
		if err != nil {
			return Result{}, err
		}
		damaged = actual != digest
		if !damaged {
			s.mu.Lock()
			s.verified[digest] = now
			s.mu.Unlock()
		}
	}
	if damaged {
		if err := s.setAside(digest); err != nil {
			return Result{}, err
		}
		return Result{}, carrel.Errorf(carrel.CodePrecondition, "image_corrupt", "the image %s was damaged on this machine's disk and has been put aside as %s.damaged; build or import it again", digest, s.imagePath(digest))
	}
	return s.result(d), nil
}

func (s *store) setAside(digest string) error {
	path := s.imagePath(digest)
	if err := os.Rename(path, path+".damaged"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("putting a damaged image aside: %w", err)
	}
	return syncDir(s.dir)
}

// list returns every image that is there, by digest. Their files are not hashed.
func (s *store) list() ([]Description, error) {
	names, err := filepath.Glob(filepath.Join(s.dir, "sha256-*.erofs"))
	if err != nil {
		return nil, fmt.Errorf("listing images: %w", err)
	}
	slices.Sort(names)
	var all []Description
	for _, name := range names {
		data, err := os.ReadFile(strings.TrimSuffix(name, ".erofs") + ".json")
		if errors.Is(err, fs.ErrNotExist) {
			continue // it is being removed
		}
		if err != nil {
			return nil, fmt.Errorf("listing images: %w", err)
		}
		var d Description
		if json.Unmarshal(data, &d) == nil && s.imagePath(d.Digest) == name {
			all = append(all, d)
		}
	}
	return all, nil
}

// remove takes an image away; nothing happens if it is not there. Whoever has the file open keeps it.
func (s *store) remove(digest string) error {
	if !digestPattern.MatchString(digest) {
		return carrel.Errorf(carrel.CodeInvalid, "bad_digest", "%q is no image digest; it is sha256: and 64 hexadecimal digits", clip(digest))
	}
	return s.withLock(func() error {
		for _, path := range []string{s.imagePath(digest), s.descriptionPath(digest)} {
			if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("removing an image: %w", err)
			}
		}
		return syncDir(s.dir)
	})
}

type keyRecord struct {
	Digest string `json:"digest"`
}

// findKey returns the image that a definition was built to before, and false if it has to be built.
func (s *store) findKey(ctx context.Context, key string) (Result, bool, error) {
	data, err := os.ReadFile(s.keyPath(key))
	if errors.Is(err, fs.ErrNotExist) {
		return Result{}, false, nil
	}
	if err != nil {
		return Result{}, false, fmt.Errorf("reading the index of builds: %w", err)
	}
	var record keyRecord
	if json.Unmarshal(data, &record) != nil {
		record.Digest = "" // a damaged entry is none: the digest is refused below
	}
	result, err := s.find(ctx, record.Digest)
	switch carrel.ReasonOf(err) {
	case "image_missing", "image_corrupt", "bad_digest":
		return Result{}, false, nil // build it again
	}
	if err != nil {
		return Result{}, false, err
	}
	result.Cached = true
	return result, true, nil
}

func (s *store) putKey(key, digest string) error {
	return s.withLock(func() error { return s.writeJSON(s.keyPath(key), keyRecord{Digest: digest}) })
}

// writeJSON replaces a small file atomically and durably. The caller holds the lock, so that no sweep takes the
// file away before it has its name.
func (s *store) writeJSON(path string, v any) error {
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("encoding %s: %w", filepath.Base(path), err)
	}
	file, err := os.CreateTemp(filepath.Join(s.dir, "tmp"), "json-")
	if err != nil {
		return fmt.Errorf("writing %s: %w", filepath.Base(path), err)
	}
	// A name that is left over after a kill is not locked, so that a sweep removes it.
	defer os.Remove(file.Name())
	_, err = file.Write(append(data, '\n'))
	if err == nil {
		err = file.Chmod(0o644)
	}
	if err == nil {
		err = file.Sync()
	}
	if closeErr := file.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = os.Rename(file.Name(), path)
	}
	if err == nil {
		err = syncDir(filepath.Dir(path))
	}
	if err != nil {
		return fmt.Errorf("writing %s: %w", filepath.Base(path), err)
	}
	return nil
}

func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

// hashFile returns "sha256:…" and the size of a file. With durable it is synced first.
func hashFile(ctx context.Context, path string, durable bool) (string, int64, error) {
	file, err := os.Open(path)
	if err != nil {
		return "", 0, fmt.Errorf("hashing an image: %w", err)
	}
	defer file.Close()
	if durable {
		if err := file.Sync(); err != nil {
			return "", 0, fmt.Errorf("syncing an image: %w", err)
		}
	}
	hash := sha256.New()
	n, err := io.CopyBuffer(hash, contextReader{ctx, file}, make([]byte, 1<<20))
	if err != nil {
		return "", 0, fmt.Errorf("hashing an image: %w", err)
	}
	return "sha256:" + hex.EncodeToString(hash.Sum(nil)), n, nil
}

// contextReader ends when its context does.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c contextReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}
