// Package journal keeps a sequence of entries on a disk that is not trusted: in segments of framed, checksummed records of which the oldest
// are dropped. It must not know what an entry says, and never keeps who appends waiting for the disk.
//
// # Words
//
// An entry has a sequence number, which rises by 1. A cursor names an entry: the journal's id and the sequence number. A journal gets a new id whenever
// it is opened or is restored from a copy, since entries of before may have been seen that are not on the disk, so that a cursor never means two entries. A gap is a place in a
// reader's way at which entries are no longer kept. The tail are the newest entries, in memory.
package journal
