package e2e

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"carrel.dev/carrel/internal/failpoint"
)

// crashStacks is how many Carrels meet the faults side by side: most of what they do is to wait for a disk. Each
// starts for the first time with another action at every step.
var crashStacks = []string{failpoint.ActionKill, failpoint.ActionError, failpoint.ActionRepeat}

// crashSources are the folders and files with the steps of a box's life.
var crashSources = []string{"internal/node", "internal/runtime/gvisor", "internal/reconcile/box.go"}

// unreachable are steps that no life on one machine comes to, each with the test that does. The list is meant to be empty.
var unreachable = map[string]string{
	"node/identify/written": "TestPreparedBoxesWhateverDies",
	"node/identify/told":    "TestPreparedBoxesWhateverDies",
	"node/start/afresh":     "TestPreparedBoxesWhateverDies",
}

// everyVerb has each fault happen in every verb that comes to its step, instead of in one: some ten minutes.
const everyVerb = "CARREL_CRASH_EVERY_VERB"

// fault is an action at a step.
type fault struct{ step, action string }

func (f fault) String() string { return f.step + "=" + f.action }

// TestCrashEverywhere has every step of a box's life fail, be killed and be repeated, on real gVisor. The steps are read
// from the source. A first life finds out which verbs come to which steps; then the faults are dealt out to
// lives, some to each verb. Whatever happens, every box gets where it was told to go, its process counts on through
// pause and resume, its files are there, and nothing of it is left when it is deleted. One box of each Carrel is in no
// life: it goes on all the time.
func TestCrashEverywhere(t *testing.T) {
	c := &crash{steps: stepNames(t, crashSources...), happened: map[fault]bool{}, traced: make(chan struct{})}
	c.begun.Add(len(crashStacks))
	t.Run("lives", func(t *testing.T) {
		for i, action := range crashStacks {
			t.Run(action+" at the first start", func(t *testing.T) {
				t.Parallel()
				c.live(t, i == 0, action)
			})
		}
	})
	var missing []string
	for _, step := range c.steps {
		for _, action := range crashStacks {
			if f := (fault{step, action}); !c.happened[f] && unreachable[step] == "" {
				missing = append(missing, f.String())
			}
		}
		require.False(t, unreachable[step] != "" && c.happened[fault{step, failpoint.ActionError}], "%s is reached; take it off the list", step)
	}
	t.Logf("%d faults at %d steps, %d lives", len(c.happened), len(c.steps), c.lives)
	require.Empty(t, missing, "no life came to these steps with the fault armed; a life that does belongs into life_test.go")
}

// crash is what the Carrels of one test share.
type crash struct {
	steps  []string
	begun  sync.WaitGroup // of those whose first start is over
	traced chan struct{}  // closed when plans is there, or never will be

	mu       sync.Mutex // guards what follows
	plans    []plan     // not yet lived
	happened map[fault]bool
	lives    int
}

// plan is one life: the faults that are armed before each verb.
type plan map[string][]fault

// live is the life of one Carrel.
func (c *crash) live(t *testing.T, first bool, action string) {
	traced := sync.OnceFunc(func() { close(c.traced) })
	if first {
		defer traced() // however it ends: the others wait
	}
	begun := sync.OnceFunc(c.begun.Done)
	defer begun()
	s := newStack(t, options{pool: "3GiB", faults: true, armed: c.at(c.steps, action)})
	s.happened = c.note
	s.reap()
	begun()
	for name := range s.armed { // what the first start did not come to
		s.lift(name)
	}
	s.pending = nil
	s.witness = s.create("witness", small)
	s.background("witness", counter)
	pid, _ := s.progressOf("witness")

	if first {
		reached := c.trace(s)
		c.begun.Wait()
		c.mu.Lock()
		c.plans = c.deal(reached)
		c.mu.Unlock()
		traced()
	}
	<-c.traced
	for !t.Failed() {
		p, n := c.next()
		if p == nil && len(s.pending) == 0 && len(s.armed) == 0 {
			break
		}
		require.LessOrEqual(t, n, 200, "faults stay armed: %v %v", s.armed, s.pending)
		newLife(s, n).live(p)
		if p == nil { // a last life for what is left: nothing else is going to come to it
			break
		}
	}
	again, _ := s.progressOf("witness")
	require.Equal(t, pid, again, "the box beside them all was not left alone")
	s.witness = nil
}

