// Package wholefile replaces small files as a whole: whoever reads one, also after a crash, finds the old content or the new. It
// knows nothing of what is in them. Files that boxes own, and those of a node's pool, are written elsewhere.
package wholefile

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
)

// Write makes path a file with this content and mode, durably. Of writers at once, one is the last.
func Write(path string, data []byte, mode fs.FileMode) error {
	return WriteOwned(path, data, mode, -1, -1)
}

// WriteOwned is Write for a file of that user and group; -1 stays as it is.
func WriteOwned(path string, data []byte, mode fs.FileMode, uid, gid int) error {
	if err := write(path, data, mode, uid, gid); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

func write(path string, data []byte, mode fs.FileMode, uid, gid int) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*") // 0600 at first
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // gone already after the rename
	_, err = f.Write(data)
	if err == nil {
		err = f.Chmod(mode)
	}
	if err == nil && (uid >= 0 || gid >= 0) {
		err = f.Chown(uid, gid)
	}
	if err == nil {
		err = f.Sync()
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// syncDir makes a rename last. Windows, where only the CLI runs, cannot and does it by itself.
func syncDir(path string) error {
	if runtime.GOOS == "windows" {
		return nil
	}
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
