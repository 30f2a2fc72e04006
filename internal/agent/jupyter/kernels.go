package jupyter

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"carrel.dev/carrel/internal/agent/kernel"
	"carrel.dev/carrel/internal/carrel"
)

const (
	// readyTime is how long a client waits for a kernel that is starting.
	readyTime = 60 * time.Second
	// shutTime is how long a kernel has to end.
	shutTime = 30 * time.Second
	// maxVariables is how many environment variables a request may give a kernel.
	maxVariables = 128
	maxResource  = 4 << 20
)

type kernelModel struct {
	ID             string `json:"id"`
	Name           string `json:"name"`
	LastActivity   string `json:"last_activity"`
	ExecutionState string `json:"execution_state"`
	Connections    int    `json:"connections"`
	Reason         string `json:"reason,omitempty"`
}

func (s *Server) kernelModel(k *kernel.Kernel) kernelModel {
	info := k.Info()
	return kernelModel{
		ID: info.ID, Name: info.Spec, LastActivity: timestamp(info.Activity), ExecutionState: stateOf(info.Phase),
		Connections: s.viewers.connected(info.ID), Reason: info.Message,
	}
}

var errNoKernels = refuse(http.StatusServiceUnavailable, "this box runs no kernels")

func (s *Server) findKernel(id string) (*kernel.Kernel, error) {
	if s.config.Kernels == nil {
		return nil, errNoKernels
	}
	k, err := s.config.Kernels.Get(id)
	if err != nil {
		return nil, refuse(http.StatusNotFound, "Kernel does not exist: %s", clip(id))
	}
	return k, nil
}

// kernels answers at /api/kernels.
func (s *Server) kernels(in *request) error {
	switch in.Method {
	case http.MethodGet, http.MethodHead:
		list := []kernelModel{}
		if s.config.Kernels != nil {
			for _, k := range s.config.Kernels.List() {
				list = append(list, s.kernelModel(k))
			}
		}
		in.reply(http.StatusOK, list)
		return nil
	case http.MethodPost:
		var g struct {
			Name string            `json:"name"`
			Path string            `json:"path"`
			Env  map[string]string `json:"env"`
		}
		if _, err := in.body(&g, maxSmallBody); err != nil {
			return err
		}
		k, err := s.startKernel(in.Context(), kernel.Options{Spec: g.Name, Cwd: g.Path, Env: kernelEnv(g.Env)})
		if err != nil {
			return err
		}
		in.w.Header().Set("Location", in.base+"api/kernels/"+k.ID())
		in.reply(http.StatusCreated, s.kernelModel(k))
		return nil
	}
	return refuse(http.StatusMethodNotAllowed, "Method Not Allowed")
}

var variableName = regexp.MustCompile(`^KERNEL_[A-Z0-9_]{1,64}$`)

// kernelEnv takes what clients of gateways may set.
func kernelEnv(given map[string]string) map[string]string {
	env := map[string]string{}
	for name, value := range given {
		if variableName.MatchString(name) && len(value) <= 4096 && !strings.ContainsRune(value, 0) && len(env) < maxVariables {
			env[name] = value
		}
	}
	return env
}

// startKernel starts a kernel; options.Cwd is an API path, of which the part that is there is taken.
func (s *Server) startKernel(ctx context.Context, options kernel.Options) (*kernel.Kernel, error) {
	if s.config.Kernels == nil {
		return nil, errNoKernels
	}
	cwd, err := s.place(options.Cwd)
	if err != nil {
		cwd = s.config.Home
	}
	_ = s.config.AsUser(ctx, func() error {
		for cwd != s.config.Home {
			if info, err := os.Stat(cwd); err == nil && info.IsDir() {
				break
			}
			cwd = filepath.Dir(cwd)
		}
		return nil
	})
	options.Cwd = cwd
	s.touch()
	k, err := s.config.Kernels.Start(ctx, options)
	if err != nil {
		return nil, fmt.Errorf("start a kernel: %w", err)
	}
	return k, nil
}

// kernel answers at /api/kernels/{id} and below.
func (s *Server) kernel(in *request, id, action string) error {
	k, err := s.findKernel(id)
	if err != nil {
		return err
	}
	switch {
	case action == "" && (in.Method == http.MethodGet || in.Method == http.MethodHead):
		in.reply(http.StatusOK, s.kernelModel(k))
		return nil
	case action == "" && in.Method == http.MethodDelete:
		if err := s.shutdown(in.Context(), k); err != nil {
			return err
		}
		in.w.WriteHeader(http.StatusNoContent)
		return nil
	case action == "interrupt" && in.Method == http.MethodPost:
		s.touch()
		// A kernel that does nothing is left alone: there is nothing to interrupt, and that is no error to clients.
		if err := k.Interrupt(in.Context()); err != nil && carrel.CodeOf(err) != carrel.CodePrecondition {
			return err
		}
		in.w.WriteHeader(http.StatusNoContent)
		return nil
	case action == "restart" && in.Method == http.MethodPost:
		s.touch()
		if err := s.restart(in.Context(), k); err != nil {
			return err
		}
		in.reply(http.StatusOK, s.kernelModel(k))
		return nil
	case action == "channels":
		return s.channels(in, k)
	case action == "" || action == "interrupt" || action == "restart":
		return refuse(http.StatusMethodNotAllowed, "Method Not Allowed")
	}
	return errNoPath
}

