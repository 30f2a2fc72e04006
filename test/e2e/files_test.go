package e2e

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/client"
)

// randomFile writes size bytes that nothing can make smaller and gives their sum.
func randomFile(t testing.TB, path string, size int64) string {
	t.Helper()
	file, err := os.Create(path)
	require.NoError(t, err)
	defer file.Close()
	block := make([]byte, 1<<20)
	_, err = rand.Read(block)
	require.NoError(t, err)
	sum := sha256.New()
	for written := int64(0); written < size; written += int64(len(block)) {
		copy(block, strconv.FormatInt(written, 10))
		n := min(int64(len(block)), size-written)
		_, err := io.MultiWriter(file, sum).Write(block[:n])
		require.NoError(t, err)
	}
	return hex.EncodeToString(sum.Sum(nil))
}

func sumOf(t testing.TB, path string) string {
	t.Helper()
	file, err := os.Open(path)
	require.NoError(t, err)
	defer file.Close()
	sum := sha256.New()
	_, err = io.Copy(sum, file)
	require.NoError(t, err)
	return hex.EncodeToString(sum.Sum(nil))
}

// peak follows the resident memory of a process until stop, and gives by how much it grew, in bytes.
func (s *stack) peak(pid int) (stop func() int64) {
	resident := func() int64 {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			return 0
		}
		_, rest, _ := strings.Cut(string(data), "VmRSS:")
		kib, _ := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
		return kib << 10
	}
	first := resident()
	most := first
	ended, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				most = max(most, resident())
			case <-ended:
				return
			}
		}
	}()
	return func() int64 {
		close(ended)
		<-done
		return most - first
	}
}

func (s *stack) must(args ...string) string {
	s.t.Helper()
	r := s.carrel(args...)
	require.Zero(s.t, r.code, "carrel %v: %s%s\n%s", args, r.stdout, r.stderr, lazy(s.logs))
	return r.stdout
}

// command is the CLI, not started.
func (s *stack) command(args ...string) *exec.Cmd {
	c := exec.Command(filepath.Join(bin(s.t), "carrel"), args...)
	c.Env = append(os.Environ(), "HOME="+s.home, "CARREL_CONFIG="+filepath.Join(s.home, "config.yaml"))
	return c
}

// agentMemory is what the agent of a box uses, in bytes, as the box sees it.
func (s *stack) agentMemory(box string) int64 {
	s.t.Helper()
	kib, err := strconv.ParseInt(s.sh(box, "awk '/VmRSS/{print $2}' /proc/1/status"), 10, 64)
	require.NoError(s.t, err)
	return kib << 10
}

func TestAGibibyteGoesUpAndDown(t *testing.T) {
	s := newStack(t, options{})
	s.create("alpha", func(r *carrelv1.CreateBoxRequest) {
		r.Resources = &carrelv1.Resources{HomeBytes: 3 << 30, MemoryBytes: 512 << 20}
	})
	dir := t.TempDir()
	const size = 1 << 30
	sum := randomFile(t, filepath.Join(dir, "big"), size)
	agentBefore := s.agentMemory("alpha")
	gatewayPeak := s.peak(s.rolePID("gateway"))

	start := time.Now()
	s.must("cp", filepath.Join(dir, "big"), "alpha:big")
	up := time.Since(start)
	require.Equal(t, sum, strings.Fields(s.sh("alpha", "sha256sum big"))[0])
	agentAfterUp := s.agentMemory("alpha")
	start = time.Now()
	s.must("cp", "alpha:big", filepath.Join(dir, "back"))
	down := time.Since(start)
	require.Equal(t, sum, sumOf(t, filepath.Join(dir, "back")))
	grown, agentGrown := gatewayPeak(), max(agentAfterUp, s.agentMemory("alpha"))-agentBefore
	t.Logf("1 GiB: up %.0f MB/s, down %.0f MB/s; the gateway grew by %d MiB, the agent by %d MiB", size/1e6/up.Seconds(), size/1e6/down.Seconds(), grown>>20, agentGrown>>20)
	// A transfer of any size holds a few messages and windows. The bounds are those of whole processes with their garbage.
	require.Less(t, grown, int64(96<<20))
	require.Less(t, agentGrown, int64(64<<20))
}

