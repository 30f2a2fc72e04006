package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"carrel.dev/carrel/internal/carrel"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	ocilayout "github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"
	"github.com/stretchr/testify/require"
)

// testRegistry is a registry in this process. Answers can be changed on their way.
type testRegistry struct {
	host     string
	inner    http.Handler
	change   atomic.Pointer[func(http.ResponseWriter, *http.Request) bool] // true: answered
	requests atomic.Int64
}

func newRegistry(t testing.TB) *testRegistry { return newRegistryAt(t, "127.0.0.1") }

func newRegistryAt(t testing.TB, ip string) *testRegistry {
	t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(ip, "0"))
	require.NoError(t, err)
	r := &testRegistry{inner: registry.New(registry.Logger(log.New(io.Discard, "", 0)))}
	server := &httptest.Server{Listener: l, Config: &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		r.requests.Add(1)
		if f := r.change.Load(); f != nil && (*f)(w, q) {
			return
		}
		r.inner.ServeHTTP(w, q)
	})}}
	server.Start()
	t.Cleanup(server.Close)
	r.host = strings.TrimPrefix(server.URL, "http://")
	return r
}

func (r *testRegistry) ref(name string) string { return r.host + "/" + name }

func (r *testRegistry) intercept(f func(http.ResponseWriter, *http.Request) bool) { r.change.Store(&f) }

func layerOf(t testing.TB, mediaType types.MediaType, data []byte) v1.Layer {
	t.Helper()
	var packed bytes.Buffer
	switch mediaType {
	case types.OCILayerZStd:
		w, err := zstd.NewWriter(&packed)
		require.NoError(t, err)
		_, err = w.Write(data)
		require.NoError(t, err)
		require.NoError(t, w.Close())
	case types.OCIUncompressedLayer:
		packed.Write(data)
	default:
		w := gzip.NewWriter(&packed)
		_, err := w.Write(data)
		require.NoError(t, err)
		require.NoError(t, w.Close())
	}
	return fixedLayer{packed.Bytes(), data, mediaType}
}

// fixedLayer is a layer as it is: the library's own would compress and unpack by itself.
type fixedLayer struct {
	packed, plain []byte
	mediaType     types.MediaType
}

func hashOf(data []byte) (v1.Hash, error) { return v1.NewHash(digestOf(data)) }

func (l fixedLayer) Digest() (v1.Hash, error)            { return hashOf(l.packed) }
func (l fixedLayer) DiffID() (v1.Hash, error)            { return hashOf(l.plain) }
func (l fixedLayer) Size() (int64, error)                { return int64(len(l.packed)), nil }
func (l fixedLayer) MediaType() (types.MediaType, error) { return l.mediaType, nil }
func (l fixedLayer) Compressed() (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(l.packed)), nil
}
func (l fixedLayer) Uncompressed() (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(l.plain)), nil
}

func imageOf(t testing.TB, arch string, layers ...v1.Layer) v1.Image {
	t.Helper()
	image, err := mutate.AppendLayers(mutate.MediaType(mutate.ConfigMediaType(empty.Image, types.OCIConfigJSON), types.OCIManifestSchema1), layers...)
	require.NoError(t, err)
	config, err := image.ConfigFile()
	require.NoError(t, err)
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", arch
	config.Config = v1.Config{Env: []string{"PATH=/bin", "A=b"}, User: "node", WorkingDir: "/app", Entrypoint: []string{"/bin/run"}, Cmd: []string{"it"}}
	image, err = mutate.ConfigFile(image, config)
	require.NoError(t, err)
	return image
}

func (r *testRegistry) push(t testing.TB, ref string, what remote.Taggable) {
	t.Helper()
	reference, err := name.ParseReference(ref, name.Insecure)
	require.NoError(t, err)
	switch what := what.(type) {
	case v1.Image:
		require.NoError(t, remote.Write(reference, what))
	case v1.ImageIndex:
		require.NoError(t, remote.WriteIndex(reference, what))
	}
}

