package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestBrowser walks through the pages with a real browser: each file test/browser/NAME.spec.mjs is a test of its own, all against one Carrel.
// What was seen is in test/browser/screenshots.
func TestBrowser(t *testing.T) {
	specs, err := filepath.Glob("../browser/*.spec.mjs")
	require.NoError(t, err)
	require.NotEmpty(t, specs)
	chromium, err := exec.LookPath("chromium")
	require.NoError(t, err, "the browser is missing: `scripts/install.sh test` brings it")
	s := newStack(t, options{images: "tiny,python", pool: "20GiB"})
	for _, spec := range specs {
		t.Run(strings.TrimSuffix(filepath.Base(spec), ".spec.mjs"), func(t *testing.T) {
			command := exec.Command("../../scripts/node.sh", "node", "--test", "--test-reporter=spec", spec)
			command.Env = append(os.Environ(), "CARREL_URL="+s.url, "CARREL_TOKEN="+s.token, "CHROMIUM="+chromium)
			out, err := command.CombinedOutput()
			require.NoError(t, err, "%s", out)
		})
	}
}
