package jupyter

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// rig is a server over a directory of its own.
type rig struct {
	t    *testing.T
	home string
	s    *Server
	http *httptest.Server
}

func newRig(t *testing.T, change func(*Config)) *rig {
	t.Helper()
	config := Config{Home: filepath.Join(t.TempDir(), "home"), Log: slog.New(slog.DiscardHandler), AsUser: func(_ context.Context, f func() error) error { return f() }}
	require.NoError(t, os.Mkdir(config.Home, 0o755))
	if change != nil {
		change(&config)
	}
	s, err := New(config)
	require.NoError(t, err)
	r := &rig{t: t, home: config.Home, s: s, http: httptest.NewServer(s)}
	t.Cleanup(func() {
		r.http.CloseClientConnections()
		s.Close()
		r.http.Close()
	})
	return r
}

// ask makes a request and gives status and body.
func (r *rig) ask(method, path, body string, header ...string) (int, map[string]any, http.Header) {
	r.t.Helper()
	request, err := http.NewRequest(method, r.http.URL+path, strings.NewReader(body))
	require.NoError(r.t, err)
	for i := 0; i+1 < len(header); i += 2 {
		request.Header.Set(header[i], header[i+1])
	}
	response, err := http.DefaultClient.Do(request)
	require.NoError(r.t, err)
	defer response.Body.Close()
	data, err := io.ReadAll(response.Body)
	require.NoError(r.t, err)
	var answer map[string]any
	if len(data) > 0 && data[0] == '{' {
		require.NoError(r.t, json.Unmarshal(data, &answer))
	} else if len(data) > 0 {
		answer = map[string]any{"": string(data)}
	}
	return response.StatusCode, answer, response.Header
}

func (r *rig) write(name, text string) string {
	r.t.Helper()
	path := filepath.Join(r.home, name)
	require.NoError(r.t, os.MkdirAll(filepath.Dir(path), 0o755))
	require.NoError(r.t, os.WriteFile(path, []byte(text), 0o644))
	return path
}

const notebookText = `{"cells":[{"cell_type":"code","id":"x","source":["a\n","b"],"metadata":{},"execution_count":null,"outputs":[{"output_type":"display_data","data":{"text/html":["<b>\n","</b>"],"application/json":[1,2]},"metadata":{}}]}],"metadata":{"big":12345678901234567890},"nbformat":4,"nbformat_minor":5}`

func TestPathsStayBelowTheRoot(t *testing.T) {
	r := newRig(t, nil)
	outside := filepath.Join(filepath.Dir(r.home), "secret.txt")
	require.NoError(t, os.WriteFile(outside, []byte("secret"), 0o644))
	r.write(".hidden/x.txt", "hidden")
	require.NoError(t, unix.Mkfifo(filepath.Join(r.home, "fifo"), 0o644))
	for _, path := range []string{"../secret.txt", "a/../../secret.txt", "..", "%2e%2e/secret.txt", "..%2fsecret.txt", ".hidden/x.txt", ".hidden", "a%00b", strings.Repeat("x/", 3000)} {
		for _, method := range []string{"GET", "PUT", "PATCH", "DELETE"} {
			status, answer, _ := r.ask(method, "/api/contents/"+path, `{"type":"file","format":"text","content":"w","path":"y"}`)
			require.Contains(t, []int{400, 404}, status, "%s %s", method, path)
			require.NotContains(t, fmt.Sprint(answer), "secret\"")
		}
		status, _, _ := r.ask("GET", "/files/"+path, "")
		require.Contains(t, []int{400, 404}, status, path)
	}
	status, _, _ := r.ask("PATCH", "/api/contents/fifo", `{"path":"../moved"}`)
	require.Equal(t, 404, status)
	status, _, _ = r.ask("GET", "/api/contents/fifo", "")
	require.Equal(t, 400, status, "what could keep the reader waiting is no file")
	status, _, _ = r.ask("PUT", "/api/contents/fifo", `{"type":"file","format":"text","content":"w"}`)
	require.Equal(t, 400, status)
	text, err := os.ReadFile(outside)
	require.NoError(t, err)
	require.Equal(t, "secret", string(text))
	_, listing, _ := r.ask("GET", "/api/contents", "")
	require.Empty(t, listing["content"])
}

