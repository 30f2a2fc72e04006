package agent

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"

	agentv1 "carrel.dev/carrel/api/carrel/agent/v1"
	"carrel.dev/carrel/api/carrel/agent/v1/agentv1connect"
	carrelv1 "carrel.dev/carrel/api/carrel/v1"
)

// forwarder is a client of the box's ForwardService.
func (b *box) forwarder() agentv1connect.ForwardServiceClient {
	transport := &http.Transport{
		Protocols:   new(http.Protocols),
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return b.dial("agent") },
	}
	transport.Protocols.SetUnencryptedHTTP2(true)
	b.t.Cleanup(transport.CloseIdleConnections)
	return agentv1connect.NewForwardServiceClient(&http.Client{Transport: transport}, "http://box")
}

type listenStream = connect.ServerStreamForClient[agentv1.ListenEvent]

// listen gives a listener's stream and what it says first.
func (b *box) listen(client agentv1connect.ForwardServiceClient, request *agentv1.ListenRequest) (*listenStream, *agentv1.Listening) {
	b.t.Helper()
	stream, err := client.Listen(b.context(), connect.NewRequest(request))
	require.NoError(b.t, err)
	require.True(b.t, stream.Receive(), "%v", stream.Err())
	return stream, stream.Msg().GetListening()
}

func TestAConnectionInTheBoxIsFetchedOnce(t *testing.T) {
	b := startBox(t)
	client := b.forwarder()
	stream, listening := b.listen(client, &agentv1.ListenRequest{Tcp: "localhost:0"})
	require.NotZero(t, listening.GetPort())
	program, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", listening.GetPort()))
	require.NoError(t, err)
	defer program.Close()
	require.True(t, stream.Receive())
	accepted := stream.Msg().GetAccepted()
	require.Equal(t, "127.0.0.1", accepted.GetOriginHost())
	require.EqualValues(t, program.LocalAddr().(*net.TCPAddr).Port, accepted.GetOriginPort())

	conn, err := b.dial("accept/" + accepted.GetId())
	require.NoError(t, err)
	defer conn.Close()
	_, err = b.dial("accept/" + accepted.GetId())
	require.ErrorContains(t, err, "no connection of that name")
	_, err = io.WriteString(program, "from the box")
	require.NoError(t, err)
	require.NoError(t, program.(*net.TCPConn).CloseWrite())
	data, err := io.ReadAll(conn)
	require.NoError(t, err)
	require.Equal(t, "from the box", string(data))

	require.NoError(t, stream.Close())
	eventually(t, func() bool {
		again, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", listening.GetPort()))
		if err == nil {
			again.Close()
		}
		return err != nil
	}, "the listener ends with its stream")
}

func TestWhatNobodyFetchesIsClosedWithItsListener(t *testing.T) {
	b := startBox(t)
	stream, listening := b.listen(b.forwarder(), &agentv1.ListenRequest{Tcp: "127.0.0.1:0"})
	program, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", listening.GetPort()))
	require.NoError(t, err)
	defer program.Close()
	require.True(t, stream.Receive())
	require.NoError(t, stream.Close())
	_, err = program.Read(make([]byte, 1))
	require.Error(t, err)
	b.forwards.mu.Lock()
	defer b.forwards.mu.Unlock()
	require.Empty(t, b.forwards.pending)
}

func TestAnAgentSocketIsPrivateNamedInTheEnvironmentAndGoesWithItsStream(t *testing.T) {
	b := startBox(t)
	stream, listening := b.listen(b.forwarder(), &agentv1.ListenRequest{AuthSocket: true})
	info, err := os.Stat(filepath.Dir(listening.GetPath()))
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o700), info.Mode().Perm())
	info, err = os.Stat(listening.GetPath())
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm())
	request := sh("echo $SSH_AUTH_SOCK; test -w $SSH_AUTH_SOCK")
	request.AuthSocket = listening.GetName()
	s := b.run(request)
	require.Equal(t, listening.GetPath()+"\n", s.out[stdout].String())
	require.Zero(t, s.exited.GetExitCode(), "its user may connect")
	request.AuthSocket = "nosuch"
	_, err = b.processes.Start(b.context(), connect.NewRequest(request))
	require.Equal(t, "listener_not_found", reason(t, err))
	require.NoError(t, stream.Close())
	eventually(t, func() bool { _, err := os.Stat(filepath.Dir(listening.GetPath())); return os.IsNotExist(err) }, "the directory is removed")
}

