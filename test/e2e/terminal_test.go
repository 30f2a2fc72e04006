package e2e

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"github.com/coder/websocket"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/client"
)

// webTerminal is a browser's end of a box's WebSocket.
type webTerminal struct {
	s    *stack
	conn *websocket.Conn
	out  bytes.Buffer // of channel 1
	// discard keeps no output, and takes gaps as they come.
	discard bool
	next    int64 // offset behind out
}

// terminal opens the WebSocket of a box with a ticket, as a page of the front door does.
func (s *stack) terminal(box, query string) *webTerminal {
	s.t.Helper()
	answer, err := s.client.Boxes.CreateTicket(s.ctx(), connect.NewRequest(&carrelv1.CreateTicketRequest{Id: box}))
	require.NoError(s.t, err)
	ticket := answer.Msg
	address := s.url + "/v1/boxes/" + ticket.GetBoxId() + "/terminal" + query
	conn, _, err := websocket.Dial(s.ctx(), address, &websocket.DialOptions{
		Subprotocols: []string{"carrel.ticket." + ticket.GetTicket(), "carrel.terminal.v1"}, HTTPHeader: http.Header{"Origin": {s.url}},
	})
	require.NoError(s.t, err, "%s", lazy(s.logs))
	conn.SetReadLimit(4 << 20)
	return &webTerminal{s: s, conn: conn}
}

func (y *webTerminal) ask(request *carrelv1.TerminalRequest) {
	y.s.t.Helper()
	request.Channel = 1
	data, err := proto.Marshal(request)
	require.NoError(y.s.t, err)
	require.NoError(y.s.t, y.conn.Write(y.s.ctx(), websocket.MessageBinary, data))
}

func (y *webTerminal) typeIn(text string) {
	y.s.t.Helper()
	y.ask(&carrelv1.TerminalRequest{Request: &carrelv1.TerminalRequest_Input{Input: &carrelv1.TerminalInput{Offset: -1, Data: []byte(text)}}})
}

// until reads events until stop says so of one.
func (y *webTerminal) until(stop func(*carrelv1.TerminalEvent) bool) *carrelv1.TerminalEvent {
	y.s.t.Helper()
	for {
		_, data, err := y.conn.Read(y.s.ctx())
		require.NoError(y.s.t, err, "%s", lazy(y.s.logs))
		event := &carrelv1.TerminalEvent{}
		require.NoError(y.s.t, proto.Unmarshal(data, event))
		require.Nil(y.s.t, event.GetError())
		require.True(y.s.t, y.discard || event.GetGap() == nil)
		if output := event.GetOutput(); output != nil {
			if !y.discard {
				y.out.Write(output.GetData())
			}
			y.next = output.GetOffset() + int64(len(output.GetData()))
		}
		if stop(event) {
			return event
		}
	}
}

func (y *webTerminal) wait(text string) {
	y.s.t.Helper()
	y.until(func(*carrelv1.TerminalEvent) bool { return strings.Contains(y.out.String(), text) })
}

// front is the command in the foreground of a process's terminal.
func (s *stack) front(box, process string) string {
	p, err := s.client.GetProcess(s.ctx(), box, process)
	require.NoError(s.t, err)
	return p.GetForeground()
}

func TestATerminalIsWhereItWasAfterAPause(t *testing.T) {
	s := newStack(t, options{})
	s.create("desk")
	first := s.terminal("desk", "")
	first.ask(&carrelv1.TerminalRequest{Request: &carrelv1.TerminalRequest_Open{Open: &carrelv1.StartProcessRequest{
		Args: []string{"sh", "-i"}, Env: map[string]string{"PS1": "prompt> "}, Pty: &carrelv1.TerminalSize{Rows: 33, Cols: 101},
	}}})
	process := first.until(func(e *carrelv1.TerminalEvent) bool { return e.GetStarted() != nil }).GetStarted().GetId()
	first.wait("prompt> ")
	require.Empty(t, s.front("desk", process), "a shell that waits")
	first.typeIn("x=kept; stty size\r")
	first.wait("33 101")
	first.typeIn("sleep 1000\r")
	s.eventually("the command is seen in the foreground of gVisor's terminal", func() bool { return s.front("desk", process) == "sleep 1000" })

	offset := first.next
	s.pause("desk")
	_ = first.conn.CloseNow()
	s.resume("desk")
	again := s.terminal("desk", "")
	defer func() { _ = again.conn.CloseNow() }()
	again.ask(&carrelv1.TerminalRequest{Request: &carrelv1.TerminalRequest_Attach{Attach: &carrelv1.AttachProcessRequest{Process: process, StdoutOffset: offset}}})
	again.until(func(e *carrelv1.TerminalEvent) bool { return e.GetLive() })
	require.Equal(t, "sleep 1000", s.front("desk", process))
	again.typeIn("\x03")
	again.wait("prompt> ")
	again.typeIn("echo $x\r")
	again.wait("kept\r\n")

	viewer := s.terminal("desk", "?view")
	defer func() { _ = viewer.conn.CloseNow() }()
	viewer.ask(&carrelv1.TerminalRequest{Request: &carrelv1.TerminalRequest_Attach{Attach: &carrelv1.AttachProcessRequest{Process: process, StdoutOffset: offset}}})
	viewer.wait("kept\r\n")
	again.ask(&carrelv1.TerminalRequest{Request: &carrelv1.TerminalRequest_Signal{Signal: "HUP"}})
	viewer.until(func(e *carrelv1.TerminalEvent) bool { return e.GetExited() != nil })
	require.Equal(t, again.out.String(), viewer.out.String()[:again.out.Len()])
	s.remove("desk")
}

