package gateway_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/coder/websocket"
	"github.com/stretchr/testify/require"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/auth"
	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/client"
	"carrel.dev/carrel/internal/gateway"
)

// One organisation opens as many streams as it can; those of another one are served all the same.
func TestAnOrganisationCannotTakeAllStreams(t *testing.T) {
	s := newStack(t, func(c *gateway.Config) { c.Streams = 12 })
	of := func(org carrel.OrgID, user carrel.UserID) string {
		return s.ticket(func(t *auth.Ticket) { t.Org, t.User = org, user })
	}
	watch := func(bearer string) error {
		ctx, cancel := context.WithCancel(testContext(t))
		t.Cleanup(cancel)
		stream, err := s.notebooks(bearer).WatchNotebooks(ctx, connect.NewRequest(&carrelv1.WatchNotebooksRequest{Box: string(s.box)}))
		require.NoError(t, err)
		if stream.Receive() {
			return nil
		}
		return client.Error(stream.Err())
	}
	greedy := 0
	for _, user := range []carrel.UserID{"u000000000000000000a", "u000000000000000000b", "u000000000000000000c"} {
		for {
			err := watch(of("o000000000000000000a", user))
			if err != nil {
				require.Equal(t, "too_many_streams", carrel.ReasonOf(err), "%v", err)
				break
			}
			greedy++
		}
	}
	require.Equal(t, 6, greedy, "half of what there is")

	// It gets the same answer everywhere.
	bearer := of("o000000000000000000a", "u000000000000000000d")
	_, err := s.notebooks(bearer).GetStatus(testContext(t), connect.NewRequest(&carrelv1.GetStatusRequest{Box: string(s.box)}))
	require.Equal(t, carrel.CodeExhausted, carrel.CodeOf(client.Error(err)), "%v", err)
	for _, protocol := range []string{binaryStream, jsonStream} {
		conn, _, err := s.dialStream("/v1/boxes/"+string(s.box)+"/stream", protocol, bearer)
		require.NoError(t, err)
		_, _, err = conn.Read(testContext(t))
		require.Equal(t, websocket.StatusTryAgainLater, websocket.CloseStatus(err), "%v", err)
		require.ErrorContains(t, err, "too_many_streams")
	}
	status, text := s.rest(http.MethodGet, "/v1/boxes/"+string(s.box)+"/status", "", bearer)
	require.Equal(t, http.StatusTooManyRequests, status, text)

	require.NoError(t, watch(of("o000000000000000000b", "u000000000000000000e")), "another organisation")
}

// A request is read only so far before somebody has to have shown who they are: the rest of these never comes, and they are answered.
func TestALargeRequestOfNobodyIsNotRead(t *testing.T) {
	s := newStack(t)
	for _, path := range []string{
		"/carrel.v1.NotebookService/Execute", "/carrel.v1.NotebookService/EditNotebook", "/v1/boxes/" + string(s.box) + "/execute", "/v1/boxes/" + string(s.box) + "/notebooks:edit",
		"/carrel.v1.ProcessService/WriteInput", "/v1/boxes/" + string(s.box) + "/processes", "/carrel.v1.FileService/MoveFile", "/carrel.v1.PortService/OpenWeb",
		"/carrel.v1.BoxService/CreateBox",
	} {
		for what, credentials := range map[string]string{
			"nothing": "", "a token of nobody": "Authorization: Bearer carrel_bad\r\n",
			"a ticket that has ended": "Authorization: Bearer " + s.ticket(func(t *auth.Ticket) { t.Expires = time.Now().Add(-time.Minute) }) + "\r\n",
		} {
			conn, err := net.Dial("tcp", strings.TrimPrefix(s.url, "http://"))
			require.NoError(t, err)
			require.NoError(t, conn.SetDeadline(time.Now().Add(within)))
			_, _ = fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: localhost\r\n%sContent-Type: application/json\r\nContent-Length: 15000000\r\n\r\n{\"box\":\"%s\",\"code\":\"%s", path, credentials, s.box, strings.Repeat("x", 100<<10)) // it may be cut off in the middle
			resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
			require.NoError(t, err, "%s with %s", path, what)
			text, _ := io.ReadAll(resp.Body)
			require.Equal(t, http.StatusUnauthorized, resp.StatusCode, "%s with %s: %s", path, what, text)
			require.NoError(t, conn.Close())
		}
	}
}

// A request that comes to no end is given up, unless somebody sends it.
func TestASlowRequestOfNobodyIsGivenUp(t *testing.T) {
	s := newStack(t)
	s.gateway.BodyPatience(50 * time.Millisecond)
	begin := func(credentials string) net.Conn {
		conn, err := net.Dial("tcp", strings.TrimPrefix(s.url, "http://"))
		require.NoError(t, err)
		t.Cleanup(func() { conn.Close() })
		require.NoError(t, conn.SetDeadline(time.Now().Add(within)))
		_, err = fmt.Fprintf(conn, "POST /v1/boxes/%s/execute HTTP/1.1\r\nHost: localhost\r\n%sContent-Type: application/json\r\nContent-Length: 12\r\n\r\n{", s.box, credentials)
		require.NoError(t, err)
		return conn
	}
	known := begin("Authorization: Bearer " + s.ticket(nil) + "\r\n")
	for range 3 { // each takes longer than patience is
		resp, err := http.ReadResponse(bufio.NewReader(begin("")), nil)
		if err == nil {
			require.GreaterOrEqual(t, resp.StatusCode, 400)
			_, _ = io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
		}
	}
	_, err := known.Write([]byte(`"code":"x"}`))
	require.NoError(t, err)
	resp, err := http.ReadResponse(bufio.NewReader(known), nil)
	require.NoError(t, err)
	defer resp.Body.Close()
	require.Equal(t, http.StatusOK, resp.StatusCode)
}

