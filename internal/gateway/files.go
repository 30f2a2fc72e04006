package gateway

import (
	"context"
	"errors"
	"io"
	"net/http"
	"regexp"
	"sync"

	"connectrpc.com/connect"

	"carrel.dev/carrel/api/carrel/agent/v1/agentv1connect"
	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/api/carrel/v1/carrelv1connect"
	"carrel.dev/carrel/internal/auth"
	"carrel.dev/carrel/internal/carrel"
)

// maxFileMessage bounds one message of an upload, in bytes: 1 MiB of data and what stands around it.
const maxFileMessage = 2 << 20

// filePath is every REST path of FileService.
var filePath = regexp.MustCompile(`^/v1/boxes/[^/]+/files(:[a-z]+)?$`)

// files is the public FileService: every call goes on to the box's agent, message by message, so that a transfer of any size holds
// no more than a few of them here, and one that the other end does not take waits for it.
type files struct{ gateway *Gateway }

var _ carrelv1connect.FileServiceHandler = (*files)(nil)

// fileCall is a call to the agent of one box. Revocation ends its context with the reason.
type fileCall struct {
	ctx   context.Context
	box   carrel.BoxID
	files agentv1connect.FileServiceClient
	end   func() // may be called again
}

// fileUse is what a call tells of its user's presence.
type fileUse int

const (
	fileLooks fileUse = iota // nothing: pages ask by themselves whether something has changed
	fileReads                // somebody is there, unless the same was read lately: pages left open read again what changes
	fileWorks                // somebody is there
)

// counts reports whether a call is a sign that somebody uses the box.
func (f *files) counts(use fileUse, p pass, header http.Header, message boxRequest) bool {
	if use == fileLooks || header.Get(headerActivity) == activityNone {
		return false
	}
	if of, ok := message.(interface{ GetPath() string }); ok && use == fileReads {
		return !f.gateway.ports.recent.again("file\x00"+string(p.User)+"\x00"+string(p.Box)+"\x00"+of.GetPath(), f.gateway.now())
	}
	return true
}

