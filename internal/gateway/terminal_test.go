package gateway_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/auth"
	"carrel.dev/carrel/internal/carrel"
)

const terminalProtocol = "carrel.terminal.v1"

// tty is a client's end of a terminal WebSocket.
type tty struct {
	t    *testing.T
	conn *websocket.Conn
}

// dialTerminal opens a terminal; change may take the bearer away or add to the request.
func (s *stack) dialTerminal(query string, header http.Header, protocols ...string) (*websocket.Conn, *http.Response, error) {
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	return websocket.Dial(ctx, s.url+"/v1/boxes/"+string(s.box)+"/terminal"+query, &websocket.DialOptions{
		HTTPHeader: header, Subprotocols: append(protocols, terminalProtocol),
	})
}

func (s *stack) terminal(scopes ...string) *tty {
	s.t.Helper()
	ticket := s.ticket(func(t *auth.Ticket) { t.Epoch, t.Scopes = 2, scopes })
	conn, _, err := s.dialTerminal("", http.Header{"Authorization": {"Bearer " + ticket}})
	require.NoError(s.t, err)
	require.Equal(s.t, terminalProtocol, conn.Subprotocol())
	conn.SetReadLimit(4 << 20)
	s.t.Cleanup(func() { _ = conn.CloseNow() })
	return &tty{s.t, conn}
}

func (y *tty) ask(channel uint32, request *carrelv1.TerminalRequest) {
	y.t.Helper()
	request.Channel = channel
	data, err := proto.Marshal(request)
	require.NoError(y.t, err)
	require.NoError(y.t, y.conn.Write(testContext(y.t), websocket.MessageBinary, data))
}

func (y *tty) open(channel uint32, start *carrelv1.StartProcessRequest) {
	y.ask(channel, &carrelv1.TerminalRequest{Request: &carrelv1.TerminalRequest_Open{Open: start}})
}

func (y *tty) attach(channel uint32, process string, offset int64) {
	y.ask(channel, &carrelv1.TerminalRequest{Request: &carrelv1.TerminalRequest_Attach{Attach: &carrelv1.AttachProcessRequest{Process: process, StdoutOffset: offset}}})
}

func (y *tty) input(channel uint32, input *carrelv1.TerminalInput) {
	y.ask(channel, &carrelv1.TerminalRequest{Request: &carrelv1.TerminalRequest_Input{Input: input}})
}

func (y *tty) next() *carrelv1.TerminalEvent {
	y.t.Helper()
	_, data, err := y.conn.Read(testContext(y.t))
	require.NoError(y.t, err)
	event := &carrelv1.TerminalEvent{}
	require.NoError(y.t, proto.Unmarshal(data, event))
	return event
}

// until reads events, the output of channel into the buffer, until stop says so of one.
func (y *tty) until(channel uint32, out *bytes.Buffer, stop func(*carrelv1.TerminalEvent) bool) *carrelv1.TerminalEvent {
	y.t.Helper()
	for {
		event := y.next()
		if event.GetChannel() == channel && out != nil {
			out.Write(event.GetOutput().GetData())
		}
		if event.GetChannel() == channel && stop(event) {
			return event
		}
	}
}

func isStarted(e *carrelv1.TerminalEvent) bool { return e.GetStarted() != nil }
func isLive(e *carrelv1.TerminalEvent) bool    { return e.GetLive() }
func isExited(e *carrelv1.TerminalEvent) bool  { return e.GetExited() != nil }
func isError(e *carrelv1.TerminalEvent) bool   { return e.GetError() != nil }

func shell(script string) *carrelv1.StartProcessRequest {
	return &carrelv1.StartProcessRequest{Args: []string{"sh", "-c", script}, Pty: &carrelv1.TerminalSize{Rows: 24, Cols: 80}}
}

