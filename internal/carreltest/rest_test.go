package carreltest_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/carreltest"
)

// finished waits for the operation that an answer is, which must succeed.
func (c *curl) finished(op document) document {
	c.t.Helper()
	c.s.Eventually("operation "+op.text("verb")+" is done", func() error {
		op = c.ok(http.MethodGet, "/v1/operations/"+op.text("id"), nil)
		if op["done"] != true {
			return fmt.Errorf("%v", op)
		}
		return nil
	})
	require.Nil(c.t, op["error"], "%v", op)
	return op
}

// state is the state of a box as REST shows it.
func (c *curl) state(box string) string {
	c.t.Helper()
	return strings.TrimPrefix(c.ok(http.MethodGet, "/v1/boxes/"+box, nil).text("state"), "STATE_")
}

// refused is do for a request that must be refused, and checks the shape of every error.
func (c *curl) refused(method, path string, body any, status int, code carrel.Code, reason string) {
	c.t.Helper()
	got, answer := c.do(method, path, body)
	require.Equal(c.t, status, got, "%s %s: %v", method, path, answer)
	require.EqualValues(c.t, code, answer["code"], "%v", answer)
	require.NotEmpty(c.t, answer.text("message"))
	info := answer.list("details")[0]
	require.Equal(c.t, "type.googleapis.com/google.rpc.ErrorInfo", info["@type"])
	require.Equal(c.t, "carrel.dev", info["domain"])
	if reason != "" {
		require.Equal(c.t, reason, info["reason"], "%v", answer)
	}
}

