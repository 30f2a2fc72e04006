package gateway_test

import (
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/durationpb"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/api/carrel/v1/carrelv1connect"
	"carrel.dev/carrel/internal/auth"
	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/client"
)

// notebooks is the raw service with a bearer.
func (s *stack) notebooks(bearer string) carrelv1connect.NotebookServiceClient {
	c, err := client.New(client.Config{Context: client.Context{URL: s.url, Token: bearer}, Dial: s.conns.dial})
	require.NoError(s.t, err)
	s.t.Cleanup(c.Close)
	return c.Notebooks
}

func (s *stack) viewTicket() string {
	return s.ticket(func(t *auth.Ticket) { t.Scopes = []string{auth.ScopeView} })
}

// rest makes a request and gives status and body.
func (s *stack) rest(method, path, body, bearer string, headers ...string) (int, string) {
	s.t.Helper()
	req, err := http.NewRequestWithContext(testContext(s.t), method, s.url+path, strings.NewReader(body))
	require.NoError(s.t, err)
	if bearer != "" {
		req.Header.Set("Authorization", "Bearer "+bearer)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	require.NoError(s.t, err)
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	require.NoError(s.t, err)
	return resp.StatusCode, string(text)
}

func (s *stack) run() string {
	s.control.mu.Lock()
	defer s.control.mu.Unlock()
	return s.control.routes[s.box].GetRunId()
}

func TestNotebookCallsNeedTheirScope(t *testing.T) {
	s := newStack(t)
	exec, view := s.notebooks(s.ticket(nil)), s.notebooks(s.viewTicket())
	box := string(s.box)
	for name, call := range map[string]func(carrelv1connect.NotebookServiceClient) error{
		"execute": func(c carrelv1connect.NotebookServiceClient) error {
			_, err := c.Execute(testContext(t), request(&carrelv1.ExecuteRequest{Box: box, Code: "1"}))
			return err
		},
		"edit": func(c carrelv1connect.NotebookServiceClient) error {
			_, err := c.EditNotebook(testContext(t), request(&carrelv1.EditNotebookRequest{Box: box, Path: "a.ipynb"}))
			return err
		},
		"answer": func(c carrelv1connect.NotebookServiceClient) error {
			_, err := c.AnswerInput(testContext(t), request(&carrelv1.AnswerInputRequest{Box: box, Execution: "e1"}))
			return err
		},
		"interrupt": func(c carrelv1connect.NotebookServiceClient) error {
			_, err := c.Interrupt(testContext(t), request(&carrelv1.InterruptRequest{Box: box}))
			return err
		},
		"complete": func(c carrelv1connect.NotebookServiceClient) error {
			_, err := c.CompleteCode(testContext(t), request(&carrelv1.CompleteCodeRequest{Box: box, Code: "1"}))
			return err
		},
		"inspect": func(c carrelv1connect.NotebookServiceClient) error {
			_, err := c.InspectCode(testContext(t), request(&carrelv1.InspectCodeRequest{Box: box, Code: "1"}))
			return err
		},
		"start": func(c carrelv1connect.NotebookServiceClient) error {
			_, err := c.StartKernel(testContext(t), request(&carrelv1.StartKernelRequest{Box: box}))
			return err
		},
		"restart": func(c carrelv1connect.NotebookServiceClient) error {
			_, err := c.RestartKernel(testContext(t), request(&carrelv1.RestartKernelRequest{Box: box}))
			return err
		},
		"shut down": func(c carrelv1connect.NotebookServiceClient) error {
			_, err := c.ShutdownKernel(testContext(t), request(&carrelv1.ShutdownKernelRequest{Box: box}))
			return err
		},
	} {
		require.Equal(t, "view_only", carrel.ReasonOf(call(view)), name)
		require.NotEqual(t, carrel.CodeDenied, carrel.CodeOf(call(exec)), name)
	}
	status, err := view.GetStatus(testContext(t), request(&carrelv1.GetStatusRequest{Box: box}))
	require.NoError(t, err)
	require.Equal(t, "k1", status.Msg.GetKernels()[0].GetId())
	usage, err := view.GetUsage(testContext(t), request(&carrelv1.GetUsageRequest{Box: box}))
	require.NoError(t, err)
	require.EqualValues(t, 42, usage.Msg.GetMemoryBytes())
	require.Equal(t, []string{string(testUser)}, s.agent.notebooks.users, "the agent is told who asks")
	require.Empty(t, s.agent.notebooks.requests[0].GetBox(), "and not what it knows itself")
}

func TestNotebooksAreServedUnderBoxAndSession(t *testing.T) {
	s := newStack(t)
	for _, path := range []string{"/v1/boxes/" + string(s.box), "/v1/sessions/" + s.run()} {
		status, body := s.rest("POST", path+"/execute", `{"code":"print(1)"}`, s.ticket(nil))
		require.Equal(t, 200, status, body)
		require.Contains(t, body, `"EXECUTION_STATE_QUEUED"`)
		status, body = s.rest("POST", path+"/complete", `{"path":"a.ipynb","code":"pri","cursor":3}`, s.ticket(nil))
		require.Equal(t, 200, status, body)
		require.Contains(t, body, `"a.ipynb pri"`)
		status, body = s.rest("POST", path+"/inspect", `{"code":"print","cursor":2}`, s.ticket(nil))
		require.Equal(t, 400, status, body)
		require.Contains(t, body, "kernel_busy")
		status, body = s.rest("GET", path+"/status", "", s.viewTicket())
		require.Equal(t, 200, status, body)
		require.Contains(t, body, `"KERNEL_STATE_IDLE"`)
	}
	status, body := s.rest("POST", "/v1/boxes/"+string(s.box)+"/notebooks:edit", `{"path":"a.ipynb","edits":[{"remove":"c1"}]}`, s.ticket(nil))
	require.Equal(t, 200, status, body)
	require.Contains(t, body, `"revision":"7"`)
	status, body = s.rest("POST", "/v1/boxes/"+string(s.box)+"/execute", `{"cod":"print(1)"}`, s.ticket(nil))
	require.Equal(t, 400, status, body)
	require.Contains(t, body, "unknown_field")

	status, body = s.rest("POST", "/v1/boxes/"+string(s.box)+"/execute", `{"code":"print(1)"}`, s.ticket(nil), "Content-Type", "text/plain")
	require.Equal(t, 415, status, "%s: only JSON is understood", body)

	other := carrel.NewRunID()
	for bearer, want := range map[string]int{"": 401, "nonsense": 401, s.ticket(nil): 404, s.ticket(func(t *auth.Ticket) { t.Box = carrel.NewBoxID() }): 404} {
		status, body = s.rest("GET", "/v1/sessions/"+string(other)+"/status", "", bearer)
		require.Equal(t, want, status, body)
	}
	status, body = s.rest("GET", "/v1/sessions/"+s.run()+"/status", "", s.ticket(func(t *auth.Ticket) { t.Box = carrel.NewBoxID() }))
	require.Equal(t, 404, status, "%s: who may not see it does not learn that it is there", body)
	require.NotContains(t, body, string(s.box))
	_, err := s.notebooks(s.ticket(nil)).GetStatus(testContext(t), request(&carrelv1.GetStatusRequest{Box: string(s.box), Session: s.run()}))
	require.Equal(t, "box_and_session", carrel.ReasonOf(err))
}

func TestExecuteWaitsThroughABrokenConnection(t *testing.T) {
	s := newStack(t)
	answer := make(chan *carrelv1.ExecuteResponse, 1)
	go func() {
		resp, err := s.notebooks(s.ticket(nil)).Execute(testContext(t), request(&carrelv1.ExecuteRequest{Box: string(s.box), Code: "x", Wait: durationpb.New(time.Minute)}))
		if err != nil {
			t.Error(err)
			resp = connect.NewResponse(&carrelv1.ExecuteResponse{})
		}
		answer <- resp.Msg
	}()
	asked := func(n int) func() bool {
		return func() bool { _, calls := s.agent.notebooks.executions(); return calls == n }
	}
	require.Eventually(t, asked(1), within, 5*time.Millisecond)
	s.proxy.cut()
	require.Eventually(t, asked(2), within, 5*time.Millisecond)
	s.agent.notebooks.finish <- &carrelv1.ExecuteResponse{Done: true}
	require.True(t, (<-answer).GetDone())
	ids, _ := s.agent.notebooks.executions()
	require.Equal(t, 1, ids, "the agent knows the question again")

	for _, wait := range []time.Duration{-time.Second, 601 * time.Second} {
		_, err := s.notebooks(s.ticket(nil)).Execute(testContext(t), request(&carrelv1.ExecuteRequest{Box: string(s.box), Code: "x", Wait: durationpb.New(wait)}))
		require.Equal(t, "bad_wait", carrel.ReasonOf(err))
	}
}

func TestAWaitEndsWithTheRight(t *testing.T) {
	s := newStack(t)
	ended := make(chan error, 1)
	go func() {
		_, err := s.notebooks(s.ticket(nil)).Execute(testContext(t), request(&carrelv1.ExecuteRequest{Box: string(s.box), Code: "x", Wait: durationpb.New(time.Minute)}))
		ended <- err
	}()
	require.Eventually(t, func() bool { _, calls := s.agent.notebooks.executions(); return calls == 1 }, within, 5*time.Millisecond)
	s.gateway.CutAll(carrel.Errorf(carrel.CodeUnauthorized, "token_revoked", "the token was revoked"))
	require.Equal(t, "token_revoked", carrel.ReasonOf(<-ended))
}

func TestALargeNotebookPassesAndOneMadeToFillMemoryDoesNot(t *testing.T) {
	s := newStack(t)
	notebooks := s.notebooks(s.ticket(nil))
	got, err := notebooks.GetNotebook(testContext(t), request(&carrelv1.GetNotebookRequest{Box: string(s.box), Path: "large.ipynb"}))
	require.NoError(t, err)
	require.Len(t, got.Msg.GetContent().GetFields()["data"].GetStringValue(), 30<<20)
	_, err = notebooks.GetNotebook(testContext(t), request(&carrelv1.GetNotebookRequest{Box: string(s.box), Path: "bomb.ipynb"}))
	require.Equal(t, carrel.CodeExhausted, carrel.CodeOf(err), "%v", err)
	_, err = notebooks.GetNotebook(testContext(t), request(&carrelv1.GetNotebookRequest{Box: string(s.box), Path: "none.ipynb"}))
	require.Equal(t, carrel.CodeNotFound, carrel.CodeOf(err), "%v", err)
	status, body := s.rest("POST", "/v1/boxes/"+string(s.box)+"/notebooks:edit", `{"path":"a.ipynb","edits":[{"notebookMetadata":{"x":[`+strings.Repeat("0,", 1<<20)+`0]}}]}`, s.ticket(nil))
	require.Equal(t, 429, status, body)
}

// Connect's JSON is read as REST's is, by whichever name a client asks for it.
func TestConnectsJSONIsStrictAndLimited(t *testing.T) {
	s := newStack(t)
	for _, contentType := range []string{"application/json", "application/json; charset=utf-8"} {
		call := func(method, body string) (int, string) {
			return s.rest("POST", "/carrel.v1."+method, body, s.ticket(nil), "Content-Type", contentType)
		}
		for _, method := range []string{"NotebookService/Execute", "ProcessService/ListProcesses", "FileService/StatFile", "PortService/ListBoxListeners"} {
			status, body := call(method, `{"box":"`+string(s.box)+`","cod":"print(1)"}`)
			require.Equal(t, 400, status, body)
			require.Contains(t, body, `"invalid_argument"`)
			require.Contains(t, body, `\"cod\"`, "it is named")
		}
		status, body := call("NotebookService/Execute", `{"box":"`+string(s.box)+`","code":"print(1)"}`)
		require.Equal(t, 200, status, body)
		status, body = call("NotebookService/EditNotebook", `{"box":"`+string(s.box)+`","edits":[{"notebookMetadata":{"x":[`+strings.Repeat("0,", 1<<20)+`0]}}]}`)
		require.GreaterOrEqual(t, status, 400)
		require.Contains(t, body, "values")
	}
}

func TestAWatchGoesOnWhereTheBoxBroke(t *testing.T) {
	s := newStack(t)
	stream, err := s.notebooks(s.viewTicket()).WatchNotebooks(testContext(t), request(&carrelv1.WatchNotebooksRequest{Box: string(s.box), After: "0"}))
	require.NoError(t, err)
	defer stream.Close()
	var got strings.Builder
	lives := 0
	for i := range 200 {
		if i%40 == 20 {
			s.proxy.cut()
		}
		s.agent.notebooks.say(itoa(i) + "\n")
		for !strings.HasSuffix(got.String(), itoa(i)+"\n") {
			require.True(t, stream.Receive(), stream.Err())
			got.WriteString(stream.Msg().GetOutput().GetFields()["text"].GetStringValue())
			require.False(t, stream.Msg().GetGap())
			if stream.Msg().GetLive() {
				lives++
			}
		}
	}
	var want strings.Builder
	for i := range 200 {
		want.WriteString(itoa(i) + "\n")
	}
	require.Equal(t, want.String(), got.String(), "every event, in order, once")
	require.Equal(t, 1, lives)
	require.Greater(t, s.agent.notebooks.watches.Load(), int64(1))
}
