package proxy

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"time"

	"carrel.dev/carrel/internal/carrel"
)

// Client is the node's side of the proxy's socket. It is safe for concurrent use.
type Client struct {
	http *http.Client
}

// NewClient speaks to the proxy at socket, which need not be there yet.
func NewClient(socket string) *Client {
	return &Client{http: &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", socket)
		},
		MaxIdleConnsPerHost: 64, IdleConnTimeout: time.Minute, MaxResponseHeaderBytes: maxHeaders,
	}}}
}

// Close ends the connections that are idle.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// SetIdentity tells the proxy who it is.
func (c *Client) SetIdentity(ctx context.Context, i Identity) error {
	return c.call(ctx, http.MethodPut, "/identity", i)
}

// SetRoutes replaces the whole table; SetRoute and RemoveRoute change one entry.
func (c *Client) SetRoutes(ctx context.Context, routes []Route) error {
	if routes == nil {
		routes = []Route{}
	}
	return c.call(ctx, http.MethodPut, "/routes", routes)
}

func (c *Client) SetRoute(ctx context.Context, r Route) error {
	return c.call(ctx, http.MethodPut, "/routes/"+string(r.Run), r)
}

func (c *Client) RemoveRoute(ctx context.Context, run carrel.RunID) error {
	return c.call(ctx, http.MethodDelete, "/routes/"+string(run), nil)
}

// Ready answers when the run's agent is ready. The error's reason is agent_silent after timeout, startup_failed
// or prepare_failed if the agent says so.
func (c *Client) Ready(ctx context.Context, run carrel.RunID, timeout time.Duration) error {
	return c.ask(ctx, run, "ready", "timeout", timeout)
}

// Identify has the run's agent take the identity that is there now.
func (c *Client) Identify(ctx context.Context, run carrel.RunID) error {
	return c.call(ctx, http.MethodPost, "/runs/"+string(run)+"/identify", nil)
}

// Quiesce cuts the run's streams, allows no new ones and asks the agent to be quiet for lease.
func (c *Client) Quiesce(ctx context.Context, run carrel.RunID, lease time.Duration) error {
	return c.ask(ctx, run, "quiesce", "lease", lease)
}

// Unquiesce takes Quiesce back.
func (c *Client) Unquiesce(ctx context.Context, run carrel.RunID) error {
	return c.call(ctx, http.MethodPost, "/runs/"+string(run)+"/unquiesce", nil)
}

// Shutdown ends all processes in the box, by force after grace.
func (c *Client) Shutdown(ctx context.Context, run carrel.RunID, grace time.Duration) error {
	return c.ask(ctx, run, "shutdown", "grace", grace)
}

// Activity is what all runs are used for. Agents whose answers are older than age are asked; those that do not answer are as they were.
func (c *Client) Activity(ctx context.Context, age time.Duration) ([]RunActivity, error) {
	var all []RunActivity
	err := c.get(ctx, "/activity?age="+strconv.FormatInt(age.Milliseconds(), 10), &all)
	return all, err
}

// ActivityOf is what one run is used for. Its agent is asked now, unless it is quiet.
func (c *Client) ActivityOf(ctx context.Context, run carrel.RunID) (RunActivity, error) {
	var one RunActivity
	err := c.get(ctx, "/runs/"+string(run)+"/activity", &one)
	return one, err
}

func (c *Client) ask(ctx context.Context, run carrel.RunID, verb, parameter string, d time.Duration) error {
	return c.call(ctx, http.MethodPost, "/runs/"+string(run)+"/"+verb+"?"+parameter+"="+strconv.FormatInt(d.Milliseconds(), 10), nil)
}

// call is one request without an answer. A refusal of the proxy is a *carrel.Error with its reason, CodeUnavailable; what else goes wrong
// has the reason proxy_unreachable.
func (c *Client) call(ctx context.Context, method, path string, body any) error {
	return c.do(ctx, method, path, body, 16<<10, nil)
}

// get is one request with an answer, errors as those of call.
func (c *Client) get(ctx context.Context, path string, into any) error {
	return c.do(ctx, http.MethodGet, path, nil, maxTable, into)
}

func (c *Client) do(ctx context.Context, method, path string, body any, most int64, into any) error {
	var reader io.Reader
	if body != nil {
		data, err := json.Marshal(body)
		if err != nil {
			return fmt.Errorf("ask the proxy: %w", err)
		}
		reader = bytes.NewReader(data)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://proxy"+path, reader)
	if err != nil {
		return fmt.Errorf("ask the proxy: %w", err)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		e := carrel.Errorf(carrel.CodeUnavailable, "proxy_unreachable", "the node's proxy does not answer; it is being started again")
		e.Cause = err
		return e
	}
	defer resp.Body.Close()
	data, readErr := io.ReadAll(io.LimitReader(resp.Body, most))
	switch {
	case resp.StatusCode == http.StatusNoContent:
		return nil
	case resp.StatusCode == http.StatusOK && into != nil:
		if err := errors.Join(readErr, json.Unmarshal(data, into)); err != nil {
			return fmt.Errorf("ask the proxy: %w", err)
		}
		return nil
	}
	var said refusal
	if err := errors.Join(readErr, json.Unmarshal(data, &said)); err != nil {
		return fmt.Errorf("ask the proxy: status %d: %w", resp.StatusCode, err)
	}
	return carrel.Errorf(carrel.CodeUnavailable, said.Reason, "%s", said.Message)
}
