package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/agent/identity"
)

// warmTemplate prepares a file in the home and one in memory, and a process that counts.
const warmTemplate = `
name: warm
image: tiny
description: %s
resources: {cpu: 1, memory: 256MiB, home: 64MiB, root: 64MiB, processes: 256}
sudo: true
env: {GREETING: hello}
prebuild:
  setup:
    - echo prepared > ~/prepared; echo %s > /tmp/version
    - nohup sh -c 'while :; do date +%%s%%N > /tmp/count; sleep 0.2; done' > /dev/null 2>&1 & echo $! > /tmp/counter
`

func (s *stack) push(yaml string) *carrelv1.Template {
	s.t.Helper()
	t, err := s.client.Templates.PushTemplate(s.ctx(), connect.NewRequest(&carrelv1.PushTemplateRequest{Yaml: yaml}))
	require.NoError(s.t, err)
	return t.Msg
}

func (s *stack) prebuilds(template string) []*carrelv1.Prebuild {
	s.t.Helper()
	list, err := s.client.Templates.ListPrebuilds(s.ctx(), connect.NewRequest(&carrelv1.ListPrebuildsRequest{Template: template}))
	require.NoError(s.t, err)
	return list.Msg.GetPrebuilds()
}

// awaitPrebuild waits until the only prebuild is ready, and that of the template.
func (s *stack) awaitPrebuild(t *carrelv1.Template) *carrelv1.Prebuild {
	s.t.Helper()
	var ready *carrelv1.Prebuild
	s.eventually("a prebuild is ready", func() bool {
		list := s.prebuilds(t.GetName())
		if len(list) == 1 && list[0].GetState() == "ready" && list[0].GetTemplateId() == t.GetId() {
			ready = list[0]
		}
		return ready != nil
	})
	return ready
}

func warm(name string) func(*carrelv1.CreateBoxRequest) {
	return func(r *carrelv1.CreateBoxRequest) { r.Template = name }
}

// who is everything by which a box is told from others.
func (s *stack) who(box string) map[string]string {
	s.t.Helper()
	out := map[string]string{}
	for line := range strings.Lines(s.sh(box, `echo hostname=$(hostname); echo etc=$(cat /etc/hostname); echo machine=$(cat /etc/machine-id); echo random=$(head -c 16 /dev/urandom | od -An -tx1 | tr -d ' ')
`)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		out[name] = value
	}
	return out
}