func TestEverythingCanBeDoneWithREST(t *testing.T) {
	if testing.Short() {
		return // nodes need root
	}
	t.Parallel()
	s := carreltest.Start(t, carreltest.Options{Controls: 2})
	c := newCurl(t, s, s.AdminToken)

	// Boxes: create, list, get, update.
	var ids []string
	for _, name := range []string{"alpha", "beta", "gamma"} {
		op := c.ok(http.MethodPost, "/v1/boxes", document{"name": name, "labels": document{"team": name[:1]}, "env": document{"WHO": name}, "org": "default", "requestId": "make-" + name})
		require.Equal(t, "create", op.text("verb"))
		require.Equal(t, op.text("id"), c.ok(http.MethodPost, "/v1/boxes", document{"name": name, "labels": document{"team": name[:1]}, "env": document{"WHO": name}, "org": "default", "requestId": "make-" + name}).text("id"))
		ids = append(ids, c.finished(op).text("targetId"))
	}
	names := func(query string) (names []string, token string) {
		answer := c.ok(http.MethodGet, "/v1/boxes?"+query, nil)
		for _, box := range answer.list("boxes") {
			names = append(names, box.text("name"))
		}
		return names, answer.text("nextPageToken")
	}
	list := func(query string) []string { found, _ := names(query); return found }
	require.Equal(t, []string{"gamma", "beta", "alpha"}, list("orderBy="+url.QueryEscape("name desc")))
	require.Equal(t, []string{"beta"}, list("filter="+url.QueryEscape("label.team=b AND state=RUNNING")))
	require.Empty(t, list("filter="+url.QueryEscape("state=PAUSED")))
	first, token := names("orderBy=name&pageSize=2")
	require.Equal(t, []string{"alpha", "beta"}, first)
	require.NotEmpty(t, token)
	rest, token := names("orderBy=name&pageSize=2&pageToken=" + url.QueryEscape(token))
	require.Equal(t, []string{"gamma"}, rest)
	require.Empty(t, token)
	c.refused(http.MethodGet, "/v1/boxes?pageToken=nonsense", nil, http.StatusBadRequest, carrel.CodeInvalid, "")
	c.refused(http.MethodGet, "/v1/boxes?filter=colour%3Dred", nil, http.StatusBadRequest, carrel.CodeInvalid, "")

	box := c.ok(http.MethodGet, "/v1/boxes/alpha", nil)
	require.Equal(t, box, c.ok(http.MethodGet, "/v1/boxes/"+ids[0], nil))
	changed := c.ok(http.MethodPatch, "/v1/boxes/alpha", document{"box": document{"name": "omega", "labels": document{"team": "z"}}, "updateMask": "labels", "etag": box.text("etag")})
	require.Equal(t, document{"team": "z"}, document(changed["labels"].(map[string]any)))
	require.Equal(t, "alpha", changed.text("name"), "it is not in the mask")
	c.refused(http.MethodPatch, "/v1/boxes/alpha", document{"box": document{"name": "omega"}, "updateMask": "name", "etag": box.text("etag")}, http.StatusConflict, carrel.CodeAborted, "")
	require.Equal(t, "omega", c.ok(http.MethodPatch, "/v1/boxes/alpha", document{"box": document{"name": "omega"}, "updateMask": "name", "etag": changed.text("etag")}).text("name"))
	c.refused(http.MethodGet, "/v1/boxes/alpha", nil, http.StatusNotFound, carrel.CodeNotFound, "")

	// A watcher over plain HTTP, from before the verbs.
	seen := watchStates(t, c, "/v1/boxes:watch?id="+ids[0])

	// Verbs.
	for _, step := range []struct{ verb, state string }{
		{"pause", "PAUSED"}, {"resume", "RUNNING"}, {"stop", "STOPPED"}, {"start", "RUNNING"}, {"restart", "RUNNING"},
	} {
		op := c.ok(http.MethodPost, "/v1/boxes/omega:"+step.verb, document{})
		require.Equal(t, step.verb, op.text("verb"))
		waited := c.ok(http.MethodPost, "/v1/boxes/omega:wait", document{"states": []string{"STATE_" + step.state}, "timeout": "600s"})
		require.Equal(t, "STATE_"+step.state, waited.text("state"))
		c.finished(op)
		require.Equal(t, step.state, seen.until(step.state), "what a box stays in is seen")
		require.Equal(t, step.state, c.state("omega"))
	}
	c.refused(http.MethodPost, "/v1/boxes/omega:wait", document{"states": []string{"STATE_PAUSED"}, "timeout": "0.05s"}, http.StatusGatewayTimeout, carrel.CodeDeadline, "wait_timeout")
	c.finished(c.ok(http.MethodPost, "/v1/boxes/beta:stop", document{}))
	c.refused(http.MethodPost, "/v1/boxes/beta:pause", document{}, http.StatusBadRequest, carrel.CodePrecondition, "wrong_state")

	// The words of the other API: workspaces and sessions.
	op := c.ok(http.MethodPost, "/v1/workspaces", document{"name": "delta"})
	delta := c.finished(op).text("targetId")
	require.Equal(t, "delta", c.ok(http.MethodGet, "/v1/workspaces/delta", nil).text("name"))
	require.Len(t, c.ok(http.MethodGet, "/v1/workspaces", nil).list("workspaces"), 0)
	require.Len(t, c.ok(http.MethodGet, "/v1/workspaces", nil).list("boxes"), 4)
	session := func() string { return c.ok(http.MethodGet, "/v1/workspaces/delta", nil).text("runId") }
	shown := c.ok(http.MethodGet, "/v1/sessions/"+session(), nil)
	require.Equal(t, delta, shown.text("boxId"))
	require.Equal(t, "running", shown.text("phase"))
	c.finished(c.ok(http.MethodPost, "/v1/sessions/"+session()+":suspend", document{}))
	require.Equal(t, "PAUSED", c.state("delta"))
	last := shown.text("id")
	require.Equal(t, "paused", c.ok(http.MethodGet, "/v1/sessions/"+last, nil).text("phase"))
	c.finished(c.ok(http.MethodPost, "/v1/sessions/"+last+":resume", document{}))
	c.finished(c.ok(http.MethodPost, "/v1/workspaces/delta:suspend", document{}))
	c.finished(c.ok(http.MethodPost, "/v1/workspaces/delta:resume", document{}))
	c.finished(c.ok(http.MethodPost, "/v1/workspaces/delta:restart", document{}))
	c.finished(c.ok(http.MethodPost, "/v1/sessions/"+session()+":terminate", document{}))
	require.Equal(t, "STOPPED", c.state("delta"))
	c.finished(c.ok(http.MethodPost, "/v1/workspaces/delta/sessions", document{}))
	require.Equal(t, "RUNNING", c.state("delta"))
	c.finished(c.ok(http.MethodPost, "/v1/workspaces/delta:terminate", document{}))
	require.Equal(t, "renamed", c.ok(http.MethodPatch, "/v1/workspaces/delta", document{"box": document{"name": "renamed"}, "updateMask": "name"}).text("name"))
	require.Equal(t, "delete", c.ok(http.MethodDelete, "/v1/workspaces/"+delta, nil).text("verb"))

	// Processes.
	process := c.ok(http.MethodPost, "/v1/boxes/omega/processes", document{"args": []string{"sh", "-c", "read x; exit $x"}, "stdin": true})
	path := "/v1/boxes/omega/processes/" + process.text("id")
	require.Equal(t, "2", c.ok(http.MethodPost, path+":input", document{"data": []byte("7\n"), "offset": "0"}).text("nextOffset"))
	s.Eventually("the process ends", func() error {
		if p := c.ok(http.MethodGet, path, nil); p["running"] == true {
			return fmt.Errorf("%v", p)
		} else {
			require.EqualValues(t, 7, p["exitCode"])
		}
		return nil
	})

	// History and operations.
	events := c.ok(http.MethodGet, "/v1/boxes/omega/events", nil).list("events")
	var kinds []string
	for i := len(events) - 1; i >= 0; i-- {
		kinds = append(kinds, events[i].text("kind"))
	}
	require.Equal(t, "created", kinds[0])
	require.Subset(t, kinds, []string{"running", "paused", "stopped"})
	require.Len(t, c.ok(http.MethodGet, "/v1/boxes/omega/events?pageSize=2", nil).list("events"), 2)
	require.Len(t, c.ok(http.MethodGet, "/v1/operations?target="+ids[0], nil).list("operations"), 6)

	for _, id := range ids {
		c.finished(c.ok(http.MethodDelete, "/v1/boxes/"+id, nil))
	}
	require.Equal(t, "DELETED", seen.until("DELETED"))

	// What is not there, and the description of what is.
	c.refused(http.MethodGet, "/v1/boxes/nowhere", nil, http.StatusNotFound, carrel.CodeNotFound, "")
	c.refused(http.MethodGet, "/v1/castles", nil, http.StatusNotFound, carrel.CodeNotFound, "route_not_found")
	c.refused(http.MethodPost, "/v1/boxes", document{"name": "UPPER"}, http.StatusBadRequest, carrel.CodeInvalid, "bad_name")
	open := c.ok(http.MethodGet, "/openapi.json", nil)
	require.True(t, strings.HasPrefix(open.text("openapi"), "3."), "%v", open["openapi"])
	paths, ok := open["paths"].(map[string]any)
	require.True(t, ok)
	for _, path := range []string{"/v1/boxes", "/v1/boxes/{id}", "/v1/workspaces/{id}/sessions", "/v1/boxes/{box}/processes", "/v1/operations/{id}"} {
		require.Contains(t, paths, path)
	}
	clean(t, s)
}

