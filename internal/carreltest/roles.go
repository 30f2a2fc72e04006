package carreltest

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"sync/atomic"

	"github.com/stretchr/testify/require"

	"carrel.dev/carrel/internal/auth"
	"carrel.dev/carrel/internal/client"
	"carrel.dev/carrel/internal/control"
	"carrel.dev/carrel/internal/gateway"
	"carrel.dev/carrel/internal/reconcile"
	"carrel.dev/carrel/internal/service"
)

// version is what every part says of itself.
const version = "test"

// begun finishes the start of a life: with an error everything that was opened for it is given back.
func begun(l *life, err error) (*life, error) {
	if err != nil {
		return nil, errors.Join(err, l.end(true))
	}
	return l, nil
}

// serve lets a server answer on a port of its own, which is one of the replicas while the part is up.
func (l *life) serve(server *http.Server, config *tls.Config, among *replicas) (address string, err error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	address = listener.Addr().String()
	if config != nil {
		listener = tls.NewListener(listener, config)
	}
	l.run("serve", func(ctx context.Context) error { return service.Serve(ctx, listener, server) })
	among.add(address)
	l.leave = append(l.leave, func() { among.remove(address) })
	l.sever = append(l.sever, func() { _ = server.Close() })
	return address, nil
}

// Control is one replica of control.
type Control struct {
	*Part
	server  atomic.Pointer[control.Server]
	address atomic.Pointer[string]
	s       *Stack
}

func (s *Stack) startControls() {
	t := s.t
	for i := range s.options.Controls {
		c := &Control{s: s}
		c.Part = &Part{name: fmt.Sprintf("control-%d", i), begin: c.begin}
		require.NoError(t, c.Start())
		s.atEnd(c.Part)
		s.Controls = append(s.Controls, c)
	}
	s.caFile = s.path("ca.pem")
	require.NoError(t, os.WriteFile(s.caFile, s.Controls[0].server.Load().CAPEM(), 0o600))
}

func (c *Control) begin() (*life, error) {
	l := newLife()
	return begun(l, func() error {
		st, err := c.s.openStore(l, c.name, true)
		if err != nil {
			return err
		}
		keyring, err := auth.ParseKeyring(c.s.kek)
		if err != nil {
			return err
		}
		server, err := control.New(control.Config{Store: st, Keyring: keyring, JoinTokenFile: c.s.join, Version: version, Logger: c.s.log.With("part", c.name)})
		if err != nil {
			return err
		}
		address, err := l.serve(service.NewServer(c.s.throughBetween(server.Handler()), c.s.log), server.TLSConfig(), c.s.controls)
		if err != nil {
			return err
		}
		c.server.Store(server)
		c.address.Store(&address)
		l.run("control", server.Run)
		return nil
	}())
}

// Client speaks to this replica and no other, as long as its present life lasts.
func (c *Control) Client(token, org string) *client.Client {
	t := c.s.t
	t.Helper()
	one, err := client.New(client.Config{Context: client.Context{URL: "https://" + *c.address.Load(), Token: token, Org: org, CAFile: c.s.caFile}})
	require.NoError(t, err)
	t.Cleanup(one.Close)
	return one
}

func (s *Stack) startReconcilers() {
	for i := range s.options.Reconcilers {
		name := fmt.Sprintf("reconcile-%d", i)
		p := &Part{name: name, begin: func() (*life, error) {
			l := newLife()
			return begun(l, func() error {
				st, err := s.openStore(l, name, false)
				if err != nil {
					return err
				}
				r, err := reconcile.New(reconcile.Config{Store: st, Holder: name, LeaseTTL: s.options.LeaseTTL, Logger: s.log.With("part", name)})
				if err != nil {
					return err
				}
				l.run("reconcile", r.Run)
				return nil
			}())
		}}
		require.NoError(s.t, p.Start())
		s.atEnd(p)
		s.Reconcilers = append(s.Reconcilers, p)
	}
}

// Gateway is one gateway.
type Gateway struct {
	*Part
	// ToControl is its wire to control.
	ToControl *Wire
	gateway   atomic.Pointer[gateway.Gateway]
	s         *Stack
}

func (s *Stack) startGateways() {
	t := s.t
	s.Front = s.newWire(s.gateways)
	s.URL = "http://" + s.Front.Addr()
	for i := range s.options.Gateways {
		g := &Gateway{s: s, ToControl: s.newWire(s.controls)}
		g.Part = &Part{name: fmt.Sprintf("gateway-%d", i), begin: g.begin}
		require.NoError(t, g.Start())
		s.atEnd(g.Part)
		s.Gateways = append(s.Gateways, g)
	}
	s.Eventually("the gateways have joined", func() error { return s.Ready(t.Context()) })
}

// newWire makes a wire to replicas that is there until the test ends.
func (s *Stack) newWire(to *replicas) *Wire {
	w, err := newWire("tcp", "127.0.0.1:0", to)
	require.NoError(s.t, err)
	s.t.Cleanup(w.close)
	return w
}

func (g *Gateway) begin() (*life, error) {
	l := newLife()
	l.sever = append(l.sever, g.ToControl.Down)
	g.ToControl.Up()
	return begun(l, func() error {
		gate, err := gateway.New(gateway.Config{
			ControlURL: "https://" + g.ToControl.Addr(), CAFile: g.s.caFile, JoinTokenFile: g.s.join,
			DataDir: g.s.path(g.name), Name: g.name, Version: version, Logger: g.s.log.With("part", g.name),
		})
		if err != nil {
			return err
		}
		if _, err := l.serve(gateway.NewServer(gate.Handler(), g.s.log), nil, g.s.gateways); err != nil {
			return err
		}
		g.gateway.Store(gate)
		l.run("gateway", gate.Run)
		return nil
	}())
}
