package disk

import (
	"context"
	"fmt"
	"os"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

const (
	// regionBlocks is how many blocks are hashed, written and read back together.
	regionBlocks = 16
	// durableWorkers is more than the cores that hashing may take, so that while some regions are on their way to the
	// disk or back others are hashed.
	durableWorkers = hashWorkers + 2
)

// HashDurably hashes a file that was just written, makes it durable, reads it again from the disk and compares. The
// three overlap region by region: hashing takes the processor and the others the disk. A file that reads otherwise
// than it was written is ErrDamaged. What early (nil: nothing) hashed of the file while it was written is only compared with
// what the file holds now, which takes an eighth of the time.
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
	holes := known.without(blocks)
	for _, block := range holes { // it was written with something else, or the file was cut
		t.Blocks[block], t.Fast[block] = "", 0
	}
	regions := cut(blocks)
	group, groupCtx := errgroup.WithContext(ctx)
	var next atomic.Int64
	for range min(durableWorkers, len(regions)) {
		group.Go(func() error {
			r := newBlockReader()
			for groupCtx.Err() == nil {
				i := next.Add(1) - 1
				if i >= int64(len(regions)) {
					return nil
				}
				if err := t.hashRegion(groupCtx, f, regions[i], r, known); err != nil {
					return err
				}
				if err := t.readBack(groupCtx, f, regions[i], r); err != nil {
					return err
				}
			}
			return groupCtx.Err()
		})
	}
	if err := group.Wait(); err != nil {
		return Tree{}, err
	}
	// The regions are on the disk; this adds the file's metadata and empties the disk's own cache.
	if err := unix.Fdatasync(int(f.Fd())); err != nil {
		return Tree{}, fmt.Errorf("sync: %w", err)
	}
	return t, nil
}

// cut makes regions of blocks that follow each other.
func cut(blocks []int64) [][]int64 {
	var regions [][]int64
	for from := 0; from < len(blocks); {
		to := from + 1
		for to < len(blocks) && to-from < regionBlocks && blocks[to] == blocks[to-1]+1 {
			to++
		}
		regions = append(regions, blocks[from:to])
		from = to
	}
	return regions
}

// hashRegion hashes some blocks as the file holds them now, those that are known by comparing.
func (t *Tree) hashRegion(ctx context.Context, f *os.File, blocks []int64, r *blockReader, known blockSet) error {
	for _, block := range blocks {
		if err := ctx.Err(); err != nil {
			return err
		}
		if known[block] {
			if same, err := r.same(f, t, block); err != nil {
				return err
			} else if same {
				continue
			}
		}
		if err := r.hash(ctx, f, t, block); err != nil {
			return err
		}
	}
	return nil
}

// readBack brings a region to the disk and compares what the disk has with what was hashed.
func (t *Tree) readBack(ctx context.Context, f *os.File, blocks []int64, r *blockReader) error {
	offset, length := blocks[0]*BlockBytes, int64(len(blocks))*BlockBytes
	const wait = unix.SYNC_FILE_RANGE_WAIT_BEFORE | unix.SYNC_FILE_RANGE_WRITE | unix.SYNC_FILE_RANGE_WAIT_AFTER
	if err := unix.SyncFileRange(int(f.Fd()), offset, length, wait); err != nil {
		return fmt.Errorf("write back: %w", err)
	}
	// What is clean now leaves the page cache, so that the disk is read; all of the region is asked for at once. Reading past
	// the page cache takes a tenth less processor time, but half as long again: fewer reads are under way.
	for _, advice := range []int{unix.FADV_DONTNEED, unix.FADV_WILLNEED} {
		if err := unix.Fadvise(int(f.Fd()), offset, length, advice); err != nil {
			return fmt.Errorf("drop the cache: %w", err)
		}
	}
	for _, block := range blocks {
		if err := ctx.Err(); err != nil {
			return err
		}
		same, err := r.same(f, t, block)
		if err == nil && !same {
			err = fmt.Errorf("%w: block %d reads otherwise than it was written", ErrDamaged, block)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
