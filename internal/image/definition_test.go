package image

import (
	"io/fs"
	"os"
	"strings"
	"testing"

	"carrel.dev/carrel/images"
	"carrel.dev/carrel/internal/carrel"
	"github.com/stretchr/testify/require"
)

func TestParseDefinitionReadsEveryField(t *testing.T) {
	got, err := ParseDefinition([]byte(`
name: data
description: For data
suite: bookworm
mirror: http://mirror.example/debian
variant: essential
packages: [git, "sudo=1.9.13p3-1+deb12u1"]
exclude: [/usr/share/games/*]
files:
  - path: /etc/motd
    content: |
      Hello
  - path: /usr/local/bin/x
    mode: "755"
    content: "#!/bin/sh\n"
users:
  - {name: carrel, uid: 1000, sudo: true, groups: [video]}
environment: {LANG: C.UTF-8}
run: ["true"]
`))
	require.NoError(t, err)
	require.Equal(t, &Definition{
		Name: "data", Description: "For data", Suite: "bookworm", Mirror: "http://mirror.example/debian", Variant: "essential",
		Packages: []string{"git", "sudo=1.9.13p3-1+deb12u1"},
		Exclude:  []string{"/usr/share/games/*"},
		Files: []File{
			{Path: "/etc/motd", Mode: "0644", Content: "Hello\n"},
			{Path: "/usr/local/bin/x", Mode: "0755", Content: "#!/bin/sh\n"},
		},
		Users:       []User{{Name: "carrel", UID: 1000, Home: "/home/carrel", Shell: "/bin/bash", Groups: []string{"video"}, Sudo: true}},
		Environment: map[string]string{"LANG": "C.UTF-8"},
		Run:         []string{"true"},
	}, got)
}

func TestParseDefinitionErrors(t *testing.T) {
	const head = "name: a\nsuite: bookworm\n"
	for _, c := range []struct{ yaml, want string }{
		{"suite: bookworm\n", "is wrong on line 1: name is missing"},
		{"name: a\n", "is wrong on line 1: suite is missing; write Debian's release, such as bookworm"},
		{"name: a b\nsuite: bookworm\n", `is wrong on line 1: name "a b" is no name for an image: use 1 to 40 lower case letters, digits and hyphens, beginning with a letter`},
		{"name: a\nsuite: ../x\n", `is wrong on line 2: suite "../x" is no name of a Debian release`},
		{head + "variant: huge\n", `is wrong on line 3: variant "huge" does not exist; use one of essential, apt, minbase, important, standard`},
		{head + "mirror: file:///etc\n", `is wrong on line 3: mirror "file:///etc" is not the http or https URL of a Debian archive`},
		{head + "mirror: \"http://x/ [trusted=yes]\"\n", `is wrong on line 3: mirror "http://x/ [trusted=yes]" is not the http or https URL of a Debian archive`},
		{head + "packages:\n  - git\n  - \"--yes\"\n", `is wrong on line 5: packages[1] "--yes" is not the name of a Debian package, such as git or git=1:2.39.5-0`},
		{head + "packages: git\n", "is wrong on line 3: it has a single value where a list belongs"},
		{head + "files:\n  - path: etc/x\n", `is wrong on line 4: files[0].path "etc/x" is not a plain absolute path in the image`},
		{head + "files:\n  - path: /etc/../x\n", `is wrong on line 4: files[0].path "/etc/../x" is not a plain absolute path in the image`},
		{head + "files:\n  - path: /.carrel/bin/carrel-agent\n", `is wrong on line 4: files[0].path "/.carrel/bin/carrel-agent" belongs to Carrel`},
		{head + "files:\n  - path: /proc/x\n", `is wrong on line 4: files[0].path "/proc/x" lies in /proc, which every box makes anew`},
		{head + "files:\n  - path: /a\n    mode: \"0999\"\n", `is wrong on line 5: files[0].mode "0999" is not an octal mode in quotes, such as "0644"`},
		{head + "files:\n  - path: /a\n    owner: x\n", "is wrong on line 5: owner is not a field that exists here; see the spelling"},
		{head + "users:\n  - name: root\n    uid: 1001\n", `is wrong on line 4: users[0].name "root" is no name for a user: use 1 to 32 lower case letters, digits, _ and -, not root`},
		{head + "users:\n  - name: eve\n    uid: 0\n", "is wrong on line 5: users[0].uid is 0; it must be from 1000 to 59999"},
		{head + "users:\n  - name: eve\n    uid: 1000\n", "is wrong on line 5: users[0].uid is 1000; uid 1000 belongs to the user carrel, in whose name a box works"},
		{head + "users:\n  - name: carrel\n    uid: 1000\n    sudo: true\n", "is wrong on line 6: users[0].sudo is true, and the package sudo is not in packages; add it"},
		{head + "environment:\n  A-B: x\n", `is wrong on line 4: environment "A-B" is no name for a variable: use letters, digits and _`},
		{head + "environment:\n  A: \"x\\ny\"\n", "is wrong on line 4: environment.A must be one line of at most 4096 bytes"},
		{head + "run: [\" \"]\n", "is wrong on line 3: run[0] must be a shell command of at most 65536 bytes"},
		{head + "exclude: [usr]\n", `is wrong on line 3: exclude[0] "usr" is not the pattern of an absolute path, such as /usr/share/games/*`},
	} {
		_, err := ParseDefinition([]byte(c.yaml))
		var e *carrel.Error
		require.ErrorAs(t, err, &e, c.yaml)
		require.Equal(t, carrel.CodeInvalid, e.Code)
		require.Equal(t, "bad_image_definition", e.Reason)
		require.Equal(t, "the image definition "+c.want, e.Message, c.yaml)
	}
}

