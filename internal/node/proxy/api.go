package proxy

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"carrel.dev/carrel/internal/carrel"
)

// maxTable is the largest request of the node, in bytes: some 200,000 routes.
const maxTable = 64 << 20

// ownerListener lets only processes of one user connect to a Unix socket.
type ownerListener struct {
	*net.UnixListener
	uid int
}

func (l ownerListener) Accept() (net.Conn, error) {
	for {
		c, err := l.AcceptUnix()
		if err != nil {
			return nil, err
		}
		if uid, err := peerUID(c); err != nil || uid != l.uid {
			_ = c.Close()
			continue
		}
		return c, nil
	}
}

func peerUID(c *net.UnixConn) (int, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return 0, err
	}
	if credErr != nil {
		return 0, credErr
	}
	return int(cred.Uid), nil
}

// api is what the node says to its proxy.
//
//	PUT    /identity            the proxy's certificate and the keys of tickets
//	PUT    /routes              the whole table
//	PUT    /routes/{run}        one route
//	DELETE /routes/{run}        take it away and cut its streams
//	POST   /runs/{run}/ready?timeout=MS       answers when the agent is ready
//	POST   /runs/{run}/identify               have the agent take the identity that is there now
//	POST   /runs/{run}/quiesce?lease=MS       no new streams, cut the open ones, agent to be quiet
//	POST   /runs/{run}/unquiesce
//	POST   /runs/{run}/shutdown?grace=MS      end all processes in the box
//	GET    /activity?age=MS     what all runs are used for; agents that answered longer ago than that are asked
//	GET    /runs/{run}/activity               the same of one run, whose agent is asked now unless it is quiet
//
// Answers are 204, for GET a JSON object or list, or an error with a JSON object of reason and message.
func (p *Proxy) api() http.Handler {
	mux := http.NewServeMux()
	handle := func(pattern string, f func(ctx context.Context, r *http.Request) error) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			r.Body = http.MaxBytesReader(w, r.Body, maxTable)
			if err := f(r.Context(), r); err != nil {
				p.log.Warn("a request of the node failed", "request", pattern, "run", r.PathValue("run"), "error", err)
				writeError(w, err)
				return
			}
			w.WriteHeader(http.StatusNoContent)
		})
	}
	handle("PUT /identity", func(_ context.Context, r *http.Request) error {
		var i Identity
		if err := decode(r, &i); err != nil {
			return err
		}
		return p.table.become(i)
	})
	handle("PUT /routes", func(_ context.Context, r *http.Request) error {
		var routes []Route
		if err := decode(r, &routes); err != nil {
			return err
		}
		return p.table.replace(routes)
	})
	handle("PUT /routes/{run}", func(_ context.Context, r *http.Request) error {
		var route Route
		if err := decode(r, &route); err != nil {
			return err
		}
		return p.table.set(route)
	})
	handle("DELETE /routes/{run}", func(_ context.Context, r *http.Request) error {
		return p.table.remove(carrel.RunID(r.PathValue("run")))
	})
	ask := func(verb, parameter string, most time.Duration, f func(context.Context, Route, time.Duration) error) {
		handle("POST /runs/{run}/"+verb, func(ctx context.Context, r *http.Request) error {
			route, ok := p.table.find(carrel.RunID(r.PathValue("run")))
			if !ok {
				return refuse(http.StatusNotFound, "no_route", "the proxy has no route to the run")
			}
			var d time.Duration
			if parameter != "" {
				ms, err := strconv.ParseInt(r.URL.Query().Get(parameter), 10, 64)
				if err != nil || ms < 0 || time.Duration(ms)*time.Millisecond > most {
					return refuse(http.StatusBadRequest, "bad_request", "%s is a number of milliseconds up to %d", parameter, most.Milliseconds())
				}
				d = time.Duration(ms) * time.Millisecond
			}
			return f(ctx, route, d)
		})
	}
	ask("ready", "timeout", time.Hour, func(ctx context.Context, r Route, d time.Duration) error {
		ctx, cancel := context.WithTimeout(ctx, d)
		defer cancel()
		return awaitReady(ctx, r)
	})
	ask("identify", "", 0, func(ctx context.Context, r Route, _ time.Duration) error {
		ctx, cancel := context.WithTimeout(ctx, identifyTime)
		defer cancel()
		return identify(ctx, r)
	})
	ask("quiesce", "lease", time.Minute, func(ctx context.Context, r Route, d time.Duration) error {
		p.table.hush(r.Run, true)
		ctx, cancel := context.WithTimeout(ctx, d)
		defer cancel()
		if err := quiesce(ctx, r, d); err != nil {
			p.table.hush(r.Run, false)
			return err
		}
		return nil
	})
	ask("unquiesce", "", 0, func(ctx context.Context, r Route, _ time.Duration) error {
		p.table.hush(r.Run, false)
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		return unquiesce(ctx, r)
	})
	ask("shutdown", "grace", 10*time.Minute, func(ctx context.Context, r Route, d time.Duration) error {
		ctx, cancel := context.WithTimeout(ctx, d+15*time.Second)
		defer cancel()
		return shutdown(ctx, r, d)
	})
	mux.HandleFunc("GET /activity", func(w http.ResponseWriter, r *http.Request) {
		ms, err := strconv.ParseInt(r.URL.Query().Get("age"), 10, 64)
		if err != nil || ms < 0 || ms > time.Hour.Milliseconds() {
			writeError(w, refuse(http.StatusBadRequest, "bad_request", "age is a number of milliseconds up to %d", time.Hour.Milliseconds()))
			return
		}
		writeJSONTo(w, p.activities(r.Context(), time.Duration(ms)*time.Millisecond))
	})
	mux.HandleFunc("GET /runs/{run}/activity", func(w http.ResponseWriter, r *http.Request) {
		route, ok := p.table.find(carrel.RunID(r.PathValue("run")))
		if !ok {
			writeError(w, refuse(http.StatusNotFound, "no_route", "the proxy has no route to the run"))
			return
		}
		writeJSONTo(w, p.activityOf(r.Context(), route))
	})
	return mux
}

func writeJSONTo(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // the node went away
}

func decode(r *http.Request, v any) error {
	d := json.NewDecoder(r.Body)
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		e := refuse(http.StatusBadRequest, "bad_request", "the request cannot be read")
		e.cause = err
		return e
	}
	return nil
}

func writeError(w http.ResponseWriter, err error) {
	r := new(refusal)
	if !errors.As(err, &r) {
		r = refuse(http.StatusInternalServerError, "proxy_error", "the node's proxy could not do it")
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(r.Status)
	_ = json.NewEncoder(w).Encode(r)
}
