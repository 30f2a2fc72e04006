package image

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"carrel.dev/carrel/internal/carrel"
)

// aptDir is where apt keeps its settings on the machine that builds.
const aptDir = "/etc/apt"

// debianKeyring has the keys of Debian's archive, and of nobody else.
const debianKeyring = "/usr/share/keyrings/debian-archive-keyring.gpg"

// source is one entry of apt's sources, in either of the two forms.
type source struct {
	uris, suites, components []string
	signedBy                 string
	validUntil               string
}

// debianSources returns the text of a deb822 file with Debian's own sources for a suite, out of those that
// dir has. Sources of others are left out: their packages would be run as root with Debian's name on them.
func debianSources(dir, suite string) (string, error) {
	files, err := filepath.Glob(filepath.Join(dir, "sources.list.d", "*"))
	if err != nil {
		return "", fmt.Errorf("reading apt's sources: %w", err)
	}
	files = append([]string{filepath.Join(dir, "sources.list")}, files...)
	var out strings.Builder
	for _, file := range files {
		data, err := os.ReadFile(file)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return "", fmt.Errorf("reading apt's sources: %w", err)
		}
		var found []source
		switch filepath.Ext(file) {
		case ".list":
			found = parseOneLine(string(data))
		case ".sources":
			found = parseDeb822(string(data))
		}
		for _, s := range found {
			s.write(&out, suite)
		}
	}
	if out.Len() == 0 {
		return "", carrel.Errorf(carrel.CodePrecondition, "no_debian_sources", "this machine's apt has no Debian source for %s; add one under %s, or write the URL of an archive as mirror in the image definition", suite, dir)
	}
	return out.String(), nil
}

// mirrorSources is the same for a mirror that the definition names.
func mirrorSources(mirror, suite string) string {
	var out strings.Builder
	writeSource(&out, []string{mirror}, []string{suite}, "")
	return out.String()
}

// write adds what of s is Debian's for the suite.
func (s source) write(out *strings.Builder, suite string) {
	if s.signedBy != "" && !strings.Contains(s.signedBy, "debian-archive") {
		return
	}
	if !slices.Contains(s.components, "main") {
		return
	}
	var uris, suites []string
	for _, raw := range s.uris {
		u, err := url.Parse(raw)
		if err == nil && strings.Contains(u.Path+u.Opaque, "debian") {
			uris = append(uris, raw)
		}
	}
	for _, name := range s.suites {
		switch strings.TrimSuffix(name, "/updates") {
		case suite, suite + "-updates", suite + "-security":
			suites = append(suites, name)
		}
	}
	if len(uris) > 0 && len(suites) > 0 {
		writeSource(out, uris, suites, s.validUntil)
	}
}

func writeSource(out *strings.Builder, uris, suites []string, validUntil string) {
	if out.Len() > 0 {
		out.WriteString("\n")
	}
	fmt.Fprintf(out, "Types: deb\nURIs: %s\nSuites: %s\nComponents: main\n", strings.Join(uris, " "), strings.Join(suites, " "))
	if _, err := os.Stat(debianKeyring); err == nil {
		fmt.Fprintf(out, "Signed-By: %s\n", debianKeyring)
	}
	if validUntil != "" {
		fmt.Fprintf(out, "Check-Valid-Until: %s\n", validUntil)
	}
}

// parseOneLine reads "deb [options] URI SUITE COMPONENTS…" lines.
func parseOneLine(text string) []source {
	var all []source
	scanner := bufio.NewScanner(strings.NewReader(text))
	for scanner.Scan() {
		line, _, _ := strings.Cut(scanner.Text(), "#")
		line = strings.TrimSpace(line)
		rest, ok := strings.CutPrefix(line, "deb")
		if !ok || rest == "" || rest[0] != ' ' && rest[0] != '\t' {
			continue
		}
		var s source
		rest = strings.TrimSpace(rest)
		if strings.HasPrefix(rest, "[") {
			options, after, closed := strings.Cut(rest[1:], "]")
			if !closed {
				continue
			}
			for _, option := range strings.Fields(options) {
				switch key, value, _ := strings.Cut(option, "="); key {
				case "signed-by":
					s.signedBy = value
				case "check-valid-until":
					s.validUntil = value
				}
			}
			rest = after
		}
		fields := strings.Fields(rest)
		if len(fields) < 3 {
			continue
		}
		s.uris, s.suites, s.components = fields[:1], fields[1:2], fields[2:]
		all = append(all, s)
	}
	return all
}

// parseDeb822 reads stanzas of "Key: value" lines.
func parseDeb822(text string) []source {
	var all []source
	for stanza := range strings.SplitSeq(strings.ReplaceAll(text, "\r\n", "\n"), "\n\n") {
		fields, last := map[string]string{}, ""
		for line := range strings.SplitSeq(stanza, "\n") {
			switch {
			case strings.HasPrefix(line, "#"):
			case strings.HasPrefix(line, " ") || strings.HasPrefix(line, "\t"):
				fields[last] += " " + strings.TrimSpace(line)
			default:
				key, value, _ := strings.Cut(line, ":")
				last = strings.ToLower(strings.TrimSpace(key))
				fields[last] = strings.TrimSpace(value)
			}
		}
		enabled := fields["enabled"]
		if !slices.Contains(strings.Fields(fields["types"]), "deb") || enabled == "no" || enabled == "false" {
			continue
		}
		all = append(all, source{
			uris: strings.Fields(fields["uris"]), suites: strings.Fields(fields["suites"]), components: strings.Fields(fields["components"]),
			signedBy: fields["signed-by"], validUntil: fields["check-valid-until"],
		})
	}
	return all
}
