package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml"

	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/client"
	"carrel.dev/carrel/internal/failpoint"
	"carrel.dev/carrel/internal/service"
)

// Config is the one configuration file of every role. A role reads only its own part and those it
// names. Secrets are never in it: it names files.
type Config struct {
	// Data is the directory under which each role keeps what is its own.
	Data string            `yaml:"data"`
	Log  service.LogConfig `yaml:"log"`

	Control   ControlConfig   `yaml:"control"`
	Reconcile ReconcileConfig `yaml:"reconcile"`
	Gateway   GatewayConfig   `yaml:"gateway"`
	Node      NodeConfig      `yaml:"node"`
	Proxy     ProxyConfig     `yaml:"proxy"`
	Up        UpConfig        `yaml:"up"`
}

// DatabaseConfig says how to reach PostgreSQL.
type DatabaseConfig struct {
	// ControlURLFile and SystemURLFile are files with a PostgreSQL connection URL, password included: for the
	// role carrel_control, which row-level security holds for, and for carrel_system. reconcile needs only the second.
	ControlURLFile string `yaml:"control_url_file"`
	SystemURLFile  string `yaml:"system_url_file"`
	// OwnerURLFile connects as the owner of the schema; only `carreld migrate` reads it.
	OwnerURLFile string `yaml:"owner_url_file"`
}

// ControlConfig is read by `carreld control`.
type ControlConfig struct {
	Database DatabaseConfig `yaml:"database"`
	// Listen is the TLS address for gateways and nodes.
	Listen string `yaml:"listen"`
	// Hosts are the DNS names and addresses by which gateways and nodes reach Listen.
	Hosts []string `yaml:"hosts"`
	// SSHAddress is where users reach the SSH gateway, HOST:PORT, as it is told to them; an empty host is that of the front
	// door. Default: the address in gateway.ssh.
	SSHAddress string `yaml:"ssh_address"`
	// KeyFile holds the key-encryption key that wraps the root keys in PostgreSQL.
	KeyFile string `yaml:"key_file"`
	// JoinTokenFile, if set, names a token with which nodes and gateways may join at any time.
	JoinTokenFile string `yaml:"join_token_file"`
	// CAFile, if set, is where control writes its certificate authority (PEM, public) for others to trust.
	CAFile string `yaml:"ca_file"`
	// Ops is where /healthz, /readyz and /metrics are served: HOST:PORT or unix:PATH.
	Ops    string       `yaml:"ops"`
	Quotas QuotasConfig `yaml:"quotas"`
}

// QuotasConfig keeps one user or organisation from taking what all share. 0 is the default.
type QuotasConfig struct {
	// Boxes that an organisation may have; default 1000.
	Boxes int `yaml:"boxes"`
	// Imports of images that an organisation may have under way; default 5.
	Imports int `yaml:"imports"`
	// UserWatchers are streams of changes that one user may have open at one replica of control; default 32.
	UserWatchers int `yaml:"user_watchers"`
	// Watchers are streams of changes that one replica of control serves; default 1000.
	Watchers int `yaml:"watchers"`
}

// ReconcileConfig is read by `carreld reconcile`.
type ReconcileConfig struct {
	Database DatabaseConfig `yaml:"database"`
	// Name of this replica, unlike any other's. A replica that comes back under its name goes on at once with the shards that it
	// had; empty: a name is made up, and the shards of one that was killed rest for ten seconds.
	Name string `yaml:"name"`
	Ops  string `yaml:"ops"`
}

// JoinConfig says how a node or a gateway finds control and proves itself the first time.
type JoinConfig struct {
	// URL of control, such as https://127.0.0.1:7071.
	URL string `yaml:"url"`
	// CAFile has control's certificate authority in PEM; it is checked at the first connection.
	CAFile    string `yaml:"ca_file"`
	TokenFile string `yaml:"token_file"`
}

// GatewayConfig is read by `carreld gateway`.
type GatewayConfig struct {
	// HTTP is the address of the front door.
	HTTP string `yaml:"http"`
	// SSH is the address where users log in to boxes with SSH clients; "off": they cannot.
	SSH string `yaml:"ssh"`
	// PublicURL is the front door's origin as browsers know it, such as https://carrel.example.org; empty: whatever they came by.
	PublicURL string `yaml:"public_url"`
	// PortDomain is the domain under which ports of boxes are found, as {port}-{box}.PORT_DOMAIN; default localhost, which needs no DNS.
	PortDomain string     `yaml:"port_domain"`
	Name       string     `yaml:"name"`
	Control    JoinConfig `yaml:"control"`
	// Dir keeps the certificate and the routes; default DATA/gateway.
	Dir string `yaml:"dir"`
	Ops string `yaml:"ops"`
}