// capitalServer answers on a TCP and a UDP port of the box with what it was sent, in capitals.
const capitalServer = `use IO::Socket::INET;
my $u = IO::Socket::INET->new(Proto => "udp", LocalAddr => "127.0.0.1", LocalPort => 7001) or die;
if (!fork) { while ($u->recv(my $d, 65536)) { $u->send(uc $d) } }
my $l = IO::Socket::INET->new(Listen => 5, ReuseAddr => 1, LocalAddr => "127.0.0.1", LocalPort => 7000) or die;
while (my $c = $l->accept) { local $/; my $d = <$c>; print $c uc $d; close $c }`

func TestPortsOfABoxArePortsOfThisComputer(t *testing.T) {
	s := newStack(t, options{})
	s.create("web")
	_, err := s.client.Exec(s.ctx(), client.ExecOptions{Box: "web", Args: []string{"perl", "-e", capitalServer}, Detach: true})
	require.NoError(t, err)
	s.eventually("the server listens", func() bool {
		ctx, cancel := context.WithCancel(s.ctx())
		defer cancel()
		conn, err := s.client.Dial(ctx, "web", "tcp/localhost:7000")
		if err != nil {
			return false
		}
		defer conn.Close()
		_, _ = io.WriteString(conn, "up")
		_ = conn.(interface{ CloseWrite() error }).CloseWrite()
		data, _ := io.ReadAll(conn)
		return string(data) == "UP"
	})

	for kind, args := range map[string][]string{"tcp": {"0:7000"}, "udp": {"0:7001", "--udp"}} {
		command := exec.Command(filepath.Join(bin(t), "carrel"), append([]string{"port-forward", "web"}, args...)...)
		command.Env = append(os.Environ(), "HOME="+s.home, "CARREL_CONFIG="+filepath.Join(s.home, "config.yaml"))
		out, err := command.StdoutPipe()
		require.NoError(t, err)
		var errs lockedBuffer
		command.Stderr = &errs
		require.NoError(t, command.Start())
		line := make([]byte, 256)
		n, err := out.Read(line)
		require.NoError(t, err, "%s", &errs)
		address := regexp.MustCompile(`127\.0\.0\.1:\d+`).Find(line[:n])
		require.NotNil(t, address, "%s", line[:n])
		conn, err := net.Dial(kind, string(address))
		require.NoError(t, err)
		_, err = io.WriteString(conn, "over "+kind)
		require.NoError(t, err)
		if half, ok := conn.(*net.TCPConn); ok {
			require.NoError(t, half.CloseWrite())
		}
		n, err = conn.Read(line)
		require.NoError(t, err, "%s", &errs)
		require.Equal(t, "OVER "+strings.ToUpper(kind), string(line[:n]))
		conn.Close()
		require.NoError(t, command.Process.Signal(os.Interrupt))
		require.NoError(t, command.Wait(), fmt.Sprint(&errs))
	}
	s.remove("web")
}

func TestAttachTypesIntoARunningCommand(t *testing.T) {
	s := newStack(t, options{})
	s.create("desk")
	reader, writer := io.Pipe()
	ended := make(chan client.ExitStatus, 1)
	started := make(chan string, 1)
	var first lockedBuffer
	go func() {
		status, err := s.client.Exec(s.ctx(), client.ExecOptions{Box: "desk", Args: []string{"cat"}, Streams: client.Streams{
			Stdin: reader, Stdout: &first, OnStarted: func(p *carrelv1.Process) { started <- p.GetId() },
		}})
		if err != nil {
			t.Errorf("exec: %v", err)
		}
		ended <- status
	}()
	process := <-started
	_, err := io.WriteString(writer, "from the first\n")
	require.NoError(t, err)
	s.eventually("the first one's line is there", func() bool { return first.String() == "from the first\n" })
	var second lockedBuffer
	status, err := s.client.Attach(s.ctx(), client.AttachOptions{Box: "desk", Process: process, Streams: client.Streams{
		Stdin: strings.NewReader("from the second\n"), Stdout: &second, // its end is the end of the input
	}})
	require.NoError(t, err)
	require.Zero(t, status.Code)
	require.Zero(t, (<-ended).Code)
	writer.Close()
	require.Equal(t, "from the first\nfrom the second\n", first.String())
	require.Equal(t, first.String(), second.String())
	s.remove("desk")
}
