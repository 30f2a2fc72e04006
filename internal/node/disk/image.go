package disk

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

var digestPattern = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)

// ValidDigest reports whether d is "sha256:" and 64 hex digits.
func ValidDigest(d string) bool { return digestPattern.MatchString(d) }

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

func (p *Pool) fixedImage(digest string) string {
	return filepath.Join(p.runDir, "images", strings.TrimPrefix(digest, "sha256:"))
}

func (p *Pool) linkImage(digest string) error {
	return symlink(p.imageFile(digest), p.fixedImage(digest))
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

// ImageScratch makes a file path in the pool for a builder to write an image to. It is swept when
// the process dies.
func (p *Pool) ImageScratch() (string, error) {
	f, err := os.CreateTemp(filepath.Join(p.root, "images"), "tmp-*")
	if err != nil {
		return "", err
	}
	return f.Name(), f.Close()
}

// AddImage takes a finished image file from the pool's file system, after it was read back and is what
// digest says. The file is moved. An image that is here already is not changed.
func (p *Pool) AddImage(file, digest string) error {
	if !ValidDigest(digest) {
		return fmt.Errorf("add image: %q is no digest", digest)
	}
	f, err := os.Open(file)
	if err != nil {
		return fmt.Errorf("add image: %w", err)
	}
	err = f.Sync()
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return fmt.Errorf("add image: %w", err)
	}
	sum, err := hashFile(file)
	if err != nil {
		return fmt.Errorf("add image: %w", err)
	}
	if "sha256:"+sum != digest {
		return fmt.Errorf("add image: the file is sha256:%s and not %s", sum, digest)
	}
	if _, err := os.Stat(p.imageFile(digest)); err == nil {
		return errors.Join(os.Remove(file), p.linkImage(digest))
	}
	if err := os.Chmod(file, 0o644); err != nil {
		return fmt.Errorf("add image: %w", err)
	}
	if err := Publish(file, p.imageFile(digest)); err != nil {
		return fmt.Errorf("add image: %w", err)
	}
	return p.linkImage(digest)
}
