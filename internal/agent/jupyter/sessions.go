package jupyter

import (
	"context"
	"crypto/sha256"
	"fmt"
	"net/http"
	"path"
	"slices"
	"strings"
	"sync"

	"carrel.dev/carrel/internal/agent/kernel"
	"carrel.dev/carrel/internal/carrel"
)

const (
	maxSessions = 1024
	maxPath     = 4096
)

// record is one session.
type record struct {
	id, name, kind string
	path           string // API path, or whatever a client calls what is no file
	kernel         *kernel.Kernel
	// bound says that the kernel is that of the notebook at path, and path follows it.
	bound bool
}

// sessions are those that clients made, and those of notebooks whose kernels were started otherwise.
type sessions struct {
	server *Server
	making sync.Mutex // held while a session is made or changed, so that a path gets one

	mu  sync.Mutex // guards all
	all []*record
}

func newSessions(s *Server) *sessions { return &sessions{server: s} }

// current gives the sessions whose kernels are there, oldest first.
func (ss *sessions) current() []record {
	s := ss.server
	if s.config.Kernels == nil {
		return nil
	}
	kernels := s.config.Kernels.List()
	ss.mu.Lock()
	defer ss.mu.Unlock()
	ss.all = slices.DeleteFunc(ss.all, func(r *record) bool { return !slices.Contains(kernels, r.kernel) })
	for _, k := range kernels {
		apiPath, ok := s.apiPath(k.Path())
		if !ok || slices.ContainsFunc(ss.all, func(r *record) bool { return r.kernel == k }) {
			continue
		}
		sum := sha256.Sum256([]byte("session of " + k.ID()))
		sum[6], sum[8] = sum[6]&0x0f|0x40, sum[8]&0x3f|0x80
		ss.all = append(ss.all, &record{
			id:   fmt.Sprintf("%x-%x-%x-%x-%x", sum[:4], sum[4:6], sum[6:8], sum[8:10], sum[10:16]),
			path: apiPath, name: path.Base(apiPath), kind: typeNotebook, kernel: k, bound: true,
		})
	}
	result := make([]record, 0, len(ss.all))
	for _, r := range ss.all {
		if r.bound {
			if apiPath, ok := s.apiPath(r.kernel.Path()); ok && apiPath != r.path {
				r.path, r.name = apiPath, path.Base(apiPath)
			}
		}
		result = append(result, *r)
	}
	return result
}

// apiPath is the API path of a file below the root.
func (s *Server) apiPath(full string) (string, bool) {
	rest, ok := strings.CutPrefix(full, strings.TrimSuffix(s.config.Home, "/")+"/")
	return carrel.EncodeFileName(rest), ok && rest != ""
}

func (ss *sessions) find(id string) (record, error) {
	for _, r := range ss.current() {
		if r.id == id {
			return r, nil
		}
	}
	return record{}, refuse(http.StatusNotFound, "Session not found: session_id='%s'", clip(id))
}

// keep replaces or adds a session.
func (ss *sessions) keep(r record) {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	at := slices.IndexFunc(ss.all, func(one *record) bool { return one.id == r.id })
	if at >= 0 {
		ss.all[at] = &r
		return
	}
	ss.all = append(ss.all, &r)
}

func (ss *sessions) drop(id string) {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	ss.all = slices.DeleteFunc(ss.all, func(r *record) bool { return r.id == id })
}

type sessionModel struct {
	ID       string            `json:"id"`
	Path     string            `json:"path"`
	Name     string            `json:"name"`
	Type     string            `json:"type"`
	Kernel   kernelModel       `json:"kernel"`
	Notebook map[string]string `json:"notebook,omitempty"` // as clients of long ago want it
}

func (s *Server) sessionModel(r record) sessionModel {
	m := sessionModel{ID: r.id, Path: r.path, Name: r.name, Type: r.kind, Kernel: s.kernelModel(r.kernel)}
	if r.kind == typeNotebook {
		m.Notebook = map[string]string{"path": r.path, "name": r.name}
	}
	return m
}

// sessionBody is what a request says of a session.
type sessionBody struct {
	Path     *string `json:"path"`
	Name     *string `json:"name"`
	Type     *string `json:"type"`
	Notebook *struct {
		Path *string `json:"path"`
	} `json:"notebook"`
	Kernel *struct {
		ID   *string `json:"id"`
		Name *string `json:"name"`
	} `json:"kernel"`
}

func (in *request) sessionBody() (sessionBody, error) {
	var b sessionBody
	found, err := in.body(&b, maxSmallBody)
	if err == nil && !found {
		err = refuse(http.StatusBadRequest, "No JSON data provided")
	}
	if err != nil {
		return b, err
	}
	if b.Notebook != nil && b.Notebook.Path != nil {
		b.Path, b.Type = b.Notebook.Path, ref(typeNotebook)
	}
	for _, text := range []*string{b.Path, b.Name, b.Type} {
		if text != nil && len(*text) > maxPath {
			return b, refuse(http.StatusBadRequest, "a field of the session is longer than %d bytes", maxPath)
		}
	}
	return b, nil
}

func text(p *string) string {
	if p == nil {
		return ""
	}
	return *p
}