func TestOneSocketCarriesManyTerminals(t *testing.T) {
	s, _, _ := newRealStack(t)
	y := s.terminal(auth.ScopeExec)
	y.open(1, shell("stty -echo; echo one; read x; echo got $x; exit 4"))
	y.open(2, shell("stty -echo; echo two; read x; stty size; exit 5"))
	var one, two bytes.Buffer
	var ended int
	typed := map[uint32]bool{}
	for ended < 2 {
		event := y.next()
		buf := map[uint32]*bytes.Buffer{1: &one, 2: &two}[event.GetChannel()]
		if event.GetOutput() != nil {
			buf.Write(event.GetOutput().GetData())
			if !typed[event.GetChannel()] {
				typed[event.GetChannel()] = true
				if event.GetChannel() == 2 {
					y.ask(2, &carrelv1.TerminalRequest{Request: &carrelv1.TerminalRequest_Resize{Resize: &carrelv1.TerminalSize{Rows: 50, Cols: 132}}})
				}
				y.input(event.GetChannel(), &carrelv1.TerminalInput{Data: []byte(fmt.Sprintf("in%d\r", event.GetChannel()))})
			}
		}
		if started := event.GetStarted(); started != nil {
			require.Equal(t, "terminal", started.GetKind())
			require.Equal(t, string(testUser), started.GetStartedBy())
		}
		if exited := event.GetExited(); exited != nil {
			require.EqualValues(t, 3+event.GetChannel(), exited.GetExitCode())
			ended++
		}
		require.Nil(t, event.GetError())
	}
	require.Equal(t, "one\r\ngot in1\r\n", one.String())
	require.True(t, strings.HasPrefix(two.String(), "two\r\n"))
	require.NoError(t, y.conn.Close(websocket.StatusNormalClosure, ""))
}

func TestAReplayEndsWithLive(t *testing.T) {
	s, _, _ := newRealStack(t)
	first := s.terminal(auth.ScopeExec)
	first.open(1, shell("stty -echo; echo 0123456789; cat"))
	var out bytes.Buffer
	started := first.until(1, &out, isStarted)
	first.until(1, &out, func(*carrelv1.TerminalEvent) bool { return out.String() == "0123456789\r\n" })
	require.NoError(t, first.conn.CloseNow(), "the connection breaks")

	again := s.terminal(auth.ScopeExec)
	again.attach(7, started.GetStarted().GetId(), 4)
	out.Reset()
	again.until(7, &out, isLive)
	require.Equal(t, "456789\r\n", out.String(), "from the offset asked for, no byte twice")
	again.input(7, &carrelv1.TerminalInput{Offset: -1, Data: []byte("typed\r")})
	out.Reset()
	again.until(7, &out, func(e *carrelv1.TerminalEvent) bool { return strings.Contains(out.String(), "typed\r\n") })
	require.Equal(t, "typed\r\n", out.String())
}

// What a terminal answers by itself to old output is not typed: it is an answer to a question of then.
func TestAReplayTypesNoAnswers(t *testing.T) {
	s := newStack(t)
	s.proxy.epoch.Store(2)
	s.control.setRoute(s.route(2))
	first := s.terminal(auth.ScopeExec)
	first.open(1, &carrelv1.StartProcessRequest{Args: []string{"cat"}})
	process := first.until(1, nil, isStarted).GetStarted().GetId()

	goOn := make(chan struct{})
	s.agent.replay.Store(&goOn)
	again := s.terminal(auth.ScopeExec)
	again.attach(7, process, 0)
	again.input(7, &carrelv1.TerminalInput{Data: []byte("answer"), Automatic: true})
	again.attach(8, "nosuch", 0)
	again.until(8, nil, isError) // so the gateway has read what came before
	close(goOn)
	again.until(7, nil, isLive)
	again.input(7, &carrelv1.TerminalInput{Data: []byte("typed")})
	var out bytes.Buffer
	again.until(7, &out, func(*carrelv1.TerminalEvent) bool { return out.Len() > 0 })
	require.Equal(t, "typed", out.String())
}