func TestAUnixListenerIsTheUsers(t *testing.T) {
	b := startBox(t)
	client := b.forwarder()
	path := filepath.Join(b.config.Home, "socket")
	stream, listening := b.listen(client, &agentv1.ListenRequest{Unix: path})
	require.Equal(t, path, listening.GetPath())
	conn, err := b.dial("unix/" + path)
	require.NoError(t, err)
	defer conn.Close()
	require.True(t, stream.Receive())
	require.NotEmpty(t, stream.Msg().GetAccepted().GetId())

	refused := func(request *agentv1.ListenRequest) string {
		stream, err := client.Listen(b.context(), connect.NewRequest(request))
		require.NoError(t, err)
		require.False(t, stream.Receive())
		return reason(t, stream.Err())
	}
	require.Equal(t, "address_in_use", refused(&agentv1.ListenRequest{Unix: path}))
	require.Equal(t, "bad_listen", refused(&agentv1.ListenRequest{Unix: "relative"}))
	require.Equal(t, "bad_listen", refused(&agentv1.ListenRequest{Unix: "/no/such/directory/socket"}))
	require.Equal(t, "bad_listen", refused(&agentv1.ListenRequest{}))
	require.Equal(t, "bad_listen", refused(&agentv1.ListenRequest{Tcp: "example.org:0"}))
	require.Equal(t, "bad_listen", refused(&agentv1.ListenRequest{Tcp: fmt.Sprintf("localhost:%d", b.port)}))
	if asRoot() {
		require.Equal(t, "listen_denied", refused(&agentv1.ListenRequest{Unix: "/root/socket"}), "not with the agent's rights")
	}
	require.NoError(t, b.gate.close(b.context(), patience))
	require.Equal(t, "box_quiesced", refused(&agentv1.ListenRequest{Tcp: "localhost:0"}))
	b.gate.open()
	require.NoError(t, stream.Close())
	eventually(t, func() bool { _, err := os.Stat(path); return os.IsNotExist(err) }, "the socket is removed")
}

func TestListenersAreBounded(t *testing.T) {
	b := startBox(t)
	client := b.forwarder()
	for range maxListeners {
		stream, _ := b.listen(client, &agentv1.ListenRequest{Tcp: "127.0.0.1:0"})
		defer stream.Close()
	}
	stream, err := client.Listen(b.context(), connect.NewRequest(&agentv1.ListenRequest{Tcp: "127.0.0.1:0"}))
	require.NoError(t, err)
	require.False(t, stream.Receive())
	require.Equal(t, "too_many_listeners", reason(t, stream.Err()))
}

func TestListenersOfProgramsAreShown(t *testing.T) {
	b := startBox(t)
	p, port := b.listener(&carrelv1.StartProcessRequest{Args: []string{"python3", "-c", listenScript}})
	one := b.shownListener(port)
	require.NotNil(t, one)
	require.True(t, one.GetLoopback())
	require.Equal(t, p.GetPid(), one.GetPid())
	require.Contains(t, one.GetProcess(), "python3 -c import socket")
	require.Nil(t, b.shownListener(fmt.Sprint(b.port)), "the agent's own is not shown")
}

func TestProcAddressesAreReadAsTheyAreWritten(t *testing.T) {
	text := "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n" +
		"   5: 0100007F:1FBB 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0        6 1\n" +
		"   6: 00000000:1FBC 00000000:0000 0A 00000000:00000000 00:00000000 00000000    33        0        7 1\n" +
		"   7: 00000000000000000000000001000000:0050 00000000000000000000000000000000:0000 0A 0:0 0:0 0 0 0 8 1\n" +
		"   8: 0100007F:1FBD 0100007F:0001 01 00000000:00000000 00:00000000 00000000     0        0        9 1\nnonsense\n"
	require.Equal(t, []socket{{8123, true, "6", 0}, {8124, false, "7", 33}, {80, true, "8", 0}}, readSockets(strings.NewReader(text)))
}

func FuzzReadSockets(f *testing.F) {
	f.Add([]byte("   5: 0100007F:1FBB 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0        6 1\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, one := range readSockets(bytes.NewReader(data)) {
			require.Positive(t, one.port)
		}
	})
}

func TestDatagramsPassInFrames(t *testing.T) {
	b := startBox(t)
	server, err := net.ListenPacket("udp", "127.0.0.1:0")
	require.NoError(t, err)
	defer server.Close()
	conn, err := b.dial("udp/" + server.LocalAddr().String())
	require.NoError(t, err)
	defer conn.Close()
	first, second := []byte("one"), bytes.Repeat([]byte("2"), 40_000)
	frames := binary.BigEndian.AppendUint16(nil, uint16(len(first)))
	frames = append(frames, first...)
	frames = append(binary.BigEndian.AppendUint16(frames, uint16(len(second))), second...)
	for _, part := range [][]byte{frames[:1], frames[1:4], frames[4:1000], frames[1000:]} {
		_, err = conn.Write(part)
		require.NoError(t, err)
	}
	buf := make([]byte, 1<<16)
	for _, want := range [][]byte{first, second} {
		n, from, err := server.ReadFrom(buf)
		require.NoError(t, err)
		require.True(t, bytes.Equal(want, buf[:n]))
		_, err = server.WriteTo(want, from)
		require.NoError(t, err)
	}
	back := make([]byte, len(frames))
	_, err = io.ReadFull(conn, back)
	require.NoError(t, err)
	require.True(t, bytes.Equal(frames, back))
}
