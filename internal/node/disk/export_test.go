package disk

import (
	"context"
	"os"
)

// LookEarly is one look of HashEarly, and how many blocks it hashed.
func LookEarly(ctx context.Context, dir string) (*Early, int) {
	e := &Early{files: map[fileID][]earlyBlock{}}
	e.look(ctx, dir)
	n := 0
	for _, blocks := range e.files {
		n += len(blocks)
	}
	return e, n
}

// HashMapped hashes the first n blocks of a file through a mapping, and says how many it came to.
func HashMapped(ctx context.Context, f *os.File, n int64) (int, error) {
	found, err := hashMapped(ctx, f, 0, n)
	return len(found), err
}

// CheckBlocks compares the first n blocks of a file with its tree, as Check does when it has looked at the file's size.
func CheckBlocks(ctx context.Context, t Tree, f *os.File, n int) error {
	var blocks []int64
	for block := range n {
		blocks = append(blocks, int64(block))
	}
	return t.checkRegion(ctx, f, blocks, newBlockReader())
}

// OnDisk is where the byte at an offset of a file lies on its disk; false if the file system does not say.
func OnDisk(f *os.File, offset int64) (int64, bool) {
	list, ok := extents(f)
	for _, e := range list {
		if at := uint64(offset); ok && e.logical <= at && at < e.logical+e.length {
			return int64(e.physical + at - e.logical), true
		}
	}
	return 0, false
}
