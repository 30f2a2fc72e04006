package gateway

import (
	"context"
	"encoding/binary"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/coder/websocket"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"carrel.dev/carrel/api/carrel/agent/v1/agentv1connect"
	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/auth"
)

// deafNotebooks and deafFiles refuse everything.
type deafNotebooks struct {
	agentv1connect.NotebookServiceClient
}

func (deafNotebooks) WatchNotebooks(context.Context, *connect.Request[carrelv1.WatchNotebooksRequest]) (*connect.ServerStreamForClient[carrelv1.NotebookEvent], error) {
	return nil, errDeaf
}

func (deafNotebooks) GetUsage(context.Context, *connect.Request[carrelv1.GetUsageRequest]) (*connect.Response[carrelv1.BoxUsage], error) {
	return nil, errDeaf
}

type deafFiles struct {
	agentv1connect.FileServiceClient
}

func (deafFiles) Watch(context.Context, *connect.Request[carrelv1.WatchFilesRequest]) (*connect.ServerStreamForClient[carrelv1.FileEvent], error) {
	return nil, errDeaf
}

// FuzzStreamFrames: whatever a client sends, in either form, the socket is closed with a known code or answers events, and everything that
// belongs to it ends when the client goes.
func FuzzStreamFrames(f *testing.F) {
	var all, text []byte
	add := func(to *[]byte, data []byte) {
		*to = append(binary.BigEndian.AppendUint16(*to, uint16(len(data))), data...)
	}
	for i, request := range []*carrelv1.StreamRequest{
		{Request: &carrelv1.StreamRequest_Notebooks{Notebooks: &carrelv1.WatchNotebooksRequest{Box: "b", After: "0", Path: "a.ipynb"}}},
		{Request: &carrelv1.StreamRequest_Files{Files: &carrelv1.WatchFilesRequest{Path: ".", Recursive: true}}},
		{Request: &carrelv1.StreamRequest_Usage{Usage: &carrelv1.WatchUsage{Seconds: -1}}},
		{Request: &carrelv1.StreamRequest_Terminal{Terminal: &carrelv1.TerminalRequest{Channel: 1, Request: &carrelv1.TerminalRequest_Open{Open: &carrelv1.StartProcessRequest{Args: []string{"x"}}}}}},
		{Request: &carrelv1.StreamRequest_Close{Close: true}},
	} {
		request.Channel = min(uint32(i+1), 3)
		data, err := proto.Marshal(request)
		require.NoError(f, err)
		add(&all, data)
		data, err = protojson.Marshal(request)
		require.NoError(f, err)
		add(&text, data)
	}
	f.Add(all, false, true)
	f.Add(text, true, true)
	f.Add(text, true, false)
	f.Add([]byte{0, 2, '{', '}'}, true, true)
	f.Add([]byte{0, 2, 0xff, 0xff}, false, false)

	g, err := New(Config{ControlURL: "https://127.0.0.1:1", DataDir: f.TempDir()})
	require.NoError(f, err)
	ended := make(chan struct{}, 1)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		conn := acceptSocket(promptly{w}, r, maxStreamFrame, streamProtocol, streamJSONProtocol)
		if conn == nil {
			return
		}
		ctx, cancel := context.WithCancelCause(r.Context())
		defer cancel(nil)
		p := pass{Ticket: auth.Ticket{Scopes: []string{auth.ScopeView}}}
		if r.URL.Query().Has("exec") {
			p.Scopes = []string{auth.ScopeExec}
		}
		agent := &agentConn{ProcessServiceClient: deafAgent{}, notebooks: deafNotebooks{}, files: deafFiles{}}
		_ = serveChannels(ctx, cancel, g, conn, p, agent, nil)
		ended <- struct{}{}
	}))
	defer server.Close()
	f.Fuzz(func(t *testing.T, data []byte, asText, exec bool) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		query, protocol, kind := "?view", streamProtocol, websocket.MessageBinary
		if exec {
			query = "?exec"
		}
		if asText {
			protocol, kind = streamJSONProtocol, websocket.MessageText
		}
		conn, _, err := websocket.Dial(ctx, server.URL+query, &websocket.DialOptions{Subprotocols: []string{protocol}})
		require.NoError(t, err)
		read := make(chan error, 1)
		go func() {
			for {
				_, event, err := conn.Read(ctx)
				if err == nil && asText {
					err = protojson.Unmarshal(event, &carrelv1.StreamEvent{})
				} else if err == nil {
					err = proto.Unmarshal(event, &carrelv1.StreamEvent{})
				}
				if err != nil {
					read <- err
					return
				}
			}
		}()
		for len(data) >= 2 {
			size := min(int(binary.BigEndian.Uint16(data)), len(data)-2)
			if conn.Write(ctx, kind, data[2:2+size]) != nil {
				break
			}
			data = data[2+size:]
		}
		_ = conn.Close(websocket.StatusNormalClosure, "")
		code := websocket.CloseStatus(<-read)
		require.Contains(t, []websocket.StatusCode{-1, websocket.StatusNormalClosure, websocket.StatusPolicyViolation}, code)
		select {
		case <-ended:
		case <-ctx.Done():
			require.Fail(t, "the socket's end is waited for in vain")
		}
	})
}