func TestTwoViewersShareATerminalEachInItsRole(t *testing.T) {
	s, _, _ := newRealStack(t)
	typist, viewer, other := s.terminal(auth.ScopeExec), s.terminal(auth.ScopeView), s.terminal(auth.ScopeExec)
	typist.open(1, shell("stty -echo; echo ready; cat"))
	var mine, theirs bytes.Buffer
	started := typist.until(1, &mine, isStarted)
	id := started.GetStarted().GetId()
	viewer.attach(1, id, 0)
	viewer.until(1, &theirs, func(*carrelv1.TerminalEvent) bool { return theirs.String() == "ready\r\n" })
	other.attach(1, id, 0)

	typist.input(1, &carrelv1.TerminalInput{Offset: 0, Writer: "a", Data: []byte("from a\r")})
	typist.until(1, &mine, func(*carrelv1.TerminalEvent) bool { return strings.HasSuffix(mine.String(), "from a\r\n") })
	other.input(1, &carrelv1.TerminalInput{Offset: 0, Writer: "b", Data: []byte("from b\r")})
	typist.until(1, &mine, func(*carrelv1.TerminalEvent) bool { return strings.HasSuffix(mine.String(), "from b\r\n") })
	viewer.until(1, &theirs, func(*carrelv1.TerminalEvent) bool { return theirs.String() == mine.String() })

	for _, try := range []*carrelv1.TerminalRequest{
		{Request: &carrelv1.TerminalRequest_Input{Input: &carrelv1.TerminalInput{Offset: -1, Data: []byte("no\r")}}},
		{Request: &carrelv1.TerminalRequest_Resize{Resize: &carrelv1.TerminalSize{Rows: 1, Cols: 1}}},
		{Request: &carrelv1.TerminalRequest_Signal{Signal: "KILL"}},
	} {
		viewer.ask(1, try)
		require.Equal(t, "view_only", viewer.until(1, &theirs, isError).GetError().GetReason())
	}
	viewer.open(2, shell("echo never"))
	require.Equal(t, "view_only", viewer.until(2, nil, isError).GetError().GetReason())
	typist.ask(1, &carrelv1.TerminalRequest{Request: &carrelv1.TerminalRequest_Signal{Signal: "KILL"}})
	typist.until(1, nil, isExited)
	viewer.until(1, &theirs, isExited)
	require.Equal(t, "ready\r\nfrom a\r\nfrom b\r\n", theirs.String())
}

func TestWhatIsNoLongerKeptIsSaid(t *testing.T) {
	s, _, _ := newRealStack(t)
	y := s.terminal(auth.ScopeExec)
	y.open(1, shell("head -c 3000000 /dev/zero | tr '\\0' x; read y"))
	id := y.until(1, nil, isStarted).GetStarted().GetId()
	y.until(1, nil, func(e *carrelv1.TerminalEvent) bool {
		return e.GetOutput().GetOffset()+int64(len(e.GetOutput().GetData())) == 3_000_000
	})
	y.attach(2, id, 0)
	gap := y.until(2, nil, func(e *carrelv1.TerminalEvent) bool { return e.GetGap() != nil }).GetGap()
	require.Zero(t, gap.GetOffset())
	require.Positive(t, gap.GetNextOffset())
	y.until(2, nil, isLive)
	y.ask(2, &carrelv1.TerminalRequest{Request: &carrelv1.TerminalRequest_Close{Close: true}})
	y.input(1, &carrelv1.TerminalInput{Data: []byte("\r")})
	y.until(1, nil, isExited)
}

