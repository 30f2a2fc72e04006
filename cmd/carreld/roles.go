package main

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"carrel.dev/carrel/internal/auth"
	"carrel.dev/carrel/internal/control"
	"carrel.dev/carrel/internal/gateway"
	"carrel.dev/carrel/internal/node/proxy"
	"carrel.dev/carrel/internal/reconcile"
	"carrel.dev/carrel/internal/service"
	"carrel.dev/carrel/internal/store"
	"carrel.dev/carrel/internal/wholefile"
)

// role is what every role has: a logger, metrics and the operations listener.
type role struct {
	log      *slog.Logger
	registry *prometheus.Registry
	group    *errgroup.Group
	ctx      context.Context
}

func newRole(ctx context.Context, name string, config *Config, stderr io.Writer) *role {
	group, groupCtx := errgroup.WithContext(ctx)
	return &role{log: service.NewLogger(config.Log, name, stderr), registry: service.NewRegistry(), group: group, ctx: groupCtx}
}

// serveOps serves health and metrics until the role ends.
func (r *role) serveOps(address string, ready func(context.Context) error) error {
	l, err := service.Listen(address)
	if err != nil {
		return err
	}
	r.group.Go(func() error {
		return service.Serve(r.ctx, l, service.NewServer(service.OpsHandler(r.registry, ready), r.log))
	})
	return nil
}

// run adds a part of the role that goes on until it ends.
func (r *role) run(part func(context.Context) error) {
	r.group.Go(func() error { return part(r.ctx) })
}

// serve answers on a TCP address, with TLS if given.
func (r *role) serve(address string, config *tls.Config, server *http.Server) error {
	l, err := service.Listen(address)
	if err != nil {
		return err
	}
	if config != nil {
		l = tls.NewListener(l, config)
	}
	r.run(func(ctx context.Context) error { return service.Serve(ctx, l, server) })
	return nil
}

// wait answers when every part has ended: nil when that was asked for.
func (r *role) wait() error {
	err := r.group.Wait()
	r.log.Info("ended", "error", err)
	return err
}

// openStore connects with the URLs that the configuration names.
func openStore(ctx context.Context, d DatabaseConfig, r *role, withControl bool) (*store.Store, error) {
	system, err := service.ReadSecret(d.SystemURLFile)
	if err != nil {
		return nil, err
	}
	config := store.Config{SystemURL: system, Logger: r.log, Registerer: r.registry}
	if withControl {
		if config.ControlURL, err = service.ReadSecret(d.ControlURLFile); err != nil {
			return nil, err
		}
	}
	s, err := store.Open(ctx, config)
	if err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	return s, nil
}

func runMigrate(ctx context.Context, config *Config, _ io.Writer) error {
	url, err := service.ReadSecret(config.Control.Database.OwnerURLFile)
	if err != nil {
		return err
	}
	return store.Migrate(ctx, url)
}

func runControl(ctx context.Context, config *Config, stderr io.Writer) error {
	r := newRole(ctx, "control", config, stderr)
	c := config.Control
	s, err := openStore(ctx, c.Database, r, true)
	if err != nil {
		return err
	}
	defer s.Close()
	keyring, err := auth.OpenKeyring(c.KeyFile)
	if err != nil {
		return err
	}
	server, err := control.New(control.Config{
		Store: s, Keyring: keyring, JoinTokenFile: c.JoinTokenFile, Names: namesOf(c.Hosts), Quotas: control.Quotas(c.Quotas), Version: version, SSHAddress: c.SSHAddress, Logger: r.log, Registerer: r.registry,
	})
	if err != nil {
		return err
	}
	if c.CAFile != "" {
		if err := wholefile.Write(c.CAFile, server.CAPEM(), 0o644); err != nil {
			return err
		}
	}
	if err := r.serveOps(c.Ops, server.Ready); err != nil {
		return err
	}
	if err := r.serve(c.Listen, server.TLSConfig(), service.NewServer(server.Handler(), r.log)); err != nil {
		return err
	}
	r.run(server.Run)
	return r.wait()
}

// namesOf sorts the names by which control is reached into what a certificate wants.
func namesOf(hosts []string) auth.Names {
	var names auth.Names
	for _, host := range hosts {
		if ip := net.ParseIP(host); ip != nil {
			names.IPs = append(names.IPs, ip)
		} else {
			names.DNS = append(names.DNS, host)
		}
	}
	return names
}

func runReconcile(ctx context.Context, config *Config, stderr io.Writer) error {
	r := newRole(ctx, "reconcile", config, stderr)
	s, err := openStore(ctx, config.Reconcile.Database, r, false)
	if err != nil {
		return err
	}
	defer s.Close()
	name := config.Reconcile.Name
	if name == "" {
		name = "reconcile-" + rand.Text()
	}
	reconciler, err := reconcile.New(reconcile.Config{Store: s, Holder: name, Logger: r.log, Registerer: r.registry})
	if err != nil {
		return err
	}
	if err := r.serveOps(config.Reconcile.Ops, s.Ping); err != nil {
		return err
	}
	r.run(reconciler.Run)
	return r.wait()
}

func runGateway(ctx context.Context, config *Config, stderr io.Writer) error {
	r := newRole(ctx, "gateway", config, stderr)
	c := config.Gateway
	var g *gateway.Gateway
	ready := func(ctx context.Context) error { return g.Ready(ctx) }
	g, err := gateway.New(gateway.Config{
		ControlURL: c.Control.URL, CAFile: c.Control.CAFile, JoinTokenFile: c.Control.TokenFile,
		DataDir: c.Dir, Name: c.Name, Region: config.Node.Region, Version: version,
		PublicURL: c.PublicURL, PortDomain: c.PortDomain,
		Ops: service.OpsHandler(r.registry, ready), Registry: r.registry, Logger: r.log,
	})
	if err != nil {
		return err
	}
	if err := r.serveOps(c.Ops, ready); err != nil {
		return err
	}
	if err := r.serve(c.HTTP, nil, gateway.NewServer(g.Handler(), r.log)); err != nil {
		return err
	}
	if c.SSH != sshOff {
		l, err := service.Listen(c.SSH)
		if err != nil {
			return err
		}
		r.run(func(ctx context.Context) error { return g.ServeSSH(ctx, l) })
	}
	r.run(g.Run)
	return r.wait()
}

func runProxy(ctx context.Context, config *Config, stderr io.Writer) error {
	r := newRole(ctx, "proxy", config, stderr)
	c := config.Proxy
	p, err := proxy.New(proxy.Config{
		Socket: c.Socket, Dir: c.Dir, Listen: c.Listen, NodeUID: 0, Logger: r.log, Metrics: r.registry,
	})
	if err != nil {
		return err
	}
	// It has its certificate from the node, which may come later: serving the node's socket is being ready.
	if err := r.serveOps(c.Ops, func(context.Context) error { return nil }); err != nil {
		return err
	}
	r.run(p.Run)
	return r.wait()
}
