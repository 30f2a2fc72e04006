package carreltest_test

import (
	"encoding/binary"
	"io"
	"net/http"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/api/carrel/v1/carrelv1connect"
	"carrel.dev/carrel/internal/carreltest"
)

// bearer sends a token with every request.
type bearer struct {
	token string
	next  http.RoundTripper
}

func (b bearer) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", "Bearer "+b.token)
	return b.next.RoundTrip(r)
}

// TestOnePortSpeaksEveryProtocol: on the gateway's one port, gRPC with its own library, and Connect and gRPC-Web over HTTP/1.1 and
// HTTP/2, for both planes: calls, streams and errors.
func TestOnePortSpeaksEveryProtocol(t *testing.T) {
	if testing.Short() {
		return // nodes need root
	}
	t.Parallel()
	s := carreltest.Start(t, carreltest.Options{})
	box := create(t, s.Admin, "dev")
	t.Run("gRPC", func(t *testing.T) { speakGRPC(t, s, box.GetId()) })

	one, two := new(http.Protocols), new(http.Protocols)
	one.SetHTTP1(true)
	two.SetUnencryptedHTTP2(true)
	for name, speaker := range map[string]struct {
		protocols *http.Protocols
		options   []connect.ClientOption
	}{
		"Connect over HTTP1":          {one, nil},
		"Connect over HTTP2":          {two, nil},
		"Connect with JSON":           {one, []connect.ClientOption{connect.WithProtoJSON()}},
		"Connect with GET":            {one, []connect.ClientOption{connect.WithHTTPGet()}},
		"gRPC-Web over HTTP1":         {one, []connect.ClientOption{connect.WithGRPCWeb()}},
		"gRPC-Web over HTTP2":         {two, []connect.ClientOption{connect.WithGRPCWeb()}},
		"gRPC by another library":     {two, []connect.ClientOption{connect.WithGRPC()}},
		"gRPC-Web with JSON in HTTP1": {one, []connect.ClientOption{connect.WithGRPCWeb(), connect.WithProtoJSON()}},
	} {
		t.Run(name, func(t *testing.T) {
			transport := &http.Transport{Protocols: speaker.protocols}
			t.Cleanup(transport.CloseIdleConnections)
			speak(t, &http.Client{Transport: bearer{s.AdminToken, transport}}, s.URL, box.GetId(), speaker.options)
		})
	}
	t.Run("gRPC-Web with its own bytes", func(t *testing.T) { speakBytes(t, s) })
	deleteAll(t, s)
}

// speak looks at a box, asks for one that is not there, watches, and runs a command.
func speak(t *testing.T, c connect.HTTPClient, url, id string, options []connect.ClientOption) {
	ctx := bounded(t)
	boxes, processes := carrelv1connect.NewBoxServiceClient(c, url, options...), carrelv1connect.NewProcessServiceClient(c, url, options...)
	got, err := boxes.GetBox(ctx, request(&carrelv1.GetBoxRequest{Id: "dev"}))
	require.NoError(t, err)
	require.Equal(t, id, got.Msg.GetId())
	_, err = boxes.GetBox(ctx, request(&carrelv1.GetBoxRequest{Id: "nowhere"}))
	require.Equal(t, connect.CodeNotFound, connect.CodeOf(err), "%v", err)
	require.Equal(t, "box_not_found", reasonOf(err))

	watch, err := boxes.WatchBoxes(ctx, request(&carrelv1.WatchBoxesRequest{Id: id}))
	require.NoError(t, err)
	defer watch.Close()
	require.True(t, watch.Receive(), "%v", watch.Err())
	require.Equal(t, "dev", watch.Msg().GetBox().GetName())

	run, err := processes.RunProcess(ctx, request(&carrelv1.StartProcessRequest{Box: id, Args: []string{"sh", "-c", "echo out; exit 4"}}))
	require.NoError(t, err)
	defer run.Close()
	out, code := "", int32(-1)
	for run.Receive() {
		out += string(run.Msg().GetOutput().GetData())
		if e := run.Msg().GetExited(); e != nil {
			code = e.GetExitCode()
		}
	}
	require.NoError(t, run.Err())
	require.Equal(t, "out\n", out)
	require.EqualValues(t, 4, code)
	_, err = processes.GetProcess(ctx, request(&carrelv1.GetProcessRequest{Box: id, Process: "none"}))
	require.Equal(t, connect.CodeNotFound, connect.CodeOf(err), "%v", err)
}

