// Package store is everything that Carrel keeps in PostgreSQL: the only package with SQL in it. Each
// method of Store is one transaction, named for what it does; none waits for a machine. It decides nothing
// that a user or an operator could ask for: it checks what must hold together (names, epochs, leases, capacity)
// under the locks that make the check true, and answers a *carrel.Error where a person did something that
// cannot be, ErrLeaseLost, ErrChanged or ErrNoRoom where a reconciler must look again.
//
// Words: a scope is whose rows a transaction may see, enforced by row-level security; a box is due when a
// reconciler may have something to do for it; a node's revision is raised by every transaction that changes what
// the node shall do; a wake-up is a hint that something changed, and nothing depends on its arrival.
//
// What a transaction sends, and when, is in pipeline.go: a query that answers nothing (sqlc's :exec) goes with the next one that does.
//
// Locks are always taken in this order: lease, boxes by id, runs, snapshots, what boxes are used for (box_activity) by box, nodes by id.
package store
