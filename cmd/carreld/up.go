package main

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/goccy/go-yaml"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"carrel.dev/carrel/internal/auth"
	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/service"
	"carrel.dev/carrel/internal/service/postgres"
	"carrel.dev/carrel/internal/store"
	"carrel.dev/carrel/internal/wholefile"
)

// On one machine each role runs as a user of its own, known by number alone: they lie in the range
// that systemd keeps for users it makes up (61184 to 65519), so no account has them.
const (
	uidControl = 61701
	uidGateway = 61702
	uidProxy   = 61703
)

// database is the name of the one that Carrel keeps everything in.
const database = "carrel"

// upRoles are started in this order.
var upRoles = []struct {
	name string
	uid  int // 0: root
}{{"control", uidControl}, {"reconcile", uidControl}, {"proxy", uidProxy}, {"node", 0}, {"gateway", uidGateway}}

// startTime bounds how long the platform may take to get ready, images apart.
const startTime = 2 * time.Minute

// platform is one running `up`.
type platform struct {
	config     *Config
	configFile string
	log        *slog.Logger
	out        *progress
	adminToken string
	postgres   *postgres.Server
}

func runUp(ctx context.Context, config *Config, tour bool, stdout, stderr io.Writer) error {
	if os.Geteuid() != 0 {
		return carrel.Errorf(carrel.CodeDenied, "not_root", "carreld up must run as root: it makes sandboxes, mounts and network links. Try: sudo carreld up")
	}
	if err := os.MkdirAll(config.Data, 0o711); err != nil {
		return fmt.Errorf("make data directory: %w", err)
	}
	lock, err := lockData(config.Data)
	if err != nil {
		return err
	}
	defer lock.Close()
	p := &platform{
		config: config, out: newProgress(stdout),
		log: service.NewLogger(config.Log, "up", stderr),
	}
	if err := p.prepare(ctx); err != nil {
		return err
	}
	supervisor, err := service.NewSupervisor(p.log)
	if err != nil {
		return err
	}
	// Three rings, ended from the outside in: the roles, PostgreSQL, and the supervisor that reaps for both.
	top, stopTop := context.WithCancel(context.WithoutCancel(ctx))
	defer stopTop()
	var reaper, database errgroup.Group
	reaper.Go(func() error { return supervisor.Run(top) })
	databaseCtx, stopDatabase := context.WithCancel(top)
	defer stopDatabase()
	database.Go(func() error { return p.keepPostgres(databaseCtx) })
	err = p.serve(ctx, supervisor, tour)
	stopDatabase()
	err = errors.Join(err, database.Wait())
	stopTop()
	return errors.Join(err, reaper.Wait())
}

// serve runs the roles until ctx ends or the start fails.
func (p *platform) serve(ctx context.Context, supervisor *service.Supervisor, tour bool) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	start, endStart := context.WithTimeoutCause(ctx, startTime, fmt.Errorf("no readiness after %s; the logs in %s say more", startTime, p.path("logs")))
	defer endStart()
	step := p.out.step("Starting PostgreSQL")
	if err := p.prepareDatabase(start); err != nil {
		return startError(start, err)
	}
	step.done()
	step = p.out.step("Starting Carrel")
	var roles sync.WaitGroup
	defer func() {
		cancel()
		roles.Wait()
	}()
	exe, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find own executable: %w", err)
	}
	for _, role := range upRoles {
		logs, err := openLog(p.path("logs", role.name+".log"))
		if err != nil {
			return err
		}
		defer logs.Close()
		child := service.Child{
			Name: role.name, Args: []string{exe, role.name, "--config", p.configFile},
			Env: childEnvironment(), UID: role.uid, GID: role.uid, Output: logs,
		}
		roles.Go(func() { supervisor.Keep(ctx, child) })
	}
	for _, role := range upRoles {
		if err := p.awaitReady(start, role.name); err != nil {
			return startError(start, err)
		}
	}
	step.done()
	endStart()
	if err := p.writeContext(); err != nil {
		p.log.Warn("the CLI's context could not be written; carrel login does it by hand", "error", err)
	}
	if err := p.welcome(ctx, tour); err != nil && ctx.Err() == nil {
		return err
	}
	<-ctx.Done()
	p.out.line("\nStopping. Boxes that run go on; `make up` finds them again. `make down` pauses them first.")
	return nil
}