// watcher gives the states that one box is in, from server-sent events.
type watcher struct {
	states chan string
}

// watchStates opens a stream and answers when everything that was there has been sent.
func watchStates(t *testing.T, c *curl, path string) *watcher {
	t.Helper()
	answer := c.open(bounded(t), http.MethodGet, path, nil)
	require.Equal(t, http.StatusOK, answer.StatusCode)
	require.Equal(t, "text/event-stream", answer.Header.Get("Content-Type"))
	w := &watcher{states: make(chan string, 1000)}
	go func() {
		defer close(w.states)
		lines := bufio.NewScanner(answer.Body)
		lines.Buffer(nil, 1<<20)
		kind := ""
		for lines.Scan() {
			if text, ok := strings.CutPrefix(lines.Text(), "event: "); ok {
				kind = text
			}
			text, ok := strings.CutPrefix(lines.Text(), "data: ")
			if !ok {
				continue
			}
			box := document{}
			if kind == "synced" {
				w.states <- kind
			} else if json.Unmarshal([]byte(text), &box) == nil {
				w.states <- strings.TrimPrefix(box.text("state"), "STATE_")
			}
		}
	}()
	t.Cleanup(func() {
		answer.Body.Close()
		for range w.states {
		}
	})
	require.Equal(t, "synced", w.until("synced"))
	return w
}

// until reads up to a state and gives it, or "" when the stream ended before.
func (w *watcher) until(state string) string {
	for s := range w.states {
		if s == state {
			return s
		}
	}
	return ""
}
