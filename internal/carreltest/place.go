package carreltest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// maxPlaces is how many rings may live on one machine at the same time.
const maxPlaces = 256

// takePlace finds a directory that no ring uses, clears it of what a ring that was killed left there (mounted pools
// too), and keeps it until the file is closed. Its path is short enough for sockets, and any user may pass through it.
func takePlace() (string, *os.File, error) {
	root := filepath.Join(os.TempDir(), fmt.Sprintf("carreltest-%d", os.Geteuid()))
	if err := os.MkdirAll(root, 0o711); err != nil {
		return "", nil, err
	}
	if info, err := os.Lstat(root); err != nil || !info.IsDir() {
		return "", nil, fmt.Errorf("%s is no directory: %w", root, err)
	}
	for n := range maxPlaces {
		dir := filepath.Join(root, fmt.Sprint(n))
		lock, err := os.OpenFile(dir+".lock", os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return "", nil, err
		}
		if unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil {
			lock.Close()
			continue
		}
		if err := errors.Join(clearAway(dir), os.Mkdir(dir, 0o711)); err != nil {
			return "", nil, errors.Join(err, lock.Close())
		}
		return dir, lock, nil
	}
	return "", nil, fmt.Errorf("all %d places for rings in %s are taken", maxPlaces, root)
}

// clearAway removes a ring's directory.
func clearAway(dir string) error {
	pools, err := filepath.Glob(filepath.Join(dir, "*", "data", "pool"))
	if err != nil {
		return err
	}
	for _, pool := range pools {
		if err := unix.Unmount(pool, 0); err != nil && !errors.Is(err, unix.EINVAL) { // it is not mounted
			return fmt.Errorf("unmount %s: %w", pool, err)
		}
	}
	return os.RemoveAll(dir)
}
