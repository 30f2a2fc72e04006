package jupyter

import (
	"encoding/json"
	"errors"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"
	"unicode"

	"carrel.dev/carrel/internal/carrel"
)

// maxConfig bounds the file of a section of the configuration, in bytes.
const maxConfig = 1 << 20

var errNoPath = refuse(http.StatusNotFound, "Not Found")

// route finds what answers a request.
func (s *Server) route(in *request) error {
	head, rest, _ := strings.Cut(in.path, "/")
	switch head {
	case "", "tree", "lab":
		if rest == "" {
			return s.front(in)
		}
	case "files":
		return s.file(in, rest)
	case "kernelspecs":
		return s.specResource(in, rest)
	case "terminals":
		if name, ok := strings.CutPrefix(rest, "websocket/"); ok {
			return s.terminalSocket(in, name)
		}
	case "api":
		return s.api(in, rest)
	}
	return errNoPath
}

func (s *Server) api(in *request, path string) error {
	head, rest, _ := strings.Cut(path, "/")
	if head == "contents" {
		return s.contents(in, rest)
	}
	parts := strings.Split(rest, "/")
	switch {
	case head == "kernels" && rest == "":
		return s.kernels(in)
	case head == "kernels" && len(parts) <= 2:
		return s.kernel(in, parts[0], strings.Join(parts[1:], "/"))
	case head == "sessions" && rest == "":
		return s.sessionList(in)
	case head == "sessions" && len(parts) == 1:
		return s.session(in, rest)
	case head == "kernelspecs" && len(parts) == 1:
		return s.specs(in, rest)
	case head == "terminals" && rest == "":
		return s.terminalList(in)
	case head == "terminals" && len(parts) == 1:
		return s.terminal(in, rest)
	case head == "config" && len(parts) == 1:
		return s.section(in, rest)
	}
	switch path {
	case "":
		return in.only(http.MethodGet, func() error { in.reply(http.StatusOK, map[string]any{"version": apiVersion}); return nil })
	case "status":
		return in.only(http.MethodGet, func() error { return s.status(in) })
	case "me":
		return in.only(http.MethodGet, func() error { return s.me(in) })
	case "nbconvert":
		return in.only(http.MethodGet, func() error { in.reply(http.StatusOK, map[string]any{}); return nil })
	case "shutdown":
		return refuse(http.StatusForbidden, "the server ends with its box: stop or pause the box instead")
	case "events":
		in.w.WriteHeader(http.StatusNoContent)
		return nil
	case "events/subscribe":
		return s.events(in)
	case "security/csp-report":
		in.w.WriteHeader(http.StatusNoContent)
		return nil
	}
	return errNoPath
}

// only answers requests of one method, and HEAD where that is GET.
func (in *request) only(method string, f func() error) error {
	if in.Method == method || method == http.MethodGet && in.Method == http.MethodHead {
		return f()
	}
	in.w.Header().Set("Allow", method)
	return refuse(http.StatusMethodNotAllowed, "Method Not Allowed")
}

// front is for clients that look for the pages of a Jupyter server to see whether there is one.
func (s *Server) front(in *request) error {
	return in.only(http.MethodGet, func() error {
		in.w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_, err := in.w.Write([]byte("This is the Jupyter API of a Carrel box. Give its address to JupyterLab, VS Code or another client of Jupyter servers.\n"))
		return err
	})
}

func (s *Server) status(in *request) error {
	connections, kernels := 0, 0
	if s.config.Kernels != nil {
		for _, one := range s.config.Kernels.List() {
			kernels++
			connections += s.viewers.connected(one.ID())
		}
	}
	s.mu.Lock()
	last := s.last
	s.mu.Unlock()
	in.reply(http.StatusOK, map[string]any{
		"started": timestamp(s.started), "last_activity": timestamp(last), "kernels": kernels, "connections": connections,
	})
	return nil
}

