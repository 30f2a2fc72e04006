package jupyter

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/coder/websocket"
)

// Terminals has the programs on terminals of a box. Its methods may be called by several at once. Errors are *carrel.Error; one of what is not
// there has CodeNotFound.
type Terminals interface {
	// Start starts the user's shell, for a user of the platform, and gives its id.
	Start(ctx context.Context, user, cwd string, rows, cols int) (id string, err error)
	// List gives the terminals whose program runs, oldest first.
	List() []Terminal
	// View looks at a terminal from what is kept of its output on.
	View(id, user string) (TerminalView, error)
	// Write types; it waits until the terminal takes it.
	Write(ctx context.Context, id string, data []byte) error
	Resize(id string, rows, cols int) error
	// End hangs the terminal up.
	End(id string) error
}

// Terminal is a program on a terminal.
type Terminal struct {
	ID      string
	Started time.Time
}

// TerminalView is one who looks.
type TerminalView interface {
	// Next waits for output; it is good until the next call. io.EOF: the program has ended.
	Next(ctx context.Context) ([]byte, error)
	Close()
}

const (
	maxTerminals = 256
	// A terminal that nobody has told the size of yet.
	firstRows, firstCols = 24, 80
	maxRows              = 10_000
)

// terminals gives the box's terminals the short names that clients of Jupyter show, and remembers who looks how.
type terminals struct {
	server *Server

	mu    sync.Mutex // guards what follows
	names map[string]string
	used  map[string]time.Time            // by id: the last activity
	sizes map[string]map[*socket]termSize // by id
}

type termSize struct{ rows, cols int }

func newTerminals(s *Server) *terminals {
	return &terminals{server: s, names: map[string]string{}, used: map[string]time.Time{}, sizes: map[string]map[*socket]termSize{}}
}

type terminalModel struct {
	Name         string `json:"name"`
	LastActivity string `json:"last_activity"`
}

// list gives the models of the terminals, and the id of each by its name. What is over is forgotten.
func (ts *terminals) list() ([]terminalModel, map[string]string) {
	models, ids := []terminalModel{}, map[string]string{}
	if ts.server.config.Terminals == nil {
		return models, ids
	}
	all := ts.server.config.Terminals.List()
	ts.mu.Lock()
	defer ts.mu.Unlock()
	running := map[string]Terminal{}
	for _, one := range all {
		running[one.ID] = one
	}
	byID := map[string]string{}
	for name, id := range ts.names {
		if _, ok := running[id]; !ok {
			delete(ts.names, name)
			delete(ts.used, id)
			continue
		}
		byID[id] = name
	}
	for _, one := range all {
		name := byID[one.ID]
		if name == "" {
			name = one.ID
		}
		last := one.Started
		if used, ok := ts.used[one.ID]; ok {
			last = used
		}
		ids[name] = one.ID
		models = append(models, terminalModel{Name: name, LastActivity: timestamp(last)})
	}
	return models, ids
}

func (ts *terminals) find(name string) (id string, m terminalModel, err error) {
	models, ids := ts.list()
	for _, m := range models {
		if m.Name == name {
			return ids[name], m, nil
		}
	}
	return "", terminalModel{}, refuse(http.StatusNotFound, "Terminal not found: %s", clip(name))
}

func (ts *terminals) touch(id string) {
	ts.server.touch()
	ts.mu.Lock()
	ts.used[id] = ts.server.now()
	ts.mu.Unlock()
}

var terminalName = regexp.MustCompile(`^\w{1,64}$`)

// terminalList answers at /api/terminals.
func (s *Server) terminalList(in *request) error {
	switch in.Method {
	case http.MethodGet, http.MethodHead:
		models, _ := s.terminals.list()
		in.reply(http.StatusOK, models)
		return nil
	case http.MethodPost:
		var g struct {
			Name string `json:"name"`
			Cwd  string `json:"cwd"`
		}
		if _, err := in.body(&g, maxSmallBody); err != nil {
			return err
		}
		m, err := s.startTerminal(in, g.Name, g.Cwd)
		if err == nil {
			in.reply(http.StatusOK, m)
		}
		return err
	}
	return refuse(http.StatusMethodNotAllowed, "Method Not Allowed")
}

