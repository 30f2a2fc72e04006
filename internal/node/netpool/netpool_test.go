package netpool

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// patience bounds what happens by itself.
const patience = 3 * time.Minute

// open makes the pool of an instance that is named for the test, and takes it away at the end.
func open(t *testing.T, instance, runDir string, live []Network, change ...func(*Config)) *Pool {
	t.Helper()
	config := Config{Instance: instance, RunDir: runDir, Range: "100.125.0.0/20", Ready: 2, Logger: slog.New(slog.DiscardHandler)}
	for _, f := range change {
		f(&config)
	}
	p, err := Open(t.Context(), config, live)
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, p.Remove(context.Background()))
		require.Empty(t, leftovers(t, p), "something of the pool is left")
	})
	return p
}

func leftovers(t *testing.T, p *Pool) []string {
	t.Helper()
	var left []string
	links, err := wholeList(netlink.LinkList) // those of other tests come and go
	require.NoError(t, err)
	for _, l := range links {
		if strings.HasPrefix(l.Attrs().Name, p.tag) {
			left = append(left, l.Attrs().Name)
		}
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	require.NoError(t, err)
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, p.netnsDir()+"/") {
			left = append(left, line)
		}
	}
	return left
}

// enter opens a network's namespace for inNamespace.
func enter(t *testing.T, n Network) int {
	t.Helper()
	ns, err := unix.Open(n.Namespace, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	require.NoError(t, err)
	t.Cleanup(func() { _ = unix.Close(ns) })
	return ns
}

// listen serves an echo on a port in the box.
func listen(t *testing.T, n Network, port int) {
	t.Helper()
	var l net.Listener
	require.NoError(t, inNamespace(enter(t, n), func() (err error) {
		l, err = net.Listen("tcp4", fmt.Sprintf("0.0.0.0:%d", port))
		return err
	}))
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = io.Copy(c, c)
			}()
		}
	}()
}

