package disk

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// SyncDir makes the names in a directory durable.
func SyncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("sync %s: %w", path, err)
	}
	return nil
}

// Publish gives a finished file or directory its final name, durably. Its content must be synced already.
func Publish(tmp, final string) error {
	if err := os.Rename(tmp, final); err != nil {
		return err
	}
	if err := SyncDir(filepath.Dir(final)); err != nil {
		return err
	}
	if d := filepath.Dir(tmp); d != filepath.Dir(final) {
		return SyncDir(d)
	}
	return nil
}

// WriteFile replaces a small file as a whole, durably: after a crash there is the old content or the new.
// Writers of the same path must not run at once.
func WriteFile(path string, data []byte, mode fs.FileMode) error {
	tmp := path + ".tmp"
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Chmod(mode)
	}
	if err == nil {
		err = f.Sync()
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = Publish(tmp, path)
	}
	if err != nil {
		_ = os.Remove(tmp)
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

// Clone makes dst a copy of src that shares its blocks. dst must not exist; a failure leaves none.
func Clone(src, dst string) error {
	in, err := os.Open(src)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(dst, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	err = unix.IoctlFileClone(int(out.Fd()), int(in.Fd()))
	if closeErr := out.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		_ = os.Remove(dst)
		return fmt.Errorf("clone %s: %w", src, err)
	}
	return nil
}

// reflinks reports whether files in dir can share blocks, nil if so.
func reflinks(dir string) error {
	a, b := filepath.Join(dir, ".reflink-a"), filepath.Join(dir, ".reflink-b")
	defer os.Remove(a)
	defer os.Remove(b)
	_ = os.Remove(b)
	// More than a block, so that no file system keeps it beside the inode.
	if err := os.WriteFile(a, make([]byte, 64<<10), 0o600); err != nil {
		return err
	}
	if err := Clone(a, b); err != nil {
		return fmt.Errorf("%s has no reflinks: %w", dir, err)
	}
	return nil
}

// InstallBinary keeps a copy of a program at a path that names its content, DIR/NAME-SHA256, because a
// memory snapshot goes on only with the very binary that it was made with. It answers the path and the
// SHA-256 in hex.
func InstallBinary(dir, name, src string) (path, sum string, err error) {
	sum, err = hashFile(src)
	if err != nil {
		return "", "", fmt.Errorf("install %s: %w", name, err)
	}
	path = filepath.Join(dir, name+"-"+sum)
	if got, err := hashFile(path); err == nil && got == sum {
		return path, sum, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", "", fmt.Errorf("install %s: %w", name, err)
	}
	in, err := os.Open(src)
	if err != nil {
		return "", "", fmt.Errorf("install %s: %w", name, err)
	}
	defer in.Close()
	out, err := os.CreateTemp(dir, "tmp-*")
	if err != nil {
		return "", "", fmt.Errorf("install %s: %w", name, err)
	}
	defer os.Remove(out.Name())
	h := sha256.New()
	_, err = io.Copy(io.MultiWriter(out, h), in)
	if err == nil {
		err = out.Chmod(0o755)
	}
	if err == nil {
		err = out.Sync()
	}
	if closeErr := out.Close(); err == nil {
		err = closeErr
	}
	if err == nil && hex.EncodeToString(h.Sum(nil)) != sum {
		err = errors.New("it changed while it was copied")
	}
	if err == nil {
		err = Publish(out.Name(), path)
	}
	if err != nil {
		return "", "", fmt.Errorf("install %s: %w", name, err)
	}
	return path, sum, nil
}

// Binary is the path at which InstallBinary keeps a program, and whether it is there.
func Binary(dir, name, sum string) (string, bool) {
	path := filepath.Join(dir, name+"-"+sum)
	if len(sum) != 2*sha256.Size || strings.ContainsAny(sum, "/.") {
		return "", false
	}
	_, err := os.Stat(path)
	return path, err == nil
}

func hashFile(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// symlink makes path a link to target, replacing another link. Several may do so at once.
func symlink(target, path string) error {
	if got, err := os.Readlink(path); err == nil && got == target {
		return nil
	}
	tmp := path + "." + rand.Text()
	if err := os.Symlink(target, tmp); err != nil {
		return err
	}
	if err := os.Rename(tmp, path); err != nil {
		_ = os.Remove(tmp)
		return err
	}
	return nil
}
