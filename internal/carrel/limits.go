package carrel

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// Sizes, in bytes.
const (
	KiB int64 = 1 << 10
	MiB int64 = 1 << 20
	GiB int64 = 1 << 30
)

// Resources are the limits of a box. In a request a zero means: take the template's value.
type Resources struct {
	CPUMillis   int64 `json:"cpu_millis"`   // thousandths of a core
	MemoryBytes int64 `json:"memory_bytes"` // of the processes in the box, tmp and shm included
	HomeBytes   int64 `json:"home_bytes"`   // size of the home file system
	RootBytes   int64 `json:"root_bytes"`   // writes over the image
	Processes   int64 `json:"processes"`    // processes and threads
	TmpBytes    int64 `json:"tmp_bytes"`    // size of /tmp
	ShmBytes    int64 `json:"shm_bytes"`    // size of /dev/shm
}

// The range of each resource. The minima are what the agent and a shell need in gVisor.
var (
	MinResources = Resources{CPUMillis: 100, MemoryBytes: 128 * MiB, HomeBytes: 32 * MiB, RootBytes: 32 * MiB, Processes: 16, TmpBytes: MiB, ShmBytes: MiB}
	MaxResources = Resources{CPUMillis: 128_000, MemoryBytes: 1024 * GiB, HomeBytes: 16384 * GiB, RootBytes: 1024 * GiB, Processes: 100_000, TmpBytes: 512 * GiB, ShmBytes: 512 * GiB}
	// DefaultResources fill what neither request nor template says.
	DefaultResources = Resources{CPUMillis: 2000, MemoryBytes: 2 * GiB, HomeBytes: 4 * GiB, RootBytes: 2 * GiB, Processes: 4096, TmpBytes: 512 * MiB, ShmBytes: 64 * MiB}
)

type resourceField struct {
	name string
	get  func(*Resources) *int64
}

var resourceFields = []resourceField{
	{"cpu_millis", func(r *Resources) *int64 { return &r.CPUMillis }},
	{"memory_bytes", func(r *Resources) *int64 { return &r.MemoryBytes }},
	{"home_bytes", func(r *Resources) *int64 { return &r.HomeBytes }},
	{"root_bytes", func(r *Resources) *int64 { return &r.RootBytes }},
	{"processes", func(r *Resources) *int64 { return &r.Processes }},
	{"tmp_bytes", func(r *Resources) *int64 { return &r.TmpBytes }},
	{"shm_bytes", func(r *Resources) *int64 { return &r.ShmBytes }},
}

// say writes a value for people: bytes also in the largest unit of which they are a whole number.
func (f resourceField) say(v int64) string {
	if !strings.HasSuffix(f.name, "_bytes") || v < KiB {
		return strconv.FormatInt(v, 10)
	}
	units := []string{"KiB", "MiB", "GiB", "TiB"}
	n, unit := v, -1
	for unit < len(units)-1 && n%KiB == 0 {
		n /= KiB
		unit++
	}
	if unit < 0 {
		return strconv.FormatInt(v, 10)
	}
	return fmt.Sprintf("%d (%d %s)", v, n, units[unit])
}

// Or returns r with zeros replaced from base.
func (r Resources) Or(base Resources) Resources {
	for _, f := range resourceFields {
		if p := f.get(&r); *p == 0 {
			*p = *f.get(&base)
		}
	}
	return r
}

// Validate checks a complete set of resources against the range of each.
func (r Resources) Validate() error {
	for _, f := range resourceFields {
		v, low, high := *f.get(&r), *f.get(&MinResources), *f.get(&MaxResources)
		if v < low || v > high {
			return Errorf(CodeInvalid, "resource_out_of_range", "%s is %s; it must be from %s to %s", f.name, f.say(v), f.say(low), f.say(high))
		}
	}
	if r.TmpBytes+r.ShmBytes > r.MemoryBytes {
		return Errorf(CodeInvalid, "resource_out_of_range", "tmp_bytes and shm_bytes are together %d, more than memory_bytes %d of which they are a part", r.TmpBytes+r.ShmBytes, r.MemoryBytes)
	}
	return nil
}

// DiskBytes is what must be reserved on a node for a box with these limits, in bytes: home, root and
// memory as they may lie in a snapshot.
func (r Resources) DiskBytes() int64 { return r.HomeBytes + r.RootBytes + r.MemoryBytes }

const (
	MaxLabels      = 64
	MaxEnv         = 256
	MaxEnvBytes    = 64 << 10
	MaxPageSize    = 1000
	DefaultPage    = 100
	MaxWait        = 10 * time.Minute
	DefaultWait    = time.Minute
	TicketLifetime = 10 * time.Minute
)

var (
	namePattern   = regexp.MustCompile(`^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$`)
	labelPattern  = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._/-]{0,61}[A-Za-z0-9])?$`)
	envKeyPattern = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]{0,127}$`)
)

// ValidateName checks the name of a box, template, image, organisation or user: 1 to 40 lower case
// letters, digits and hyphens, beginning with a letter, not ending with a hyphen, not looking like an id.
func ValidateName(kind, name string) error {
	if !namePattern.MatchString(name) || IDKind(name) != 0 {
		article := "a"
		if kind != "" && strings.ContainsRune("aeio", rune(kind[0])) { // a user
			article = "an"
		}
		return Errorf(CodeInvalid, "bad_name", "%q is no name for %s %s: use 1 to 40 lower case letters, digits and hyphens, beginning with a letter, and not exactly 20 letters and digits (that is how ids look)", name, article, kind)
	}
	return nil
}

// ValidateLabels checks labels: at most MaxLabels, keys of 1 to 63 characters, values up to 255.
func ValidateLabels(labels map[string]string) error {
	if len(labels) > MaxLabels {
		return Errorf(CodeInvalid, "too_many_labels", "%d labels; at most %d are kept", len(labels), MaxLabels)
	}
	for k, v := range labels {
		if !labelPattern.MatchString(k) || len(v) > 255 || strings.ContainsRune(v, 0) {
			return Errorf(CodeInvalid, "bad_label", "the label %q is not usable: keys are 1 to 63 letters, digits and . _ / -, values up to 255 bytes", k)
		}
	}
	return nil
}

// ValidateEnv checks environment variables: at most MaxEnv, MaxEnvBytes together.
func ValidateEnv(env map[string]string) error {
	if len(env) > MaxEnv {
		return Errorf(CodeInvalid, "too_many_variables", "%d environment variables; at most %d are kept", len(env), MaxEnv)
	}
	total := 0
	for k, v := range env {
		total += len(k) + len(v) + 2
		if !envKeyPattern.MatchString(k) || strings.ContainsRune(v, 0) {
			return Errorf(CodeInvalid, "bad_variable", "the environment variable %q is not usable: names are letters, digits and _, and values have no zero byte", k)
		}
	}
	if total > MaxEnvBytes {
		return Errorf(CodeInvalid, "environment_too_large", "the environment is %d bytes; at most %d fit", total, MaxEnvBytes)
	}
	return nil
}
