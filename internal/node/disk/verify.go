package disk

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"unsafe"

	"github.com/cespare/xxhash/v2"
	"golang.org/x/sys/unix"
)

// verifyWorkers is how many reads are under way at once. Nobody waits for them, and who does something else with the disk meanwhile should notice little.
const verifyWorkers = 2

// Verify reads a file that was made durable past the page cache, and compares what the disk gives with the tree. What it gives otherwise is written once more
// from the page cache, where it is still as it was, and read again; mended is of how many blocks that is so. What cannot be
// mended is ErrDamaged. f is open for reading and writing, and nobody else writes to it.
//
// The page cache keeps what it has: whoever opens the file next does not wait for the disk.
func (t Tree) Verify(ctx context.Context, f *os.File) (mended int, err error) {
	// By the descriptor, since the name may have become another file's.
	direct, err := os.OpenFile("/proc/self/fd/"+strconv.Itoa(int(f.Fd())), os.O_RDONLY|unix.O_DIRECT, 0)
	if errors.Is(err, unix.EINVAL) {
		return 0, nil // it lies in memory
	}
	if err != nil {
		return 0, fmt.Errorf("open past the page cache: %w", err)
	}
	defer direct.Close()
	var blocks []int64
	for block, hash := range t.Blocks {
		if hash != "" {
			blocks = append(blocks, int64(block))
		}
	}
	bad := make(chan int64, len(blocks))
	err = inParallel(ctx, verifyWorkers, blocks, func(r *blockReader, block int64) error {
		same, err := r.sameOnDisk(direct, &t, block)
		if err == nil && !same {
			bad <- block
		}
		return err
	})
	close(bad)
	if err != nil {
		return 0, err
	}
	r := newBlockReader()
	for block := range bad {
		if err := t.rewrite(f, block); err != nil {
			return mended, err
		}
		same, err := r.sameOnDisk(direct, &t, block)
		if err == nil && !same {
			err = fmt.Errorf("%w: the disk gives block %d otherwise than it was written, also when it is written again", ErrDamaged, block)
		}
		if err != nil {
			return mended, err
		}
		mended++
	}
	return mended, nil
}

// sameOnDisk reports whether the disk gives a block as its fast hash says. direct reads past the page cache.
func (r *blockReader) sameOnDisk(direct *os.File, t *Tree, block int64) (bool, error) {
	if r.aligned == nil {
		r.aligned = pages(BlockBytes)
	}
	size := min(BlockBytes, t.Size-block*BlockBytes)
	for n := 0; int64(n) < size; {
		got, err := unix.Pread(int(direct.Fd()), r.aligned[n:], block*BlockBytes+int64(n))
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EIO):
			return false, nil // the disk does not give it at all
		case err != nil:
			return false, fmt.Errorf("read block %d from the disk: %w", block, err)
		case got == 0:
			return false, nil // the file is shorter
		}
		n += got
	}
	return xxhash.Sum64(r.aligned[:size]) == t.Fast[block], nil
}

// pages makes n bytes of memory that begin at a page, as reads past the page cache need it.
func pages(n int) []byte {
	size := os.Getpagesize()
	memory := make([]byte, n+size)
	skip := -int(uintptr(unsafe.Pointer(unsafe.SliceData(memory)))) & (size - 1)
	return memory[skip : skip+n : skip+n]
}

// rewrite writes a block once more as the page cache has it.
func (t *Tree) rewrite(f *os.File, block int64) error {
	content := make([]byte, min(BlockBytes, t.Size-block*BlockBytes))
	if _, err := f.ReadAt(content, block*BlockBytes); err != nil {
		return fmt.Errorf("read block %d: %w", block, err)
	}
	if xxhash.Sum64(content) != t.Fast[block] {
		return fmt.Errorf("%w: block %d reads otherwise than it was written", ErrDamaged, block)
	}
	if _, err := f.WriteAt(content, block*BlockBytes); err != nil {
		return fmt.Errorf("write block %d again: %w", block, err)
	}
	if err := unix.Fdatasync(int(f.Fd())); err != nil {
		return fmt.Errorf("sync: %w", err)
	}
	return nil
}
