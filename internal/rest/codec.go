package rest

import (
	"errors"
	"fmt"
	"strings"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// ConnectJSON gives the names by which Connect's JSON is asked for: a handler needs a codec for each, or else takes the usual one.
var ConnectJSON = []StrictJSON{"json", "json; charset=utf-8"}

// StrictConnect has a Connect handler refuse requests in JSON with fields that do not exist, as REST does: JSON is written by
// people and scripts, who mistype. What programs send as Protocol Buffers stays compatible with what is newer.
func StrictConnect() connect.HandlerOption {
	var all []connect.HandlerOption
	for _, codec := range ConnectJSON {
		all = append(all, connect.WithCodec(codec))
	}
	return connect.WithHandlerOptions(all...)
}

// StrictJSON is Connect's JSON of that name, except that it refuses fields that do not exist.
type StrictJSON string

// Name is part of connect.Codec.
func (s StrictJSON) Name() string { return string(s) }

// Marshal is part of connect.Codec.
func (s StrictJSON) Marshal(message any) ([]byte, error) { return s.MarshalAppend(nil, message) }

// MarshalAppend is Marshal behind what dst has; it spares Connect a copy.
func (StrictJSON) MarshalAppend(dst []byte, message any) ([]byte, error) {
	m, ok := message.(proto.Message)
	if !ok {
		return nil, fmt.Errorf("%T is no message", message)
	}
	return protojson.MarshalOptions{}.MarshalAppend(dst, m)
}

// Unmarshal is part of connect.Codec.
func (StrictJSON) Unmarshal(data []byte, message any) error {
	m, ok := message.(proto.Message)
	if !ok {
		return fmt.Errorf("%T is no message", message)
	}
	if len(data) == 0 {
		return errors.New("an empty body is no JSON object")
	}
	err := protojson.Unmarshal(data, m)
	if err == nil {
		return nil
	}
	if found := unknownField.FindStringSubmatch(err.Error()); found != nil {
		return errors.New(noField(found[1]))
	}
	return errors.New(unreadable(err.Error()))
}

// unreadable is what is said of JSON that is broken, or does not fit; the library begins with its own name and a space of one kind or another.
func unreadable(message string) string {
	return "the request can't be read: " + strings.TrimLeft(strings.TrimPrefix(message, "proto:"), " \u00a0")
}

// noField is what is said of a field that does not exist.
func noField(name string) string {
	return fmt.Sprintf("the request has a field %q, which does not exist; /openapi.json has those that do", name)
}
