package image

import (
	"archive/tar"
	"bytes"
	"io"
	"os"
	"strings"
	"testing"

	"carrel.dev/carrel/internal/carrel"
	"github.com/stretchr/testify/require"
)

func TestLayersMerge(t *testing.T) {
	for _, c := range []struct {
		name   string
		layers [][]any
		want   []string
	}{
		{"a later file replaces", [][]any{{"a=1", "b=1"}, {"a=2"}}, []string{"a=2", "b=1"}},
		{"a directory over a directory keeps its files", [][]any{{"d/", "d/a=1"}, {"d/", "d/b=2"}}, []string{"d/", "d/a=1", "d/b=2"}},
		{"a file over a directory removes its files", [][]any{{"d/", "d/a=1"}, {"d=2"}}, []string{"d=2"}},
		{"a directory over a file", [][]any{{"d=1"}, {"d/", "d/a=2"}}, []string{"d/", "d/a=2"}},
		{"a whiteout removes a file", [][]any{{"d/", "d/a=1", "d/b=1"}, {"d/.wh.a="}}, []string{"d/", "d/b=1"}},
		{"a whiteout removes a directory", [][]any{{"d/", "d/e/", "d/e/a=1"}, {"d/.wh.e="}}, []string{"d/"}},
		{"a whiteout hides only the layers below", [][]any{{"a=1"}, {"a=2", ".wh.a="}}, []string{"a=2"}},
		{"a whiteout of nothing is nothing", [][]any{{"a=1"}, {"x/y/.wh.z="}}, []string{"a=1"}},
		{"an opaque directory hides the layers below", [][]any{{"d/", "d/a=1", "d/e/", "d/e/f=1"}, {"d/", "d/b=2", "d/.wh..wh..opq="}}, []string{"d/", "d/b=2"}},
		{"an opaque root", [][]any{{"a=1"}, {".wh..wh..opq=", "b=2"}}, []string{"b=2"}},
		{"another driver's notes are nothing", [][]any{{".wh..wh.plnk/", ".wh..wh.aufs=", "a=1"}}, []string{"a=1"}},
		{"a hard link is the same file", [][]any{{"a=1", "b => a"}}, []string{"a=1", "b=1"}},
		{"a hard link to a layer below", [][]any{{"a=1"}, {"b => ./a"}}, []string{"a=1", "b=1"}},
		{"removing one name of a hard link", [][]any{{"a=1", "b => a"}, {".wh.a="}}, []string{"b=1"}},
		{"missing directories are made", [][]any{{"x/y/z=1"}}, []string{"x/", "x/y/", "x/y/z=1"}},
		{"a file through a linked directory", [][]any{{"usr/", "usr/bin/", "bin -> usr/bin"}, {"bin/sh=1"}}, []string{"bin -> usr/bin", "usr/", "usr/bin/", "usr/bin/sh=1"}},
		{"a link to an absolute path stays inside", [][]any{{"etc/", "x -> /etc"}, {"x/a=1"}}, []string{"etc/", "etc/a=1", "x -> /etc"}},
		{"a whiteout through a linked directory", [][]any{{"usr/", "usr/a=1", "x -> usr"}, {"x/.wh.a="}}, []string{"usr/", "x -> usr"}},
		{"a link that leads out is kept as it is", [][]any{{"x -> ../../../etc/shadow"}}, []string{"x -> ../../../etc/shadow"}},
		{"a name with a dot first", [][]any{{"./", "./a=1", "./.b=2"}}, []string{".b=2", "a=1"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var layers [][]byte
			for _, l := range c.layers {
				layers = append(layers, makeTar(t, l...))
			}
			merged, err := merge(t, Limits{}, layers...)
			require.NoError(t, err)
			require.Equal(t, c.want, merged.show())
		})
	}
}

