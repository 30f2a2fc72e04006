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
	"strings"
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

// TestBenchFiles measures `carrel cp` of 512 MB against a connection through the agent's splice to a program in the same box that
// reads from and writes to the same disk.
func TestBenchFiles(t *testing.T) {
	const size, rounds = 512_000_000, 3
	s := newStack(t, options{})
	box := s.create("alpha", func(r *carrelv1.CreateBoxRequest) {
		r.Resources = &carrelv1.Resources{HomeBytes: 3 << 30, MemoryBytes: 768 << 20, CpuMillis: 2000}
	})
	dir := t.TempDir()
	big := filepath.Join(dir, "big")
	randomFile(t, big, size)
	s.sh("alpha", "cat > server.py <<'EOF'\n"+fileServer+"\nEOF")
	server := s.background("alpha", "exec python3 server.py")
	s.eventually("the server listens", func() bool {
		r := s.carrel("logs", "alpha", "--process", server)
		return r.stdout == "ready\n"
	})
	address := net.JoinHostPort(strings.Fields(s.sh("alpha", "hostname -I"))[0], "1")
	data, err := os.ReadFile(filepath.Join(s.runDir, "identities", box.GetRunId(), "identity.json"))
	require.NoError(t, err)
	var identity struct{ Key string }
	require.NoError(t, json.Unmarshal(data, &identity))
	raw := func(verb string, f func(net.Conn, io.Reader)) {
		conn, err := net.Dial("tcp", address)
		require.NoError(t, err)
		defer conn.Close()
		_, err = fmt.Fprintf(conn, "carrel/1 %s tcp/127.0.0.1:9000\n", identity.Key)
		require.NoError(t, err)
		in := bufio.NewReaderSize(conn, 1<<20)
		line, err := in.ReadString('\n')
		require.NoError(t, err)
		require.Equal(t, "ok\n", line)
		_, err = io.WriteString(conn, verb)
		require.NoError(t, err)
		f(conn, in)
	}
	took := func(f func()) float64 {
		start := time.Now()
		f()
		return size / 1e6 / time.Since(start).Seconds()
	}
	for round := range rounds {
		rawUp := took(func() {
			raw("u", func(conn net.Conn, in io.Reader) {
				file, err := os.Open(big)
				require.NoError(t, err)
				defer file.Close()
				_, err = io.Copy(conn, file)
				require.NoError(t, err)
				require.NoError(t, conn.(*net.TCPConn).CloseWrite())
				_, err = io.ReadFull(in, make([]byte, 1))
				require.NoError(t, err)
			})
		})
		// An upload that the box remembers as done, of a file that has not changed, is not sent again.
		require.NoError(t, os.Chtimes(big, time.Time{}, time.Now()))
		up := took(func() { s.must("cp", big, "alpha:copy") })
		rawDown := took(func() {
			raw("d", func(_ net.Conn, in io.Reader) {
				file, err := os.Create(filepath.Join(dir, "raw"))
				require.NoError(t, err)
				defer file.Close()
				n, err := io.Copy(file, in)
				require.NoError(t, err)
				require.EqualValues(t, size, n)
				require.NoError(t, file.Sync())
			})
		})
		down := took(func() { s.must("cp", "alpha:copy", filepath.Join(dir, "copy")) })
		fmt.Printf("files, round %d: up %.0f MB/s, raw %.0f, ratio %.2f; down %.0f MB/s, raw %.0f, ratio %.2f\n", round+1, up, rawUp, up/rawUp, down, rawDown, down/rawDown)
	}
}
