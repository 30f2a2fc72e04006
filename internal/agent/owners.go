package agent

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"carrel.dev/carrel/internal/agent/vfork"
)

const (
	// ownersTime is how long one look for the processes of sockets may take.
	ownersTime = 2 * time.Second
	// maxUsers and maxSought bound a look: how many users' processes are looked at, and for how many sockets.
	maxUsers, maxSought = 8, 1024
	// ownerless is how long a socket whose process was not found is not looked for again.
	ownerless = 30 * time.Second
	// maxOwners bounds what is read of an answer, in bytes.
	maxOwners = 64 << 10
)

// ownerCache remembers whose sockets are. The links in /proc/PID/fd tell it, which gVisor shows to the process's own user and else only
// to who has CAP_SYS_PTRACE. The agent does without that right: it starts its own program as each other user, who sees no more
// by it than anyhow, and only for sockets that are new.
type ownerCache struct {
	looking chan struct{} // has an element while somebody looks; what follows is theirs
	known   map[string]owner
}

// owner of a socket.
type owner struct {
	pid     int       // 0: none was found
	started string    // when the process began, as /proc tells it: its number alone may become another's
	again   time.Time // when to look again, if none was found
}

// userIDs are whom a process runs as.
type userIDs struct{ uid, gid uint32 }

// socketOwners gives a process for each socket by its inode, as far as one is found. It is safe for concurrent use.
func (a *Agent) socketOwners(ctx context.Context, sockets []socket) map[string]int {
	ctx, cancel := context.WithTimeout(ctx, ownersTime)
	defer cancel()
	select {
	case a.sockets.looking <- struct{}{}:
		defer func() { <-a.sockets.looking }()
	case <-ctx.Done():
		return nil
	}
	found, known, sought := map[string]int{}, map[string]owner{}, map[string]uint32{}
	for _, one := range sockets {
		was, ok := a.sockets.known[one.inode]
		switch {
		case ok && was.pid == 0 && a.now().Before(was.again):
			known[one.inode] = was
		case ok && was.pid != 0 && startOf(was.pid) == was.started:
			known[one.inode], found[one.inode] = was, was.pid
		case len(sought) < maxSought:
			sought[one.inode] = one.uid
		}
	}
	a.sockets.known = known
	if len(sought) == 0 {
		return found
	}
	note := func(inode string, pid int) {
		if started := startOf(pid); started != "" {
			known[inode], found[inode] = owner{pid: pid, started: started}, pid
			delete(sought, inode)
		}
	}
	for inode, pid := range findOwners(ctx, inodesOf(sought, nil)) {
		note(inode, pid)
	}
	whole := true
	for _, who := range a.otherUsers(sought) {
		answer, err := a.askOwners(ctx, who, inodesOf(sought, &who.uid))
		if err != nil && !errors.Is(ctx.Err(), context.Canceled) {
			a.log.Warn("the processes of a user's sockets were not found", "uid", who.uid, "error", err)
		}
		whole = whole && err == nil
		for inode, pid := range answer {
			note(inode, pid)
		}
	}
	if whole && ctx.Err() == nil {
		for inode := range sought {
			known[inode] = owner{again: a.now().Add(ownerless)}
		}
	}
	return found
}

// inodesOf gives the sockets, those of one user if that is given.
func inodesOf(sockets map[string]uint32, uid *uint32) []string {
	var result []string
	for inode, of := range sockets {
		if uid == nil || of == *uid {
			result = append(result, inode)
		}
	}
	return result
}

// otherUsers gives the users whose sockets these are, as whom processes run and the agent does not.
func (a *Agent) otherUsers(sockets map[string]uint32) []userIDs {
	if len(a.config.Owners) == 0 || len(sockets) == 0 || !isRoot() {
		return nil
	}
	wanted := map[uint32]bool{}
	for _, uid := range sockets {
		wanted[uid] = uid != 0
	}
	var result []userIDs
	pids, _ := processIDs()
	for _, pid := range pids {
		var stat unix.Stat_t
		if unix.Stat(filepath.Join(procDir, strconv.Itoa(pid)), &stat) != nil || !wanted[stat.Uid] {
			continue
		}
		if who := (userIDs{stat.Uid, stat.Gid}); !slices.Contains(result, who) && len(result) < maxUsers {
			result = append(result, who)
		}
	}
	return result
}

