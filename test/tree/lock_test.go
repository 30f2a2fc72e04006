package tree

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// npm leaves an optional package that it can't find out of the lock file without a word, and its machines without what they need
// at installation: the Node.js for them, for one.
func TestLockFilesOfNPMAreComplete(t *testing.T) {
	locks := 0
	for _, name := range files(t) {
		if filepath.Base(name) != "package-lock.json" {
			continue
		}
		locks++
		data, err := os.ReadFile(filepath.Join(root, name))
		require.NoError(t, err)
		var lock struct {
			Packages map[string]struct {
				Resolved             string            `json:"resolved"`
				Dependencies         map[string]string `json:"dependencies"`
				OptionalDependencies map[string]string `json:"optionalDependencies"`
			} `json:"packages"`
		}
		require.NoError(t, json.Unmarshal(data, &lock), name)
		// found looks where Node.js does: beside the package, then in every folder above.
		found := func(from, wanted string) bool {
			for {
				if _, ok := lock.Packages[strings.TrimPrefix(from+"/node_modules/"+wanted, "/")]; ok {
					return true
				}
				if from == "" {
					return false
				}
				from = strings.TrimSuffix(from[:max(0, strings.LastIndex(from, "node_modules/"))], "/")
			}
		}
		for path, p := range lock.Packages {
			require.Empty(t, p.Resolved, "%s: %s is bound to one registry; web/.npmrc keeps addresses out", name, path)
			for _, wanted := range []map[string]string{p.Dependencies, p.OptionalDependencies} {
				for dependency, version := range wanted {
					require.True(t, found(path, dependency), "%s: %s@%s, which %q wants, is missing: is there that version for every machine?", name, dependency, version, path)
				}
			}
		}
	}
	require.NotZero(t, locks)
}
