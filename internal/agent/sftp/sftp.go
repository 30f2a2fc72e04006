// Package sftp serves the files of a box over the SSH File Transfer Protocol, version 3, on standard input and output. It runs as
// a process of the box's user, with that user's rights and umask and with the home as its start directory, so that it needs no
// check of its own; it must not be called in the agent itself, which is root.
// Words: those of the protocol.
package sftp

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/pkg/sftp"
	"golang.org/x/sys/unix"
)

// maxPacket is the most data of one read, in bytes. Clients that ask for more get this much, which OpenSSH's own server gives too.
const maxPacket = 256 << 10

// Umask of new files where nothing else is said: as of a login.
const umask = 0o022

// Serve answers requests that come from in on out until in ends, ctx ends or a request makes no sense. The working directory is
// where relative paths begin. It closes both and sets the umask of the calling process.
func Serve(ctx context.Context, in io.ReadCloser, out io.WriteCloser) error {
	unix.Umask(umask)
	both := &stream{in, out}
	// Without a working directory of its own the server leaves relative paths, and targets of symbolic links, as they are. With the
	// allocator it uses its buffers again.
	server, err := sftp.NewServer(both, sftp.WithMaxTxPacket(maxPacket), sftp.WithAllocator())
	if err != nil {
		return fmt.Errorf("serve files: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = both.Close() })
	defer stop()
	err = server.Serve()
	_ = both.Close()
	if errors.Is(err, io.EOF) || ctx.Err() != nil {
		return nil
	}
	if err != nil {
		return fmt.Errorf("serve files: %w", err)
	}
	return nil
}

// stream is the two as one.
type stream struct {
	io.Reader
	io.WriteCloser
}

// Close ends both directions.
func (s *stream) Close() error {
	err := s.WriteCloser.Close()
	if in, ok := s.Reader.(io.Closer); ok {
		err = errors.Join(err, in.Close())
	}
	return err
}
