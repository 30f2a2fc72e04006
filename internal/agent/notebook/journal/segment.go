package journal

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"
)

// A segment is a file of records: length and CRC-32C of the payload, 4 bytes each in little endian, and the payload, whose first byte
// is its kind. The first record is the header. A record that is not whole ends the segment.
const (
	kindHeader = 'h'
	kindEntry  = 'e' // 8 bytes of sequence number in little endian, and the entry

	recordHead = 8
	entryHead  = 9
	// maxHeader is the longest header that is read, maxState the longest state that is written into one, where it takes a third more. In bytes.
	maxHeader = 4 << 20
	maxState  = 2 << 20
	// maxBare is how many segments without an entry are kept, for their ids: one is made whenever the journal is opened.
	maxBare = 16
	// maxSeq is the highest sequence number that is believed.
	maxSeq = 1 << 62
	// greedy is how much of a record is allocated before it was read, in bytes.
	greedy = 256 << 10
)

var (
	castagnoli  = crc32.MakeTable(crc32.Castagnoli)
	segmentName = regexp.MustCompile(`^([0-9]{20})\.journal$`)

	errTorn = errors.New("the record is not whole")
)

// header begins a segment.
type header struct {
	Version int    `json:"version"`
	ID      string `json:"journal"`
	Owner   string `json:"owner"`
	First   uint64 `json:"first"`
	// State is what the journal's user wants to know of before this segment.
	State []byte `json:"state,omitempty"`
}

type segment struct {
	id    string
	first uint64
	size  int64
	path  string
}

func segmentPath(dir string, first uint64) string {
	return filepath.Join(dir, fmt.Sprintf("%020d.journal", first))
}

func appendRecord(to []byte, parts ...[]byte) []byte {
	length, sum := 0, uint32(0)
	for _, part := range parts {
		length += len(part)
		sum = crc32.Update(sum, castagnoli, part)
	}
	to = binary.LittleEndian.AppendUint32(to, uint32(length))
	to = binary.LittleEndian.AppendUint32(to, sum)
	for _, part := range parts {
		to = append(to, part...)
	}
	return to
}

func appendEntry(to []byte, seq uint64, data []byte) []byte {
	var head [entryHead]byte
	head[0] = kindEntry
	binary.LittleEndian.PutUint64(head[1:], seq)
	return appendRecord(to, head[:], data)
}

// readRecord reads the payload of one record. The end of the file is io.EOF, everything that is not a whole record errTorn.
func readRecord(in *bufio.Reader, limit int64) ([]byte, error) {
	var head [recordHead]byte
	if _, err := io.ReadFull(in, head[:]); err != nil {
		if errors.Is(err, io.ErrUnexpectedEOF) {
			return nil, errTorn
		}
		return nil, err
	}
	length := int64(binary.LittleEndian.Uint32(head[:]))
	if length == 0 || length > limit {
		return nil, errTorn
	}
	var payload []byte
	for at := 0; int64(at) < length; at = len(payload) {
		payload = slices.Grow(payload, int(min(length-int64(at), max(greedy, int64(at)))))[:min(length, max(greedy, 2*int64(at)))]
		if _, err := io.ReadFull(in, payload[at:]); errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return nil, errTorn
		} else if err != nil {
			return nil, err
		}
	}
	if crc32.Checksum(payload, castagnoli) != binary.LittleEndian.Uint32(head[4:]) {
		return nil, errTorn
	}
	return payload, nil
}

// splitEntry takes a payload apart.
func splitEntry(payload []byte) (seq uint64, data []byte, ok bool) {
	if len(payload) < entryHead || payload[0] != kindEntry {
		return 0, nil, false
	}
	seq = binary.LittleEndian.Uint64(payload[1:])
	return seq, payload[entryHead:], seq <= maxSeq
}

// openSegment opens a segment and reads its header. For AsUser.
func openSegment(path string) (*os.File, *bufio.Reader, header, error) {
	file, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if errors.Is(err, unix.ELOOP) {
		err = fmt.Errorf("%w: it is a link", errTorn)
	}
	if err != nil {
		return nil, nil, header{}, err
	}
	info, err := file.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%w: it is not a file", errTorn)
	}
	var head header
	in := bufio.NewReaderSize(file, 64<<10)
	if err == nil {
		var payload []byte
		if payload, err = readRecord(in, maxHeader); errors.Is(err, io.EOF) {
			err = errTorn
		}
		if err == nil {
			if payload[0] != kindHeader {
				err = errTorn
			} else if json.Unmarshal(payload[1:], &head) != nil || head.Version != 1 || head.ID == "" || head.First == 0 {
				err = errTorn
			}
		}
	}
	if err != nil {
		file.Close()
		return nil, nil, header{}, fmt.Errorf("open a segment of the journal: %w", err)
	}
	return file, in, head, nil
}

// firstOf gives the sequence number in a segment's name.
func firstOf(name string) (uint64, bool) {
	match := segmentName.FindStringSubmatch(name)
	if match == nil {
		return 0, false
	}
	first, err := strconv.ParseUint(match[1], 10, 64)
	return first, err == nil && first > 0 && first <= maxSeq
}
