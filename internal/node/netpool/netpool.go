package netpool

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"carrel.dev/carrel/internal/failpoint"
)

// AgentPort is where the agent listens in every box.
const AgentPort = 1

const (
	defaultRange = "100.64.0.0/16"
	defaultReady = 4
	// fillAfter is how long nobody has taken a network when the pool is filled again, unless half of it is gone; and after a failure, when
	// that is tried again.
	fillAfter = time.Second
	leaving   = "leaving"
)

// Config of a pool.
type Config struct {
	// Instance tells the daemons of one machine apart; any text.
	Instance string
	// RunDir/netns has the namespaces. It is the same after a restart of the daemon.
	RunDir string
	// Range is an IPv4 prefix, /29 or larger, of which every network takes a /30 that nobody on the machine
	// uses; empty: 100.64.0.0/16.
	Range string
	// Ready is how many networks wait ahead of use; 0: 4.
	Ready int
	// DialerUID is the user whose processes may connect to every TCP port of a box, the node's proxy; nil: to the agent's alone, as everybody.
	DialerUID *int
	// AllowUnfiltered gives out networks on a machine without nftables. Boxes then reach the host.
	AllowUnfiltered bool
	Logger          *slog.Logger
}

// Network is one prepared network. It is kept in the ledger of its user, as JSON.
type Network struct {
	ID        string `json:"id"` // random: tells two networks of the same index apart
	Index     int    `json:"index"`
	Name      string `json:"name"`      // of the host's end of the veth pair
	Namespace string `json:"namespace"` // path
	Host      string `json:"host"`      // address of the host's end
	Box       string `json:"box"`       // address of the box
	Port      int    `json:"port"`      // of the agent; 0: AgentPort
}

// Agent is the address of the agent in the box, for net.Dial.
func (n Network) Agent() string { return fmt.Sprintf("%s:%d", n.Box, cmp.Or(n.Port, AgentPort)) }

// Pool of networks. It is safe for concurrent use.
type Pool struct {
	cfg    Config
	tag    string // beginning of every name of this instance
	prefix netip.Prefix
	fw     *firewall // nil: none, and that is allowed
	noFW   error     // why there is no firewall

	ready chan Network
	drop  chan Network
	wake  chan struct{}

	mu    sync.Mutex     // guards inUse
	inUse map[int]string // index to the id of the network that has it, or leaving
}

// Open takes over the networks in live, which boxes use, removes every other one that a former process of
// this instance left, and sets up the firewall.
func Open(ctx context.Context, cfg Config, live []Network) (*Pool, error) {
	if cfg.Instance == "" || cfg.RunDir == "" || cfg.Logger == nil {
		return nil, errors.New("open network pool: Instance, RunDir and Logger are needed")
	}
	if cfg.Range == "" {
		cfg.Range = defaultRange
	}
	if cfg.Ready <= 0 {
		cfg.Ready = defaultReady
	}
	prefix, err := netip.ParsePrefix(cfg.Range)
	if err != nil || !prefix.Addr().Is4() || prefix.Bits() > 29 {
		return nil, fmt.Errorf("open network pool: %q is no IPv4 range of at least 8 addresses", cfg.Range)
	}
	sum := sha256.Sum256([]byte(cfg.Instance))
	p := &Pool{
		cfg:    cfg,
		tag:    "cr" + strings.ToLower(base32.StdEncoding.EncodeToString(sum[:])[:6]),
		prefix: prefix.Masked(),
		ready:  make(chan Network, cfg.Ready),
		drop:   make(chan Network, 4096),
		wake:   make(chan struct{}, 1),
		inUse:  map[int]string{},
	}
	if err := os.MkdirAll(p.netnsDir(), 0o755); err != nil {
		return nil, fmt.Errorf("open network pool: %w", err)
	}
	for _, n := range live {
		p.inUse[n.Index] = n.ID
	}
	if err := p.sweep(ctx, live); err != nil {
		return nil, fmt.Errorf("open network pool: %w", err)
	}
	p.fw, p.noFW = newFirewall(p.tag, cfg.DialerUID, live)
	if p.noFW != nil {
		cfg.Logger.Error("there is no firewall between boxes and this machine", "error", p.noFW, "networks_are_given_out", cfg.AllowUnfiltered)
	}
	return p, nil
}

// Filtered says why there is no firewall, nil if there is one.
func (p *Pool) Filtered() error { return p.noFW }

