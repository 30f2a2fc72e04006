package netpool

import (
	"fmt"
	"net"
	"slices"
	"sync"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// firewall is one nftables table of this instance. Every network is in a set of interface, address of the box
// and address of the host; what does not fit an entry is dropped before the machine looks at it.
//
//	chain pre (prerouting, raw):   interface of ours: only (interface, source, destination) of the set, TCP
//	                               that opens no connection; all else is dropped
//	chain in (input):              interface of ours: only what belongs to a connection that the host opened
//	chain fwd (forward):           nothing from or to an interface of ours
//	chain out (output):            to an interface of ours only TCP: to the agent's port, which wants a key, from everybody; to other
//	                               ports from the proxy's user, and what goes on with a connection that this user opened
type firewall struct {
	table *nftables.Table
	set   *nftables.Set
	tag   string

	// batches is held while one change is made, so that known is what the kernel has.
	batches sync.Mutex
	known   map[string]bool
}

const interfaceBytes = 16 // IFNAMSIZ

func newFirewall(tag string, dialer *int, live []Network) (*firewall, error) {
	c, err := nftables.New()
	if err != nil {
		return nil, fmt.Errorf("nftables: %w", err)
	}
	f := &firewall{tag: tag, known: map[string]bool{}, table: &nftables.Table{Family: nftables.TableFamilyINet, Name: "carrel_" + tag}}
	// Adding before deleting makes the deletion safe when there is none. All of it is one transaction: boxes that
	// run have rules at every moment.
	c.AddTable(f.table)
	c.DelTable(f.table)
	c.AddTable(f.table)
	keyType, err := nftables.ConcatSetType(nftables.TypeIFName, nftables.TypeIPAddr, nftables.TypeIPAddr)
	if err != nil {
		return nil, fmt.Errorf("nftables: %w", err)
	}
	f.set = &nftables.Set{Table: f.table, Name: "boxes", KeyType: keyType, Concatenation: true}
	var elements []nftables.SetElement
	for _, n := range live {
		elements = append(elements, element(n))
		f.known[n.Name] = true
	}
	if err := c.AddSet(f.set, elements); err != nil {
		return nil, fmt.Errorf("nftables: %w", err)
	}
	chain := func(name string, hook *nftables.ChainHook, priority nftables.ChainPriority) *nftables.Chain {
		return c.AddChain(&nftables.Chain{Table: f.table, Name: name, Type: nftables.ChainTypeFilter, Hooknum: hook, Priority: &priority})
	}
	rule := func(chain *nftables.Chain, exprs ...[]expr.Any) {
		c.AddRule(&nftables.Rule{Table: f.table, Chain: chain, Exprs: slices.Concat(exprs...)})
	}
	// A little before the usual priorities, so that no other table's accept comes first in time; an accept
	// elsewhere does not undo a drop here in any case.
	pre := chain("pre", nftables.ChainHookPrerouting, *nftables.ChainPriorityRaw-1)
	in := chain("in", nftables.ChainHookInput, *nftables.ChainPriorityFilter-1)
	fwd := chain("fwd", nftables.ChainHookForward, *nftables.ChainPriorityFilter-1)
	out := chain("out", nftables.ChainHookOutput, *nftables.ChainPriorityFilter-1)
	ours, to := f.ours(expr.MetaKeyIIFNAME), f.ours(expr.MetaKeyOIFNAME)
	drop, accept := verdict(expr.VerdictDrop), verdict(expr.VerdictAccept)

	rule(pre, ours, notEqual(meta(expr.MetaKeyNFPROTO), []byte{unix.NFPROTO_IPV4}), drop)
	rule(pre, ours, f.notInSet(), drop)
	rule(pre, ours, notEqual(meta(expr.MetaKeyL4PROTO), []byte{unix.IPPROTO_TCP}), drop)
	const syn, synAck = 0x02, 0x12
	rule(pre, ours, equal(slices.Concat(transport(13, 1), mask(synAck)), []byte{syn}), drop)
	established := binaryutil.NativeEndian.PutUint32(expr.CtStateBitESTABLISHED)
	state := []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: established, Xor: make([]byte, 4)},
	}
	rule(in, ours, equal(state, make([]byte, 4)), drop)
	rule(fwd, ours, drop)
	rule(fwd, to, drop)
	tcp := slices.Concat(to, equal(meta(expr.MetaKeyNFPROTO), []byte{unix.NFPROTO_IPV4}), equal(meta(expr.MetaKeyL4PROTO), []byte{unix.IPPROTO_TCP}))
	rule(out, tcp, equal(transport(2, 2), binaryutil.BigEndian.PutUint16(AgentPort)), accept)
	if dialer != nil {
		rule(out, tcp, equal(meta(expr.MetaKeySKUID), binaryutil.NativeEndian.PutUint32(uint32(*dialer))), accept)
		rule(out, tcp, notEqual(state, make([]byte, 4)), accept) // a socket that was closed has no user any more
	}
	rule(out, to, drop)
	if err := c.Flush(); err != nil {
		return nil, fmt.Errorf("nftables: set up the table %s: %w", f.table.Name, err)
	}
	return f, nil
}

