// Package carrel is the vocabulary: boxes, runs, snapshots, their states and the one transition
// table, typed ids, error codes and limits. It knows nothing of transport, storage or machines, and
// imports only the standard library. Words: an intent is what a user wants of a box; an observation
// is what a node saw of a run; a state is what a person is shown, computed from the two.
package carrel