// welcome makes the shipped images and templates, says that Carrel is ready, and how to go on. With tour, who is here for the first time
// is shown around as soon as there is one template, and the others are made after that.
func (p *platform) welcome(ctx context.Context, tour bool) error {
	state, err := p.state()
	if err != nil {
		return err
	}
	names, err := p.shippedNames()
	if err != nil {
		return err
	}
	tour = tour && !state.Toured
	now := len(names)
	if tour {
		now = min(1, now)
	}
	if err := p.provision(ctx, names[:now]); err != nil {
		return err
	}
	p.out.line("carrel is ready at %s", p.url())
	if tour {
		if err := p.tour(ctx); err != nil && ctx.Err() == nil {
			p.out.line("The tour ended early: %v", err)
		}
	}
	if link := p.signInLink(ctx); link != "" {
		p.out.line("\nOpen this in your browser; it signs you in, once and within %d minutes (`carrel open` makes another):\n  %s", int(linkLifetime.Minutes()), link)
	}
	p.out.line("%s", p.hints(tour))
	if now == len(names) {
		return nil
	}
	p.out.line("\nWhat else comes with Carrel is built meanwhile:")
	if err := p.provision(ctx, names[now:]); err != nil {
		if ctx.Err() == nil {
			p.out.line("That ended early, and the next `make up` goes on: %v", err)
		}
		return nil
	}
	p.out.line("All templates are there: %s", strings.Join(names, ", "))
	return nil
}

func startError(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, context.Canceled) {
		return fmt.Errorf("%w (%w)", cause, err)
	}
	return err
}

func (p *platform) path(parts ...string) string {
	return filepath.Join(append([]string{p.config.Data}, parts...)...)
}

func (p *platform) url() string { return "http://" + p.config.Gateway.HTTP }

// childEnvironment is what roles get of this process's environment: no secrets, nothing of the user's.
func childEnvironment() []string {
	env := []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/", "LANG=C.UTF-8"}
	for _, name := range []string{"CARREL_FAILPOINTS", "GOTRACEBACK", "GOMAXPROCS", "TZ", "http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "SSL_CERT_FILE"} {
		if v, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+v)
		}
	}
	return env
}

// maxLog is when a role's log file is put aside at the next start, in bytes; one old file is kept.
const maxLog = 32 << 20