func TestNotebooksAreWrittenAsJupyterDoes(t *testing.T) {
	r := newRig(t, nil)
	r.write("n.ipynb", notebookText)
	status, answer, header := r.ask("GET", "/api/contents/n.ipynb", "")
	require.Equal(t, 200, status)
	require.NotEmpty(t, header.Get("Last-Modified"))
	cell := answer["content"].(map[string]any)["cells"].([]any)[0].(map[string]any)
	require.Equal(t, "a\nb", cell["source"])
	output := cell["outputs"].([]any)[0].(map[string]any)["data"].(map[string]any)
	require.Equal(t, "<b>\n</b>", output["text/html"])
	require.Equal(t, []any{1.0, 2.0}, output["application/json"])
	require.Equal(t, false, cell["metadata"].(map[string]any)["trusted"], "nobody has seen this output made")

	trusted := strings.Replace(notebookText, `"metadata":{},"execution_count"`, `"metadata":{"trusted":true},"execution_count"`, 1)
	status, answer, header = r.ask("PUT", "/api/contents/n.ipynb", `{"type":"notebook","format":"json","content":`+trusted+`}`, headerPrefix, "/jupyter/lab")
	require.Equal(t, 200, status, answer)
	require.Nil(t, answer["content"])
	require.Equal(t, "/jupyter/lab/api/contents/n.ipynb", header.Get("Location"))
	data, err := os.ReadFile(filepath.Join(r.home, "n.ipynb"))
	require.NoError(t, err)
	require.Contains(t, string(data), "12345678901234567890", "numbers are as they came")
	require.Contains(t, string(data), "   \"source\": [\n    \"a\\n\",\n    \"b\"\n   ]\n")
	require.Contains(t, string(data), "\"<b>\\n\"")
	require.NotContains(t, string(data), "trusted")
	_, answer, _ = r.ask("GET", "/api/contents/n.ipynb", "")
	cell = answer["content"].(map[string]any)["cells"].([]any)[0].(map[string]any)
	require.Equal(t, true, cell["metadata"].(map[string]any)["trusted"])
	_, list, _ := r.ask("GET", "/api/contents/n.ipynb/checkpoints", "")
	require.Contains(t, list[""], `"id":"checkpoint"`, "a notebook always has a checkpoint")
}

func TestBadNotebooksAreSaidPlainly(t *testing.T) {
	r := newRig(t, nil)
	for text, part := range map[string]string{
		"":     "it is empty",
		"nope": "not a JSON object",
		"[]":   "not a JSON object",
		`{"nbformat":4,"metadata":{},"cells":[]} {}`:                         "something follows",
		`{"nbformat":3,"worksheets":[]}`:                                     "its format is 3",
		`{"nbformat":4,"metadata":{},"cells":{}}`:                            "no list of cells",
		`{"nbformat":4,"metadata":{},"cells":[5]}`:                           "cell 1 is no JSON object",
		`{"nbformat":4,"metadata":{},"cells":[{"source":"x"}]}`:              "cell 1 has no type",
		`{"nbformat":4,"cells":[]}`:                                          "no metadata",
		`{"nbformat":"\u202e4","metadata":{},"cells":[]}`:                    "its format is ?4",
		`{"nbformat":4,"metadata":{},"cells":` + strings.Repeat("[", 20_000): "not a JSON object",
	} {
		r.write("bad.ipynb", text)
		status, answer, _ := r.ask("GET", "/api/contents/bad.ipynb", "")
		require.Equal(t, 400, status, text)
		require.Contains(t, answer["message"], part)
		status, answer, _ = r.ask("GET", "/api/contents/bad.ipynb?type=file", "")
		require.Equal(t, 200, status, "it can be looked at as text")
		require.Equal(t, text, answer["content"])
	}
	r.write("twice.ipynb", `{"nbformat":4,"nbformat_minor":5,"metadata":{},"cells":[{"id":"a","cell_type":"raw","source":"","metadata":{}},{"id":"a","cell_type":"raw","source":"","metadata":{}}]}`)
	status, answer, _ := r.ask("GET", "/api/contents/twice.ipynb", "")
	require.Equal(t, 200, status)
	require.Contains(t, answer["message"], "two cells have the id a")
	large := r.write("large.ipynb", "")
	require.NoError(t, os.Truncate(large, maxContent+1))
	status, answer, _ = r.ask("GET", "/api/contents/large.ipynb", "")
	require.Equal(t, 413, status)
	require.Contains(t, answer["message"], "larger than the 64 MiB")
	before, err := os.ReadFile(filepath.Join(r.home, "twice.ipynb"))
	require.NoError(t, err)
	status, _, _ = r.ask("PUT", "/api/contents/twice.ipynb", `{"type":"notebook","format":"json","content":{"nbformat":2}}`)
	require.Equal(t, 400, status)
	after, err := os.ReadFile(filepath.Join(r.home, "twice.ipynb"))
	require.NoError(t, err)
	require.Equal(t, before, after, "what was there stays when it cannot be replaced")
}

