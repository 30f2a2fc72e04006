package gateway_test

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/auth"
	"carrel.dev/carrel/internal/carrel"
)

// page is a client's end of a stream.
type page struct {
	t    *testing.T
	conn *websocket.Conn
	out  map[uint32]*strings.Builder // of stream outputs and terminals, by channel; terminals from 1000 on
}

func (p *page) add(channel uint32, text string) {
	if p.out[channel] == nil {
		p.out[channel] = &strings.Builder{}
	}
	p.out[channel].WriteString(text)
}

// text is what came of a channel.
func (p *page) text(channel uint32) string {
	if p.out[channel] == nil {
		return ""
	}
	return p.out[channel].String()
}

func (s *stack) dialStream(path, protocol, bearer string) (*websocket.Conn, *http.Response, error) {
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	return websocket.Dial(ctx, s.url+path, &websocket.DialOptions{HTTPHeader: http.Header{"Authorization": {"Bearer " + bearer}}, Subprotocols: []string{protocol}})
}

func (s *stack) page(protocol, bearer string) *page {
	s.t.Helper()
	conn, _, err := s.dialStream("/v1/boxes/"+string(s.box)+"/stream", protocol, bearer)
	require.NoError(s.t, err)
	require.Equal(s.t, protocol, conn.Subprotocol())
	conn.SetReadLimit(40 << 20)
	s.t.Cleanup(func() { _ = conn.CloseNow() })
	return &page{s.t, conn, map[uint32]*strings.Builder{}}
}

const (
	binaryStream = "carrel.stream.v1"
	jsonStream   = "carrel.stream.v1.json"
)

func (p *page) ask(channel uint32, request *carrelv1.StreamRequest) {
	p.t.Helper()
	request.Channel = channel
	kind, marshal := websocket.MessageBinary, proto.Marshal
	if p.conn.Subprotocol() == jsonStream {
		kind, marshal = websocket.MessageText, protojson.Marshal
	}
	data, err := marshal(request)
	require.NoError(p.t, err)
	require.NoError(p.t, p.conn.Write(testContext(p.t), kind, data))
}

func (p *page) watch(channel uint32, after string) {
	p.ask(channel, &carrelv1.StreamRequest{Request: &carrelv1.StreamRequest_Notebooks{Notebooks: &carrelv1.WatchNotebooksRequest{After: after}}})
}

func (p *page) terminal(request *carrelv1.TerminalRequest) {
	p.ask(0, &carrelv1.StreamRequest{Request: &carrelv1.StreamRequest_Terminal{Terminal: request}})
}

func (p *page) next() *carrelv1.StreamEvent {
	p.t.Helper()
	event, err := p.receive()
	require.NoError(p.t, err)
	return event
}

func (p *page) receive() (*carrelv1.StreamEvent, error) {
	p.t.Helper()
	kind, data, err := p.conn.Read(testContext(p.t))
	if err != nil {
		return nil, err
	}
	event := &carrelv1.StreamEvent{}
	if p.conn.Subprotocol() == jsonStream {
		require.Equal(p.t, websocket.MessageText, kind)
		require.NoError(p.t, protojson.Unmarshal(data, event))
	} else {
		require.Equal(p.t, websocket.MessageBinary, kind)
		require.NoError(p.t, proto.Unmarshal(data, event))
	}
	if output := event.GetNotebook().GetOutput(); output != nil {
		p.add(event.GetChannel(), output.GetFields()["text"].GetStringValue())
	}
	if output := event.GetTerminal().GetOutput(); output.GetStream() == carrelv1.Stream_STREAM_STDOUT {
		p.add(1000+event.GetTerminal().GetChannel(), string(output.GetData()))
	}
	return event, nil
}

func (p *page) until(stop func(*carrelv1.StreamEvent) bool) *carrelv1.StreamEvent {
	p.t.Helper()
	for {
		if event := p.next(); stop(event) {
			return event
		}
	}
}

func (p *page) untilText(channel uint32, want string) {
	p.t.Helper()
	p.until(func(*carrelv1.StreamEvent) bool { return p.text(channel) == want })
}

func notebookLive(e *carrelv1.StreamEvent) bool { return e.GetNotebook().GetLive() }

