package agent

import (
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"carrel.dev/carrel/internal/carrel"
)

const (
	// boxUser is who commands run as where nothing else is said; boxUID is its user and group id.
	boxUser = "carrel"
	boxUID  = 1000
	boxHome = "/home/carrel"
	// maxEtc bounds what is read of a file in /etc, in bytes.
	maxEtc = 4 << 20
	// maxCachedEtc is the largest file that is remembered, in bytes; maxCachedFiles is how many are.
	maxCachedEtc   = 64 << 10
	maxCachedFiles = 16
)

// account is a user as a process needs it.
type account struct {
	name, home, shell string
	uid, gid          uint32
	groups            []uint32
}

// lookupUser finds a user in etc/passwd and etc/group under root. The box's own user is known without them.
func lookupUser(root, name string) (account, error) {
	if name == "" {
		name = boxUser
	}
	found := account{}
	for fields := range etcLines(filepath.Join(root, "etc/passwd")) {
		if len(fields) < 7 || fields[0] != name {
			continue
		}
		uid, err1 := strconv.ParseUint(fields[2], 10, 32)
		gid, err2 := strconv.ParseUint(fields[3], 10, 32)
		if err1 != nil || err2 != nil {
			continue
		}
		found = account{name: name, home: fields[5], shell: fields[6], uid: uint32(uid), gid: uint32(gid)}
		break
	}
	if found.name == "" || (name == boxUser && found.uid != boxUID) {
		switch name {
		case boxUser:
			found = account{name: boxUser, home: boxHome, uid: boxUID, gid: boxUID}
		case "root":
			found = account{name: "root", home: "/root"}
		default:
			return account{}, carrel.Errorf(carrel.CodeInvalid, "user_not_found", "there is no user %q in the box", name)
		}
	}
	if found.shell == "" {
		found.shell = "/bin/sh"
	}
	for fields := range etcLines(filepath.Join(root, "etc/group")) {
		if len(fields) < 4 || len(found.groups) >= 1024 {
			continue
		}
		for member := range strings.SplitSeq(fields[3], ",") {
			if gid, err := strconv.ParseUint(fields[2], 10, 32); err == nil && member == name {
				found.groups = append(found.groups, uint32(gid))
			}
		}
	}
	return found, nil
}

// etcLines gives the fields of each line of a file such as /etc/passwd; none if it cannot be read.
func etcLines(path string) func(yield func([]string) bool) {
	return func(yield func([]string) bool) {
		for line := range strings.Lines(etc.read(path)) {
			if !yield(strings.Split(strings.TrimRight(line, "\r\n"), ":")) {
				return
			}
		}
	}
}

// etcCache remembers small files that every command needs, for as long as they do not change. It is safe for concurrent use.
type etcCache struct {
	mu    sync.Mutex
	files map[string]etcFile
}

type etcFile struct {
	is   etcIdentity
	text string
}

// etcIdentity of a file changes whenever its content does.
type etcIdentity struct {
	major, minor     uint32 // of the device
	inode, size      uint64
	written, changed unix.StatxTimestamp
}

var etc etcCache

// read gives the text of a file, "" if it cannot be read.
func (c *etcCache) read(path string) string {
	// Before it is read: what is written meanwhile is then seen the next time.
	stat, err := statNow(path)
	if err != nil {
		return ""
	}
	is := etcIdentity{stat.Dev_major, stat.Dev_minor, stat.Ino, stat.Size, stat.Mtime, stat.Ctime}
	c.mu.Lock()
	defer c.mu.Unlock()
	if known, ok := c.files[path]; ok && known.is == is {
		return known.text
	}
	delete(c.files, path)
	file, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, maxEtc))
	if err != nil {
		return ""
	}
	if len(data) <= maxCachedEtc && len(c.files) < maxCachedFiles {
		if c.files == nil {
			c.files = map[string]etcFile{}
		}
		c.files[path] = etcFile{is, string(data)}
	}
	return string(data)
}
