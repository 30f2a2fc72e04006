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

	"carrel.dev/carrel/internal/runtime"
)

// homeSubdir is the directory in the home image that becomes /home/carrel; its root also has lost+found.
const homeSubdir = "home"

// homeOptions of the ext4 mount. noinit_itable: else the kernel writes to a fresh image in the background, also
// while the sandbox is frozen. After an error nothing more is written.
const homeOptions = "noinit_itable,errors=remount-ro"

// openHome attaches the image to a loop device, which goes away with its last user: our file descriptor, or a
// mount of it.
func openHome(image string) (*os.File, error) {
	f, err := os.OpenFile(image, os.O_RDWR|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("opening the home image: %w", err)
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, errors.Join(fmt.Errorf("the home image %s is not a regular file", image), err)
	}
	loop, err := attachLoop(f)
	if err != nil {
		return nil, fmt.Errorf("attaching the home image to a loop device: %w", err)
	}
	return loop, nil
}

// mountHomePrivately gives the calling thread a mount namespace of its own with the home mounted at target. The
// machine's own namespace never has that mount: there, every process that makes a namespace meanwhile (an
// image build, a service with a private /tmp) would get a copy, and keep the home in use after the sandbox's end. So it
// lives and dies with the sandbox's processes.
func mountHomePrivately(loop, target string) error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("making a mount namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("separating the mount namespace: %w", err)
	}
	if err := unix.Mount(loop, target, "ext4", unix.MS_NODEV|unix.MS_NOSUID, homeOptions); err != nil {
		return fmt.Errorf("mounting the home image: %w", err)
	}
	info, err := os.Lstat(filepath.Join(target, homeSubdir))
	if err != nil || !info.IsDir() {
		return errors.Join(fmt.Errorf("the home image holds no directory %q", homeSubdir), err)
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

// syncHome writes everything in the home's file system to its image. The way to it leads through the mount
// namespace of the gofer, the sandbox's helper for files.
func (r *Runtime) syncHome(run string, gofer int) error {
	dir, err := r.findHome(run, gofer)
	if err != nil {
		return fmt.Errorf("finding the home: %w", err)
	}
	defer dir.Close()
	if err := unix.Syncfs(int(dir.Fd())); err != nil {
		return fmt.Errorf("syncing the home: %w", noSpace(err))
	}
	return nil
}

func (r *Runtime) findHome(run string, gofer int) (*os.File, error) {
	loop, err := os.ReadFile(r.path(run, fileLoop))
	if err != nil {
		return nil, err
	}
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", gofer))
	if err != nil {
		return nil, err
	}
	if !r.isOurs(gofer, run) {
		return nil, runtime.ErrDied
	}
	for line := range strings.Lines(string(data)) {
		left, right, _ := strings.Cut(line, " - ")
		fields, tail := strings.Fields(left), strings.Fields(right)
		if len(fields) < 5 || len(tail) < 2 || tail[0] != "ext4" || tail[1] != string(loop) {
			continue
		}
		f, err := os.OpenFile(fmt.Sprintf("/proc/%d/root%s", gofer, fields[4]), os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, err
		}
		return f, nil
	}
	return nil, fmt.Errorf("the sandbox has no mount of %s", loop)
}

// releaseHome waits until no loop device has the image any more, which is when the last process of the sandbox is
// gone and everything is written.
func (r *Runtime) releaseHome(ctx context.Context, run, image string) error {
	if image == "" {
		return nil // nothing was attached yet
	}
	var users []string
	err := poll(ctx, 30*time.Second, func() (bool, error) {
		if loop, err := os.ReadFile(r.path(run, fileLoop)); err == nil {
			users = nil
			if backingFile(string(loop)) == image {
				users = []string{string(loop)}
			}
			return len(users) == 0, nil
		}
		var err error
		users, err = loopsOf(image)
		return len(users) == 0, err
	})
	if err != nil {
		return fmt.Errorf("waiting until the home image is free of %s: %w", strings.Join(users, ", "), err)
	}
	return nil
}

// resolve follows symbolic links as the kernel does for the names that it shows.
func resolve(path string) string {
	if resolved, err := filepath.EvalSymlinks(path); err == nil {
		return resolved
	}
	return path
}

// backingFile of a loop device such as /dev/loop3; "": it has none.
func backingFile(loop string) string {
	data, err := os.ReadFile("/sys/block/" + filepath.Base(loop) + "/loop/backing_file")
	if err != nil {
		return ""
	}
	return strings.TrimSuffix(strings.TrimSuffix(string(data), "\n"), " (deleted)")
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
	devices, err := filepath.Glob("/sys/block/loop*/loop")
	if err != nil {
		return nil, err
	}
	var out []string
	for _, device := range devices {
		if loop := filepath.Base(filepath.Dir(device)); backingFile(loop) == image {
			out = append(out, "/dev/"+loop)
		}
	}
	return out, nil
}