func TestOneSocketCarriesEverythingOfABox(t *testing.T) {
	for _, protocol := range []string{binaryStream, jsonStream} {
		t.Run(protocol, func(t *testing.T) {
			s := newStack(t)
			s.agent.notebooks.say("before\n")
			p := s.page(protocol, s.ticket(nil))
			p.watch(1, "0")
			p.until(notebookLive)
			require.Equal(t, "before\n", p.text(1))
			p.ask(2, &carrelv1.StreamRequest{Request: &carrelv1.StreamRequest_Files{Files: &carrelv1.WatchFilesRequest{Path: "src"}}})
			p.ask(3, &carrelv1.StreamRequest{Request: &carrelv1.StreamRequest_Usage{Usage: &carrelv1.WatchUsage{Seconds: 1}}})
			p.terminal(&carrelv1.TerminalRequest{Channel: 1, Request: &carrelv1.TerminalRequest_Open{Open: &carrelv1.StartProcessRequest{Args: []string{"cat"}}}})
			p.terminal(&carrelv1.TerminalRequest{Channel: 1, Request: &carrelv1.TerminalRequest_Input{Input: &carrelv1.TerminalInput{Data: []byte("typed")}}})
			s.agent.notebooks.say("after\n")
			var files []string
			var usage *carrelv1.BoxUsage
			var listeners *carrelv1.ListBoxListenersResponse
			p.until(func(e *carrelv1.StreamEvent) bool {
				if f := e.GetFile(); f != nil {
					require.EqualValues(t, 2, e.GetChannel())
					files = append(files, f.GetKind()+" "+f.GetPath())
				}
				if u := e.GetUsage(); u != nil {
					require.EqualValues(t, 3, e.GetChannel())
					usage = u
				}
				if l := e.GetListeners(); l != nil {
					listeners = l
				}
				require.Nil(t, e.GetError())
				return len(files) == 2 && usage != nil && listeners != nil && p.text(1) == "before\nafter\n" && p.text(1001) == "typed"
			})
			require.Equal(t, []string{"ready ", "created src/x"}, files)
			require.EqualValues(t, 42, usage.GetMemoryBytes())
			require.EqualValues(t, 8000, listeners.GetListeners()[0].GetPort())
			require.Contains(t, listeners.GetListeners()[0].GetUrl(), "8000-"+string(s.box))
			s.agent.notebooks.listen(8000, 9000)
			p.until(func(e *carrelv1.StreamEvent) bool { return len(e.GetListeners().GetListeners()) == 2 })

			p.ask(1, &carrelv1.StreamRequest{Request: &carrelv1.StreamRequest_Close{Close: true}})
			require.Eventually(t, func() bool { return s.gateway.AgentCalls() == 1 }, within, 5*time.Millisecond)
			require.NoError(t, p.conn.Close(websocket.StatusNormalClosure, ""))
			require.Eventually(t, func() bool { return s.gateway.AgentCalls() == 0 }, within, 5*time.Millisecond)
		})
	}
}

func TestStreamsGoOnWhereTheBoxBroke(t *testing.T) {
	s := newStack(t)
	p := s.page(binaryStream, s.ticket(nil))
	p.watch(1, "0")
	p.ask(2, &carrelv1.StreamRequest{Request: &carrelv1.StreamRequest_Files{Files: &carrelv1.WatchFilesRequest{Path: "src"}}})
	p.terminal(&carrelv1.TerminalRequest{Channel: 1, Request: &carrelv1.TerminalRequest_Open{Open: &carrelv1.StartProcessRequest{Args: []string{"slow", "60"}}}})
	var notebook, terminal strings.Builder
	started, overflows := 0, 0
	var exited *carrelv1.Process // may come before the last event of the notebook
	for i := range 60 {
		if i%20 == 10 {
			s.proxy.cut()
		}
		s.agent.notebooks.say("line " + itoa(i) + "\n")
		notebook.WriteString("line " + itoa(i) + "\n")
		terminal.WriteString("line " + itoa(i) + "\n")
		s.agent.step <- struct{}{}
		p.until(func(e *carrelv1.StreamEvent) bool {
			require.Nil(t, e.GetError())
			require.Nil(t, e.GetTerminal().GetError())
			require.False(t, e.GetNotebook().GetGap())
			if e.GetTerminal().GetStarted() != nil {
				started++
			}
			if e.GetFile().GetKind() == "overflow" {
				overflows++
			}
			if e.GetTerminal().GetExited() != nil {
				exited = e.GetTerminal().GetExited()
			}
			return p.text(1) == notebook.String() && p.text(1001) == terminal.String()
		})
	}
	if exited == nil {
		exited = p.until(func(e *carrelv1.StreamEvent) bool { return e.GetTerminal().GetExited() != nil }).GetTerminal().GetExited()
	}
	require.EqualValues(t, 7, exited.GetExitCode())
	require.Equal(t, 1, started)
	if overflows == 0 { // the last of three that broke may come back after the others
		p.until(func(e *carrelv1.StreamEvent) bool { return e.GetFile().GetKind() == "overflow" })
	}
}

