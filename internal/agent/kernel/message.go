package kernel

import (
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// Channel is one of a kernel's sockets, by Jupyter's name.
type Channel string

const (
	Shell   Channel = "shell"
	Control Channel = "control"
	Stdin   Channel = "stdin"
	IOPub   Channel = "iopub"
	// State is not the kernel's: a client gets the kernel's changes of state on it, in their order with messages.
	State Channel = "state"
)

// Version of the messaging protocol that is spoken.
const Version = "5.3"

// Message is one message of Jupyter's protocol. The JSON parts are kept as they came: bytes, numbers and the order of keys are those of
// who wrote them. Nothing in it may be changed by who gets one, since others get the same.
type Message struct {
	Header, Parent, Metadata, Content json.RawMessage
	Buffers                           [][]byte

	// Of a message that was received: read already.
	parsed         bool
	header, parent Header
}

// Header is what is read of a message's header.
type Header struct {
	ID      string `json:"msg_id"`
	Type    string `json:"msg_type"`
	Session string `json:"session"`
}

// NewMessage makes a request of a type. The content is what json.Marshal takes.
func NewMessage(kind, session string, content any) (Message, error) {
	header, err := json.Marshal(map[string]any{
		"msg_id": NewID(), "msg_type": kind, "session": session, "username": "carrel",
		"date": time.Now().UTC().Format("2006-01-02T15:04:05.000000Z"), "version": Version,
	})
	if err != nil {
		return Message{}, fmt.Errorf("write a message for a kernel: %w", err)
	}
	body, err := json.Marshal(content)
	if err != nil {
		return Message{}, fmt.Errorf("write a message for a kernel: %w", err)
	}
	return Message{Header: header, Content: body}, nil
}

// Head gives what is read of the message's own header.
func (m *Message) Head() Header { return m.read(m.header, m.Header) }

// ParentHead gives that of the request that the message belongs to; its ID is empty when there is none.
func (m *Message) ParentHead() Header { return m.read(m.parent, m.Parent) }

func (m *Message) read(known Header, raw json.RawMessage) Header {
	if !m.parsed {
		_ = json.Unmarshal(raw, &known)
	}
	return known
}

// Size is about what the message takes in memory, in bytes.
func (m *Message) Size() int64 {
	size := 512 + len(m.Header) + len(m.Parent) + len(m.Metadata) + len(m.Content)
	for _, buffer := range m.Buffers {
		size += len(buffer)
	}
	return int64(size)
}

// NewID makes a random UUID, the form that Jupyter's ids have.
func NewID() string {
	var b [16]byte
	_, _ = rand.Read(b[:])
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

var (
	delimiter = []byte("<IDS|MSG>")
	empty     = json.RawMessage("{}")

	errNoDelimiter = errors.New("a message without delimiter")
	errShort       = errors.New("a message with parts missing")
	errSignature   = errors.New("a message with a wrong signature")
	errNotJSON     = errors.New("a message whose parts are not JSON objects")
)

// encode makes the frames of a message, signed.
func encode(key []byte, m Message) [][]byte {
	parts := [4][]byte{m.Header, m.Parent, m.Metadata, m.Content}
	for i := range parts {
		if len(parts[i]) == 0 || bytes.Equal(parts[i], []byte("null")) {
			parts[i] = empty
		}
	}
	frames := [][]byte{delimiter, sign(key, parts), parts[0], parts[1], parts[2], parts[3]}
	return append(frames, m.Buffers...)
}

// sign gives the HMAC-SHA256 of the parts in hex, and nothing without a key.
func sign(key []byte, parts [4][]byte) []byte {
	if len(key) == 0 {
		return nil
	}
	mac := hmac.New(sha256.New, key)
	for _, part := range parts {
		mac.Write(part)
	}
	return hex.AppendEncode(nil, mac.Sum(nil))
}

// decode reads the frames of a message that is signed with one of the keys. What comes before the delimiter is passed over.
func decode(keys [][]byte, frames [][]byte) (Message, error) {
	at := 0
	for at < len(frames) && !bytes.Equal(frames[at], delimiter) {
		at++
	}
	if at == len(frames) {
		return Message{}, errNoDelimiter
	}
	frames = frames[at+1:]
	if len(frames) < 5 {
		return Message{}, errShort
	}
	parts := [4][]byte(frames[1:5])
	signed := false
	for _, key := range keys {
		signed = signed || hmac.Equal(frames[0], sign(key, parts))
	}
	if !signed {
		return Message{}, errSignature
	}
	for _, part := range parts {
		if !isObject(part) {
			return Message{}, errNotJSON
		}
	}
	m := Message{Header: parts[0], Parent: parts[1], Metadata: parts[2], Content: parts[3]}
	if len(frames) > 5 {
		m.Buffers = frames[5:]
	}
	m.header, m.parent, m.parsed = m.Head(), m.ParentHead(), true
	if m.header.ID == "" || m.header.Type == "" {
		return Message{}, errNotJSON
	}
	return m, nil
}
