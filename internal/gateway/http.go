package gateway

import (
	"crypto/rand"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httputil"
	"path"
	"regexp"
	"strings"

	"connectrpc.com/connect"
	"connectrpc.com/vanguard"

	"carrel.dev/carrel/api/carrel/v1/carrelv1connect"
	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/lazyflush"
	"carrel.dev/carrel/internal/rest"
)

const (
	headerRequestID = "X-Request-Id"
	// maxControlBody bounds the body of a request that is passed on to control, in bytes.
	maxControlBody = 16 << 20
)

// processPath is every REST path of ProcessService.
var processPath = regexp.MustCompile(`^/v1/boxes/[^/]+/processes(/|$)`)

// portPath is every REST path of PortService.
var portPath = regexp.MustCompile(`^/v1/boxes/[^/]+/(listeners|ports/[0-9]+:open)$|^/v1/web:open$`)

var requestIDPattern = regexp.MustCompile(`^[A-Za-z0-9._-]{1,64}$`)

func (g *Gateway) newHandler() http.Handler {
	procedures, service := carrelv1connect.NewProcessServiceHandler(&processes{g},
		connect.WithInterceptors(errorInterceptor{g.log}),
		connect.WithReadMaxBytes(2<<20),
		connect.WithCompressMinBytes(1<<30), // output is passed on as it is; compressed requests are understood
		rest.StrictConnect(),
	)
	service = lazyflush.Handler(service)
	portProcedures, portHandler := carrelv1connect.NewPortServiceHandler(portService{g.ports}, connect.WithInterceptors(errorInterceptor{g.log}), connect.WithReadMaxBytes(64<<10), rest.StrictConnect())
	filing := &files{g}
	fileProcedures, fileHandler := carrelv1connect.NewFileServiceHandler(filing,
		connect.WithInterceptors(errorInterceptor{g.log}), connect.WithReadMaxBytes(maxFileMessage), connect.WithCompressMinBytes(1<<30), rest.StrictConnect())
	notebookProcedures, notebookHandler := carrelv1connect.NewNotebookServiceHandler(&notebooks{g},
		connect.WithInterceptors(errorInterceptor{g.log}), connect.WithReadMaxBytes(maxNotebookRequest), connect.WithCompressMinBytes(1<<30), limitedCodecs())
	notebookREST, err := rest.NewTranscoder([]*vanguard.Service{rest.NewService(notebookProcedures, notebookHandler)}, maxNotebookMessage)
	if err != nil {
		panic("gateway: the notebook service's schema cannot be transcoded: " + err.Error()) // a fault of the build
	}
	transcoder, err := rest.NewTranscoder([]*vanguard.Service{rest.NewService(procedures, service), rest.NewService(fileProcedures, fileHandler), rest.NewService(portProcedures, portHandler)}, 0)
	if err != nil {
		panic("gateway: the process service's schema cannot be transcoded: " + err.Error()) // a fault of the build
	}
	// RPCs are read and answered whole: who sends and gets what is large has to be somebody, and waits for room.
	service, portHandler, transcoded := g.messages(service, 0), g.messages(portHandler, 0), g.messages(transcoder, 0)
	fileCalls := g.messages(fileHandler, 0)
	notebookCalls, notebookPaths := g.messages(notebookHandler, maxNotebookRequest*messageWeight), g.messages(limitValues(notebookREST), maxNotebookRequest*messageWeight)
	proxy := g.newControlProxy()
	control := g.messages(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.Body = http.MaxBytesReader(w, r.Body, maxControlBody)
		proxy.ServeHTTP(w, r)
	}), 0)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Server", "carrel/"+g.config.Version)
		if !requestIDPattern.MatchString(r.Header.Get(headerRequestID)) {
			r.Header.Set(headerRequestID, rand.Text())
		}
		w.Header().Set(headerRequestID, r.Header.Get(headerRequestID))
		if ref, ok := portOfHost(r.Host, g.config.PortDomain); ok {
			g.ports.serveHost(w, r, ref)
			return
		}
		r.Header.Set(headerFrontHost, r.Host)
		p := r.URL.Path
		if strings.HasPrefix(p, pathPrefix) {
			g.ports.servePath(w, r)
			return
		}
		if p == "" || p[0] != '/' || path.Clean(p) != p && path.Clean(p)+"/" != p {
			writeError(w, r, carrel.Errorf(carrel.CodeInvalid, "bad_path", "the path of the request is not usable: it must begin with / and have no empty, . or .. parts"))
			return
		}
		if p == "/signin" || strings.HasPrefix(p, "/signin/") || p == "/signout" {
			g.ports.serveSignIn(w, r)
			return
		}
		if g.serveWeb(w, r) {
			return
		}
		if strings.HasPrefix(p, jupyterPrefix) { // its clients show what they have in ways of their own
			g.jupyter.ServeHTTP(w, r)
			return
		}
		r, done, err := g.ports.asSession(r)
		if err != nil {
			writeError(w, r, own(r.Context(), g.log, r.Header.Get(headerRequestID), err))
			return
		}
		defer done()
		// What is answered from here on is somebody's, and never a page.
		w.Header().Set("Cache-Control", "no-store")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		switch {
		case p == "/healthz" || p == "/readyz" || p == "/metrics":
			if g.config.Ops == nil || p == "/metrics" { // figures are for operators, at the operations address
				writeError(w, r, carrel.NotFound("path", p))
				return
			}
			g.config.Ops.ServeHTTP(w, r)
		case strings.HasPrefix(p, procedures):
			service.ServeHTTP(w, r)
		case strings.HasPrefix(p, fileProcedures):
			fileCalls.ServeHTTP(w, r)
		case rawFilePath.MatchString(p):
			filing.serveRaw(w, r)
		case strings.HasPrefix(p, portProcedures):
			portHandler.ServeHTTP(w, r)
		case strings.HasPrefix(p, notebookProcedures):
			notebookCalls.ServeHTTP(w, r)
		case notebookPath.MatchString(p):
			notebookPaths.ServeHTTP(w, r)
		case socketPath.MatchString(p):
			g.serveSocket(w, r)
		case sessionPath.MatchString(p):
			if under, err := g.underBox(r); err != nil {
				writeError(w, r, own(r.Context(), g.log, r.Header.Get(headerRequestID), err))
			} else if rawFilePath.MatchString(under.URL.Path) {
				filing.serveRaw(w, under)
			} else {
				g.serveSocket(w, under)
			}
		case processPath.MatchString(p), filePath.MatchString(p), portPath.MatchString(p):
			transcoded.ServeHTTP(w, r)
		case strings.HasPrefix(p, "/carrel.") && !strings.HasPrefix(p, "/carrel.v1."):
			// The links are for peers. Passed on they would be refused, because users' requests go without a certificate.
			writeError(w, r, carrel.NotFound("path", p))
		default:
			w.Header().Del("Cache-Control") // control's answers have their own
			control.ServeHTTP(w, r)
		}
	})
}

