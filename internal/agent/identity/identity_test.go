package identity_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"carrel.dev/carrel/internal/agent/identity"
)

func good() identity.Identity {
	return identity.Identity{
		RunID: "raaaaaaaaaaaaaaaaaaa", BoxID: "baaaaaaaaaaaaaaaaaaa", BoxName: "alpha", Key: strings.Repeat("0f", 32),
		MemoryBytes: 1 << 30, Processes: 100, Env: map[string]string{"A": "b"}, Sudo: true, Startup: []string{"true"},
	}
}

func TestWhatIsWrittenIsReadAndOnlyByItsOwner(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, identity.Write(dir, good()))
	second := good()
	second.BoxName = "beta"
	require.NoError(t, identity.Write(dir, second), "an identity can be replaced")
	got, err := identity.Read(dir)
	require.NoError(t, err)
	require.Equal(t, second, got)
	info, err := os.Stat(filepath.Join(dir, identity.FileName))
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o400), info.Mode())
}

func TestAnUnusableIdentityIsRefused(t *testing.T) {
	for name, spoil := range map[string]func(*identity.Identity){
		"no run":            func(id *identity.Identity) { id.RunID = "" },
		"run with a slash":  func(id *identity.Identity) { id.RunID = "a/b" },
		"name with a line":  func(id *identity.Identity) { id.BoxName = "a\n127.0.0.1 evil" },
		"short key":         func(id *identity.Identity) { id.Key = "00" },
		"negative memory":   func(id *identity.Identity) { id.MemoryBytes = -1 },
		"variable with =":   func(id *identity.Identity) { id.Env = map[string]string{"A=B": ""} },
		"empty command":     func(id *identity.Identity) { id.Startup = []string{""} },
		"too many commands": func(id *identity.Identity) { id.Startup = make([]string, 65) },
	} {
		t.Run(name, func(t *testing.T) {
			id := good()
			spoil(&id)
			require.Error(t, id.Validate())
			require.Error(t, identity.Write(t.TempDir(), id))
		})
	}
	for _, text := range []string{"", "{}", "null", "[]", `{"run_id":1}`} {
		_, err := identity.Parse([]byte(text))
		require.Error(t, err, text)
	}
}

func TestFieldsOfANewerNodeArePassedOver(t *testing.T) {
	_, err := identity.Parse([]byte(`{"run_id":"r1","box_name":"a","key":"` + strings.Repeat("ab", 32) + `","later":{"x":1}}`))
	require.NoError(t, err)
	_, err = identity.Parse([]byte(`{"run_id":"r1","box_name":"a","key":"` + strings.Repeat("ab", 32) + `"}{}`))
	require.Error(t, err, "one object and no more")
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"run_id":"r1","box_name":"a","key":"` + strings.Repeat("ab", 32) + `","env":{"A":"b"},"startup":["x"]}`))
	f.Add([]byte(`{`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if id, err := identity.Parse(data); err == nil {
			require.NoError(t, id.Validate())
		}
	})
}
