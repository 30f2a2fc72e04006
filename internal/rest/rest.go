// Package rest makes what the REST transcoder and Connect's JSON do fit for people: a field or query parameter that does not
// exist is refused by its name, and errors that the transcoder makes by itself have the same shape as all others. It knows
// nothing of what the services do.
package rest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"regexp"
	"strings"
	"sync/atomic"

	"connectrpc.com/connect"
	"connectrpc.com/vanguard"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"carrel.dev/carrel/internal/carrel"
)

// maxBody bounds an error's text that is looked at, in bytes; what the transcoder itself says is far shorter.
const maxBody = 64 << 10

// NewService is a service for NewTranscoder. Its handler never takes a request for whole that the transcoder has refused: without that
// it would be called with an empty message, and do what that asks for, while the client is told that the request was bad.
func NewService(path string, handler http.Handler) *vanguard.Service {
	return vanguard.NewService(path, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if out, ok := r.Context().Value(answer{}).(*writer); ok {
			r.Body = body{r.Body, out}
		}
		handler.ServeHTTP(w, r)
	}))
}

// answer is the key of a request's writer in its context.
type answer struct{}

// body is what a handler reads of a transcoded request. The transcoder ends it as if all had been read when it has refused a message.
type body struct {
	io.ReadCloser
	out *writer
}

// Read is part of io.Reader.
func (b body) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if errors.Is(err, io.EOF) && b.out.refused.Load() {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// NewTranscoder makes the handler of the REST routes of services that NewService made. maxMessage bounds a message in bytes, 0: the
// transcoder's own limit. A body that claims to be a form, as curl does of all that it is given, is taken for JSON.
func NewTranscoder(services []*vanguard.Service, maxMessage uint32, options ...vanguard.TranscoderOption) (http.Handler, error) {
	// A service that took JSON itself would get the body as it came, unknown fields included.
	all := []vanguard.ServiceOption{vanguard.WithTargetCodecs(vanguard.CodecProto)}
	if maxMessage > 0 {
		all = append(all, vanguard.WithMaxMessageBufferBytes(maxMessage))
	}
	options = append(options, vanguard.WithDefaultServiceOptions(all...), vanguard.WithCodec(func(r vanguard.TypeResolver) vanguard.Codec {
		return strictJSON{vanguard.JSONCodec{
			MarshalOptions:   protojson.MarshalOptions{Resolver: r, EmitUnpopulated: true},
			UnmarshalOptions: protojson.UnmarshalOptions{Resolver: r},
		}}
	}))
	transcoder, err := vanguard.NewTranscoder(services, options...)
	if err != nil {
		return nil, fmt.Errorf("make REST transcoder: %w", err)
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		out := &writer{ResponseWriter: w, asked: r.Method, as: r.Header.Get("Content-Type")}
		defer out.finish()
		if kind, _, err := mime.ParseMediaType(out.as); err == nil && kind == "application/x-www-form-urlencoded" {
			r.Header.Set("Content-Type", "application/json")
		}
		transcoder.ServeHTTP(out, r.WithContext(context.WithValue(r.Context(), answer{}, out)))
	}), nil
}

// strictJSON refuses fields that do not exist.
type strictJSON struct{ vanguard.JSONCodec }

// Unmarshal is part of vanguard.Codec.
func (s strictJSON) Unmarshal(data []byte, msg proto.Message) error {
	return malformed(s.JSONCodec.Unmarshal(data, msg))
}

// UnmarshalField is part of vanguard.RESTCodec.
func (s strictJSON) UnmarshalField(data []byte, msg proto.Message, field protoreflect.FieldDescriptor) error {
	return malformed(s.JSONCodec.UnmarshalField(data, msg, field))
}

// malformed hides what an error is made of: the transcoder would take JSON that ends too early for a connection that did.
func malformed(err error) error {
	if err == nil {
		return nil
	}
	return connect.NewError(connect.CodeInvalidArgument, errors.New(err.Error()))
}

// writer keeps an answer that may be a refusal of the transcoder's back until it is whole, and passes everything else on
// at once.
type writer struct {
	http.ResponseWriter
	asked   string // the request's method
	as      string // its Content-Type
	status  int    // of an answer that is kept back; 0: none is
	body    []byte
	refused atomic.Bool // the answer is an error
}

