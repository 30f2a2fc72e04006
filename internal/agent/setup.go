package agent

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"carrel.dev/carrel/internal/agent/identity"
)

// setUp prepares the box before its first process. What fails does not keep the rest from being done.
func (a *Agent) setUp() error {
	id, _ := a.current()
	return errors.Join(a.setUpUser(), a.setUpHome(), a.applyIdentity(id, identity.Identity{}), limitFiles(), loopbackUp())
}

// applyIdentity does what depends on the identity, also after a restore; before is the one that it takes the place of, and what is the same in
// both is done already. A box that is only resumed has no reason to read its files.
func (a *Agent) applyIdentity(id, before identity.Identity) error {
	first := before.BoxID == ""
	var problems []error
	if first || id.BoxName != before.BoxName {
		problems = append(problems, a.setUpNames(id.BoxName))
	}
	if id.BoxID != before.BoxID {
		problems = append(problems, a.setUpMachine(id.BoxID, before.BoxID))
	}
	if first || id.Sudo != before.Sudo {
		problems = append(problems, a.setUpSudo(id.Sudo))
	}
	if first || id.Env["PATH"] != before.Env["PATH"] {
		problems = append(problems, a.setUpLogin(id))
	}
	if id.Processes != before.Processes {
		problems = append(problems, limitProcesses(id.Processes))
	}
	return errors.Join(problems...)
}

func (a *Agent) etc(name string) string { return filepath.Join(a.config.Root, "etc", name) }

// setUpUser makes sure that user and group carrel are number 1000. An image may have another name for the number: it
// stays, behind ours.
func (a *Agent) setUpUser() error {
	shell := "/bin/sh"
	if _, err := os.Stat(filepath.Join(a.config.Root, "bin/bash")); err == nil {
		shell = "/bin/bash"
	}
	return errors.Join(
		edit(a.etc("passwd"), 0o644, true, func(text string) string {
			return putAccount(text, func(old []string) string {
				if len(old) >= 7 && old[6] != "" {
					shell = old[6]
				}
				return fmt.Sprintf("%s:x:%d:%d::%s:%s", boxUser, boxUID, boxUID, boxHome, shell)
			})
		}),
		edit(a.etc("group"), 0o644, true, func(text string) string {
			return putAccount(text, func(old []string) string {
				members := ""
				if len(old) >= 4 {
					members = old[3]
				}
				return fmt.Sprintf("%s:x:%d:%s", boxUser, boxUID, members)
			})
		}),
		// Without a line here programs that check accounts, such as sudo, take the user for an expired one.
		edit(a.etc("shadow"), 0o640, false, func(text string) string {
			if strings.HasPrefix(text, boxUser+":") || strings.Contains(text, "\n"+boxUser+":") {
				return text
			}
			return endLine(text) + boxUser + ":*:19000:0:99999:7:::\n"
		}),
	)
}

// putAccount puts the line of the box's user into the text of passwd or group, in the place of the one that it has, or before
// another of its number. make is given the fields of the old line, if there is one.
func putAccount(text string, make func(old []string) string) string {
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	if text == "" {
		lines = nil
		if root := "root:x:0:0:root:/root:/bin/sh"; strings.Count(make(nil), ":") == 6 {
			lines = append(lines, root)
		} else {
			lines = append(lines, "root:x:0:")
		}
	}
	place := -1
	for i, line := range lines {
		fields := strings.Split(line, ":")
		if fields[0] == boxUser {
			lines[i] = make(fields)
			return strings.Join(lines, "\n") + "\n"
		}
		if place < 0 && len(fields) > 2 && fields[2] == fmt.Sprint(boxUID) {
			place = i
		}
	}
	if place < 0 {
		place = len(lines)
	}
	lines = append(lines[:place:place], append([]string{make(nil)}, lines[place:]...)...)
	return strings.Join(lines, "\n") + "\n"
}

// setUpHome gives an empty home to the user, with what new users get.
func (a *Agent) setUpHome() error {
	home := a.config.Home
	if err := os.MkdirAll(home, 0o755); err != nil {
		return fmt.Errorf("make home: %w", err)
	}
	entries, err := os.ReadDir(home)
	if err != nil || len(entries) > 0 {
		return err
	}
	if err := os.Lchown(home, boxUID, boxUID); err != nil {
		return fmt.Errorf("give home to its user: %w", err)
	}
	skeleton := a.etc("skel")
	return filepath.WalkDir(skeleton, func(path string, entry fs.DirEntry, err error) error {
		if errors.Is(err, os.ErrNotExist) && path == skeleton {
			return nil
		}
		if err != nil || path == skeleton {
			return err
		}
		relative, err := filepath.Rel(skeleton, path)
		if err != nil {
			return err
		}
		target := filepath.Join(home, relative)
		if err := copyEntry(path, target, entry); err != nil {
			return fmt.Errorf("copy %s: %w", path, err)
		}
		return os.Lchown(target, boxUID, boxUID)
	})
}

func copyEntry(path, target string, entry fs.DirEntry) error {
	info, err := entry.Info()
	if err != nil {
		return err
	}
	switch {
	case entry.IsDir():
		return os.Mkdir(target, info.Mode().Perm())
	case entry.Type() == fs.ModeSymlink:
		to, err := os.Readlink(path)
		if err != nil {
			return err
		}
		return os.Symlink(to, target)
	case !entry.Type().IsRegular():
		return nil
	}
	from, err := os.Open(path)
	if err != nil {
		return err
	}
	defer from.Close()
	file, err := os.OpenFile(target, os.O_WRONLY|os.O_CREATE|os.O_EXCL, info.Mode().Perm())
	if err != nil {
		return err
	}
	_, err = io.Copy(file, from)
	return errors.Join(err, file.Close())
}

