package gateway

import (
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"carrel.dev/carrel/internal/carrel"
)

const (
	// sshMaxHandshakes is how many connections may be between their beginning and the end of their login at once, and
	// sshMaxHandshakesPer how many of one address.
	sshMaxHandshakes    = 256
	sshMaxHandshakesPer = 128
	// An address may fail this many logins at once, and one more every sshFailRefill.
	sshFailBurst   = 30
	sshFailRefill  = 2 * time.Second
	maxSSHAddress  = 10_000
	sshIPv6Network = 64 // bits of an address that one person has
)

// sshDoors lets connections in to log in. When it is full a silent one has to go for a new one: whoever only connects
// cannot keep others out. It is safe for concurrent use.
type sshDoors struct {
	now func() time.Time

	mu       sync.Mutex // guards what follows
	inside   []*sshDoor // oldest first
	by       map[netip.Prefix]int
	failures map[netip.Prefix]budget
}

// sshDoor is a connection of which it is known whether the client has said anything.
type sshDoor struct {
	net.Conn
	address netip.Prefix
	spoke   atomic.Bool
	left    bool // guarded by sshDoors.mu
}

func (d *sshDoor) Read(p []byte) (int, error) {
	n, err := d.Conn.Read(p)
	if n > 0 && !d.spoke.Load() {
		d.spoke.Store(true)
	}
	return n, err
}

func newSSHDoors(now func() time.Time) *sshDoors {
	return &sshDoors{now: now, by: map[netip.Prefix]int{}, failures: map[netip.Prefix]budget{}}
}

// addressOf is whom a connection counts for.
func addressOf(conn net.Conn) netip.Prefix {
	at, err := netip.ParseAddrPort(conn.RemoteAddr().String())
	if err != nil {
		return netip.Prefix{}
	}
	address := at.Addr().Unmap().WithZone("")
	bits := address.BitLen()
	if address.Is6() {
		bits = sshIPv6Network
	}
	prefix, _ := address.Prefix(bits)
	return prefix
}

// enter lets a connection in, or says why not.
func (d *sshDoors) enter(conn net.Conn) (*sshDoor, error) {
	door := &sshDoor{Conn: conn, address: addressOf(conn)}
	d.mu.Lock()
	defer d.mu.Unlock()
	if left := d.budget(door.address); left < 1 {
		return nil, carrel.Errorf(carrel.CodeExhausted, "too_many_failures", "Too many logins from your address have failed; wait a minute.")
	}
	if d.by[door.address] >= sshMaxHandshakesPer && !d.evict(&door.address) || len(d.inside) >= sshMaxHandshakes && !d.evict(nil) {
		return nil, carrel.Errorf(carrel.CodeExhausted, "too_many_handshakes", "Too many connections are logging in at this moment; try again.")
	}
	d.inside = append(d.inside, door)
	d.by[door.address]++
	return door, nil
}

// evict closes the connection that has been silent for longest, of one address or of the one that has most, and
// reports whether there was one. d.mu is held.
func (d *sshDoors) evict(address *netip.Prefix) bool {
	var oldest *sshDoor
	for _, one := range d.inside {
		switch {
		case one.spoke.Load(), address != nil && one.address != *address:
		case oldest == nil, address == nil && d.by[one.address] > d.by[oldest.address]:
			oldest = one
		}
	}
	if oldest == nil {
		return false
	}
	d.remove(oldest)
	_ = oldest.Conn.Close()
	return true
}

func (d *sshDoors) remove(door *sshDoor) {
	if door.left {
		return
	}
	door.left = true
	for i, one := range d.inside {
		if one == door {
			d.inside = append(d.inside[:i], d.inside[i+1:]...)
			break
		}
	}
	if d.by[door.address]--; d.by[door.address] == 0 {
		delete(d.by, door.address)
	}
}

// leave ends the time of logging in; failed: keys were offered and none was good.
func (d *sshDoors) leave(door *sshDoor, failed bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.remove(door)
	if failed {
		left := d.budget(door.address)
		if _, known := d.failures[door.address]; !known && len(d.failures) >= maxSSHAddress {
			clear(d.failures)
		}
		d.failures[door.address] = budget{left: left - 1, at: d.now()}
	}
}

// budget is how many logins of an address may still fail. d.mu is held.
func (d *sshDoors) budget(address netip.Prefix) float64 {
	b, known := d.failures[address]
	if !known {
		return sshFailBurst
	}
	left := b.left + max(0, d.now().Sub(b.at).Seconds()/sshFailRefill.Seconds())
	if left >= sshFailBurst {
		delete(d.failures, address)
		return sshFailBurst
	}
	return left
}
