package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"sync"

	"carrel.dev/carrel/internal/auth"
	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/client"
)

const (
	// jupyterPrefix is where the boxes' Jupyter servers are, as {box}/api/… and so on.
	jupyterPrefix = "/jupyter/"
	targetJupyter = "jupyter"
	// parameterJupyter carries the token in a query, as clients of Jupyter do it where they can set no header.
	parameterJupyter = "token"
	// protocolJupyter is the subprotocol of a WebSocket that carries a token: its name, a dot, and the token, escaped as in a URL. A client that
	// offers the name by itself too is answered with that if it offers nothing else.
	protocolJupyter = "v1.token.websocket.jupyter.org"
	// maxJupyterBody bounds the body of a request, in bytes: notebooks and files come whole.
	maxJupyterBody = 128 << 20
	// maxJupyterSockets bounds the WebSockets of one user in one box.
	maxJupyterSockets = 256
)

var jupyterBox = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$`)

// jupyterServer serves /jupyter/{box}/: each box's Jupyter server, for JupyterLab, VS Code and other clients of such servers. What a box
// answers is never a page of the platform's origin, and no cookie goes in or out.
type jupyterServer struct {
	gateway *Gateway
	forward http.Handler

	mu      sync.Mutex // guards sockets
	sockets map[string]int
}

func newJupyterServer(g *Gateway) *jupyterServer {
	return &jupyterServer{gateway: g, forward: newJupyterForward(g), sockets: map[string]int{}}
}

// jupyterCall is one request on its way to a box.
type jupyterCall struct {
	server *jupyterServer
	pass   pass
	box    string // as the client calls it
	path   string // escaped, as the box shall see it
	token  string // that was shown, or is the sign-in's; empty: none
	bare   bool   // the client offers protocolJupyter by itself
}

// jupyterOf reads /jupyter/{box}/rest.
func jupyterOf(escaped string) (box, rest string, ok bool) {
	text, ok := strings.CutPrefix(escaped, jupyterPrefix)
	if !ok {
		return "", "", false
	}
	box, rest, _ = strings.Cut(text, "/")
	return box, "/" + rest, jupyterBox.MatchString(box)
}

func (j *jupyterServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Content-Security-Policy", "sandbox")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer") // a page's address may have the token
	h.Set("Cache-Control", "no-store")
	h.Add("Vary", "Origin")
	box, rest, ok := jupyterOf(r.URL.EscapedPath())
	if !ok {
		j.fail(w, r, carrel.Errorf(carrel.CodeNotFound, "bad_jupyter_path", "the Jupyter server of a box is at /jupyter/BOX/, where BOX is its id, its name, or NAME.ORGANISATION"))
		return
	}
	if r.Method == http.MethodOptions {
		preflight(w, r)
		return
	}
	if forPages(r) {
		j.fail(w, r, errNotForPages())
		return
	}
	call := &jupyterCall{server: j, box: box, path: rest, token: jupyterToken(r), bare: offersProtocol(r, protocolJupyter)}
	if call.token != "" {
		// Whoever has the token may use it from any page; nothing is added by the browser.
		allowOrigin(h, r)
	} else {
		signedIn, done, err := j.gateway.ports.asSession(r)
		if err != nil {
			j.fail(w, r, err)
			return
		}
		defer done()
		r, call.token = signedIn, jupyterToken(signedIn)
	}
	ctx, cancel := context.WithCancelCause(r.Context())
	defer cancel(nil)
	p, err := j.identify(r, call)
	if err != nil {
		j.fail(w, r, err)
		return
	}
	call.pass = p
	release := j.gateway.guard(p, cancel)
	defer release()
	if isSocket(r) {
		leave, err := j.enter(p)
		if err != nil {
			j.fail(w, r, err)
			return
		}
		defer leave()
		defer j.counts(r, p.User, p.Box, rest) // so that a client that comes back at once is none who comes
		w = &watchedWriter{ResponseWriter: w, data: func() { j.gateway.touch(p, activityInput) }}
	}
	if j.counts(r, p.User, p.Box, rest) {
		j.gateway.touch(p, activityExec)
	}
	r.Body = http.MaxBytesReader(w, r.Body, maxJupyterBody)
	j.forward.ServeHTTP(w, r.WithContext(context.WithValue(ctx, jupyterCallKey{}, call)))
}

// enter counts the WebSockets of a user in a box.
func (j *jupyterServer) enter(p pass) (leave func(), err error) {
	key := string(p.Box) + " " + string(p.User)
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.sockets[key] >= maxJupyterSockets {
		return nil, carrel.Errorf(carrel.CodeExhausted, "too_many_sockets", "you have %d WebSockets to the Jupyter server of this box; close some", maxJupyterSockets)
	}
	j.sockets[key]++
	return func() {
		j.mu.Lock()
		defer j.mu.Unlock()
		if j.sockets[key]--; j.sockets[key] == 0 {
			delete(j.sockets, key)
		}
	}, nil
}

// jupyterToken is what a request shows: an Authorization header with `token` or `Bearer`, the query, or a subprotocol; empty: nothing.
func jupyterToken(r *http.Request) string {
	if scheme, value, _ := strings.Cut(r.Header.Get("Authorization"), " "); strings.EqualFold(scheme, "token") || strings.EqualFold(scheme, "Bearer") {
		if value = strings.TrimSpace(value); value != "" {
			return value
		}
	}
	if token := r.URL.Query().Get(parameterJupyter); token != "" {
		return strings.TrimSpace(token)
	}
	for _, line := range r.Header.Values("Sec-WebSocket-Protocol") {
		for one := range strings.SplitSeq(line, ",") {
			escaped, ok := strings.CutPrefix(strings.TrimSpace(one), protocolJupyter+".")
			if !ok {
				continue
			}
			if token, err := url.PathUnescape(escaped); err == nil && token != "" {
				return token
			}
		}
	}
	return ""
}

func offersProtocol(r *http.Request, protocol string) bool {
	for _, line := range r.Header.Values("Sec-WebSocket-Protocol") {
		for one := range strings.SplitSeq(line, ",") {
			if strings.TrimSpace(one) == protocol {
				return true
			}
		}
	}
	return false
}

var errNoJupyterToken = carrel.Errorf(carrel.CodeUnauthorized, "no_credentials",
	"this Jupyter server wants an API token: send it as `Authorization: token …`, or as token=… in the address; `carrel token create` makes one")

// identify finds what a request may do, which is everything or nothing: a Jupyter server has no other rights. A box that sleeps is
// woken by what counts.
func (j *jupyterServer) identify(r *http.Request, call *jupyterCall) (pass, error) {
	if call.token == "" {
		return pass{}, errNoJupyterToken
	}
	g := j.gateway
	bearer := "Bearer " + call.token
	name, org := boxAndOrg(call.box)
	p, err := g.allow(r.Context(), http.Header{"Authorization": {bearer}}, name, org, auth.ScopeExec)
	if carrel.ReasonOf(err) != client.ReasonBoxNotRunning {
		return p, err
	}
	user := g.ports.userOfBearer(r.Context(), bearer)
	if user == "" {
		return pass{}, err
	}
	if p, err = j.wake(r, user, name, org, call.path, err); err == nil {
		p.Token = tokenOf(bearer)
	}
	return p, err
}

// boxAndOrg takes a box's name from that of its organisation.
func boxAndOrg(text string) (box, org string) {
	box, org, _ = strings.Cut(text, ".")
	return box, org
}

// wake has a sleeping box woken for a request that is a sign of somebody's presence; others get asleep.
func (j *jupyterServer) wake(r *http.Request, user carrel.UserID, name, org, path string, asleep error) (pass, error) {
	g := j.gateway
	ctx, cancel := context.WithTimeout(r.Context(), wakePatience)
	defer cancel()
	ref, err := g.findBox(ctx, user, name, org)
	if err != nil {
		return pass{}, err
	}
	if !j.counts(r, user, ref.Box, path) {
		return pass{}, asleep
	}
	return g.wake(ctx, user, ref, "port", nil)
}

// jupyterPolled are the paths that clients ask again and again while nobody is there.
var jupyterPolled = regexp.MustCompile(`^/(api/?|api/(kernels|status|sessions|terminals|kernelspecs|me|nbconvert|events)(/[^/]*)?|api/config/.*|kernelspecs/.*|tree/?|lab/?|)$`)

// counts reports whether a request is a sign that somebody is there, which keeps the box awake and wakes it: what changes something, and what is asked
// for the first time in ten minutes and is nothing that clients poll. A WebSocket is noted when it begins and when it ends, so that a client that was
// cut off by a pause and comes back by itself does not wake the box.
func (j *jupyterServer) counts(r *http.Request, user carrel.UserID, box carrel.BoxID, path string) bool {
	if r.Header.Get(headerActivity) == activityNone || r.Method == http.MethodOptions {
		return false
	}
	if !isSocket(r) && r.Method != http.MethodGet && r.Method != http.MethodHead {
		return true
	}
	if jupyterPolled.MatchString(path) {
		return false
	}
	return !j.gateway.ports.recent.again("jupyter\x00"+string(user)+"\x00"+string(box)+"\x00"+path, j.gateway.now())
}

// fail answers with an error in Jupyter's form. 503 for a box that is not running has clients try again, where others have them give up.
func (j *jupyterServer) fail(w http.ResponseWriter, r *http.Request, err error) {
	if errors.Is(err, errBegun) {
		panic(http.ErrAbortHandler)
	}
	e := own(r.Context(), j.gateway.log, r.Header.Get(headerRequestID), err)
	status := httpStatus(e.Code)
	switch e.Code {
	case carrel.CodeUnauthorized:
		status = http.StatusForbidden
	case carrel.CodePrecondition:
		status = http.StatusServiceUnavailable
	}
	body, _ := json.Marshal(map[string]string{"message": e.Message, "reason": e.Reason})
	if e.RetryAfter > 0 {
		w.Header().Set("Retry-After", retryAfter(e))
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(body)
}

// allowOrigin lets a page of any origin read the answer to a request by token.
func allowOrigin(h http.Header, r *http.Request) {
	if r.Header.Get("Origin") == "" {
		return
	}
	h.Set("Access-Control-Allow-Origin", "*")
	h.Set("Access-Control-Expose-Headers", "Location, Last-Modified, Etag, Retry-After, "+headerRequestID)
}

// preflight answers a browser that asks whether a page of another origin may send a request. It may: without cookies, which this never allows,
// the request has a token or gets nothing.
func preflight(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Allow", "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS")
	if r.Header.Get("Origin") != "" {
		h.Set("Access-Control-Allow-Origin", "*")
		h.Set("Access-Control-Allow-Methods", "GET, HEAD, POST, PUT, PATCH, DELETE")
		h.Set("Access-Control-Allow-Headers", "Authorization, Content-Type, If-None-Match, X-XSRFToken, X-Requested-With, Cache-Control, Pragma")
		h.Set("Access-Control-Max-Age", "600")
	}
	w.WriteHeader(http.StatusNoContent)
}
