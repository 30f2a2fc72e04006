package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/carrel"
)

// tearDown removes every box, brings Carrel down, and fails the test when anything is left of it on the machine. Then it
// removes what is meant to stay: the data directory and the pool.
func (s *stack) tearDown() {
	s.t.Helper()
	if s.t.Failed() {
		s.t.Log(s.logs())
	}
	if s.up != nil && s.up.ProcessState == nil {
		if s.client != nil {
			s.removeAll()
			if !s.t.Failed() {
				s.nothingLeft()
			}
		}
		s.stop()
	}
	s.nothingIsLeft(false, "left behind after every box was deleted and Carrel ended") // the kernel takes back what was let go when it has time
}

// nothingLeft waits until nothing of the boxes is left, while Carrel lives.
func (s *stack) nothingLeft() {
	s.t.Helper()
	s.nothingIsLeft(true, "left behind after every box was deleted")
}

// nothingIsLeft waits until leftovers has nothing to list.
func (s *stack) nothingIsLeft(alive bool, what string) {
	s.t.Helper()
	var left []string
	deadline := time.Now().Add(settleTime)
	for time.Now().Before(deadline) {
		if left = s.leftovers(alive); len(left) == 0 {
			return
		}
		<-time.After(50 * time.Millisecond)
	}
	require.Empty(s.t, left, "%s\n%s", what, lazy(s.logs))
}

func (s *stack) removeAll() {
	s.prepareNothing()
	var ids []string
	orgs, err := s.client.Orgs.ListOrgs(s.ctx(), connect.NewRequest(&carrelv1.ListOrgsRequest{}))
	require.NoError(s.t, err)
	for _, org := range orgs.Msg.GetOrgs() {
		boxes, err := s.client.Boxes.ListBoxes(s.ctx(), connect.NewRequest(&carrelv1.ListBoxesRequest{Org: org.GetId(), PageSize: 1000}))
		require.NoError(s.t, err)
		for _, box := range boxes.Msg.GetBoxes() {
			_, err := s.client.Boxes.DeleteBox(s.ctx(), connect.NewRequest(&carrelv1.DeleteBoxRequest{Id: box.GetId(), Org: org.GetId()}))
			if carrel.CodeOf(err) == carrel.CodeNotFound {
				continue // it was being deleted
			}
			require.NoError(s.t, err)
			ids = append(ids, box.GetId())
		}
	}
	for _, id := range ids {
		s.await(id, deleted)
	}
}

// prepareNothing has no box prepared any more: a node that takes no new boxes has no prebuilds and no boxes that wait to be taken.
func (s *stack) prepareNothing() {
	nodes, err := s.client.Nodes.ListNodes(s.ctx(), connect.NewRequest(&carrelv1.ListNodesRequest{}))
	require.NoError(s.t, err)
	for _, node := range nodes.Msg.GetNodes() {
		_, err := s.client.Nodes.UpdateNode(s.ctx(), connect.NewRequest(&carrelv1.UpdateNodeRequest{Id: node.GetId(), Schedulable: false}))
		require.NoError(s.t, err)
	}
}