// dialFrom opens a connection in the box, without Go's dialer, whose goroutines leave the thread.
func dialFrom(t *testing.T, n Network, ip string, port, sourcePort int) error {
	t.Helper()
	return inNamespace(enter(t, n), func() error {
		s, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(s)
		_ = unix.SetsockoptTimeval(s, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &unix.Timeval{Usec: 200_000})
		_ = unix.SetsockoptInt(s, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
		if sourcePort != 0 {
			if err := unix.Bind(s, &unix.SockaddrInet4{Port: sourcePort}); err != nil {
				return err
			}
		}
		a := unix.SockaddrInet4{Port: port}
		copy(a.Addr[:], net.ParseIP(ip).To4())
		return unix.Connect(s, &a)
	})
}

func TestHostReachesTheAgentAndTheBoxReachesNothing(t *testing.T) {
	if testing.Short() {
		return // needs root
	}
	p := open(t, t.Name(), t.TempDir(), nil)
	require.NoError(t, p.Filtered())
	a, err := p.Take(t.Context())
	require.NoError(t, err)
	b, err := p.Take(t.Context())
	require.NoError(t, err)
	listen(t, a, AgentPort)
	listen(t, a, 8080)
	listen(t, b, AgentPort)

	link, err := netlink.LinkByName(a.Name)
	require.NoError(t, err)
	known, err := wholeList(func() ([]netlink.Neigh, error) { return netlink.NeighList(link.Attrs().Index, netlink.FAMILY_V4) })
	require.NoError(t, err)
	require.True(t, slices.ContainsFunc(known, func(n netlink.Neigh) bool {
		return n.IP.String() == a.Box && n.State == netlink.NUD_PERMANENT
	}), "the first packet waits for an address to be resolved: %v", known)
	c, err := net.DialTimeout("tcp", a.Agent(), patience)
	require.NoError(t, err, "the host does not reach the agent")
	_, err = c.Write([]byte("hello"))
	require.NoError(t, err)
	got := make([]byte, 5)
	_, err = io.ReadFull(c, got)
	require.NoError(t, err)
	require.NoError(t, c.Close())

	_, err = net.DialTimeout("tcp", a.Box+":8080", 200*time.Millisecond)
	require.Error(t, err, "everybody on the host reaches a port that is not the agent's")

	host, err := net.Listen("tcp4", "0.0.0.0:0")
	require.NoError(t, err)
	defer host.Close()
	port := host.Addr().(*net.TCPAddr).Port
	require.ErrorIs(t, dialFrom(t, a, a.Host, port, 0), syscall.EINPROGRESS, "the box reaches the host")
	require.ErrorIs(t, dialFrom(t, a, "127.0.0.1", port, 0), syscall.ECONNREFUSED)
	require.ErrorIs(t, dialFrom(t, a, b.Box, AgentPort, 0), syscall.ENETUNREACH, "the box has a route out")
	require.ErrorIs(t, dialFrom(t, a, "1.1.1.1", 443, 0), syscall.ENETUNREACH, "the box has a route out")

	// Root in the box can add routes and addresses; that must not help.
	require.NoError(t, inNamespace(enter(t, a), func() error {
		link, err := netlink.LinkByName(insideName)
		if err != nil {
			return err
		}
		return netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: net.ParseIP(a.Host)})
	}))
	const forward = "/proc/sys/net/ipv4/ip_forward" // as many hosts have it
	was, err := os.ReadFile(forward)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(forward, []byte("1"), 0))
	t.Cleanup(func() { _ = os.WriteFile(forward, was, 0) })
	for _, target := range []string{b.Box, b.Host, "1.1.1.1"} {
		require.ErrorIs(t, dialFrom(t, a, target, AgentPort, 0), syscall.EINPROGRESS, "the box reaches %s", target)
		require.ErrorIs(t, dialFrom(t, a, target, port, 0), syscall.EINPROGRESS, "the box reaches %s", target)
	}
	require.NoError(t, host.(*net.TCPListener).SetDeadline(time.Now().Add(50*time.Millisecond)))
	_, err = host.Accept()
	require.True(t, errors.Is(err, os.ErrDeadlineExceeded), "a connection from a box arrived")
}

// dialAs opens a connection from the host as another user, says hello, and gives the answer and the connection's own port.
func dialAs(t *testing.T, uid int, address string, patience time.Duration) (port int, err error) {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		done <- func() error {
			runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
			if _, _, errno := unix.RawSyscall(unix.SYS_SETFSUID, uintptr(uid), 0, 0); errno != 0 {
				return errno
			}
			to, err := net.ResolveTCPAddr("tcp4", address)
			if err != nil {
				return err
			}
			s, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			defer unix.Close(s)
			limit := unix.NsecToTimeval(patience.Nanoseconds())
			_ = unix.SetsockoptTimeval(s, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &limit)
			_ = unix.SetsockoptTimeval(s, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit)
			if err := unix.Connect(s, &unix.SockaddrInet4{Port: to.Port, Addr: [4]byte(to.IP.To4())}); err != nil {
				return err
			}
			if name, err := unix.Getsockname(s); err == nil {
				port = name.(*unix.SockaddrInet4).Port
			}
			if _, err := unix.Write(s, []byte("hello")); err != nil {
				return err
			}
			got := make([]byte, 5)
			n, err := unix.Read(s, got)
			if err == nil && string(got[:n]) != "hello" {
				err = fmt.Errorf("answered %q", got[:n])
			}
			return err
		}()
	}()
	return port, <-done
}