// speakGRPC does the same with the library of gRPC, whose stubs are not generated here.
func speakGRPC(t *testing.T, s *carreltest.Stack, id string) {
	ctx := metadata.AppendToOutgoingContext(bounded(t), "authorization", "Bearer "+s.AdminToken)
	conn, err := grpc.NewClient(strings.TrimPrefix(s.URL, "http://"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(t, err)
	defer conn.Close()
	box := &carrelv1.Box{}
	var trailer metadata.MD
	require.NoError(t, conn.Invoke(ctx, carrelv1connect.BoxServiceGetBoxProcedure, &carrelv1.GetBoxRequest{Id: "dev"}, box, grpc.Trailer(&trailer)))
	require.Equal(t, id, box.GetId())
	for _, procedure := range []string{carrelv1connect.BoxServiceGetBoxProcedure, "/carrel.v1.BoxService/NoSuchMethod"} {
		err = conn.Invoke(ctx, procedure, &carrelv1.GetBoxRequest{Id: "nowhere"}, box)
		want := codes.NotFound
		if procedure != carrelv1connect.BoxServiceGetBoxProcedure {
			want = codes.Unimplemented
		}
		require.Equal(t, want, status.Code(err), "%s: %v", procedure, err)
	}
	err = conn.Invoke(ctx, carrelv1connect.BoxServiceGetBoxProcedure, &carrelv1.GetBoxRequest{Id: "nowhere"}, box)
	info, ok := status.Convert(err).Details()[0].(*errdetails.ErrorInfo)
	require.True(t, ok, "%v", status.Convert(err).Details())
	require.Equal(t, "box_not_found", info.GetReason())
	err = conn.Invoke(bounded(t), carrelv1connect.BoxServiceGetBoxProcedure, &carrelv1.GetBoxRequest{Id: "dev"}, box)
	require.Equal(t, codes.Unauthenticated, status.Code(err), "%v", err)

	stream := func(procedure string, first any) grpc.ClientStream {
		t.Helper()
		st, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, procedure)
		require.NoError(t, err)
		require.NoError(t, st.SendMsg(first))
		require.NoError(t, st.CloseSend())
		return st
	}
	watch := stream(carrelv1connect.BoxServiceWatchBoxesProcedure, &carrelv1.WatchBoxesRequest{Id: id})
	change := &carrelv1.WatchBoxesResponse{}
	require.NoError(t, watch.RecvMsg(change))
	require.Equal(t, id, change.GetBox().GetId())

	run := stream(carrelv1connect.ProcessServiceRunProcessProcedure, &carrelv1.StartProcessRequest{Box: id, Args: []string{"sh", "-c", "echo out; exit 4"}})
	out, code := "", int32(-1)
	for {
		event := &carrelv1.ProcessEvent{}
		if err := run.RecvMsg(event); err != nil {
			require.ErrorIs(t, err, io.EOF)
			break
		}
		out += string(event.GetOutput().GetData())
		if e := event.GetExited(); e != nil {
			code = e.GetExitCode()
		}
	}
	require.Equal(t, "out\n", out)
	require.EqualValues(t, 4, code)
}

// speakBytes sends what a browser would, without any library: the status comes in a frame of the body.
func speakBytes(t *testing.T, s *carreltest.Stack) {
	c := newCurl(t, s, s.AdminToken)
	r, err := http.NewRequestWithContext(bounded(t), http.MethodPost, s.URL+carrelv1connect.UserServiceWhoAmIProcedure, strings.NewReader("\x00\x00\x00\x00\x00"))
	require.NoError(t, err)
	r.Header.Set("Content-Type", "application/grpc-web+proto")
	r.Header.Set("Authorization", "Bearer "+s.AdminToken)
	answer, err := c.http.Do(r)
	require.NoError(t, err)
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	require.NoError(t, err)
	require.Zero(t, body[0])
	size := binary.BigEndian.Uint32(body[1:])
	require.EqualValues(t, 0x80, body[5+size], "the second frame has the trailers")
	require.Contains(t, strings.ToLower(string(body[5+size:])), "grpc-status: 0")
}
