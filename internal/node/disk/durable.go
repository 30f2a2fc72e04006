package disk

import (
	"context"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// HashDurably hashes a file that was just written, as it reads now, and makes it durable: hashing takes the processor and meanwhile the content
// is on its way to the disk. What early (nil: nothing) hashed of the file while it was written is only compared with
// what the file holds now, which takes an eighth of the time. Whether the disk gives back what it was given is seen by Verify.
func HashDurably(ctx context.Context, f *os.File, early *Early) (Tree, error) {
	info, err := f.Stat()
	if err != nil {
		return Tree{}, err
	}
	t := newTree(info.Size())
	known := early.take(info, &t)
	// All of it begins its way to the disk now.
	if err := unix.SyncFileRange(int(f.Fd()), 0, 0, unix.SYNC_FILE_RANGE_WRITE); err != nil {
		return Tree{}, fmt.Errorf("begin to write back: %w", err)
	}
	blocks, err := dataBlocks(f, t.Size)
	if err != nil {
		return Tree{}, err
	}
	for _, block := range known.without(blocks) { // it was written with something else, or the file was cut
		t.Blocks[block], t.Fast[block] = "", 0
	}
	err = inParallel(ctx, hashWorkers, blocks, func(r *blockReader, block int64) error {
		if known[block] {
			if same, err := r.same(f, &t, block); err != nil || same {
				return err
			}
		}
		return r.hash(ctx, f, &t, block)
	})
	if err != nil {
		return Tree{}, err
	}
	// Waits for what is not on the disk yet, adds the file's metadata and empties the disk's own cache.
	if err := unix.Fdatasync(int(f.Fd())); err != nil {
		return Tree{}, fmt.Errorf("sync: %w", err)
	}
	return t, nil
}
