package proxy

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/genproto/googleapis/rpc/errdetails"

	agentv1 "carrel.dev/carrel/api/carrel/agent/v1"
	"carrel.dev/carrel/api/carrel/agent/v1/agentv1connect"
	"carrel.dev/carrel/internal/carrel"
)

const (
	// maxAnswer is the longest first line of an agent that is read, in bytes.
	maxAnswer = 512
	// maxMessage is the largest message of an agent, in bytes: its answers to the proxy are tiny.
	maxMessage = 64 << 10
	// While a box starts nothing answers at its address, not even with a refusal: a try that gets no answer at once
	// is given up and made again, so that no SYN's retransmission (1 s) is waited for.
	firstTry = 5 * time.Millisecond
	lastTry  = 100 * time.Millisecond
	// callTry is how long the connection for a call to an agent that was ready may take to be made: on a machine with much to do a sandbox may wait
	// for a processor for some seconds, and is not silent.
	callTry = 5 * time.Second
	// betweenTries is the pause after a refusal: the network is up and the agent is about to listen.
	betweenTries = 2 * time.Millisecond
	// prefaceTime is what an agent has to answer the preface once it listens.
	prefaceTime = 5 * time.Second
)

// refusal is an error that says how a request is answered.
type refusal struct {
	Status  int    `json:"-"`
	Reason  string `json:"reason"`
	Message string `json:"message"`
	cause   error
}

func (r *refusal) Error() string {
	if r.cause != nil {
		return r.Reason + ": " + r.cause.Error()
	}
	return r.Reason + ": " + r.Message
}

func (r *refusal) Unwrap() error { return r.cause }

func refuse(status int, reason, format string, args ...any) *refusal {
	return &refusal{Status: status, Reason: reason, Message: fmt.Sprintf(format, args...)}
}

func silent(cause error) *refusal {
	r := refuse(http.StatusGatewayTimeout, "agent_silent", "the box's agent does not answer")
	r.cause = cause
	return r
}

// agentConn is a connection after the preface. Its reader may hold the first bytes of the target.
type agentConn struct {
	*net.TCPConn
	reader *bufio.Reader
}

func (c *agentConn) Read(p []byte) (int, error) { return c.reader.Read(p) }

// dialAgent connects to a target in a box. try bounds the making of the connection, ctx all of it.
func dialAgent(ctx context.Context, r Route, target string, try time.Duration) (*agentConn, error) {
	dialer := net.Dialer{Timeout: try, KeepAlive: 15 * time.Second}
	raw, err := dialer.DialContext(ctx, "tcp", r.Address)
	if err != nil {
		return nil, err
	}
	tcp, ok := raw.(*net.TCPConn)
	if !ok {
		_ = raw.Close()
		return nil, fmt.Errorf("dial agent: %T is no TCP connection", raw)
	}
	c := &agentConn{TCPConn: tcp, reader: bufio.NewReaderSize(tcp, 4096)}
	if err := c.preface(ctx, r.Key, target); err != nil {
		_ = c.Close()
		return nil, err
	}
	return c, nil
}

func (c *agentConn) preface(ctx context.Context, key, target string) error {
	deadline := time.Now().Add(prefaceTime)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	if err := c.SetDeadline(deadline); err != nil {
		return err
	}
	// A caller that goes away must not leave the connection waiting.
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if _, err := c.Write([]byte("carrel/1 " + key + " " + target + "\n")); err != nil {
		return fmt.Errorf("preface: %w", err)
	}
	line, err := readLine(c.reader)
	if err != nil {
		return fmt.Errorf("answer to the preface: %w", err)
	}
	if message, ok := strings.CutPrefix(line, "err "); ok {
		return refuse(http.StatusBadGateway, "target_refused", "%s", printable(message))
	}
	if line != "ok" {
		return refuse(http.StatusBadGateway, "agent_broken", "the box's agent answers something else than the protocol says")
	}
	if !stop() {
		return ctx.Err()
	}
	return c.SetDeadline(time.Time{})
}

// readLine reads a short line without its newline.
func readLine(r *bufio.Reader) (string, error) {
	var line []byte
	for len(line) < maxAnswer {
		b, err := r.ReadByte()
		if err != nil {
			return "", err
		}
		if b == '\n' {
			return string(line), nil
		}
		line = append(line, b)
	}
	return "", errors.New("it is too long")
}

// printable makes text of a box fit for a message: short, one line.
func printable(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == 0xfffd {
			return -1
		}
		return r
	}, s)
	return s[:min(len(s), 300)]
}

