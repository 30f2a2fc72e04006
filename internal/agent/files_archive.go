package agent

import (
	"bufio"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/archive"
	"carrel.dev/carrel/internal/carrel"
)

// chunkWriter sends what is written to it.
type chunkWriter struct {
	ctx    context.Context
	stream *connect.ServerStream[carrelv1.FileChunk]
	info   *carrelv1.FileInfo // for the first message
	err    error              // of the stream
}

func (c *chunkWriter) Write(data []byte) (int, error) {
	if c.err = c.ctx.Err(); c.err == nil {
		c.err = c.stream.Send(&carrelv1.FileChunk{Info: c.info, Data: data})
	}
	if c.err != nil {
		return 0, c.err
	}
	c.info = nil
	return len(data), nil
}

// DownloadArchive packs a directory as the archive's root, or a file or link as the one entry.
func (s *fileService) DownloadArchive(ctx context.Context, request *connect.Request[carrelv1.DownloadArchiveRequest], stream *connect.ServerStream[carrelv1.FileChunk]) error {
	path, err := s.path(request.Msg.GetPath())
	if err != nil {
		return err
	}
	return s.withArchive(func() error {
		info, err := statAs(request.Msg.GetPath(), path)
		if err != nil {
			return err
		}
		out := &chunkWriter{ctx: ctx, stream: stream, info: info}
		if err := packPath(path, info, out); err != nil {
			if out.err != nil {
				return out.err
			}
			return archiveError("read", path, err)
		}
		return nil
	})
}

// packPath writes the archive of a path. For asUser.
func packPath(path string, info *carrelv1.FileInfo, w io.Writer) error {
	buffered := bufio.NewWriterSize(w, fileChunk)
	compressed, err := archive.NewWriter(buffered)
	if err != nil {
		return err
	}
	packer := archive.NewPacker(compressed)
	if info.GetType() == "directory" {
		dir, err := os.OpenRoot(path)
		if err != nil {
			return err
		}
		defer dir.Close()
		err = packer.Directory(dir)
		if err != nil {
			return err
		}
	} else {
		dir, err := os.OpenRoot(filepath.Dir(path))
		if err != nil {
			return err
		}
		defer dir.Close()
		if err := packer.File(dir, filepath.Base(path)); err != nil {
			return err
		}
	}
	if err := packer.Close(); err != nil {
		return err
	}
	if err := compressed.Close(); err != nil {
		return err
	}
	return buffered.Flush()
}

// chunkReader gives the data of an upload.
type chunkReader struct {
	stream *connect.ClientStream[carrelv1.UploadArchiveRequest]
	data   []byte
	err    error // of the stream
}

func (c *chunkReader) Read(p []byte) (int, error) {
	for len(c.data) == 0 {
		if !c.stream.Receive() {
			if c.err = c.stream.Err(); c.err != nil {
				return 0, c.err
			}
			return 0, io.EOF
		}
		c.data = c.stream.Msg().GetData()
		if len(c.data) > maxFileChunk {
			c.err = carrel.Errorf(carrel.CodeInvalid, "chunk_too_large", "%d bytes of data in one message; at most %d are taken", len(c.data), maxFileChunk)
			return 0, c.err
		}
	}
	n := copy(p, c.data)
	c.data = c.data[n:]
	return n, nil
}

// UploadArchive unpacks below a directory, which is made if it is not there. What was unpacked before an error stays.
func (s *fileService) UploadArchive(_ context.Context, stream *connect.ClientStream[carrelv1.UploadArchiveRequest]) (*connect.Response[carrelv1.UploadArchiveResponse], error) {
	if !stream.Receive() {
		if err := stream.Err(); err != nil {
			return nil, err
		}
		return nil, carrel.Errorf(carrel.CodeInvalid, "no_path", "the request names no directory")
	}
	path, err := s.path(stream.Msg().GetPath())
	if err != nil {
		return nil, err
	}
	in := &chunkReader{stream: stream, data: stream.Msg().GetData()}
	var stats archive.Stats
	err = s.withArchive(func() (err error) {
		stats, err = unpackPath(path, in)
		if in.err != nil {
			return in.err
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&carrelv1.UploadArchiveResponse{Files: stats.Files, Bytes: stats.Bytes}), nil
}

// unpackPath unpacks into a directory and writes everything to the disk. For asUser.
func unpackPath(path string, r io.Reader) (archive.Stats, error) {
	_, err := os.Stat(path)
	isNew := errors.Is(err, fs.ErrNotExist)
	if err := os.MkdirAll(path, 0o755); err != nil {
		return archive.Stats{}, fileError("make", path, err)
	}
	dir, err := os.OpenRoot(path)
	if err != nil {
		return archive.Stats{}, fileError("write", path, err)
	}
	defer dir.Close()
	plain, err := archive.NewReader(r)
	if err != nil {
		return archive.Stats{}, err
	}
	defer plain.Close()
	stats, err := archive.Unpack(plain, dir, archive.Options{Mode: fs.ModePerm | fs.ModeSetuid | fs.ModeSetgid | fs.ModeSticky, Root: isNew})
	if err != nil {
		if !isFileError(err) {
			err = &carrel.Error{Code: carrel.CodeInvalid, Reason: "bad_archive", Message: "the archive cannot be read: " + err.Error(), Cause: err}
		}
		return stats, archiveError("write", path, err)
	}
	file, err := dir.Open(".")
	if err != nil {
		return stats, fileError("write", path, err)
	}
	defer file.Close()
	if err := unix.Syncfs(int(file.Fd())); err != nil && !errors.Is(err, unix.ENOSYS) {
		return stats, fileError("write", path, err)
	}
	return stats, nil
}

// isFileError reports whether err is of the file system or says itself what is wrong, and not of the archive's form.
func isFileError(err error) bool {
	var errno unix.Errno
	return errors.As(err, &errno) || errors.Is(err, archive.ErrRefused)
}