func TestHostileLayersAreRefused(t *testing.T) {
	bad := func(change func(*tar.Header)) item {
		h := header("x", 0o644)
		change(h)
		return item{h, ""}
	}
	loop := []any{}
	for range 3 {
		loop = append(loop, "a -> b", "b -> a")
	}
	for _, c := range []struct {
		name, reason string
		layers       [][]any
	}{
		{"an absolute path", "image_layer_invalid", [][]any{{"/etc/passwd=x"}}},
		{"a way out", "image_layer_invalid", [][]any{{"../x=1"}}},
		{"a way out in the middle", "image_layer_invalid", [][]any{{"a/../../x=1"}}},
		{"a hard link out", "image_layer_invalid", [][]any{{"a => ../etc/shadow"}}},
		{"a hard link to an absolute path", "image_layer_invalid", [][]any{{"a => /etc/shadow"}}},
		{"a hard link to nothing", "image_layer_invalid", [][]any{{"a => b"}}},
		{"a hard link to a directory", "image_layer_invalid", [][]any{{"b/", "a => b"}}},
		{"a file through a link out", "image_layer_invalid", [][]any{{"x -> ../../etc", "x/passwd=1"}}},
		{"a whiteout through a link out", "image_layer_invalid", [][]any{{"x -> .."}, {"x/.wh.etc="}}},
		{"links in a circle", "image_layer_invalid", [][]any{append(loop, "a/x=1")}},
		{"a file in a file", "image_layer_invalid", [][]any{{"a=1", "a/b=1"}}},
		{"a whiteout of the directory itself", "image_layer_invalid", [][]any{{"a/.wh.."}}},
		{"a root that is a file", "image_layer_invalid", [][]any{{item{header(".", 0o644), "x"}}}},
		{"an impossible owner", "image_layer_invalid", [][]any{{bad(func(h *tar.Header) { h.Uid = 1 << 40 })}}},
		{"a long name", "image_layer_invalid", [][]any{{strings.Repeat("n", 256) + "=1"}}},
		{"a long path", "image_layer_invalid", [][]any{{strings.Repeat("d/", 2100) + "x=1"}}},
		{"a path made long by links", "image_layer_invalid", [][]any{{strings.Repeat("d/", 1500) + "e/", "l -> " + strings.Repeat("d/", 1500)}, {"l/" + strings.Repeat("d/", 1500) + "x=1"}}},
		{"a link to nothing", "image_layer_invalid", [][]any{{bad(func(h *tar.Header) { h.Typeflag, h.Linkname = tar.TypeSymlink, strings.Repeat("x", 5000) })}}},
		{"an impossible device", "image_layer_invalid", [][]any{{bad(func(h *tar.Header) { h.Typeflag, h.Devmajor = tar.TypeChar, 1<<20 })}}},
		{"too many files", "image_too_large", [][]any{{"a=1", "b=1", "c=1", "d=1", "e=1", "f=1", "g=1", "h=1", "i=1", "j=1", "k=1"}}},
		{"too many bytes", "image_too_large", [][]any{{"a=" + strings.Repeat("x", 600)}, {"b=" + strings.Repeat("x", 600)}}},
		{"too long names", "image_too_large", [][]any{{strings.Repeat("n", 200) + "=1", strings.Repeat("m", 200) + "=1", strings.Repeat("o/", 1000) + "x=1"}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var layers [][]byte
			for _, l := range c.layers {
				layers = append(layers, makeTar(t, l...))
			}
			limits := Limits{}
			if c.reason == "image_too_large" {
				limits = Limits{Entries: 10, Bytes: 1000, NameBytes: 1000}
			}
			_, err := merge(t, limits, layers...)
			require.Equal(t, c.reason, carrel.ReasonOf(err), "%v", err)
			require.Equal(t, carrel.CodeInvalid, carrel.CodeOf(err))
		})
	}
}

