package gateway

import (
	"cmp"
	"context"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	agentv1 "carrel.dev/carrel/api/carrel/agent/v1"
	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/api/carrel/v1/carrelv1connect"
	"carrel.dev/carrel/internal/auth"
	"carrel.dev/carrel/internal/carrel"
)

// portService is the public PortService.
type portService struct{ ports *ports }

var _ carrelv1connect.PortServiceHandler = portService{}

// headerFrontHost carries the Host of a request to handlers of RPCs, which see no more than its header. What a client sends under this name is
// overwritten.
const headerFrontHost = "Carrel-Front-Host"

// originOf is origin for a request of which only the header is there.
func (p *ports) originOf(header http.Header) *url.URL {
	return p.origin(&http.Request{Host: header.Get(headerFrontHost)})
}

func (s portService) OpenPort(ctx context.Context, req *connect.Request[carrelv1.OpenPortRequest]) (*connect.Response[carrelv1.OpenPortResponse], error) {
	m := req.Msg
	ref := portRef{Box: carrel.BoxID(m.GetBox()), Port: int(m.GetPort())}
	if carrel.IDKind(m.GetBox()) != 'b' {
		return nil, carrel.Errorf(carrel.CodeInvalid, "bad_box", "%q is no id of a box; `carrel show NAME -o json` has it", clip(m.GetBox()))
	}
	if ref.Port < 1 || ref.Port > 65535 {
		return nil, carrel.Errorf(carrel.CodeInvalid, "bad_port", "port %d; it must be from 1 to 65535", ref.Port)
	}
	token, err := apiTokenOf(req.Header())
	if err != nil {
		return nil, err
	}
	origin := s.ports.originOf(req.Header())
	to := s.ports.urlOf(origin, ref)
	if path := localPath(m.GetPath()); path != "" {
		inner, err := url.Parse(path)
		if err != nil {
			return nil, carrel.Errorf(carrel.CodeInvalid, "bad_path", "%q is no path", clip(path))
		}
		to.Path, to.RawPath, to.RawQuery = inner.Path, inner.RawPath, inner.RawQuery
	} else if m.GetPath() != "" {
		return nil, carrel.Errorf(carrel.CodeInvalid, "bad_path", "the path %q must begin with one /", clip(m.GetPath()))
	}
	next := url.URL{Path: "/signin/port", RawQuery: url.Values{"url": {to.String()}}.Encode()}
	link, err := s.ports.link(ctx, origin, token, next.RequestURI(), codeLifetime)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&carrelv1.OpenPortResponse{Url: link.String(), PortUrl: to.String()}), nil
}

// apiTokenOf is the API token that a request shows.
func apiTokenOf(header http.Header) (string, error) {
	scheme, token, _ := strings.Cut(header.Get("Authorization"), " ")
	token = strings.TrimSpace(token)
	if !strings.EqualFold(scheme, "Bearer") || !strings.HasPrefix(token, apiTokenPrefix) {
		return "", carrel.Errorf(carrel.CodeUnauthorized, "no_credentials", "a link that signs in is made with an API token: send it as `Authorization: Bearer …`")
	}
	return token, nil
}

// maxLinkLifetime bounds how long a link that signs in can be used.
const maxLinkLifetime = 15 * time.Minute

func (s portService) OpenWeb(ctx context.Context, req *connect.Request[carrelv1.OpenWebRequest]) (*connect.Response[carrelv1.OpenWebResponse], error) {
	token, err := apiTokenOf(req.Header())
	if err != nil {
		return nil, err
	}
	path := cmp.Or(req.Msg.GetPath(), "/")
	if localPath(path) == "" {
		return nil, carrel.Errorf(carrel.CodeInvalid, "bad_path", "the path %q must begin with one /", clip(path))
	}
	within := codeLifetime
	if wanted := req.Msg.GetLifetime(); wanted != nil {
		if within = wanted.AsDuration(); within <= 0 || within > maxLinkLifetime {
			return nil, carrel.Errorf(carrel.CodeInvalid, "bad_lifetime", "a link that signs in can be used for %s at most", maxLinkLifetime)
		}
	}
	expires := s.ports.gateway.now().Add(within)
	link, err := s.ports.link(ctx, s.ports.originOf(req.Header()), token, path, within)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&carrelv1.OpenWebResponse{Url: link.String(), ExpireTime: timestamppb.New(expires)}), nil
}

func (s portService) ListBoxListeners(ctx context.Context, req *connect.Request[carrelv1.ListBoxListenersRequest]) (*connect.Response[carrelv1.ListBoxListenersResponse], error) {
	g := s.ports.gateway
	allowed, err := g.allow(ctx, req.Header(), req.Msg.GetBox(), req.Msg.GetOrg(), auth.ScopeView)
	if err != nil {
		return nil, err
	}
	agent, done := g.agents.get(allowed)
	defer done()
	answer, err := s.ports.listeners(ctx, agent, allowed.Box, s.ports.originOf(req.Header()))
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(answer), nil
}

// listeners asks a box on which ports its programs listen.
func (p *ports) listeners(ctx context.Context, agent *agentConn, box carrel.BoxID, origin *url.URL) (*carrelv1.ListBoxListenersResponse, error) {
	resp, err := agent.forwards.ListListeners(ctx, connect.NewRequest(&agentv1.ListListenersRequest{}))
	if err != nil {
		return nil, fromAgent(ctx, box, err)
	}
	answer := &carrelv1.ListBoxListenersResponse{}
	for _, l := range resp.Msg.GetListeners() {
		ref := portRef{Box: box, Port: int(l.GetPort())}
		if ref.Port < 1 || ref.Port > 65535 || slices.ContainsFunc(answer.Listeners, func(b *carrelv1.BoxListener) bool { return int(b.Port) == ref.Port }) {
			continue
		}
		answer.Listeners = append(answer.Listeners, &carrelv1.BoxListener{
			Port: int32(ref.Port), Process: clip(l.GetProcess()), Pid: l.GetPid(), Url: p.urlOf(origin, ref).String(),
		})
	}
	slices.SortFunc(answer.Listeners, func(a, b *carrelv1.BoxListener) int { return int(a.Port - b.Port) })
	return answer, nil
}
