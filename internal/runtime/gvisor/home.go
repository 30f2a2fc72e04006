package gvisor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// homeSubdir is the directory in the home image that becomes /home/carrel; its root also has lost+found.
const homeSubdir = "home"

// homeOptions of the ext4 mount. noinit_itable: else the kernel writes to a fresh image in the background, also
// while the sandbox is frozen. After an error nothing more is written.
const homeOptions = "noinit_itable,errors=remount-ro"

// mountHome attaches the image to a loop device and mounts it. The device goes away with its last user: with our
// file descriptor if we die before the mount, else with the mount.
func mountHome(image, target string) error {
	f, err := os.OpenFile(image, os.O_RDWR|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("opening the home image: %w", err)
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return errors.Join(fmt.Errorf("the home image %s is not a regular file", image), err)
	}
	loop, err := attachLoop(f)
	if err != nil {
		return fmt.Errorf("attaching the home image to a loop device: %w", err)
	}
	defer loop.Close()
	if err := unix.Mount(loop.Name(), target, "ext4", unix.MS_NODEV|unix.MS_NOSUID, homeOptions); err != nil {
		return fmt.Errorf("mounting the home image: %w", err)
	}
	info, err := os.Lstat(filepath.Join(target, homeSubdir))
	if err != nil || !info.IsDir() {
		return errors.Join(fmt.Errorf("the home image %s holds no directory %q", image, homeSubdir), err)
	}
	return nil
}

// attachLoop makes image the backing file of a free loop device, and returns the device open.
func attachLoop(image *os.File) (*os.File, error) {
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer control.Close()
	// Another process may take the free device before us; each round is one more that somebody got.
	for range 1000 {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("asking for a free loop device: %w", err)
		}
		loop, err := openLoop(n)
		if err != nil {
			return nil, err
		}
		config := unix.LoopConfig{Fd: uint32(image.Fd()), Info: unix.LoopInfo64{Flags: unix.LO_FLAGS_AUTOCLEAR}}
		copy(config.Info.File_name[:len(config.Info.File_name)-1], image.Name())
		err = unix.IoctlLoopConfigure(int(loop.Fd()), &config)
		if err == nil {
			return loop, nil
		}
		_ = loop.Close()
		if !errors.Is(err, unix.EBUSY) {
			return nil, fmt.Errorf("configuring %s: %w", loop.Name(), err)
		}
	}
	return nil, errors.New("every free loop device was taken by others")
}

// openLoop opens loop device n and makes its node where nothing else does (a container without udev).
func openLoop(n int) (*os.File, error) {
	name := "/dev/loop" + strconv.Itoa(n)
	f, err := os.OpenFile(name, os.O_RDWR|unix.O_CLOEXEC, 0)
	if errors.Is(err, fs.ErrNotExist) {
		if err := unix.Mknod(name, unix.S_IFBLK|0o660, int(unix.Mkdev(7, uint32(n)))); err != nil && !errors.Is(err, unix.EEXIST) {
			return nil, fmt.Errorf("making %s: %w", name, err)
		}
		f, err = os.OpenFile(name, os.O_RDWR|unix.O_CLOEXEC, 0)
	}
	return f, err
}

// syncHome writes everything in the home's file system to its image.
func syncHome(target string) error {
	dir, err := os.Open(target)
	if err != nil {
		return fmt.Errorf("opening the home: %w", err)
	}
	defer dir.Close()
	if err := unix.Syncfs(int(dir.Fd())); err != nil {
		return fmt.Errorf("syncing the home: %w", err)
	}
	return nil
}

// unmountHome unmounts target if it is a mount point, and waits until no loop device has the image any
// more: a sandbox that starts just now may hold a copy of the mount for some milliseconds.
func unmountHome(ctx context.Context, target, image string) error {
	if err := unmount(ctx, target); err != nil {
		return fmt.Errorf("unmounting the home: %w", err)
	}
	if image == "" {
		return nil
	}
	err := poll(ctx, 5*time.Second, func() (bool, error) {
		loops, err := loopsOf(image)
		return len(loops) == 0, err
	})
	if err == nil {
		return nil
	}
	loops, findErr := loopsOf(image)
	if findErr != nil {
		return findErr
	}
	for _, name := range loops {
		return fmt.Errorf("the home image is still in use by %s: %w", name, err)
	}
	return nil
}

// unmount unmounts everything that is mounted at target itself. It need not exist.
func unmount(ctx context.Context, target string) error {
	return poll(ctx, 5*time.Second, func() (bool, error) {
		err := unix.Unmount(target, unix.UMOUNT_NOFOLLOW)
		switch {
		case err == nil, errors.Is(err, unix.EBUSY):
			return false, nil // perhaps there was one below it
		case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT):
			return true, nil
		}
		return true, err
	})
}

// loopsOf lists the loop devices whose backing file is image.
func loopsOf(image string) ([]string, error) {
	if resolved, err := filepath.EvalSymlinks(image); err == nil {
		image = resolved
	}
	files, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return nil, err
	}
	var out []string
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			continue // it was detached meanwhile
		}
		if strings.TrimSuffix(strings.TrimSuffix(string(data), "\n"), " (deleted)") == image {
			out = append(out, "/dev/"+strings.Split(file, "/")[3])
		}
	}
	return out, nil
}
