package control

import (
	"context"
	_ "embed"
	"net/http"
	"slices"

	"connectrpc.com/connect"
	"connectrpc.com/grpcreflect"
	"connectrpc.com/vanguard"

	"carrel.dev/carrel/api/carrel/link/v1/linkv1connect"
	carrelv1connect "carrel.dev/carrel/api/carrel/v1/carrelv1connect"
	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/rest"
)

const (
	// maxRequest bounds a request of a user: a template or an image definition is the largest.
	maxRequest = 1 << 20
	// maxLinkRequest bounds what a node tells at once.
	maxLinkRequest = 16 << 20
)

//go:embed openapi.json
var openAPI []byte

// routes puts the handler together: RPC paths go straight to their handlers (the transcoder would take a plain JSON POST for
// REST), everything under /v1/ is transcoded.
func (s *Server) routes() (http.Handler, error) {
	mux := http.NewServeMux()
	intercept := connect.WithInterceptors(guard{s})
	public := []connect.HandlerOption{intercept, connect.WithReadMaxBytes(maxRequest), rest.StrictConnect()}
	private := []connect.HandlerOption{intercept, connect.WithReadMaxBytes(maxLinkRequest)}
	var services []*vanguard.Service
	var names []string
	add := func(path string, handler http.Handler) {
		mux.Handle(path, handler)
		services = append(services, rest.NewService(path, handler))
		names = append(names, path[1:len(path)-1])
	}
	add(carrelv1connect.NewBoxServiceHandler(boxService{s: s}, public...))
	add(carrelv1connect.NewTemplateServiceHandler(templateService{s: s}, public...))
	add(carrelv1connect.NewImageServiceHandler(imageService{s: s}, public...))
	add(carrelv1connect.NewOperationServiceHandler(operationService{s: s}, public...))
	add(carrelv1connect.NewOrgServiceHandler(orgService{s: s}, public...))
	add(carrelv1connect.NewUserServiceHandler(userService{s: s}, public...))
	add(carrelv1connect.NewTokenServiceHandler(tokenService{s: s}, public...))
	add(carrelv1connect.NewNodeServiceHandler(nodeService{s: s}, public...))
	add(carrelv1connect.NewSSHServiceHandler(sshService{s: s}, public...))
	mux.Handle(linkv1connect.NewJoinServiceHandler(joinService{s: s}, public...))
	mux.Handle(linkv1connect.NewNodeLinkHandler(nodeLink{s: s}, private...))
	mux.Handle(linkv1connect.NewGatewayLinkHandler(gatewayLink{s: s}, private...))

	notFound := http.HandlerFunc(s.noRoute)
	transcoder, err := rest.NewTranscoder(services, 4*maxRequest, vanguard.WithUnknownHandler(notFound))
	if err != nil {
		return nil, err
	}
	mux.Handle("/v1/", transcoder)
	mux.HandleFunc("GET /v1/boxes:watch", s.serveWatch)
	mux.HandleFunc("GET /openapi.json", s.serveOpenAPI)
	// The schema is public; the gateway serves the processes and passes everything else on to here.
	reflector := grpcreflect.NewStaticReflector(append(slices.Clone(names), carrelv1connect.ProcessServiceName, carrelv1connect.FileServiceName)...)
	mux.Handle(grpcreflect.NewHandlerV1(reflector))
	mux.Handle(grpcreflect.NewHandlerV1Alpha(reflector))
	mux.Handle("/", notFound)
	return s.withConnection(mux), nil
}

func (s *Server) noRoute(w http.ResponseWriter, r *http.Request) {
	e := carrel.Errorf(carrel.CodeNotFound, "route_not_found", "there is nothing at %s %s; /openapi.json has all that there is", r.Method, cut(r.URL.Path, 200))
	s.writeHTTPError(context.WithoutCancel(r.Context()), w, r.Method, e)
}

func (s *Server) serveOpenAPI(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "max-age=300")
	_, _ = w.Write(openAPI) // a client that is gone needs no answer
}
