package disk

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync/atomic"

	"github.com/cespare/xxhash/v2"
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
// than it was written is ErrDamaged.
func HashDurably(ctx context.Context, f *os.File) (Tree, error) {
	info, err := f.Stat()
	if err != nil {
		return Tree{}, err
	}
	t := newTree(info.Size())
	// All of it begins its way to the disk now.
	if err := unix.SyncFileRange(int(f.Fd()), 0, 0, unix.SYNC_FILE_RANGE_WRITE); err != nil {
		return Tree{}, fmt.Errorf("begin to write back: %w", err)
	}
	blocks, err := dataBlocks(f, t.Size)
	if err != nil {
		return Tree{}, err
	}
	regions := cut(blocks)
	group, groupCtx := errgroup.WithContext(ctx)
	var next atomic.Int64
	for range min(durableWorkers, len(regions)) {
		group.Go(func() error {
			buf := make([]byte, BlockBytes)
			for groupCtx.Err() == nil {
				i := next.Add(1) - 1
				if i >= int64(len(regions)) {
					return nil
				}
				if err := t.regionDurably(groupCtx, f, regions[i], buf); err != nil {
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

func (t *Tree) regionDurably(ctx context.Context, f *os.File, blocks []int64, buf []byte) error {
	if err := t.each(ctx, f, blocks, buf, func(block int64, content []byte) error {
		sum := sha256.Sum256(content)
		t.Blocks[block], t.Fast[block] = hex.EncodeToString(sum[:]), xxhash.Sum64(content)
		return nil
	}); err != nil {
		return err
	}
	offset, length := blocks[0]*BlockBytes, int64(len(blocks))*BlockBytes
	const wait = unix.SYNC_FILE_RANGE_WAIT_BEFORE | unix.SYNC_FILE_RANGE_WRITE | unix.SYNC_FILE_RANGE_WAIT_AFTER
	if err := unix.SyncFileRange(int(f.Fd()), offset, length, wait); err != nil {
		return fmt.Errorf("write back: %w", err)
	}
	// What is clean now leaves the page cache, so that the disk is read; all of the region is asked for at once.
	for _, advice := range []int{unix.FADV_DONTNEED, unix.FADV_WILLNEED} {
		if err := unix.Fadvise(int(f.Fd()), offset, length, advice); err != nil {
			return fmt.Errorf("drop the cache: %w", err)
		}
	}
	return t.each(ctx, f, blocks, buf, func(block int64, content []byte) error {
		if xxhash.Sum64(content) != t.Fast[block] {
			return fmt.Errorf("%w: block %d reads otherwise than it was written", ErrDamaged, block)
		}
		return nil
	})
}

// each reads some blocks, one after the other.
func (t *Tree) each(ctx context.Context, f *os.File, blocks []int64, buf []byte, visit func(int64, []byte) error) error {
	for _, b := range blocks {
		if err := ctx.Err(); err != nil {
			return err
		}
		offset := b * BlockBytes
		want := min(BlockBytes, t.Size-offset)
		n, err := f.ReadAt(buf[:want], offset)
		if err != nil && (!errors.Is(err, io.EOF) || int64(n) != want) {
			return fmt.Errorf("read block %d: %w", b, err)
		}
		if err := visit(b, buf[:want]); err != nil {
			return err
		}
	}
	return nil
}

// BeginWriteBack has what is written to the files below dir so far begin its way to the disk, and waits for nothing. It
// makes a later sync short, and so errors are left to that.
func BeginWriteBack(dir string) {
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return nil
		}
		f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
		if err != nil {
			return nil
		}
		defer f.Close()
		_ = unix.SyncFileRange(int(f.Fd()), 0, 0, unix.SYNC_FILE_RANGE_WRITE)
		return nil
	})
}
