package template_test

import (
	"errors"
	"io/fs"
	"strings"
	"testing"
	"time"

	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/template"
	"carrel.dev/carrel/templates"
	"github.com/stretchr/testify/require"
)

func TestParseReadsEveryField(t *testing.T) {
	got, err := template.Parse([]byte(`
name: data
description: For data
image: python
resources:
  cpu: 500m
  memory: 1.5GiB
  home: 10GB
  root: 1073741824
  processes: 2000
  tmp: 64MiB
  shm: 32 MiB
env:
  PAGER: less
sudo: true
startup:
  - echo ready
labels:
  team: data
idle:
  after: 45m
  action: stop
  max_run: 1d12h
  ttl: 7d
  busy_cpu: 0.5
  wake: no
  keep_shell: 90s
`))
	require.NoError(t, err)
	require.Equal(t, &template.Template{
		Name: "data", Description: "For data", Image: "python",
		Resources: carrel.Resources{
			CPUMillis: 500, MemoryBytes: 1536 * carrel.MiB, HomeBytes: 10_000_000_000, RootBytes: carrel.GiB,
			Processes: 2000, TmpBytes: 64 * carrel.MiB, ShmBytes: 32 * carrel.MiB,
		},
		Env: map[string]string{"PAGER": "less"}, Sudo: true, Startup: []string{"echo ready"}, Labels: map[string]string{"team": "data"},
		Idle: carrel.IdlePolicy{
			After: 45 * time.Minute, Action: carrel.IdleStop, MaxRun: 36 * time.Hour, TTL: 7 * 24 * time.Hour, BusyCPUMillis: 500, Wake: "no", KeepShell: 90 * time.Second,
		},
	}, got)
}

// What a file does not say of idleness stays unsaid, so that a later change of the defaults holds for it.
func TestIdleSaysOnlyWhatIsWritten(t *testing.T) {
	got, err := template.Parse([]byte("name: a\nimage: base\n"))
	require.NoError(t, err)
	require.Zero(t, got.Idle)
	got, err = template.Parse([]byte("name: a\nimage: base\nidle: {max_run: never, busy_cpu: never, wake: yes}\n"))
	require.NoError(t, err)
	require.Equal(t, carrel.IdlePolicy{MaxRun: carrel.Never, BusyCPUMillis: carrel.NeverCPU, Wake: "yes"}, got.Idle)
}

func TestParseFillsInWhatIsNotSaid(t *testing.T) {
	got, err := template.Parse([]byte("name: a\nimage: base\n"))
	require.NoError(t, err)
	require.Equal(t, carrel.DefaultResources, got.Resources)

	got, err = template.Parse([]byte("name: a\nimage: base\nresources: {memory: 128MiB}\n"))
	require.NoError(t, err)
	require.Equal(t, 32*carrel.MiB, got.Resources.TmpBytes, "a small memory makes /tmp small too")
	require.NoError(t, got.Resources.Validate())
}

