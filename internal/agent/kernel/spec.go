package kernel

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"carrel.dev/carrel/internal/carrel"
)

const (
	maxSpecFile = 256 << 10 // bytes
	maxSpecs    = 256
	// preferred is the default where there is one of this name, as everywhere in Jupyter.
	preferred = "python3"
)

// Spec is a kernelspec.
type Spec struct {
	Name string // in small letters, as Jupyter has it
	// Dir has the spec's file and its other resources, such as logos.
	Dir string
	// Raw is the spec's file as it is.
	Raw json.RawMessage

	Argv          []string          `json:"argv"`
	DisplayName   string            `json:"display_name"`
	Language      string            `json:"language"`
	InterruptMode string            `json:"interrupt_mode"`
	Env           map[string]string `json:"env"`
}

var specName = regexp.MustCompile(`^[a-zA-Z0-9._\-]{1,128}$`)

// Specs reads the kernelspecs of the box: of JUPYTER_PATH, the user's home, /usr/local and /usr, in this order; the first of a name counts. It
// reads with the user's rights. What is no kernelspec is passed over. byDefault is empty when there is none at all.
func (m *Manager) Specs() (specs []Spec, byDefault string, err error) {
	env := m.config.Env()
	var dirs []string
	for dir := range strings.SplitSeq(env["JUPYTER_PATH"], ":") {
		if filepath.IsAbs(dir) {
			dirs = append(dirs, dir)
		}
	}
	own := env["JUPYTER_DATA_DIR"]
	if !filepath.IsAbs(own) {
		own = filepath.Join(m.config.Home, ".local/share/jupyter")
	}
	dirs = append(dirs, own, "/usr/local/share/jupyter", "/usr/share/jupyter")
	err = m.config.AsUser(func() error {
		for _, dir := range dirs {
			specs = readSpecs(specs, filepath.Join(dir, "kernels"))
		}
		return nil
	})
	if err != nil {
		return nil, "", fmt.Errorf("look for kernelspecs: %w", err)
	}
	slices.SortFunc(specs, func(a, b Spec) int { return strings.Compare(a.Name, b.Name) })
	if len(specs) > 0 {
		byDefault = specs[0].Name
	}
	for _, spec := range specs {
		if spec.Name == preferred {
			byDefault = spec.Name
		}
	}
	return specs, byDefault, nil
}

// spec finds one by name; an empty name is the default.
func (m *Manager) spec(name string) (Spec, error) {
	specs, byDefault, err := m.Specs()
	if err != nil {
		return Spec{}, err
	}
	if len(specs) == 0 {
		return Spec{}, carrel.Errorf(carrel.CodePrecondition, "no_kernels", "the box has no kernel: install one in it (for Python: pip install ipykernel, then python -m ipykernel install --user), or use a template that has one, such as python")
	}
	wanted := strings.ToLower(name)
	if wanted == "" {
		wanted = byDefault
	}
	var names []string
	for _, spec := range specs {
		if spec.Name == wanted {
			return spec, nil
		}
		names = append(names, spec.Name)
	}
	e := carrel.Errorf(carrel.CodeNotFound, "kernelspec_not_found", "the box has no kernel %q; it has %s", name, strings.Join(names, ", "))
	e.Metadata = map[string]string{"kernelspec": name}
	return Spec{}, e
}

func readSpecs(specs []Spec, dir string) []Spec {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return specs
	}
	for _, entry := range entries {
		name := strings.ToLower(entry.Name())
		if len(specs) >= maxSpecs || !specName.MatchString(name) || slices.ContainsFunc(specs, func(s Spec) bool { return s.Name == name }) {
			continue
		}
		place := filepath.Join(dir, entry.Name())
		data, err := readFile(filepath.Join(place, "kernel.json"), maxSpecFile)
		if err != nil {
			continue
		}
		spec, err := parseSpec(data)
		if err != nil {
			continue
		}
		spec.Name, spec.Dir = name, place
		specs = append(specs, spec)
	}
	return specs
}

// parseSpec reads a spec's file.
func parseSpec(data []byte) (Spec, error) {
	var spec Spec
	if err := json.Unmarshal(data, &spec); err != nil {
		return Spec{}, fmt.Errorf("read a kernelspec: %w", err)
	}
	if len(spec.Argv) == 0 || spec.Argv[0] == "" {
		return Spec{}, errors.New("read a kernelspec: it has no argv")
	}
	spec.Name, spec.Dir, spec.Raw = "", "", data
	return spec, nil
}

// readFile reads a regular file of at most limit bytes; others are errors, and nothing makes it wait.
func readFile(path string, limit int64) ([]byte, error) {
	file, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fs.ErrInvalid
	}
	data, err := io.ReadAll(io.LimitReader(file, limit+1))
	if err == nil && int64(len(data)) > limit {
		return nil, fmt.Errorf("%s is larger than %d bytes", path, limit)
	}
	return data, err
}

// command gives the program and environment of a kernel.
func (s Spec) command(connectionFile string, base map[string]string, extra map[string]string) (argv []string, env map[string]string) {
	replace := strings.NewReplacer("{connection_file}", connectionFile, "{resource_dir}", s.Dir)
	for _, arg := range s.Argv {
		argv = append(argv, replace.Replace(arg))
	}
	env = map[string]string{}
	for name, value := range s.Env {
		env[name] = os.Expand(value, func(variable string) string { return base[variable] })
	}
	for name, value := range extra {
		env[name] = value
	}
	return argv, env
}

// isPython reports whether the kernel is IPython's.
func (s Spec) isPython() bool {
	return slices.ContainsFunc(s.Argv, func(arg string) bool { return strings.HasPrefix(arg, "ipykernel") })
}

// overFiles reports whether the kernel is connected to by sockets in files, which no other user can reach and which take no ports. Kernels of
// other languages may have a ZeroMQ without them.
func (s Spec) overFiles() bool { return s.isPython() }