// call finds the agent of a box, if the bearer gives scope.
func (f *files) call(ctx context.Context, header http.Header, message boxRequest, scope string, use fileUse) (*fileCall, error) {
	g := f.gateway
	wakes := use == fileWorks
	if of, ok := message.(interface{ GetPath() string }); ok && use == fileReads {
		wakes = !g.looksAgain(header, message.GetBox(), of.GetPath())
	}
	allowed, err := g.arrive(ctx, header, message.GetBox(), message.GetOrg(), scope, wakes)
	if err != nil {
		return nil, err
	}
	g.log.DebugContext(ctx, "files of box", "box", allowed.Box, "user", allowed.User, "scope", scope, "request", header.Get(headerRequestID))
	if f.counts(use, allowed, header, message) {
		g.touch(allowed, activityExec)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	leave, room := g.streams.take(allowed.holder(), bulkShares-1)
	if !room {
		g.noRoom(allowed)
		cancel(nil)
		return nil, errTooManyStreams(allowed.Box)
	}
	release := g.guard(allowed, func(err error) { cancel(err) })
	conn, done := g.agents.get(allowed)
	return &fileCall{ctx: ctx, box: allowed.Box, files: conn.files, end: sync.OnceFunc(func() {
		release()
		leave()
		done()
		cancel(nil)
	})}, nil
}

// failed makes an error of the call fit to be shown.
func (c *fileCall) failed(err error) error {
	if err == nil {
		return nil
	}
	if cause := context.Cause(c.ctx); cause != nil {
		return cause
	}
	return fromAgent(c.ctx, c.box, err)
}

// fileUnary passes one call on.
func fileUnary[Q, R any](ctx context.Context, f *files, req *connect.Request[Q], scope string, use fileUse,
	method func(agentv1connect.FileServiceClient, context.Context, *connect.Request[Q]) (*connect.Response[R], error),
) (*connect.Response[R], error) {
	message, _ := any(req.Msg).(boxRequest)
	call, err := f.call(ctx, req.Header(), message, scope, use)
	if err != nil {
		return nil, err
	}
	defer call.end()
	resp, err := method(call.files, call.ctx, connect.NewRequest(req.Msg))
	if err != nil {
		return nil, call.failed(err)
	}
	return connect.NewResponse(resp.Msg), nil
}

// fileDown passes a stream of the agent's on.
func fileDown[Q, R any](ctx context.Context, f *files, req *connect.Request[Q], use fileUse, out *connect.ServerStream[R],
	method func(agentv1connect.FileServiceClient, context.Context, *connect.Request[Q]) (*connect.ServerStreamForClient[R], error),
) error {
	message, _ := any(req.Msg).(boxRequest)
	call, err := f.call(ctx, req.Header(), message, auth.ScopeView, use)
	if err != nil {
		return err
	}
	defer call.end()
	in, err := method(call.files, call.ctx, connect.NewRequest(req.Msg))
	if err != nil {
		return call.failed(err)
	}
	return call.pass(in.Receive, in.Err, in.Close, func() error { return out.Send(in.Msg()) })
}

// pass receives until the end and calls each for every message.
func (c *fileCall) pass(receive func() bool, failure, closed func() error, each func() error) error {
	defer func() {
		c.end() // first: closing would else read what is still to come
		_ = closed()
	}()
	for receive() {
		if err := each(); err != nil {
			return err
		}
	}
	return c.failed(failure())
}

// fileUp passes a stream of the client's on. The first message names the box.
func fileUp[Q, R any](ctx context.Context, f *files, in *connect.ClientStream[Q],
	method func(agentv1connect.FileServiceClient, context.Context) *connect.ClientStreamForClient[Q, R],
) (*connect.Response[R], error) {
	if !in.Receive() {
		if err := in.Err(); err != nil {
			return nil, err
		}
		return nil, carrel.Errorf(carrel.CodeInvalid, "no_box", "the request names no box")
	}
	message, _ := any(in.Msg()).(boxRequest)
	call, err := f.call(ctx, in.RequestHeader(), message, auth.ScopeExec, fileWorks)
	if err != nil {
		return nil, err
	}
	defer call.end()
	f.gateway.metrics.streams.Inc()
	defer f.gateway.metrics.streams.Dec()
	out := method(call.files, call.ctx)
	sending := out.Send(in.Msg())
	for sending == nil && in.Receive() {
		sending = out.Send(in.Msg())
	}
	if err := in.Err(); err != nil && sending == nil {
		// Without a word to the agent: closing would say that this was all, and race with the end of the call.
		return nil, err
	}
	resp, err := out.CloseAndReceive()
	if err != nil {
		return nil, call.failed(err)
	}
	if sending != nil && !errors.Is(sending, io.EOF) {
		return nil, call.failed(sending)
	}
	return connect.NewResponse(resp.Msg), nil
}

func (f *files) StatFile(ctx context.Context, req *connect.Request[carrelv1.StatFileRequest]) (*connect.Response[carrelv1.FileInfo], error) {
	return fileUnary(ctx, f, req, auth.ScopeView, fileLooks, agentv1connect.FileServiceClient.Stat)
}

func (f *files) ListFiles(ctx context.Context, req *connect.Request[carrelv1.ListFilesRequest]) (*connect.Response[carrelv1.ListFilesResponse], error) {
	return fileUnary(ctx, f, req, auth.ScopeView, fileLooks, agentv1connect.FileServiceClient.List)
}

func (f *files) FindFiles(ctx context.Context, req *connect.Request[carrelv1.FindFilesRequest]) (*connect.Response[carrelv1.FindFilesResponse], error) {
	return fileUnary(ctx, f, req, auth.ScopeView, fileLooks, agentv1connect.FileServiceClient.Find)
}

func (f *files) ReadFile(ctx context.Context, req *connect.Request[carrelv1.ReadFileRequest], out *connect.ServerStream[carrelv1.FileChunk]) error {
	return fileDown(ctx, f, req, fileReads, out, agentv1connect.FileServiceClient.Read)
}

func (f *files) WriteFile(ctx context.Context, in *connect.ClientStream[carrelv1.WriteFileRequest]) (*connect.Response[carrelv1.FileInfo], error) {
	return fileUp(ctx, f, in, agentv1connect.FileServiceClient.Write)
}

func (f *files) StatUpload(ctx context.Context, req *connect.Request[carrelv1.StatUploadRequest]) (*connect.Response[carrelv1.StatUploadResponse], error) {
	return fileUnary(ctx, f, req, auth.ScopeExec, fileLooks, agentv1connect.FileServiceClient.StatUpload)
}

func (f *files) MoveFile(ctx context.Context, req *connect.Request[carrelv1.MoveFileRequest]) (*connect.Response[carrelv1.FileInfo], error) {
	return fileUnary(ctx, f, req, auth.ScopeExec, fileWorks, agentv1connect.FileServiceClient.Move)
}

func (f *files) CopyFile(ctx context.Context, req *connect.Request[carrelv1.CopyFileRequest]) (*connect.Response[carrelv1.FileInfo], error) {
	return fileUnary(ctx, f, req, auth.ScopeExec, fileWorks, agentv1connect.FileServiceClient.Copy)
}

func (f *files) RemoveFile(ctx context.Context, req *connect.Request[carrelv1.RemoveFileRequest]) (*connect.Response[carrelv1.RemoveFileResponse], error) {
	return fileUnary(ctx, f, req, auth.ScopeExec, fileWorks, agentv1connect.FileServiceClient.Remove)
}

func (f *files) MakeDirectory(ctx context.Context, req *connect.Request[carrelv1.MakeDirectoryRequest]) (*connect.Response[carrelv1.FileInfo], error) {
	return fileUnary(ctx, f, req, auth.ScopeExec, fileWorks, agentv1connect.FileServiceClient.MakeDirectory)
}

func (f *files) WatchFiles(ctx context.Context, req *connect.Request[carrelv1.WatchFilesRequest], out *connect.ServerStream[carrelv1.FileEvent]) error {
	return fileDown(ctx, f, req, fileLooks, out, agentv1connect.FileServiceClient.Watch)
}

func (f *files) DownloadArchive(ctx context.Context, req *connect.Request[carrelv1.DownloadArchiveRequest], out *connect.ServerStream[carrelv1.FileChunk]) error {
	return fileDown(ctx, f, req, fileReads, out, agentv1connect.FileServiceClient.DownloadArchive)
}

func (f *files) UploadArchive(ctx context.Context, in *connect.ClientStream[carrelv1.UploadArchiveRequest]) (*connect.Response[carrelv1.UploadArchiveResponse], error) {
	return fileUp(ctx, f, in, agentv1connect.FileServiceClient.UploadArchive)
}
