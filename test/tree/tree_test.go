// Package tree keeps the repository in shape: who may import whom and why, one comment per package,
// links that lead somewhere, files that stay readable. It looks at sources and runs nothing.
package tree

import (
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const module = "carrel.dev/carrel"

var root = func() string {
	dir, err := filepath.Abs("../..")
	if err != nil {
		panic(err)
	}
	return dir
}()

// goPackage is one folder of Go files.
type goPackage struct {
	path    string              // such as internal/node
	imports map[string]string   // import path → the file that has it, tests left out
	tests   map[string]string   // the same for test files
	docs    map[string][]string // package name → files with a package comment
	files   []string
}

// files lists what git knows or would add, so that build products are not looked at.
func files(t *testing.T) []string {
	t.Helper()
	out, err := exec.Command("git", "-C", root, "ls-files", "--cached", "--others", "--exclude-standard").Output()
	require.NoError(t, err)
	var list []string
	for line := range strings.Lines(string(out)) {
		name := strings.TrimSpace(line)
		if _, err := os.Stat(filepath.Join(root, name)); err == nil {
			list = append(list, name)
		}
	}
	require.NotEmpty(t, list)
	return list
}

func packages(t *testing.T) map[string]*goPackage {
	t.Helper()
	all := map[string]*goPackage{}
	for _, name := range files(t) {
		if !strings.HasSuffix(name, ".go") || strings.HasPrefix(name, "tools/") || strings.Contains(name, "/testdata/") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), filepath.Join(root, name), nil, parser.ParseComments|parser.SkipObjectResolution)
		require.NoError(t, err, name)
		dir := filepath.Dir(name)
		p := all[dir]
		if p == nil {
			p = &goPackage{path: dir, imports: map[string]string{}, tests: map[string]string{}, docs: map[string][]string{}}
			all[dir] = p
		}
		p.files = append(p.files, name)
		isTest := strings.HasSuffix(name, "_test.go")
		for _, spec := range file.Imports {
			path := strings.Trim(spec.Path.Value, `"`)
			if isTest {
				p.tests[path] = name
			} else {
				p.imports[path] = name
			}
		}
		if file.Doc != nil {
			p.docs[file.Name.Name] = append(p.docs[file.Name.Name], name)
		}
	}
	return all
}

func under(path, prefix string) bool { return path == prefix || strings.HasPrefix(path, prefix+"/") }

// rules say what a folder must not import. Tests may import what they like.
var rules = []struct {
	in        string // folder, with everything below it
	forbidden []string
	reason    string
}{
	{"internal/reconcile", []string{module + "/api", module + "/internal/runtime", "net/http"}, "reconcile reads PostgreSQL and writes PostgreSQL and nothing else, so that a tick can be repeated by anyone at any time"},
	{"internal/node", []string{module + "/internal/store", module + "/internal/control"}, "a node must work while control and PostgreSQL are away; it learns everything over its link"},
	{"internal/gateway", []string{module + "/internal/store", module + "/internal/control", module + "/internal/node"}, "bytes go gateway to node to agent, never through control or PostgreSQL"},
	{"internal/agent", []string{module + "/internal/store", module + "/internal/control", module + "/internal/node", module + "/internal/gateway", module + "/internal/auth", module + "/internal/runtime", module + "/internal/service"}, "the agent runs in every box: it must stay small and know nothing of the platform"},
	{"internal/runtime", []string{module + "/internal/store", module + "/internal/control", module + "/internal/node", module + "/api", "net/http"}, "a runtime isolates boxes and knows neither users nor protocols"},
	{"internal/store", []string{module + "/internal/control", module + "/internal/reconcile", module + "/internal/node", module + "/api", "net/http"}, "the store keeps facts and decides nothing"},
	{"internal/image", []string{module + "/internal/store", module + "/internal/control", module + "/api"}, "images are made on nodes, which have neither database nor API"},
	{"internal/client", []string{module + "/internal/store", module + "/internal/control", module + "/internal/node", module + "/internal/gateway"}, "a client knows the API and nothing behind it"},
	{"internal/auth", []string{module + "/internal/store", module + "/internal/control", module + "/internal/node", module + "/internal/gateway"}, "gateways and nodes check rights offline with this package"},
	{"cmd/carrel", []string{module + "/internal/store", module + "/internal/control", module + "/internal/node", module + "/internal/gateway", module + "/internal/runtime"}, "the CLI is built for other systems and speaks only the API"},
}

func TestImportRules(t *testing.T) {
	for _, p := range packages(t) {
		for _, rule := range rules {
			if !under(p.path, rule.in) {
				continue
			}
			for path, file := range p.imports {
				for _, forbidden := range rule.forbidden {
					if under(path, forbidden) {
						t.Errorf("%s imports %s, which %s must not: %s", file, path, rule.in, rule.reason)
					}
				}
			}
		}
	}
}

