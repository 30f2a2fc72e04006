// Package gateway is the front door: it owns the public HTTP port, serves the data plane of boxes, and
// passes the rest of the API on to control. It carries bytes: it must not know PostgreSQL, must not decide
// who may do what (tickets say that, and control signs them), and what it has learned from control it keeps on
// disk, so that it works on, also after a restart, while control is away. Words: a route says behind which
// node's proxy the live run of a box is; a tunnel is one connection through that proxy into a box; an exchange
// turns an API token into a ticket.
package gateway
