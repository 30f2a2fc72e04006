package kernel

import (
	"bytes"
	"encoding/json"
	"io"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// script is a connection on which the other side says what is written down, whatever it is told.
type script struct {
	net.Conn
	says io.Reader
}

func (s *script) Read(p []byte) (int, error)       { return s.says.Read(p) }
func (s *script) Write(p []byte) (int, error)      { return len(p), nil }
func (s *script) Close() error                     { return nil }
func (s *script) SetDeadline(time.Time) error      { return nil }
func (s *script) SetWriteDeadline(time.Time) error { return nil }

// greeting is that of a peer, with its READY.
func greeting() []byte {
	text := make([]byte, 64)
	text[0], text[9], text[10], text[11] = 0xff, 0x7f, 3, 1
	copy(text[12:], "NULL")
	ready := property(append([]byte{5}, "READY"...), "Socket-Type", "ROUTER")
	return bytes.Join([][]byte{text, {flagCommand, byte(len(ready))}, ready}, nil)
}

// FuzzSocket has a peer say anything: it must not have the agent take memory for what never comes, nor end it.
func FuzzSocket(f *testing.F) {
	f.Add(append(greeting(), 1, 2, 'a', 'b', 0, 1, 'c'))
	f.Add(append(greeting(), 2, 0x3f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff))
	f.Add(append(greeting(), 2, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff))
	f.Add([]byte("HTTP/1.1 400 Bad Request\r\n\r\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := handshake(&script{says: bytes.NewReader(data)}, "DEALER", "me")
		for err == nil {
			var frames [][]byte
			var size int64
			frames, size, err = s.receive(1 << 10)
			total := int64(0)
			for _, frame := range frames {
				total += int64(len(frame))
			}
			require.LessOrEqual(t, total, int64(1<<10))
			require.True(t, err != nil || frames == nil || total == size)
		}
	})
}

// FuzzDecode reads messages of anybody: what is taken has four JSON objects, a type and an id.
func FuzzDecode(f *testing.F) {
	key := []byte("key")
	message, err := NewMessage("kind", "session", map[string]any{"a": 1})
	require.NoError(f, err)
	f.Add(bytes.Join(encode(key, message), []byte{0}))
	f.Add([]byte("<IDS|MSG>\x00\x00{}\x00{}\x00{}\x00{}"))
	f.Fuzz(func(t *testing.T, data []byte) {
		frames := bytes.Split(data, []byte{0})
		got, err := decode([][]byte{key, nil}, frames)
		if err != nil {
			return
		}
		for _, part := range []json.RawMessage{got.Header, got.Parent, got.Metadata, got.Content} {
			var object map[string]any
			require.NoError(t, json.Unmarshal(part, &object))
		}
		require.NotEmpty(t, got.Head().ID)
		again, err := decode([][]byte{key}, encode(key, got))
		require.NoError(t, err)
		require.Equal(t, got.Head(), again.Head())
	})
}

// FuzzSpec reads kernelspecs of anybody.
func FuzzSpec(f *testing.F) {
	f.Add([]byte(`{"argv": ["python3", "-f", "{connection_file}"], "env": {"A": "${B}"}, "metadata": {"debugger": true}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		spec, err := parseSpec(data)
		if err != nil {
			return
		}
		argv, _ := spec.command("/file", nil, nil)
		require.Len(t, argv, len(spec.Argv))
		require.NotEmpty(t, spec.Argv[0])
	})
}
