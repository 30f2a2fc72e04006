//go:build bench

package e2e

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
)

const (
	floodBytes  = 512 << 20
	floodRounds = 3
	idleSockets = 1000
)

// TestBenchTerminals measures 512 MB of a terminal's output with one live viewer, alone and beside a stalled one, in turns; and what a stalled
// viewer and an idle WebSocket cost the gateway in memory.
func TestBenchTerminals(t *testing.T) {
	s := newStack(t, options{})
	s.create("flood", resources)
	gateway := s.rolePID("gateway")
	s.flood(false) // what is made once
	var alone, beside, ratios, growth series
	for i := range floodRounds {
		var one, two float64
		if i%2 == 0 {
			one, _ = s.flood(false)
		}
		two, grown := s.flood(true)
		if i%2 != 0 {
			one, _ = s.flood(false)
		}
		alone, beside, ratios, growth = append(alone, one), append(beside, two), append(ratios, two/one), append(growth, grown)
	}
	before := resident(t, gateway)
	var idle []*webTerminal
	for range idleSockets {
		idle = append(idle, s.terminal("flood", ""))
	}
	each := (resident(t, gateway) - before) / idleSockets * 1024
	for _, one := range idle {
		_ = one.conn.CloseNow()
	}
	t.Logf("\n| what | alone | beside a stalled viewer | ratio, median | aim |\n| --- | --- | --- | --- | --- |\n"+
		"| 512 MB of terminal output to a live viewer, MB/s | %.0f | %.0f | **%.2f** | ≥ 0.95 |\n"+
		"| memory of the gateway per stalled viewer, MB | | %.1f | | ≤ 4 |\n| memory of the gateway per idle WebSocket, KiB | %.0f | | | reported |\n",
		alone.quantile(0.5), beside.quantile(0.5), ratios.quantile(0.5), growth.quantile(0.5), each)
	s.remove("flood")
}

// flood gives the rate in MB/s at which a live viewer saw 512 MB of output, and by how much the gateway grew meanwhile, in MB.
func (s *stack) flood(stalled bool) (rate, grown float64) {
	s.t.Helper()
	live := s.terminal("flood", "")
	defer func() { _ = live.conn.CloseNow() }()
	live.discard = true
	live.ask(&carrelv1.TerminalRequest{Request: &carrelv1.TerminalRequest_Open{Open: &carrelv1.StartProcessRequest{
		Args: []string{"bash", "-c", fmt.Sprintf("stty -opost; read go; head -c %d /dev/zero | tr '\\0' x", floodBytes)}, Pty: &carrelv1.TerminalSize{},
	}}})
	process := live.until(func(e *carrelv1.TerminalEvent) bool { return e.GetStarted() != nil }).GetStarted().GetId()
	if stalled { // it looks, and never reads
		other := s.terminal("flood", "")
		defer func() { _ = other.conn.CloseNow() }()
		other.ask(&carrelv1.TerminalRequest{Request: &carrelv1.TerminalRequest_Attach{Attach: &carrelv1.AttachProcessRequest{Process: process}}})
	}
	gateway := s.rolePID("gateway")
	before := resident(s.t, gateway)
	began := time.Now()
	live.typeIn("\r")
	live.until(func(e *carrelv1.TerminalEvent) bool { return e.GetExited() != nil })
	return floodBytes / 1e6 / time.Since(began).Seconds(), resident(s.t, gateway) - before
}

// resident is the memory of a process, in MB.
func resident(t testing.TB, pid int) float64 {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	require.NoError(t, err)
	for line := range strings.SplitSeq(string(data), "\n") {
		if fields := strings.Fields(line); len(fields) == 3 && fields[0] == "VmRSS:" {
			kib, err := strconv.ParseFloat(fields[1], 64)
			require.NoError(t, err)
			return kib / 1024
		}
	}
	require.Fail(t, "no VmRSS")
	return 0
}
