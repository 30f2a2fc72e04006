package e2e

import (
	"fmt"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/durationpb"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
)

// python runs code in the box's kernel and gives what it printed.
func (s *stack) python(box, code string) string {
	s.t.Helper()
	answer, err := s.client.Execute(s.ctx(), &carrelv1.ExecuteRequest{Box: box, Code: code, Wait: durationpb.New(settleTime)})
	require.NoError(s.t, err, "%s", lazy(s.logs))
	require.True(s.t, answer.GetDone())
	var text strings.Builder
	for _, execution := range answer.GetExecutions() {
		require.Equal(s.t, carrelv1.ExecutionState_EXECUTION_STATE_OK, execution.GetState(), "%v %s", execution.GetOutputs(), execution.GetMessage())
		for _, output := range execution.GetOutputs() {
			if part, ok := output.AsMap()["text"].(string); ok {
				text.WriteString(part)
			}
		}
	}
	return strings.TrimSpace(text.String())
}

// notebookPool has room for some small boxes, and not for those of the shipped size: nothing is prepared for that beside the test.
const notebookPool = "8GiB"

// smallNotebook is what a notebook needs.
const smallNotebook = "image: python\nresources: {cpu: 2, memory: 768MiB, home: 256MiB, root: 256MiB}\nsudo: true\n"

// likePython is a template with the prebuild of the shipped one and smaller boxes.
func (s *stack) likePython(name string) string {
	s.t.Helper()
	got, err := s.client.Templates.GetTemplate(s.ctx(), connect.NewRequest(&carrelv1.GetTemplateRequest{Name: "python"}))
	require.NoError(s.t, err)
	shipped := got.Msg.GetPrebuild()
	require.Equal(s.t, "python3", shipped.GetKernel())
	return "name: " + name + "\n" + smallNotebook + "prebuild:\n  kernel: " + shipped.GetKernel() + "\n  imports: |\n    " +
		strings.ReplaceAll(strings.TrimSpace(shipped.GetImports()), "\n", "\n    ") + "\n"
}

// TestPythonPrebuild has two boxes with a warm kernel: it has its libraries, and neither's randomness nor keys are the other's.
func TestPythonPrebuild(t *testing.T) {
	t.Parallel()
	s := newStack(t, options{images: "python", pool: notebookPool})
	small := s.push(s.likePython("small"))
	made := s.awaitPrebuild(small)
	t.Logf("a prebuild of %d MB, made in %s", made.GetSizeBytes()>>20, made.GetBuildTime().AsDuration())
	pool := func(size int32) {
		t.Helper()
		_, err := s.client.Templates.UpdateTemplatePool(s.ctx(), connect.NewRequest(&carrelv1.UpdateTemplatePoolRequest{Name: "small", Size: size}))
		require.NoError(t, err)
	}
	python := func(r *carrelv1.CreateBoxRequest) { r.Template = "small" }
	moody := func(r *carrelv1.CreateBoxRequest) { r.Env = map[string]string{"MOOD": "good"} }
	require.Equal(t, "prebuild", s.create("alpha", python, moody).GetStartedFrom())
	require.Equal(t, "prebuild", s.create("beta", python).GetStartedFrom())
	pool(1)
	s.eventually("a box waits", func() bool {
		got, err := s.client.Templates.GetTemplate(s.ctx(), connect.NewRequest(&carrelv1.GetTemplateRequest{Name: "small"}))
		return err == nil && got.Msg.GetPoolReady() == 1
	})
	require.Equal(t, "pool", s.create("gamma", python, moody).GetStartedFrom())

	const look = `
import sys, os, random, socket, uuid
assert "numpy" in sys.modules and "pandas" in sys.modules and "matplotlib.pyplot" in sys.modules, "it was not prepared"
import numpy
from IPython import get_ipython
print(random.random(), numpy.random.rand(), os.urandom(8).hex(), get_ipython().kernel.session.key.decode(), socket.gethostname(), sep="\n")
`
	seen := map[string]string{}
	for _, box := range []string{"alpha", "beta", "gamma"} {
		lines := strings.Split(s.python(box, look), "\n")
		require.Len(t, lines, 5)
		require.Equal(t, box, lines[4])
		for i, what := range []string{"random", "numpy", "urandom", "key"} {
			require.NotContains(t, seen, lines[i], "%s of %s is also that of %s", what, box, seen[lines[i]])
			seen[lines[i]] = box
		}
	}
	require.Equal(t, "good none good", fmt.Sprint(
		s.python("alpha", "print(os.environ.get('MOOD', 'none'))"), " ", s.python("beta", "print(os.environ.get('MOOD', 'none'))"), " ",
		s.python("gamma", "print(os.environ.get('MOOD', 'none'))")), "the kernel has the box's environment")

	// What a kernel holds is kept by a pause, as in any box.
	s.python("gamma", "answer = 42")
	s.pause("gamma")
	s.resume("gamma")
	require.Equal(t, "42", s.python("gamma", "print(answer)"))
}
