// Package disk keeps a node's files where copies cost nothing: the pool is a file system with reflinks
// that holds homes, snapshots, images and the writes over images. It knows nothing of runs' states,
// networks or control, and never deletes what it was not told to. Words: a golden home is an empty,
// formatted ext4 image of one size from which new homes are cloned; a snapshot directory is immutable
// once it has its final name.
package disk
