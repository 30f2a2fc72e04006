package disk

import (
	"context"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// extent is a run of blocks of a file on the disk, in bytes.
type extent struct {
	logical, physical, length uint64
}

// fiemap is struct fiemap of linux/fiemap.h with room for some extents.
type fiemap struct {
	start, length        uint64
	flags, mapped, count uint32
	_                    uint32
	extents              [256]fiemapExtent
}

type fiemapExtent struct {
	logical, physical, length uint64
	_                         [2]uint64
	flags                     uint32
	_                         [3]uint32
}

const (
	fsIocFiemap     = 0xc020660b
	fiemapSync      = 1
	fiemapLast      = 1
	fiemapUnwritten = 0x800
	// Where the data lies is not known, so two files cannot be compared by it: unknown, delayed allocation,
	// encoded, encrypted, inline, tail.
	fiemapUnclear = 0x2 | 0x4 | 0x8 | 0x80 | 0x200 | 0x400
)

// extents lists where the content of a file lies, rising. ok is false when the file system does not say.
func extents(f *os.File) (list []extent, ok bool) {
	var m fiemap
	for {
		m.length, m.flags, m.count, m.mapped = ^uint64(0)-m.start, fiemapSync, uint32(len(m.extents)), 0
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), fsIocFiemap, uintptr(unsafe.Pointer(&m))); errno != 0 {
			return nil, false
		}
		if m.mapped == 0 {
			return list, true
		}
		for _, e := range m.extents[:m.mapped] {
			if e.flags&fiemapUnclear != 0 {
				return nil, false
			}
			if e.flags&fiemapUnwritten == 0 {
				list = append(list, extent{e.logical, e.physical, e.length})
			}
			m.start = e.logical + e.length
		}
		if m.extents[m.mapped-1].flags&fiemapLast != 0 {
			return list, true
		}
	}
}

// HashChanged is Hash for a file that was a clone of parent, whose tree is known: blocks that still lie at the
// same place of the disk as in parent have the same content, and are not read. So the cost is that of
// what was written since, not of the file's size.
func HashChanged(ctx context.Context, f, parent *os.File, known Tree) (Tree, error) {
	now, ok := extents(f)
	before, okBefore := extents(parent)
	if !ok || !okBefore {
		return Hash(ctx, f)
	}
	info, err := f.Stat()
	if err != nil {
		return Tree{}, err
	}
	t := newTree(info.Size())
	a, b := byBlock(now), byBlock(before)
	data, err := dataBlocks(f, t.Size)
	if err != nil {
		return Tree{}, err
	}
	var read []int64
	for _, block := range data {
		same := block < int64(min(len(known.Blocks), len(known.Fast))) && known.Blocks[block] != "" && min(t.Size, known.Size) >= (block+1)*BlockBytes &&
			equalPlaces(a[block], b[block])
		if same {
			t.Blocks[block], t.Fast[block] = known.Blocks[block], known.Fast[block]
		} else {
			read = append(read, block)
		}
	}
	if err := hashBlocks(ctx, f, &t, read); err != nil {
		return Tree{}, fmt.Errorf("hash: %w", err)
	}
	return t, nil
}

// byBlock cuts extents into the pieces that lie in each block of a hash tree.
func byBlock(list []extent) map[int64][]extent {
	m := map[int64][]extent{}
	for _, e := range list {
		for e.length > 0 {
			block := int64(e.logical / BlockBytes)
			n := min(e.length, uint64(block+1)*BlockBytes-e.logical)
			pieces := m[block]
			if k := len(pieces) - 1; k >= 0 && pieces[k].logical+pieces[k].length == e.logical && pieces[k].physical+pieces[k].length == e.physical {
				pieces[k].length += n // the same data in one extent or two is the same place
			} else {
				m[block] = append(pieces, extent{e.logical, e.physical, n})
			}
			e.logical, e.physical, e.length = e.logical+n, e.physical+n, e.length-n
		}
	}
	return m
}

func equalPlaces(a, b []extent) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}