func twoLayers(t testing.TB) []v1.Layer {
	return []v1.Layer{
		layerOf(t, types.OCILayer, makeTar(t, "bin/", "bin/sh=shell", "old=1", "d/", "d/a=1")),
		layerOf(t, types.OCILayerZStd, makeTar(t, ".wh.old=", "d/.wh..wh..opq=", "d/b=2", "bin/bash => bin/sh")),
		layerOf(t, types.OCIUncompressedLayer, makeTar(t, "last=3")),
	}
}

// requireImported checks that a result holds what twoLayers say.
func requireImported(t testing.TB, b *Builder, got Result) {
	t.Helper()
	require.Equal(t, ProcessConfig{Env: []string{"PATH=/bin", "A=b"}, User: "node", WorkingDir: "/app", Entrypoint: []string{"/bin/run"}, Cmd: []string{"it"}}, got.Description.Config)
	require.Equal(t, b.store.imagePath(got.Digest), got.Path)
	actual, size, err := hashFile(t.Context(), got.Path, false)
	require.NoError(t, err)
	require.Equal(t, got.Digest, actual)
	require.Equal(t, got.Size, size)
	found, err := b.Find(t.Context(), got.Digest)
	require.NoError(t, err)
	require.Equal(t, got.Description, found.Description)
	requireClean(t, b)
	if testing.Short() {
		return
	}
	withMount(t, got.Path, func(dir string) {
		files := describe(t, dir)
		require.Contains(t, files["bin/bash"], `"shell"`)
		require.Contains(t, files, "d/b")
		require.Contains(t, files, "last")
		require.NotContains(t, files, "old")
		require.NotContains(t, files, "d/a")
		for _, needed := range []string{".carrel/bin", ".carrel/identity", "home/carrel", "tmp", "dev", "proc", "sys"} {
			require.Contains(t, files[needed], "d", needed)
		}
	})
}

func TestImportFromARegistry(t *testing.T) {
	r, b := newRegistry(t), newBuilder(t, Config{})
	r.push(t, r.ref("team/app:1"), imageOf(t, "amd64", twoLayers(t)...))
	var lines []string
	got, err := b.Import(t.Context(), ImportRequest{Reference: r.ref("team/app:1"), Platform: "linux/amd64", Insecure: true, Trusted: true}, func(s string) { lines = append(lines, s) })
	require.NoError(t, err)
	require.False(t, got.Cached)
	require.NotEmpty(t, lines)
	require.Equal(t, r.ref("team/app:1"), got.Description.Source)
	require.Equal(t, "linux/amd64", got.Description.Platform)
	requireImported(t, b, got)

	before := r.requests.Load()
	again, err := b.Import(t.Context(), ImportRequest{Reference: r.ref("team/app@" + got.Description.Manifest), Platform: "linux/amd64", Insecure: true, Trusted: true}, nil)
	require.NoError(t, err)
	require.True(t, again.Cached)
	require.Equal(t, got.Digest, again.Digest)
	require.LessOrEqual(t, r.requests.Load()-before, int64(4), "only the manifest and the configuration are asked for")
}

