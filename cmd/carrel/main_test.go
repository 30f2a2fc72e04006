package main

import (
	"bytes"
	"flag"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/spf13/cobra"
	"github.com/stretchr/testify/require"
)

var update = flag.Bool("update", false, "write the goldens anew")

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"carrel": main})
}

// TestScripts drives the program against a server that speaks the API (server_test.go).
func TestScripts(t *testing.T) {
	url := startServer(t)
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		UpdateScripts:       *update,
		Setup: func(env *testscript.Env) error {
			env.Setenv("XDG_CONFIG_HOME", filepath.Join(env.WorkDir, "config"))
			env.Setenv("HOME", env.WorkDir)
			env.Setenv("TZ", "UTC")
			env.Setenv("SERVER", url)
			return nil
		},
	})
}

// TestHelp holds every --help to its golden, and every command to having an example.
func TestHelp(t *testing.T) {
	seen := map[string]bool{}
	var walk func(*cobra.Command, []string)
	walk = func(cmd *cobra.Command, path []string) {
		name := strings.Join(append([]string{"carrel"}, path...), "-") + ".txt"
		seen[name] = true
		t.Run(cmd.CommandPath(), func(t *testing.T) {
			require.NotEmpty(t, cmd.Example, "every command shows an example")
			require.NotEmpty(t, cmd.Short)
			var out bytes.Buffer
			require.Equal(t, 0, run(append(path[:len(path):len(path)], "--help"), strings.NewReader(""), &out, io.Discard, nil))
			golden := filepath.Join("testdata", "help", name)
			if *update {
				require.NoError(t, os.WriteFile(golden, out.Bytes(), 0o600))
			}
			want, err := os.ReadFile(golden)
			require.NoError(t, err, "write it with: go test ./cmd/carrel -run TestHelp -update")
			require.Equal(t, string(want), out.String())
		})
		for _, sub := range cmd.Commands() {
			if sub.Name() != "help" && sub.Name() != "completion" {
				walk(sub, append(path[:len(path):len(path)], sub.Name()))
			}
		}
	}
	walk(newApp(nil, io.Discard, io.Discard, nil).root(), nil)
	files, err := filepath.Glob("testdata/help/*.txt")
	require.NoError(t, err)
	for _, f := range files {
		require.True(t, seen[filepath.Base(f)], "%s is the golden of no command", f)
	}
}

func TestAMisspeltVariableIsSaid(t *testing.T) {
	var out, errs bytes.Buffer
	env := []string{"HOME=" + t.TempDir(), "CARREL_TOKN=x", "CARREL_DATA=/srv", "CARREL_BENCH=all", "CARREL_SERVICE_HOST=10.0.0.1", "CARRELD_CONFIG=/etc/carrel.yaml"}
	require.Zero(t, run([]string{"version", "--help"}, strings.NewReader(""), &out, &errs, env))
	require.Equal(t, "carrel: CARREL_TOKN is set in the environment, and Carrel reads no such variable; did you mean CARREL_TOKEN?\n", errs.String())
}

func TestSizes(t *testing.T) {
	for text, want := range map[string]int64{"512M": 512 << 20, "4G": 4 << 30, "4GiB": 4 << 30, "1.5g": 3 << 29, "1024": 1024, "2T": 2 << 40} {
		got, ok := parseSize(text)
		require.True(t, ok, text)
		require.Equal(t, want, got, text)
	}
	for _, text := range []string{"", "x", "-1G", "0", "1e300G", "G", "1Q"} {
		_, ok := parseSize(text)
		require.False(t, ok, text)
	}
}