func TestPrebuild(t *testing.T) {
	t.Parallel()
	s := newStack(t, options{})
	first := s.push(fmt.Sprintf(warmTemplate, "the first", "one"))
	require.NotNil(t, first.GetPrebuild())
	made := s.awaitPrebuild(first)
	require.Positive(t, made.GetSizeBytes())
	require.Positive(t, made.GetBuildTime().AsDuration())
	require.Empty(t, s.boxes(), "nobody sees the box that it was made in")

	a, b := s.create("alpha", warm("warm")), s.create("beta", warm("warm"), func(r *carrelv1.CreateBoxRequest) { r.Env = map[string]string{"MOOD": "good"} })
	for _, box := range []*carrelv1.Box{a, b} {
		require.Equal(t, "prebuild", box.GetStartedFrom(), box.GetNotice())
		require.Equal(t, "one", s.sh(box.GetName(), "cat /tmp/version"), "its memory is there")
		require.Equal(t, "prepared", s.sh(box.GetName(), "cat ~/prepared"), "its home too")
		s.sh(box.GetName(), "kill -0 $(cat /tmp/counter)")
		require.Equal(t, "hello", s.sh(box.GetName(), "echo $GREETING"))
	}
	require.Equal(t, "good", s.sh("beta", "echo $MOOD"), "new processes have the box's own environment")
	one, two := s.who("alpha"), s.who("beta")
	require.Equal(t, "alpha", one["hostname"])
	require.Equal(t, "beta", two["hostname"])
	for name := range one {
		require.NotEqual(t, one[name], two[name], name)
	}
	require.NotEqual(t, s.identity(a).Key, s.identity(b).Key, "keys")
	s.sh("alpha", "echo mine > ~/mine; echo mine > /mine 2>/dev/null || sudo sh -c 'echo mine > /mine'")
	require.NotZero(t, s.exec("beta", "cat", "/home/carrel/mine").code, "homes are their own")
	require.NotZero(t, s.exec("beta", "cat", "/mine").code, "and so are roots")

	// A clone is a box like any other.
	s.pause("alpha")
	s.resume("alpha")
	require.Equal(t, "mine", s.sh("alpha", "cat ~/mine"))
	require.Equal(t, "one", s.sh("alpha", "cat /tmp/version"))
	s.stopBox("alpha")
	again := s.startBox("alpha")
	require.Equal(t, "disk", again.GetStartedFrom())
	require.Equal(t, "mine", s.sh("alpha", "cat ~/mine /mine | uniq"))
	require.Equal(t, one["machine"], s.sh("alpha", "cat /etc/machine-id"), "it is the same machine")

	// One that is larger than the template says cannot be a clone; its set-up is done at the start.
	large := s.create("large", warm("warm"), func(r *carrelv1.CreateBoxRequest) { r.Resources = &carrelv1.Resources{MemoryBytes: 384 << 20} })
	require.Equal(t, "fresh", large.GetStartedFrom())
	require.Equal(t, "prepared", s.sh("large", "cat ~/prepared"))

	// A version with the same recipe needs no other prebuild; another recipe does.
	same := s.push(fmt.Sprintf(warmTemplate, "said otherwise", "one"))
	require.Equal(t, "prebuild", s.create("gamma", warm("warm")).GetStartedFrom())
	require.Equal(t, first.GetId(), s.awaitPrebuild(first).GetTemplateId())
	require.NotEqual(t, first.GetId(), same.GetId())
	second := s.push(fmt.Sprintf(warmTemplate, "the second", "two"))
	s.awaitPrebuild(second)
	require.Equal(t, "prebuild", s.create("delta", warm("warm")).GetStartedFrom())
	require.Equal(t, "two", s.sh("delta", "cat /tmp/version"))
	require.Equal(t, "fresh", s.create("old", warm("warm@1")).GetStartedFrom(), "another recipe's prebuild is never used")
	require.Equal(t, "one", s.sh("old", "cat /tmp/version"))

	// What damages a prebuild costs time and no box.
	s.spoilPrebuild()
	epsilon := s.create("epsilon", warm("warm"))
	require.Equal(t, "fresh", epsilon.GetStartedFrom())
	require.Contains(t, epsilon.GetNotice(), "could not be cloned")
	require.Equal(t, "two", s.sh("epsilon", "cat /tmp/version"))
	s.eventually("another prebuild is made", func() bool {
		list := s.prebuilds("warm")
		return len(list) == 1 && list[0].GetState() == "ready" && list[0].GetCreateTime().AsTime().After(epsilon.GetCreateTime().AsTime())
	})
	require.Equal(t, "prebuild", s.create("zeta", warm("warm")).GetStartedFrom())
}

func TestFailedPrebuild(t *testing.T) {
	t.Parallel()
	s := newStack(t, options{})
	s.push("name: broken\nimage: tiny\nresources: {memory: 256MiB, home: 64MiB, root: 64MiB}\nprebuild:\n  setup: ['echo the mirror is down >&2; exit 4']\n")
	s.eventually("it says why there is no prebuild", func() bool {
		list := s.prebuilds("broken")
		if len(list) != 1 || list[0].GetState() != "failed" {
			return false
		}
		f := list[0].GetFailure()
		return f.GetReason() == "prepare_failed" && strings.Contains(f.GetMessage(), "the mirror is down") && f.GetTransient()
	})
}