// setUpNames tells the files that programs ask for the box's name, and makes sure that they find localhost.
func (a *Agent) setUpNames(name string) error {
	own := "127.0.1.1\t" + name
	return errors.Join(
		edit(a.etc("hostname"), 0o644, true, func(string) string { return name + "\n" }),
		edit(a.etc("hosts"), 0o644, true, func(text string) string {
			if text == "" {
				text = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"
			}
			lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
			for i, line := range lines {
				if fields := strings.Fields(line); len(fields) > 0 && fields[0] == "127.0.1.1" {
					lines[i] = own
					return strings.Join(lines, "\n") + "\n"
				}
			}
			return strings.Join(append(lines, own), "\n") + "\n"
		}),
		a.setUpResolver(),
	)
}

// setUpResolver writes a resolv.conf where none is, or only a link to nowhere. One that is there is left alone.
func (a *Agent) setUpResolver() error {
	path := a.etc("resolv.conf")
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove a dangling resolv.conf: %w", err)
	}
	return edit(path, 0o644, true, func(string) string { return "# This box was given no name server.\n" })
}

const sudoRule = boxUser + " ALL=(ALL:ALL) NOPASSWD: ALL\n"

// setUpSudo lets the user become root where that is allowed and sudo is there, and takes it back where not.
func (a *Agent) setUpSudo(allowed bool) error {
	path := a.etc("sudoers.d/" + boxUser)
	if !allowed {
		if data, err := os.ReadFile(path); err == nil && string(data) == sudoRule {
			return os.Remove(path)
		}
		return nil
	}
	if _, err := os.Stat(filepath.Join(a.config.Root, "usr/bin/sudo")); errors.Is(err, os.ErrNotExist) {
		return nil // the image has no sudo
	} else if err != nil {
		return fmt.Errorf("allow sudo: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		return fmt.Errorf("allow sudo: %w", err)
	}
	return edit(path, 0o440, true, func(string) string { return sudoRule })
}

// limitProcesses sets the limit that commands inherit. It is counted by user, so that the box's user cannot take the
// agent's share.
func limitProcesses(limit int64) error {
	if limit == 0 {
		return nil
	}
	value := unix.Rlimit{Cur: uint64(limit), Max: uint64(limit)}
	if err := unix.Setrlimit(unix.RLIMIT_NPROC, &value); err != nil {
		return fmt.Errorf("limit processes to %d: %w", limit, err)
	}
	return nil
}

// openFiles is how many files a command may have open until it asks for more, which it may up to its hard limit.
const openFiles = 65536

// limitFiles sets the limit that commands inherit. Go has raised the agent's own, and would lower it again at each start.
func limitFiles() error {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return fmt.Errorf("limit open files: %w", err)
	}
	limit.Cur = min(limit.Max, openFiles)
	// That of package syscall: it tells Go that the limit is wanted so.
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return fmt.Errorf("limit open files: %w", err)
	}
	return nil
}

// loopbackUp brings up lo, where the runtime has not.
func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("bring up lo: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	request, err := unix.NewIfreq("lo")
	if err != nil {
		return fmt.Errorf("bring up lo: %w", err)
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, request); err != nil {
		return fmt.Errorf("bring up lo: %w", err)
	}
	if request.Uint16()&unix.IFF_UP != 0 {
		return nil
	}
	request.SetUint16(request.Uint16() | unix.IFF_UP)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, request); err != nil {
		return fmt.Errorf("bring up lo: %w", err)
	}
	return nil
}

func endLine(text string) string {
	if text == "" || strings.HasSuffix(text, "\n") {
		return text
	}
	return text + "\n"
}

// edit replaces a file with what change makes of it, if that is anything else, in one step and with its mode and owner. A
// file that is not there is made, with mode, if create is set.
func edit(path string, mode os.FileMode, create bool, change func(string) string) error {
	uid, gid := 0, 0
	old, err := os.ReadFile(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		if !create {
			return nil
		}
	case err != nil:
		return fmt.Errorf("read: %w", err)
	default:
		var stat unix.Stat_t
		if err := unix.Stat(path, &stat); err != nil {
			return fmt.Errorf("stat %s: %w", path, err)
		}
		mode, uid, gid = os.FileMode(stat.Mode&0o777), int(stat.Uid), int(stat.Gid)
	}
	changed := []byte(change(string(old)))
	if err == nil && bytes.Equal(old, changed) {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("make directory: %w", err)
	}
	next := path + ".carrel-new"
	if err := os.Remove(next); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("replace %s: %w", path, err)
	}
	if err := os.WriteFile(next, changed, mode); err != nil {
		return fmt.Errorf("replace %s: %w", path, err)
	}
	if err := errors.Join(os.Chmod(next, mode), os.Chown(next, uid, gid)); err != nil {
		return fmt.Errorf("replace %s: %w", path, err)
	}
	err = os.Rename(next, path)
	if errors.Is(err, unix.EBUSY) || errors.Is(err, unix.EXDEV) { // a mount of its own
		err = errors.Join(os.WriteFile(path, changed, mode), os.Remove(next))
	}
	if err != nil {
		return fmt.Errorf("replace %s: %w", path, err)
	}
	return nil
}