// me says who asks. Whoever gets here may do everything, so that each permission that is asked about is there.
func (s *Server) me(in *request) error {
	permissions := map[string][]string{}
	if text := in.URL.Query().Get("permissions"); text != "" {
		if len(text) > maxSmallBody || json.Unmarshal([]byte(text), &permissions) != nil {
			return refuse(http.StatusBadRequest, "permissions should be a JSON dict of {'resource': ['action',]}, got %s", clip(text))
		}
	}
	name := in.Header.Get(HeaderUser)
	if name == "" {
		name = "carrel"
	}
	initials := "?"
	for _, r := range name {
		initials = string(unicode.ToUpper(r))
		break
	}
	in.reply(http.StatusOK, map[string]any{
		"identity": map[string]any{
			"username": name, "name": name, "display_name": name, "initials": initials, "avatar_url": nil, "color": nil,
		},
		"permissions": permissions,
	})
	return nil
}

// clip makes text of a request fit for a message.
func clip(text string) string {
	text = strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '?'
	}, strings.ToValidUTF8(text, "?"))
	if len(text) > 200 {
		text = strings.ToValidUTF8(text[:200], "") + "…"
	}
	return text
}

var sectionName = regexp.MustCompile(`^\w{1,64}$`)

// section keeps what clients want to have kept by name.
func (s *Server) section(in *request, name string) error {
	if !sectionName.MatchString(name) {
		return errNoPath
	}
	path := filepath.Join(s.config.Home, ".jupyter/serverconfig", name+".json")
	if in.Method == http.MethodGet || in.Method == http.MethodHead {
		section, err := s.readSection(in, path)
		if err == nil {
			in.reply(http.StatusOK, section)
		}
		return err
	}
	var given map[string]any
	if in.Method != http.MethodPut && in.Method != http.MethodPatch {
		return refuse(http.StatusMethodNotAllowed, "Method Not Allowed")
	}
	if found, err := in.body(&given, maxConfig); err != nil || !found {
		return errors.Join(err, refuse(http.StatusBadRequest, "Invalid JSON in body of request"))
	}
	s.configs.Lock()
	defer s.configs.Unlock()
	if in.Method == http.MethodPatch {
		section, err := s.readSection(in, path)
		if err != nil {
			return err
		}
		update(section, given)
		given = section
	}
	data, err := json.MarshalIndent(given, "", "  ")
	if err != nil {
		return err
	}
	err = s.config.AsUser(in.Context(), func() error {
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return err
		}
		return replaceFile(path, data, 0o600)
	})
	if err != nil {
		return err
	}
	if in.Method == http.MethodPut {
		in.w.WriteHeader(http.StatusNoContent)
		return nil
	}
	in.reply(http.StatusOK, given)
	return nil
}

func (s *Server) readSection(in *request, path string) (map[string]any, error) {
	section := map[string]any{}
	var data []byte
	err := s.config.AsUser(in.Context(), func() (err error) {
		data, err = readWhole(path, maxConfig)
		return err
	})
	if errors.Is(err, fs.ErrNotExist) {
		return section, nil
	}
	if err == nil && json.Unmarshal(data, &section) != nil {
		err = refuse(http.StatusInternalServerError, "the configuration in %s is not a JSON object; repair or remove it", carrel.EncodeFileName(filepath.Base(path)))
	}
	return section, err
}

// update merges changes into a section; null takes away.
func update(section, changes map[string]any) {
	for key, value := range changes {
		inner, isMap := value.(map[string]any)
		switch {
		case value == nil:
			delete(section, key)
		case isMap:
			old, _ := section[key].(map[string]any)
			if old == nil {
				old = map[string]any{}
			}
			update(old, inner)
			if len(old) == 0 {
				delete(section, key)
			} else {
				section[key] = old
			}
		default:
			section[key] = value
		}
	}
}

// httpTime is a time in a header.
func httpTime(t time.Time) string { return t.UTC().Format(http.TimeFormat) }