func TestHowABrowserShowsATicket(t *testing.T) {
	s, _, _ := newRealStack(t)
	ticket := s.ticket(func(t *auth.Ticket) { t.Epoch = 2 })
	host := strings.TrimPrefix(s.url, "http://")
	for name, c := range map[string]struct {
		query     string
		header    http.Header
		protocols []string
		status    int
		reason    string
	}{
		"bearer":                     {header: http.Header{"Authorization": {"Bearer " + ticket}}},
		"subprotocol":                {header: http.Header{"Origin": {"http://" + host}}, protocols: []string{"carrel.ticket." + ticket}},
		"query":                      {query: "?ticket=" + ticket, header: http.Header{"Origin": {"https://" + host}}},
		"page elsewhere":             {query: "?ticket=" + ticket, header: http.Header{"Origin": {"http://8000-b.localhost"}}, status: 403, reason: "other_origin"},
		"bearer of a page":           {header: http.Header{"Origin": {"http://elsewhere"}, "Authorization": {"Bearer " + ticket}}},
		"nothing":                    {status: 401, reason: "no_credentials"},
		"API token in the URL":       {query: "?ticket=" + testToken, status: 401, reason: "token_in_url"},
		"API token as subprotocol":   {protocols: []string{"carrel.ticket." + testToken}, status: 401, reason: "token_in_url"},
		"ticket of another box":      {header: http.Header{"Authorization": {"Bearer " + s.ticket(func(t *auth.Ticket) { t.Box = carrel.NewBoxID() })}}, status: 403, reason: "ticket_of_another_box"},
		"ticket of an earlier run":   {header: http.Header{"Authorization": {"Bearer " + s.ticket(func(t *auth.Ticket) { t.Epoch = 1 })}}, status: 401, reason: "ticket_stale"},
		"ticket that is over":        {header: http.Header{"Authorization": {"Bearer " + s.ticket(func(t *auth.Ticket) { t.Expires = time.Now().Add(-time.Hour) })}}, status: 401, reason: "ticket_expired"},
		"ticket that makes no sense": {query: "?ticket=nonsense", status: 401, reason: "bad_ticket"},
	} {
		conn, resp, err := s.dialTerminal(c.query, c.header, c.protocols...)
		if c.status == 0 {
			require.NoError(t, err, name)
			require.Equal(t, terminalProtocol, conn.Subprotocol(), "%s: the ticket is never sent back", name)
			require.NoError(t, conn.Close(websocket.StatusNormalClosure, ""))
			continue
		}
		require.Error(t, err, name)
		require.Equal(t, c.status, resp.StatusCode, name)
		body, _ := io.ReadAll(resp.Body)
		require.Contains(t, string(body), c.reason, name)
		require.True(t, json.Valid(body), name)
	}
	resp, err := http.Get(s.url + "/v1/boxes/" + string(s.box) + "/terminal")
	require.NoError(t, err)
	defer resp.Body.Close()
	require.Equal(t, http.StatusBadRequest, resp.StatusCode, "a plain request is told what this is")
}

func TestBadFramesCloseTheSocketWithAReason(t *testing.T) {
	s, _, _ := newRealStack(t)
	frame := func(channel uint32, request *carrelv1.TerminalRequest) []byte {
		request.Channel = channel
		data, err := proto.Marshal(request)
		require.NoError(t, err)
		return data
	}
	for name, c := range map[string]struct {
		kind websocket.MessageType
		data []byte
		code websocket.StatusCode
		text string
	}{
		"text":        {websocket.MessageText, []byte("hello"), websocket.StatusPolicyViolation, "bad_frame"},
		"no message":  {websocket.MessageBinary, []byte{0xff, 0xff}, websocket.StatusPolicyViolation, "bad_frame"},
		"no such one": {websocket.MessageBinary, frame(3, &carrelv1.TerminalRequest{Request: &carrelv1.TerminalRequest_Close{Close: true}}), websocket.StatusPolicyViolation, "bad_channel"},
		"channel 0":   {websocket.MessageBinary, frame(0, &carrelv1.TerminalRequest{Request: &carrelv1.TerminalRequest_Attach{Attach: &carrelv1.AttachProcessRequest{}}}), websocket.StatusPolicyViolation, "bad_channel"},
	} {
		y := s.terminal(auth.ScopeExec)
		require.NoError(t, y.conn.Write(testContext(t), c.kind, c.data))
		_, _, err := y.conn.Read(testContext(t))
		require.Equal(t, c.code, websocket.CloseStatus(err), "%s: %v", name, err)
		require.ErrorContains(t, err, c.text, name)
	}
	large := s.terminal(auth.ScopeExec)
	_ = large.conn.Write(testContext(t), websocket.MessageBinary, make([]byte, 1<<20)) // it may be cut off in the middle
	_, _, err := large.conn.Read(testContext(t))
	require.Error(t, err, "what is far too large is not taken")

	y := s.terminal(auth.ScopeExec)
	y.attach(1, "nosuch", 0)
	require.Equal(t, "not_found", y.until(1, nil, isError).GetError().GetCode(), "what is wrong with a channel ends that alone")
	y.open(2, shell("exit 0"))
	y.until(2, nil, isExited)
}

