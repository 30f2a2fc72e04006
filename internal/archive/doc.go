// Package archive packs directories into tar.zst streams and unpacks them: both ends of a copy use it, the agent in a box and the
// client on somebody's machine, and each must bear that the other one is hostile. It must not know boxes or protocols, and it
// gives itself no rights: whoever calls it has them.
//
// # What cannot happen
//
// Unpacking makes, changes and removes nothing outside of its directory, whatever the archive says and whoever changes the
// directory meanwhile: every step is made relative to an open directory, and a symbolic link in the way is an error, never
// followed. Links are made as the archive has them, absolute ones too. Devices, sockets and pipes are never made. A file appears
// under its name when all of it is there, or, if there was one before, in one step in its place.
//
// # Words
//
// The root of an archive is the entry "./": the directory that was packed itself. All other names are below it.
package archive