func TestParseErrors(t *testing.T) {
	for _, c := range []struct{ yaml, want string }{
		{"", "the template is empty"},
		{"- a\n", "the template is wrong on line 1: it must be a mapping of fields to values"},
		{"name: a\nimage: b\nimages: c\n", "the template is wrong on line 3: images is not a field that exists here; see the spelling"},
		{"name: a\nname: b\nimage: c\n", "the template is wrong on line 2: name is written twice"},
		{"image: b\n", "the template is wrong on line 1: name is missing"},
		{"name: A\nimage: b\n", `the template is wrong on line 1: name "A" is no name for a template: use 1 to 40 lower case letters, digits and hyphens, beginning with a letter`},
		{"name: a\nimage: sha256:abc\n", `the template is wrong on line 2: image "sha256:abc" is neither the name of an image nor sha256: and 64 hexadecimal digits`},
		{"name: a\nimage: b\nresources:\n  cpu: 1\n  memory: 4 potatoes\n", `the template is wrong on line 5: resources.memory is "4 potatoes", whose unit is not known; write a size such as 4GiB or 512MiB`},
		{"name: a\nimage: b\nresources:\n  cpu: many\n", `the template is wrong on line 4: resources.cpu is "many", which is no number of cores; write cores such as 2 or 0.5, or thousandths such as 500m`},
		{"name: a\nimage: b\nresources:\n  memory: 1MiB\n", "the template is wrong on line 4: resources.memory is 1MiB; it must be from 128MiB to 1TiB"},
		{"name: a\nimage: b\nresources:\n  memory: 256MiB\n  tmp: 512MiB\n", "the template is wrong on line 4: resources do not fit together: tmp_bytes and shm_bytes are together 570425344, more than memory_bytes 268435456 of which they are a part"},
		{"name: a\nimage: b\nresources:\n  disk: 1GiB\n", "the template is wrong on line 4: disk is not a field that exists here; see the spelling"},
		{"name: a\nimage: b\nsudo: perhaps\n", "the template is wrong on line 3: sudo must be true or false"},
		{"name: a\nimage: b\nstartup: [\"\"]\n", "the template is wrong on line 3: startup[0] must be a shell command of at most 16384 bytes"},
		{"name: a\nimage: b\nenv: {\"1A\": x}\n", `the template is wrong on line 3: env cannot be used: the environment variable "1A" is not usable: names are letters, digits and _, and values have no zero byte`},
		{"name: &x a\nimage: *x\n", `the template is wrong on line 1: it uses "&"; anchors, aliases and merge keys are not read, write the value out`},
		{"name: a\n---\nname: b\n", "the template is wrong on line 3: it has a second document; write one per file"},
		{"name: a\nimage: b\nidle:\n  after: soon\n", `the template is wrong on line 4: idle.after is "soon", which is no length of time; write it such as 90s, 30m, 12h or 7d`},
		{"name: a\nimage: b\nidle:\n  action: stop\n  after: 0s\n", `the template is wrong on line 5: idle.after is "0s"; leave it out, or write a time such as 30m`},
		{"name: a\nimage: b\nidle:\n  after: 31d\n", "the template is wrong on line 4: idle.after is 31d; it must be from 1s to 30d"},
		{"name: a\nimage: b\nidle:\n  after: never\n", "the template is wrong on line 4: idle.after is never; it must be from 1s to 30d"},
		{"name: a\nimage: b\nidle:\n  action: sleep\n", `the template is wrong on line 4: idle.action is "sleep"; it is pause, stop or nothing`},
		{"name: a\nimage: b\nidle:\n  wake: maybe\n", `the template is wrong on line 4: idle.wake is "maybe"; it is yes or no`},
		{"name: a\nimage: b\nidle:\n  busy_cpu: 200\n", "the template is wrong on line 4: idle.busy_cpu is 200000 thousandths of a core; it must be from 10 to 128000, or never"},
		{"name: a\nimage: b\nidle:\n  afterwards: 1m\n", "the template is wrong on line 4: afterwards is not a field that exists here; see the spelling"},
		{"name: [\n", "the template is wrong on line 1: it cannot be read: sequence end token ']' not found"},
	} {
		_, err := template.Parse([]byte(c.yaml))
		var e *carrel.Error
		require.ErrorAs(t, err, &e, c.yaml)
		require.Equal(t, carrel.CodeInvalid, e.Code)
		require.Equal(t, "bad_template", e.Reason)
		require.Equal(t, c.want, e.Message, c.yaml)
	}
}

func TestErrorsNameLineAndFieldForPrograms(t *testing.T) {
	_, err := template.Parse([]byte("name: a\nimage: b\nresources:\n  cpu: many\n"))
	var e *carrel.Error
	require.True(t, errors.As(err, &e))
	require.Equal(t, map[string]string{"line": "4", "field": "resources.cpu"}, e.Metadata)
}

func TestShippedTemplates(t *testing.T) {
	names, err := fs.Glob(templates.Files, "*.yaml")
	require.NoError(t, err)
	require.Equal(t, []string{"base.yaml", "python.yaml", "tiny.yaml"}, names)
	for _, name := range names {
		data, err := fs.ReadFile(templates.Files, name)
		require.NoError(t, err)
		got, err := template.Parse(data)
		require.NoError(t, err, name)
		require.Equal(t, strings.TrimSuffix(name, ".yaml"), got.Name)
		require.True(t, got.Sudo)
	}
}

func TestSizes(t *testing.T) {
	for text, want := range map[string]int64{"0": 0, "17": 17, "1B": 1, "1KiB": 1024, "1.5MiB": 1572864, "2GB": 2e9, "1 TiB": 1 << 40, "0.0001KiB": 0} {
		got, err := template.ParseSize(text)
		require.NoError(t, err, text)
		require.Equal(t, want, got, text)
	}
	for _, text := range []string{"", "-1", "1e3", "GiB", "1gib", "99999999999TiB", "1GiBs", "١GiB", "0x10"} {
		_, err := template.ParseSize(text)
		require.Equal(t, "bad_size", carrel.ReasonOf(err), text)
	}
	for text, want := range map[string]int64{"2": 2000, "0.5": 500, "500m": 500, "1.25": 1250} {
		got, err := template.ParseCPU(text)
		require.NoError(t, err, text)
		require.Equal(t, want, got, text)
	}
	for _, text := range []string{"", "-1", "0.5m", "2cores", "1e9"} {
		_, err := template.ParseCPU(text)
		require.Equal(t, "bad_cpu", carrel.ReasonOf(err), text)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("name: a\nimage: b\nresources: {cpu: 1, memory: 512MiB}\n"))
	f.Add([]byte("name: a\nimage: b\nenv: {A: b}\nstartup: [x]\n"))
	f.Add([]byte("{{{{[[[[- - - - ?"))
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := template.Parse(data)
		if err != nil {
			require.Equal(t, "bad_template", carrel.ReasonOf(err))
			return
		}
		require.NoError(t, got.Resources.Validate())
		require.NoError(t, got.Idle.Validate())
	})
}