func TestImportChoosesThePlatform(t *testing.T) {
	r, b := newRegistry(t), newBuilder(t, Config{})
	amd := imageOf(t, "amd64", twoLayers(t)...)
	arm := imageOf(t, "arm64", layerOf(t, types.OCILayer, makeTar(t, "arm=1")))
	index := mutate.AppendManifests(mutate.IndexMediaType(empty.Index, types.OCIImageIndex),
		mutate.IndexAddendum{Add: imageOf(t, "unknown"), Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "unknown", Architecture: "unknown"}, Annotations: map[string]string{"vnd.docker.reference.type": "attestation-manifest"}}},
		mutate.IndexAddendum{Add: arm, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "arm64", Variant: "v8"}}},
		mutate.IndexAddendum{Add: amd, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "amd64"}}},
	)
	outer := mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: index})
	r.push(t, r.ref("app:multi"), outer)
	got, err := b.Import(t.Context(), ImportRequest{Reference: r.ref("app:multi"), Platform: "linux/amd64", Insecure: true, Trusted: true}, nil)
	require.NoError(t, err)
	requireImported(t, b, got)
	other, err := b.Import(t.Context(), ImportRequest{Reference: r.ref("app:multi"), Platform: "linux/arm64", Insecure: true, Trusted: true}, nil)
	require.NoError(t, err)
	require.NotEqual(t, got.Digest, other.Digest)

	_, err = b.Import(t.Context(), ImportRequest{Reference: r.ref("app:multi"), Platform: "linux/riscv64", Insecure: true, Trusted: true}, nil)
	require.Equal(t, "image_platform_missing", carrel.ReasonOf(err))
	require.ErrorContains(t, err, "does not exist for linux/riscv64; it is there for linux/amd64, linux/arm64/v8")
	r.push(t, r.ref("app:arm"), arm)
	_, err = b.Import(t.Context(), ImportRequest{Reference: r.ref("app:arm"), Platform: "linux/amd64", Insecure: true, Trusted: true}, nil)
	require.ErrorContains(t, err, "does not exist for linux/amd64; it is there for linux/arm64")
	_, err = b.Import(t.Context(), ImportRequest{Reference: r.ref("app:arm"), Platform: "windows/amd64", Insecure: true, Trusted: true}, nil)
	require.Equal(t, "bad_platform", carrel.ReasonOf(err))
	requireClean(t, b)
}

func TestImportRefusesWhatWasTamperedWith(t *testing.T) {
	r := newRegistry(t)
	layers := twoLayers(t)
	image := imageOf(t, "amd64", layers...)
	r.push(t, r.ref("app:1"), image)
	manifest, err := image.Digest()
	require.NoError(t, err)
	config, err := image.ConfigName()
	require.NoError(t, err)
	other := layerOf(t, types.OCILayer, makeTar(t, "evil=1"))
	replace := func(path string, with func(old []byte) []byte) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, q *http.Request) bool {
			if q.Method != http.MethodGet || !strings.HasSuffix(q.URL.Path, path) {
				return false
			}
			record := httptest.NewRecorder()
			r.inner.ServeHTTP(record, q)
			data := with(record.Body.Bytes())
			for key, values := range record.Header() {
				if key != "Content-Length" {
					w.Header()[key] = values
				}
			}
			_, _ = w.Write(data)
			return true
		}
	}
	digest := func(l v1.Layer) string {
		d, err := l.Digest()
		require.NoError(t, err)
		return d.String()
	}
	evil := func([]byte) []byte {
		c, err := other.Compressed()
		require.NoError(t, err)
		data, err := io.ReadAll(c)
		require.NoError(t, err)
		return data
	}
	flip := func(old []byte) []byte { old = bytes.Clone(old); old[len(old)-40] ^= 1; return old }
	for name, c := range map[string]struct {
		ref    string
		change func(http.ResponseWriter, *http.Request) bool
	}{
		"another gzip layer":         {"app:1", replace(digest(layers[0]), evil)},
		"a bit in a gzip layer":      {"app:1", replace(digest(layers[0]), flip)},
		"a bit in a zstd layer":      {"app:1", replace(digest(layers[1]), flip)},
		"a bit in a plain layer":     {"app:1", replace(digest(layers[2]), flip)},
		"something after a layer":    {"app:1", replace(digest(layers[2]), func(old []byte) []byte { return append(bytes.Clone(old), 0) })},
		"a layer that is cut off":    {"app:1", replace(digest(layers[2]), func(old []byte) []byte { return old[:len(old)-512] })},
		"the configuration":          {"app:1", replace(config.String(), func(old []byte) []byte { return bytes.ReplaceAll(old, []byte("node"), []byte("root")) })},
		"the manifest that is named": {"app@" + manifest.String(), replace(manifest.String(), func(old []byte) []byte { return append(bytes.Clone(old), '\n') })},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBuilder(t, Config{})
			r.intercept(c.change)
			_, err := b.Import(t.Context(), ImportRequest{Reference: r.ref(c.ref), Platform: "linux/amd64", Insecure: true, Trusted: true}, nil)
			require.Error(t, err)
			require.Contains(t, []string{"image_digest_mismatch", "image_layer_invalid"}, carrel.ReasonOf(err), "%v", err)
			left, err := b.List()
			require.NoError(t, err)
			require.Empty(t, left)
			requireClean(t, b)
		})
	}
}