// leftovers lists what boxes of this stack have left on the machine; while Carrel lives its prepared networks and its
// pool are not counted.
func (s *stack) leftovers(alive bool) []string {
	var left []string
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	for line := range strings.Lines(string(mounts)) {
		fields := strings.Fields(line)
		at := fields[4]
		pool := at == filepath.Join(s.data, "node", "pool")
		prepared := alive && strings.HasPrefix(at, filepath.Join(s.runDir, "netns")+"/")
		runscs := at == filepath.Join(s.runDir, "runsc", "null-netns") // one for all sandboxes there will be
		if (strings.HasPrefix(at, s.runDir+"/") || strings.HasPrefix(at, s.data+"/")) && !pool && !prepared && !runscs {
			left = append(left, "mount "+at)
		}
	}
	loops, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, path := range loops {
		data, _ := os.ReadFile(path)
		file := strings.TrimSpace(string(data))
		if strings.HasPrefix(file, s.data+"/") && !strings.HasSuffix(file, "pool.xfs") {
			left = append(left, "loop device on "+file)
		}
	}
	processes, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range processes {
		data, _ := os.ReadFile(path)
		line := strings.ReplaceAll(string(data), "\x00", " ")
		if strings.Contains(line, "runsc") && strings.Contains(line, s.runDir) {
			left = append(left, "process "+line)
		}
		if !alive && strings.Contains(line, s.data) && !strings.Contains(line, ".test") {
			left = append(left, "process "+line)
		}
	}
	for _, pattern := range []string{
		filepath.Join(s.data, "node", "pool", "homes", "*"),
		filepath.Join(s.data, "node", "pool", "snapshots", "*"),
		filepath.Join(s.data, "node", "pool", "overlay", "*"),
		filepath.Join(s.runDir, "runs", "*"),
	} {
		found, _ := filepath.Glob(pattern)
		for _, path := range found {
			left = append(left, "file "+path)
		}
	}
	for _, root := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/*"} {
		// The parent stays; boxes are below it, named by their run.
		found, _ := filepath.Glob(filepath.Join(root, "carrel*", "*"))
		for _, path := range found {
			if info, err := os.Stat(path); err == nil && info.IsDir() && s.ours(filepath.Base(path)) {
				left = append(left, "cgroup "+path)
			}
		}
	}
	if !alive {
		left = append(left, s.networks()...)
	}
	if s.witness != nil && alive {
		left = slices.DeleteFunc(left, func(what string) bool { return strings.Contains(what, s.witness.GetRunId()) })
	}
	return left
}

// ours says whether a run of that id was ever in this stack's ledger or state.
func (s *stack) ours(run string) bool {
	for _, path := range []string{filepath.Join(s.runDir, "runs", run), filepath.Join(s.data, "node", "ledger", run+".json")} {
		if _, err := os.Stat(path); err == nil {
			return true
		}
	}
	return false
}

// networks lists namespaces and links with addresses of this stack's range.
func (s *stack) networks() []string {
	prefix := strings.TrimSuffix(s.netRange, "0/24")
	var left []string
	routes, _ := os.ReadFile("/proc/net/fib_trie")
	for line := range strings.Lines(string(routes)) {
		leaf := strings.HasPrefix(strings.TrimSpace(line), "|--") // branches are named for what several stacks have in common
		address := strings.TrimLeft(strings.TrimSpace(line), "|- ")
		if leaf && strings.HasPrefix(address, prefix) {
			left = append(left, "address "+address)
		}
	}
	return left
}

// destroy removes what is left of the stack, whatever state it is in.
func (s *stack) destroy() {
	if s.up != nil && s.up.ProcessState == nil {
		s.kill()
	}
	processes, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range processes {
		data, _ := os.ReadFile(path)
		line := strings.ReplaceAll(string(data), "\x00", " ")
		var pid int
		_, _ = fmt.Sscanf(path, "/proc/%d/", &pid)
		if pid != os.Getpid() && (strings.Contains(line, s.runDir) || strings.Contains(line, s.data)) && !strings.Contains(line, ".test") {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	deadline := time.Now().Add(10 * time.Second)
	for time.Now().Before(deadline) {
		mounts, _ := os.ReadFile("/proc/self/mountinfo")
		busy := false
		for line := range strings.Lines(string(mounts)) {
			at := strings.Fields(line)[4]
			if strings.HasPrefix(at, s.runDir+"/") || strings.HasPrefix(at, s.data+"/") {
				busy = true
				_ = unix.Unmount(at, unix.MNT_DETACH)
			}
		}
		if !busy {
			break
		}
	}
	loops, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, path := range loops {
		data, _ := os.ReadFile(path)
		if strings.HasPrefix(string(data), s.data+"/") {
			if f, err := os.OpenFile("/dev/"+strings.Split(path, "/")[3], os.O_RDWR, 0); err == nil {
				_ = unix.IoctlSetInt(int(f.Fd()), unix.LOOP_CLR_FD, 0)
				f.Close()
			}
		}
	}
	require.NoError(s.t, os.RemoveAll(s.runDir))
	require.NoError(s.t, os.RemoveAll(s.data))
}