// NodeConfig is read by `carreld node`.
type NodeConfig struct {
	Name    string     `yaml:"name"`
	Region  string     `yaml:"region"`
	Control JoinConfig `yaml:"control"`
	// Dir keeps ledger, homes, snapshots and images; default DATA/node.
	Dir string `yaml:"dir"`
	// RunDir has the paths that a memory snapshot remembers; default /run/carrel. It must be the same
	// whenever a snapshot made here is resumed.
	RunDir string `yaml:"run_dir"`
	// ImageDir, if set, is where images are built and kept from one installation to the next; the node's pool gets a
	// copy of what it uses. Several nodes of one machine may share one. Empty: only the pool has them.
	ImageDir string `yaml:"image_dir"`
	// PoolSize is reserved for homes and snapshots when Dir cannot clone files by itself, such as 64GiB;
	// default: half of what is free.
	PoolSize string `yaml:"pool_size"`
	// NetRange is where boxes get their link addresses from; default 100.64.0.0/16.
	NetRange string `yaml:"net_range"`
	// Agent and Runsc are binaries; default: beside carreld.
	Agent string `yaml:"agent"`
	Runsc string `yaml:"runsc"`
	// ProxyAddress is where gateways reach this node's proxy.
	ProxyAddress string `yaml:"proxy_address"`
	Ops          string `yaml:"ops"`
}

// ProxyConfig is read by `carreld proxy`.
type ProxyConfig struct {
	// Listen is the data-plane address (mutual TLS).
	Listen string `yaml:"listen"`
	// Socket is the Unix socket on which the node gives routes.
	Socket string `yaml:"socket"`
	// Dir keeps routes and the certificate; default DATA/proxy.
	Dir string `yaml:"dir"`
	Ops string `yaml:"ops"`
}

// UpConfig is read by `carreld up`.
type UpConfig struct {
	// Images are the shipped images to build and offer as templates at the first start; default: all.
	Images []string `yaml:"images"`
	// PostgresBin is the directory with initdb and postgres; default: Debian's newest.
	PostgresBin string `yaml:"postgres_bin"`
}

// settings are what flags and environment variables can set, by flag name. The variable of `data` is
// CARREL_DATA, and so on.
var settings = []struct {
	name, help string
	set        func(*Config, string)
}{
	{"data", "directory for everything that is kept", func(c *Config, v string) { c.Data = v }},
	{"http", "address of the front door", func(c *Config, v string) { c.Gateway.HTTP = v }},
	{"ssh", "address of the SSH gateway, or off", func(c *Config, v string) { c.Gateway.SSH = v }},
	{"public-url", "origin of the front door as browsers know it, such as https://carrel.example.org", func(c *Config, v string) { c.Gateway.PublicURL = v }},
	{"port-domain", "domain under which ports of boxes are found", func(c *Config, v string) { c.Gateway.PortDomain = v }},
	{"control-listen", "TLS address of control for nodes and gateways", func(c *Config, v string) { c.Control.Listen = v }},
	{"proxy-listen", "data-plane address of the node's proxy", func(c *Config, v string) { c.Proxy.Listen = v }},
	{"run-dir", "directory with the paths that memory snapshots remember", func(c *Config, v string) { c.Node.RunDir = v }},
	{"image-dir", "directory that keeps images", func(c *Config, v string) { c.Node.ImageDir = v }},
	{"pool-size", "space to reserve for homes and snapshots, such as 64GiB", func(c *Config, v string) { c.Node.PoolSize = v }},
	{"net-range", "addresses for the links of boxes", func(c *Config, v string) { c.Node.NetRange = v }},
	{"images", "shipped images to build at the first start, separated by commas", func(c *Config, v string) { c.Up.Images = strings.Split(v, ",") }},
	{"log-level", "debug, info, warn or error", func(c *Config, v string) { c.Log.Level = v }},
	{"log-format", "text or json", func(c *Config, v string) { c.Log.Format = v }},
}

// otherVariables are what the rest of Carrel reads: clients, failpoints, and the tests and benchmarks, which start servers. Whatever else
// is named as Carrel's variables are is a mistake of whoever set it.
var otherVariables = append([]string{
	failpoint.Variable,
	"CARREL_AGENT", "CARREL_RUNSC", "CARREL_RUNSC_NEXT", "CARREL_BIN", // binaries to test
	"CARREL_BENCH", "CARREL_ROUNDS", "CARREL_PATIENCE", "CARREL_CRASH_EVERY_VERB", "CARREL_TEST_VERBOSE", "CARREL_TEST_SEED",
}, client.Variables...)

