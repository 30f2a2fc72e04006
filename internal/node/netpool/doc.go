// Package netpool prepares networks for boxes before they are needed: a network namespace, a veth pair,
// addresses, static neighbours and the firewall rules on the host's end of the pair. By those rules a box can only answer connections
// that the host opens: everybody there to its agent's port, one user of the host to any other. It reaches neither the host, nor other
// boxes, nor anything beyond. The package knows nothing of boxes and runs; who holds which network is the
// caller's ledger. Words: a network is one prepared namespace with its pair; an instance is one node daemon,
// several of which may share a machine.
package netpool