// What a box answers at the front door's own origin is no part of its pages, though it may be read by programs and opened by people.
func TestPagesLoadNothingThatABoxAnswers(t *testing.T) {
	s := newStack(t)
	for _, path := range []string{"/jupyter/" + string(s.box) + "/files/x.js", "/p/" + string(s.box) + "/8000/x.js"} {
		for _, dest := range []string{"script", "style", "image", "font", "iframe", "worker", "serviceworker", "manifest", "object"} {
			status, text := s.rest(http.MethodGet, path, "", s.ticket(nil), "Sec-Fetch-Site", "same-origin", "Sec-Fetch-Dest", dest)
			require.Equal(t, http.StatusForbidden, status, "%s as %s", path, dest)
			require.Contains(t, text, "not_for_pages")
		}
		for _, headers := range [][]string{nil, {"Sec-Fetch-Site", "same-origin", "Sec-Fetch-Dest", "empty"}, {"Sec-Fetch-Site", "cross-site", "Sec-Fetch-Dest", "image"}} {
			_, text := s.rest(http.MethodGet, path, "", s.ticket(nil), headers...)
			require.NotContains(t, text, "not_for_pages", "%s with %v", path, headers)
		}
	}
	resp, err := http.Get(s.url + "/")
	require.NoError(t, err)
	resp.Body.Close()
	host := strings.TrimPrefix(s.url, "http://")
	policy := resp.Header.Get("Content-Security-Policy")
	require.Contains(t, policy, "script-src "+host+"/assets/ localhost:")
	require.NotRegexp(t, `(script|style|frame|worker|font)-src[^;]*'self'`, policy)
}

// Answers are somebody's own: nothing keeps them, and nothing takes them for what they are not.
func TestAnswersAreNotKept(t *testing.T) {
	s := newStack(t)
	for _, path := range []string{"/v1/boxes/" + string(s.box) + "/status", "/v1/boxes/" + string(s.box) + "/processes", "/v1/whoami", "/v1/nothing", "/carrel.v1.UserService/WhoAmI"} {
		req, err := http.NewRequestWithContext(testContext(t), http.MethodGet, s.url+path, nil)
		require.NoError(t, err)
		req.Header.Set("Authorization", "Bearer "+s.ticket(nil))
		resp, err := http.DefaultClient.Do(req)
		require.NoError(t, err)
		resp.Body.Close()
		require.Equal(t, []string{"no-store"}, resp.Header["Cache-Control"], path)
		require.Equal(t, []string{"nosniff"}, resp.Header["X-Content-Type-Options"], path)
	}
}

// A name that is longer than any is not asked for at control, and not remembered.
func TestNamesThatAreNoneAreNotRemembered(t *testing.T) {
	s := newStack(t)
	for _, box := range []string{strings.Repeat("x", 60<<10), "b?org=" + strings.Repeat("x", 60<<10)} {
		path, query, _ := strings.Cut(box, "?")
		status, text := s.rest(http.MethodGet, "/v1/boxes/"+path+"/status?"+query, "", testToken)
		require.Equal(t, http.StatusNotFound, status, text)
	}
	require.Zero(t, s.control.exchanges)
}

// Whoever is known sends what is large, by token and by ticket.
func TestALargeRequestOfSomebodyIsRead(t *testing.T) {
	s := newStack(t)
	for _, bearer := range []string{testToken, s.ticket(nil)} {
		body := `{"code":"` + strings.Repeat("x", 900<<10) + `"}`
		req, err := http.NewRequestWithContext(testContext(t), http.MethodPost, s.url+"/v1/boxes/"+string(s.box)+"/execute", strings.NewReader(body))
		require.NoError(t, err)
		req.Header.Set("Authorization", "Bearer "+bearer)
		req.Header.Set("Content-Type", "application/json")
		resp, err := http.DefaultClient.Do(req)
		require.NoError(t, err)
		text, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		require.Equal(t, http.StatusOK, resp.StatusCode, "%s", text)
		require.True(t, json.Valid(text))
	}
	require.Eventually(t, func() bool {
		streams, memory := s.gateway.Held()
		return streams == 0 && memory == 0
	}, within, 10*time.Millisecond, "everything was given back")
}

// What a box says at length waits for room, and gives up when there is none.
func TestALargeAnswerOfABoxWaitsForRoom(t *testing.T) {
	s := newStack(t)
	get := func() (*connect.Response[carrelv1.Notebook], error) {
		return s.notebooks(s.ticket(nil)).GetNotebook(testContext(t), connect.NewRequest(&carrelv1.GetNotebookRequest{Box: string(s.box), Path: "large.ipynb"}))
	}
	leave := s.gateway.HoldMemory("o00000000000000other", 50*time.Millisecond)
	_, err := get()
	require.Equal(t, "too_much_at_once", carrel.ReasonOf(client.Error(err)), "%v", err)
	leave()
	resp, err := get()
	require.NoError(t, err)
	require.Len(t, resp.Msg.GetContent().GetFields()["data"].GetStringValue(), 30<<20)
	require.Eventually(t, func() bool {
		streams, memory := s.gateway.Held()
		return streams == 0 && memory == 0
	}, within, 10*time.Millisecond, "everything was given back")
}