func TestTheProxysUserReachesEveryPortAndTheBoxStillNothing(t *testing.T) {
	if testing.Short() {
		return // needs root
	}
	const user = 64_123
	dialer := user
	p := open(t, t.Name(), t.TempDir(), nil, func(c *Config) { c.DialerUID = &dialer })
	a, err := p.Take(t.Context())
	require.NoError(t, err)
	listen(t, a, 8080)
	_, err = dialAs(t, user, a.Box+":8080", patience)
	require.NoError(t, err)
	_, err = dialAs(t, user+1, a.Box+":8080", 200*time.Millisecond)
	require.ErrorIs(t, err, syscall.EINPROGRESS, "another user reaches the port")
	_, err = dialAs(t, user, a.Box+":8081", patience)
	require.ErrorIs(t, err, syscall.ECONNREFUSED, "a refusal comes back at once")

	host, err := net.Listen("tcp4", "0.0.0.0:0")
	require.NoError(t, err)
	defer host.Close()
	port := host.Addr().(*net.TCPAddr).Port
	for _, from := range []int{0, 9999} {
		require.ErrorIs(t, dialFrom(t, a, a.Host, port, from), syscall.EINPROGRESS, "the box reaches the host")
	}
	// What opens nothing but pretends to go on with a connection gets no answer either: a reset would come back from the host's kernel.
	require.NoError(t, sendACK(t, a, port))
	require.ErrorIs(t, dialFrom(t, a, a.Host, port, 9999), syscall.EINPROGRESS)
}

// sendACK sends the host a segment that belongs to no connection, and gives an error when anything comes back.
func sendACK(t *testing.T, n Network, port int) error {
	t.Helper()
	return inNamespace(enter(t, n), func() error {
		s, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
		if err != nil {
			return err
		}
		defer unix.Close(s)
		_ = unix.SetsockoptTimeval(s, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 200_000})
		host, box := net.ParseIP(n.Host).To4(), net.ParseIP(n.Box).To4()
		segment := make([]byte, 20)
		binary.BigEndian.PutUint16(segment, 9998)
		binary.BigEndian.PutUint16(segment[2:], uint16(port))
		segment[12], segment[13] = 5<<4, 0x10 // 20 bytes of header, ACK
		sum := uint32(unix.IPPROTO_TCP + len(segment))
		for _, part := range [][]byte{host, box, segment} {
			for i := 0; i < len(part); i += 2 {
				sum += uint32(binary.BigEndian.Uint16(part[i:]))
			}
		}
		for sum > 0xffff {
			sum = sum>>16 + sum&0xffff
		}
		binary.BigEndian.PutUint16(segment[16:], ^uint16(sum))
		if err := unix.Sendto(s, segment, 0, &unix.SockaddrInet4{Addr: [4]byte(host)}); err != nil {
			return err
		}
		answer := make([]byte, 128)
		got, _, err := unix.Recvfrom(s, answer, 0)
		if errors.Is(err, unix.EAGAIN) {
			return nil
		}
		if err != nil {
			return err
		}
		return fmt.Errorf("the host answered with %d bytes: %x", got, answer[:got])
	})
}

func TestNetworksInUseSurviveARestart(t *testing.T) {
	if testing.Short() {
		return
	}
	dir := t.TempDir()
	p := open(t, t.Name(), dir, nil)
	kept, err := p.Take(t.Context())
	require.NoError(t, err)
	lost, err := p.Take(t.Context())
	require.NoError(t, err)
	listen(t, kept, AgentPort)
	open1, err := net.Dial("tcp", kept.Agent())
	require.NoError(t, err)

	again := open(t, t.Name(), dir, []Network{kept})
	_, err = netlink.LinkByName(lost.Name)
	require.Error(t, err, "a network that no box uses is left")
	_, err = open1.Write([]byte("x"))
	require.NoError(t, err)
	_, err = io.ReadFull(open1, make([]byte, 1))
	require.NoError(t, err, "a connection of before broke")
	c, err := net.DialTimeout("tcp", kept.Agent(), patience)
	require.NoError(t, err)
	require.NoError(t, c.Close())
	other, err := again.Take(t.Context())
	require.NoError(t, err)
	require.NotEqual(t, kept.Box, other.Box)
}