func (s *Server) startTerminal(in *request, name, cwd string) (terminalModel, error) {
	ts := s.terminals
	if s.config.Terminals == nil {
		return terminalModel{}, refuse(http.StatusServiceUnavailable, "this box has no terminals")
	}
	if name != "" && !terminalName.MatchString(name) {
		return terminalModel{}, refuse(http.StatusBadRequest, "the name of a terminal has letters, digits and _ alone")
	}
	models, ids := ts.list()
	if _, taken := ids[name]; taken {
		return terminalModel{}, refuse(http.StatusConflict, "there is a terminal %s", clip(name))
	}
	if len(models) >= maxTerminals {
		return terminalModel{}, refuse(http.StatusTooManyRequests, "%d terminals are open in the box; close one first", maxTerminals)
	}
	id, err := s.config.Terminals.Start(in.Context(), in.Header.Get(HeaderUser), s.terminalDir(in, cwd), firstRows, firstCols)
	if err != nil {
		return terminalModel{}, err
	}
	ts.mu.Lock()
	for i := 1; name == ""; i++ {
		if one := strconv.Itoa(i); ts.names[one] == "" {
			name = one
		}
	}
	ts.names[name] = id
	ts.mu.Unlock()
	ts.touch(id)
	return terminalModel{Name: name, LastActivity: timestamp(s.now())}, nil
}

// terminalDir is where a terminal begins: what was asked for, by itself or below the root, if it is there.
func (s *Server) terminalDir(in *request, cwd string) (dir string) {
	dir = s.config.Home
	if cwd == "" || strings.ContainsRune(cwd, 0) {
		return dir
	}
	_ = s.config.AsUser(in.Context(), func() error {
		for _, candidate := range []string{cwd, filepath.Join(s.config.Home, cwd)} {
			if info, err := os.Stat(candidate); filepath.IsAbs(candidate) && err == nil && info.IsDir() {
				dir = candidate
				return nil
			}
		}
		return nil
	})
	return dir
}

// terminal answers at /api/terminals/{name}.
func (s *Server) terminal(in *request, name string) error {
	id, m, err := s.terminals.find(name)
	if err != nil {
		return err
	}
	switch in.Method {
	case http.MethodGet, http.MethodHead:
		in.reply(http.StatusOK, m)
		return nil
	case http.MethodDelete:
		if err := s.config.Terminals.End(id); err != nil {
			return err
		}
		in.w.WriteHeader(http.StatusNoContent)
		return nil
	}
	return refuse(http.StatusMethodNotAllowed, "Method Not Allowed")
}

// terminalSocket connects a client to a terminal, by the protocol of terminado: arrays of JSON whose first element says what they are.
func (s *Server) terminalSocket(in *request, name string) error {
	if !isUpgrade(in.Request) {
		return errNoUpgrade
	}
	id, _, err := s.terminals.find(name)
	if err != nil {
		return err
	}
	view, err := s.config.Terminals.View(id, in.Header.Get(HeaderUser))
	if err != nil {
		return err
	}
	defer view.Close()
	c, ctx := s.accept(in)
	if c == nil {
		return nil
	}
	c.SetReadLimit(1 << 20)
	defer s.sockets.Done()
	ts := s.terminals
	defer ts.resize(id, c, termSize{})
	var parts sync.WaitGroup
	parts.Go(func() { c.keep(ctx) })
	parts.Go(func() { c.cut(ts.read(ctx, c, id)) })
	c.finish(ts.write(ctx, c, id, view))
	parts.Wait()
	return nil
}

func (c *socket) sendTerminal(parts ...any) error {
	data, err := marshal(parts)
	if err != nil {
		return err
	}
	return c.send(websocket.MessageText, data)
}

