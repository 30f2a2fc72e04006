// Package proxy is the unprivileged neighbour of the node daemon: it talks to the agents in the boxes, so
// that the daemon, which is root, parses nothing that a box wrote. It checks the tickets of streams
// that gateways open and splices them to agents and to ports, asks agents whether they are ready, and tells them to be quiet
// for a snapshot. It must not need privileges or control: with what it keeps in its directory it serves on
// after its own restart while everything else is down.
//
// Words: a route says where the agent of a box's run is and with which key it is spoken to; a route is
// open when streams may be made; a stream is one CONNECT request of a gateway; the preface is the first
// line that an agent is sent.
package proxy