func TestImportChecksTheUnpackedLayer(t *testing.T) {
	r, b := newRegistry(t), newBuilder(t, Config{})
	image := imageOf(t, "amd64", layerOf(t, types.OCILayer, makeTar(t, "a=1")))
	config, err := image.ConfigFile()
	require.NoError(t, err)
	config = config.DeepCopy()
	config.RootFS.DiffIDs[0].Hex = strings.Repeat("0", 64)
	image, err = mutate.ConfigFile(image, config)
	require.NoError(t, err)
	r.push(t, r.ref("app:1"), image)
	_, err = b.Import(t.Context(), ImportRequest{Reference: r.ref("app:1"), Platform: "linux/amd64", Insecure: true, Trusted: true}, nil)
	require.Equal(t, "image_digest_mismatch", carrel.ReasonOf(err), "%v", err)
	requireClean(t, b)
}

func TestImportRefusesBombs(t *testing.T) {
	r, b := newRegistry(t), newBuilder(t, Config{Limits: Limits{Bytes: 10 << 20, Layers: 3}})
	zeros := strings.Repeat("\x00", 12<<20)
	for ref, image := range map[string]v1.Image{
		"one file":            imageOf(t, "amd64", layerOf(t, types.OCILayer, makeTar(t, "big="+zeros))),
		"after the archive":   imageOf(t, "amd64", layerOf(t, types.OCILayer, append(makeTar(t, "a=1"), zeros...))),
		"zstd":                imageOf(t, "amd64", layerOf(t, types.OCILayerZStd, makeTar(t, "big="+zeros))),
		"hard links":          imageOf(t, "amd64", layerOf(t, types.OCILayer, makeTar(t, "big="+zeros[:3<<20], "b => big", "c => big", "d => big"))),
		"too many layers":     imageOf(t, "amd64", append(twoLayers(t), twoLayers(t)...)...),
		"together, in layers": imageOf(t, "amd64", layerOf(t, types.OCILayer, makeTar(t, "a="+zeros[:6<<20])), layerOf(t, types.OCILayer, makeTar(t, "a="+zeros[:6<<20]))),
	} {
		tag := strings.NewReplacer(" ", "-", ",", "").Replace(ref)
		r.push(t, r.ref("app:"+tag), image)
		_, err := b.Import(t.Context(), ImportRequest{Reference: r.ref("app:" + tag), Platform: "linux/amd64", Insecure: true, Trusted: true}, nil)
		require.Equal(t, "image_too_large", carrel.ReasonOf(err), "%s: %v", ref, err)
		requireClean(t, b)
	}
}

func TestImportErrorsInWords(t *testing.T) {
	r, b := newRegistry(t), newBuilder(t, Config{Stall: 200 * time.Millisecond})
	r.push(t, r.ref("app:1"), imageOf(t, "amd64", twoLayers(t)...))
	closed := httptest.NewServer(nil)
	closed.Close()
	for _, c := range []struct {
		ref, reason string
		change      func(http.ResponseWriter, *http.Request) bool
	}{
		{"NOT a reference", "bad_reference", nil},
		{"oci:/does/not/exist", "bad_reference", nil},
		{"tar:/does/not/exist", "bad_reference", nil},
		{"tar:/dev/zero", "bad_reference", nil},
		{r.ref("app:2"), "image_not_found", nil},
		{strings.TrimPrefix(closed.URL, "http://") + "/app:1", "registry_unreachable", nil},
		{r.ref("app:1"), "image_denied", func(w http.ResponseWriter, _ *http.Request) bool {
			w.WriteHeader(http.StatusUnauthorized)
			return true
		}},
		{r.ref("app:1"), "image_unsupported", func(w http.ResponseWriter, q *http.Request) bool {
			if !strings.Contains(q.URL.Path, "/manifests/") {
				return false
			}
			w.Header().Set("Content-Type", string(types.DockerManifestSchema1))
			_, _ = io.WriteString(w, `{"schemaVersion": 1}`)
			return true
		}},
		{r.ref("app:1"), "registry_unreachable", func(w http.ResponseWriter, q *http.Request) bool {
			if !strings.Contains(q.URL.Path, "/blobs/") || q.Method != http.MethodGet || strings.Contains(q.Header.Get("Accept"), "json") {
				return false
			}
			record := httptest.NewRecorder()
			r.inner.ServeHTTP(record, q)
			if json.Valid(record.Body.Bytes()) {
				return false
			}
			w.Header().Set("Content-Length", fmt.Sprint(record.Body.Len()))
			_, _ = w.Write(record.Body.Bytes()[:10])
			w.(http.Flusher).Flush()
			<-q.Context().Done() // the client has to give up by itself
			return true
		}},
	} {
		r.change.Store(nil)
		if c.change != nil {
			r.intercept(c.change)
		}
		_, err := b.Import(t.Context(), ImportRequest{Reference: c.ref, Platform: "linux/amd64", Insecure: true, Trusted: true}, nil)
		require.Equal(t, c.reason, carrel.ReasonOf(err), "%s: %v", c.ref, err)
		requireClean(t, b)
	}
}

