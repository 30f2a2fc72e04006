// Package service is the process plumbing that every role of carreld shares: logging, the operations
// listener (/healthz, /readyz, /metrics), HTTP serving that drains, secrets in files, and the
// supervision of child processes for `carreld up`. It knows nothing of boxes, and no role's package
// imports another through it.
package service
