package main

import (
	"context"
	"sync"

	"connectrpc.com/connect"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/api/carrel/v1/carrelv1connect"
	"carrel.dev/carrel/internal/carrel"
)

// imageServer has an image that a template needs, base, and one that nothing needs, app.
type imageServer struct {
	carrelv1connect.UnimplementedImageServiceHandler

	mu   sync.Mutex
	gone bool // app
}

func (s *imageServer) DeleteImage(_ context.Context, req *connect.Request[carrelv1.DeleteImageRequest]) (*connect.Response[carrelv1.Operation], error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	name := req.Msg.GetName()
	switch {
	case name == "base":
		return nil, wire(carrel.Errorf(carrel.CodePrecondition, "image_in_use", "image base is needed by the template web; push its templates with another image first"))
	case name != "app" || s.gone:
		return nil, wire(carrel.NotFound("image", name))
	}
	s.gone = true
	return connect.NewResponse(&carrelv1.Operation{
		Id: "p0000000000000000001", Verb: "delete_image", TargetId: "i0000000000000000001", TargetName: name, Done: true, Progress: "deleted", CreateTime: serverTime, EndTime: serverTime,
	}), nil
}