func TestASlowViewerCostsLittleAndHoldsUpNobody(t *testing.T) {
	s := newStack(t)
	slow := s.page(binaryStream, s.ticket(nil))
	slow.watch(1, "0")
	slow.until(notebookLive)
	piece := strings.Repeat("x", 32<<10)
	const pieces = 2000 // 64 MB
	written := make(chan string, 1)
	go func() {
		last := ""
		for range pieces {
			last = s.agent.notebooks.say(piece)
		}
		written <- last
	}()
	var last string
	select {
	case last = <-written:
	case <-testContext(t).Done():
		require.Fail(t, "whoever writes the journal waits for a viewer")
	}
	fast := s.page(binaryStream, s.ticket(nil))
	fast.watch(1, "0")
	fast.until(notebookLive)
	require.Len(t, fast.text(1), pieces*len(piece))
	// The fast one took all of it. Of the slow one's stream the agent could send what waits in the gateway and in the kernel's buffers.
	sent := s.agent.notebooks.sent.Load() - int64(pieces*len(piece))
	require.Less(t, sent, int64(24<<20), "the rest waits in the box")

	s.agent.notebooks.forget(pieces - 3)
	gap := slow.until(func(e *carrelv1.StreamEvent) bool { return e.GetNotebook().GetGap() }).GetNotebook()
	require.Equal(t, "j1."+itoa(pieces-4), gap.GetCursor())
	slow.until(func(e *carrelv1.StreamEvent) bool { return e.GetNotebook().GetCursor() == last })
}

func TestAStreamEndsWithTheRunOfItsBox(t *testing.T) {
	s := newStack(t)
	s.control.mu.Lock()
	s.control.users.found = carrel.StatePaused
	s.control.mu.Unlock()
	p := s.page(binaryStream, s.ticket(nil))
	cursor := s.agent.notebooks.say("one")
	p.watch(1, "0")
	p.until(notebookLive)
	gone := s.route(1)
	gone.Gone = true
	s.control.setRoute(gone)
	s.proxy.epoch.Store(0) // the node has no such run any more
	s.proxy.cut()
	e := p.until(func(e *carrelv1.StreamEvent) bool { return e.GetError() != nil }).GetError()
	require.Equal(t, "failed_precondition", e.GetCode())
	require.Equal(t, "box_not_running", e.GetReason())
	require.Contains(t, e.GetMessage(), "is paused")
	_, err := p.receive()
	require.EqualValues(t, 4410, websocket.CloseStatus(err), "%v", err)
	require.ErrorContains(t, err, "box_not_running: ")

	s.proxy.epoch.Store(2)
	s.control.setRoute(s.route(2))
	s.agent.notebooks.say("two")
	p = s.page(binaryStream, s.ticket(func(t *auth.Ticket) { t.Epoch = 2 }))
	p.watch(1, cursor)
	p.untilText(1, "two")

	// It was started again meanwhile: another ticket is needed.
	s.control.setRoute(s.route(3))
	s.proxy.epoch.Store(3)
	s.proxy.cut()
	p.until(func(e *carrelv1.StreamEvent) bool { return e.GetError() != nil })
	_, err = p.receive()
	require.EqualValues(t, 4401, websocket.CloseStatus(err), "%v", err)
}

