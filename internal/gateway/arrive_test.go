package gateway_test

import (
	"context"
	"errors"
	"net/http"
	"testing"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"
	"google.golang.org/genproto/googleapis/rpc/errdetails"

	linkv1 "carrel.dev/carrel/api/carrel/link/v1"
	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/auth"
	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/client"
)

// sleep puts the stack's box to sleep, from where a wake-up brings it back.
func (s *stack) sleep() {
	s.t.Helper()
	s.control.tell(&linkv1.RoutesUpdate{Grants: []*linkv1.Grant{s.grant(testUser, auth.ScopeExec)}})
	s.control.mu.Lock()
	epoch := s.control.routes[s.box].GetEpoch()
	s.control.users.found = carrel.StatePaused
	s.control.users.woken = func() (carrel.State, error) {
		r := s.route(epoch + 1)
		r.OrgId, r.BoxName, r.Wake = string(testOrg), "dev", true
		s.control.routes[s.box] = r
		s.control.users.found = carrel.StateRunning
		s.proxy.epoch.Store(r.GetEpoch())
		close(s.control.changed)
		s.control.changed = make(chan struct{})
		return carrel.StateResuming, nil
	}
	s.control.mu.Unlock()
	s.control.setRoute(&linkv1.Route{BoxId: string(s.box), Epoch: epoch, OrgId: string(testOrg), BoxName: "dev", Wake: true, Gone: true})
	ticket := s.ticket(func(t *auth.Ticket) { t.Epoch = epoch })
	eventually(s.t, func() bool {
		conn, err := s.gateway.Dial(testContext(s.t), s.box, "agent", ticket)
		if err == nil {
			_ = conn.Close()
		}
		return carrel.ReasonOf(err) == client.ReasonBoxNotRunning
	}, "the gateway knows that the box sleeps")
}

func (s *stack) wakes() int {
	s.control.mu.Lock()
	defer s.control.mu.Unlock()
	return s.control.users.wakes
}

// TestWhoUsesASleepingBoxWakesIt promises that executing, starting a process, files, and connections to a sleeping box find it awake, and looking not.
func TestWhoUsesASleepingBoxWakesIt(t *testing.T) {
	s := newStack(t)
	box := string(s.box)
	for name, use := range map[string]func() error{
		"execute": func() error {
			_, err := s.notebooks(testToken).Execute(testContext(t), request(&carrelv1.ExecuteRequest{Box: box, Code: "1"}))
			return err
		},
		"start": func() error {
			_, err := s.processes(testToken).StartProcess(testContext(t), request(&carrelv1.StartProcessRequest{Box: box, Args: []string{"echo"}}))
			return err
		},
		"client exec": func() error {
			_, err := s.client().Exec(testContext(t), client.ExecOptions{Box: box, Args: []string{"echo"}, Detach: true})
			return err
		},
		"client dial": func() error {
			conn, err := s.client().Dial(testContext(t), box, "tcp/localhost:80")
			if err == nil {
				err = conn.Close()
			}
			return err
		},
	} {
		s.sleep()
		before := s.wakes()
		err := use()
		require.NotEqual(t, client.ReasonBoxNotRunning, carrel.ReasonOf(err), "%s: %v", name, err)
		if name != "client dial" { // the fake box has no such port
			require.NoError(t, err, name)
		}
		require.Equal(t, before+1, s.wakes(), name)
	}

	s.sleep()
	before := s.wakes()
	quiet := request(&carrelv1.ExecuteRequest{Box: box, Code: "1"})
	quiet.Header().Set("Carrel-Activity", "none")
	for name, look := range map[string]func() error{
		"list": func() error {
			_, err := s.processes(testToken).ListProcesses(testContext(t), request(&carrelv1.ListProcessesRequest{Box: box}))
			return err
		},
		"client list": func() error {
			_, err := s.client().ListProcesses(testContext(t), box)
			return err
		},
		"status": func() error {
			_, err := s.notebooks(testToken).GetStatus(testContext(t), request(&carrelv1.GetStatusRequest{Box: box}))
			return err
		},
		"a request that says that nobody is there": func() error {
			_, err := s.notebooks(testToken).Execute(testContext(t), quiet)
			return err
		},
		"a ticket of the run that has ended": func() error {
			_, err := s.notebooks(s.ticket(nil)).Execute(testContext(t), request(&carrelv1.ExecuteRequest{Box: box, Code: "1"}))
			return err
		},
	} {
		require.Error(t, look(), name)
	}
	code, body := s.rest(http.MethodPost, "/v1/boxes/"+box+"/notebooks:edit", `{"path":"a.ipynb"}`, testToken, "X-Carrel-Ui", "1")
	require.Equal(t, http.StatusBadRequest, code, body)
	require.Equal(t, before, s.wakes(), "a page that saves by itself wakes nothing")
}

// TestABoxThatMayNotBeWokenSaysSo promises that the policy's no is an answer, and that of who may only look.
func TestABoxThatMayNotBeWokenSaysSo(t *testing.T) {
	s := newStack(t)
	s.sleep()
	s.control.mu.Lock()
	s.control.users.woken = func() (carrel.State, error) {
		return "", connect.NewError(connect.CodeFailedPrecondition, carrel.Errorf(carrel.CodePrecondition, "wake_refused", "its policy does not let requests do that"))
	}
	s.control.mu.Unlock()
	_, err := s.notebooks(testToken).Execute(testContext(t), request(&carrelv1.ExecuteRequest{Box: string(s.box), Code: "1"}))
	require.ErrorContains(t, err, "its policy does not let")
	require.Equal(t, 1, s.wakes())
}

// TestTheClientTellsThatABoxIsWoken promises that who waits for a sleeping box hears why.
func TestTheClientTellsThatABoxIsWoken(t *testing.T) {
	s := newStack(t)
	s.sleep()
	heard := make(chan error, 8)
	c, err := client.New(client.Config{Context: client.Context{URL: s.url, Token: testToken}, OnAsleep: func(_ string, why error) { heard <- why }})
	require.NoError(t, err)
	t.Cleanup(c.Close)
	_, err = c.NotebookStatus(context.WithoutCancel(client.Arriving(testContext(t))), string(s.box))
	require.NoError(t, err)
	require.Equal(t, client.ReasonBoxNotRunning, carrel.ReasonOf(<-heard))
}

// wireError is an error as control sends it.
func wireError(e *carrel.Error) error {
	sent := connect.NewError(connect.Code(e.Code), errors.New(e.Message))
	if detail, err := connect.NewErrorDetail(&errdetails.ErrorInfo{Reason: e.Reason, Domain: "carrel.dev"}); err == nil {
		sent.AddDetail(detail)
	}
	return sent
}
