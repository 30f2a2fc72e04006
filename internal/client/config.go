package client

import (
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"github.com/goccy/go-yaml"

	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/wholefile"
)

// Names of the environment variables that take the place of what the contexts file says. Flags take
// the place of both.
const (
	EnvURL     = "CARREL_URL"
	EnvToken   = "CARREL_TOKEN"
	EnvContext = "CARREL_CONTEXT"
	EnvOrg     = "CARREL_ORG"
	EnvConfig  = "CARREL_CONFIG" // path of the contexts file
)

// maxContextsFile bounds what is read as a contexts file, in bytes.
const maxContextsFile = 1 << 20

// Context says where a Carrel is and as whom to speak to it.
type Context struct {
	// URL of the gateway, http or https, without a path.
	URL string `yaml:"url"`
	// Token is an API token.
	Token string `yaml:"token,omitempty"`
	// Org is the organisation to work in, id or name; empty: the server's choice for the user.
	Org string `yaml:"org,omitempty"`
	// CAFile is a PEM file with the authorities to trust; empty: those of the machine.
	CAFile string `yaml:"ca_file,omitempty"`
}

// Contexts is the content of the contexts file.
type Contexts struct {
	// Current is the name of the context that is used when none is named.
	Current  string             `yaml:"current,omitempty"`
	Contexts map[string]Context `yaml:"contexts"`
}

// ContextsPath is where the contexts file of this user is: CARREL_CONFIG, or carrel/config.yaml in
// the user's configuration directory (~/.config on Linux). getenv is os.Getenv outside tests.
func ContextsPath(getenv func(string) string) (string, error) {
	if path := getenv(EnvConfig); path != "" {
		return path, nil
	}
	dir, err := os.UserConfigDir()
	if err != nil {
		return "", carrel.Errorf(carrel.CodePrecondition, "no_config_dir", "the directory for your settings is not known (%v): set HOME, or %s to the path of the contexts file", err, EnvConfig)
	}
	return filepath.Join(dir, "carrel", "config.yaml"), nil
}

// LoadContexts reads a contexts file strictly: unknown fields are errors. A file that is not there is
// an empty one.
func LoadContexts(path string) (*Contexts, error) {
	file := &Contexts{Contexts: map[string]Context{}}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return file, nil
	}
	if err != nil {
		return nil, badContexts(path, err)
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || info.Size() > maxContextsFile {
		return nil, badContexts(path, fmt.Errorf("it is larger than %d bytes or cannot be read", maxContextsFile))
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, badContexts(path, err)
	}
	if err := yaml.UnmarshalWithOptions(data, file, yaml.Strict()); err != nil {
		return nil, badContexts(path, errors.New(strings.TrimSpace(yaml.FormatError(err, false, false))))
	}
	if file.Contexts == nil {
		file.Contexts = map[string]Context{}
	}
	for name, c := range file.Contexts {
		if err := ValidateContextName(name); err != nil {
			return nil, badContexts(path, err)
		}
		if _, err := ParseURL(c.URL); err != nil {
			return nil, badContexts(path, fmt.Errorf("context %q: %w", name, err))
		}
	}
	return file, nil
}

func badContexts(path string, err error) error {
	message := err.Error()
	var e *carrel.Error
	if errors.As(err, &e) {
		message = e.Message
	}
	return &carrel.Error{Code: carrel.CodeInvalid, Reason: "bad_contexts_file", Cause: err,
		Message: fmt.Sprintf("the contexts file %s is not usable: %s. Correct it, or remove it and run `carrel login`.", path, message)}
}

// ValidateContextName checks the name of a context: as for a box, with dots allowed.
func ValidateContextName(name string) error {
	if err := carrel.ValidateName("context", strings.ReplaceAll(name, ".", "-")); err != nil {
		return carrel.Errorf(carrel.CodeInvalid, "bad_name", "%q is no name for a context: use 1 to 40 lower case letters, digits, dots and hyphens, beginning with a letter", name)
	}
	return nil
}

// Save writes the file so that a kill at any moment leaves the old or the new one, readable by its
// owner alone (0600, its directory 0700 when it has to be made).
func (f *Contexts) Save(path string) error {
	data, err := yaml.Marshal(f)
	if err != nil {
		return fmt.Errorf("encode contexts: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return saveError(err)
	}
	if err := wholefile.Write(path, data, 0o600); err != nil {
		return saveError(err)
	}
	return nil
}

func saveError(err error) error {
	return &carrel.Error{Code: carrel.CodePrecondition, Reason: "contexts_not_saved", Cause: err,
		Message: fmt.Sprintf("the contexts file could not be saved: %v", err)}
}

// Names lists the contexts in order.
func (f *Contexts) Names() []string {
	names := make([]string, 0, len(f.Contexts))
	for name := range f.Contexts {
		names = append(names, name)
	}
	sort.Strings(names)
	return names
}

// Choice is what flags or the environment say; empty fields say nothing.
type Choice struct {
	Context, URL, Token, Org string
}

// ChoiceFromEnv reads the CARREL_ variables.
func ChoiceFromEnv(getenv func(string) string) Choice {
	return Choice{Context: getenv(EnvContext), URL: getenv(EnvURL), Token: getenv(EnvToken), Org: getenv(EnvOrg)}
}

// Resolve picks the context to use: the first choice that says something wins, field by field, then
// the file. It answers with the context's name too, empty when the URL was given by a choice.
// A token of the file is only ever used with the file's URL.
func (f *Contexts) Resolve(choices ...Choice) (Context, string, error) {
	var pick Choice
	for _, c := range choices {
		if pick.Context == "" && pick.URL == "" {
			pick.Context, pick.URL = c.Context, c.URL
		}
		if pick.Token == "" {
			pick.Token = c.Token
		}
		if pick.Org == "" {
			pick.Org = c.Org
		}
	}
	var result Context
	name := ""
	switch {
	case pick.URL != "":
		result.URL = pick.URL
	default:
		name = pick.Context
		if name == "" {
			name = f.Current
		}
		if name == "" {
			return Context{}, "", carrel.Errorf(carrel.CodePrecondition, "not_logged_in", "you are not signed in anywhere: run `carrel login URL`, or set %s and %s", EnvURL, EnvToken)
		}
		c, ok := f.Contexts[name]
		if !ok {
			return Context{}, "", carrel.Errorf(carrel.CodeNotFound, "context_not_found", "there is no context %q: `carrel context list` shows those that exist", name)
		}
		result = c
	}
	if pick.Token != "" {
		result.Token = pick.Token
	}
	if pick.Org != "" {
		result.Org = pick.Org
	}
	if _, err := ParseURL(result.URL); err != nil {
		return Context{}, "", err
	}
	return result, name, nil
}

// ParseURL checks the address of a gateway: http or https, a host, no path, user or query.
func ParseURL(s string) (*url.URL, error) {
	u, err := url.Parse(s)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || strings.Trim(u.Path, "/") != "" {
		return nil, carrel.Errorf(carrel.CodeInvalid, "bad_url", "%q is no address of a Carrel: write it like http://127.0.0.1:7070 or https://carrel.example", s)
	}
	u.Path = ""
	return u, nil
}