// ours matches interfaces whose name begins with the instance's tag.
func (f *firewall) ours(key expr.MetaKey) []expr.Any {
	return equal(meta(key), []byte(f.tag))
}

// notInSet matches IPv4 packets whose interface, source and destination are no entry of the set.
func (f *firewall) notInSet() []expr.Any {
	// Registers of 4 bytes: the name takes 8 to 11, the addresses follow.
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 8},
		&expr.Payload{DestRegister: 12, Base: expr.PayloadBaseNetworkHeader, Offset: 12, Len: 4},
		&expr.Payload{DestRegister: 13, Base: expr.PayloadBaseNetworkHeader, Offset: 16, Len: 4},
		&expr.Lookup{SourceRegister: 8, SetName: f.set.Name, SetID: f.set.ID, Invert: true},
	}
}

func element(n Network) nftables.SetElement {
	key := make([]byte, interfaceBytes, interfaceBytes+8)
	copy(key, n.Name)
	key = append(key, net.ParseIP(n.Box).To4()...)
	key = append(key, net.ParseIP(n.Host).To4()...)
	return nftables.SetElement{Key: key}
}

// learn lets a network's box answer the host.
func (f *firewall) learn(n Network) error {
	f.batches.Lock()
	defer f.batches.Unlock()
	if f.known[n.Name] {
		return nil
	}
	err := batch("add "+n.Name, func(c *nftables.Conn) error {
		return c.SetAddElements(f.set, []nftables.SetElement{element(n)})
	})
	if err == nil {
		f.known[n.Name] = true
	}
	return err
}

// forget takes learn back.
func (f *firewall) forget(n Network) error {
	f.batches.Lock()
	defer f.batches.Unlock()
	if !f.known[n.Name] {
		return nil
	}
	err := batch("remove "+n.Name, func(c *nftables.Conn) error {
		return c.SetDeleteElements(f.set, []nftables.SetElement{element(n)})
	})
	if err == nil {
		delete(f.known, n.Name)
	}
	return err
}

func batch(what string, fill func(*nftables.Conn) error) error {
	c, err := nftables.New()
	if err == nil {
		err = fill(c)
	}
	if err == nil {
		err = c.Flush()
	}
	if err != nil {
		return fmt.Errorf("nftables: %s: %w", what, err)
	}
	return nil
}

// removeTable takes every rule away.
func (f *firewall) removeTable() error {
	return batch("remove the table", func(c *nftables.Conn) error {
		c.AddTable(f.table) // so that there is one to remove
		c.DelTable(f.table)
		return nil
	})
}

func meta(key expr.MetaKey) []expr.Any { return []expr.Any{&expr.Meta{Key: key, Register: 1}} }

func transport(offset, length uint32) []expr.Any {
	return []expr.Any{&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: length}}
}

func mask(bits byte) []expr.Any {
	return []expr.Any{&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 1, Mask: []byte{bits}, Xor: []byte{0}}}
}

func equal(load []expr.Any, data []byte) []expr.Any {
	return slices.Concat(load, []expr.Any{&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: data}})
}

func notEqual(load []expr.Any, data []byte) []expr.Any {
	return slices.Concat(load, []expr.Any{&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: data}})
}

func verdict(kind expr.VerdictKind) []expr.Any { return []expr.Any{&expr.Verdict{Kind: kind}} }
