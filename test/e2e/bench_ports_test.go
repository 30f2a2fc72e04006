//go:build bench

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/client"
)

const (
	portRounds   = 10
	portRound    = 2 * time.Second
	portClients  = 8 // connections that ask one after the other
	portInTheBox = int32(8000)
)

// load is what one round of requests was like.
type load struct {
	perSecond float64
	times     series
}

// TestBenchPorts measures port URLs against nginx as reverse proxy to the same server in the same box, in turns.
func TestBenchPorts(t *testing.T) {
	s := newStack(t, options{})
	box := s.create("web", resources)
	s.serveInBox("web")

	address, _, err := net.SplitHostPort(s.agentAddress(box))
	require.NoError(t, err)
	s.letThrough(address)
	direct := startNginx(t, net.JoinHostPort(address, fmt.Sprint(portInTheBox)))
	front, err := url.Parse(s.url)
	require.NoError(t, err)
	byURL := fmt.Sprintf("http://%d-%s.localhost:%s/", portInTheBox, box.GetId(), front.Port())

	var ours, theirs []load
	for i := range portRounds {
		first := i%2 == 0
		if first {
			ours = append(ours, s.ask(byURL, front.Host, s.token))
		}
		theirs = append(theirs, s.ask(direct, "", ""))
		if !first {
			ours = append(ours, s.ask(byURL, front.Host, s.token))
		}
	}
	var rates, tails, oursRate, theirsRate, oursTail, theirsTail series
	for i := range ours {
		rates = append(rates, ours[i].perSecond/theirs[i].perSecond)
		tails = append(tails, ours[i].times.quantile(0.99)/theirs[i].times.quantile(0.99))
		oursRate, theirsRate = append(oursRate, ours[i].perSecond), append(theirsRate, theirs[i].perSecond)
		oursTail, theirsTail = append(oursTail, ours[i].times.quantile(0.99)), append(theirsTail, theirs[i].times.quantile(0.99))
	}
	t.Logf("\n| what | Carrel | nginx | ratio, median of rounds (p10 to p90) | aim |\n| --- | --- | --- | --- | --- |\n"+
		"| requests per second to a port, %d connections | %.0f | %.0f | **%.2f** (%.2f to %.2f) | ≥ 0.50 |\n| 99th percentile, ms | %.1f | %.1f | **%.2f** (%.2f to %.2f) | ≤ 2.00 |\n",
		portClients, oursRate.quantile(0.5), theirsRate.quantile(0.5), rates.quantile(0.5), rates.quantile(0.1), rates.quantile(0.9),
		oursTail.quantile(0.5), theirsTail.quantile(0.5), tails.quantile(0.5), tails.quantile(0.1), tails.quantile(0.9))
	s.remove("web")
}

// serveInBox starts a web server in a box that answers 1 KiB at every path.
func (s *stack) serveInBox(box string) {
	s.t.Helper()
	s.putProgram(box, "portserver")
	_, err := s.client.Exec(s.ctx(), client.ExecOptions{Box: box, Args: []string{"./portserver", fmt.Sprintf(":%d", portInTheBox)}, Detach: true})
	require.NoError(s.t, err)
	s.awaitListener(box, portInTheBox)
}

// putProgram builds one of the programs beside this file and puts it into a box's home; path is where it is on the host.
func (s *stack) putProgram(box, name string) (path string) {
	s.t.Helper()
	path = filepath.Join(s.t.TempDir(), name)
	build := exec.CommandContext(s.ctx(), "go", "build", "-o", path, "./"+name)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := build.CombinedOutput()
	require.NoError(s.t, err, "%s", out)
	file, err := os.Open(path)
	require.NoError(s.t, err)
	defer file.Close()
	status, err := s.client.Exec(s.ctx(), client.ExecOptions{Box: box, Args: []string{"sh", "-c", "cat > " + name + " && chmod +x " + name}, Streams: client.Streams{Stdin: file}})
	require.NoError(s.t, err)
	require.Zero(s.t, status.Code)
	return path
}

// awaitListener waits until somebody listens on a port in a box.
func (s *stack) awaitListener(box string, port int32) {
	s.t.Helper()
	require.Eventually(s.t, func() bool {
		list, err := s.client.Ports.ListBoxListeners(s.ctx(), connect.NewRequest(&carrelv1.ListBoxListenersRequest{Box: box}))
		return err == nil && slices.ContainsFunc(list.Msg.GetListeners(), func(l *carrelv1.BoxListener) bool { return l.GetPort() == port })
	}, settleTime, 50*time.Millisecond, "it listens")
}