// control opens the agent's ControlService over one connection of its own. done ends it.
func control(ctx context.Context, r Route, try time.Duration) (client agentv1connect.ControlServiceClient, done func(), err error) {
	conn, err := dialAgent(ctx, r, "control", try)
	if err != nil {
		return nil, nil, err
	}
	var once sync.Once
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	transport := &http.Transport{
		Protocols: protocols, DisableCompression: true, MaxResponseHeaderBytes: maxHeaders, HTTP2: &http.HTTP2Config{MaxReadFrameSize: 64 << 10},
		DialContext: func(context.Context, string, string) (net.Conn, error) {
			err := errors.New("the connection is used up")
			once.Do(func() { err = nil })
			return conn, err
		},
	}
	client = agentv1connect.NewControlServiceClient(&http.Client{Transport: transport}, "http://agent", connect.WithReadMaxBytes(maxMessage))
	return client, func() {
		_ = conn.Close()
		transport.CloseIdleConnections()
	}, nil
}

// awaitReady asks the agent until it says that it has taken its identity for this run, or ctx ends.
func awaitReady(ctx context.Context, r Route) error {
	try := firstTry
	var last error
	for {
		err := askReady(ctx, r, try)
		if err == nil {
			return nil
		}
		if reason := new(refusal); errors.As(err, &reason) && (reason.Reason == "startup_failed" || reason.Reason == carrel.ReasonPrepareFailed) {
			return err
		}
		if ctx.Err() != nil {
			if last == nil {
				last = err
			}
			return silent(last)
		}
		last = err
		if ne := net.Error(nil); errors.As(err, &ne) && ne.Timeout() {
			try = min(2*try, lastTry)
			continue // the try itself was the pause
		}
		timer := time.NewTimer(betweenTries)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
		}
	}
}

func askReady(ctx context.Context, r Route, try time.Duration) error {
	client, done, err := control(ctx, r, try)
	if err != nil {
		return err
	}
	defer done()
	answer, err := client.Ready(ctx, connect.NewRequest(&agentv1.ReadyRequest{}))
	if ce := new(connect.Error); errors.As(err, &ce) && ce.Code() == connect.CodeFailedPrecondition {
		if reasonOf(ce) == carrel.ReasonPrepareFailed {
			return refuse(http.StatusBadGateway, carrel.ReasonPrepareFailed, "%s", printable(ce.Message()))
		}
		return refuse(http.StatusBadGateway, "startup_failed", "the box's agent could not start: %s", printable(ce.Message()))
	}
	if err != nil {
		return fmt.Errorf("ready: %w", err)
	}
	if got := carrel.RunID(answer.Msg.GetRunId()); got != r.Run {
		return fmt.Errorf("ready: the agent is still in run %q", printable(string(got)))
	}
	return nil
}

// reasonOf is the reason that an agent gives, empty if none.
func reasonOf(ce *connect.Error) string {
	for _, detail := range ce.Details() {
		if value, err := detail.Value(); err == nil {
			if info, ok := value.(*errdetails.ErrorInfo); ok {
				return info.GetReason()
			}
		}
	}
	return ""
}

// identifyTime is what an agent has to become another box's, its warm kernels included.
const identifyTime = 15 * time.Second

func identify(ctx context.Context, r Route) error {
	client, done, err := control(ctx, r, callTry)
	if err != nil {
		return silent(err)
	}
	defer done()
	if _, err := client.Identify(ctx, connect.NewRequest(&agentv1.IdentifyRequest{})); err != nil {
		return agentError("identify", err)
	}
	return nil
}

func quiesce(ctx context.Context, r Route, lease time.Duration) error {
	client, done, err := control(ctx, r, callTry)
	if err != nil {
		return silent(err)
	}
	defer done()
	if _, err := client.Quiesce(ctx, connect.NewRequest(&agentv1.QuiesceRequest{LeaseMillis: lease.Milliseconds()})); err != nil {
		return agentError("quiesce", err)
	}
	return nil
}

func unquiesce(ctx context.Context, r Route) error {
	client, done, err := control(ctx, r, callTry)
	if err != nil {
		return silent(err)
	}
	defer done()
	if _, err := client.Unquiesce(ctx, connect.NewRequest(&agentv1.UnquiesceRequest{})); err != nil {
		return agentError("unquiesce", err)
	}
	return nil
}

func shutdown(ctx context.Context, r Route, grace time.Duration) error {
	client, done, err := control(ctx, r, callTry)
	if err != nil {
		return silent(err)
	}
	defer done()
	if _, err := client.Shutdown(ctx, connect.NewRequest(&agentv1.ShutdownRequest{GraceMillis: grace.Milliseconds()})); err != nil {
		return agentError("shutdown", err)
	}
	return nil
}

func agentError(what string, err error) error {
	if ce := new(connect.Error); errors.As(err, &ce) && ce.Code() != connect.CodeUnavailable && ce.Code() != connect.CodeDeadlineExceeded && ce.Code() != connect.CodeCanceled {
		return refuse(http.StatusBadGateway, "agent_error", "the box's agent answers to %s: %s", what, printable(ce.Message()))
	}
	return silent(err)
}