func TestNothingIsLostWhenAFileCannotBeWritten(t *testing.T) {
	r := newRig(t, nil)
	path := r.write("kept.txt", "old")
	require.NoError(t, os.Chmod(path, 0o600))
	status, answer, _ := r.ask("PUT", "/api/contents/kept.txt", `{"type":"file","format":"base64","content":"***"}`)
	require.Equal(t, 400, status, answer)
	status, _, _ = r.ask("PUT", "/api/contents/kept.txt", `{"type":"file","format":"text","content":"new"}`)
	require.Equal(t, 200, status)
	info, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm(), "its mode stays")
	require.NoError(t, os.Symlink("kept.txt", filepath.Join(r.home, "link.txt")))
	status, _, _ = r.ask("PUT", "/api/contents/link.txt", `{"type":"file","format":"text","content":"through a link"}`)
	require.Equal(t, 200, status)
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, "through a link", string(text), "what a link leads to is written, and the link stays")
	status, answer, _ = r.ask("PUT", "/api/contents/dir", `{"type":"directory"}`)
	require.Equal(t, 201, status, answer)
	status, answer, _ = r.ask("PUT", "/api/contents/none/x.txt", `{"type":"file","format":"text","content":"new"}`)
	require.Equal(t, 404, status)
	require.Equal(t, nil, answer["reason"])
	entries, err := os.ReadDir(r.home)
	require.NoError(t, err)
	require.Len(t, entries, 3, "no temporary file is left")
	for errno, want := range map[error]int{unix.ENOSPC: 507, unix.EDQUOT: 507, unix.EACCES: 403, unix.ENOENT: 404, unix.EROFS: 403} {
		status, message := fileProblem(&os.PathError{Op: "write", Path: "/x/y", Err: errno})
		require.Equal(t, want, status)
		require.NotContains(t, message, "/x/", "paths of the box are the user's own, below the root")
	}
}

func TestWhatIsDeletedCanBeTakenBack(t *testing.T) {
	r := newRig(t, nil)
	r.write("d/one.txt", "1")
	for range 2 {
		r.write("gone.txt", "gone")
		status, _, _ := r.ask("DELETE", "/api/contents/gone.txt", "")
		require.Equal(t, 204, status)
	}
	status, _, _ := r.ask("DELETE", "/api/contents/d", "")
	require.Equal(t, 204, status)
	for _, name := range []string{"gone.txt", "gone.txt 2", "d/one.txt"} {
		require.FileExists(t, filepath.Join(r.home, ".local/share/Trash/files", name))
	}
	status, _, _ = r.ask("DELETE", "/api/contents/gone.txt", "")
	require.Equal(t, 404, status)
	status, _, _ = r.ask("DELETE", "/api/contents/", "")
	require.Equal(t, 400, status)
}

