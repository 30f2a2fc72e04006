package e2e

import (
	"fmt"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/failpoint"
)

// TestPreparedBoxesWhateverDies has the steps fail, be killed and be repeated that only prepared boxes come to: a box that is taken
// becomes its user's, and one that cannot be cloned begins afresh.
func TestPreparedBoxesWhateverDies(t *testing.T) {
	t.Parallel()
	s := newStack(t, options{pool: "3GiB", faults: true})
	happened := map[string]bool{}
	s.happened = func(f fault) { happened[f.step+"="+f.action] = true }
	tpl := s.push(fmt.Sprintf(warmTemplate, "the first", "one"))
	s.awaitPrebuild(tpl)
	pool := func(size int32) {
		t.Helper()
		_, err := s.client.Templates.UpdateTemplatePool(s.ctx(), connect.NewRequest(&carrelv1.UpdateTemplatePoolRequest{Name: "warm", Size: size}))
		require.NoError(t, err)
	}
	check := func(f fault, from string) {
		t.Helper()
		s.arm([]fault{f})
		name := "box-" + strings.ToLower(strings.NewReplacer("/", "-", "=", "-").Replace(f.String()))
		name = strings.TrimRight(name[:min(len(name), 40)], "-")
		box := s.create(name, warm("warm"), func(r *carrelv1.CreateBoxRequest) { r.Env = map[string]string{"MOOD": f.action} })
		require.Equal(t, from, box.GetStartedFrom(), "%s: %s", f, box.GetNotice())
		require.Equal(t, name+" "+f.action+" one", s.sh(name, "echo $(hostname) $MOOD $(cat /tmp/version)"), f)
		s.reap()
		require.True(t, happened[f.String()], "%s did not happen", f)
		s.remove(name)
	}
	actions := []string{failpoint.ActionKill, failpoint.ActionError, failpoint.ActionRepeat}
	pool(1)
	for _, step := range []string{"node/identify/written", "node/identify/told"} {
		for _, action := range actions {
			s.eventually("a box waits", func() bool {
				got, err := s.client.Templates.GetTemplate(s.ctx(), connect.NewRequest(&carrelv1.GetTemplateRequest{Name: "warm"}))
				return err == nil && got.Msg.GetPoolReady() == 1
			})
			check(fault{step, action}, "pool")
		}
	}
	pool(0)
	for _, action := range actions {
		s.awaitPrebuild(tpl)
		s.spoilPrebuild()
		check(fault{"node/start/afresh", action}, "fresh")
		s.eventually("it is made anew", func() bool {
			list := s.prebuilds("warm")
			return len(list) == 1 && list[0].GetState() == "ready"
		})
	}
}
