// Package carreltest starts the whole of Carrel in one process, for tests: a real PostgreSQL, replicas of
// control and reconcile, gateways, and nodes with their proxies, on ports that the system picks. Only the runtime
// is the fake one; in its sandboxes the real agent runs commands as children of the test's process. It
// needs root, for the nodes' pools. It must not be imported by anything but tests.
//
// Words: a part is one of the processes that Carrel has in production; it can be started, stopped as a
// signal would, and killed, after which nothing that it still does reaches anybody. A wire is the only way from one part to
// another: it outlives both, spreads connections over the replicas behind it, and can be cut. What a sandbox has in
// memory and on its home is the fake's; the processes in it and the directory they see as home belong to the
// machine: processes end with their run, the directory stays with its box.
package carreltest