func TestDamagedLayersAreRefused(t *testing.T) {
	whole := makeTar(t, "a=1", "b="+strings.Repeat("x", 5000))
	for name, data := range map[string][]byte{
		"not a tar file": bytes.Repeat([]byte("carrel "), 500),
		"cut off":        whole[:2000],
	} {
		_, err := merge(t, Limits{}, data)
		require.Equal(t, "image_layer_invalid", carrel.ReasonOf(err), "%s: %v", name, err)
	}
}

// sparseTar is a GNU sparse file of PAX format 1.0: 1 MiB long with "middle" at 512 KiB.
func sparseTar(t testing.TB) []byte {
	t.Helper()
	body := "1\n524288\n512\n"
	body += strings.Repeat("\x00", 512-len(body)) + "middle" + strings.Repeat("\x00", 506)
	var buffer bytes.Buffer
	w := tar.NewWriter(&buffer)
	// The writer has no sparse files and refuses these records: they are renamed once they are written.
	require.NoError(t, w.WriteHeader(&tar.Header{Name: "GNUSparseFile.0/hole", Mode: 0o644, Size: int64(len(body)), Typeflag: tar.TypeReg, Format: tar.FormatPAX,
		PAXRecords: map[string]string{"XXX.sparse.major": "1", "XXX.sparse.minor": "0", "XXX.sparse.name": "hole", "XXX.sparse.realsize": "1048576"}}))
	_, err := io.WriteString(w, body)
	require.NoError(t, err)
	require.NoError(t, w.Close())
	return bytes.ReplaceAll(buffer.Bytes(), []byte("XXX.sparse"), []byte("GNU.sparse"))
}

func TestSparseFilesAreWrittenOut(t *testing.T) {
	merged, err := merge(t, Limits{}, sparseTar(t))
	require.NoError(t, err)
	e := merged.lookup("/hole")
	require.NotNil(t, e)
	text, ok, err := e.text()
	require.NoError(t, err)
	require.True(t, ok)
	require.Len(t, text, 1<<20)
	require.Equal(t, "middle", text[512<<10:512<<10+6])
	require.Equal(t, "middle", strings.Trim(text, "\x00"))
	_, err = merge(t, Limits{Bytes: 1 << 19}, sparseTar(t))
	require.Equal(t, "image_too_large", carrel.ReasonOf(err))
}

func TestFinishGivesEveryImageWhatABoxNeeds(t *testing.T) {
	merged, err := merge(t, Limits{}, makeTar(t, item{header("./", 0o000), ""}, "dev/", "dev/x=1", "proc=1", "tmp -> /var/tmp", ".carrel -> /etc", "home -> nowhere",
		"bin/bash=", "usr/bin/sudo=", "etc/", "etc/passwd=root:x:0:0::/root:/bin/sh\nnode:x:1000:1000::/home/node:/bin/sh", "etc/shadow=root:*:1:::::", "etc/machine-id=1234", "etc/resolv.conf -> ../run/resolv.conf", "run/", "run/x/"))
	require.NoError(t, err)
	require.NoError(t, merged.finish())
	require.Equal(t, []string{
		".carrel/", ".carrel/bin/", ".carrel/identity/", "bin/", "bin/bash=", "dev/",
		"etc/", "etc/group=root:x:0:\ncarrel:x:1000:\n", "etc/hostname=localhost\n", "etc/hosts=127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n",
		"etc/machine-id=", "etc/passwd=root:x:0:0::/root:/bin/sh\ncarrel:x:1000:1000::/home/carrel:/bin/bash\nnode:x:1000:1000::/home/node:/bin/sh\n", "etc/resolv.conf=",
		"etc/shadow=root:*:1:::::\ncarrel:!:19000:0:99999:7:::\n", "etc/sudoers.d/", "etc/sudoers.d/carrel=carrel ALL=(ALL) NOPASSWD:ALL\n",
		"home/", "home/carrel/", "proc/", "run/", "run/x/", "sys/", "tmp/", "usr/", "usr/bin/", "usr/bin/sudo=",
	}, merged.show())
	require.Equal(t, "drwxr-xr-x", merged.root.mode.String())
	require.Equal(t, "dtrwxrwxrwx", merged.root.children["tmp"].mode.String())
	require.Equal(t, uint32(boxUID), merged.lookup("/home/carrel").uid)

	empty := newTree()
	require.NoError(t, empty.finish())
	require.Contains(t, empty.show(), "etc/passwd=root:x:0:0:root:/root:/bin/sh\ncarrel:x:1000:1000::/home/carrel:/bin/sh\n")
	before := empty.show()
	require.NoError(t, empty.finish())
	require.Equal(t, before, empty.show(), "an image that is finished stays as it is")
}

