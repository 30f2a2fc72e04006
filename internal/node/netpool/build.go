package netpool

import (
	"fmt"
	"net"
	"os"
	"runtime"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// insideName is what the box calls its interface.
const insideName = "eth0"

// mac gives the ends of every pair hardware addresses that need no discovery: locally administered, the
// last four bytes are the IPv4 address.
func mac(ip string) net.HardwareAddr {
	a := net.ParseIP(ip).To4()
	return net.HardwareAddr{0x02, 0xca, a[0], a[1], a[2], a[3]}
}

func addr(ip string) *netlink.Addr {
	return &netlink.Addr{IPNet: &net.IPNet{IP: net.ParseIP(ip).To4(), Mask: net.CIDRMask(30, 32)}}
}

// addPair makes the veth pair with the host's address, both ends here and down.
func addPair(n Network) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.HardwareAddr = n.Name, mac(n.Host)
	pair := &netlink.Veth{LinkAttrs: attrs, PeerName: n.Name + "p", PeerHardwareAddr: mac(n.Box)}
	if err := netlink.LinkAdd(pair); err != nil {
		return fmt.Errorf("add veth pair %s: %w", n.Name, err)
	}
	link, err := netlink.LinkByName(n.Name)
	if err == nil {
		err = netlink.AddrAdd(link, addr(n.Host))
	}
	if err != nil {
		_ = netlink.LinkDel(pair)
		return fmt.Errorf("give %s its address: %w", n.Name, err)
	}
	return nil
}

// build makes the namespace, moves the box's end into it and brings both up.
func build(n Network) error {
	host, err := netlink.LinkByName(n.Name)
	if err != nil {
		return err
	}
	peer, err := netlink.LinkByName(n.Name + "p")
	if err != nil {
		return err
	}
	// Only IPv4 is spoken on the pair; the switch is per interface and may be missing with IPv6 off.
	_ = os.WriteFile("/proc/sys/net/ipv6/conf/"+n.Name+"/disable_ipv6", []byte("1"), 0)
	ns, err := newNamespace(n.Namespace)
	if err != nil {
		return err
	}
	defer unix.Close(ns)
	if err := netlink.LinkSetNsFd(peer, ns); err != nil {
		return fmt.Errorf("move %s into its namespace: %w", n.Name, err)
	}
	if err := inNamespace(ns, func() error { return insideUp(n) }); err != nil {
		return err
	}
	if err := netlink.LinkSetARPOff(host); err != nil {
		return fmt.Errorf("set up %s: %w", n.Name, err)
	}
	if err := netlink.LinkSetUp(host); err != nil {
		return fmt.Errorf("set up %s: %w", n.Name, err)
	}
	return neighbour(host, n.Box)
}

func neighbour(link netlink.Link, ip string) error {
	err := netlink.NeighSet(&netlink.Neigh{
		LinkIndex: link.Attrs().Index, Family: netlink.FAMILY_V4, State: netlink.NUD_PERMANENT,
		IP: net.ParseIP(ip).To4(), HardwareAddr: mac(ip),
	})
	if err != nil {
		return fmt.Errorf("set neighbour %s: %w", ip, err)
	}
	return nil
}

// insideUp configures the box's end; the calling thread is in the namespace. There is no default route: who
// tries to get out is told at once that there is no way.
func insideUp(n Network) error {
	_ = os.WriteFile("/proc/sys/net/ipv6/conf/all/disable_ipv6", []byte("1"), 0)
	if lo, err := netlink.LinkByName("lo"); err == nil {
		if err := netlink.LinkSetUp(lo); err != nil {
			return fmt.Errorf("set up lo: %w", err)
		}
	}
	link, err := netlink.LinkByName(n.Name + "p")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetName(link, insideName); err != nil {
		return fmt.Errorf("name %s: %w", insideName, err)
	}
	if err := netlink.AddrReplace(link, addr(n.Box)); err != nil {
		return fmt.Errorf("give the box its address: %w", err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("set up %s: %w", insideName, err)
	}
	return neighbour(link, n.Host)
}

// Restore gives the box's end its address and neighbour again, which gVisor takes away when it starts. A
// network that is used for a second start needs it first.
func Restore(n Network) error {
	ns, err := unix.Open(n.Namespace, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open namespace %s: %w", n.Namespace, err)
	}
	defer unix.Close(ns)
	return inNamespace(ns, func() error {
		link, err := netlink.LinkByName(insideName)
		if err != nil {
			return err
		}
		if err := netlink.AddrReplace(link, addr(n.Box)); err != nil {
			return fmt.Errorf("give the box its address: %w", err)
		}
		return neighbour(link, n.Host)
	})
}

// newNamespace makes a network namespace that lives as long as the mount at path. It answers an open
// file descriptor of it.
func newNamespace(path string) (int, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o600)
	if err != nil {
		return -1, fmt.Errorf("make namespace: %w", err)
	}
	_ = f.Close()
	type result struct {
		fd  int
		err error
	}
	done := make(chan result, 1)
	go func() {
		// The thread is in another namespace afterwards: it is never unlocked and ends with the goroutine.
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- result{-1, fmt.Errorf("make namespace: %w", err)}
			return
		}
		own := fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid())
		if err := unix.Mount(own, path, "", unix.MS_BIND, ""); err != nil {
			done <- result{-1, fmt.Errorf("keep namespace: %w", err)}
			return
		}
		fd, err := unix.Open(own, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		done <- result{fd, err}
	}()
	r := <-done
	return r.fd, r.err
}

// inNamespace calls f on a thread that is in the network namespace ns.
func inNamespace(ns int, f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := unix.Setns(ns, unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("enter namespace: %w", err)
			return
		}
		done <- f()
	}()
	return <-done
}