func TestKeyCoversContentsOnly(t *testing.T) {
	parse := func(yaml string) *Definition {
		d, err := ParseDefinition([]byte(yaml))
		require.NoError(t, err)
		return d
	}
	base := parse("name: a\nsuite: bookworm\npackages: [bb, aa]\n").Key()
	require.Equal(t, base, parse("name: z\ndescription: x\nsuite: bookworm\nvariant: minbase\npackages: [aa, bb, aa]\n").Key())
	for _, other := range []string{"packages: [aa]", "packages: [aa, bb]\nrun: [x]", "packages: [aa, bb]\nenvironment: {A: b}", "packages: [aa, bb]\nexclude: [/x]", "packages: [aa, bb]\nfiles: [{path: /x}]", "packages: [aa, bb]\nmirror: http://x/debian", "packages: [aa, bb]\nusers: [{name: u, uid: 1001}]", "packages: [aa, bb]\nvariant: apt"} {
		require.NotEqual(t, base, parse("name: a\nsuite: bookworm\n"+other+"\n").Key(), other)
	}
}

func TestShippedDefinitions(t *testing.T) {
	names, err := fs.Glob(images.Files, "*.yaml")
	require.NoError(t, err)
	require.Equal(t, []string{"base.yaml", "python.yaml", "tiny.yaml"}, names)
	for _, name := range names {
		data, err := fs.ReadFile(images.Files, name)
		require.NoError(t, err)
		d, err := ParseDefinition(data)
		require.NoError(t, err, name)
		require.Equal(t, strings.TrimSuffix(name, ".yaml"), d.Name)
		require.Empty(t, d.Mirror, "which archive to use is the machine's business")
		require.Contains(t, d.Users, User{Name: boxUser, UID: boxUID, Home: boxHome, Shell: "/bin/bash", Sudo: true})
	}
}

func FuzzParseDefinition(f *testing.F) {
	for _, name := range []string{"base", "tiny"} {
		data, err := os.ReadFile("../../images/" + name + ".yaml")
		require.NoError(f, err)
		f.Add(data)
	}
	f.Add([]byte("name: a\nsuite: b\nfiles: [{path: /x, mode: \"7\"}]\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		d, err := ParseDefinition(data)
		if err != nil {
			require.Equal(t, "bad_image_definition", carrel.ReasonOf(err))
			return
		}
		require.Len(t, d.Key(), 64)
		script := customizeScript(d, "/work")
		require.NotContains(t, script, "\x00")
	})
}