func (c *crash) note(f fault) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.happened[f] = true
}

// at makes faults of one action.
func (c *crash) at(steps []string, action string) []fault {
	var faults []fault
	for _, step := range steps {
		faults = append(faults, fault{step, action})
	}
	return faults
}

// next takes a plan, nil when all are taken, and numbers its life.
func (c *crash) next() (plan, int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lives++
	if len(c.plans) == 0 {
		return nil, c.lives
	}
	p := c.plans[0]
	c.plans = c.plans[1:]
	return p, c.lives
}

// trace lives without faults and answers the steps of each verb.
func (c *crash) trace(s *stack) map[string][]string {
	reached := map[string][]string{}
	_, n := c.next()
	l := newLife(s, n)
	for _, v := range verbs {
		require.NoError(s.t, s.faults.Note())
		v.do(l)
		names, err := s.faults.Noted()
		require.NoError(s.t, err)
		slices.Sort(names)
		reached[v.name] = slices.Compact(names)
	}
	return reached
}

// deal makes plans in which every fault is armed: each once, in turn at the verbs that come to its step. What the trace
// did not come to is armed from the beginning of some life on.
func (c *crash) deal(reached map[string][]string) []plan {
	faults := map[string][]fault{} // by verb
	turn := 0
	for _, step := range c.steps {
		var at []string
		for _, v := range verbs {
			if slices.Contains(reached[v.name], step) {
				at = append(at, v.name)
			}
		}
		if len(at) == 0 {
			at = []string{verbs[0].name}
		}
		for _, action := range crashStacks {
			turn++
			for i, verb := range at {
				f := fault{step, action}
				if os.Getenv(everyVerb) != "" || i == turn%len(at) && !c.happened[f] {
					faults[verb] = append(faults[verb], f)
				}
			}
		}
	}
	var plans []plan
	for _, v := range verbs {
		for i, list := range shares(faults[v.name], v.patience) {
			if i == len(plans) {
				plans = append(plans, plan{})
			}
			plans[i][v.name] = list
		}
	}
	return plans
}

// shares splits faults into those of one life each. A verb of little patience is put off by every error, longer each
// time; kills cost the time of a new start each. No step has two actions at once.
func shares(faults []fault, patience int) [][]fault {
	const most = 6
	var lists [][]fault
	var costs, errors []int
	for _, f := range faults {
		cost, failing := 1, 0
		switch f.action {
		case failpoint.ActionRepeat:
			cost = 2
		case failpoint.ActionError:
			failing = 1
		}
		i := 0
		for ; i < len(lists); i++ {
			same := slices.ContainsFunc(lists[i], func(g fault) bool { return g.step == f.step })
			if !same && costs[i]+cost <= most && errors[i]+failing <= patience {
				break
			}
		}
		if i == len(lists) {
			lists, costs, errors = append(lists, nil), append(costs, 0), append(errors, 0)
		}
		lists[i] = append(lists[i], f)
		costs[i] += cost
		errors[i] += failing
	}
	return lists
}

// arm arms faults. Those at a step that is armed already wait for the next verb.
func (s *stack) arm(faults []fault) {
	waiting := append(s.pending, faults...)
	s.pending = nil
	for _, f := range waiting {
		if s.armed[f.step] != "" {
			s.pending = append(s.pending, f)
			continue
		}
		s.armed[f.step] = f.action
		require.NoError(s.t, s.faults.Arm(f.step, f.action))
	}
}

// lift disarms a step that a life needs for itself; its fault waits for the next verb.
func (s *stack) lift(step string) {
	left, err := s.faults.Disarm(step)
	require.NoError(s.t, err)
	if action := s.armed[step]; action != "" && left != "" {
		delete(s.armed, step)
		s.pending = append(s.pending, fault{step, action})
	}
}

// reap notes what has happened since the last time.
func (s *stack) reap() {
	for step, action := range s.armed {
		left, err := s.faults.Armed(step)
		require.NoError(s.t, err)
		if left == "" {
			delete(s.armed, step)
			s.happened(fault{step, action})
		}
	}
}

// stepNames reads the names of all steps from the source, so that a new step is covered by itself.
func stepNames(t *testing.T, dirs ...string) []string {
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
