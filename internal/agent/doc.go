// Package agent is PID 1 of every box: it starts and keeps commands, gives their output to whoever looks,
// connects streams to what listens in the box, ends the largest process before memory is out, and makes the
// box ready for a snapshot. It must not know nodes, tickets, users of the platform or where a box runs; it
// imports only its own protocol, the vocabulary and the standard kind of libraries, because it runs in every
// box. Whoever is root in a box owns its agent: nothing that it says may matter to anything but that box.
//
// # Words
//
// A process is a command that was started through the agent, with everything that it started. A viewer is
// one reader of its output with a cursor of its own. A target is what a connection asks for in its first
// line: a service of the agent (agent, session, control), tcp/HOST:PORT, udp/HOST:PORT, unix/PATH, or accept/ID, which fetches a
// connection that a listener took. A listener listens in the box for somebody outside, as long as they keep its stream open. A run is one life of the box, named by the identity;
// after a restore from memory the agent is in another run.
//
// # Output
//
// A pump reads each pipe or terminal into the ring of its stream, at absolute offsets. It waits for nobody, so
// that a slow viewer never slows a program or another viewer: a cursor that the ring has overtaken gets a Gap.
// There is one exception, because "exec cat file > copy" must be complete: the stream that started a process
// without a terminal (Run) is its owner. While the owner's connection lives, the pump keeps what it
// has not taken, and so the program waits as it would for any full pipe; after 10 seconds in which the owner took
// nothing it is a viewer like all others. When its connection breaks it is waited for, 15 seconds: the viewer that then
// attaches at an offset that is still kept is the owner. The ring of an owned process is larger, and three quarters of it are what its
// owner was given already, since that may have been lost on its way. Other viewers can be behind the owner, never ahead of the pump: they get
// everything that the program writes as it writes it, whatever pace that is.
//
// A process has ended when its first program has. Output that others of the process still write is kept for
// one second after that; then the streams end. A pipe that is still open is emptied without being kept, so
// that a program left in the background does not die of writing to it; a terminal is hung up.
//
// A process may be kept for a time after its last viewer has left; then it and its terminal are hung up.
//
// Rings share a budget. When it is used up, the output of processes that ended longest ago goes first.
package agent
