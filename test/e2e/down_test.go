package e2e

import (
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/client"
)

// `make down` leaves nothing running, whoever's it is and also what nobody has asked for yet; the next start brings all of it back.
func TestDownLeavesNothingRunning(t *testing.T) {
	s := newStack(t, options{})
	_, err := s.client.Users.CreateUser(s.ctx(), connect.NewRequest(&carrelv1.CreateUserRequest{Name: "ada"}))
	require.NoError(t, err)
	_, err = s.client.Orgs.CreateOrg(s.ctx(), connect.NewRequest(&carrelv1.CreateOrgRequest{Name: "research"}))
	require.NoError(t, err)
	_, err = s.client.Orgs.SetMember(s.ctx(), connect.NewRequest(&carrelv1.SetMemberRequest{Org: "research", User: "ada", Role: "owner"}))
	require.NoError(t, err)
	_, err = s.client.Orgs.RemoveMember(s.ctx(), connect.NewRequest(&carrelv1.RemoveMemberRequest{Org: "research", User: "admin"}))
	require.NoError(t, err)
	token, err := s.client.Tokens.CreateToken(s.ctx(), connect.NewRequest(&carrelv1.CreateTokenRequest{User: "ada"}))
	require.NoError(t, err)
	// asAda is a client of a user whose boxes the administrator may not see, after each start.
	asAda := func() *stack {
		ada := *s
		var err error
		ada.client, err = client.New(client.Config{Context: client.Context{URL: s.url, Token: token.Msg.GetSecret(), Org: "research"}})
		require.NoError(t, err)
		return &ada
	}
	pool := func(size int32) {
		_, err := s.client.Templates.UpdateTemplatePool(s.ctx(), connect.NewRequest(&carrelv1.UpdateTemplatePoolRequest{Org: "system", Name: "tiny", Size: size}))
		require.NoError(t, err)
		s.eventually("the pool has its boxes", func() bool {
			template, err := s.client.Templates.GetTemplate(s.ctx(), connect.NewRequest(&carrelv1.GetTemplateRequest{Org: "system", Name: "tiny"}))
			return err == nil && template.Msg.GetPoolReady() == size
		})
	}

	s.create("mine")
	ada := asAda()
	ada.create("hers")
	counting := ada.background("hers", "while :; do sleep 0.1; done")
	pool(1)
	ada.client.Close()
	s.client.Close()

	down := exec.CommandContext(s.ctx(), filepath.Join(bin(t), "carreld"), "down", "--data", s.data)
	said, err := down.CombinedOutput()
	require.NoError(t, err, "%s\n%s", said, lazy(s.logs))
	select {
	case <-s.ended:
	case <-time.After(settleTime):
		require.FailNow(t, "up has not ended", s.logs())
	}
	require.Empty(t, s.sandboxes(), "%s", said)

	s.start()
	ada = asAda()
	defer ada.client.Close()
	s.await("mine", paused)
	ada.await("hers", paused)
	s.eventually("the pool is filled again", func() bool {
		template, err := s.client.Templates.GetTemplate(s.ctx(), connect.NewRequest(&carrelv1.GetTemplateRequest{Org: "system", Name: "tiny"}))
		return err == nil && template.Msg.GetPoolReady() == 1
	})
	ada.resume("hers")
	listed, err := ada.client.ListProcesses(s.ctx(), "hers")
	require.NoError(t, err)
	running := false
	for _, p := range listed {
		running = running || p.GetId() == counting && p.GetRunning()
	}
	require.True(t, running, "its process goes on")
	ada.remove("hers") // the stack's own end sees only what the administrator sees
}

// sandboxes are the command lines of runsc that stand in this stack's directory.
func (s *stack) sandboxes() []string {
	var found []string
	processes, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range processes {
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		line := strings.Join(commandLine(pid), " ")
		if strings.Contains(line, "runsc") && strings.Contains(line, s.runDir) {
			found = append(found, line)
		}
	}
	return found
}
