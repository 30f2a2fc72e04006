package gateway

import (
	"cmp"
	"context"
	"errors"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"time"

	"github.com/coder/websocket"

	"carrel.dev/carrel/internal/auth"
	"carrel.dev/carrel/internal/carrel"
)

const (
	// ticketProtocol is how a browser, which can set no header of a WebSocket, shows a ticket: as a subprotocol that is offered and never
	// chosen.
	ticketProtocol = "carrel.ticket."
	// socketWrite is how long a client may take nothing of what is written to it.
	socketWrite = time.Minute
	// maxCloseReason is what fits into the frame that closes a WebSocket, in bytes.
	maxCloseReason = 123
)

// Close codes of our own, beside those of RFC 6455: a client begins anew with a new ticket after closeRight, and does not come back
// by itself after closeRefused.
const (
	closeRight   websocket.StatusCode = 4401
	closeRefused websocket.StatusCode = 4403
)

// socketPath is every WebSocket of a box: the terminal and the dial.
var socketPath = regexp.MustCompile(`^/v1/boxes/([^/]+)/(terminal|dial)$`)

// serveSocket answers requests at socketPath.
func (g *Gateway) serveSocket(w http.ResponseWriter, r *http.Request) {
	parts := socketPath.FindStringSubmatch(r.URL.Path)
	serve := g.serveTerminal
	if parts[2] == "dial" {
		serve = g.serveDial
	}
	if err := serve(w, r, parts[1]); err != nil {
		writeError(w, r, own(r.Context(), g.log, r.Header.Get(headerRequestID), err))
	}
}

// socketPass finds what the caller of a WebSocket may do in a box, at least scope. Pages of other hosts are refused: a browser would
// send nothing of its own accord that lets them in, but a page that got hold of a ticket shall not use it from elsewhere.
func (g *Gateway) socketPass(r *http.Request, box, scope string) (pass, error) {
	if r.Method != http.MethodGet || r.ProtoMajor != 1 || !strings.EqualFold(r.Header.Get("Upgrade"), "websocket") {
		return pass{}, carrel.Errorf(carrel.CodeInvalid, "not_a_websocket", "this is a WebSocket: ask for it over HTTP/1.1 with `Upgrade: websocket`")
	}
	query := r.URL.Query()
	header := http.Header{}
	if bearer := r.Header.Get("Authorization"); bearer != "" {
		header.Set("Authorization", bearer)
	} else {
		if origin := r.Header.Get("Origin"); origin != "" {
			if u, err := url.Parse(origin); err != nil || !strings.EqualFold(u.Host, r.Host) {
				return pass{}, carrel.Errorf(carrel.CodeDenied, "other_origin", "a page of another host may not open this WebSocket")
			}
		}
		ticket := cmp.Or(offeredTicket(r), query.Get("ticket"))
		if strings.HasPrefix(ticket, apiTokenPrefix) {
			return pass{}, carrel.Errorf(carrel.CodeUnauthorized, "token_in_url", "an API token is never a part of a URL or a subprotocol; get a ticket with it")
		}
		if ticket != "" {
			header.Set("Authorization", "Bearer "+ticket)
		}
	}
	return g.allow(r.Context(), header, box, query.Get("org"), scope)
}

func offeredTicket(r *http.Request) string {
	for _, line := range r.Header.Values("Sec-WebSocket-Protocol") {
		for protocol := range strings.SplitSeq(line, ",") {
			if ticket, ok := strings.CutPrefix(strings.TrimSpace(protocol), ticketProtocol); ok {
				return ticket
			}
		}
	}
	return ""
}

// acceptSocket makes a WebSocket of a request that socketPass let in. It has answered when it gives nil.
func acceptSocket(w http.ResponseWriter, r *http.Request, protocol string, limit int64) *websocket.Conn {
	conn, err := websocket.Accept(w, r, &websocket.AcceptOptions{
		Subprotocols: []string{protocol}, CompressionMode: websocket.CompressionDisabled,
		InsecureSkipVerify: true, // socketPass has looked at the origin
	})
	if err != nil {
		return nil
	}
	conn.SetReadLimit(limit)
	return conn
}

// closeSocket tells why. It does not wait for an answer for long.
func closeSocket(conn *websocket.Conn, err error) {
	code, reason := websocket.StatusNormalClosure, ""
	var e *carrel.Error
	switch {
	case err == nil:
	case errors.As(err, &e):
		reason = e.Reason + ": " + e.Message
		switch e.Code {
		case carrel.CodeUnauthorized:
			code = closeRight
		case carrel.CodeDenied, carrel.CodeNotFound:
			code = closeRefused
		case carrel.CodeInvalid:
			code = websocket.StatusPolicyViolation
		case carrel.CodeUnavailable:
			code = websocket.StatusTryAgainLater
		default:
			code = websocket.StatusInternalError
		}
	case errors.Is(err, context.Canceled):
		code, reason = websocket.StatusGoingAway, "the gateway is stopping"
	default:
		_ = conn.CloseNow() // the client is gone
		return
	}
	if len(reason) > maxCloseReason {
		reason = strings.ToValidUTF8(reason[:maxCloseReason-len("…")], "") + "…"
	}
	_ = conn.Close(code, reason)
}

// view reports whether a pass lets its user look only.
func (p pass) view() bool { return !p.Has(auth.ScopeExec) }
