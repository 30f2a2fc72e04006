package gateway

import (
	"bytes"
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

const (
	// sshPreface begins the line by which `carrel ssh --stdio` says which box is meant, since ssh's user name cannot be made of
	// the name of the host. It comes before the client's identification, where RFC 4253 lets servers pass over lines.
	sshPreface    = "CARREL-BOX "
	maxSSHPreface = 255 // bytes, the end of the line included
)

// sshDoor is a connection of which it is known whether the client has said anything.
type sshDoor struct {
	net.Conn
	address netip.Prefix
	spoke   atomic.Bool
	left    bool // guarded by sshDoors.mu

	begun bool   // the rest is used by the reader alone
	box   string // that the preface names; empty: there was none
	first []byte // what was read with the preface
}

func (d *sshDoor) Read(p []byte) (int, error) {
	if !d.begun {
		d.begun = true
		if err := d.preface(); err != nil {
			return 0, err
		}
	}
	if len(d.first) > 0 {
		n := copy(p, d.first)
		d.first = d.first[n:]
		return n, nil
	}
	return d.Conn.Read(p)
}

// preface reads the beginning and takes the line of it that is Carrel's.
func (d *sshDoor) preface() error {
	buf := make([]byte, 0, maxSSHPreface)
	for {
		n, err := d.Conn.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		if n > 0 {
			d.spoke.Store(true)
		}
		if err != nil && n == 0 {
			return err
		}
		box, rest, more := parseSSHPreface(buf)
		if !more || len(buf) == cap(buf) {
			d.box, d.first = box, rest
			return nil
		}
	}
}

// parseSSHPreface takes the preface from the beginning of a connection; more: it is not there as a whole yet. What is no preface
// is left as it is.
func parseSSHPreface(data []byte) (box string, rest []byte, more bool) {
	if len(data) < len(sshPreface) {
		return "", data, bytes.HasPrefix([]byte(sshPreface), data)
	}
	line, ok := bytes.CutPrefix(data, []byte(sshPreface))
	if !ok {
		return "", data, false
	}
	name, rest, ended := bytes.Cut(line, []byte{'\n'})
	if !ended {
		return "", data, true
	}
	return string(bytes.TrimRight(name, "\r")), rest, false
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
	_ = oldest.Close()
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