func openLog(path string) (*os.File, error) {
	if info, err := os.Stat(path); err == nil && info.Size() > maxLog {
		if err := os.Rename(path, path+".1"); err != nil {
			return nil, fmt.Errorf("put aside log: %w", err)
		}
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	return f, nil
}

// prepare makes directories, picks ports, and writes secrets and the roles' configuration.
func (p *platform) prepare(ctx context.Context) error {
	c := p.config
	told := c.Control.SSHAddress == publicSSH(c.Gateway.SSH) // what nobody has set
	for _, one := range []struct {
		flag    string
		address *string
	}{{"--http", &c.Gateway.HTTP}, {"--ssh", &c.Gateway.SSH}, {"--control-listen", &c.Control.Listen}, {"--proxy-listen", &c.Proxy.Listen}} {
		if *one.address == sshOff {
			continue
		}
		if err := pickPort(one.address); err != nil {
			return err
		}
		if err := awaitFree(ctx, p.out, *one.address, one.flag, portPatience); err != nil {
			return err
		}
	}
	if told {
		c.Control.SSHAddress = publicSSH(c.Gateway.SSH)
	}
	c.Gateway.Control.URL, c.Node.Control.URL = "https://"+c.Control.Listen, "https://"+c.Control.Listen
	c.Node.ProxyAddress = c.Proxy.Listen
	c.Reconcile.Name = "up" // there is one, and when it was killed the next one goes on at once
	// Control is the writer of its certificate authority's public part, the others read it there.
	c.Control.CAFile = p.path("control", "ca.pem")
	c.Gateway.Control.CAFile, c.Node.Control.CAFile = c.Control.CAFile, c.Control.CAFile
	c.Control.JoinTokenFile = p.path("secrets", "control", "join-token")
	c.Gateway.Control.TokenFile = p.path("secrets", "gateway", "join-token")
	c.Node.Control.TokenFile = p.path("secrets", "node", "join-token")

	for _, dir := range []struct {
		path string
		mode fs.FileMode
		uid  int
	}{
		{p.path("secrets"), 0o711, 0}, {p.path("secrets", "control"), 0o700, uidControl}, {p.path("secrets", "gateway"), 0o700, uidGateway}, {p.path("secrets", "node"), 0o700, 0},
		{p.path("control"), 0o755, uidControl}, {p.path("logs"), 0o700, 0}, {p.path("ops"), 0o755, 0},
		{c.Gateway.Dir, 0o700, uidGateway}, {c.Proxy.Dir, 0o700, uidProxy}, {c.Node.Dir, 0o700, 0},
		{p.path("ops", "control"), 0o700, uidControl}, {p.path("ops", "reconcile"), 0o700, uidControl}, {p.path("ops", "gateway"), 0o700, uidGateway}, {p.path("ops", "proxy"), 0o700, uidProxy}, {p.path("ops", "node"), 0o700, 0},
	} {
		if err := makeDir(dir.path, dir.mode, dir.uid); err != nil {
			return err
		}
	}
	if _, err := os.Stat(c.Control.KeyFile); errors.Is(err, fs.ErrNotExist) {
		if err := wholefile.WriteOwned(c.Control.KeyFile, []byte(auth.NewKEK()+"\n"), 0o600, uidControl, uidControl); err != nil {
			return err
		}
	}
	if kept, err := keptPool(c.Node); err != nil {
		return err
	} else if kept > 0 {
		p.out.line("The pool for homes and snapshots stays at %d MiB: --pool-size %s is less, and a pool is never made smaller.", kept/carrel.MiB, c.Node.PoolSize)
	}
	join, err := service.ReadSecret(c.Control.JoinTokenFile)
	if errors.Is(err, fs.ErrNotExist) {
		join = auth.NewJoinToken().Text
		err = wholefile.WriteOwned(c.Control.JoinTokenFile, []byte(join+"\n"), 0o600, uidControl, uidControl)
	}
	if err != nil {
		return err
	}
	// The gateway reads what strangers send: its token must not let it join as a node.
	if err := wholefile.WriteOwned(c.Gateway.Control.TokenFile, []byte(auth.RoleJoinToken(join, auth.PeerGateway)+"\n"), 0o600, uidGateway, uidGateway); err != nil {
		return err
	}
	if err := wholefile.WriteOwned(c.Node.Control.TokenFile, []byte(auth.RoleJoinToken(join, auth.PeerNode)+"\n"), 0o600, 0, 0); err != nil {
		return err
	}
	owner, err := service.EnsureSecret(p.path("secrets", "owner-password"), 0, 0)
	if err != nil {
		return err
	}
	p.postgres, err = postgres.New(postgres.Config{
		Dir: p.path("postgres"), BinDir: c.Up.PostgresBin, Password: owner, Database: database, Logger: p.log,
	})
	if err != nil {
		return err
	}
	text, err := yaml.Marshal(c)
	if err != nil {
		return fmt.Errorf("encode configuration: %w", err)
	}
	p.configFile = p.path("up.yaml")
	return wholefile.WriteOwned(p.configFile, text, 0o644, 0, 0)
}

func makeDir(path string, mode fs.FileMode, uid int) error {
	if err := os.MkdirAll(path, mode); err != nil {
		return fmt.Errorf("make directory: %w", err)
	}
	if err := os.Chmod(path, mode); err != nil {
		return fmt.Errorf("make directory: %w", err)
	}
	if err := os.Chown(path, uid, uid); err != nil {
		return fmt.Errorf("make directory: %w", err)
	}
	return nil
}

// pickPort replaces port 0 by one that is free now, because the roles must know one another's. It is none of those
// that the kernel gives to outgoing connections: one of these could have it before the role listens, or while
// that is started again.
func pickPort(address *string) error {
	host, port, err := net.SplitHostPort(*address)
	if err != nil || port != "0" {
		return err
	}
	const first, tries = 10000, 100
	for range tries {
		candidate := net.JoinHostPort(host, strconv.Itoa(first+rand.N(firstOutgoingPort()-first)))
		var l net.Listener
		if l, err = net.Listen("tcp", candidate); err == nil {
			*address = candidate
			return l.Close()
		}
	}
	return fmt.Errorf("pick a port on %s: %w", host, err)
}

// portPatience is how long a port may be in use: the roles of an `up` that was killed take a moment to end.
const portPatience = 10 * time.Second

// awaitFree waits until somebody can listen at address, which flag sets, at most for patience.
func awaitFree(ctx context.Context, out *progress, address, flag string, patience time.Duration) error {
	began := time.Now()
	var waiting *step
	for {
		l, err := net.Listen("tcp", address)
		if err == nil {
			if waiting != nil {
				waiting.done()
			}
			return l.Close()
		}
		if !errors.Is(err, unix.EADDRINUSE) {
			return carrel.Errorf(carrel.CodePrecondition, "bad_address", "nobody can listen at %s (%v); say another address with %s", address, err, flag)
		}
		if time.Since(began) >= patience {
			return carrel.Errorf(carrel.CodePrecondition, "address_in_use", "another program listens at %s (`ss -ltnp` shows which); end it, or say another address with %s", address, flag)
		}
		if waiting == nil {
			waiting = out.step("Waiting until " + address + " is free")
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// firstOutgoingPort is where the range begins from which the kernel takes ports of its own accord.
func firstOutgoingPort() int {
	const usual = 32768
	var first int
	data, _ := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	if _, err := fmt.Sscan(string(data), &first); err != nil || first < usual/2 {
		return usual
	}
	return first
}

// keepPostgres runs PostgreSQL, again when it ends by itself.
func (p *platform) keepPostgres(ctx context.Context) error {
	for {
		err := p.postgres.Run(ctx)
		if ctx.Err() != nil {
			return err
		}
		p.log.Warn("PostgreSQL ended and is started again", "error", err)
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
			return nil
		}
	}
}

// prepareDatabase waits for PostgreSQL and brings it to where the roles can log in: schema, passwords, the
// first organisations and the administrator.
func (p *platform) prepareDatabase(ctx context.Context) error {
	select {
	case <-p.postgres.Ready():
	case <-ctx.Done():
		return ctx.Err()
	}
	owner := p.postgres.OwnerURL(database)
	if err := store.Migrate(ctx, owner); err != nil {
		return err
	}
	controlPassword, err := service.EnsureSecret(p.path("secrets", "control-password"), 0, 0)
	if err != nil {
		return err
	}
	systemPassword, err := service.EnsureSecret(p.path("secrets", "system-password"), 0, 0)
	if err != nil {
		return err
	}
	if err := store.SetPasswords(ctx, owner, controlPassword, systemPassword); err != nil {
		return err
	}
	d := p.config.Control.Database
	systemURL := p.postgres.URL("carrel_system", systemPassword, database)
	for path, url := range map[string]string{d.ControlURLFile: p.postgres.URL("carrel_control", controlPassword, database), d.SystemURLFile: systemURL} {
		if err := wholefile.WriteOwned(path, []byte(url+"\n"), 0o600, uidControl, uidControl); err != nil {
			return err
		}
	}
	return p.bootstrap(ctx, systemURL)
}

// bootstrap writes the administrator's token before the database learns its hash, so that a kill between
// the two leaves a file that the next start makes true. A new token revokes the one before.
func (p *platform) bootstrap(ctx context.Context, systemURL string) error {
	path := p.path("admin-token")
	secret, err := service.ReadSecret(path)
	if errors.Is(err, fs.ErrNotExist) {
		secret = auth.NewToken().Text
		err = wholefile.WriteOwned(path, []byte(secret+"\n"), 0o600, 0, 0)
	}
	if err != nil {
		return err
	}
	token, err := auth.ParseToken(secret)
	if err != nil {
		return fmt.Errorf("%s: %w; remove the file to get a new token", path, err)
	}
	s, err := store.Open(ctx, store.Config{SystemURL: systemURL, Logger: p.log})
	if err != nil {
		return err
	}
	defer s.Close()
	_, err = s.Bootstrap(ctx, store.Bootstrap{AdminToken: store.NewToken{ID: token.ID, Hash: token.Hash[:]}})
	if carrel.ReasonOf(err) == "admin_token_revoked" {
		return fmt.Errorf("%s: %w; remove the file to get a new token", path, err)
	}
	if err != nil {
		return err
	}
	p.adminToken = secret
	return s.Rest(ctx, 0) // that of `down`
}

// awaitReady waits until a role's /readyz answers ok.
func (p *platform) awaitReady(ctx context.Context, role string) error {
	socket := p.path("ops", role, "ops.sock")
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		},
	}, Timeout: 3 * time.Second}
	last := "it has not answered yet"
	for {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://ops/readyz", nil)
		if err != nil {
			return err
		}
		response, err := client.Do(request)
		if err == nil {
			body, _ := io.ReadAll(io.LimitReader(response.Body, 4<<10))
			response.Body.Close()
			if response.StatusCode == http.StatusOK {
				return nil
			}
			last = strings.TrimSpace(string(body))
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("%s: %s", role, last)
		}
	}
}

func printConfig(w io.Writer, c *Config) error {
	text, err := yaml.Marshal(c)
	if err != nil {
		return fmt.Errorf("encode configuration: %w", err)
	}
	_, err = w.Write(text)
	return err
}

// fingerprint names a definition by its content, so that what is shipped is pushed again only after it changed.
func fingerprint(text []byte) string {
	sum := sha256.Sum256(text)
	return fmt.Sprintf("%x", sum[:8])
}

// readJSON reads a small state file of up; a file that is not there leaves v as it is.
func readJSON(path string, v any) error {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	return json.Unmarshal(data, v)
}
