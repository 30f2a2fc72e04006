// Package reconcile brings boxes from what is to what is wanted. It reads PostgreSQL and writes
// PostgreSQL and must do nothing else: no machine is spoken to, no file is touched. Every decision is
// made by a pure function of what one read saw (planBox, place, judge) and applied in one transaction that is
// conditional on the lease and on the box being as it was seen, so that a reconciler that was
// overtaken, or that repeats itself, changes nothing. Words: a fleet is the nodes as one read saw them, with what was
// placed on them since; a shard is a part of the boxes, held by one reconciler at a time under a lease.
package reconcile
