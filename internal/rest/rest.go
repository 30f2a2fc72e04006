// Package rest makes what the REST transcoder and Connect's JSON do fit for people: a field or query parameter that does not
// exist is refused by its name, and errors that the transcoder makes by itself have the same shape as all others. It knows
// nothing of what the services do.
package rest

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"regexp"

	"connectrpc.com/connect"
	"connectrpc.com/vanguard"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"carrel.dev/carrel/internal/carrel"
)

// maxBody bounds an error's text that is looked at, in bytes; what the transcoder itself says is far shorter.
const maxBody = 64 << 10

// NewTranscoder makes the handler of the services' REST routes. maxMessage bounds a message in bytes, 0: the
// transcoder's own limit.
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
		out := &writer{ResponseWriter: w}
		defer out.finish()
		transcoder.ServeHTTP(out, r)
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
	status int // of an answer that is kept back; 0: none is
	body   []byte
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
	if status == http.StatusBadRequest || status == http.StatusInternalServerError {
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

// refused is google.rpc.Status as JSON.
type refused struct {
	Code    int    `json:"code"`
	Message string `json:"message"`
	Details []any  `json:"details"`
}

func (w *writer) finish() {
	if w.status == 0 {
		return
	}
	var said refused
	// Services give every error details. The transcoder calls what it does not know of a query "unknown".
	own := json.Unmarshal(w.body, &said) == nil && len(said.Details) == 0
	if own && (said.Code == int(carrel.CodeInvalid) || said.Code == int(connect.CodeUnknown) && unknownParameter.MatchString(said.Message)) {
		w.status, w.body = http.StatusBadRequest, explain(said.Message)
		w.Header().Set("Content-Type", "application/json")
		w.Header().Del("Content-Encoding") // of the answer that there would have been
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

// explain makes the body of an error that the transcoder found.
func explain(message string) []byte {
	info := map[string]any{"@type": "type.googleapis.com/google.rpc.ErrorInfo", "domain": "carrel.dev", "reason": "bad_request"}
	if m := unknownField.FindStringSubmatch(message); m != nil {
		info["reason"], info["metadata"] = "unknown_field", map[string]string{"field": m[1]}
		message = noField(m[1])
	} else if m := unknownParameter.FindStringSubmatch(message); m != nil {
		info["reason"], info["metadata"] = "unknown_field", map[string]string{"field": m[1]}
		message = fmt.Sprintf("the request has a parameter %q, which does not exist; /openapi.json has those that do", m[1])
	}
	text, err := json.Marshal(refused{Code: int(carrel.CodeInvalid), Message: message, Details: []any{info}})
	if err != nil {
		return []byte(`{"code":3,"message":"the request is not valid","details":[]}`)
	}
	return text
}
