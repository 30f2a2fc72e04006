package image

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// everyKind is a layer with everything that a file system can hold.
func everyKind(t testing.TB) []byte {
	special := func(name string, change func(*tar.Header)) item {
		h := header(name, 0o644)
		change(h)
		return item{h, ""}
	}
	entries := []any{
		item{header("./", 0o755), ""},
		"empty=", "small=hello", "block=" + strings.Repeat("b", 4096), "large=" + strings.Repeat("0123456789", 30_000), "almost=" + strings.Repeat("a", 4064),
		special("owned=", func(h *tar.Header) {
			h.Name, h.Uid, h.Gid, h.Mode, h.ModTime = "owned", 70_000, 80_000, 0o640, time.Unix(1_600_000_000, 123_456_789)
		}),
		special("suid", func(h *tar.Header) { h.Mode = 0o4755 }),
		special("sgid", func(h *tar.Header) { h.Mode = 0o2755 }),
		special("attributes", func(h *tar.Header) {
			h.PAXRecords = map[string]string{
				"SCHILY.xattr." + "user.note": "kept", "SCHILY.xattr." + "security.capability": "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00",
				"SCHILY.xattr." + "trusted.overlay.opaque": "y", "SCHILY.xattr." + "security.selinux": "label",
			}
		}),
		special("before the epoch", func(h *tar.Header) { h.ModTime = time.Unix(-5, 0) }),
		"sticky/", "link -> small", "long link -> " + strings.Repeat("x/", 1000) + "x", "hard => small", "dir/", "dir/a/", "dir/b/", "dir/a/deep=1",
		"name with spaces\tand\ntabs=1", "bytes\xff\xfe=1", "!before dot=1", strings.Repeat("n", 255) + "=1",
		special("fifo", func(h *tar.Header) { h.Typeflag = tar.TypeFifo }),
		special("char", func(h *tar.Header) { h.Typeflag, h.Devmajor, h.Devminor = tar.TypeChar, 259, 70_000 }),
		special("block device", func(h *tar.Header) { h.Typeflag, h.Devmajor, h.Devminor = tar.TypeBlock, 8, 1 }),
	}
	for i := range 500 {
		entries = append(entries, fmt.Sprintf("many/%03d-%s=%d", i, strings.Repeat("y", i%40), i))
	}
	return makeTar(t, entries...)
}

func TestImageIsWhatTheLayerSaid(t *testing.T) {
	if testing.Short() {
		return // mounting needs root
	}
	data := everyKind(t)
	merged, err := merge(t, Limits{}, data)
	require.NoError(t, err)
	image := writeImage(t, merged)
	out, err := exec.Command("fsck.erofs", image).CombinedOutput()
	require.NoError(t, err, string(out))

	// GNU tar unpacks the same layer: the kernel must see the same in both.
	want := t.TempDir()
	unpack := exec.Command("tar", "-x", "--xattrs", "--xattrs-include=*", "--same-owner", "--same-permissions", "--numeric-owner", "-C", want, "-f", "-")
	unpack.Stdin = bytes.NewReader(data)
	out, err = unpack.CombinedOutput()
	if err != nil {
		require.NotContains(t, string(out), "Cannot open", string(out))
	}
	withMount(t, image, func(dir string) {
		expected, got := describe(t, want), describe(t, dir)
		for name, line := range expected {
			switch name {
			case "before the epoch": // times before 1970 become 1970
				line = strings.ReplaceAll(line, "1969-12-31T23:59:55Z", "1970-01-01T00:00:00Z")
			case "many": // it has no entry of its own: tar takes the present moment
				line, got[name] = "", ""
			}
			if name == "." || strings.HasPrefix(line, "d") { // file systems count a directory's links in their own ways
				continue
			}
			require.Equal(t, line, got[name], "%q", name)
		}
		require.Len(t, got, len(expected))
		require.Contains(t, got["dir"], "links 4", "find relies on it")

		// gVisor would not open a file that has any.
		for _, name := range []string{"user.note", "security.capability", "trusted.overlay.opaque"} {
			_, err := unix.Lgetxattr(filepath.Join(dir, "attributes"), name, make([]byte, 100))
			require.ErrorIs(t, err, unix.ENODATA, name)
		}
	})
}

func TestImageDependsOnTheTreeAlone(t *testing.T) {
	one, err := merge(t, Limits{}, everyKind(t))
	require.NoError(t, err)
	two, err := merge(t, Limits{}, everyKind(t))
	require.NoError(t, err)
	a, err := os.ReadFile(writeImage(t, one))
	require.NoError(t, err)
	b, err := os.ReadFile(writeImage(t, two))
	require.NoError(t, err)
	require.True(t, bytes.Equal(a, b))
}

// shortReader lies about its length, like a file that somebody truncates.
type shortReader struct{ io.ReaderAt }

func (s shortReader) ReadAt(p []byte, offset int64) (int, error) {
	if offset >= 3 {
		return 0, io.EOF
	}
	n, err := s.ReaderAt.ReadAt(p[:min(len(p), int(3-offset))], offset)
	if err == nil && n < len(p) {
		err = io.EOF
	}
	return n, err
}

func TestShortContentIsAnError(t *testing.T) {
	for _, size := range []int64{10, 10_000} {
		merged := newTree()
		merged.root.children["x"] = &entry{name: "x", mode: 0o644, content: content{from: shortReader{strings.NewReader(strings.Repeat("x", 10_000))}, size: size}}
		out, err := os.Create(filepath.Join(t.TempDir(), "image"))
		require.NoError(t, err)
		defer out.Close()
		err = writeErofs(t.Context(), merged, out, t.TempDir(), func(int64) {})
		require.Error(t, err)
		require.True(t, errors.Is(err, io.ErrUnexpectedEOF) || strings.Contains(err.Error(), "short read"), "%v", err)
	}
}