// knownVariables are all that anything of Carrel reads.
func knownVariables() []string {
	known := slices.Clone(otherVariables)
	for _, s := range settings {
		known = append(known, variableOf(s.name))
	}
	return known
}

// variableOf is the environment variable of a setting.
func variableOf(setting string) string {
	return "CARREL_" + strings.ToUpper(strings.ReplaceAll(setting, "-", "_"))
}

// loadConfig reads the file (if path is not empty), then the environment, then flags: the last one
// that speaks wins. What nobody sets gets its default, and the whole is checked.
func loadConfig(path string, environ func(string) string, flags map[string]string) (*Config, error) {
	c := &Config{}
	if path != "" {
		data, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, carrel.Errorf(carrel.CodeInvalid, "no_config", "the configuration file %s does not exist", path)
		} else if err != nil {
			return nil, carrel.Errorf(carrel.CodeInvalid, "no_config", "the configuration file can't be read: %v", err)
		}
		if len(bytes.TrimSpace(data)) > 0 {
			decoder := yaml.NewDecoder(bytes.NewReader(data), yaml.Strict())
			if err := decoder.Decode(c); err != nil {
				return nil, carrel.Errorf(carrel.CodeInvalid, "bad_config", "%s: %s", path, yaml.FormatError(err, false, true))
			}
			if err := decoder.Decode(&Config{}); !errors.Is(err, io.EOF) {
				return nil, carrel.Errorf(carrel.CodeInvalid, "bad_config", "%s has a second document; there is one configuration in a file", path)
			}
		}
	}
	for _, s := range settings {
		if v := environ(variableOf(s.name)); v != "" {
			s.set(c, v)
		}
		if v, ok := flags[s.name]; ok {
			s.set(c, v)
		}
	}
	c.fillDefaults()
	return c, c.Validate()
}

func or(value *string, fallback string) {
	if *value == "" {
		*value = fallback
	}
}

func (c *Config) fillDefaults() {
	or(&c.Data, "/var/lib/carrel")
	in := func(parts ...string) string { return filepath.Join(append([]string{c.Data}, parts...)...) }
	ops := func(role string) string { return "unix:" + in("ops", role, "ops.sock") }

	or(&c.Control.Listen, "127.0.0.1:7071")
	or(&c.Control.Database.ControlURLFile, in("secrets", "control", "database"))
	or(&c.Control.Database.SystemURLFile, in("secrets", "control", "database-system"))
	or(&c.Control.Database.OwnerURLFile, in("secrets", "database-owner"))
	or(&c.Control.KeyFile, in("secrets", "control", "key"))
	or(&c.Control.Ops, ops("control"))
	or(&c.Reconcile.Database.SystemURLFile, in("secrets", "control", "database-system"))
	or(&c.Reconcile.Ops, ops("reconcile"))

	or(&c.Gateway.HTTP, "127.0.0.1:7070")
	or(&c.Gateway.SSH, "127.0.0.1:7022")
	or(&c.Control.SSHAddress, publicSSH(c.Gateway.SSH))
	or(&c.Gateway.PortDomain, "localhost")
	or(&c.Gateway.Name, "gateway")
	or(&c.Gateway.Control.URL, "https://"+c.Control.Listen)
	or(&c.Gateway.Dir, in("gateway"))
	or(&c.Gateway.Ops, ops("gateway"))

	or(&c.Proxy.Listen, "127.0.0.1:7072")
	or(&c.Proxy.Dir, in("proxy"))
	or(&c.Proxy.Socket, in("proxy", "proxy.sock"))
	or(&c.Proxy.Ops, ops("proxy"))

	if c.Node.Name == "" {
		host, _ := os.Hostname()
		c.Node.Name = nodeName(host)
	}
	or(&c.Node.Region, "local")
	or(&c.Node.Control.URL, "https://"+c.Control.Listen)
	or(&c.Node.Dir, in("node"))
	or(&c.Node.RunDir, "/run/carrel")
	or(&c.Node.NetRange, "100.64.0.0/16")
	or(&c.Node.Agent, besideExecutable("carrel-agent"))
	or(&c.Node.Runsc, besideExecutable("runsc"))
	or(&c.Node.ProxyAddress, c.Proxy.Listen)
	or(&c.Node.Ops, ops("node"))
}