// Run keeps the pool filled and removes networks that were given back, until ctx ends. Networks that
// are ready then are left for the next Open to sweep; those in use stay.
func (p *Pool) Run(ctx context.Context) error {
	var work sync.WaitGroup
	work.Go(func() {
		for {
			select {
			case n := <-p.drop:
				p.remove(n)
			case <-ctx.Done():
				return
			}
		}
	})
	defer work.Wait()
	for {
		for p.usable() == nil && len(p.ready) < cap(p.ready) && ctx.Err() == nil {
			n, err := p.make()
			if err != nil {
				p.cfg.Logger.Error("a network could not be prepared", "error", err)
				break
			}
			p.ready <- n // only this goroutine fills it: there is room
		}
		if !p.rest(ctx) {
			return nil
		}
	}
}

// rest waits until it is time to fill the pool: when few are ready, or nobody has taken one for a while. Whoever took one is starting a box,
// and to make a network takes 20 ms of the machine. It answers false when ctx ends.
func (p *Pool) rest(ctx context.Context) bool {
	timer := time.NewTimer(fillAfter)
	defer timer.Stop()
	for {
		select {
		case <-p.wake:
			if 2*len(p.ready) <= cap(p.ready) {
				return true
			}
			timer.Reset(fillAfter)
		case <-timer.C:
			return true
		case <-ctx.Done():
			return false
		}
	}
}

func (p *Pool) usable() error {
	if p.noFW != nil && !p.cfg.AllowUnfiltered {
		return fmt.Errorf("no network is given out, because nothing would keep the box from this machine: %w", p.noFW)
	}
	return nil
}

// Take gives out a network; the caller writes it to its ledger and gives it back with Release. It waits
// for nothing: when none is ready it makes one, in some 20 ms.
func (p *Pool) Take(ctx context.Context) (Network, error) {
	if err := p.usable(); err != nil {
		return Network{}, err
	}
	for {
		select {
		case n := <-p.ready:
			p.refill()
			if err := p.check(n); err != nil {
				p.cfg.Logger.Warn("a prepared network is not usable any more", "network", n.Name, "error", err)
				p.Release(n)
				continue
			}
			return n, nil
		default:
		}
		if err := ctx.Err(); err != nil {
			return Network{}, err
		}
		return p.make()
	}
}

// Release gives a network back. It is removed in the background and never used again: gVisor empties a
// namespace that it used, and a new one is as cheap as repairing that. The same network may be released twice.
func (p *Pool) Release(n Network) {
	if n.Name == "" || !p.leave(n) {
		return
	}
	select {
	case p.drop <- n:
	default:
		p.remove(n) // thousands wait: let the caller do the work
	}
}

// Remove takes every network of this instance and its rules away, also those in use: for taking a node off
// its machine. Run must have returned.
func (p *Pool) Remove(ctx context.Context) error {
	err := p.sweep(ctx, nil)
	if p.fw != nil {
		err = errors.Join(err, p.fw.removeTable())
	}
	return err
}

func (p *Pool) refill() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

func (p *Pool) netnsDir() string { return filepath.Join(p.cfg.RunDir, "netns") }

// check looks whether a prepared network still has its interface, as when someone flushed the machine's network.
func (p *Pool) check(n Network) error {
	if _, err := netlink.LinkByName(n.Name); err != nil {
		return err
	}
	var s unix.Statfs_t
	if err := unix.Statfs(n.Namespace, &s); err != nil {
		return err
	}
	if s.Type != unix.NSFS_MAGIC {
		return errors.New("the namespace is gone")
	}
	return nil
}

// sweep removes the networks of this instance that are not in live.
func (p *Pool) sweep(ctx context.Context, live []Network) error {
	keep := map[string]bool{}
	for _, n := range live {
		keep[n.Name] = true
	}
	left := map[string]bool{}
	entries, err := os.ReadDir(p.netnsDir())
	if err != nil {
		return err
	}
	for _, e := range entries {
		left[e.Name()] = true
	}
	links, err := wholeList(netlink.LinkList)
	if err != nil {
		return fmt.Errorf("list network interfaces: %w", err)
	}
	for _, l := range links {
		left[l.Attrs().Name] = true
	}
	for name := range left {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		index, err := strconv.Atoi(strings.TrimPrefix(name, p.tag))
		if !strings.HasPrefix(name, p.tag) || err != nil || keep[name] {
			continue
		}
		p.cfg.Logger.Info("a network that no box uses is removed", "network", name)
		p.remove(Network{Index: index, Name: name, Namespace: filepath.Join(p.netnsDir(), name)})
	}
	return nil
}