func TestAnUploadGoesOnWhenTheGatewayIsKilled(t *testing.T) {
	s := newStack(t, options{})
	s.create("alpha", func(r *carrelv1.CreateBoxRequest) { r.Resources = &carrelv1.Resources{HomeBytes: 2 << 30} })
	dir := t.TempDir()
	sum := randomFile(t, filepath.Join(dir, "big"), 256<<20)
	partSize := func() int64 {
		text := s.sh("alpha", "stat -c %s .carrel-upload-* 2>/dev/null || echo 0")
		n, err := strconv.ParseInt(strings.Fields(text)[0], 10, 64)
		require.NoError(t, err)
		return n
	}
	upload := s.command("cp", filepath.Join(dir, "big"), "alpha:big")
	var said bytes.Buffer
	upload.Stdout, upload.Stderr = &said, &said
	require.NoError(t, upload.Start())
	s.eventually("a part has come", func() bool { return partSize() > 16<<20 })
	require.NoError(t, upload.Process.Signal(syscall.SIGSTOP))
	part := partSize()
	require.Less(t, part, int64(256<<20), "it was still under way")
	require.NoError(t, syscall.Kill(s.rolePID("gateway"), syscall.SIGKILL))
	require.NoError(t, upload.Process.Signal(syscall.SIGCONT))
	require.NoError(t, upload.Wait(), "%s", &said)
	require.Equal(t, sum, strings.Fields(s.sh("alpha", "sha256sum big"))[0])
	require.Equal(t, "big", s.sh("alpha", "ls -A | grep -v '^\\.[a-z]*rc$\\|^\\.profile$\\|^\\.bash'"), "nothing else is left")

	// And a download, into the middle of which the same happens.
	download := s.command("cp", "alpha:big", filepath.Join(dir, "back"))
	download.Stdout, download.Stderr = &said, &said
	require.NoError(t, download.Start())
	come := func() int64 {
		parts, _ := filepath.Glob(filepath.Join(dir, ".carrel-download-*"))
		if len(parts) == 0 {
			return 0
		}
		info, err := os.Stat(parts[0])
		if err != nil {
			return 0
		}
		return info.Size()
	}
	s.eventually("a part has come", func() bool { return come() > 16<<20 })
	require.NoError(t, syscall.Kill(s.rolePID("gateway"), syscall.SIGKILL))
	require.NoError(t, download.Wait(), "%s", &said)
	require.Equal(t, sum, sumOf(t, filepath.Join(dir, "back")))

	// A client that is killed goes on too, when the same command is given again.
	upload = s.command("cp", filepath.Join(dir, "big"), "alpha:again")
	require.NoError(t, upload.Start())
	s.eventually("a part has come", func() bool { return partSize() > 16<<20 })
	require.NoError(t, upload.Process.Kill())
	_ = upload.Wait()
	s.must("cp", filepath.Join(dir, "big"), "alpha:again")
	require.Equal(t, sum, strings.Fields(s.sh("alpha", "sha256sum again"))[0])
}

