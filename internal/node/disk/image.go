package disk

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

var digestPattern = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)

// ValidDigest reports whether d is "sha256:" and 64 hex digits.
func ValidDigest(d string) bool { return digestPattern.MatchString(d) }

// ImageDir is the directory that has the images, sha256-HEX.erofs, where whoever makes images puts them.
func (p *Pool) ImageDir() string { return filepath.Join(p.root, "images") }

func (p *Pool) imageFile(digest string) string {
	return filepath.Join(p.root, "images", strings.Replace(digest, ":", "-", 1)+".erofs")
}

// ImagePath is the fixed path of an image, RunDir/images/HEX, the same on every node and in every
// data directory: a memory snapshot remembers it. ok reports whether the image is here.
func (p *Pool) ImagePath(digest string) (path string, ok bool) {
	if !ValidDigest(digest) {
		return "", false
	}
	if _, err := os.Stat(p.imageFile(digest)); err != nil {
		return "", false
	}
	if err := p.linkImage(digest); err != nil {
		p.log.Error("an image's fixed path cannot be made", "digest", digest, "error", err)
		return "", false
	}
	return p.fixedImage(digest), true
}

// ImageEnv are the environment variables that an image comes with, as its description beside it says (internal/image); none if there is no
// description. Who a user is does not come from an image.
func (p *Pool) ImageEnv(digest string) (map[string]string, error) {
	if !ValidDigest(digest) {
		return nil, nil
	}
	text, err := os.ReadFile(strings.TrimSuffix(p.imageFile(digest), ".erofs") + ".json")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var description struct {
		Config struct {
			Env []string `json:"env"` // KEY=VALUE
		} `json:"config"`
	}
	if err == nil {
		err = json.Unmarshal(text, &description)
	}
	if err != nil {
		return nil, fmt.Errorf("read an image's description: %w", err)
	}
	env := make(map[string]string, len(description.Config.Env))
	for _, entry := range description.Config.Env {
		switch name, value, ok := strings.Cut(entry, "="); {
		case !ok, name == "HOME", name == "USER", name == "LOGNAME", name == "SHELL", name == "TERM":
		default:
			env[name] = value
		}
	}
	return env, nil
}

func (p *Pool) fixedImage(digest string) string {
	return filepath.Join(p.runDir, "images", strings.TrimPrefix(digest, "sha256:"))
}

func (p *Pool) linkImage(digest string) error {
	return symlink(p.imageFile(digest), p.fixedImage(digest))
}

// RemoveImage removes an image that no run of this node uses or begins from. Nothing happens if it is not here. The file itself goes last: as long
// as Images lists it, a removal that a crash cut short can be done again. Whoever has the file open keeps it.
func (p *Pool) RemoveImage(digest string) error {
	if !ValidDigest(digest) {
		return fmt.Errorf("remove an image: %q is no digest", digest)
	}
	file := p.imageFile(digest)
	for _, path := range []string{strings.TrimSuffix(file, ".erofs") + ".json", p.fixedImage(digest), file} {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove an image: %w", err)
		}
	}
	if err := SyncDir(p.ImageDir()); err != nil {
		return fmt.Errorf("remove an image: %w", err)
	}
	return nil
}

// Images lists the digests of the images that are here, sorted.
func (p *Pool) Images() ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(p.root, "images"))
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	var digests []string
	for _, e := range entries {
		name, isImage := strings.CutSuffix(e.Name(), ".erofs")
		if d := strings.Replace(name, "-", ":", 1); isImage && ValidDigest(d) {
			digests = append(digests, d)
		}
	}
	slices.Sort(digests)
	return digests, nil
}
