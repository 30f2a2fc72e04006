package control

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"net/http"
	"runtime/debug"
	"time"

	"carrel.dev/carrel/internal/auth"
)

// requestIDHeader goes in and out: a client may name its request, and finds it again in the logs.
const requestIDHeader = "X-Request-Id"

// defaultStreamWrite is how long one message of a stream may take to be written before the client counts as gone.
const defaultStreamWrite = 30 * time.Second

type contextKey int

const (
	connectionKey contextKey = iota
	accessKey
)

// connection is what a request's connection tells.
type connection struct {
	requestID string
	peer      auth.Peer // zero without a client certificate
	writer    *http.ResponseController
}

// withConnection names each request, reads the client's certificate, and turns a panic into an answer.
func (s *Server) withConnection(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c := &connection{requestID: cleanRequestID(r.Header.Get(requestIDHeader)), writer: http.NewResponseController(w)}
		w.Header().Set(requestIDHeader, c.requestID)
		if r.TLS != nil {
			if p, err := auth.PeerIdentity(r.TLS); err == nil && p.Cluster == s.cluster.ID {
				c.peer = p
			}
		}
		defer func() {
			if p := recover(); p != nil {
				if err, ok := p.(error); ok && errors.Is(err, http.ErrAbortHandler) {
					panic(p)
				}
				s.log.Error("panic", "request", c.requestID, "path", r.URL.Path, "panic", p, "stack", string(debug.Stack()))
				http.Error(w, "internal error (request "+c.requestID+")", http.StatusInternalServerError)
			}
		}()
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), connectionKey, c)))
	})
}

func connectionOf(ctx context.Context) *connection {
	if c, ok := ctx.Value(connectionKey).(*connection); ok {
		return c
	}
	return &connection{requestID: "none"}
}

func requestID(ctx context.Context) string { return connectionOf(ctx).requestID }

// cleanRequestID takes a client's name for its request if it is short and plain, and makes one otherwise.
func cleanRequestID(id string) string {
	plain := id != "" && len(id) <= 64
	for _, c := range []byte(id) {
		plain = plain && (c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_' || c == '.')
	}
	if plain {
		return id
	}
	var raw [12]byte
	_, _ = rand.Read(raw[:]) // never fails: crypto/rand ends the process instead
	return hex.EncodeToString(raw[:])
}

// guardWrite writes one message of a stream, which has its time for that: a client that does not read is cut off.
// Between messages there is no deadline, because HTTP/2 would end the stream at it.
func (s *Server) guardWrite(ctx context.Context, write func() error) error {
	c := connectionOf(ctx)
	if c.writer == nil {
		return write()
	}
	// Where a deadline can't be set, the server's own limits hold.
	_ = c.writer.SetWriteDeadline(time.Now().Add(s.streamWrite))
	err := write()
	_ = c.writer.SetWriteDeadline(time.Time{})
	return err
}
