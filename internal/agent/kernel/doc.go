// Package kernel starts Jupyter kernels in a box, speaks Jupyter's messaging protocol (5.3) with them, and shares each of them
// among several clients. It does not know what is executed or where output goes: that is for its clients. It must not
// parse more of a message than its headers, because what clients get is compared with what other servers give, byte
// for byte; and it must believe nothing that a kernel sends, because a kernel is a program of the box's user while the agent is root.
//
// # Words
//
// A spec is a kernelspec: a file that says how a kernel is started. A kernel is a process with an identity: it stays the same
// kernel when its process is restarted. A link is a ZeroMQ connection to one of its sockets. A channel is one of shell, control,
// stdin and iopub. A client is one that uses a kernel: it gets everything of iopub, and of the other channels what answers its own
// requests. A client that does not take what comes is cut off, unless it is patient: then its kernel waits for it.
package kernel
