package frame_test

import (
	"bytes"
	"io"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/require"

	"carrel.dev/carrel/internal/agent/frame"
)

func TestFramesComeAsTheyWereSent(t *testing.T) {
	var wire bytes.Buffer
	header := make([]byte, frame.HeaderSize)
	require.NoError(t, frame.Write(&wire, header, frame.Input, []byte("typed")))
	require.NoError(t, frame.Write(&wire, header, frame.EOF, nil))
	wire.Write(frame.Append(nil, frame.Resize, frame.Size(24, 80)))
	wire.Write(frame.Append(nil, frame.Taken, frame.Offset(1<<40)))

	r := frame.NewReader(iotest.OneByteReader(&wire), 16)
	kind, size, err := r.Next()
	require.NoError(t, err)
	require.Equal(t, frame.Input, kind)
	require.Equal(t, 5, size)
	one := make([]byte, 1)
	n, err := r.Read(one)
	require.NoError(t, err)
	require.Equal(t, "t", string(one[:n]))

	kind, size, err = r.Next() // the rest of the payload before is passed over
	require.NoError(t, err)
	require.Equal(t, frame.EOF, kind)
	require.Zero(t, size)
	_, err = r.Read(one)
	require.ErrorIs(t, err, io.EOF)

	_, _, err = r.Next()
	require.NoError(t, err)
	payload, err := r.Payload()
	require.NoError(t, err)
	rows, cols, err := frame.ParseSize(payload)
	require.NoError(t, err)
	require.Equal(t, []uint16{24, 80}, []uint16{rows, cols})

	_, _, err = r.Next()
	require.NoError(t, err)
	payload, err = r.Payload()
	require.NoError(t, err)
	offset, err := frame.ParseOffset(payload)
	require.NoError(t, err)
	require.EqualValues(t, 1<<40, offset)

	_, _, err = r.Next()
	require.ErrorIs(t, err, io.EOF)
}

func TestACutFrameIsNotTheEnd(t *testing.T) {
	whole := frame.Append(nil, frame.Input, []byte("typed"))
	for cut := 1; cut < len(whole); cut++ {
		r := frame.NewReader(bytes.NewReader(whole[:cut]), 16)
		_, _, err := r.Next()
		if err == nil {
			_, err = r.Payload()
		}
		require.ErrorIs(t, err, io.ErrUnexpectedEOF, "after %d bytes", cut)
	}
}

// FuzzReader: whatever comes, frames are bounded and the reader ends.
func FuzzReader(f *testing.F) {
	f.Add(frame.Append(frame.Append(nil, frame.Start, []byte("x")), frame.Taken, frame.Offset(7)))
	f.Add([]byte{4, 0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, wire []byte) {
		r := frame.NewReader(bytes.NewReader(wire), 16)
		for {
			_, size, err := r.Next()
			if err != nil {
				return
			}
			require.LessOrEqual(t, size, frame.MaxPayload)
			if size > len(wire) {
				return // Payload would wait for what does not come
			}
			payload, err := r.Payload()
			if err != nil {
				return
			}
			_, _, _ = frame.ParseSize(payload)
			if n, err := frame.ParseOffset(payload); err == nil {
				require.GreaterOrEqual(t, n, int64(0))
			}
		}
	})
}
