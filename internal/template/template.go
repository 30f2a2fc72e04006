// Package template reads template files: the image, size and set-up of the boxes made from them. It must
// not look anything up; whether the image exists is the caller's question. Words: a size is a number of
// bytes as people write it, such as 512MiB; cpu is written in cores, such as 2, 0.5 or 500m.
package template

import (
	"errors"
	"fmt"
	"math/big"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"

	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/strictyaml"
	"github.com/goccy/go-yaml"
)

// Template is what a template file says. Version, organisation and the image's digest are given by whoever keeps it.
type Template struct {
	Name        string
	Description string
	// Image is a name, or "sha256:" and 64 hexadecimal digits.
	Image string
	// Resources are complete: what the file does not say has carrel.DefaultResources's value.
	Resources carrel.Resources
	Env       map[string]string
	// Sudo lets the user become root.
	Sudo bool
	// Startup has shell commands, run once at each cold start, as the user.
	Startup []string
	Labels  map[string]string
	// Idle is what the file says of boxes that nobody uses; what it does not say is zero.
	Idle carrel.IdlePolicy
	// Prebuild is what is prepared before boxes are made; nil: nothing.
	Prebuild *carrel.Prebuild
}

// file is the YAML schema.
type file struct {
	Name        string            `yaml:"name"`
	Description string            `yaml:"description"`
	Image       string            `yaml:"image"`
	Resources   resources         `yaml:"resources"`
	Env         map[string]string `yaml:"env"`
	Sudo        bool              `yaml:"sudo"`
	Startup     []string          `yaml:"startup"`
	Labels      map[string]string `yaml:"labels"`
	Idle        idle              `yaml:"idle"`
	Prebuild    *prebuild         `yaml:"prebuild"`
}

type resources struct {
	CPU       scalar `yaml:"cpu"`
	Memory    scalar `yaml:"memory"`
	Home      scalar `yaml:"home"`
	Root      scalar `yaml:"root"`
	Processes scalar `yaml:"processes"`
	Tmp       scalar `yaml:"tmp"`
	Shm       scalar `yaml:"shm"`
}

// scalar takes a number or text as it was written.
type scalar string

// UnmarshalYAML implements yaml.BytesUnmarshaler.
func (s *scalar) UnmarshalYAML(data []byte) error {
	var text string
	if err := yaml.Unmarshal(data, &text); err != nil {
		return fmt.Errorf("reading a value: %w", err)
	}
	*s = scalar(text)
	return nil
}

const (
	maxStartup      = 50
	maxStartupBytes = 16 << 10
)

var digestPattern = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)

// Parse reads a template strictly. Errors are *carrel.Error with CodeInvalid, the reason bad_template and the line and
// field in their metadata.
func Parse(data []byte) (*Template, error) {
	var f file
	doc, err := strictyaml.Decode("template", data, &f)
	if err != nil {
		return nil, err
	}
	t := &Template{Name: f.Name, Description: f.Description, Image: f.Image, Env: f.Env, Sudo: f.Sudo, Startup: f.Startup, Labels: f.Labels}
	switch {
	case f.Name == "":
		return nil, doc.Errorf("name", "is missing")
	case carrel.ValidateName("template", f.Name) != nil:
		return nil, doc.Errorf("name", "%q is no name for a template: use 1 to 40 lower case letters, digits and hyphens, beginning with a letter", f.Name)
	case len(f.Description) > 1000:
		return nil, doc.Errorf("description", "is %d bytes; at most 1000 are kept", len(f.Description))
	case f.Image == "":
		return nil, doc.Errorf("image", "is missing")
	case !digestPattern.MatchString(f.Image) && carrel.ValidateName("image", f.Image) != nil:
		return nil, doc.Errorf("image", "%q is neither the name of an image nor sha256: and 64 hexadecimal digits", f.Image)
	}
	if t.Resources, err = f.Resources.read(doc); err != nil {
		return nil, err
	}
	if t.Idle, err = f.Idle.read(doc); err != nil {
		return nil, err
	}
	if t.Prebuild, err = f.Prebuild.read(doc); err != nil {
		return nil, err
	}
	for _, check := range []struct {
		field string
		err   error
	}{{"env", carrel.ValidateEnv(f.Env)}, {"labels", carrel.ValidateLabels(f.Labels)}} {
		if check.err != nil {
			return nil, doc.Errorf(check.field, "cannot be used: %s", message(check.err))
		}
	}
	if len(f.Startup) > maxStartup {
		return nil, doc.Errorf("startup", "has %d commands; at most %d are run", len(f.Startup), maxStartup)
	}
	for i, command := range f.Startup {
		if strings.TrimSpace(command) == "" || len(command) > maxStartupBytes || !utf8.ValidString(command) {
			return nil, doc.Errorf(fmt.Sprintf("startup[%d]", i), "must be a shell command of at most %d bytes", maxStartupBytes)
		}
	}
	return t, nil
}

// message is the part of an error that is for people.
func message(err error) string {
	var e *carrel.Error
	if errors.As(err, &e) {
		return e.Message
	}
	return err.Error()
}

