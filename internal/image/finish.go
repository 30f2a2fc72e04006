package image

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"strconv"
	"strings"
	"time"
)

// What every box expects of its image.
const (
	boxUser     = "carrel"
	boxUID      = 1000
	boxHome     = "/home/carrel"
	reservedDir = "/.carrel"
	// maxEditedBytes of a file such as /etc/passwd that is read to be changed.
	maxEditedBytes = 4 << 20
)

// emptiedDirs are mounted over in every box: what an image has there is never seen.
var emptiedDirs = []string{"/dev", "/proc", "/sys"}

// finish makes the tree one that a box can begin from: the directories that a box mounts over exist and
// are real, the user of the box exists, and nothing of the machine that built it is left.
func (t *tree) finish() error {
	root := t.root
	root.mode, root.uid, root.gid = fs.ModeDir|0o755, 0, 0
	stamp := root.mtime
	for _, name := range emptiedDirs {
		root.children[name[1:]] = newDir(name[1:], stamp)
	}
	reserved := newDir(".carrel", stamp)
	for _, name := range []string{"bin", "identity"} {
		reserved.children[name] = newDir(name, stamp)
	}
	root.children[".carrel"] = reserved
	tmp := t.realDir("tmp", stamp)
	tmp.mode = fs.ModeDir | fs.ModeSticky | 0o777
	tmp.uid, tmp.gid = 0, 0
	clear(tmp.children)

	etc := t.realDir("etc", stamp)
	if err := t.addUser(etc, stamp); err != nil {
		return err
	}
	home := t.realDir("home", stamp).childDir(boxUser, stamp)
	home.uid, home.gid = boxUID, boxUID
	// A runtime mounts over these, or the agent writes them: they must be plain files.
	etc.setFile("hostname", "localhost\n", 0o644, stamp)
	etc.setFile("resolv.conf", "", 0o644, stamp)
	if hosts := etc.children["hosts"]; hosts == nil || !hosts.mode.IsRegular() {
		etc.setFile("hosts", "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n", 0o644, stamp)
	}
	// One id for every box of an image would be no id.
	if etc.children["machine-id"] != nil {
		etc.setFile("machine-id", "", 0o644, stamp)
	}
	return nil
}

// realDir returns a directory of the root; a link or file in its place is replaced.
func (t *tree) realDir(name string, mtime time.Time) *entry { return t.root.childDir(name, mtime) }

func (e *entry) childDir(name string, mtime time.Time) *entry {
	child := e.children[name]
	if child == nil || !child.isDir() {
		child = newDir(name, mtime)
		e.children[name] = child
	}
	return child
}

func (e *entry) setFile(name, text string, mode fs.FileMode, mtime time.Time) {
	e.children[name] = &entry{
		name: name, mode: mode, mtime: mtime,
		content: content{from: strings.NewReader(text), size: int64(len(text))},
	}
}

// text reads a regular file of the tree; "" and false if it is none or too large to be what it should.
func (e *entry) text() (string, bool, error) {
	if e == nil || !e.mode.IsRegular() || e.content.size > maxEditedBytes {
		return "", false, nil
	}
	if e.content.size == 0 {
		return "", true, nil
	}
	var buffer bytes.Buffer
	if _, err := io.Copy(&buffer, io.NewSectionReader(e.content.from, e.content.offset, e.content.size)); err != nil {
		return "", false, fmt.Errorf("reading %s: %w", e.name, err)
	}
	return buffer.String(), true, nil
}

// addUser gives the image the user in whose name a box works, if it has none of that name: images from
// elsewhere do not. If another name has the number, this one comes before it, so that programs show it.
func (t *tree) addUser(etc *entry, stamp time.Time) error {
	shell := "/bin/sh"
	if t.lookup("/bin/bash") != nil {
		shell = "/bin/bash"
	}
	uid := strconv.Itoa(boxUID)
	lines := []struct {
		file, line string
		mode       fs.FileMode
	}{
		{"passwd", boxUser + ":x:" + uid + ":" + uid + "::" + boxHome + ":" + shell, 0o644},
		{"group", boxUser + ":x:" + uid + ":", 0o644},
		{"shadow", boxUser + ":!:19000:0:99999:7:::", 0o640},
	}
	added := false
	for _, l := range lines {
		old := etc.children[l.file]
		text, readable, err := old.text()
		if err != nil {
			return err
		}
		if !readable && l.file == "shadow" {
			continue
		}
		if !readable && l.file == "passwd" {
			text = "root:x:0:0:root:/root:" + shell + "\n"
		}
		if !readable && l.file == "group" {
			text = "root:x:0:\n"
		}
		changed, ok := insertAccount(text, l.line, uid)
		if !ok {
			continue
		}
		added = added || l.file == "passwd"
		e := &entry{name: l.file, mode: l.mode, mtime: stamp, content: content{from: strings.NewReader(changed), size: int64(len(changed))}}
		if readable {
			e.mode, e.uid, e.gid, e.mtime = old.mode, old.uid, old.gid, old.mtime
		}
		etc.children[l.file] = e
	}
	if added && t.lookup("/usr/bin/sudo") != nil {
		etc.childDir("sudoers.d", stamp).setFile(boxUser, boxUser+" ALL=(ALL) NOPASSWD:ALL\n", 0o440, stamp)
	}
	return nil
}

// insertAccount puts a line of passwd, group or shadow into text: before the first line with the same
// number, else at the end. It answers false if the name is there.
func insertAccount(text, line, number string) (string, bool) {
	name, rest, _ := strings.Cut(line, ":")
	byNumber := strings.HasPrefix(rest, "x:"+number+":")
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	at := len(lines)
	for i, l := range lines {
		fields := strings.Split(l, ":")
		if fields[0] == name {
			return "", false
		}
		if byNumber && len(fields) > 2 && fields[2] == number && at == len(lines) {
			at = i
		}
	}
	if len(lines) == 1 && lines[0] == "" {
		return line + "\n", true
	}
	lines = append(lines[:at:at], append([]string{line}, lines[at:]...)...)
	return strings.Join(lines, "\n") + "\n", true
}
