// Package probe is the agent of the runtime tests: a protocol by which a test looks into a sandbox and
// changes it. It must stay small and import only the standard library, since it is also process 1 of a gVisor
// sandbox. Words: a state is what the probe works on, the sandbox itself or what the fake keeps of one.
package probe

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"time"
)

// Request is one line of JSON from a test.
type Request struct {
	// Op is nonce (text that process 1 chose when it began), next (a number that grows by one at each call),
	// read, write, remove (files), hog (allocate N bytes and touch them; the answer is a checksum of them and
	// all before), checksum (of what hog allocated), memory (as advertised, in bytes), exit (process 1 ends with code N).
	Op   string `json:"op"`
	Path string `json:"path,omitempty"`
	Data []byte `json:"data,omitempty"`
	N    int64  `json:"n,omitempty"`
}

// Response is the line that answers it.
type Response struct {
	Error string `json:"error,omitempty"`
	Data  []byte `json:"data,omitempty"`
	N     int64  `json:"n,omitempty"`
}

// State is what a probe works on.
type State interface {
	Do(Request) (Response, error)
}

// Serve answers requests on conn until it is closed.
func Serve(conn net.Conn, state State) {
	defer conn.Close()
	lines := bufio.NewScanner(conn)
	lines.Buffer(nil, 64<<20)
	out := json.NewEncoder(conn)
	for lines.Scan() {
		var req Request
		if err := json.Unmarshal(lines.Bytes(), &req); err != nil {
			return
		}
		resp, err := state.Do(req)
		if err != nil {
			resp = Response{Error: err.Error()}
		}
		if out.Encode(resp) != nil {
			return
		}
	}
}

// Ask sends one request on a new connection. A sandbox that has just begun may not listen yet, so it dials
// again until ctx ends.
func Ask(ctx context.Context, dial func(context.Context) (net.Conn, error), req Request) (Response, error) {
	line, err := json.Marshal(req)
	if err != nil {
		return Response{}, err
	}
	for {
		resp, err := try(ctx, dial, line)
		if err == nil {
			if resp.Error != "" {
				return resp, fmt.Errorf("%s %s: %s", req.Op, req.Path, resp.Error)
			}
			return resp, nil
		}
		if !errors.Is(err, errDial) {
			return Response{}, err
		}
		timer := time.NewTimer(2 * time.Millisecond)
		select {
		case <-ctx.Done():
			timer.Stop()
			return Response{}, fmt.Errorf("%w: %w", ctx.Err(), err)
		case <-timer.C:
		}
	}
}

var errDial = errors.New("dialling the probe")

func try(ctx context.Context, dial func(context.Context) (net.Conn, error), line []byte) (Response, error) {
	dialCtx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	conn, err := dial(dialCtx)
	if err != nil {
		return Response{}, fmt.Errorf("%w: %w", errDial, err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if _, err := conn.Write(append(line, '\n')); err != nil {
		return Response{}, fmt.Errorf("asking the probe: %w", err)
	}
	var resp Response
	if err := json.NewDecoder(conn).Decode(&resp); err != nil {
		return Response{}, fmt.Errorf("hearing the probe: %w", err)
	}
	return resp, nil
}
