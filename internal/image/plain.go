package image

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
)

// The writer of EROFS keeps a file that is smaller than a block beside its inode ("flat inline"), and has no
// option against it. gVisor maps a file into memory only if its data are in blocks of their own ("flat
// plain"): a program that maps an inline file, as every setlocale does, dies of SIGBUS. So the data of such
// files are moved to new blocks at the image's end. Directories and symbolic links stay as they are.
//
// The format is that of fs/erofs/erofs_fs.h of Linux, little-endian: erofs_super_block, erofs_inode_compact
// and erofs_inode_extended, erofs_dirent. Only what the writer uses of it is understood; anything else is an error.
const (
	erofsMagic     = 0xe0f5e1e2
	erofsBlockBits = 12
	erofsBlock     = 1 << erofsBlockBits
	// erofsSlot is the unit of a nid, the number of an inode: its place in the metadata.
	erofsSlot = 32

	superAt         = 1024 // in the image; the following are in the superblock
	superFeatures   = 8    // feature_compat, with a bit that says that there is a checksum
	superBlockBits  = 12   // blkszbits
	superRoot       = 14   // root_nid
	superBlocks     = 36   // blocks
	superMeta       = 40   // meta_blkaddr
	superIncompat   = 80   // feature_incompat
	superSize       = 128
	inodeXattrs     = 2  // i_xattr_icount; i_format is at 0
	inodeLength     = 8  // i_size, 32 bits in a compact inode and 64 in an extended one
	inodeData       = 16 // i_u.raw_blkaddr
	inodeCompact    = 32
	inodeExtended   = 64
	formatExtended  = 1      // bit 0 of i_format
	formatLayout    = 7 << 1 // bits 1 to 3
	layoutPlain     = 0 << 1
	layoutInline    = 2 << 1
	direntSize      = 12
	direntName      = 8  // nameoff; the nid is at 0
	direntType      = 10 // file_type
	direntIsFile    = 1
	direntIsDir     = 2
	xattrHeaderSize = 12 // erofs_xattr_ibody_header, which counts as one of i_xattr_icount; the others are 4 bytes
)

var errErofs = errors.New("the image that was just written is not as expected")

// plainFiles gives every regular file of an image that has data blocks of its own. The result depends on
// the image alone. It holds the numbers of directories that are still to be visited, and little else.
func plainFiles(ctx context.Context, image *os.File) error {
	super := make([]byte, superSize)
	if _, err := image.ReadAt(super, superAt); err != nil {
		return fmt.Errorf("reading the superblock: %w", err)
	}
	le := binary.LittleEndian
	if le.Uint32(super) != erofsMagic || le.Uint32(super[superFeatures:]) != 0 || le.Uint32(super[superIncompat:]) != 0 || super[superBlockBits] != erofsBlockBits {
		return fmt.Errorf("%w: an unknown superblock", errErofs)
	}
	blocks := le.Uint32(super[superBlocks:])
	end := int64(blocks) * erofsBlock
	info, err := image.Stat()
	if err != nil {
		return fmt.Errorf("looking at the image: %w", err)
	}
	if info.Size() > end {
		return fmt.Errorf("%w: %d bytes in %d blocks", errErofs, info.Size(), blocks)
	}
	// The last block of the metadata is as long as its contents.
	if err := image.Truncate(end); err != nil {
		return fmt.Errorf("filling up the last block: %w", err)
	}
	p := &plainer{
		image: image, meta: int64(le.Uint32(super[superMeta:])) * erofsBlock,
		next: blocks, appended: bufio.NewWriterSize(io.NewOffsetWriter(image, end), 1<<20),
		dirs: []uint64{uint64(le.Uint16(super[superRoot:]))},
	}
	for len(p.dirs) > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		nid := p.dirs[len(p.dirs)-1]
		p.dirs = p.dirs[:len(p.dirs)-1]
		if err := p.visit(nid); err != nil {
			return err
		}
	}
	if err := p.appended.Flush(); err != nil {
		return fmt.Errorf("writing file contents: %w", err)
	}
	if _, err := image.WriteAt(le.AppendUint32(nil, p.next), superAt+superBlocks); err != nil {
		return fmt.Errorf("writing the superblock: %w", err)
	}
	return nil
}

type plainer struct {
	image    *os.File
	meta     int64  // where nid 0 is
	next     uint32 // the first block after the image's end, with what is buffered
	appended *bufio.Writer
	dirs     []uint64 // nids
	block    [erofsBlock]byte
}

// diskInode is what matters of an inode.
type diskInode struct {
	at     int64 // in the image
	format uint16
	size   uint64
	data   int64 // where its data are
}

func (i diskInode) inline() bool { return i.format&formatLayout == layoutInline }