func TestNormalizeForgetsWhenAndWhere(t *testing.T) {
	old, now := header("usr/bin/x", 0o755), header("var/lib/made", 0o644)
	now.ModTime = stamp.AddDate(1, 0, 0)
	merged, err := merge(t, Limits{}, makeTar(t, item{old, ""}, item{now, ""}, "etc/shadow=root:*:20001:0:99999:7:::\n", "etc/passwd-=x", "var/log/", "var/log/dpkg.log=x", "var/log/apt/", "var/log/apt/term.log=x",
		"var/lib/dpkg/status=Package: b\nStatus: install ok installed\nVersion: 2\n\nPackage: gone\nStatus: deinstall ok config-files\nVersion: 1\n\nPackage: a\nStatus: install ok installed\nVersion: 1:3\n"))
	require.NoError(t, err)
	packages, err := merged.normalize(stamp.AddDate(0, 6, 0))
	require.NoError(t, err)
	require.Equal(t, []string{"a=1:3", "b=2"}, packages)
	require.Equal(t, stamp.Unix(), merged.lookup("/var/lib/made").mtime.Unix(), "what the build wrote has the time of the newest package file")
	require.Contains(t, merged.show(), "etc/shadow=root:*:19000:0:99999:7:::\n")
	require.Nil(t, merged.lookup("/etc/passwd-"))
	require.Nil(t, merged.lookup("/var/log/dpkg.log"))
	require.Nil(t, merged.lookup("/var/log/apt/term.log"))
	require.NotNil(t, merged.lookup("/var/log/apt"))
}

func TestExclude(t *testing.T) {
	merged, err := merge(t, Limits{}, makeTar(t, "usr/include/boost/a/b=1", "usr/lib/x/tests/t=1", "usr/lib/x/y/tests/t=1", "usr/lib/x/testing=1", "usr/lib/liba.a=1"))
	require.NoError(t, err)
	merged.exclude([]string{"/usr/include/boost/*", "/usr/lib/x/*/tests", "/usr/lib/lib?.a"})
	require.Equal(t, []string{"usr/", "usr/include/", "usr/include/boost/", "usr/lib/", "usr/lib/x/", "usr/lib/x/testing=1", "usr/lib/x/tests/", "usr/lib/x/tests/t=1", "usr/lib/x/y/"}, merged.show())
}

func FuzzLayer(f *testing.F) {
	f.Add(makeTar(f, "a/", "a/b=1", "c -> a", "d => a/b"), makeTar(f, "c/x=2", "a/.wh.b=", "a/.wh..wh..opq="))
	f.Add(makeTar(f, "x -> ../..", "/abs=1"), makeTar(f, "x/y=1"))
	f.Add(sparseTar(f), []byte{})
	limits := Limits{Entries: 1000, Bytes: 4 << 20, NameBytes: 1 << 20}
	f.Fuzz(func(t *testing.T, lower, upper []byte) {
		merged, err := merge(t, limits, lower, upper)
		if err != nil {
			return
		}
		require.NoError(t, merged.finish())
		if _, bytes := merged.count(); bytes > limits.Bytes {
			return
		}
		out, err := os.CreateTemp(t.TempDir(), "image")
		require.NoError(t, err)
		defer out.Close()
		require.NoError(t, writeErofs(t.Context(), merged, out, t.TempDir(), func(int64) {}))
	})
}