// remove takes a network away. What is missing already does not matter.
func (p *Pool) remove(n Network) {
	var errs []error
	if link, err := netlink.LinkByName(n.Name); err == nil {
		errs = append(errs, netlink.LinkDel(link))
	}
	if err := unix.Unmount(n.Namespace, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		errs = append(errs, fmt.Errorf("unmount namespace: %w", err))
	}
	if err := os.Remove(n.Namespace); err != nil && !errors.Is(err, os.ErrNotExist) {
		errs = append(errs, err)
	}
	if p.fw != nil && n.Box != "" {
		errs = append(errs, p.fw.forget(n))
	}
	if err := errors.Join(errs...); err != nil {
		p.cfg.Logger.Error("a network could not be removed; the next start tries again", "network", n.Name, "error", err)
		return // its index stays taken
	}
	p.unclaim(n.Index)
}

// make makes a network. A failure leaves nothing.
func (p *Pool) make() (n Network, err error) {
	n, err = p.reserve()
	if err != nil {
		return Network{}, err
	}
	defer func() {
		if err != nil {
			p.remove(n)
			n, err = Network{}, fmt.Errorf("make network: %w", err)
		}
	}()
	if p.fw != nil {
		// Before the interface is up, so that there is no moment without rules.
		if err := p.fw.learn(n); err != nil {
			return n, err
		}
	}
	if err := failpoint.Hit("node/net/filtered"); err != nil {
		return n, err
	}
	if err := build(n); err != nil {
		return n, err
	}
	return n, failpoint.Hit("node/net/built")
}

// reserve finds a /30 that no interface of the machine and no network of this instance has, and takes it by
// giving it to the host's end of a new veth pair. A lock keeps the instances of the machine from taking the
// same one.
func (p *Pool) reserve() (Network, error) {
	unlock, err := lockMachine()
	if err != nil {
		return Network{}, fmt.Errorf("reserve network: %w", err)
	}
	defer unlock()
	taken, err := machinePrefixes()
	if err != nil {
		return Network{}, fmt.Errorf("reserve network: %w", err)
	}
	id := rand.Text()
	count := 1 << (30 - p.prefix.Bits())
	base := p.prefix.Addr().As4()
	first := uint32(base[0])<<24 | uint32(base[1])<<16 | uint32(base[2])<<8 | uint32(base[3])
	for index := range count {
		at := func(k uint32) netip.Addr {
			v := first + uint32(index)*4 + k
			return netip.AddrFrom4([4]byte{byte(v >> 24), byte(v >> 16), byte(v >> 8), byte(v)})
		}
		if overlaps(taken, netip.PrefixFrom(at(0), 30)) || !p.claim(index, id) {
			continue
		}
		name := p.tag + strconv.Itoa(index)
		n := Network{ID: id, Index: index, Name: name, Namespace: filepath.Join(p.netnsDir(), name), Host: at(1).String(), Box: at(2).String()}
		if err := addPair(n); err != nil {
			p.unclaim(index)
			return Network{}, fmt.Errorf("reserve network: %w", err)
		}
		return n, nil
	}
	return Network{}, fmt.Errorf("reserve network: all %d networks of %s are in use on this machine", count, p.prefix)
}

func (p *Pool) claim(index int, id string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, taken := p.inUse[index]; taken {
		return false
	}
	p.inUse[index] = id
	return true
}

// leave reports whether n is still the network that has its index, and marks it as leaving.
func (p *Pool) leave(n Network) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.inUse[n.Index] != n.ID || n.ID == "" {
		return false
	}
	p.inUse[n.Index] = leaving
	return true
}

func (p *Pool) unclaim(index int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.inUse, index)
}

func overlaps(taken []netip.Prefix, p netip.Prefix) bool {
	for _, t := range taken {
		if t.Overlaps(p) {
			return true
		}
	}
	return false
}

// listTries is how often a list is asked for that changes while the kernel gives it.
const listTries = 100

// wholeList asks the kernel for a list until it gives one that did not change meanwhile, as it does where other networks come and go.
func wholeList[T any](ask func() ([]T, error)) (list []T, err error) {
	for range listTries {
		if list, err = ask(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			return list, err
		}
	}
	return nil, err
}

// machinePrefixes lists the IPv4 networks that interfaces of this machine are in.
func machinePrefixes() ([]netip.Prefix, error) {
	addrs, err := wholeList(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, netlink.FAMILY_V4) })
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	var list []netip.Prefix
	for _, a := range addrs {
		ip, ok := netip.AddrFromSlice(a.IP.To4())
		ones, _ := a.Mask.Size()
		if ok {
			list = append(list, netip.PrefixFrom(ip, ones).Masked())
		}
	}
	return list, nil
}

// lockMachine keeps other instances on this machine from choosing addresses until unlock.
func lockMachine() (unlock func(), err error) {
	f, err := os.OpenFile("/run/lock/carrel-networks", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("lock: %w", err)
	}
	return func() { _ = f.Close() }, nil
}