var portDomain = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*$`)

// sshOff in place of an address: there is no SSH gateway.
const sshOff = "off"

// publicSSH is where users reach an SSH gateway that listens there, as far as can be known: at the host where the front door
// is, unless it listens on one address that others can reach.
func publicSSH(listen string) string {
	host, port, err := net.SplitHostPort(listen)
	if err != nil {
		return ":7022"
	}
	if ip, err := netip.ParseAddr(host); host == "localhost" || err == nil && (ip.IsLoopback() || ip.IsUnspecified()) {
		host = ""
	}
	return net.JoinHostPort(host, port)
}

// nodeName makes a valid name of a host's.
func nodeName(host string) string {
	host, _, _ = strings.Cut(strings.ToLower(host), ".")
	host = strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '-' {
			return r
		}
		return '-'
	}, host)
	if carrel.ValidateName("node", host) != nil {
		return "node"
	}
	return host
}

func besideExecutable(name string) string {
	exe, err := os.Executable()
	if err != nil {
		return name
	}
	return filepath.Join(filepath.Dir(exe), name)
}

// Validate checks every value that can be wrong by itself.
func (c *Config) Validate() error {
	if err := c.Log.Validate(); err != nil {
		return err
	}
	for _, path := range []struct{ name, value string }{{"data", c.Data}, {"node.dir", c.Node.Dir}, {"node.run_dir", c.Node.RunDir}} {
		if !filepath.IsAbs(path.value) {
			return carrel.Errorf(carrel.CodeInvalid, "bad_config", "%s is %q; it must be an absolute path", path.name, path.value)
		}
	}
	for _, address := range []struct{ name, value string }{
		{"gateway.http", c.Gateway.HTTP}, {"gateway.ssh", c.Gateway.SSH}, {"control.ssh_address", c.Control.SSHAddress}, {"control.listen", c.Control.Listen}, {"proxy.listen", c.Proxy.Listen},
		{"node.proxy_address", c.Node.ProxyAddress},
		{"control.ops", c.Control.Ops}, {"reconcile.ops", c.Reconcile.Ops}, {"gateway.ops", c.Gateway.Ops}, {"node.ops", c.Node.Ops}, {"proxy.ops", c.Proxy.Ops},
	} {
		if strings.HasPrefix(address.value, "unix:/") && strings.HasSuffix(address.name, ".ops") || address.name == "gateway.ssh" && address.value == sshOff {
			continue
		}
		_, port, err := net.SplitHostPort(address.value)
		n, convErr := strconv.Atoi(port)
		if err != nil || convErr != nil || n < 0 || n > 65535 {
			return carrel.Errorf(carrel.CodeInvalid, "bad_config", "%s is %q; it must be HOST:PORT, such as 127.0.0.1:7070", address.name, address.value)
		}
	}
	if !portDomain.MatchString(c.Gateway.PortDomain) {
		return carrel.Errorf(carrel.CodeInvalid, "bad_config", "gateway.port_domain is %q; it must be a domain in lower case, such as ports.example.org", c.Gateway.PortDomain)
	}
	for _, quota := range []struct {
		name  string
		value int
	}{
		{"boxes", c.Control.Quotas.Boxes}, {"imports", c.Control.Quotas.Imports},
		{"user_watchers", c.Control.Quotas.UserWatchers}, {"watchers", c.Control.Quotas.Watchers},
	} {
		if quota.value < 0 {
			return carrel.Errorf(carrel.CodeInvalid, "bad_config", "control.quotas.%s is %d; it must be 1 or more, or left out for the default", quota.name, quota.value)
		}
	}
	if prefix, err := netip.ParsePrefix(c.Node.NetRange); err != nil || !prefix.Addr().Is4() || prefix.Bits() > 28 {
		return carrel.Errorf(carrel.CodeInvalid, "bad_config", "node.net_range is %q; it must be an IPv4 range of /28 or larger, such as 100.64.0.0/16", c.Node.NetRange)
	}
	if c.Node.PoolSize != "" {
		if _, err := parseSize(c.Node.PoolSize); err != nil {
			return carrel.Errorf(carrel.CodeInvalid, "bad_config", "node.pool_size is %q; use a number with KiB, MiB or GiB, such as 64GiB", c.Node.PoolSize)
		}
	}
	if err := carrel.ValidateName("node", c.Node.Name); err != nil {
		return err
	}
	return nil
}

// parseSize reads a size such as 64GiB, in bytes.
func parseSize(text string) (int64, error) {
	for _, unit := range []struct {
		suffix string
		bytes  int64
	}{{"KiB", carrel.KiB}, {"MiB", carrel.MiB}, {"GiB", carrel.GiB}} {
		if number, ok := strings.CutSuffix(text, unit.suffix); ok {
			n, err := strconv.ParseInt(strings.TrimSpace(number), 10, 32)
			if err != nil || n <= 0 {
				return 0, fmt.Errorf("%q is no size", text)
			}
			return n * unit.bytes, nil
		}
	}
	return 0, fmt.Errorf("%q is no size", text)
}
