package carrel

import (
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
)

func TestEveryFileNameHasOneText(t *testing.T) {
	require.Equal(t, "/home/ä 100%", EncodeFileName("/home/ä 100%"))
	require.Equal(t, "a\U0010FFFFb", EncodeFileName("a\xffb"))
	require.Equal(t, "a\xffb", DecodeFileName("a\U0010FFFFb"))
	// A name that has such a character itself is another name than the one with the byte.
	require.NotEqual(t, "a\U0010FFFFb", EncodeFileName("a\U0010FFFFb"))
}

func FuzzFileName(f *testing.F) {
	for _, name := range []string{"", "a", "\xff", "ä\xc3", "\U0010FFFF", "\U0010FF80x", "�"} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		text := EncodeFileName(name)
		require.True(t, utf8.ValidString(text))
		require.Equal(t, name, DecodeFileName(text))
	})
}