func TestDirectoriesGoRound(t *testing.T) {
	s := newStack(t, options{})
	s.create("alpha")
	s.create("beta")
	src := filepath.Join(t.TempDir(), "src")
	when := time.Unix(1_500_000_000, 0)
	require.NoError(t, os.MkdirAll(filepath.Join(src, "sub/deep"), 0o755))
	for name, mode := range map[string]os.FileMode{"a": 0o644, "sub/run": 0o755, "sub/deep/secret": 0o600, "odd\xff": 0o444} {
		require.NoError(t, os.WriteFile(filepath.Join(src, name), []byte(name), mode))
		require.NoError(t, os.Chmod(filepath.Join(src, name), mode))
		require.NoError(t, os.Chtimes(filepath.Join(src, name), when, when))
	}
	require.NoError(t, os.Symlink("../a", filepath.Join(src, "sub/link")))
	require.NoError(t, os.Symlink("/etc/passwd", filepath.Join(src, "absolute")))
	require.NoError(t, os.Chmod(filepath.Join(src, "sub/deep"), 0o700))
	require.NoError(t, os.Chtimes(filepath.Join(src, "sub"), when, when))
	describe := func(dir string) string {
		var text strings.Builder
		require.NoError(t, filepath.WalkDir(dir, func(path string, entry os.DirEntry, err error) error {
			require.NoError(t, err)
			info, err := os.Lstat(path)
			require.NoError(t, err)
			name, _ := filepath.Rel(dir, path)
			fmt.Fprintf(&text, "%q %s", name, info.Mode())
			if info.Mode().Type() != os.ModeSymlink {
				fmt.Fprintf(&text, " %d", info.ModTime().Unix())
			} else {
				target, _ := os.Readlink(path)
				text.WriteString(" " + target)
			}
			if info.Mode().IsRegular() {
				content, err := os.ReadFile(path)
				require.NoError(t, err)
				fmt.Fprintf(&text, " %q", content)
			}
			text.WriteString("\n")
			return nil
		}))
		return text.String()
	}
	want := describe(src)
	back := t.TempDir()

	s.must("cp", src, "alpha:new")      // becomes it
	s.must("cp", "alpha:new", "beta:")  // into the home, from box to box
	s.must("cp", "beta:new", back)      // into a directory
	s.must("cp", "beta:new", back+"/x") // becomes it
	require.Equal(t, want, describe(filepath.Join(back, "new")))
	require.Equal(t, want, describe(filepath.Join(back, "x")))
	require.NoError(t, os.Mkdir(filepath.Join(back, "y"), 0o755))
	s.must("cp", "beta:new/.", filepath.Join(back, "y"))
	require.FileExists(t, filepath.Join(back, "y/sub/run"))
	require.Equal(t, "755 1500000000 carrel", s.sh("alpha", "stat -c '%a %Y %U' new/sub/run"))
	require.Equal(t, "600 carrel", s.sh("beta", "stat -c '%a %U' new/sub/deep/secret"))

	// Files, streams and what cannot be.
	s.must("cp", filepath.Join(src, "a"), "alpha:")
	s.must("cp", "alpha:a", "beta:b")
	require.Equal(t, "a", s.must("cp", "beta:b", "-"))
	in := s.command("cp", "-", "beta:stdin")
	in.Stdin = strings.NewReader("from a stream")
	require.NoError(t, in.Run())
	require.Equal(t, "from a stream", s.sh("beta", "cat stdin"))
	for _, bad := range []struct{ from, to, says string }{
		{"alpha:nothing", back, "there is no alpha:nothing"},
		{src, "alpha:a", "is a file"},
		{filepath.Join(src, "a"), "alpha:no/such/", "there is no directory"},
		{filepath.Join(src, "a"), "alpha:/etc/a", "may not write"},
		{"alpha:/etc/shadow", back, "may not read"},
	} {
		r := s.carrel("cp", bad.from, bad.to)
		require.Equal(t, 1, r.code, "%v: %s", bad, r.stderr)
		require.Contains(t, r.stderr, bad.says)
	}
	require.Equal(t, 2, s.carrel("cp", src, back).code)

	// A watcher in the box's real file system.
	watching, cancelWatch := context.WithCancel(s.ctx())
	defer cancelWatch()
	stream, err := s.client.Files.WatchFiles(watching, connect.NewRequest(&carrelv1.WatchFilesRequest{Box: "alpha", Path: ".", Recursive: true}))
	require.NoError(t, err)
	require.True(t, stream.Receive())
	require.Equal(t, "ready", stream.Msg().GetKind())
	s.sh("alpha", "mkdir w && echo x > w/f && mv w/f w/g && rm w/g")
	for _, expected := range []string{"created /home/carrel/w", "created /home/carrel/w/g", "removed /home/carrel/w/g"} {
		for {
			require.True(t, stream.Receive(), "before %s: %v", expected, stream.Err())
			if stream.Msg().GetKind()+" "+stream.Msg().GetPath() == expected {
				break
			}
		}
	}
	cancelWatch()
	_ = stream.Close()

	// What is left after a full disk: a clear error, and the room is there again.
	s.create("small", func(r *carrelv1.CreateBoxRequest) { r.Resources = &carrelv1.Resources{HomeBytes: 256 << 20} })
	big := filepath.Join(t.TempDir(), "big")
	randomFile(t, big, 300<<20)
	r := s.carrel("cp", big, "small:big")
	require.Equal(t, 1, r.code)
	require.Contains(t, r.stderr, "is full")
	require.Empty(t, s.sh("small", "ls -A | grep carrel-upload || true"))
}