// agentAddress is where a node reaches a box.
func (s *stack) agentAddress(box *carrelv1.Box) string {
	s.t.Helper()
	data, err := os.ReadFile(filepath.Join(s.data, "proxy", "routes.json"))
	require.NoError(s.t, err)
	var routes []struct{ Box, Address string }
	require.NoError(s.t, json.Unmarshal(data, &routes))
	for _, r := range routes {
		if r.Box == box.GetId() {
			return r.Address
		}
	}
	s.t.Fatal("the box has no route")
	return ""
}

// letThrough lets others than the node's proxy reach a box, for the baseline.
func (s *stack) letThrough(address string) {
	s.t.Helper()
	tables, err := exec.CommandContext(s.ctx(), "nft", "list", "tables", "inet").Output()
	require.NoError(s.t, err)
	for line := range strings.Lines(string(tables)) {
		words := strings.Fields(line)
		table := words[len(words)-1]
		set, err := exec.CommandContext(s.ctx(), "nft", "list", "set", "inet", table, "boxes").Output()
		if err != nil || !strings.Contains(string(set), " "+address+" ") {
			continue
		}
		for _, rule := range [][]string{{"out", "ip", "daddr", address, "accept"}, {"pre", "ip", "saddr", address, "accept"}} {
			require.NoError(s.t, exec.CommandContext(s.ctx(), "nft", append([]string{"insert", "rule", "inet", table}, rule...)...).Run())
		}
		return
	}
	s.t.Fatal("no firewall knows the box")
}

// startNginx runs an nginx that passes everything on to an address, over connections that it keeps.
func startNginx(t *testing.T, to string) (address string) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	at := listener.Addr().String()
	require.NoError(t, listener.Close())
	dir := t.TempDir()
	config := filepath.Join(dir, "nginx.conf")
	require.NoError(t, os.WriteFile(config, fmt.Appendf(nil, `daemon off; worker_processes 2; pid %[1]s/pid; error_log %[1]s/error.log;
events { worker_connections 256; }
http {
	access_log off; client_body_temp_path %[1]s/a; proxy_temp_path %[1]s/b; fastcgi_temp_path %[1]s/c; uwsgi_temp_path %[1]s/d; scgi_temp_path %[1]s/e;
	upstream box { server %[2]s; keepalive 64; }
	server { listen %[3]s; keepalive_requests 1000000; location / { proxy_pass http://box; proxy_http_version 1.1; proxy_set_header Connection ""; } }
}
`, dir, to, at), 0o600))
	nginx := exec.Command("nginx", "-c", config, "-e", filepath.Join(dir, "error.log"))
	require.NoError(t, nginx.Start())
	t.Cleanup(func() {
		_ = nginx.Process.Signal(os.Interrupt)
		_ = nginx.Wait()
	})
	require.Eventually(t, func() bool {
		conn, err := net.Dial("tcp", at)
		if err == nil {
			_ = conn.Close()
		}
		return err == nil
	}, 10*time.Second, 10*time.Millisecond)
	return "http://" + at + "/"
}

// ask asks for a page again and again over a few connections; to, if given, is where every connection goes.
func (s *stack) ask(page, to, token string) load {
	s.t.Helper()
	transport := &http.Transport{MaxIdleConnsPerHost: portClients, DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
		if to != "" {
			address = to
		}
		return (&net.Dialer{}).DialContext(ctx, network, address)
	}}
	defer transport.CloseIdleConnections()
	browser := &http.Client{Transport: transport}
	one := func() (time.Duration, error) {
		req, err := http.NewRequestWithContext(s.t.Context(), http.MethodGet, page, nil)
		if err != nil {
			return 0, err
		}
		if token != "" {
			req.Header.Set("Authorization", "Bearer "+token)
		}
		began := time.Now()
		resp, err := browser.Do(req)
		if err != nil {
			return 0, err
		}
		defer resp.Body.Close()
		n, err := io.Copy(io.Discard, resp.Body)
		if err == nil && (resp.StatusCode != http.StatusOK || n != 1024) {
			err = fmt.Errorf("%s with %d bytes", resp.Status, n)
		}
		return time.Since(began), err
	}
	for range portClients {
		_, err := one()
		require.NoError(s.t, err)
	}
	results := make([]series, portClients)
	var all errgroup.Group
	began := time.Now()
	for i := range results {
		all.Go(func() error {
			for time.Since(began) < portRound {
				took, err := one()
				if err != nil {
					return err
				}
				results[i] = append(results[i], float64(took.Microseconds())/1000)
			}
			return nil
		})
	}
	require.NoError(s.t, all.Wait(), "%s", strings.TrimSpace(page))
	elapsed := time.Since(began)
	var l load
	for _, times := range results {
		l.times = append(l.times, times...)
	}
	l.perSecond = float64(len(l.times)) / elapsed.Seconds()
	return l
}
