package agent

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"

	agentv1 "carrel.dev/carrel/api/carrel/agent/v1"
	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/agent/identity"
)

// ownersArgument makes the test's binary do what `carrel-agent owners` does.
const ownersArgument = "owners"

// listenScript listens on a port of loopback and writes it down.
const listenScript = "import socket,time\ns=socket.socket(); s.bind(('127.0.0.1',0)); s.listen(); print(s.getsockname()[1],flush=True); time.sleep(1000)"

// listener starts a program that listens, and gives it and its port.
func (b *box) listener(request *carrelv1.StartProcessRequest) (*carrelv1.Process, string) {
	b.t.Helper()
	p := b.start(request)
	stream, err := b.processes.Attach(b.context(), connect.NewRequest(&carrelv1.AttachProcessRequest{Process: p.GetId()}))
	require.NoError(b.t, err)
	s := &seen{}
	for s.out[stdout].Len() == 0 && stream.Receive() {
		require.NoError(b.t, s.add(stream.Msg()))
	}
	require.NoError(b.t, stream.Close())
	return p, strings.TrimSpace(s.out[stdout].String())
}

// shownListener is what is told of a port; nil: nothing.
func (b *box) shownListener(port string) *agentv1.Listener {
	b.t.Helper()
	response, err := b.forwarder().ListListeners(b.context(), connect.NewRequest(&agentv1.ListListenersRequest{}))
	require.NoError(b.t, err)
	for _, one := range response.Msg.GetListeners() {
		if fmt.Sprint(one.GetPort()) == port {
			return one
		}
	}
	return nil
}

func TestPID1WithoutTheRightToTraceShowsWhoListens(t *testing.T) {
	if !asRoot() {
		return
	}
	b, _ := startInit(t, func(id *identity.Identity) { id.Sudo = true })
	require.Equal(t, "0", strings.TrimSpace(b.run(&carrelv1.StartProcessRequest{
		User: "root", Args: []string{"sh", "-c", `echo $(( 0x$(sed -n 's/^CapEff:\t//p' /proc/1/status) >> 19 & 1 ))`},
	}).out[stdout].String()), "PID 1 has CAP_SYS_PTRACE: this test shows nothing")
	python := []string{"python3", "-c", listenScript}
	for who, request := range map[string]*carrelv1.StartProcessRequest{
		"the box's user": {Args: python},
		"root":           {Args: python, User: "root"},
		"another user":   {User: "root", Args: append([]string{"setpriv", "--reuid=33", "--regid=33", "--clear-groups"}, python...)},
		"another group":  {User: "root", Args: append([]string{"setpriv", "--reuid=1000", "--regid=33", "--clear-groups"}, python...)},
	} {
		p, port := b.listener(request)
		shown := b.shownListener(port)
		require.NotNil(t, shown, who)
		require.Contains(t, shown.GetProcess(), "python3 -c import socket", who)
		require.Equal(t, p.GetPid(), shown.GetPid(), who)
	}
}

func TestAProgramLooksOnlyForSocketsThatAreNew(t *testing.T) {
	if !asRoot() {
		return
	}
	dir := openDir(t)
	asked := filepath.Join(dir, "asked")
	require.NoError(t, os.WriteFile(asked, nil, 0o600))
	require.NoError(t, os.Chown(asked, boxUID, boxUID))
	program, answer := filepath.Join(dir, "program"), filepath.Join(dir, "answer")
	require.NoError(t, os.WriteFile(program, []byte("#!/bin/sh\necho $(id -u) \"$@\" >> "+asked+"\ncat "+answer+"\n"), 0o755))
	b := startBox(t, func(c *Config, _ *identity.Identity) { c.Owners = []string{program, "look"} })
	answers := func(text string) { require.NoError(t, os.WriteFile(answer, []byte(text), 0o644)) }
	questions := func() string {
		data, err := os.ReadFile(asked)
		require.NoError(t, err)
		require.NoError(t, os.Truncate(asked, 0))
		return string(data)
	}
	first := b.start(sh("sleep 1000"))
	sockets := []socket{{port: 1, inode: "99999999999", uid: boxUID}}

	answers(fmt.Sprintf("nonsense\n99999999999 -1\n99999999999 x\n5 1\n99999999999 %d\n\n", first.GetPid()))
	for range 2 {
		require.Equal(t, map[string]int{"99999999999": int(first.GetPid())}, b.socketOwners(t.Context(), sockets))
	}
	require.Equal(t, "1000 look 99999999999\n", questions())

	// Its process ends: whose the socket is now is asked again.
	second := b.start(sh("sleep 1000"))
	_, err := b.processes.Signal(b.context(), connect.NewRequest(&carrelv1.SignalProcessRequest{Process: first.GetId(), Signal: "KILL"}))
	require.NoError(t, err)
	eventually(t, func() bool { return startOf(int(first.GetPid())) == "" }, "it has ended")
	answers("")
	for range 2 {
		require.Empty(t, b.socketOwners(t.Context(), sockets))
	}
	require.Equal(t, "1000 look 99999999999\n", questions(), "what nobody is found for is not asked for at every look")
	b.sockets.known["99999999999"] = owner{again: time.Now().Add(-time.Second)}
	answers(fmt.Sprintf("99999999999 %d\n", second.GetPid()))
	require.Len(t, b.socketOwners(t.Context(), sockets), 1)
	require.NotEmpty(t, questions())

	// A socket that is gone is forgotten, and no program is started for nothing or when nothing may be.
	require.Empty(t, b.socketOwners(t.Context(), nil))
	require.Empty(t, b.sockets.known)
	require.NoError(t, b.gate.close(t.Context(), time.Hour))
	require.Empty(t, b.socketOwners(t.Context(), sockets))
	require.Empty(t, questions())
	b.gate.open()
	require.Len(t, b.socketOwners(t.Context(), sockets), 1, "a look that could not be made counts for nothing")
}

// A user can stop what runs as them: whoever looks waits no longer than they want to.
func TestALookForOwnersEnds(t *testing.T) {
	if !asRoot() {
		return
	}
	b := startBox(t, func(c *Config, _ *identity.Identity) { c.Owners = []string{"/bin/sh", "-c", "exec sleep 1000"} })
	b.start(sh("sleep 1000"))
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	require.Empty(t, b.socketOwners(ctx, []socket{{port: 1, inode: "99999999999", uid: boxUID}}))
	require.Empty(t, b.sockets.known)
	eventually(t, func() bool {
		b.reaper.mu.RLock()
		defer b.reaper.mu.RUnlock()
		return len(b.reaper.waiting) == 1
	}, "the program that does not answer is ended")
}