func TestAProcessThatTakesNoInputCanStillBeSignalled(t *testing.T) {
	s, _, _ := newRealStack(t)
	y := s.terminal(auth.ScopeExec)
	y.open(1, &carrelv1.StartProcessRequest{Args: []string{"sleep", "1000"}, Stdin: true})
	y.until(1, nil, isLive)
	piece := bytes.Repeat([]byte("x"), 64<<10)
	full := false
	for range 40 {
		y.input(1, &carrelv1.TerminalInput{Offset: -1, Data: piece})
	}
	y.ask(1, &carrelv1.TerminalRequest{Request: &carrelv1.TerminalRequest_Signal{Signal: "KILL"}})
	exited := y.until(1, nil, func(e *carrelv1.TerminalEvent) bool {
		full = full || e.GetError().GetReason() == "input_full"
		return isExited(e)
	})
	require.True(t, full, "what waits is bounded, and said")
	require.Equal(t, "KILL", exited.GetExited().GetExitSignal())
}

func TestQuietTerminalsEndWhenTheRightDoes(t *testing.T) {
	s, _, _ := newRealStack(t)
	ticket := s.ticket(func(t *auth.Ticket) { t.Epoch = 2 })
	conn, _, err := s.dialTerminal("", http.Header{"Authorization": {"Bearer " + ticket}})
	require.NoError(t, err)
	defer func() { _ = conn.CloseNow() }()
	require.Eventually(t, func() bool { return s.gateway.AgentCalls() == 1 }, within, 5*time.Millisecond, "it is open on the other side too")
	s.gateway.CutAll(carrel.Errorf(carrel.CodeUnauthorized, "token_revoked", "the token was revoked"))
	_, _, err = conn.Read(testContext(t))
	require.EqualValues(t, 4401, websocket.CloseStatus(err))
	require.ErrorContains(t, err, "token_revoked: the token was revoked")
}

func TestAConnectionIntoTheBoxIsCarriedByteForByte(t *testing.T) {
	s, _, _ := newRealStack(t)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer listener.Close()
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				data, _ := io.ReadAll(conn) // to the end of the client's direction
				_, _ = conn.Write(bytes.ToUpper(data))
			}()
		}
	}()
	c := s.client()
	conn, err := c.Dial(testContext(t), "mybox", "tcp/"+listener.Addr().String())
	require.NoError(t, err)
	defer conn.Close()
	data := bytes.Repeat([]byte("abcdefgh"), 500_000)
	go func() {
		_, _ = conn.Write(data)
		_ = conn.(interface{ CloseWrite() error }).CloseWrite()
	}()
	back, err := io.ReadAll(conn)
	require.NoError(t, err)
	require.True(t, bytes.Equal(bytes.ToUpper(data), back))

	for target, want := range map[string]carrel.Code{"tcp/127.0.0.1:9": carrel.CodeUnavailable, "agent": carrel.CodeInvalid, "accept/x": carrel.CodeInvalid, "tcp/": carrel.CodeInvalid} {
		limit := within
		if want == carrel.CodeUnavailable { // which is tried again until somebody listens, or the time is over
			limit = time.Second
		}
		ctx, cancel := context.WithTimeout(context.Background(), limit)
		_, err = c.Dial(ctx, "mybox", target)
		cancel()
		if want == carrel.CodeInvalid {
			require.Equal(t, want, carrel.CodeOf(err), "%s: %v", target, err)
		}
		require.Error(t, err, target)
	}
}