// restart answers when the kernel can be used again, as Jupyter does.
func (s *Server) restart(ctx context.Context, k *kernel.Kernel) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), readyTime+shutTime)
	defer cancel()
	return s.viewers.quietly(k.ID(), func() error {
		if err := k.Restart(ctx); err != nil {
			return fmt.Errorf("restart a kernel: %w", err)
		}
		return k.Ready(ctx)
	})
}

// shutdown ends a kernel, whether or not who asked for it waits.
func (s *Server) shutdown(ctx context.Context, k *kernel.Kernel) error {
	s.touch()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutTime)
	defer cancel()
	if err := k.Shutdown(ctx); err != nil {
		return fmt.Errorf("shut a kernel down: %w", err)
	}
	return nil
}

type specModel struct {
	Name      string            `json:"name"`
	Spec      map[string]any    `json:"spec"`
	Resources map[string]string `json:"resources"`
}

// isResource reports whether a file of a kernelspec is for clients.
func isResource(name string) bool {
	return name == "kernel.js" || name == "kernel.css" || strings.HasPrefix(name, "logo-")
}

// specModel describes a kernelspec. For AsUser.
func (in *request) specModel(spec kernel.Spec) specModel {
	fields := map[string]any{"env": map[string]any{}, "interrupt_mode": "signal", "metadata": map[string]any{}, "language": ""}
	var raw map[string]any
	if json.Unmarshal(spec.Raw, &raw) == nil {
		for _, name := range []string{"argv", "env", "display_name", "language", "interrupt_mode", "metadata"} {
			if value, ok := raw[name]; ok {
				fields[name] = value
			}
		}
	}
	m := specModel{Name: spec.Name, Spec: fields, Resources: map[string]string{}}
	entries, _ := os.ReadDir(spec.Dir)
	for _, entry := range entries {
		if name := entry.Name(); isResource(name) && len(m.Resources) < 64 {
			key := name
			if strings.HasPrefix(name, "logo-") {
				key = strings.TrimSuffix(name, filepath.Ext(name))
			}
			m.Resources[key] = in.base + "kernelspecs/" + escapePath(spec.Name) + "/" + escapePath(name)
		}
	}
	return m
}

// specs answers at /api/kernelspecs; name is empty for all.
func (s *Server) specs(in *request, name string) error {
	return in.only(http.MethodGet, func() error {
		if s.config.Kernels == nil {
			return errNoKernels
		}
		all, byDefault, err := s.config.Kernels.Specs()
		if err != nil {
			return err
		}
		models := map[string]specModel{}
		if err := s.config.AsUser(in.Context(), func() error {
			for _, spec := range all {
				if name == "" || spec.Name == strings.ToLower(name) {
					models[spec.Name] = in.specModel(spec)
				}
			}
			return nil
		}); err != nil {
			return err
		}
		if name == "" {
			in.reply(http.StatusOK, map[string]any{"default": byDefault, "kernelspecs": models})
			return nil
		}
		for _, one := range models {
			in.reply(http.StatusOK, one)
			return nil
		}
		return refuse(http.StatusNotFound, "Kernel spec %s not found", clip(name))
	})
}

// specResource answers with a logo or the like, at /kernelspecs/{name}/{file}.
func (s *Server) specResource(in *request, rest string) error {
	return in.only(http.MethodGet, func() error {
		name, file, _ := strings.Cut(rest, "/")
		if s.config.Kernels == nil || !isResource(file) || strings.Contains(file, "/") {
			return errNoPath
		}
		all, _, err := s.config.Kernels.Specs()
		if err != nil {
			return err
		}
		at := slices.IndexFunc(all, func(spec kernel.Spec) bool { return spec.Name == strings.ToLower(name) })
		if at < 0 {
			return errNoPath
		}
		var data []byte
		err = s.config.AsUser(in.Context(), func() (err error) {
			data, err = readWhole(filepath.Join(all[at].Dir, file), maxResource)
			return err
		})
		if errors.Is(err, os.ErrNotExist) {
			return errNoPath
		}
		if err != nil {
			return err
		}
		kind := "application/octet-stream"
		if guessed := guessType(file); guessed != nil {
			kind = *guessed
		}
		in.w.Header().Set("Content-Type", kind)
		_, err = in.w.Write(data)
		return err
	})
}
