package gateway

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func FuzzRange(f *testing.F) {
	for _, header := range []string{"bytes=0-1", "bytes=-5", "bytes=5-", "bytes=99999999999999999999-", "x"} {
		f.Add(header, int64(10))
	}
	f.Fuzz(func(t *testing.T, header string, size int64) {
		if size < 0 {
			return
		}
		from, length, ok, _ := parseRange(header, size)
		if ok {
			require.True(t, from >= 0 && length > 0 && from+length <= size && from+length > 0)
		}
	})
}

func FuzzContentRange(f *testing.F) {
	for _, text := range []string{"bytes 0-1/2", "bytes 0-1/*", "bytes 0-9223372036854775807/*", "bytes 1-0/5"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		first, last, total, ok := parseContentRange(text)
		if ok {
			require.True(t, first >= 0 && last >= first && (total == -1 || total > last) && last-first+1 > 0)
		}
	})
}

func FuzzContentType(f *testing.F) {
	for _, name := range []string{"a.html", "a.svg", "a.png", "", ".", "a.HTML"} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		require.NotRegexp(t, `(?i)html|svg|xml|javascript|pdf|css`, contentType(name))
		require.Regexp(t, `^"[A-Za-z0-9_-]*"$`, quote(name))
	})
}