func TestStreamsOfBadClients(t *testing.T) {
	s := newStack(t)
	s.terminalIsViewOnly()
	for name, c := range map[string]struct {
		frame string
		text  string
	}{
		"no JSON":         {`{"channel":`, "bad_frame"},
		"channel 0":       {`{"channel":0,"usage":{}}`, "bad_channel"},
		"no such channel": {`{"channel":4,"close":true}`, "bad_channel"},
		"terminal first":  {`{"terminal":{"channel":4,"signal":"INT"}}`, "bad_channel"},
	} {
		p := s.page(jsonStream, s.ticket(nil))
		require.NoError(t, p.conn.Write(testContext(t), websocket.MessageText, []byte(c.frame)))
		_, err := p.receive()
		require.Equal(t, websocket.StatusPolicyViolation, websocket.CloseStatus(err), "%s: %v", name, err)
		require.ErrorContains(t, err, c.text, name)
	}
	p := s.page(jsonStream, s.ticket(nil))
	require.NoError(t, p.conn.Write(testContext(t), websocket.MessageText, []byte(`{"channel":1,"somethingNew":{"x":1}}`)))
	require.Equal(t, "unknown_request", p.next().GetError().GetReason(), "what a newer page asks for ends its channel alone")
	p.watch(2, "0")
	p.until(notebookLive)
	p.watch(3, "nonsense")
	event := p.until(func(e *carrelv1.StreamEvent) bool { return e.GetError() != nil })
	require.EqualValues(t, 3, event.GetChannel())
	require.NoError(t, p.conn.Write(testContext(t), websocket.MessageBinary, []byte("x")))
	_, err := p.receive()
	require.ErrorContains(t, err, "bad_frame")

	for range 33 {
		p = s.page(binaryStream, s.ticket(nil))
	}
	for i := range 33 {
		p.watch(uint32(i+1), "")
	}
	for err = nil; err == nil; {
		_, err = p.receive()
	}
	require.ErrorContains(t, err, "too_many_channels")
}

// terminalIsViewOnly looks at a terminal of a stream with a right to look only.
func (s *stack) terminalIsViewOnly() {
	p := s.page(binaryStream, s.viewTicket())
	p.watch(1, "0")
	p.until(notebookLive)
	p.terminal(&carrelv1.TerminalRequest{Channel: 1, Request: &carrelv1.TerminalRequest_Open{Open: &carrelv1.StartProcessRequest{Args: []string{"cat"}}}})
	require.Equal(s.t, "view_only", p.until(func(e *carrelv1.StreamEvent) bool { return e.GetTerminal().GetError() != nil }).GetTerminal().GetError().GetReason())
}

// sse reads server-sent events.
type sse struct {
	t     *testing.T
	resp  *http.Response
	lines *bufio.Scanner
}

func (s *stack) events(path, bearer string, headers ...string) *sse {
	s.t.Helper()
	req, err := http.NewRequestWithContext(testContext(s.t), http.MethodGet, s.url+path, nil)
	require.NoError(s.t, err)
	req.Header.Set("Accept", "text/event-stream")
	if bearer != "" {
		req.Header.Set("Authorization", "Bearer "+bearer)
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	require.NoError(s.t, err)
	s.t.Cleanup(func() { resp.Body.Close() })
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, 8<<20)
	return &sse{s.t, resp, lines}
}

// next is the fields of the next event.
func (e *sse) next() map[string]string {
	e.t.Helper()
	fields := map[string]string{}
	for e.lines.Scan() {
		line := e.lines.Text()
		if line == "" {
			if len(fields) > 0 {
				return fields
			}
			continue
		}
		name, value, _ := strings.Cut(line, ": ")
		fields[name] = value
	}
	require.NoError(e.t, e.lines.Err())
	require.Fail(e.t, "the events have ended")
	return nil
}

func (e *sse) text() (id, text string) {
	e.t.Helper()
	fields := e.next()
	event := &carrelv1.NotebookEvent{}
	require.NoError(e.t, protojson.Unmarshal([]byte(fields["data"]), event))
	require.Equal(e.t, fields["id"], event.GetCursor())
	return fields["id"], event.GetOutput().GetFields()["text"].GetStringValue()
}

