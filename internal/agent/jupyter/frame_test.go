package jupyter

import (
	"encoding/binary"
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/require"

	"carrel.dev/carrel/internal/agent/kernel"
)

func sample(buffers ...[]byte) kernel.Message {
	return kernel.Message{
		Header: json.RawMessage(`{"msg_id": "a", "msg_type":"comm_msg","session":"s", "n":1e400}`), Parent: json.RawMessage(`{}`),
		Metadata: json.RawMessage(`{"z":1,"a":2}`), Content: json.RawMessage(`{"text":"é <\u2028>"}`), Buffers: buffers,
	}
}

func same(t require.TestingT, want, got kernel.Message) {
	for _, pair := range [][2]json.RawMessage{{want.Header, got.Header}, {want.Parent, got.Parent}, {want.Metadata, got.Metadata}, {want.Content, got.Content}} {
		require.Equal(t, string(pair[0]), string(pair[1]), "every byte is as it came")
	}
	require.Len(t, got.Buffers, len(want.Buffers))
	for i := range want.Buffers {
		require.Equal(t, want.Buffers[i], got.Buffers[i])
	}
}

func TestFramesCarryMessagesByteForByte(t *testing.T) {
	for _, m := range []kernel.Message{sample(), sample([]byte{0, 1, 255}, []byte{}, []byte("x"))} {
		channel, got, err := decodeV1(encodeV1(kernel.IOPub, &m))
		require.NoError(t, err)
		require.Equal(t, kernel.IOPub, channel)
		same(t, m, got)

		frame, isBinary := encodeJSON(kernel.Stdin, &m)
		require.Equal(t, len(m.Buffers) > 0, isBinary)
		if isBinary {
			channel, got, err = decodeBinary(frame)
		} else {
			require.True(t, json.Valid(frame))
			channel, got, err = decodeJSON(frame)
		}
		require.NoError(t, err)
		require.Equal(t, kernel.Stdin, channel)
		same(t, m, got)
	}
	channel, _, err := decodeJSON([]byte(`{"header":{"msg_id":"a"},"content":{}}`))
	require.NoError(t, err)
	require.Equal(t, kernel.Shell, channel, "without a channel it is shell")
}

func TestFramesThatAreNoMessages(t *testing.T) {
	m := sample([]byte("buffer"))
	v1 := encodeV1(kernel.Shell, &m)
	old, _ := encodeJSON(kernel.Shell, &m)
	for cut := range len(v1) {
		_, _, err := decodeV1(v1[:cut])
		require.Error(t, err, "cut at %d", cut)
	}
	for offset := range 7 {
		broken := append([]byte(nil), v1...)
		binary.LittleEndian.PutUint64(broken[8*(offset+1):], 1<<63)
		_, _, err := decodeV1(broken)
		require.ErrorIs(t, err, errFrame)
	}
	for cut := range len(old) - len("buffer") {
		_, _, err := decodeBinary(old[:cut])
		require.Error(t, err, "cut at %d", cut)
	}
	for _, text := range []string{"", "null", "[]", "5", `{"header":5}`, `{"header":{}}`, `{"header":{"msg_id":"a"}`} {
		_, _, err := decodeJSON([]byte(text))
		require.ErrorIs(t, err, errMessage, text)
	}
	notJSON := sample()
	notJSON.Content = json.RawMessage(`{"x":`)
	_, _, err := decodeV1(encodeV1(kernel.Shell, &notJSON))
	require.ErrorIs(t, err, errMessage)
}

func FuzzFrames(f *testing.F) {
	plain, large := sample(), sample([]byte{1}, nil, []byte("text"))
	f.Add(encodeV1(kernel.Shell, &plain))
	f.Add(encodeV1(kernel.IOPub, &large))
	text, _ := encodeJSON(kernel.Shell, &plain)
	f.Add(text)
	frame, _ := encodeJSON(kernel.Shell, &large)
	f.Add(frame)
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, data []byte) {
		if channel, m, err := decodeV1(data); err == nil {
			again, got, err := decodeV1(encodeV1(channel, &m))
			require.NoError(t, err)
			require.Equal(t, channel, again)
			same(t, m, got)
		}
		for _, decode := range []func([]byte) (kernel.Channel, kernel.Message, error){decodeJSON, decodeBinary} {
			channel, m, err := decode(data)
			if err != nil || len(m.Parent) == 0 || len(m.Metadata) == 0 || len(m.Content) == 0 {
				continue
			}
			frame, isBinary := encodeJSON(channel, &m)
			if isBinary {
				_, _, err = decodeBinary(frame)
			} else {
				_, _, err = decodeJSON(frame)
			}
			require.NoError(t, err)
		}
	})
}

func FuzzTerminalMessages(f *testing.F) {
	for _, text := range []string{`["stdin","ls\r"]`, `["set_size",24,80,1,2]`, `["set_size",null,1e999]`, `[]`, `["stdin"]`, `{}`} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		kind, text, size, err := parseTerminal(data)
		if err != nil || kind != "set_size" {
			require.Zero(t, size)
		}
		require.True(t, size == termSize{} || size.rows >= 1 && size.rows <= maxRows && size.cols >= 1 && size.cols <= maxRows)
		if kind != "stdin" {
			require.Empty(t, text)
		}
	})
}

func TestOutputIsCutBetweenCharacters(t *testing.T) {
	whole := []byte("aé漢🐍\xff\xc3b🐍")
	text, rest := "", []byte(nil)
	for _, b := range whole {
		var part string
		part, rest = wholeRunes(append(rest, b))
		text += part
	}
	require.Empty(t, rest)
	require.Equal(t, "aé漢🐍\uFFFD\uFFFDb🐍", text)
}
