package disk

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/cespare/xxhash/v2"
	"golang.org/x/sys/unix"
)

const (
	// earlyFileBytes is the smallest file that is hashed while it is written.
	earlyFileBytes = 8 << 20
	// earlyBlocks are mapped at once.
	earlyBlocks = 8
	// earlyPause is between two looks.
	earlyPause = 20 * time.Millisecond
)

// Early is what HashEarly found: the hashes of the first blocks of files. They are a guess, which HashDurably compares
// with what the files hold in the end.
type Early struct {
	files map[fileID][]earlyBlock
}

type fileID struct{ device, inode uint64 }

type earlyBlock struct {
	sha  string
	fast uint64
}

// blockSet has numbers of blocks.
type blockSet map[int64]bool

// HashEarly hashes the large files below dir while another process writes them, and sends what is there on its way to the
// disk, until ctx ends. It takes only the processor time that nobody else wants. What goes wrong is left to HashDurably.
func HashEarly(ctx context.Context, dir string) *Early {
	e := &Early{files: map[fileID][]earlyBlock{}}
	over := make(chan struct{})
	go func() {
		defer close(over)
		var back Background
		back.StandBack()
		defer back.End()
		context.AfterFunc(ctx, back.Hurry) // at its end it is waited for
		ticker := time.NewTicker(earlyPause)
		defer ticker.Stop()
		for {
			select {
			case <-ticker.C:
				e.look(ctx, dir)
			case <-ctx.Done():
				return
			}
		}
	}()
	<-over
	return e
}

// look hashes what is new since the last look.
func (e *Early) look(ctx context.Context, dir string) {
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
		if info, err := f.Stat(); err == nil && info.Size() >= earlyFileBytes {
			e.follow(ctx, f, info)
		}
		return nil
	})
}

// follow hashes the next whole blocks of a file, but the last one: it may be in writing.
func (e *Early) follow(ctx context.Context, f *os.File, info os.FileInfo) {
	id, whole := idOf(info), info.Size()/BlockBytes-1
	for ctx.Err() == nil {
		at := int64(len(e.files[id]))
		n := min(earlyBlocks, whole-at)
		if n <= 0 {
			return
		}
		found, err := hashMapped(ctx, f, at, n)
		e.files[id] = append(e.files[id], found...)
		if err != nil {
			return
		}
	}
}

// hashMapped hashes n blocks from one on, fewer when ctx ends. The file is mapped and not read: XFS lets nobody write to a
// file while it is read, so that its writer would wait for us, the longer the more we stand back.
func hashMapped(ctx context.Context, f *os.File, at, n int64) (found []earlyBlock, err error) {
	err = mapped(f, at*BlockBytes, n*BlockBytes, func(content []byte) error {
		for block := range n {
			fast, sha := xxhash.New(), sha256.New()
			for from := block * BlockBytes; from < (block+1)*BlockBytes; from += pieceBytes {
				if ctx.Err() != nil {
					return ctx.Err()
				}
				_, _ = fast.Write(content[from : from+pieceBytes]) // neither fails
				_, _ = sha.Write(content[from : from+pieceBytes])
			}
			found = append(found, earlyBlock{hex.EncodeToString(sha.Sum(nil)), fast.Sum64()})
		}
		return nil
	})
	return found, err
}

// take fills in what is known of a file, and says of which blocks that is.
func (e *Early) take(info os.FileInfo, t *Tree) blockSet {
	known := blockSet{}
	if e == nil {
		return known
	}
	for i, found := range e.files[idOf(info)] {
		if int64(i+1)*BlockBytes <= t.Size {
			t.Blocks[i], t.Fast[i] = found.sha, found.fast
			known[int64(i)] = true
		}
	}
	return known
}

// without lists what is in s and not among blocks.
func (s blockSet) without(blocks []int64) []int64 {
	listed := make(blockSet, len(blocks))
	for _, block := range blocks {
		listed[block] = true
	}
	var rest []int64
	for block := range s {
		if !listed[block] {
			rest = append(rest, block)
		}
	}
	return rest
}

func idOf(info os.FileInfo) fileID {
	s, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		panic("disk: a file has no inode number") // a fault of the build: this is Linux
	}
	return fileID{s.Dev, s.Ino}
}