func TestViewTicketsDoNotWriteFiles(t *testing.T) {
	s := newStack(t, options{})
	s.create("alpha")
	s.sh("alpha", "echo content > f")
	answer, err := s.client.Boxes.CreateTicket(s.ctx(), connect.NewRequest(&carrelv1.CreateTicketRequest{Id: "alpha", Scopes: []string{"view"}}))
	require.NoError(t, err)
	viewer, err := client.New(client.Config{Context: client.Context{URL: s.url, Token: answer.Msg.GetTicket()}})
	require.NoError(t, err)
	defer viewer.Close()
	do := func(method string, body io.Reader) (int, string) {
		req, err := http.NewRequestWithContext(s.ctx(), method, s.url+"/v1/boxes/"+answer.Msg.GetBoxId()+"/fs/~/f", body)
		require.NoError(t, err)
		req.Header.Set("Authorization", "Bearer "+answer.Msg.GetTicket())
		resp, err := http.DefaultClient.Do(req)
		require.NoError(t, err)
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		return resp.StatusCode, string(text)
	}
	status, text := do("GET", nil)
	require.Equal(t, 200, status)
	require.Equal(t, "content\n", text)
	for _, method := range []string{"PUT", "DELETE"} {
		status, text = do(method, strings.NewReader("x"))
		require.Equal(t, 403, status, text)
	}
	_, err = viewer.Files.RemoveFile(s.ctx(), connect.NewRequest(&carrelv1.RemoveFileRequest{Box: answer.Msg.GetBoxId(), Path: "f"}))
	require.Error(t, err)
	require.Equal(t, "content", s.sh("alpha", "cat f"))
}

func TestLogsShowWhatWasSaid(t *testing.T) {
	s := newStack(t, options{})
	s.create("alpha")
	first := s.background("alpha", "echo one; echo err >&2; echo two")
	s.eventually("it ended", func() bool {
		p, err := s.client.GetProcess(s.ctx(), "alpha", first)
		return err == nil && !p.GetRunning()
	})
	r := s.carrel("logs", "alpha")
	require.Equal(t, result{stdout: "one\ntwo\n", stderr: "err\n"}, r)
	require.Equal(t, "two\n", s.must("logs", "alpha", "--process", first, "--since", "4"))
	second := s.background("alpha", "echo begun; read x < /dev/null; until [ -e go ]; do sleep 0.05; done; echo done; exit 3")
	s.eventually("it said something", func() bool { return s.must("logs", "alpha") == "begun\n" })
	follow := s.command("logs", "alpha", "-f")
	var out lockedBuffer
	follow.Stdout = &out
	require.NoError(t, follow.Start())
	s.eventually("it follows", func() bool { return out.String() == "begun\n" })
	s.sh("alpha", "touch go")
	require.NoError(t, follow.Wait())
	require.Equal(t, "begun\ndone\n", out.String())
	require.Equal(t, "begun\ndone\n", s.must("logs", "alpha", "--process", second))
	require.NotZero(t, s.carrel("logs", "alpha", "--process", "p999").code)
}
