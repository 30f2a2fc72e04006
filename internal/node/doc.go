// Package node is the daemon that has boxes on one machine: it watches what control wants of the machine,
// writes that to a ledger on disk, acts and reports. It must not know PostgreSQL or users, and parses
// nothing that a box wrote: its unprivileged proxy (package proxy) talks to the agents.
//
// # How it hangs together
//
// link.go carries the desired set in and the reports out; ledger.go keeps on disk what must survive; manager.go
// has one worker for each run; step.go decides what a run needs next, as a pure function; run.go,
// capture.go and salvage.go do it; recover.go finds out what was going on when a process starts; facts.go
// says what the machine is and has.
//
// # Words
//
// An order is what control wants of a run (run, pause, stop, destroy). A stage is how far the
// ledger knows the run to be; a phase is what was told to control. A capture is a snapshot in the making: a
// directory tmp-ID; it is sealed once it is complete, verified and has its final name; a dead one is a sealed one
// that was taken back because its box went on. To salvage is to save the files of a run whose sandbox died.
package node
