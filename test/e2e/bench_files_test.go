//go:build bench

package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
)

// fileServer is what stands at the other end of the baseline: it takes a file or gives one, byte for byte.
const fileServer = `
import os, socket
listener = socket.create_server(("127.0.0.1", 9000))
print("ready", flush=True)
while True:
    conn, _ = listener.accept()
    buf = bytearray(1 << 20)
    if conn.recv(1) == b"u":
        with open("raw", "wb", buffering=0) as f:
            while n := conn.recv_into(buf):
                f.write(memoryview(buf)[:n])
            os.fsync(f.fileno())
        conn.sendall(b".")
    else:
        with open("raw", "rb", buffering=0) as f:
            while n := f.readinto(buf):
                conn.sendall(memoryview(buf)[:n])
    conn.close()
`

const (
	fileBytes  = 512_000_000
	fileRounds = 4
)

// TestBenchFiles measures `carrel cp` of 512 MB up and down, against a connection through the agent's splice to a program in the same box that writes to
// and reads from the same disk, in turns.
func TestBenchFiles(t *testing.T) {
	s := newStack(t, options{})
	b := s.newFileBench(fileBytes)
	fmt.Printf("\n| what | Carrel | splice | ratio, median of rounds (p10 to p90) |\n| --- | --- | --- | --- |\n%s%s",
		b.turns("up", b.up, b.rawUp), b.turns("down", b.down, b.rawDown))
	require.Equal(t, b.sum, sumOf(t, b.path("copy")), "what came back is not what was sent")
	s.remove("files")
}

// fileBench has a file of size bytes here, and a box that it is copied to and from.
type fileBench struct {
	s            *stack
	size         int
	dir          string
	address, key string // of the agent
	sum          string // of the file
}

// newFileBench makes the box and starts the program in it that the baseline speaks to.
func (s *stack) newFileBench(size int) *fileBench {
	s.t.Helper()
	box := s.create("files", func(r *carrelv1.CreateBoxRequest) {
		r.Resources = &carrelv1.Resources{HomeBytes: 3 << 30, MemoryBytes: 768 << 20, CpuMillis: 2000}
	})
	b := &fileBench{s: s, size: size, dir: s.t.TempDir(), address: s.agentAddress(box)}
	b.sum = randomFile(s.t, b.path("big"), int64(size))
	s.sh("files", "cat > server.py <<'EOF'\n"+fileServer+"\nEOF")
	server := s.background("files", "exec python3 server.py")
	s.eventually("the server listens", func() bool { return s.carrel("logs", "files", "--process", server).stdout == "ready\n" })
	data, err := os.ReadFile(filepath.Join(s.runDir, "identities", box.GetRunId(), "identity.json"))
	require.NoError(s.t, err)
	var identity struct{ Key string }
	require.NoError(s.t, json.Unmarshal(data, &identity))
	b.key = identity.Key
	return b
}

func (b *fileBench) path(name string) string { return filepath.Join(b.dir, name) }

// turns measures both sides, each time the other one first, and gives a row of MB/s.
func (b *fileBench) turns(name string, ours, raw func()) string {
	rate := func(f func()) float64 {
		began := time.Now()
		f()
		return float64(b.size) / 1e6 / time.Since(began).Seconds()
	}
	var carrel, splice, ratios series
	for i := range fileRounds {
		var one, two float64
		if i%2 == 0 {
			one = rate(ours)
		}
		two = rate(raw)
		if i%2 != 0 {
			one = rate(ours)
		}
		b.s.t.Logf("%s: %.0f against %.0f MB/s", name, one, two)
		carrel, splice, ratios = append(carrel, one), append(splice, two), append(ratios, one/two)
	}
	return fmt.Sprintf("| `carrel cp` of %d MB %s, MB/s | %.0f | %.0f | **%.2f** (%.2f to %.2f) |\n", b.size/1e6, name,
		carrel.quantile(0.5), splice.quantile(0.5), ratios.quantile(0.5), ratios.quantile(0.1), ratios.quantile(0.9))
}

func (b *fileBench) up() {
	// An upload that the box remembers as done, of a file that has not changed, is not sent again.
	require.NoError(b.s.t, os.Chtimes(b.path("big"), time.Time{}, time.Now()))
	b.s.must("cp", b.path("big"), "files:copy")
}

func (b *fileBench) down() { b.s.must("cp", "files:copy", b.path("copy")) }

// raw opens a connection to the program in the box and says what is wanted.
func (b *fileBench) raw(verb string) (*net.TCPConn, io.Reader) {
	b.s.t.Helper()
	conn, err := net.Dial("tcp", b.address)
	require.NoError(b.s.t, err)
	_, err = fmt.Fprintf(conn, "carrel/1 %s tcp/127.0.0.1:9000\n", b.key)
	require.NoError(b.s.t, err)
	in := bufio.NewReaderSize(conn, 1<<20)
	line, err := in.ReadString('\n')
	require.NoError(b.s.t, err)
	require.Equal(b.s.t, "ok\n", line)
	_, err = io.WriteString(conn, verb)
	require.NoError(b.s.t, err)
	return conn.(*net.TCPConn), in
}

func (b *fileBench) rawUp() {
	conn, in := b.raw("u")
	defer conn.Close()
	file, err := os.Open(b.path("big"))
	require.NoError(b.s.t, err)
	defer file.Close()
	_, err = io.Copy(conn, file)
	require.NoError(b.s.t, err)
	require.NoError(b.s.t, conn.CloseWrite())
	_, err = io.ReadFull(in, make([]byte, 1))
	require.NoError(b.s.t, err)
}

func (b *fileBench) rawDown() {
	conn, in := b.raw("d")
	defer conn.Close()
	file, err := os.Create(b.path("raw"))
	require.NoError(b.s.t, err)
	defer file.Close()
	n, err := io.Copy(file, in)
	require.NoError(b.s.t, err)
	require.EqualValues(b.s.t, b.size, n)
	require.NoError(b.s.t, file.Sync())
}