func TestImportTriesABrokenTransferAgain(t *testing.T) {
	r, b := newRegistry(t), newBuilder(t, Config{})
	big := layerOf(t, types.OCIUncompressedLayer, makeTar(t, "a="+strings.Repeat("x", 200_000)))
	r.push(t, r.ref("app:1"), imageOf(t, "amd64", append(twoLayers(t), big)...))
	digest, err := big.Digest()
	require.NoError(t, err)
	broken := atomic.Int64{}
	r.intercept(func(w http.ResponseWriter, q *http.Request) bool {
		if q.Method != http.MethodGet || !strings.HasSuffix(q.URL.Path, digest.String()) || broken.Add(1) > 1 {
			return false
		}
		w.Header().Set("Content-Length", "200000")
		_, _ = w.Write(make([]byte, 1000))
		return true
	})
	got, err := b.Import(t.Context(), ImportRequest{Reference: r.ref("app:1"), Platform: "linux/amd64", Insecure: true, Trusted: true}, nil)
	require.NoError(t, err)
	require.Greater(t, broken.Load(), int64(1))
	requireImported(t, b, got)
}

func TestImportCanBeCancelled(t *testing.T) {
	r, b := newRegistry(t), newBuilder(t, Config{})
	r.push(t, r.ref("app:1"), imageOf(t, "amd64", twoLayers(t)...))
	ctx, cancel := context.WithCancel(t.Context())
	r.intercept(func(_ http.ResponseWriter, q *http.Request) bool {
		if !strings.Contains(q.URL.Path, "/blobs/") {
			return false
		}
		cancel()
		<-q.Context().Done()
		return true
	})
	_, err := b.Import(ctx, ImportRequest{Reference: r.ref("app:1"), Platform: "linux/amd64", Insecure: true, Trusted: true}, nil)
	require.ErrorIs(t, err, context.Canceled)
	requireClean(t, b)
}