func (p *plainer) inode(nid uint64) (diskInode, error) {
	at := p.meta + int64(nid)*erofsSlot
	var raw [inodeExtended]byte
	// A compact inode can be the last thing in the image.
	if n, err := p.image.ReadAt(raw[:], at); err != nil && (n < inodeCompact || !errors.Is(err, io.EOF)) {
		return diskInode{}, fmt.Errorf("reading inode %d: %w", nid, err)
	}
	le := binary.LittleEndian
	i := diskInode{at: at, format: le.Uint16(raw[:]), size: uint64(le.Uint32(raw[inodeLength:]))}
	header := int64(inodeCompact)
	if i.format&formatExtended != 0 {
		header, i.size = inodeExtended, le.Uint64(raw[inodeLength:])
	}
	if xattrs := int64(le.Uint16(raw[inodeXattrs:])); xattrs > 0 {
		header += xattrHeaderSize + (xattrs-1)*4
	}
	switch i.format & formatLayout {
	case layoutPlain:
		i.data = int64(le.Uint32(raw[inodeData:])) * erofsBlock
	case layoutInline:
		i.data = at + header
		// The writer never splits: there are no whole blocks before an inline tail.
		if i.size > erofsBlock || i.data%erofsBlock+int64(i.size) > erofsBlock {
			return i, fmt.Errorf("%w: inode %d has %d bytes inline", errErofs, nid, i.size)
		}
	default:
		return i, fmt.Errorf("%w: inode %d has format %#x", errErofs, nid, i.format)
	}
	return i, nil
}

// visit goes through a directory: it moves the data of its files, and notes its directories.
func (p *plainer) visit(nid uint64) error {
	dir, err := p.inode(nid)
	if err != nil {
		return err
	}
	var listing [erofsBlock]byte
	for at := uint64(0); at < dir.size; at += erofsBlock {
		block := listing[:min(erofsBlock, dir.size-at)]
		if _, err := p.image.ReadAt(block, dir.data+int64(at)); err != nil {
			return fmt.Errorf("reading directory %d: %w", nid, err)
		}
		if err := p.visitBlock(block); err != nil {
			return fmt.Errorf("directory %d: %w", nid, err)
		}
	}
	return nil
}

// visitBlock goes through one block of a directory: entries of one size, then the names that they point to.
func (p *plainer) visitBlock(block []byte) error {
	le := binary.LittleEndian
	if len(block) < direntSize {
		return fmt.Errorf("%w: no entry in a block", errErofs)
	}
	// The first name begins where the entries end, and each name ends where the next begins.
	entries := int(le.Uint16(block[direntName:]))
	if entries%direntSize != 0 || entries < direntSize || entries > len(block) {
		return fmt.Errorf("%w: entries up to %d in a block", errErofs, entries)
	}
	for at := 0; at < entries; at += direntSize {
		begin, end := int(le.Uint16(block[at+direntName:])), len(block)
		if at+direntSize < entries {
			end = int(le.Uint16(block[at+direntSize+direntName:]))
		}
		if begin < entries || begin > end || end > len(block) {
			return fmt.Errorf("%w: a name from %d to %d", errErofs, begin, end)
		}
		nid, name := le.Uint64(block[at:]), bytes.TrimRight(block[begin:end], "\x00") // a full block ends with zeros
		switch block[at+direntType] {
		case direntIsDir:
			if string(name) != "." && string(name) != ".." {
				p.dirs = append(p.dirs, nid)
			}
		case direntIsFile:
			if err := p.makePlain(nid); err != nil {
				return err
			}
		}
	}
	return nil
}

// makePlain moves the data of a file, if they are inline, and clears the place where they were.
func (p *plainer) makePlain(nid uint64) error {
	file, err := p.inode(nid)
	if err != nil {
		return err
	}
	if !file.inline() || file.size == 0 {
		return nil
	}
	if p.next == math.MaxUint32 {
		return fmt.Errorf("%w: more than 2^32 blocks", errErofs)
	}
	clear(p.block[:])
	data := p.block[:file.size]
	if _, err := p.image.ReadAt(data, file.data); err != nil {
		return fmt.Errorf("reading the data of inode %d: %w", nid, err)
	}
	if _, err := p.appended.Write(p.block[:]); err != nil {
		return fmt.Errorf("writing the data of inode %d: %w", nid, err)
	}
	le := binary.LittleEndian
	clear(data)
	for _, change := range []struct {
		at   int64
		data []byte
	}{
		{file.data, data},
		{file.at, le.AppendUint16(nil, file.format&^formatLayout|layoutPlain)},
		{file.at + inodeData, le.AppendUint32(nil, p.next)},
	} {
		if _, err := p.image.WriteAt(change.data, change.at); err != nil {
			return fmt.Errorf("writing inode %d: %w", nid, err)
		}
	}
	p.next++
	return nil
}