func TestVocabularyImportsOnlyTheStandardLibrary(t *testing.T) {
	for path, file := range packages(t)["internal/carrel"].imports {
		if strings.Contains(strings.SplitN(path, "/", 2)[0], ".") {
			t.Errorf("%s imports %s: the vocabulary is imported by everything, so it must drag nothing along", file, path)
		}
	}
}

func TestGeneratedProtocolsAppearOnlyAtTheEdges(t *testing.T) {
	edges := []string{"api", "internal/control", "internal/node", "internal/gateway", "internal/agent", "internal/client", "internal/carreltest", "internal/auth", "cmd", "test"}
	for _, p := range packages(t) {
		for path, file := range p.imports {
			if !under(path, module+"/api") {
				continue
			}
			allowed := false
			for _, edge := range edges {
				allowed = allowed || under(p.path, edge)
			}
			if !allowed {
				t.Errorf("%s imports %s: generated messages are converted at the edges (%s) and go no further", file, path, strings.Join(edges, ", "))
			}
		}
	}
}

func TestSQLAppearsOnlyInTheStore(t *testing.T) {
	for _, p := range packages(t) {
		if under(p.path, "internal/store") || under(p.path, "internal/service/postgres") {
			continue
		}
		for path, file := range p.imports {
			if path == "database/sql" || under(path, "github.com/jackc/pgx/v5") {
				t.Errorf("%s imports %s: SQL lives in internal/store, behind methods named for their transaction", file, path)
			}
		}
	}
}

func TestNothingImportsTestSupport(t *testing.T) {
	for _, p := range packages(t) {
		for path, file := range p.imports {
			for _, support := range []string{"internal/carreltest", "internal/leftover", "internal/runtime/fake", "internal/runtime/runtimetest", "internal/store/storetest"} {
				if under(path, module+"/"+support) && !under(p.path, support) && !under(p.path, "internal/carreltest") && !under(p.path, "test") {
					t.Errorf("%s imports %s, which is for tests: the product has no fakes in it", file, path)
				}
			}
		}
	}
}

func TestEveryPackageHasOneComment(t *testing.T) {
	for _, p := range packages(t) {
		if under(p.path, "api") || under(p.path, "internal/store/db") {
			continue // generated
		}
		count := 0
		var where []string
		for _, files := range p.docs {
			for _, file := range files {
				count++
				where = append(where, file)
			}
		}
		onlyTests := len(p.imports) == 0 && len(p.tests) > 0
		if count != 1 && (!onlyTests || count > 1) {
			t.Errorf("%s has %d package comments %v; it needs exactly one that says what the package is for, what it must not do, and its words", p.path, count, where)
		}
	}
}

var generated = regexp.MustCompile(`(\.pb\.go|\.connect\.go)$|^internal/store/db/`)

func TestFilesStayReadable(t *testing.T) {
	for _, p := range packages(t) {
		for _, file := range p.files {
			if generated.MatchString(file) {
				continue
			}
			data, err := os.ReadFile(filepath.Join(root, file))
			require.NoError(t, err)
			if n := strings.Count(string(data), "\n"); n > 800 {
				t.Errorf("%s has %d lines; split it by story before it reaches 800", file, n)
			}
		}
	}
}

var link = regexp.MustCompile(`\]\(([^)\s]+)\)`)

func TestLinksInDocumentsLeadSomewhere(t *testing.T) {
	for _, name := range files(t) {
		if !strings.HasSuffix(name, ".md") || strings.HasPrefix(name, "third_party/") {
			continue
		}
		data, err := os.ReadFile(filepath.Join(root, name))
		require.NoError(t, err)
		for _, match := range link.FindAllStringSubmatch(string(data), -1) {
			target, _, _ := strings.Cut(match[1], "#")
			if target == "" || strings.Contains(target, "://") || strings.HasPrefix(target, "mailto:") {
				continue
			}
			if _, err := os.Stat(filepath.Join(root, filepath.Dir(name), target)); err != nil {
				t.Errorf("%s links to %s, which is not there", name, target)
			}
		}
	}
}

func TestReadmeNamesWhatCIRuns(t *testing.T) {
	run, err := os.ReadFile(filepath.Join(root, ".ci/run"))
	require.NoError(t, err)
	readme, err := os.ReadFile(filepath.Join(root, "README.md"))
	require.NoError(t, err)
	require.Contains(t, string(run), "make test")
	require.Contains(t, string(readme), "make test")
}

func TestEveryFolderOfTheTreeIsExplained(t *testing.T) {
	guide, err := os.ReadFile(filepath.Join(root, "CONTRIBUTING.md"))
	require.NoError(t, err)
	err = filepath.WalkDir(filepath.Join(root, "internal"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() || filepath.Dir(path) != filepath.Join(root, "internal") {
			return err
		}
		if !strings.Contains(string(guide), "`internal/"+d.Name()+"`") {
			t.Errorf("CONTRIBUTING.md has no line in \"Where to put things\" for internal/%s", d.Name())
		}
		return nil
	})
	require.NoError(t, err)
}