// askOwners starts the agent's program as a user, and reads whose of its processes sockets are. What it says is what that user says.
func (a *Agent) askOwners(ctx context.Context, who userIDs, inodes []string) (map[string]int, error) {
	if len(inodes) == 0 {
		return nil, nil
	}
	if err := a.gate.enter(); err != nil {
		return nil, err
	}
	null, err := nothing()
	if err != nil {
		a.gate.leave()
		return nil, err
	}
	out, theirs, err := pipeOut()
	if err != nil {
		a.gate.leave()
		return nil, err
	}
	defer out.Close()
	program := vfork.Command{
		Path: a.config.Owners[0], Args: slices.Concat(a.config.Owners, inodes), Env: []string{"GOMAXPROCS=1", "GOGC=off"}, Dir: "/",
		Files: [3]int{null, theirs, null}, Credential: &syscall.Credential{Uid: who.uid, Gid: who.gid},
	}
	pid, err := a.reaper.start(func() (int, error) { return vfork.Start(program) }, func(unix.WaitStatus) {})
	closeNow(theirs)
	a.gate.leave()
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", program.Path, err)
	}
	defer func() { _ = a.reaper.signal(pid, unix.SIGKILL) }() // it has ended, or is too late
	stop := context.AfterFunc(ctx, func() { _ = out.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	return readOwners(out, inodes)
}

// readOwners reads lines as WriteOwners writes them. Those that are not as expected are passed over.
func readOwners(from io.Reader, inodes []string) (map[string]int, error) {
	result := map[string]int{}
	lines := bufio.NewScanner(io.LimitReader(from, maxOwners))
	for lines.Scan() {
		inode, number, _ := strings.Cut(lines.Text(), " ")
		if pid, err := strconv.ParseInt(number, 10, 32); err == nil && pid > 0 && slices.Contains(inodes, inode) {
			result[inode] = int(pid)
		}
	}
	return result, lines.Err()
}

// WriteOwners writes a line "INODE PID" for each of these sockets that a process has which we may look at. Config.Owners is a
// program that does this with its arguments.
func WriteOwners(ctx context.Context, out io.Writer, inodes []string) error {
	var text bytes.Buffer
	for inode, pid := range findOwners(ctx, inodes) {
		fmt.Fprintln(&text, inode, pid)
	}
	_, err := out.Write(text.Bytes())
	return err
}

// findOwners finds a process for each socket by its inode, the one with the lowest number, among those that we may look at.
func findOwners(ctx context.Context, inodes []string) map[string]int {
	wanted := map[string]string{}
	for _, inode := range inodes {
		wanted["socket:["+inode+"]"] = inode
	}
	found := map[string]int{}
	pids, _ := processIDs()
	for _, pid := range pids {
		if ctx.Err() != nil || len(found) == len(wanted) {
			break
		}
		lookIntoProcess(ctx, pid, wanted, found)
	}
	return found
}

func lookIntoProcess(ctx context.Context, pid int, wanted map[string]string, found map[string]int) {
	path := filepath.Join(procDir, strconv.Itoa(pid), "fd")
	dir, err := os.Open(path)
	if err != nil {
		return
	}
	defer dir.Close()
	for ctx.Err() == nil {
		names, err := dir.Readdirnames(256)
		for _, name := range names {
			link, err := os.Readlink(filepath.Join(path, name))
			if errors.Is(err, fs.ErrPermission) {
				return // no other is shown either
			}
			if inode, ok := wanted[link]; err == nil && ok && found[inode] == 0 {
				found[inode] = pid
			}
		}
		if err != nil {
			return
		}
	}
}

// startOf gives when a process began, as /proc tells it; "" if there is none.
func startOf(pid int) string {
	const started = 22 - firstField
	fields, err := statFields(pid)
	if err != nil || len(fields) <= started {
		return ""
	}
	return string(fields[started])
}
