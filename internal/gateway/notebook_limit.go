package gateway

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/rest"
)

// maxValues is how many messages a message may consist of. Each value of a notebook's JSON is one, takes as little as two bytes on the way and about a
// hundred here: by bytes alone a notebook could take fifty times its size.
const maxValues = 1 << 20

// maxDepth is how deep messages lie in each other at most; decoding refuses what is deeper.
const maxDepth = 10_000

func errTooManyValues() error {
	return carrel.Errorf(carrel.CodeExhausted, "too_many_values", "a notebook or a part of it has more than %d values; keep large data in files beside it", maxValues)
}

// limitedProto is the usual encoding, of messages of at most maxValues.
type limitedProto struct{}

var _ connect.Codec = limitedProto{}

// Name is part of connect.Codec.
func (limitedProto) Name() string { return "proto" }

// Marshal is part of connect.Codec.
func (limitedProto) Marshal(message any) ([]byte, error) {
	m, ok := message.(proto.Message)
	if !ok {
		return nil, fmt.Errorf("%T is no message", message)
	}
	return proto.Marshal(m)
}

// Unmarshal is part of connect.Codec.
func (limitedProto) Unmarshal(data []byte, message any) error {
	m, ok := message.(proto.Message)
	if !ok {
		return fmt.Errorf("%T is no message", message)
	}
	left := maxValues
	if !countMessages(m.ProtoReflect().Descriptor(), data, &left, maxDepth) {
		return errTooManyValues()
	}
	return proto.Unmarshal(data, m)
}

// countMessages counts the messages within one down from left, and reports whether that was enough. What is no message is left for decoding to refuse.
func countMessages(descriptor protoreflect.MessageDescriptor, data []byte, left *int, depth int) bool {
	for len(data) > 0 && depth > 0 {
		number, kind, n := protowire.ConsumeTag(data)
		if n < 0 {
			return true
		}
		data = data[n:]
		if n = protowire.ConsumeFieldValue(number, kind, data); n < 0 {
			return true
		}
		value := data[:n]
		data = data[n:]
		field := descriptor.Fields().ByNumber(number)
		if kind != protowire.BytesType || field == nil || field.Message() == nil {
			continue
		}
		if *left--; *left < 0 {
			return false
		}
		inner, _ := protowire.ConsumeBytes(value)
		if !countMessages(field.Message(), inner, left, depth-1) {
			return false
		}
	}
	return true
}

// limitedJSON is the JSON of all our services, of messages of at most maxValues.
type limitedJSON struct{ rest.StrictJSON }

var _ connect.Codec = limitedJSON{}

// Unmarshal is part of connect.Codec.
func (l limitedJSON) Unmarshal(data []byte, message any) error {
	if jsonValues(data) > maxValues {
		return errTooManyValues()
	}
	return l.StrictJSON.Unmarshal(data, message)
}

// limitedCodecs has all encodings of a handler limited.
func limitedCodecs() connect.HandlerOption {
	all := []connect.HandlerOption{connect.WithCodec(limitedProto{})}
	for _, codec := range rest.ConnectJSON {
		all = append(all, connect.WithCodec(limitedJSON{codec}))
	}
	return connect.WithHandlerOptions(all...)
}

// jsonValues is about how many values a JSON text has.
func jsonValues(data []byte) int {
	values, quoted := 1, false
	for i := 0; i < len(data); i++ {
		switch c := data[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case !quoted && (c == ',' || c == '[' || c == '{'):
			values++
		}
	}
	return values
}

// limitValues holds the bodies of REST requests to maxNotebookRequest and maxValues.
func limitValues(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxNotebookRequest))
			var large *http.MaxBytesError
			var refused *carrel.Error
			switch {
			case errors.As(err, &large):
				refused = carrel.Errorf(carrel.CodeInvalid, "request_too_large", "the request is larger than %d bytes", large.Limit)
			case errors.As(err, &refused):
			case err != nil:
				refused = carrel.Errorf(carrel.CodeAborted, "canceled", "the body of the request broke off")
			case r.Header.Get("Content-Encoding") != "":
				refused = carrel.Errorf(carrel.CodeInvalid, "bad_encoding", "the body of the request is compressed; send it as it is")
			case jsonValues(body) > maxValues:
				errors.As(errTooManyValues(), &refused)
			}
			if refused != nil {
				writeError(w, r, refused)
				return
			}
			r.Body = io.NopCloser(bytes.NewReader(body))
		}
		next.ServeHTTP(w, r)
	})
}
