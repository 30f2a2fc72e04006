// Package notebook executes code in the kernels of a box for whoever asks, keeps what came of it, and owns the notebooks that are open. What
// is executed goes on whether or not anybody looks: outputs are entries of a journal on the box's disk, from which every watcher
// reads at its own pace, and are written into the notebook. It must not trust what kernels send or files have, since both are the
// box user's while the agent is root; and nobody who watches may ever keep a kernel waiting.
//
// # Words
//
// An execution is code that was, is or will be executed once. A runner has the queue of one kernel. Outputs are what an execution has
// shown so far, as nbformat has it. A document is a notebook in memory; it is open while anybody needs it. An event is what watchers get: one
// entry of the journal.
//
// # Locks
//
// Service.mu guards everything that is in memory, documents and executions alike, so that events have the order of what they tell. It
// is never held while a file is touched or a kernel is waited for. Kernel.mu and Client.mu of package kernel may be taken under it.
package notebook