func TestWarmPool(t *testing.T) {
	t.Parallel()
	s := newStack(t, options{})
	s.awaitPrebuild(s.push(fmt.Sprintf(warmTemplate, "the first", "one")))
	pool := func(size int32) {
		t.Helper()
		_, err := s.client.Templates.UpdateTemplatePool(s.ctx(), connect.NewRequest(&carrelv1.UpdateTemplatePoolRequest{Name: "warm", Size: size}))
		require.NoError(t, err)
	}
	ready := func(n int32) {
		t.Helper()
		s.eventually(fmt.Sprintf("%d boxes wait", n), func() bool {
			got, err := s.client.Templates.GetTemplate(s.ctx(), connect.NewRequest(&carrelv1.GetTemplateRequest{Name: "warm"}))
			return err == nil && got.Msg.GetPoolReady() == n
		})
	}
	pool(1)
	ready(1)
	require.Empty(t, s.boxes(), "nobody sees those that wait")
	counter := func(box string) string { return s.sh(box, "cat /tmp/counter") }
	a := s.create("alpha", warm("warm"), func(r *carrelv1.CreateBoxRequest) { r.Env = map[string]string{"MOOD": "good"} })
	require.Equal(t, "pool", a.GetStartedFrom(), a.GetNotice())
	require.Len(t, s.boxes(), 1, "it is seen from now on")
	require.Equal(t, "good", s.sh("alpha", "echo $MOOD"))
	one := s.who("alpha")
	require.Equal(t, "alpha", one["hostname"])
	require.Equal(t, "alpha", one["etc"])
	ready(1)
	b := s.create("beta", warm("warm"))
	require.Equal(t, "pool", b.GetStartedFrom())
	two := s.who("beta")
	require.Equal(t, "beta", two["hostname"])
	for _, name := range []string{"machine", "random"} {
		require.NotEqual(t, one[name], two[name], name)
	}
	require.NotEqual(t, s.identity(a).Key, s.identity(b).Key)

	// It is a box like any other.
	was := counter("alpha")
	s.pause("alpha")
	resumed := s.resume("alpha")
	require.Equal(t, "memory", resumed.GetStartedFrom())
	require.Equal(t, was, counter("alpha"))
	require.Equal(t, one["hostname"], s.sh("alpha", "hostname"))
	require.Equal(t, "good", s.sh("alpha", "echo $MOOD"))
	s.sh("alpha", "echo mine > ~/mine")
	s.stopBox("alpha")
	s.startBox("alpha")
	require.Equal(t, "mine alpha", s.sh("alpha", "echo $(cat ~/mine) $(hostname)"))
	s.remove("alpha")

	// The node daemon may die while one is taken.
	ready(1)
	s.create("gamma", warm("warm"))
	pool(0)
	ready(0)
	require.NotEqual(t, "pool", s.create("delta", warm("warm")).GetStartedFrom())
}

// spoilPrebuild damages the memory of every snapshot on the node.
func (s *stack) spoilPrebuild() {
	s.t.Helper()
	files, err := filepath.Glob(filepath.Join(s.data, "node", "pool", "snapshots", "s*", "memory", "pages.img"))
	require.NoError(s.t, err)
	require.NotEmpty(s.t, files)
	for _, file := range files {
		require.NoError(s.t, os.Chmod(file, 0o600))
		f, err := os.OpenFile(file, os.O_RDWR, 0)
		require.NoError(s.t, err)
		info, err := f.Stat()
		require.NoError(s.t, err)
		_, err = f.WriteAt([]byte("damage"), info.Size()/2)
		require.NoError(s.t, err)
		require.NoError(s.t, f.Close())
	}
}

func (s *stack) boxes() []*carrelv1.Box {
	s.t.Helper()
	var all []*carrelv1.Box
	for _, org := range []string{"default", "system"} {
		list, err := s.client.Boxes.ListBoxes(s.ctx(), connect.NewRequest(&carrelv1.ListBoxesRequest{Org: org}))
		require.NoError(s.t, err)
		all = append(all, list.Msg.GetBoxes()...)
	}
	return all
}

// identity is what the agent of a running box was told.
func (s *stack) identity(box *carrelv1.Box) identity.Identity {
	s.t.Helper()
	id, err := identity.Read(filepath.Join(s.runDir, "identities", box.GetRunId()))
	require.NoError(s.t, err)
	return id
}