func TestServerSentEventsGoOnWhereTheClientWas(t *testing.T) {
	s := newStack(t)
	s.agent.notebooks.say("one\nand more", "two", "three")
	path := "/v1/boxes/" + string(s.box) + "/stream"
	e := s.events(path+"?after=0&ticket="+s.viewTicket(), "")
	require.Equal(t, "text/event-stream; charset=utf-8", e.resp.Header.Get("Content-Type"))
	require.Equal(t, map[string]string{"retry": "2000"}, e.next())
	id, text := e.text()
	require.Equal(t, "one\nand more", text)

	again := s.events(path+"?after=0", s.viewTicket(), "Last-Event-ID", id)
	again.next()
	for _, want := range []string{"two", "three"} {
		_, text = again.text()
		require.Equal(t, want, text)
	}
	live := again.next()
	require.Empty(t, live["id"])
	require.Contains(t, live["data"], `"live":`)
	s.agent.notebooks.say("four")
	_, text = again.text()
	require.Equal(t, "four", text)

	session := s.events("/v1/sessions/"+s.run()+"/stream?after=j1.3", s.viewTicket())
	session.next()
	_, text = session.text()
	require.Equal(t, "four", text)
	s.gateway.CutAll(carrel.Errorf(carrel.CodeUnauthorized, "token_revoked", "the token was revoked"))
	for _, one := range []*sse{again, session} {
		end := one.next()
		for end["event"] != "end" {
			end = one.next()
		}
		require.JSONEq(t, `{"code":"unauthenticated","reason":"token_revoked","message":"the token was revoked"}`, end["data"])
	}
}

func TestServerSentEventsAreNotMadeByABox(t *testing.T) {
	s := newStack(t)
	s.agent.notebooks.say("one")
	s.agent.notebooks.mu.Lock()
	s.agent.notebooks.journal[0].Cursor = "x\nevent: end\ndata: {}\n"
	s.agent.notebooks.mu.Unlock()
	e := s.events("/v1/boxes/"+string(s.box)+"/stream?after=0", s.viewTicket())
	e.next()
	one := e.next()
	require.Empty(t, one["id"])
	require.Empty(t, one["event"])
	require.Contains(t, one["data"], "one")
}

func TestWhatIsNoStreamIsTold(t *testing.T) {
	s := newStack(t)
	path := "/v1/boxes/" + string(s.box) + "/stream"
	for _, c := range []struct {
		path, accept, bearer, reason string
		status                       int
		headers                      []string
	}{
		{path, "", s.ticket(nil), "not_a_stream", 400, nil},
		{path, "text/event-stream", "", "no_credentials", 401, nil},
		{path, "text/event-stream", testToken, "", 200, nil},
		{path + "?ticket=" + testToken, "text/event-stream", "", "token_in_url", 401, nil},
		{path + "?ticket=" + s.ticket(nil), "text/event-stream", "", "other_origin", 403, []string{"Origin", "http://8000-b.localhost"}},
		{path + "?after=a%20b", "text/event-stream", s.ticket(nil), "bad_cursor", 400, nil},
	} {
		req, err := http.NewRequestWithContext(testContext(t), http.MethodGet, s.url+c.path, nil)
		require.NoError(t, err)
		req.Header.Set("Accept", c.accept)
		if c.bearer != "" {
			req.Header.Set("Authorization", "Bearer "+c.bearer)
		}
		for i := 0; i < len(c.headers); i += 2 {
			req.Header.Set(c.headers[i], c.headers[i+1])
		}
		resp, err := http.DefaultClient.Do(req)
		require.NoError(t, err)
		require.Equal(t, c.status, resp.StatusCode, c.reason)
		if c.status != 200 {
			body, _ := io.ReadAll(resp.Body)
			require.Contains(t, string(body), c.reason)
			require.True(t, json.Valid(body))
		}
		resp.Body.Close()
	}
	_, resp, err := s.dialStream("/v1/sessions/"+string(carrel.NewRunID())+"/stream", binaryStream, s.ticket(nil))
	require.Error(t, err)
	require.Equal(t, 404, resp.StatusCode)
	conn, _, err := s.dialStream("/v1/sessions/"+s.run()+"/stream", binaryStream, s.ticket(nil))
	require.NoError(t, err)
	require.NoError(t, conn.Close(websocket.StatusNormalClosure, ""))
}
