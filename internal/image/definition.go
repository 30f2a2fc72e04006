package image

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/url"
	"path"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/strictyaml"
)

// Definition is what an image built from Debian packages contains.
type Definition struct {
	Name        string `yaml:"name" json:"-"`
	Description string `yaml:"description" json:"-"`
	// Suite is Debian's release, such as bookworm.
	Suite string `yaml:"suite" json:"suite"`
	// Mirror is the http or https URL of a Debian archive. Empty: the Debian sources of the machine that builds.
	Mirror string `yaml:"mirror" json:"mirror,omitempty"`
	// Variant is the set of packages to begin from: essential, apt, minbase, important or standard.
	Variant  string   `yaml:"variant" json:"variant"`
	Packages []string `yaml:"packages" json:"packages,omitempty"`
	// Exclude has paths that are left out of the image, with everything below, as patterns in which * stands
	// for anything, / included.
	Exclude []string `yaml:"exclude" json:"exclude,omitempty"`
	Files   []File   `yaml:"files" json:"files,omitempty"`
	Users   []User   `yaml:"users" json:"users,omitempty"`
	// Environment of every process in a box, unless template or box say otherwise.
	Environment map[string]string `yaml:"environment" json:"environment,omitempty"`
	// Run has shell commands, run as root in the new system after files and users are there, without network.
	Run []string `yaml:"run" json:"run,omitempty"`
}

// File is written into the image after the packages are installed.
type File struct {
	Path string `yaml:"path" json:"path"`
	// Mode is octal, such as "0644", the default.
	Mode    string `yaml:"mode" json:"mode"`
	Content string `yaml:"content" json:"content"`
}

// User is added to the image; its group has the same name and number.
type User struct {
	Name string `yaml:"name" json:"name"`
	// UID is from 1000 to 59999.
	UID int64 `yaml:"uid" json:"uid"`
	// Home is /home/NAME if empty.
	Home string `yaml:"home" json:"home"`
	// Shell is /bin/bash if empty.
	Shell  string   `yaml:"shell" json:"shell"`
	Groups []string `yaml:"groups" json:"groups,omitempty"`
	// Sudo lets the user become root without a password; the package sudo must be in the list.
	Sudo bool `yaml:"sudo" json:"sudo,omitempty"`
}

const (
	maxPackages = 2000
	maxExcludes = 200
	maxFiles    = 200
	maxUsers    = 50
	maxCommands = 100
	// maxCommandBytes bounds one command and one file's content: they are arguments of programs.
	maxCommandBytes = 64 << 10
	// keyVersion changes when the same definition gives another image because this package changed.
	keyVersion = "carrel image 3"
)

