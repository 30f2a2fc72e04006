package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"carrel.dev/carrel/internal/carrel"
)

// lockData takes DATA for this process, so that two `up` never share one data directory. The lock ends with the process,
// however that ends.
func lockData(data string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(data, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock data directory: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		pid := lockHolder(data)
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, carrel.Errorf(carrel.CodePrecondition, "already_running", "Carrel is already running on %s (process %d); `carreld down --data %s` stops it", data, pid, data)
		}
		return nil, fmt.Errorf("lock data directory: %w", err)
	}
	err = f.Truncate(0)
	if err == nil {
		_, err = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("lock data directory: %w", err)
	}
	return f, nil
}

// lockHolder is the process that holds DATA, or 0 when none does.
func lockHolder(data string) int {
	f, err := os.OpenFile(filepath.Join(data, "lock"), os.O_RDWR, 0)
	if err != nil {
		return 0
	}
	defer f.Close()
	if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
		return 0 // the lock ends with the file
	}
	deadline := time.Now().Add(time.Second) // the holder writes its pid right after locking
	for time.Now().Before(deadline) {
		text, err := os.ReadFile(f.Name())
		if err != nil {
			return 0
		}
		if pid, err := strconv.Atoi(strings.TrimSpace(string(text))); err == nil {
			return pid
		}
	}
	return 0
}
