//go:build bench

package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
)

// TestBenchBrowser measures what somebody in a browser waits for, from the click on "New notebook" to the first output: in boxes that are clones of a prebuild
// that is ready, once with the kernel that it prepared and once with one that is started then. CARREL_ROUNDS is how many boxes, 9 by default.
func TestBenchBrowser(t *testing.T) {
	chromium, err := exec.LookPath("chromium")
	require.NoError(t, err, "the browser is missing: `scripts/install.sh test` brings it")
	s := newStack(t, options{images: "python", pool: "20GiB"})
	template, err := s.client.Templates.GetTemplate(s.ctx(), connect.NewRequest(&carrelv1.GetTemplateRequest{Name: "python"}))
	require.NoError(t, err)
	s.awaitPrebuild(template.Msg)
	command := exec.Command("../../scripts/node.sh", "node", "--test", "--test-reporter=spec", "../browser/notebook.bench.mjs")
	command.Env = append(os.Environ(), "CARREL_URL="+s.url, "CARREL_TOKEN="+s.token, "CHROMIUM="+chromium)
	out, err := command.CombinedOutput()
	require.NoError(t, err, "%s", out)
	for line := range strings.Lines(string(out)) {
		if strings.Contains(line, "→ first output") {
			fmt.Print(line)
		}
	}
}