func (r *resources) read(doc *strictyaml.Document) (carrel.Resources, error) {
	var out carrel.Resources
	fields := []struct {
		name     string
		text     scalar
		to       *int64
		parse    func(string) (int64, error)
		min, max int64
		show     func(int64) string
	}{
		{"cpu", r.CPU, &out.CPUMillis, ParseCPU, carrel.MinResources.CPUMillis, carrel.MaxResources.CPUMillis, formatCPU},
		{"memory", r.Memory, &out.MemoryBytes, ParseSize, carrel.MinResources.MemoryBytes, carrel.MaxResources.MemoryBytes, FormatSize},
		{"home", r.Home, &out.HomeBytes, ParseSize, carrel.MinResources.HomeBytes, carrel.MaxResources.HomeBytes, FormatSize},
		{"root", r.Root, &out.RootBytes, ParseSize, carrel.MinResources.RootBytes, carrel.MaxResources.RootBytes, FormatSize},
		{"processes", r.Processes, &out.Processes, parseCount, carrel.MinResources.Processes, carrel.MaxResources.Processes, func(n int64) string { return fmt.Sprint(n) }},
		{"tmp", r.Tmp, &out.TmpBytes, ParseSize, carrel.MinResources.TmpBytes, carrel.MaxResources.TmpBytes, FormatSize},
		{"shm", r.Shm, &out.ShmBytes, ParseSize, carrel.MinResources.ShmBytes, carrel.MaxResources.ShmBytes, FormatSize},
	}
	for _, f := range fields {
		if f.text == "" {
			continue
		}
		field := "resources." + f.name
		n, err := f.parse(string(f.text))
		if err != nil {
			return out, doc.Errorf(field, "%s", message(err))
		}
		if n < f.min || n > f.max {
			return out, doc.Errorf(field, "is %s; it must be from %s to %s", f.text, f.show(f.min), f.show(f.max))
		}
		*f.to = n
	}
	out = out.Or(carrel.DefaultResources)
	// /tmp and /dev/shm are a part of memory: where the file does not say their size, they shrink with it.
	if r.Tmp == "" {
		out.TmpBytes = max(carrel.MinResources.TmpBytes, min(out.TmpBytes, out.MemoryBytes/4))
	}
	if r.Shm == "" {
		out.ShmBytes = max(carrel.MinResources.ShmBytes, min(out.ShmBytes, out.MemoryBytes/8))
	}
	if err := out.Validate(); err != nil {
		return out, doc.Errorf("resources", "do not fit together: %s", message(err))
	}
	return out, nil
}

var (
	sizePattern  = regexp.MustCompile(`^([0-9]{1,15}(?:\.[0-9]{1,6})?) ?([A-Za-z]*)$`)
	cpuPattern   = regexp.MustCompile(`^([0-9]{1,9}(?:\.[0-9]{1,3})?)(m?)$`)
	countPattern = regexp.MustCompile(`^[0-9]{1,9}$`)
	units        = map[string]int64{
		"": 1, "B": 1,
		"KiB": carrel.KiB, "MiB": carrel.MiB, "GiB": carrel.GiB, "TiB": 1024 * carrel.GiB,
		"kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12,
	}
)

// ParseSize reads a size such as 4GiB, 512MiB, 1.5GB or a plain number of bytes. The error is a *carrel.Error
// with the reason bad_size whose message completes a sentence that begins with what the size is of.
func ParseSize(text string) (int64, error) {
	bad := func(what string) (int64, error) {
		return 0, carrel.Errorf(carrel.CodeInvalid, "bad_size", "is %q, %s; write a size such as 4GiB or 512MiB", short(text), what)
	}
	m := sizePattern.FindStringSubmatch(strings.TrimSpace(text))
	if m == nil {
		return bad("which is no size")
	}
	unit, ok := units[m[2]]
	if !ok {
		return bad("whose unit is not known")
	}
	n, ok := new(big.Rat).SetString(m[1])
	if !ok {
		return bad("which is no size")
	}
	n.Mul(n, new(big.Rat).SetInt64(unit))
	whole := new(big.Int).Quo(n.Num(), n.Denom())
	if !whole.IsInt64() {
		return bad("which is too large")
	}
	return whole.Int64(), nil
}

// FormatSize writes a size in the largest unit in which it is a whole number.
func FormatSize(n int64) string {
	for _, unit := range []string{"TiB", "GiB", "MiB", "KiB"} {
		if n != 0 && n%units[unit] == 0 {
			return fmt.Sprintf("%d%s", n/units[unit], unit)
		}
	}
	return fmt.Sprint(n)
}

// ParseCPU reads a number of cores such as 2 or 0.5, or thousandths such as 500m, and returns thousandths. The
// error is a *carrel.Error with the reason bad_cpu.
func ParseCPU(text string) (int64, error) {
	m := cpuPattern.FindStringSubmatch(strings.TrimSpace(text))
	if m == nil || m[2] == "m" && strings.Contains(m[1], ".") {
		return 0, carrel.Errorf(carrel.CodeInvalid, "bad_cpu", "is %q, which is no number of cores; write cores such as 2 or 0.5, or thousandths such as 500m", short(text))
	}
	n, ok := new(big.Rat).SetString(m[1])
	if !ok {
		return 0, carrel.Errorf(carrel.CodeInvalid, "bad_cpu", "is %q, which is no number of cores", short(text))
	}
	if m[2] == "" {
		n.Mul(n, new(big.Rat).SetInt64(1000))
	}
	return new(big.Int).Quo(n.Num(), n.Denom()).Int64(), nil
}

func formatCPU(millis int64) string {
	if millis%1000 == 0 {
		return fmt.Sprint(millis / 1000)
	}
	return fmt.Sprintf("%dm", millis)
}

func parseCount(text string) (int64, error) {
	if !countPattern.MatchString(text) {
		return 0, carrel.Errorf(carrel.CodeInvalid, "bad_number", "is %q; write a whole number", short(text))
	}
	return strconv.ParseInt(text, 10, 64)
}

func short(s string) string {
	if len(s) > 40 {
		return s[:40] + "…"
	}
	return s
}
