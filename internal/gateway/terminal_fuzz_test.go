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
	"google.golang.org/protobuf/proto"

	"carrel.dev/carrel/api/carrel/agent/v1/agentv1connect"
	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/auth"
)

// deafAgent refuses everything.
type deafAgent struct {
	agentv1connect.ProcessServiceClient
}

var errDeaf = connect.NewError(connect.CodeNotFound, nil)

func (deafAgent) Run(context.Context, *connect.Request[carrelv1.StartProcessRequest]) (*connect.ServerStreamForClient[carrelv1.ProcessEvent], error) {
	return nil, errDeaf
}

func (deafAgent) Attach(context.Context, *connect.Request[carrelv1.AttachProcessRequest]) (*connect.ServerStreamForClient[carrelv1.ProcessEvent], error) {
	return nil, errDeaf
}

// FuzzTerminalFrames: whatever a client sends, the socket is closed with a known code or answers events, and everything that belongs to
// it ends when the client goes.
func FuzzTerminalFrames(f *testing.F) {
	frames := func(requests ...*carrelv1.TerminalRequest) (all []byte) {
		for _, request := range requests {
			data, err := proto.Marshal(request)
			require.NoError(f, err)
			all = append(binary.BigEndian.AppendUint16(all, uint16(len(data))), data...)
		}
		return all
	}
	open := &carrelv1.TerminalRequest{Channel: 1, Request: &carrelv1.TerminalRequest_Open{Open: &carrelv1.StartProcessRequest{Args: []string{"x"}}}}
	input := &carrelv1.TerminalRequest{Channel: 1, Request: &carrelv1.TerminalRequest_Input{Input: &carrelv1.TerminalInput{Offset: -1, Data: []byte("y")}}}
	f.Add(frames(open, input, &carrelv1.TerminalRequest{Channel: 1, Request: &carrelv1.TerminalRequest_Close{Close: true}}), true)
	f.Add(frames(open, open), true)
	f.Add(frames(&carrelv1.TerminalRequest{Channel: 9, Request: &carrelv1.TerminalRequest_Signal{Signal: "HUP"}}), false)
	f.Add([]byte{0, 2, 0xff, 0xff}, true)

	g, err := New(Config{ControlURL: "https://127.0.0.1:1", DataDir: f.TempDir()})
	require.NoError(f, err)
	ended := make(chan struct{}, 1)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		conn := acceptSocket(w, r, maxTerminalFrame, terminalProtocol)
		if conn == nil {
			return
		}
		ctx, cancel := context.WithCancelCause(r.Context())
		defer cancel(nil)
		p := pass{Ticket: auth.Ticket{Scopes: []string{auth.ScopeView}}}
		if r.URL.Query().Has("exec") {
			p.Scopes = []string{auth.ScopeExec}
		}
		_ = serveTerminals(ctx, cancel, g, conn, p, deafAgent{})
		ended <- struct{}{}
	}))
	defer server.Close()
	f.Fuzz(func(t *testing.T, data []byte, exec bool) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		query := "?view"
		if exec {
			query = "?exec"
		}
		conn, _, err := websocket.Dial(ctx, server.URL+query, &websocket.DialOptions{Subprotocols: []string{terminalProtocol}})
		require.NoError(t, err)
		read := make(chan error, 1)
		go func() {
			for {
				_, event, err := conn.Read(ctx)
				if err == nil {
					err = proto.Unmarshal(event, &carrelv1.TerminalEvent{})
				}
				if err != nil {
					read <- err
					return
				}
			}
		}()
		for len(data) >= 2 {
			size := min(int(binary.BigEndian.Uint16(data)), len(data)-2)
			if conn.Write(ctx, websocket.MessageBinary, data[2:2+size]) != nil {
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