func TestTwoInstancesShareAMachine(t *testing.T) {
	if testing.Short() {
		return
	}
	p, q := open(t, t.Name()+"1", t.TempDir(), nil), open(t, t.Name()+"2", t.TempDir(), nil)
	seen := map[string]bool{}
	for range 3 {
		for _, pool := range []*Pool{p, q} {
			n, err := pool.Take(t.Context())
			require.NoError(t, err)
			require.False(t, seen[n.Box], "two boxes have %s", n.Box)
			seen[n.Box] = true
		}
	}
}

func TestPoolRefillsAndRemovesInTheBackground(t *testing.T) {
	if testing.Short() {
		return
	}
	p := open(t, t.Name(), t.TempDir(), nil)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	require.Eventually(t, func() bool { return len(p.ready) == 2 }, patience, time.Millisecond)
	began := time.Now()
	n, err := p.Take(ctx)
	require.NoError(t, err)
	t.Logf("a ready network took %s", time.Since(began))
	require.NoError(t, Restore(n))
	p.Release(n)
	p.Release(Network{})
	require.Eventually(t, func() bool {
		_, err := netlink.LinkByName(n.Name)
		_, fileErr := os.Stat(filepath.Join(p.netnsDir(), n.Name))
		return err != nil && os.IsNotExist(fileErr)
	}, patience, time.Millisecond)
	require.Eventually(t, func() bool { return len(p.ready) == 2 }, patience, time.Millisecond)

	// A second release does not hit whoever has the same index now.
	same, err := p.Take(ctx)
	require.NoError(t, err)
	for same.Index != n.Index {
		same, err = p.Take(ctx)
		require.NoError(t, err)
	}
	require.Equal(t, n.Name, same.Name)
	p.Release(n)
	require.Empty(t, p.drop)
	require.NoError(t, p.check(same))

	// Someone flushes the machine's interfaces: what was ready is not given out.
	first := <-p.ready
	link, err := netlink.LinkByName(first.Name)
	require.NoError(t, err)
	require.NoError(t, netlink.LinkDel(link))
	p.ready <- first
	for range 3 {
		got, err := p.Take(ctx)
		require.NoError(t, err)
		require.NoError(t, p.check(got))
	}
	cancel()
	require.NoError(t, <-done)
}

func TestWithoutFirewallNoNetworkIsGivenOut(t *testing.T) {
	if testing.Short() {
		return
	}
	p := open(t, t.Name(), t.TempDir(), nil)
	p.noFW = errors.New("no nftables here")
	_, err := p.Take(t.Context())
	require.ErrorContains(t, err, "no nftables here")
	p.cfg.AllowUnfiltered = true
	_, err = p.Take(t.Context())
	require.NoError(t, err)
}

func TestBadRangeIsRefused(t *testing.T) {
	for _, r := range []string{"nonsense", "10.0.0.0/30", "fd00::/64"} {
		_, err := Open(t.Context(), Config{Instance: "x", RunDir: t.TempDir(), Range: r, Logger: slog.New(slog.DiscardHandler)}, nil)
		require.ErrorContains(t, err, "is no IPv4 range")
	}
}

// TestAListThatChangesIsAskedForAgain promises that networks of other instances that come and go do not keep this one from its own.
func TestAListThatChangesIsAskedForAgain(t *testing.T) {
	times := 0
	list, err := wholeList(func() ([]int, error) {
		if times++; times < 5 {
			return []int{1}, fmt.Errorf("dump: %w", netlink.ErrDumpInterrupted)
		}
		return []int{1, 2}, nil
	})
	require.NoError(t, err)
	require.Equal(t, []int{1, 2}, list)
	_, err = wholeList(func() ([]int, error) { return nil, unix.EPERM })
	require.ErrorIs(t, err, unix.EPERM)
	_, err = wholeList(func() ([]int, error) { return nil, netlink.ErrDumpInterrupted })
	require.ErrorIs(t, err, netlink.ErrDumpInterrupted, "it does not ask for ever")
}