var (
	variants       = []string{"essential", "apt", "minbase", "important", "standard"}
	suitePattern   = regexp.MustCompile(`^[a-z][a-z0-9-]{1,39}$`)
	packagePattern = regexp.MustCompile(`^[a-z0-9][a-z0-9+.-]{1,99}(:[a-z0-9-]+)?(=[A-Za-z0-9.+:~-]+)?$`)
	excludePattern = regexp.MustCompile(`^/[A-Za-z0-9._+@*?/-]{1,200}$`)
	modePattern    = regexp.MustCompile(`^0?[0-7]{3,4}$`)
	userPattern    = regexp.MustCompile(`^[a-z_][a-z0-9_-]{0,31}$`)
	envPattern     = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]{0,127}$`)
)

// ParseDefinition reads a definition strictly and fills in the defaults. Errors are *carrel.Error with
// CodeInvalid, the reason bad_image_definition and the line and field in their metadata.
func ParseDefinition(data []byte) (*Definition, error) {
	d := &Definition{}
	doc, err := strictyaml.Decode("image definition", data, d)
	if err != nil {
		return nil, err
	}
	if err := d.check(doc.Errorf); err != nil {
		return nil, err
	}
	return d, nil
}

// Key is the hash by which a build of this definition is found again: it covers everything that changes
// the contents, not the name and description. It does not cover the versions of the packages.
func (d *Definition) Key() string {
	canonical := *d
	canonical.Packages = slices.Clone(d.Packages)
	slices.Sort(canonical.Packages)
	canonical.Packages = slices.Compact(canonical.Packages)
	data, err := json.Marshal(canonical) // maps are written in the order of their keys
	if err != nil {
		panic("a definition has only text and numbers: " + err.Error())
	}
	sum := sha256.Sum256(fmt.Appendf(nil, "%s\n%s\n%s", keyVersion, runtime.GOARCH, data))
	return hex.EncodeToString(sum[:])
}

func (d *Definition) check(fail func(field, format string, args ...any) error) error {
	if err := carrel.ValidateName("image", d.Name); err != nil {
		if d.Name == "" {
			return fail("name", "is missing")
		}
		return fail("name", "%q is no name for an image: use 1 to 40 lower case letters, digits and hyphens, beginning with a letter", d.Name)
	}
	if len(d.Description) > 1000 {
		return fail("description", "is %d bytes; at most 1000 are kept", len(d.Description))
	}
	switch {
	case d.Suite == "":
		return fail("suite", "is missing; write Debian's release, such as bookworm")
	case !suitePattern.MatchString(d.Suite):
		return fail("suite", "%q is no name of a Debian release", d.Suite)
	}
	if d.Mirror != "" {
		u, err := url.Parse(d.Mirror)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || strings.ContainsAny(d.Mirror, " \t\r\n[]\"'") {
			return fail("mirror", "%q is not the http or https URL of a Debian archive", d.Mirror)
		}
	}
	if d.Variant == "" {
		d.Variant = "minbase"
	}
	if !slices.Contains(variants, d.Variant) {
		return fail("variant", "%q does not exist; use one of %s", d.Variant, strings.Join(variants, ", "))
	}
	if len(d.Packages) > maxPackages {
		return fail("packages", "has %d entries; at most %d are installed", len(d.Packages), maxPackages)
	}
	for i, p := range d.Packages {
		if !packagePattern.MatchString(p) {
			return fail(fmt.Sprintf("packages[%d]", i), "%q is not the name of a Debian package, such as git or git=1:2.39.5-0", p)
		}
	}
	if len(d.Exclude) > maxExcludes {
		return fail("exclude", "has %d entries; at most %d are used", len(d.Exclude), maxExcludes)
	}
	for i, pattern := range d.Exclude {
		if !excludePattern.MatchString(pattern) {
			return fail(fmt.Sprintf("exclude[%d]", i), "%q is not the pattern of an absolute path, such as /usr/share/games/*", pattern)
		}
	}
	if err := d.checkFiles(fail); err != nil {
		return err
	}
	if err := d.checkUsers(fail); err != nil {
		return err
	}
	for _, name := range sortedKeys(d.Environment) {
		value := d.Environment[name]
		if !envPattern.MatchString(name) {
			return fail("environment", "%q is no name for a variable: use letters, digits and _", name)
		}
		if strings.ContainsAny(value, "\n\r\x00") || len(value) > 4096 {
			return fail("environment."+name, "must be one line of at most 4096 bytes")
		}
	}
	if len(d.Environment) > carrel.MaxEnv {
		return fail("environment", "has %d variables; at most %d are kept", len(d.Environment), carrel.MaxEnv)
	}
	if len(d.Run) > maxCommands {
		return fail("run", "has %d commands; at most %d are run", len(d.Run), maxCommands)
	}
	for i, command := range d.Run {
		if strings.TrimSpace(command) == "" || len(command) > maxCommandBytes || !utf8.ValidString(command) {
			return fail(fmt.Sprintf("run[%d]", i), "must be a shell command of at most %d bytes", maxCommandBytes)
		}
	}
	return nil
}

func (d *Definition) checkFiles(fail func(field, format string, args ...any) error) error {
	if len(d.Files) > maxFiles {
		return fail("files", "has %d entries; at most %d are written", len(d.Files), maxFiles)
	}
	seen := map[string]bool{}
	for i := range d.Files {
		f, field := &d.Files[i], fmt.Sprintf("files[%d]", i)
		if err := checkPath(f.Path); err != "" {
			return fail(field+".path", "%q %s", f.Path, err)
		}
		if seen[f.Path] {
			return fail(field+".path", "%q is written twice", f.Path)
		}
		seen[f.Path] = true
		if f.Mode == "" {
			f.Mode = "0644"
		}
		if !modePattern.MatchString(f.Mode) {
			return fail(field+".mode", "%q is not an octal mode in quotes, such as \"0644\"", f.Mode)
		}
		bits, err := strconv.ParseUint(f.Mode, 8, 16)
		if err != nil {
			return fail(field+".mode", "%q is not an octal mode", f.Mode)
		}
		f.Mode = fmt.Sprintf("%04o", bits)
		if len(f.Content) > maxCommandBytes {
			return fail(field+".content", "is %d bytes; at most %d are written", len(f.Content), maxCommandBytes)
		}
	}
	return nil
}

func (d *Definition) checkUsers(fail func(field, format string, args ...any) error) error {
	if len(d.Users) > maxUsers {
		return fail("users", "has %d entries; at most %d are added", len(d.Users), maxUsers)
	}
	names, uids := map[string]bool{}, map[int64]bool{}
	for i := range d.Users {
		u, field := &d.Users[i], fmt.Sprintf("users[%d]", i)
		if !userPattern.MatchString(u.Name) || u.Name == "root" {
			return fail(field+".name", "%q is no name for a user: use 1 to 32 lower case letters, digits, _ and -, not root", u.Name)
		}
		if u.UID < 1000 || u.UID > 59999 {
			return fail(field+".uid", "is %d; it must be from 1000 to 59999", u.UID)
		}
		if names[u.Name] || uids[u.UID] {
			return fail(field+".name", "%q or its uid %d is there twice", u.Name, u.UID)
		}
		if u.Name == boxUser && u.UID != boxUID || u.Name != boxUser && u.UID == boxUID {
			return fail(field+".uid", "is %d; uid %d belongs to the user %s, in whose name a box works", u.UID, boxUID, boxUser)
		}
		names[u.Name], uids[u.UID] = true, true
		if u.Home == "" {
			u.Home = "/home/" + u.Name
		}
		if err := checkPath(u.Home); err != "" {
			return fail(field+".home", "%q %s", u.Home, err)
		}
		if u.Name == boxUser && u.Home != boxHome {
			return fail(field+".home", "is %q; that of %s is always %s", u.Home, boxUser, boxHome)
		}
		if u.Shell == "" {
			u.Shell = "/bin/bash"
		}
		if err := checkPath(u.Shell); err != "" {
			return fail(field+".shell", "%q %s", u.Shell, err)
		}
		for n, g := range u.Groups {
			if !userPattern.MatchString(g) {
				return fail(fmt.Sprintf("%s.groups[%d]", field, n), "%q is no name for a group", g)
			}
		}
		if u.Sudo && !slices.ContainsFunc(d.Packages, func(p string) bool {
			name, _, _ := strings.Cut(p, "=")
			return name == "sudo"
		}) {
			return fail(field+".sudo", "is true, and the package sudo is not in packages; add it")
		}
	}
	return nil
}

// checkPath says in words what is wrong with an absolute path in the image; "" if nothing is.
func checkPath(p string) string {
	switch {
	case !path.IsAbs(p) || path.Clean(p) != p || p == "/":
		return "is not a plain absolute path in the image"
	case len(p) > 1024 || strings.ContainsAny(p, "\n\r\x00:") || !utf8.ValidString(p):
		return "has characters that cannot be used, or is longer than 1024 bytes"
	case p == reservedDir || strings.HasPrefix(p, reservedDir+"/"):
		return "belongs to Carrel"
	}
	for _, dir := range emptiedDirs {
		if p == dir || strings.HasPrefix(p, dir+"/") {
			return "lies in " + dir + ", which every box makes anew"
		}
	}
	return ""
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