func TestConfigurationIsMerged(t *testing.T) {
	r := newRig(t, nil)
	status, answer, _ := r.ask("GET", "/api/config/notebook", "")
	require.Equal(t, 200, status)
	require.Empty(t, answer)
	status, _, _ = r.ask("PUT", "/api/config/notebook", `{"a":{"b":1,"c":2},"d":3}`)
	require.Equal(t, 204, status)
	status, answer, _ = r.ask("PATCH", "/api/config/notebook", `{"a":{"b":null,"e":5},"d":null}`)
	require.Equal(t, 200, status)
	require.Equal(t, map[string]any{"a": map[string]any{"c": 2.0, "e": 5.0}}, answer)
	for _, name := range []string{"..%2fx", "a.b", "", strings.Repeat("x", 65)} {
		status, _, _ = r.ask("PUT", "/api/config/"+name, `{}`)
		require.Contains(t, []int{404, 405}, status, name)
	}
	status, _, _ = r.ask("PUT", "/api/config/x", `[]`)
	require.Equal(t, 400, status)
}

func TestErrorsHaveJupytersForm(t *testing.T) {
	r := newRig(t, nil)
	for _, c := range []struct {
		method, path, body string
		status             int
	}{
		{"GET", "/api/nothing", "", 404}, {"GET", "/lab/api/settings", "", 404}, {"GET", "/api/workspaces/x", "", 404},
		{"GET", "/api/contents/none", "", 404}, {"GET", "/api/contents?type=bogus", "", 400}, {"GET", "/api/contents?content=2", "", 400},
		{"PUT", "/api/contents/x", "{", 400}, {"PATCH", "/api/contents/x", "", 400}, {"POST", "/api/sessions", "{}", 400}, {"POST", "/api/shutdown", "", 403},
		{"GET", "/api/kernels/none", "", 503}, {"GET", "/api/terminals/1", "", 404}, {"DELETE", "/api/status", "", 405},
		{"PUT", "/api/contents/x", `{"type":"file","format":"text","content":5}`, 400}, {"POST", "/api/contents/", `{"type":"bogus"}`, 400},
	} {
		status, answer, header := r.ask(c.method, c.path, c.body)
		require.Equal(t, c.status, status, "%s %s", c.method, c.path)
		require.NotEmpty(t, answer["message"], "%s %s", c.method, c.path)
		require.Contains(t, answer, "reason")
		require.Equal(t, "application/json", header.Get("Content-Type"))
	}
	_, answer, _ := r.ask("GET", "/api", "")
	require.Equal(t, apiVersion, answer["version"])
	_, answer, _ = r.ask("GET", "/api/status", "")
	started, err := time.Parse(time.RFC3339Nano, answer["started"].(string))
	require.NoError(t, err)
	require.WithinDuration(t, time.Now(), started, time.Hour)
}

func FuzzNotebooks(f *testing.F) {
	f.Add([]byte(notebookText))
	f.Add([]byte(`{"nbformat":4,"metadata":{},"cells":[{"cell_type":"code","source":["a",5],"outputs":[1,{"output_type":"stream","text":["x"]}],"attachments":{"a":{"image/png":["x"]}}}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		nb, err := parseNotebook(data)
		if err != nil {
			return
		}
		complaint(nb)
		trusted(nb)
		eachText(nb, join)
		strip(nb)
		before, err := json.Marshal(nb)
		require.NoError(t, err)
		written, err := writeNotebook(nb)
		require.NoError(t, err)
		again, err := parseNotebook(written)
		require.NoError(t, err)
		eachText(again, join)
		after, err := json.Marshal(again)
		require.NoError(t, err)
		require.Equal(t, string(before), string(after), "what is saved is read back")
	})
}

// TestSavesSweepFirst promises that what broken saves left beside a file is looked for before it is saved again.
func TestSavesSweepFirst(t *testing.T) {
	var swept []string
	r := newRig(t, func(c *Config) {
		c.Sweep = func(path string) {
			require.NoFileExists(t, path)
			swept = append(swept, path)
		}
	})
	status, _, _ := r.ask(http.MethodPut, "/api/contents/a.txt", `{"type": "file", "format": "text", "content": "x"}`)
	require.Equal(t, http.StatusCreated, status)
	require.Equal(t, []string{filepath.Join(r.home, "a.txt")}, swept)
}
