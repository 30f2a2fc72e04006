package main

import (
	"os"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestATildeAtTheBeginningOfALineIsForThisProgram(t *testing.T) {
	for _, c := range []struct {
		typed []string
		want  string
		left  int
	}{
		{[]string{"ls ~/x\r~.rest"}, "ls ~/x\rrest", 1},
		{[]string{"~", "~", "a"}, "~a", 0},
		{[]string{"~", "a\n", "~", "."}, "~a\n", 1},
		{[]string{"a~.\r"}, "a~.\r", 0},
		{[]string{"~\r~."}, "~\r", 1},
	} {
		reader, writer, err := os.Pipe()
		require.NoError(t, err)
		left := 0
		e := &escapes{from: reader, leave: func() { left++ }, fresh: true}
		go func() {
			defer writer.Close()
			for _, typed := range c.typed {
				_, _ = writer.WriteString(typed)
			}
		}()
		var got []byte
		buf := make([]byte, 16)
		for {
			n, err := e.Read(buf)
			got = append(got, buf[:n]...)
			if err != nil {
				break
			}
		}
		require.Equal(t, c.want, string(got))
		require.Equal(t, c.left, left)
		reader.Close()
	}
}
