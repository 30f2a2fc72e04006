package main

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/goccy/go-yaml"
	"github.com/stretchr/testify/require"

	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/client"
)

func configFile(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "carrel.yaml")
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	return path
}

func nothing(string) string { return "" }

// Each setting can be made in three places, and the one nearest to the person counts.
func TestFlagsGoOverTheEnvironmentAndThatOverTheFile(t *testing.T) {
	file := configFile(t, "data: /file\ngateway:\n  http: 127.0.0.1:1\nnode:\n  name: one\n  pool_size: 1GiB\n")
	environ := func(name string) string {
		return map[string]string{"CARREL_HTTP": "127.0.0.1:2", "CARREL_POOL_SIZE": "2GiB"}[name]
	}
	c, err := loadConfig(file, environ, map[string]string{"pool-size": "3GiB"})
	require.NoError(t, err)
	require.Equal(t, "one", c.Node.Name)
	require.Equal(t, "127.0.0.1:2", c.Gateway.HTTP)
	require.Equal(t, "3GiB", c.Node.PoolSize)
	require.Equal(t, "/file/node", c.Node.Dir, "what nobody says follows from what somebody does")
	require.Equal(t, "127.0.0.1:7071", c.Control.Listen)

	c, err = loadConfig(configFile(t, " \n"), nothing, nil)
	require.NoError(t, err)
	require.Equal(t, "/var/lib/carrel", c.Data)
	require.Equal(t, "127.0.0.1:7070", c.Gateway.HTTP)
}

func TestAConfigurationThatIsWrongIsRefused(t *testing.T) {
	for text, says := range map[string]string{
		"gateway:\n  htp: x\n":                     `unknown field "htp"`,
		"data: /a\ndata: /b\n":                     "data",
		"data: /a\n---\ndata: /b\n":                "a second document",
		"data: [/a]\n":                             "data",
		"data: a\n":                                `data is "a"; it must be an absolute path`,
		"gateway:\n  http: 7070\n":                 "gateway.http",
		"gateway:\n  http: 127.0.0.1:70700\n":      `gateway.http is "127.0.0.1:70700"; it must be HOST:PORT`,
		"gateway:\n  port_domain: A_b\n":           "gateway.port_domain",
		"control:\n  quotas:\n    boxes: -1\n":     "control.quotas.boxes is -1",
		"control:\n  quotas:\n    boxes: many\n":   "boxes",
		"log:\n  level: loud\n":                    "log.level",
		"node:\n  pool_size: 5\n":                  "node.pool_size",
		"node:\n  net_range: 10.0.0.0/30\n":        "node.net_range",
		"node:\n  name: Bad_Name\n":                "Bad_Name",
		"reconcile:\n  ops: unix:relative\n":       "reconcile.ops",
		"control:\n  key: c2VjcmV0\n":              `unknown field "key"`, // secrets are in files
		"control:\n  database:\n    password: x\n": `unknown field "password"`,
	} {
		_, err := loadConfig(configFile(t, text), nothing, nil)
		require.Equal(t, carrel.CodeInvalid, carrel.CodeOf(err), text)
		require.ErrorContains(t, err, says, text)
	}
	_, err := loadConfig("/nowhere/carrel.yaml", nothing, nil)
	require.Equal(t, "no_config", carrel.ReasonOf(err))
}

// What `config check` prints is a configuration, and the same one.
func TestWhatIsInForceCanBeUsedAsAFile(t *testing.T) {
	var printed, again, errs bytes.Buffer
	args := []string{"config", "check", "--data", "/srv/carrel", "--http", "127.0.0.1:8080"}
	require.Zero(t, run(t.Context(), args, &printed, &errs, nil), errs.String())
	file := configFile(t, printed.String())
	require.Zero(t, run(t.Context(), []string{"config", "check", "--config", file}, &again, &errs, nil), errs.String())
	require.Equal(t, printed.String(), again.String())
	read := &Config{}
	require.NoError(t, yaml.UnmarshalWithOptions(again.Bytes(), read, yaml.Strict()))
	require.Equal(t, "127.0.0.1:8080", read.Gateway.HTTP)

	require.Equal(t, 1, run(t.Context(), []string{"config", "check", "--config", configFile(t, "dta: /x\n")}, &again, &errs, nil))
	require.Contains(t, errs.String(), `unknown field "dta"`)
}

// A variable that is misspelt is said and not passed over: by the check, which fails, and by what runs, which goes on.
func TestAMisspeltVariableIsSaid(t *testing.T) {
	try := func(args []string, env ...string) (code int, out, errs string) {
		var stdout, stderr bytes.Buffer
		code = run(t.Context(), args, &stdout, &stderr, env)
		return code, stdout.String(), stderr.String()
	}
	check := []string{"config", "check"}
	code, out, errs := try(check, "CARREL_HTP=127.0.0.1:1", "CARREL_DATA=/srv")
	require.Equal(t, 1, code)
	require.Empty(t, out)
	require.Equal(t, "carreld: CARREL_HTP is set in the environment, and Carrel reads no such variable; did you mean CARREL_HTTP?\n", errs)
	_, _, errs = try(check, "CARRELD_CONFG=/etc/carrel.yaml")
	require.Contains(t, errs, "did you mean CARRELD_CONFIG?")
	_, _, errs = try(check, "CARRELD_HTTP=127.0.0.1:1")
	require.Contains(t, errs, "did you mean CARREL_HTTP?")

	code, out, errs = try(check, "CARREL_SERVICE_HOST=10.0.0.1") // as Kubernetes has it for a service of this name
	require.Zero(t, code)
	require.NotEmpty(t, out)
	require.Equal(t, "carreld: CARREL_SERVICE_HOST is set in the environment, and Carrel reads no such variable\n", errs)

	// A role that cannot begin for another reason has said it before.
	code, _, errs = try([]string{"control"}, "CARREL_HTP=x", "CARREL_DATA="+t.TempDir())
	require.Equal(t, 1, code)
	require.Contains(t, errs, "variable=CARREL_HTP did_you_mean=CARREL_HTTP")
}

func TestVariablesOfOtherPartsAreNoMistakes(t *testing.T) {
	var env []string
	for _, name := range knownVariables() {
		env = append(env, name+"=")
	}
	var out, errs bytes.Buffer
	require.Zero(t, run(t.Context(), []string{"config", "check"}, &out, &errs, env))
	require.Empty(t, errs.String())
	for _, v := range client.UnreadVariables(env, client.Variables) {
		require.Empty(t, v.Meant, "%s is a variable of the server, and no misspelt one of the command line", v.Name)
	}
}
