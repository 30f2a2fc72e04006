package agent

import "sync"

// minRing is the smallest ring of a stream that has written something, in bytes. It is given whatever the
// budget says.
const minRing = 4 << 10

// ring keeps the last bytes of a stream at absolute offsets. The zero ring is empty and keeps nothing until
// it is grown. It is not safe for concurrent use.
type ring struct {
	buf        []byte // the byte at offset o is buf[o%len(buf)]
	start, end int64  // offsets of what is kept
}

// wanted is the size, in bytes, that the ring should have to take n more bytes without losing any, up to
// limit.
func (r *ring) wanted(n int, limit int) int {
	need := r.end - r.start + int64(n)
	size := max(len(r.buf), minRing)
	for int64(size) < need && size < limit {
		size *= 2
	}
	return max(min(size, limit), len(r.buf))
}

// grow makes the ring size bytes large and keeps what it holds.
func (r *ring) grow(size int) {
	if size <= len(r.buf) {
		return
	}
	next := ring{buf: make([]byte, size), start: r.start, end: r.start}
	first, second := r.kept(r.start, int(r.end-r.start))
	next.write(first)
	next.write(second)
	*r = next
}

// write appends data and loses the oldest bytes when there is no room.
func (r *ring) write(data []byte) {
	if over := len(data) - len(r.buf); over > 0 {
		r.end += int64(over)
		data = data[over:]
	}
	if len(r.buf) > 0 {
		at := int(r.end % int64(len(r.buf)))
		n := copy(r.buf[at:], data)
		copy(r.buf, data[n:])
	}
	r.end += int64(len(data))
	r.start = max(r.start, r.end-int64(len(r.buf)))
}

// kept gives up to n bytes from offset on, which is between start and end, as one or two parts of the ring.
func (r *ring) kept(offset int64, n int) (first, second []byte) {
	n = int(min(int64(n), r.end-offset))
	if n <= 0 {
		return nil, nil
	}
	at := int(offset % int64(len(r.buf)))
	first = r.buf[at:min(at+n, len(r.buf))]
	return first, r.buf[:n-len(first)]
}

// read appends up to n bytes from offset on to buf.
func (r *ring) read(buf []byte, offset int64, n int) []byte {
	first, second := r.kept(offset, n)
	return append(append(buf, first...), second...)
}

// drop forgets everything that is kept and gives the size that it had.
func (r *ring) drop() int {
	size := len(r.buf)
	r.buf, r.start = nil, r.end
	return size
}

// budget bounds the rings of all processes together. It is safe for concurrent use.
type budget struct {
	mu   sync.Mutex
	left int64
}

func (b *budget) take(n int64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if n > b.left {
		return false
	}
	b.left -= n
	return true
}

// force takes n bytes even when they are not there; the next takes are refused until they are given back.
func (b *budget) force(n int64) {
	b.mu.Lock()
	b.left -= n
	b.mu.Unlock()
}

func (b *budget) give(n int64) {
	b.mu.Lock()
	b.left += n
	b.mu.Unlock()
}
