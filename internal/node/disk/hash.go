package disk

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"sync/atomic"

	"github.com/cespare/xxhash/v2"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// BlockBytes is the size of the blocks of a hash tree.
const BlockBytes = 1 << 20

// hashWorkers is how many cores hashing may take.
const hashWorkers = 2

// ErrDamaged is in the chain of what Check answers when a file is not what it was.
var ErrDamaged = errors.New("the file is damaged")

// Tree is the hash of a file: for each block of BlockBytes, the last one shorter, a SHA-256, by which the block is
// known anywhere, and an XXH64, by which damage is found at the speed of memory: reading 256 MB again and comparing
// takes 25 ms of a core with it and 200 ms with SHA-256 (measured), on machines where boxes want the
// cores. Whoever could forge one could write the other, too. Blocks that lie wholly in holes of a sparse file have
// the empty string: they read as zeros, and the check looks only that they are holes or zeros still.
type Tree struct {
	Size   int64    `json:"size"`
	Blocks []string `json:"blocks"`
	Fast   []uint64 `json:"fast"`
}

func newTree(size int64) Tree {
	n := (size + BlockBytes - 1) / BlockBytes
	return Tree{Size: size, Blocks: make([]string, n), Fast: make([]uint64, n)}
}

// Hash reads a file, in parallel. Holes are not read.
func Hash(ctx context.Context, f *os.File) (Tree, error) {
	info, err := f.Stat()
	if err != nil {
		return Tree{}, err
	}
	t := newTree(info.Size())
	data, err := dataBlocks(f, t.Size)
	if err != nil {
		return Tree{}, err
	}
	return t, hashBlocks(ctx, f, &t, data)
}

// hashBlocks fills in the hashes of some blocks.
func hashBlocks(ctx context.Context, f *os.File, t *Tree, blocks []int64) error {
	return t.inParallel(ctx, f, blocks, func(block int64, content []byte) error {
		sum := sha256.Sum256(content)
		t.Blocks[block], t.Fast[block] = hex.EncodeToString(sum[:]), xxhash.Sum64(content)
		return nil
	})
}

// Check reads a file and compares it with its tree, in parallel. A difference is ErrDamaged.
func (t Tree) Check(ctx context.Context, f *os.File) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if n := (t.Size + BlockBytes - 1) / BlockBytes; info.Size() != t.Size || int64(len(t.Blocks)) != n || int64(len(t.Fast)) != n {
		return fmt.Errorf("%w: it has %d bytes instead of %d", ErrDamaged, info.Size(), t.Size)
	}
	data, err := dataBlocks(f, t.Size)
	if err != nil {
		return err
	}
	present := make(map[int64]bool, len(data))
	for _, b := range data {
		present[b] = true
	}
	for b, want := range t.Blocks {
		if want != "" && !present[int64(b)] {
			data = append(data, int64(b)) // content that became a hole: it hashes to something else, or was zeros
		}
	}
	return t.inParallel(ctx, f, data, func(block int64, content []byte) error {
		if t.Blocks[block] == "" {
			for _, c := range content {
				if c != 0 {
					return fmt.Errorf("%w: block %d was empty", ErrDamaged, block)
				}
			}
			return nil
		}
		if xxhash.Sum64(content) != t.Fast[block] {
			return fmt.Errorf("%w: block %d reads otherwise than it was written", ErrDamaged, block)
		}
		return nil
	})
}

// dataBlocks lists the blocks that are not wholly holes, rising.
func dataBlocks(f *os.File, size int64) ([]int64, error) {
	var blocks []int64
	next := int64(0) // the first block that is not listed yet
	for at := int64(0); at < size; {
		from, err := unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("find data: %w", err)
		}
		to, err := unix.Seek(int(f.Fd()), from, unix.SEEK_HOLE)
		if err != nil {
			return nil, fmt.Errorf("find holes: %w", err)
		}
		for b := max(next, from/BlockBytes); b*BlockBytes < min(to, size); b++ {
			blocks = append(blocks, b)
			next = b + 1
		}
		at = to
	}
	return blocks, nil
}

// inParallel reads some blocks with several workers.
func (t *Tree) inParallel(ctx context.Context, f *os.File, blocks []int64, visit func(int64, []byte) error) error {
	group, ctx := errgroup.WithContext(ctx)
	var next atomic.Int64
	for range min(hashWorkers, len(blocks)) {
		group.Go(func() error {
			buf := make([]byte, BlockBytes)
			for ctx.Err() == nil {
				i := next.Add(1) - 1
				if i >= int64(len(blocks)) {
					return nil
				}
				if err := t.each(ctx, f, blocks[i:i+1], buf, visit); err != nil {
					return err
				}
			}
			return ctx.Err()
		})
	}
	return group.Wait()
}
