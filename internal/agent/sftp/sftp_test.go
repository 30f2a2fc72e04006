package sftp_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	client "github.com/pkg/sftp"
	"github.com/stretchr/testify/require"

	"carrel.dev/carrel/internal/agent/sftp"
)

// serveVariable tells the test's binary to be the server: Serve sets the umask of its process.
const serveVariable = "CARREL_SFTP_TEST_SERVE"

func TestMain(m *testing.M) {
	if os.Getenv(serveVariable) != "" {
		if err := sftp.Serve(context.Background(), os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// serve starts a server in a directory and gives a client of it.
func serve(t *testing.T) (*client.Client, string) {
	t.Helper()
	dir := t.TempDir()
	cmd := exec.Command(os.Args[0])
	cmd.Env, cmd.Dir = append(os.Environ(), serveVariable+"=1"), dir
	in, err := cmd.StdinPipe()
	require.NoError(t, err)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	c, err := client.NewClientPipe(out, in)
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, c.Close())
		require.NoError(t, cmd.Wait(), "the end of its input ends the server well")
	})
	return c, dir
}

func TestRelativePathsBeginInTheWorkingDirectoryAndLinksStayAsGiven(t *testing.T) {
	c, dir := serve(t)
	where, err := c.Getwd()
	require.NoError(t, err)
	require.Equal(t, dir, where)

	data := bytes.Repeat([]byte("0123456789abcdef"), 100_000)
	file, err := c.Create("new")
	require.NoError(t, err)
	_, err = file.ReadFrom(bytes.NewReader(data))
	require.NoError(t, err)
	require.NoError(t, file.Close())
	written, err := os.ReadFile(filepath.Join(dir, "new"))
	require.NoError(t, err)
	require.True(t, bytes.Equal(data, written))
	info, err := os.Stat(filepath.Join(dir, "new"))
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o644), info.Mode(), "the umask is that of a login")

	require.NoError(t, c.Symlink("new", "link"))
	to, err := os.Readlink(filepath.Join(dir, "link"))
	require.NoError(t, err)
	require.Equal(t, "new", to)
	file, err = c.Open("link")
	require.NoError(t, err)
	read, err := io.ReadAll(file)
	require.NoError(t, err)
	require.NoError(t, file.Close())
	require.True(t, bytes.Equal(data, read))

	require.NoError(t, c.PosixRename("new", "link"), "a rename replaces")
	_, err = c.Stat("missing")
	require.ErrorIs(t, err, os.ErrNotExist)
}

func TestNonsenseEndsTheServer(t *testing.T) {
	cmd := exec.Command(os.Args[0])
	cmd.Env, cmd.Dir = append(os.Environ(), serveVariable+"=1"), t.TempDir()
	cmd.Stdin = bytes.NewReader([]byte("GET / HTTP/1.1\r\n\r\n"))
	out, err := cmd.Output()
	require.Error(t, err)
	require.Empty(t, out)
}