// sessionList answers at /api/sessions.
func (s *Server) sessionList(in *request) error {
	switch in.Method {
	case http.MethodGet, http.MethodHead:
		list := []sessionModel{}
		for _, r := range s.sessions.current() {
			list = append(list, s.sessionModel(r))
		}
		in.reply(http.StatusOK, list)
		return nil
	case http.MethodPost:
		b, err := in.sessionBody()
		switch {
		case err != nil:
			return err
		case b.Path == nil:
			return refuse(http.StatusBadRequest, "Missing field in JSON data: path")
		case b.Type == nil:
			return refuse(http.StatusBadRequest, "Missing field in JSON data: type")
		}
		r, err := s.sessions.make(in.Context(), b)
		if carrel.ReasonOf(err) == "kernelspec_not_found" {
			return refuse(http.StatusNotImplemented, "The '%s' kernel is not available. Please pick another suitable kernel instead, or install that kernel.", clip(text(b.Kernel.Name)))
		}
		if err != nil {
			return err
		}
		in.w.Header().Set("Location", in.base+"api/sessions/"+r.id)
		in.reply(http.StatusCreated, s.sessionModel(r))
		return nil
	}
	return refuse(http.StatusMethodNotAllowed, "Method Not Allowed")
}

// make gives the session of a path: the one that is there, else a new one with the kernel that was named, that of the notebook, or a new one.
func (ss *sessions) make(ctx context.Context, b sessionBody) (record, error) {
	s := ss.server
	ss.making.Lock()
	defer ss.making.Unlock()
	apiPath := strings.Trim(*b.Path, "/")
	known := ss.current()
	for _, r := range known {
		if r.path == apiPath {
			return r, nil
		}
	}
	if len(known) >= maxSessions {
		return record{}, refuse(http.StatusTooManyRequests, "%d sessions are open in the box; close one first", maxSessions)
	}
	r := record{id: kernel.NewID(), path: apiPath, name: text(b.Name), kind: *b.Type}
	full, err := s.place(apiPath)
	if err != nil {
		return record{}, err
	}
	name := ""
	if b.Kernel != nil {
		name = text(b.Kernel.Name)
		if id := text(b.Kernel.ID); id != "" {
			r.kernel, _ = s.findKernel(id)
		}
	}
	if r.kernel == nil {
		options := kernel.Options{Spec: name, Cwd: path.Dir("/" + apiPath)}
		if r.kind == typeNotebook {
			options.Path = full
		}
		if r.kernel, err = s.startKernel(ctx, options); err != nil {
			return record{}, err
		}
	}
	if r.kind == typeNotebook && r.kernel.Path() == "" {
		r.kernel.SetPath(full)
	}
	r.bound = r.kernel.Path() == full
	ss.keep(r)
	return r, nil
}

// session answers at /api/sessions/{id}.
func (s *Server) session(in *request, id string) error {
	r, err := s.sessions.find(id)
	if err != nil {
		return err
	}
	switch in.Method {
	case http.MethodGet, http.MethodHead:
		in.reply(http.StatusOK, s.sessionModel(r))
		return nil
	case http.MethodPatch:
		b, err := in.sessionBody()
		if err != nil {
			return err
		}
		if r, err = s.sessions.change(in.Context(), id, b); err != nil {
			return err
		}
		in.reply(http.StatusOK, s.sessionModel(r))
		return nil
	case http.MethodDelete:
		if err := s.shutdown(in.Context(), r.kernel); err != nil {
			return err
		}
		s.sessions.drop(id)
		in.w.WriteHeader(http.StatusNoContent)
		return nil
	}
	return refuse(http.StatusMethodNotAllowed, "Method Not Allowed")
}

// change moves a session to another path or kernel. A kernel that it leaves is shut down, as Jupyter does.
func (ss *sessions) change(ctx context.Context, id string, b sessionBody) (record, error) {
	s := ss.server
	ss.making.Lock()
	defer ss.making.Unlock()
	r, err := ss.find(id)
	if err != nil {
		return record{}, err
	}
	if b.Path != nil {
		r.path = strings.Trim(*b.Path, "/")
	}
	if b.Name != nil {
		r.name = *b.Name
	}
	if b.Type != nil {
		r.kind = *b.Type
	}
	full, err := s.place(r.path)
	if err != nil {
		return record{}, err
	}
	before := r.kernel
	if b.Kernel != nil {
		switch {
		case text(b.Kernel.ID) != "":
			if r.kernel, err = s.findKernel(*b.Kernel.ID); err != nil {
				return record{}, refuse(http.StatusBadRequest, "No such kernel: %s", clip(*b.Kernel.ID))
			}
		case b.Kernel.Name != nil:
			if r.kernel, err = s.startKernel(ctx, kernel.Options{Spec: *b.Kernel.Name, Cwd: path.Dir("/" + r.path)}); err != nil {
				return record{}, err
			}
		}
	}
	if r.bound || r.kind == typeNotebook {
		if r.kernel != before {
			before.SetPath("")
		}
		r.kernel.SetPath(full)
		r.bound = true
	}
	ss.keep(r)
	if r.kernel != before {
		if err := s.shutdown(ctx, before); err != nil {
			return record{}, err
		}
	}
	return r, nil
}
