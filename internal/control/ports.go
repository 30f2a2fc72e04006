package control

import (
	"context"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/auth"
	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/store"
)

const (
	defaultPortURL = time.Hour
	minPortURL     = time.Minute
	// headerPortHosts is set by gateways: where ports of boxes are found, such as http://*.localhost:7070, with * for PORT-BOX.
	headerPortHosts = "Carrel-Port-Hosts"
	// portToken is the parameter of a URL that carries the pass of a port.
	portToken = "carrel_token"
)

func checkPort(port int32) error {
	if port < 1 || port > 65535 {
		return carrel.Errorf(carrel.CodeInvalid, "bad_port", "%d is no port; ports are from 1 to 65535", port)
	}
	return nil
}

// portURL is where a port of a box is found by who made a request. Without a gateway in between there is only the path.
func portURL(ctx context.Context, box carrel.BoxID, port int) *url.URL {
	number := strconv.Itoa(port)
	hosts := accessOf(ctx).header.Get(headerPortHosts)
	u, err := url.Parse(strings.Replace(hosts, "*", number+"-"+string(box), 1))
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return &url.URL{Path: "/p/" + string(box) + "/" + number + "/"}
	}
	return &url.URL{Scheme: u.Scheme, Host: u.Host, Path: "/"}
}

func boxPortProto(ctx context.Context, box carrel.BoxID, p store.BoxPort) *carrelv1.BoxPort {
	return &carrelv1.BoxPort{Port: int32(p.Port), Visibility: p.Visibility, Url: portURL(ctx, box, p.Port).String()}
}

func (b boxService) SetBoxPort(ctx context.Context, req *connect.Request[carrelv1.SetBoxPortRequest]) (*connect.Response[carrelv1.BoxPort], error) {
	m := req.Msg
	box, err := b.s.find(ctx, m.GetOrg(), m.GetId())
	if err != nil {
		return nil, err
	}
	if err := checkPort(m.GetPort()); err != nil {
		return nil, err
	}
	port := store.BoxPort{Port: int(m.GetPort()), Visibility: m.GetVisibility()}
	switch port.Visibility {
	case store.PortPrivate, store.PortOrg, store.PortPublic:
	default:
		return nil, carrel.Errorf(carrel.CodeInvalid, "bad_visibility", "%q is no visibility of a port: use private, org or public", short(port.Visibility))
	}
	err = b.s.store.SetBoxPort(ctx, scopeOf(ctx), box.ID, port, func(box *store.Box) error {
		if box.Intent == carrel.IntentDeleted {
			return wrongState(box, "box %s is being deleted; nothing can be done with it any more", box.Name)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("set port of box: %w", err)
	}
	return reply(boxPortProto(ctx, box.ID, port))
}

func (b boxService) ListBoxPorts(ctx context.Context, req *connect.Request[carrelv1.ListBoxPortsRequest]) (*connect.Response[carrelv1.ListBoxPortsResponse], error) {
	box, err := b.s.find(ctx, req.Msg.GetOrg(), req.Msg.GetId())
	if err != nil {
		return nil, err
	}
	ports, err := b.s.store.BoxPorts(ctx, scopeOf(ctx), box.ID)
	if err != nil {
		return nil, fmt.Errorf("list ports of box: %w", err)
	}
	return reply(&carrelv1.ListBoxPortsResponse{Ports: each(ports, func(p store.BoxPort) *carrelv1.BoxPort { return boxPortProto(ctx, box.ID, p) })})
}

// CreatePortURL makes a URL that needs no sign-in. It ends with the rights of who made it, and no later than the token they asked with.
func (b boxService) CreatePortURL(ctx context.Context, req *connect.Request[carrelv1.CreatePortURLRequest]) (*connect.Response[carrelv1.PortURL], error) {
	m := req.Msg
	box, err := b.s.find(ctx, m.GetOrg(), m.GetId())
	if err != nil {
		return nil, err
	}
	if err := checkPort(m.GetPort()); err != nil {
		return nil, err
	}
	lifetime := defaultPortURL
	if d := m.GetLifetime(); d != nil {
		if lifetime = d.AsDuration(); !d.IsValid() || lifetime < minPortURL || lifetime > auth.MaxPortPassLifetime {
			return nil, carrel.Errorf(carrel.CodeInvalid, "bad_lifetime", "a URL of a port lives from %s to %s", carrel.FormatPeriod(minPortURL), carrel.FormatPeriod(auth.MaxPortPassLifetime))
		}
	}
	p := accessOf(ctx).principal
	pass := auth.PortPass{Box: box.ID, Org: box.Org, Port: int(m.GetPort()), User: p.User, Expires: notAfter(p, b.s.now().Add(lifetime)).Truncate(time.Second)}
	text, err := b.s.keys.Load().signer.SignPort(pass)
	if err != nil {
		return nil, err
	}
	u := portURL(ctx, box.ID, pass.Port)
	u.RawQuery = url.Values{portToken: {text}}.Encode()
	return reply(&carrelv1.PortURL{Url: u.String(), ExpireTime: timeProto(pass.Expires)})
}