func TestImportFromTheDisk(t *testing.T) {
	image, dir := imageOf(t, "amd64", twoLayers(t)...), t.TempDir()
	request := func(ref string) ImportRequest {
		return ImportRequest{Reference: ref, Platform: "linux/amd64", Trusted: true}
	}

	// An OCI layout.
	path, err := ocilayout.Write(filepath.Join(dir, "layout"), empty.Index)
	require.NoError(t, err)
	require.NoError(t, path.AppendImage(image, ocilayout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": "one"})))
	b := newBuilder(t, Config{})
	got, err := b.Import(t.Context(), request("oci:"+string(path)), nil)
	require.NoError(t, err)
	requireImported(t, b, got)

	// Two images in one, chosen by name.
	require.NoError(t, path.AppendImage(imageOf(t, "amd64", layerOf(t, types.OCILayer, makeTar(t, "two=1"))), ocilayout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": "two"})))
	_, err = b.Import(t.Context(), request("oci:"+string(path)), nil)
	require.ErrorContains(t, err, "it holds several images; put a colon and one of these names behind the path: one, two")
	again, err := b.Import(t.Context(), request("oci:"+string(path)+":one"), nil)
	require.NoError(t, err)
	require.Equal(t, got.Digest, again.Digest)
	_, err = b.Import(t.Context(), request("oci:"+string(path)+":three"), nil)
	require.ErrorContains(t, err, `it has no image "three"; it has: one, two`)

	// The same layout as an archive, plain and compressed.
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	require.NoError(t, w.AddFS(os.DirFS(string(path))))
	require.NoError(t, w.Close())
	plain := filepath.Join(dir, "archive.tar")
	require.NoError(t, os.WriteFile(plain, archive.Bytes(), 0o600))
	b = newBuilder(t, Config{})
	fromArchive, err := b.Import(t.Context(), request("tar:"+plain+":one"), nil)
	require.NoError(t, err)
	require.Equal(t, got.Digest, fromArchive.Digest)
	requireImported(t, b, fromArchive)

	// What docker save writes.
	saved := filepath.Join(dir, "saved.tar")
	tag, err := name.NewTag("registry.example/app:1")
	require.NoError(t, err)
	plainImage := imageOf(t, "amd64", layerOf(t, types.OCILayer, makeTar(t, "bin/", "bin/sh=shell", "bin/bash => bin/sh", "d/b=2", "last=3")))
	require.NoError(t, tarball.WriteToFile(saved, tag, plainImage))
	b = newBuilder(t, Config{})
	fromSaved, err := b.Import(t.Context(), request("tar:"+saved), nil)
	require.NoError(t, err)
	requireImported(t, b, fromSaved)
	data, err := os.ReadFile(saved)
	require.NoError(t, err)
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	_, err = z.Write(data)
	require.NoError(t, err)
	require.NoError(t, z.Close())
	require.NoError(t, os.WriteFile(saved+".gz", packed.Bytes(), 0o600))
	b = newBuilder(t, Config{})
	fromPacked, err := b.Import(t.Context(), request("tar:"+saved+".gz:registry.example/app:1"), nil)
	require.NoError(t, err)
	require.Equal(t, fromSaved.Digest, fromPacked.Digest)

	// A damaged one.
	data[bytes.Index(data, []byte{0x1f, 0x8b})+30] ^= 1
	require.NoError(t, os.WriteFile(saved, data, 0o600))
	b = newBuilder(t, Config{})
	_, err = b.Import(t.Context(), request("tar:"+saved), nil)
	require.Equal(t, carrel.CodeInvalid, carrel.CodeOf(err), "%v", err)
	requireClean(t, b)
}

func TestLayoutNeverLeavesItsDirectory(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "secret")
	require.NoError(t, os.WriteFile(secret, []byte("{}"), 0o600))
	dir := t.TempDir()
	require.NoError(t, os.Symlink(secret, filepath.Join(dir, "index.json")))
	b := newBuilder(t, Config{})
	_, err := b.Import(t.Context(), ImportRequest{Reference: "oci:" + dir, Trusted: true}, nil)
	require.Equal(t, "bad_reference", carrel.ReasonOf(err))
	require.ErrorContains(t, err, "escapes")
}

func TestImportRefusesOtherArtifacts(t *testing.T) {
	r, b := newRegistry(t), newBuilder(t, Config{})
	chart := mutate.ConfigMediaType(empty.Image, "application/vnd.cncf.helm.config.v1+json")
	chart, err := mutate.Append(chart, mutate.Addendum{Layer: static.NewLayer([]byte("not a layer"), "application/vnd.cncf.helm.chart.content.v1.tar+gzip")})
	require.NoError(t, err)
	r.push(t, r.ref("chart:1"), chart)
	_, err = b.Import(t.Context(), ImportRequest{Reference: r.ref("chart:1"), Platform: "linux/amd64", Insecure: true, Trusted: true}, nil)
	require.Equal(t, carrel.CodeInvalid, carrel.CodeOf(err), "%v", err)
	requireClean(t, b)
}