// Unwrap is for http.ResponseController.
func (w *writer) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// Flush is part of http.Flusher, which the transcoder asks for.
func (w *writer) Flush() {
	if w.status == 0 {
		_ = http.NewResponseController(w.ResponseWriter).Flush() // where nothing can be flushed nothing waits
	}
}

// WriteHeader is part of http.ResponseWriter.
func (w *writer) WriteHeader(status int) {
	if status >= http.StatusBadRequest {
		w.refused.Store(true)
	}
	switch status {
	case http.StatusBadRequest, http.StatusMethodNotAllowed, http.StatusUnsupportedMediaType, http.StatusTooManyRequests, http.StatusInternalServerError:
		w.status = status
		return
	}
	w.ResponseWriter.WriteHeader(status)
}

// Write is part of http.ResponseWriter.
func (w *writer) Write(p []byte) (int, error) {
	if w.status == 0 {
		return w.ResponseWriter.Write(p)
	}
	w.body = append(w.body, p[:min(len(p), maxBody-len(w.body))]...)
	return len(p), nil
}

// refusal is google.rpc.Status as JSON.
type refusal struct {
	Code    int    `json:"code"`
	Message string `json:"message"`
	Details []any  `json:"details"`
}

func (w *writer) finish() {
	if w.status == 0 {
		return
	}
	var said refusal
	// Services give every error details. The transcoder calls what it does not know of a query "unknown".
	own := json.Unmarshal(w.body, &said) == nil && len(said.Details) == 0
	switch {
	case w.status == http.StatusMethodNotAllowed && !own:
		w.explain(w.status, "method_not_allowed", w.asked+" is not possible here; /openapi.json has all that there is")
	case w.status == http.StatusUnsupportedMediaType && !own:
		w.explain(w.status, "content_type", fmt.Sprintf("a body of the type %.100q is not taken; send JSON, with Content-Type: application/json", w.as))
	case own && said.Code == int(carrel.CodeExhausted) && strings.HasPrefix(said.Message, "max buffer size"):
		w.explain(http.StatusBadRequest, "request_too_large", "the request is too large: "+said.Message)
	case own && said.Code == int(carrel.CodeInvalid), own && said.Code == int(connect.CodeUnknown) && unknownParameter.MatchString(said.Message):
		w.malformed(said.Message)
	}
	w.Header().Del("Content-Length")
	w.ResponseWriter.WriteHeader(w.status)
	_, _ = w.ResponseWriter.Write(w.body) // a client that is gone needs no answer
}

// How the transcoder calls a field of the body, and a query parameter, that does not exist.
var (
	unknownField     = regexp.MustCompile(`unknown field "([^"]{1,200})"`)
	unknownParameter = regexp.MustCompile(`unknown field in field path "([^"]{1,200})"`)
)

// malformed makes the error of a request that the transcoder could not read.
func (w *writer) malformed(message string) {
	if m := unknownField.FindStringSubmatch(message); m != nil {
		w.explain(http.StatusBadRequest, "unknown_field", noField(m[1]), "field", m[1])
	} else if m := unknownParameter.FindStringSubmatch(message); m != nil {
		w.explain(http.StatusBadRequest, "unknown_field", fmt.Sprintf("the request has a parameter %q, which does not exist; /openapi.json has those that do", m[1]), "field", m[1])
	} else {
		w.explain(http.StatusBadRequest, "bad_request", unreadable(message))
	}
}

// explain makes the answer an error of the shape that all have, with metadata in pairs.
func (w *writer) explain(status int, reason, message string, metadata ...string) {
	info := map[string]any{"@type": "type.googleapis.com/google.rpc.ErrorInfo", "domain": "carrel.dev", "reason": reason}
	if len(metadata) == 2 {
		info["metadata"] = map[string]string{metadata[0]: metadata[1]}
	}
	text, err := json.Marshal(refusal{Code: int(carrel.CodeInvalid), Message: message, Details: []any{info}})
	if err != nil {
		text = []byte(`{"code":3,"message":"the request is not valid","details":[]}`)
	}
	w.status, w.body = status, text
	w.Header().Set("Content-Type", "application/json")
	w.Header().Del("Content-Encoding") // of the answer that there would have been
}