// write gives the client the output of a terminal.
func (ts *terminals) write(ctx context.Context, c *socket, id string, view TerminalView) error {
	if err := c.sendTerminal("setup", map[string]any{}); err != nil {
		return err
	}
	var rest []byte
	for {
		data, err := view.Next(ctx)
		if errors.Is(err, io.EOF) {
			return errors.Join(c.sendTerminal("disconnect", 1), errOver)
		}
		if err != nil {
			if cause := context.Cause(ctx); cause != nil {
				err = cause
			}
			return err
		}
		ts.touch(id)
		var text string
		text, rest = wholeRunes(append(rest, data...))
		if text == "" {
			continue
		}
		if err := c.sendTerminal("stdout", text); err != nil {
			return errors.Join(context.Cause(ctx), err)
		}
	}
}

// wholeRunes gives what is whole of UTF-8, and the beginning of a character at its end.
func wholeRunes(data []byte) (text string, rest []byte) {
	n := len(data)
	for i := 1; i <= min(utf8.UTFMax-1, len(data)); i++ {
		if b := data[len(data)-i]; utf8.RuneStart(b) {
			if b >= utf8.RuneSelf && !utf8.FullRune(data[len(data)-i:]) {
				n = len(data) - i
			}
			break
		}
	}
	return strings.ToValidUTF8(string(data[:n]), "\uFFFD"), append([]byte(nil), data[n:]...)
}

// read takes what the client types and how large it is.
func (ts *terminals) read(ctx context.Context, c *socket, id string) error {
	for {
		_, data, err := c.Read(context.Background()) // a context that ends would end the connection without a word
		if err != nil {
			return err
		}
		kind, text, size, err := parseTerminal(data)
		if err != nil {
			return fmt.Errorf("%w: %w", errFrame, err)
		}
		switch kind {
		case "stdin":
			ts.touch(id)
			if err := ts.server.config.Terminals.Write(ctx, id, []byte(text)); err != nil {
				return err
			}
		case "set_size":
			ts.resize(id, c, size)
		}
	}
}

// parseTerminal reads one message of a terminal's client.
func parseTerminal(data []byte) (kind, text string, size termSize, err error) {
	var parts []json.RawMessage
	if err := json.Unmarshal(data, &parts); err != nil || len(parts) == 0 || json.Unmarshal(parts[0], &kind) != nil {
		return "", "", size, errors.New("a message to a terminal is an array with a word at its beginning")
	}
	switch kind {
	case "stdin":
		if len(parts) < 2 || json.Unmarshal(parts[1], &text) != nil {
			return "", "", size, errors.New("a message that types has a text")
		}
	case "set_size":
		var rows, cols float64
		if len(parts) < 3 || json.Unmarshal(parts[1], &rows) != nil || json.Unmarshal(parts[2], &cols) != nil || rows < 1 || cols < 1 || rows > maxRows || cols > maxRows {
			return kind, "", termSize{}, nil //nolint:nilerr // a window that is not shown says so
		}
		size = termSize{int(rows), int(cols)}
	}
	return kind, text, size, nil
}

// resize notes how large the terminal is at one client, and makes it as small as the smallest. The zero size takes the client away.
func (ts *terminals) resize(id string, c *socket, size termSize) {
	ts.mu.Lock()
	if size == (termSize{}) {
		delete(ts.sizes[id], c)
		if len(ts.sizes[id]) == 0 {
			delete(ts.sizes, id)
		}
	} else {
		if ts.sizes[id] == nil {
			ts.sizes[id] = map[*socket]termSize{}
		}
		ts.sizes[id][c] = size
	}
	smallest := termSize{}
	for _, one := range ts.sizes[id] {
		if smallest.rows == 0 || one.rows < smallest.rows {
			smallest.rows = one.rows
		}
		if smallest.cols == 0 || one.cols < smallest.cols {
			smallest.cols = one.cols
		}
	}
	ts.mu.Unlock()
	if smallest.rows > 0 {
		_ = ts.server.config.Terminals.Resize(id, smallest.rows, smallest.cols)
	}
}
