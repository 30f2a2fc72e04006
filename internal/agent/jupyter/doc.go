// Package jupyter serves Jupyter Server's API (its REST and its WebSockets) from within a box, so that JupyterLab, VS Code and whatever else speaks to
// a Jupyter server can use the box's kernels, files and terminals. It must not decide who may ask: whoever reaches it has the rights
// of the box's user. It touches files only through Config.AsUser, since the agent is root and the user is not.
//
// # Words
//
// An API path is a path below the root, the user's home, as Jupyter has it: names with slashes between them and none at the ends. A model is the
// JSON that stands for a file, kernel, session or terminal. A session binds an API path to a kernel. A channel is one of shell, control, stdin and
// iopub. A viewer is one client's place at a kernel, which outlives the client's connection for a while: what the kernel says meanwhile is kept for it.
package jupyter
