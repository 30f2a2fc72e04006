//go:build unix

package archive

import (
	"io/fs"
	"os"
	"syscall"
)

// readFlags opens what was a file a moment ago: it neither waits for a pipe nor follows a link.
const readFlags = os.O_RDONLY | syscall.O_NONBLOCK | syscall.O_NOFOLLOW

type fileID struct{ device, number uint64 }

// identify gives what all names of a file share, and whether there are several.
func identify(info fs.FileInfo) (fileID, bool) {
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok || stat.Nlink < 2 {
		return fileID{}, false
	}
	return fileID{uint64(stat.Dev), stat.Ino}, true //nolint:unconvert // it is an int32 on macOS
}
