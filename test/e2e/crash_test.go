package e2e

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/durationpb"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/client"
)

// failpointNames reads the names of all steps from the source, so that a new step is covered by itself.
func failpointNames(t *testing.T, dirs ...string) []string {
	t.Helper()
	found := map[string]bool{}
	for _, dir := range dirs {
		err := filepath.WalkDir(filepath.Join("../..", dir), func(path string, d os.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
			if err != nil {
				return err
			}
			ast.Inspect(file, func(n ast.Node) bool {
				call, ok := n.(*ast.CallExpr)
				if !ok {
					return true
				}
				f, ok := call.Fun.(*ast.SelectorExpr)
				if !ok || f.Sel.Name != "Hit" {
					return true
				}
				if x, ok := f.X.(*ast.Ident); !ok || x.Name != "failpoint" {
					return true
				}
				literal, ok := call.Args[0].(*ast.BasicLit)
				require.True(t, ok, "%s: the name of a step must be a literal", path)
				name, err := strconv.Unquote(literal.Value)
				require.NoError(t, err)
				require.False(t, found[name], "%s: two steps are called %s", path, name)
				found[name] = true
				return true
			})
			return nil
		})
		require.NoError(t, err)
	}
	var names []string
	for name := range found {
		names = append(names, name)
	}
	sort.Strings(names)
	require.NotEmpty(t, names)
	return names
}

// parts of a life, by the steps that belong to them. One life meets one fault in each part.
var parts = [][]string{
	{"gvisor/start/", "node/start/", "node/golden/", "node/net/"},
	{"gvisor/freeze/", "gvisor/save/", "node/capture/", "node/seal/"},
	{"node/commit/", "node/report/", "node/ledger/", "node/desired/"},
	{"gvisor/destroy/", "node/destroy/", "node/clear/"},
	{""}, // the rest: what happens only when something else went wrong, or once in the life of a node
}

// faultsByLife deals the steps out to lives, one of each part to each.
func faultsByLife(names []string) [][]string {
	var lives [][]string
	dealt := map[string]bool{}
	for _, prefixes := range parts {
		n := 0
		for _, name := range names {
			belongs := false
			for _, prefix := range prefixes {
				belongs = belongs || strings.HasPrefix(name, prefix)
			}
			if !belongs || dealt[name] {
				continue
			}
			dealt[name] = true
			if n == len(lives) {
				lives = append(lives, nil)
			}
			lives[n] = append(lives[n], name)
			n++
		}
	}
	return lives
}

// TestCrashEverywhere fails and kills the node daemon at every named step of a box's life, on real gVisor, several in one
// life. A process that counts must go on through create, pause and resume whatever happens, files through stop and start, and
// nothing may be left when the box is deleted.
func TestCrashEverywhere(t *testing.T) {
	s := newStack(t, options{})
	names := failpointNames(t, "internal/node", "internal/runtime/gvisor")
	reached := map[string]bool{}
	for _, action := range []string{"kill", "error"} {
		for i, faults := range faultsByLife(names) {
			t.Run(fmt.Sprintf("%s/%d", action, i), func(t *testing.T) {
				t.Log(faults)
				life := &life{stack: s, t: t, name: fmt.Sprintf("crash-%s-%d", action, i)}
				s.arm(action, faults...)
				life.live()
				for _, name := range faults {
					reached[name] = reached[name] || !s.armed(name)
				}
				s.arm(action)
			})
			if t.Failed() {
				return
			}
		}
	}
	var never []string
	for _, name := range names {
		if !reached[name] {
			never = append(never, name)
		}
	}
	// Steps that an ordinary life does not come to (salvage, the first start of a node) have tests of their own in internal/node.
	t.Logf("%d of %d steps reached; not by an ordinary life: %v", len(names)-len(never), len(names), never)
	require.Less(t, len(never), len(names)/3, "most steps must be reached: %v", never)
}

// arm sets failpoints, in the place of all that were set.
func (s *stack) arm(action string, names ...string) {
	var entries []string
	for _, name := range names {
		entries = append(entries, name+"="+action)
	}
	require.NoError(s.t, os.WriteFile(s.failpoints, []byte(strings.Join(entries, ",")), 0o666))
}

func (s *stack) armed(name string) bool {
	data, err := os.ReadFile(s.failpoints)
	require.NoError(s.t, err)
	return strings.Contains(string(data), name+"=")
}

// life takes one box through everything, asking again when a request was undone.
type life struct {
	*stack
	t    *testing.T
	name string
	id   string
}

func (l *life) live() {
	t := l.t
	answer, err := l.client.Boxes.CreateBox(l.ctx(), connect.NewRequest(&carrelv1.CreateBoxRequest{Name: l.name, Template: "tiny"}))
	require.NoError(t, err)
	l.id = answer.Msg.GetTargetId()
	l.reach(running, func() error { return nil })
	l.background(l.name, counter)
	pid, before := l.progressOf(l.name)
	l.sh(l.name, "echo kept > ~/file; sudo sh -c 'echo tool > /usr/local/bin/tool'")

	l.reach(paused, func() error {
		_, err := l.client.Boxes.PauseBox(l.ctx(), connect.NewRequest(&carrelv1.PauseBoxRequest{Id: l.id}))
		return err
	})
	box := l.reach(running, func() error {
		_, err := l.client.Boxes.ResumeBox(l.ctx(), connect.NewRequest(&carrelv1.ResumeBoxRequest{Id: l.id}))
		return err
	})
	require.Equal(t, "memory", box.GetStartedFrom())
	again, after := l.progressOf(l.name)
	require.Equal(t, pid, again, "the same process goes on")
	require.GreaterOrEqual(t, after, before)

	l.reach(stopped, func() error {
		_, err := l.client.Boxes.StopBox(l.ctx(), connect.NewRequest(&carrelv1.StopBoxRequest{Id: l.id}))
		return err
	})
	l.reach(running, func() error {
		_, err := l.client.Boxes.StartBox(l.ctx(), connect.NewRequest(&carrelv1.StartBoxRequest{Id: l.id}))
		return err
	})
	require.Equal(t, "kept\ntool", l.sh(l.name, "cat ~/file /usr/local/bin/tool"))
	_, err = l.client.Boxes.DeleteBox(l.ctx(), connect.NewRequest(&carrelv1.DeleteBoxRequest{Id: l.id}))
	require.NoError(t, err)
	l.reach(deleted, func() error { return nil })
	l.nothingLeft()
}

// reach asks until the box is in a state: a request that failed by the fault is asked again, as a person would.
func (l *life) reach(state carrelv1.State, ask func() error) *carrelv1.Box {
	l.t.Helper()
	deadline := time.Now().Add(settleTime)
	var last any
	for time.Now().Before(deadline) {
		asked := client.Error(ask())
		answer, err := l.client.Boxes.WaitBox(l.ctx(), connect.NewRequest(&carrelv1.WaitBoxRequest{
			Id: l.id, States: []carrelv1.State{state}, Timeout: durationpb.New(5 * time.Second),
		}))
		if err != nil {
			last = []error{asked, client.Error(err)}
			continue
		}
		if answer.Msg.GetState() == state {
			return answer.Msg
		}
		last = answer.Msg
		if answer.Msg.GetState() == failed {
			_, _ = l.client.Boxes.StartBox(l.ctx(), connect.NewRequest(&carrelv1.StartBoxRequest{Id: l.id}))
		}
	}
	require.FailNow(l.t, fmt.Sprintf("the box did not become %s", state), "%v\n%s", last, l.logs())
	return nil
}
