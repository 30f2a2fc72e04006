package jupyter

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"time"

	"carrel.dev/carrel/internal/agent/kernel"
)

// Messages go over a WebSocket in one of two ways. The older one, without a subprotocol, is a JSON object for each message; a message with buffers is
// a binary frame: the number of parts and their offsets (big-endian, four bytes each), the JSON, the buffers. With the subprotocol
// v1 every message is a binary frame: the number of offsets and the offsets (little-endian, eight bytes each), the name of the channel, header,
// parent header, metadata and content as they came, the buffers; the last offset is the frame's end.

// protocolV1 is the name of the newer way.
const protocolV1 = "v1.kernel.websocket.jupyter.org"

// maxParts bounds the parts of one message.
const maxParts = 4096

var (
	errFrame   = errors.New("a frame that is no message")
	errMessage = errors.New("a message that is no JSON object with a header")
)

// encodeV1 makes a frame of a message.
func encodeV1(channel kernel.Channel, m *kernel.Message) []byte {
	parts := [][]byte{[]byte(channel), orEmpty(m.Header), orEmpty(m.Parent), orEmpty(m.Metadata), orEmpty(m.Content)}
	parts = append(parts, m.Buffers...)
	at := 8 * (2 + len(parts))
	size := at
	for _, part := range parts {
		size += len(part)
	}
	frame := make([]byte, 0, size)
	frame = binary.LittleEndian.AppendUint64(frame, uint64(len(parts)+1))
	for _, part := range parts {
		frame = binary.LittleEndian.AppendUint64(frame, uint64(at))
		at += len(part)
	}
	frame = binary.LittleEndian.AppendUint64(frame, uint64(at))
	for _, part := range parts {
		frame = append(frame, part...)
	}
	return frame
}

func orEmpty(part json.RawMessage) []byte {
	if len(part) == 0 {
		return []byte("{}")
	}
	return part
}

// decodeV1 takes a frame apart. The parts lie in the frame.
func decodeV1(frame []byte) (kernel.Channel, kernel.Message, error) {
	if len(frame) < 8 {
		return "", kernel.Message{}, errFrame
	}
	count := binary.LittleEndian.Uint64(frame)
	if count < 6 || count > maxParts || uint64(len(frame)) < 8*(count+1) {
		return "", kernel.Message{}, errFrame
	}
	offsets := make([]uint64, count)
	last := 8 * (count + 1)
	for i := range offsets {
		offset := binary.LittleEndian.Uint64(frame[8*(i+1):])
		if offset < last || offset > uint64(len(frame)) {
			return "", kernel.Message{}, errFrame
		}
		offsets[i], last = offset, offset
	}
	part := func(i int) []byte { return frame[offsets[i]:offsets[i+1]] }
	m := kernel.Message{Header: part(1), Parent: part(2), Metadata: part(3), Content: part(4)}
	for i := 5; i < int(count)-1; i++ {
		m.Buffers = append(m.Buffers, part(i))
	}
	for _, text := range [][]byte{m.Header, m.Parent, m.Metadata, m.Content} {
		if !json.Valid(text) {
			return "", kernel.Message{}, errMessage
		}
	}
	return kernel.Channel(part(0)), m, nil
}

// encodeJSON makes a frame of a message for clients without a subprotocol; binary says of which kind.
func encodeJSON(channel kernel.Channel, m *kernel.Message) (frame []byte, binaryFrame bool) {
	head := m.Head()
	var b bytes.Buffer
	b.Grow(len(m.Header) + len(m.Parent) + len(m.Metadata) + len(m.Content) + 256)
	field := func(before, name string, value []byte) {
		b.WriteString(before)
		b.WriteByte('"')
		b.WriteString(name)
		b.WriteString(`":`)
		b.Write(value)
	}
	field("{", "header", orEmpty(m.Header))
	field(",", "msg_id", quote(head.ID))
	field(",", "msg_type", quote(head.Type))
	field(",", "parent_header", orEmpty(m.Parent))
	field(",", "metadata", orEmpty(m.Metadata))
	field(",", "content", orEmpty(m.Content))
	if len(m.Buffers) == 0 {
		field(",", "buffers", []byte("[]"))
	}
	field(",", "channel", quote(string(channel)))
	b.WriteByte('}')
	if len(m.Buffers) == 0 {
		return b.Bytes(), false
	}
	count := 1 + len(m.Buffers)
	at := 4 * (1 + count)
	frame = binary.BigEndian.AppendUint32(frame, uint32(count))
	parts := append([][]byte{b.Bytes()}, m.Buffers...)
	for _, part := range parts {
		frame = binary.BigEndian.AppendUint32(frame, uint32(at))
		at += len(part)
	}
	for _, part := range parts {
		frame = append(frame, part...)
	}
	return frame, true
}

func quote(text string) []byte {
	quoted, err := json.Marshal(text)
	if err != nil {
		return []byte(`""`)
	}
	return quoted
}

// decodeJSON takes a text frame apart.
func decodeJSON(frame []byte) (kernel.Channel, kernel.Message, error) {
	var in struct {
		Channel  *string         `json:"channel"`
		Header   json.RawMessage `json:"header"`
		Parent   json.RawMessage `json:"parent_header"`
		Metadata json.RawMessage `json:"metadata"`
		Content  json.RawMessage `json:"content"`
	}
	if err := json.Unmarshal(frame, &in); err != nil {
		return "", kernel.Message{}, errMessage
	}
	m := kernel.Message{Header: in.Header, Parent: in.Parent, Metadata: in.Metadata, Content: in.Content}
	if m.Head().ID == "" {
		return "", kernel.Message{}, errMessage
	}
	if in.Channel == nil {
		return kernel.Shell, m, nil
	}
	return kernel.Channel(*in.Channel), m, nil
}

// decodeBinary takes a binary frame of a client without a subprotocol apart. Buffers lie in the frame.
func decodeBinary(frame []byte) (kernel.Channel, kernel.Message, error) {
	if len(frame) < 8 {
		return "", kernel.Message{}, errFrame
	}
	count := uint64(binary.BigEndian.Uint32(frame))
	if count < 1 || count > maxParts || uint64(len(frame)) < 4*(count+1) {
		return "", kernel.Message{}, errFrame
	}
	offsets := make([]uint64, count, count+1)
	last := 4 * (count + 1)
	for i := range offsets {
		offset := uint64(binary.BigEndian.Uint32(frame[4*(i+1):]))
		if offset < last || offset > uint64(len(frame)) {
			return "", kernel.Message{}, errFrame
		}
		offsets[i], last = offset, offset
	}
	offsets = append(offsets, uint64(len(frame)))
	channel, m, err := decodeJSON(frame[offsets[0]:offsets[1]])
	if err != nil {
		return "", kernel.Message{}, err
	}
	for i := 1; i < int(count); i++ {
		m.Buffers = append(m.Buffers, frame[offsets[i]:offsets[i+1]])
	}
	return channel, m, nil
}

// serverMessage makes a message for iopub of which the kernel knows nothing.
func serverMessage(kind string, parent json.RawMessage, content any, now time.Time) *kernel.Message {
	header, _ := json.Marshal(map[string]any{
		"msg_id": kernel.NewID(), "msg_type": kind, "username": "carrel", "session": "carrel",
		"date": timestamp(now), "version": kernel.Version,
	})
	body, _ := marshal(content)
	if len(bytes.TrimSpace(parent)) == 0 {
		parent = json.RawMessage("{}")
	}
	return &kernel.Message{Header: header, Parent: parent, Metadata: json.RawMessage("{}"), Content: body}
}