// newControlProxy passes requests on to control, streams and trailers included. They go over connections that show no
// certificate: control takes them for what they are, requests of users, whatever their path is.
func (g *Gateway) newControlProxy() http.Handler {
	return &httputil.ReverseProxy{
		Transport:     g.users,
		FlushInterval: -1, // at once
		ErrorLog:      slog.NewLogLogger(g.log.Handler(), slog.LevelDebug),
		Rewrite: func(pr *httputil.ProxyRequest) {
			pr.SetURL(g.url) // Host too: control is known by its address here
			pr.SetXForwarded()
			origin := g.ports.origin(pr.In)
			for name := range pr.Out.Header {
				if strings.HasPrefix(name, "Carrel-") || name == "Forwarded" {
					pr.Out.Header.Del(name)
				}
			}
			// By which control makes the URLs of ports.
			pr.Out.Header.Set(headerPortHosts, origin.Scheme+"://*."+portDomainHost(g.config.PortDomain, origin))
		},
		ModifyResponse: func(resp *http.Response) error {
			resp.Header.Del("Server") // ours are set already
			resp.Header.Del(headerRequestID)
			resp.Header.Del("X-Content-Type-Options")
			if resp.Header.Get("Cache-Control") == "" {
				resp.Header.Set("Cache-Control", "no-store")
			}
			return nil
		},
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			var tooLarge *http.MaxBytesError
			var refused *carrel.Error
			switch {
			case errors.As(err, &refused):
				writeError(w, r, refused)
			case errors.As(err, &tooLarge):
				e := carrel.Errorf(carrel.CodeInvalid, "request_too_large", "the request is larger than %d bytes", tooLarge.Limit)
				writeError(w, r, e)
			case r.Context().Err() != nil:
				w.WriteHeader(499) // nobody reads it
			default:
				g.log.WarnContext(r.Context(), "control does not answer", "error", err, "request", r.Header.Get(headerRequestID))
				writeError(w, r, errControlAway(err))
			}
		},
	}
}
