// Package image makes root file systems: from Debian packages by a definition, or from an OCI image. The
// result is one EROFS file named by its SHA-256, with a description in JSON beside it, in the directory
// of a Builder. It must not know of boxes, templates or the control plane, and never unpacks a stranger's
// image on the host's file system: layers are indexed as tar files and merged in memory, and only names,
// owners and places are held there.
//
// Words: a definition is a YAML file that says what a Debian image contains; its key is the hash by which
// a build is found again; a layer is one tar file of an OCI image; a whiteout is an entry that hides a
// name of the layers below; a tree is the merged file system before it is written.
package image
