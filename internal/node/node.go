package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	goruntime "runtime"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/node/disk"
	"carrel.dev/carrel/internal/node/netpool"
	"carrel.dev/carrel/internal/node/proxy"
	"carrel.dev/carrel/internal/runtime"
)

// Networks prepares networks for boxes: *netpool.Pool, or netpool.Loopback beside a fake runtime. Its methods
// are those of netpool.Pool.
type Networks interface {
	Take(ctx context.Context) (netpool.Network, error)
	Release(n netpool.Network)
	Run(ctx context.Context) error
	Filtered() error
}

// Images makes images in the pool's image directory. Both methods return when the image is there, with
// its digest and its size in bytes; an error for a person is a *carrel.Error. progress may be called at any time
// before they return.
type Images interface {
	Build(ctx context.Context, definition string, progress func(string)) (digest string, size int64, err error)
	Import(ctx context.Context, from ImportSource, progress func(string)) (digest string, size int64, err error)
}

// ImportSource says which image to import.
type ImportSource struct {
	Reference string
	Platform  string // such as linux/amd64
	Insecure  bool   // plain HTTP
	// Trusted: an operator asks. Only then paths on this machine and addresses that are not public may be read.
	Trusted bool
}

// ProxyConfig and Proxy are those of package proxy.
type (
	ProxyConfig = proxy.Config
	Proxy       = proxy.Proxy
)

// NewProxy makes the unprivileged proxy, which is a process of its own.
func NewProxy(cfg ProxyConfig) (*Proxy, error) { return proxy.New(cfg) }

// Config of a Daemon.
type Config struct {
	// DataDir has the ledger, the identity and the pool. RunDir has what is void after a reboot, and the
	// fixed paths that memory snapshots remember; empty: /run/carrel.
	DataDir, RunDir string
	// Pool is the open pool in DataDir.
	Pool *disk.Pool
	// Runtime isolates the boxes. Its overlays lie in Pool.OverlayDir.
	Runtime runtime.Runtime
	// Images makes images; nil: image chores are refused.
	Images Images
	// Networks: nil: a netpool of the instance, with NetRange and NetReady as there.
	Networks        Networks
	NetRange        string
	NetReady        int
	AllowUnfiltered bool
	// InstanceID tells the daemons of one machine apart; empty: DataDir.
	InstanceID string

	// ControlURL is https://HOST:PORT. CAFile has the certificate authority that control is known by at the
	// first contact; it may be empty if control is on this machine. JoinTokenFile has the join token; it is
	// needed until the node has joined.
	ControlURL, CAFile, JoinTokenFile string
	Name, Region                      string
	// ProxyAddress is what gateways dial, HOST:PORT; ProxySocket is where this daemon speaks to its proxy.
	ProxyAddress, ProxySocket string
	// AgentPath is the agent's binary for new boxes.
	AgentPath string
	Version   string

	Now     func() time.Time // nil: time.Now
	Logger  *slog.Logger
	Metrics prometheus.Registerer // nil: none
}

func (c *Config) check() error {
	if c.RunDir == "" {
		c.RunDir = "/run/carrel"
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.InstanceID == "" {
		c.InstanceID = c.DataDir
	}
	for name, missing := range map[string]bool{
		"DataDir": c.DataDir == "", "Pool": c.Pool == nil, "Runtime": c.Runtime == nil, "ControlURL": c.ControlURL == "",
		"ProxySocket": c.ProxySocket == "", "AgentPath": c.AgentPath == "", "Name": c.Name == "", "Logger": c.Logger == nil,
	} {
		if missing {
			return fmt.Errorf("node: %s is needed", name)
		}
	}
	return carrel.ValidateName("node", c.Name)
}

// Daemon is one node.
type Daemon struct {
	cfg       Config
	log       *slog.Logger
	now       func() time.Time
	runtime   runtime.Runtime
	caps      runtime.Capabilities
	pool      *disk.Pool
	nets      Networks
	snapshots *snapshots
	ledger    *ledger
	sequence  int64 // of the first report about a run that this process makes
	proxy     *proxy.Client
	cpu       cpuIdentity

	agentPath, agentSHA256 string

	link     *link
	reporter *reporter
	manager  *manager
	routes   *routes
	chores   *chores
	metrics  *metrics
	use      *activities
}

// New opens everything that is on this machine and finds out what was going on; it needs neither control nor the
// proxy. Boxes that run are adopted by Run.
func New(cfg Config) (*Daemon, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	d := &Daemon{
		cfg: cfg, log: cfg.Logger, now: cfg.Now, runtime: cfg.Runtime, caps: cfg.Runtime.Capabilities(), pool: cfg.Pool,
		proxy: proxy.NewClient(cfg.ProxySocket),
	}
	var err error
	if d.cpu, err = thisCPU(); err != nil {
		return nil, err
	}
	if d.agentPath, d.agentSHA256, err = disk.InstallBinary(d.binDir(), "agent", cfg.AgentPath); err != nil {
		return nil, err
	}
	if d.metrics, err = newMetrics(cfg.Metrics); err != nil {
		return nil, fmt.Errorf("node: %w", err)
	}
	if err := os.MkdirAll(d.identitiesDir(), 0o700); err != nil {
		return nil, fmt.Errorf("node: %w", err)
	}
	if d.link, err = newLink(d); err != nil {
		return nil, err
	}
	d.reporter = newReporter(d)
	d.routes = newRoutes(d)
	d.chores = newChores(d)
	d.use = newActivities(d)
	if err := d.recover(ctx); err != nil {
		return nil, err
	}
	return d, nil
}

func (d *Daemon) binDir() string        { return filepath.Join(d.cfg.DataDir, "bin") }
func (d *Daemon) identitiesDir() string { return filepath.Join(d.cfg.RunDir, "identities") }

// identityDir is what the agent of a run sees as its identity.
func (d *Daemon) identityDir(run carrel.RunID) string {
	return filepath.Join(d.identitiesDir(), string(run))
}

// Run does the node's work until ctx ends. Boxes go on without it.
func (d *Daemon) Run(ctx context.Context) error {
	defer d.proxy.Close()
	group, ctx := errgroup.WithContext(ctx)
	for _, part := range []func(context.Context) error{
		d.nets.Run, d.link.run, d.reporter.run, d.routes.run, d.manager.run, d.chores.run, reapOrphans,
	} {
		group.Go(func() error { return part(ctx) })
	}
	err := group.Wait()
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// Ready says why the node cannot follow orders just now, nil if it can: it has joined, knows what is wanted, and
// its proxy answers.
func (d *Daemon) Ready(ctx context.Context) error {
	if !d.link.isJoined() {
		return errNotJoined
	}
	if !d.link.isFresh() {
		return errors.New("control has not said yet what is wanted")
	}
	return d.routes.told(ctx)
}

// startsAtOnce is how many boxes start or are captured at the same time: more would only share the same cores.
func startsAtOnce() int { return 2 * goruntime.NumCPU() }
