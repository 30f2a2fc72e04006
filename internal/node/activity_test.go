package node_test

import (
	"crypto/tls"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	linkv1 "carrel.dev/carrel/api/carrel/link/v1"
	"carrel.dev/carrel/internal/auth"
	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/failpoint"
	"carrel.dev/carrel/internal/node/proxy"
	"carrel.dev/carrel/internal/runtime"
)

// testGateway tells of activity.
var testGateway = carrel.NewGatewayID()

// orderIdle is an order by the policy: nobody has used the box since a time.
func (b *box) orderIdle(o linkv1.Order, since time.Time) {
	b.generation++
	b.w.control.with(func() {
		r := proto.CloneOf(b.w.control.runs[b.run])
		r.Order, r.Generation, r.IdleSince, r.BusyCpuMillis = o, b.generation, timestamppb.New(since), 200
		b.w.control.runs[b.run] = r
	})
}

// touch tells the node's proxy, as a gateway does, that somebody uses the box.
func (b *box) touch(value string) int {
	b.w.t.Helper()
	c := b.w.control
	cert, err := c.ca.Issue(auth.Peer{Role: auth.PeerGateway, ID: string(testGateway)}, auth.Names{}, time.Now())
	require.NoError(b.w.t, err)
	ticket, err := c.signer.Sign(auth.Ticket{
		Box: b.id, Org: "odefault000000000000", Epoch: b.epoch, User: carrel.NewUserID(), Scopes: []string{auth.ScopeExec}, Expires: time.Now().Add(time.Minute),
	})
	require.NoError(b.w.t, err)
	c.mu.Lock()
	address := c.facts.GetProxyAddress()
	c.mu.Unlock()
	transport := &http.Transport{TLSClientConfig: &tls.Config{
		Certificates: []tls.Certificate{cert}, InsecureSkipVerify: true, VerifyConnection: auth.VerifyPeer(c.ca.Pool(), "c1", "", auth.PeerProxy),
	}}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(b.w.t.Context(), http.MethodPost, "https://"+address+"/activity", nil)
	require.NoError(b.w.t, err)
	req.Host = string(b.id)
	req.Header.Set(proxy.HeaderTicket, ticket)
	req.Header.Set(proxy.HeaderActivity, value)
	resp, err := transport.RoundTrip(req)
	require.NoError(b.w.t, err)
	require.NoError(b.w.t, resp.Body.Close())
	return resp.StatusCode
}

// signal waits until control knows a signal of the run that is as it should be.
func (b *box) signal(kind string, ok func(*linkv1.ActivitySignal) bool) {
	b.w.t.Helper()
	b.w.eventually("control hears of "+kind, func() bool {
		b.w.control.mu.Lock()
		defer b.w.control.mu.Unlock()
		s := b.w.control.signals[b.run][kind]
		return s != nil && ok(s)
	})
}

func (b *box) requireUndone() {
	b.w.t.Helper()
	r := b.wait()
	require.Equal(b.w.t, "running", r.GetPhase(), b.w.dump())
	require.Equal(b.w.t, "pause", r.GetFailedOrder())
	require.Equal(b.w.t, carrel.ReasonActive, r.GetReason())
	require.Equal(b.w.t, runtime.StateRunning, b.sandbox(), "it goes on")
}

func TestActivityIsTold(t *testing.T) {
	if testing.Short() {
		return
	}
	w := newWorld(t, "")
	b := w.newBox()
	b.start()
	require.Equal(t, http.StatusNoContent, b.touch("input"))
	require.Equal(t, http.StatusNoContent, b.touch("session=2"))
	require.Equal(t, http.StatusBadRequest, b.touch("dancing"))
	require.Equal(t, http.StatusBadRequest, b.touch("session=-1"))
	require.Equal(t, http.StatusBadRequest, b.touch("cpu"), "gateways do not see that")
	command := filepath.Join(w.dir, "foreground-"+b.run)
	require.NoError(t, os.WriteFile(command, []byte("make -j2\x1b[31m\n"), 0o600))
	b.signal("input", func(s *linkv1.ActivitySignal) bool { return !s.GetActive() })
	b.signal("session", func(s *linkv1.ActivitySignal) bool { return s.GetActive() && s.GetDetail() == "2 sessions" })
	b.signal("command", func(s *linkv1.ActivitySignal) bool { return s.GetActive() })
	w.control.mu.Lock()
	require.Regexp(t, `^make -j2\[31m \(since [^\x1b]*\)$`, w.control.signals[b.run]["command"].GetDetail(), "what a box says is made printable")
	w.control.mu.Unlock()
	require.NoError(t, os.Remove(command))
	b.signal("command", func(s *linkv1.ActivitySignal) bool { return !s.GetActive() })
	require.Equal(t, http.StatusNoContent, b.touch("session=0"))
	b.signal("session", func(s *linkv1.ActivitySignal) bool { return !s.GetActive() })
	b.delete()
	w.nothingLeft()
}

// A pause because nobody uses the box is taken back when somebody does, and until then it is a pause like any other.
func TestIdlePauseLooksAgain(t *testing.T) {
	if testing.Short() {
		return
	}
	w := newWorld(t, "")
	b := w.newBox()
	b.start()
	b.remember("alive")
	idle := time.Now()

	// A command in the foreground, of which no heartbeat has told: the processes are not even held up.
	command := filepath.Join(w.dir, "foreground-"+b.run)
	require.NoError(t, os.WriteFile(command, []byte("make"), 0o600))
	b.orderIdle(linkv1.Order_ORDER_PAUSE, idle)
	b.requireUndone()
	b.signal("command", func(s *linkv1.ActivitySignal) bool { return s.GetActive() })
	require.NoError(t, os.Remove(command))
	b.order(linkv1.Order_ORDER_RUN)
	require.Equal(t, "running", b.wait().GetPhase())

	// Somebody comes while the pause is about to be committed.
	for _, kind := range []string{"input", "exec", "port"} {
		require.NoError(t, w.failpoints.Arm("node/capture/sealed", failpoint.ActionWait))
		b.orderIdle(linkv1.Order_ORDER_PAUSE, time.Now())
		w.eventually("the pause is about to be committed", func() bool {
			held, err := w.failpoints.Held("node/capture/sealed")
			require.NoError(t, err)
			return held
		})
		require.Equal(t, http.StatusNoContent, b.touch(kind), "a box that is being paused hears of it")
		_, err := w.failpoints.Disarm("node/capture/sealed")
		require.NoError(t, err)
		b.requireUndone()
		require.Equal(t, "alive", b.memory())
		b.order(linkv1.Order_ORDER_RUN)
		require.Equal(t, "running", b.wait().GetPhase())
	}

	// An open session is not use.
	require.Equal(t, http.StatusNoContent, b.touch("session=1"))
	b.orderIdle(linkv1.Order_ORDER_PAUSE, time.Now())
	require.Equal(t, "paused", b.wait().GetPhase(), w.dump())
	b.withMemory = true
	b.start()
	require.Equal(t, "alive", b.memory())

	// Who asks for a pause gets it, used or not.
	require.Equal(t, http.StatusNoContent, b.touch("input"))
	b.pause()
	b.start()
	b.delete()
	w.nothingLeft()
}
