package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/carrel"
)

const (
	// uploadChunk is how much of a file is sent at once, in bytes.
	uploadChunk = 512 << 10
	// transferPatience is how long a transfer tries to go on without getting anywhere.
	transferPatience = 2 * time.Minute
	// archiveTries is how often a whole archive is sent or fetched: one that broke begins again.
	archiveTries = 5
)

// localError marks errors of the caller's own files: no other connection helps.
type localError struct{ error }

func (e localError) Unwrap() error { return e.error }

// persist calls try until it succeeds or fails for good: again with a new ticket or connection when the last one broke, until
// patience is over without moved changing.
func (c *Client) persist(ctx context.Context, box string, patience time.Duration, moved func() int64, try func(context.Context, Ticket) error) error {
	waits := newRetries()
	since, last := c.now(), moved()
	for {
		ticket, err := c.admission(ctx, box)
		refused := false
		if err == nil {
			attempt, cancel := context.WithCancel(ctx)
			err = try(attempt, ticket)
			cancel()
			if err == nil {
				return nil
			}
			if refused = c.refused(ctx, box, ticket, err); !refused && moved() == 0 && c.another(ctx, box, ticket, err) {
				continue
			}
		}
		var local localError
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.As(err, &local):
			return local.error
		case errors.Is(err, context.Canceled):
			err = errCut
		}
		if now := moved(); now != last {
			since, last = c.now(), now
			waits.Reset()
		}
		begun := last > 0
		again := refused || broken(err) || outdated(err) || begun && carrel.ReasonOf(err) == ReasonBoxNotRunning
		least, most := startFor, patience
		if carrel.ReasonOf(err) == ReasonBoxNotUp {
			least, most = wakeFor, max(patience, wakeFor)
		}
		if !again || c.now().Sub(since) >= most || !begun && c.now().Sub(since) >= least {
			return err
		}
		select {
		case <-time.After(waits.after(err)):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func never() int64 { return 0 }

// StatFile describes what is at a path of a box (absolute, or relative to the user's home). A link is described itself, unless the
// path ends with a slash.
func (c *Client) StatFile(ctx context.Context, box, path string) (*carrelv1.FileInfo, error) {
	var info *carrelv1.FileInfo
	err := c.persist(Arriving(ctx), box, startFor, never, func(ctx context.Context, ticket Ticket) error {
		resp, err := c.Files.StatFile(ctx, withTicket(&carrelv1.StatFileRequest{Box: ticket.Box, Path: path}, ticket))
		if err == nil {
			info = resp.Msg
		}
		return err
	})
	return info, err
}

// RemoteFile is a file of a box that is read; a broken connection is made again and goes on where it broke. It is for one
// goroutine.
type RemoteFile struct {
	client *Client
	ctx    context.Context
	box    string
	path   string
	info   *carrelv1.FileInfo
	offset int64
	data   []byte // read and not given yet
	stream *connect.ServerStreamForClient[carrelv1.FileChunk]
	cancel context.CancelFunc
	ended  bool
}

// OpenFile opens a file of a box, through links. Reads end with ctx. When the file is changed between two
// connections, reading ends with CodeAborted "file_changed".
func (c *Client) OpenFile(ctx context.Context, box, path string) (*RemoteFile, error) {
	f := &RemoteFile{client: c, ctx: ctx, box: box, path: path}
	if err := f.fill(); err != nil && !errors.Is(err, io.EOF) {
		f.Close()
		return nil, err
	}
	return f, nil
}

// Info describes the file as it was when it was opened.
func (f *RemoteFile) Info() *carrelv1.FileInfo { return f.info }

// Close ends the connection.
func (f *RemoteFile) Close() error {
	if f.stream != nil {
		f.cancel() // first: Close would else read what is still to come
		_ = f.stream.Close()
		f.stream = nil
	}
	f.data, f.ended = nil, false
	return nil
}

// Seek goes to an offset from the start.
func (f *RemoteFile) Seek(offset int64, whence int) (int64, error) {
	if whence != io.SeekStart || offset < 0 {
		return 0, errors.New("seek in a box's file: only to an offset from the start")
	}
	if offset != f.offset-int64(len(f.data)) {
		f.Close()
		f.offset = offset
	}
	return offset, nil
}

func (f *RemoteFile) Read(p []byte) (int, error) {
	if len(f.data) == 0 {
		if err := f.fill(); err != nil {
			return 0, err
		}
	}
	n := copy(p, f.data)
	f.data = f.data[n:]
	return n, nil
}

// fill gets the next piece; io.EOF at the end.
func (f *RemoteFile) fill() error {
	for len(f.data) == 0 {
		if f.ended {
			return io.EOF
		}
		if f.stream == nil {
			if err := f.connect(); err != nil {
				return err
			}
			continue
		}
		if f.stream.Receive() {
			f.take()
			continue
		}
		err := f.stream.Err()
		f.Close()
		if err == nil && (f.offset >= f.info.GetSize() || f.info.GetSize() == 0) {
			f.ended = true
			continue
		}
		if err != nil && !broken(err) && !errors.Is(err, context.Canceled) {
			return err
		}
		if f.ctx.Err() != nil {
			return context.Cause(f.ctx)
		}
	}
	return nil
}

// take gets the data out of a message; the next Receive will use its memory again.
func (f *RemoteFile) take() {
	f.data = f.stream.Msg().GetData()
	f.offset += int64(len(f.data))
}

// connect opens the stream at the offset.
func (f *RemoteFile) connect() error {
	patience := transferPatience
	if f.info == nil {
		patience = startFor
	}
	return f.client.persist(Arriving(f.ctx), f.box, patience, func() int64 { return f.offset }, func(_ context.Context, ticket Ticket) error {
		ctx, cancel := context.WithCancel(f.ctx) // it lives as long as the stream
		stream, err := f.client.Files.ReadFile(ctx, withTicket(&carrelv1.ReadFileRequest{Box: ticket.Box, Path: f.path, Offset: f.offset}, ticket))
		if err == nil && !stream.Receive() {
			if err = stream.Err(); err == nil {
				err = errCut
			}
		}
		if err != nil {
			cancel()
			if f.info != nil && carrel.ReasonOf(err) == "bad_range" {
				err = f.changed()
			}
			return err
		}
		info := stream.Msg().GetInfo()
		switch {
		case f.info == nil:
			f.info = info
		case info.GetEtag() != f.info.GetEtag():
			cancel()
			_ = stream.Close()
			return f.changed()
		}
		f.stream, f.cancel = stream, cancel
		f.take()
		return nil
	})
}

func (f *RemoteFile) changed() error {
	return carrel.Errorf(carrel.CodeAborted, "file_changed", "%s was changed while it was copied; copy it again", f.path)
}

// Upload is a file that is to be written in a box.
type Upload struct {
	Box  string // id or name
	Path string
	// Content is read to its end. One that is an io.Seeker too is read again from where a broken connection ended; of another one
	// nothing can be repeated.
	Content io.Reader
	// ID makes an upload that broke go on later, in another program too, when the content is the same. Only for a Seeker.
	ID string
	// Mode has the permission bits; 0: those of the file that is replaced, else 0644.
	Mode       uint32
	ModifyTime time.Time // zero: now
	Parents    bool      // make missing directories
	IfMatch    string    // an etag, or "none"
	// Progress, if set, is called with the bytes that were sent.
	Progress func(sent int64)
}

// Upload writes a file of a box at once: until all of it is there the one that was there stays.
func (c *Client) Upload(ctx context.Context, u Upload) (*carrelv1.FileInfo, error) {
	seeker, _ := u.Content.(io.Seeker)
	known := u.ID != ""
	if !known {
		u.ID = newRequestID()
	}
	var info *carrelv1.FileInfo
	var read, sent, most int64
	tries := 0
	err := c.persist(Arriving(ctx), u.Box, transferPatience, func() int64 { return most }, func(ctx context.Context, ticket Ticket) error {
		sent = 0
		tries++
		if seeker != nil && (tries > 1 || known) {
			resp, err := c.Files.StatUpload(ctx, withTicket(&carrelv1.StatUploadRequest{Box: ticket.Box, Path: u.Path, UploadId: u.ID}, ticket))
			if err != nil && carrel.CodeOf(err) != carrel.CodeNotFound {
				return err
			}
			if err == nil {
				sent = resp.Msg.GetOffset()
			}
		}
		if seeker != nil {
			if _, err := seeker.Seek(sent, io.SeekStart); err != nil {
				return localError{fmt.Errorf("read what is to be copied: %w", err)}
			}
		} else if read > 0 {
			return localError{carrel.Errorf(carrel.CodeUnavailable, "upload_broken", "the connection broke after %d bytes of %s; what comes from a stream cannot be sent again", read, u.Path)}
		}
		stream := c.Files.WriteFile(ctx)
		ticket.show(stream.RequestHeader())
		first := &carrelv1.WriteFileRequest{Box: ticket.Box, Path: u.Path, Mode: u.Mode, Parents: u.Parents, Offset: sent, IfMatch: u.IfMatch}
		if seeker != nil {
			first.UploadId = u.ID
		}
		if !u.ModifyTime.IsZero() {
			first.ModifyTime = timestamppb.New(u.ModifyTime)
		}
		err := sendPieces(u.Content, func(data []byte) error {
			read += int64(len(data))
			message := &carrelv1.WriteFileRequest{Data: data}
			if first != nil {
				first.Data = data
				message, first = first, nil
			}
			if err := stream.Send(message); err != nil {
				return err
			}
			sent += int64(len(data))
			most = max(most, sent)
			if u.Progress != nil {
				u.Progress(sent)
			}
			return nil
		})
		if err != nil {
			return err
		}
		resp, err := stream.CloseAndReceive()
		if err == nil {
			info = resp.Msg
		}
		return err
	})
	return info, err
}

// sendPieces sends what a reader has, at least one piece. That the other end takes no more is no error here: it says why.
func sendPieces(r io.Reader, send func([]byte) error) error {
	buf := make([]byte, uploadChunk)
	for first := true; ; first = false {
		n, err := 0, error(nil)
		for n < len(buf) && err == nil {
			var got int
			got, err = r.Read(buf[n:])
			n += got
		}
		end := errors.Is(err, io.EOF)
		if err != nil && !end {
			return localError{err}
		}
		if n > 0 || first {
			if err := send(buf[:n]); errors.Is(err, io.EOF) {
				return nil
			} else if err != nil {
				return err
			}
		}
		if end {
			return nil
		}
	}
}

// DownloadArchive gives unpack the tar.zst stream of a path. When the connection breaks, unpack is called again with a new stream from
// the beginning. An error of its own, one that does not wrap the stream's, ends it.
func (c *Client) DownloadArchive(ctx context.Context, box, path string, unpack func(io.Reader) error) error {
	tries, got := 0, int64(0)
	return c.persist(Arriving(ctx), box, transferPatience, func() int64 { return got }, func(ctx context.Context, ticket Ticket) error {
		stream, err := c.Files.DownloadArchive(ctx, withTicket(&carrelv1.DownloadArchiveRequest{Box: ticket.Box, Path: path}, ticket))
		if err != nil {
			return err
		}
		in := &archiveStream{receive: func() ([]byte, error) {
			if stream.Receive() {
				got += int64(len(stream.Msg().GetData()))
				return stream.Msg().GetData(), nil
			}
			if err := stream.Err(); err != nil {
				return nil, err
			}
			return nil, io.EOF
		}}
		err = unpack(in)
		tries++
		if in.err != nil {
			if tries >= archiveTries {
				return localError{in.err}
			}
			return in.err
		}
		if err != nil {
			return localError{err}
		}
		return nil
	})
}

// archiveStream reads messages as one stream and remembers how it failed.
type archiveStream struct {
	receive func() ([]byte, error)
	data    []byte
	err     error
}

func (a *archiveStream) Read(p []byte) (int, error) {
	for len(a.data) == 0 {
		data, err := a.receive()
		if errors.Is(err, io.EOF) {
			return 0, io.EOF
		}
		if err != nil {
			a.err = err
			return 0, err
		}
		a.data = data
	}
	n := copy(p, a.data)
	a.data = a.data[n:]
	return n, nil
}

// UploadArchive unpacks a tar.zst stream below a directory of a box, which is made if need be. open is called for each try: a broken
// connection means that the archive is sent again from its beginning.
func (c *Client) UploadArchive(ctx context.Context, box, path string, open func(context.Context) (io.ReadCloser, error)) (*carrelv1.UploadArchiveResponse, error) {
	var answer *carrelv1.UploadArchiveResponse
	tries, sent := 0, int64(0)
	err := c.persist(Arriving(ctx), box, transferPatience, func() int64 { return sent }, func(ctx context.Context, ticket Ticket) (err error) {
		tries++
		defer func() {
			if err != nil && tries >= archiveTries {
				err = localError{err}
			}
		}()
		content, err := open(ctx)
		if err != nil {
			return localError{err}
		}
		defer content.Close()
		stream := c.Files.UploadArchive(ctx)
		ticket.show(stream.RequestHeader())
		first := &carrelv1.UploadArchiveRequest{Box: ticket.Box, Path: path}
		if err := sendPieces(content, func(data []byte) error {
			message := &carrelv1.UploadArchiveRequest{Data: data}
			if first != nil {
				first.Data = data
				message, first = first, nil
			}
			sent += int64(len(data))
			return stream.Send(message)
		}); err != nil {
			return err
		}
		resp, err := stream.CloseAndReceive()
		if err == nil {
			answer = resp.Msg
		}
		return err
	})
	return answer, err
}
