package notebook

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"strings"
	"unicode/utf8"

	"carrel.dev/carrel/internal/agent/kernel"
	"carrel.dev/carrel/internal/carrel"
)

const (
	// formatMajor and formatMinor are the version of nbformat that notebooks are written in.
	formatMajor, formatMinor = 4, 5
	// maxNotebook is the largest file that is opened as a notebook, in bytes, and maxNotebookCells the most cells that one may have.
	maxNotebook      = 256 << 20
	maxNotebookCells = 50_000
)

// content is a notebook as it is in memory: texts are joined, ids are there and differ.
type content struct {
	metadata map[string]any
	extra    map[string]any // fields of the file that nbformat does not know
	minor    json.Number    // of the format; at least 5
	cells    []*cell
}

// cell of a notebook. metadata and extra are replaced, never changed.
type cell struct {
	id, kind, source string
	metadata         map[string]any
	extra            map[string]any // attachments, and fields that nbformat does not know
	outputs          *outputs       // of code
	count            any            // execution count: a json.Number or nil
	named            bool           // the file had no id for it, or none that can be
}

var cellID = regexp.MustCompile(`^[a-zA-Z0-9_-]{1,64}$`)

// repairs collects what was done to a notebook, each with how often.
type repairs struct {
	order []string
	count map[string]int
}

func (r *repairs) note(what string) {
	if r.count == nil {
		r.count = map[string]int{}
	}
	if r.count[what] == 0 {
		r.order = append(r.order, what)
	}
	r.count[what]++
}

func (r *repairs) list() (all []string) {
	for _, what := range r.order {
		if n := r.count[what]; n > 1 {
			what = fmt.Sprintf("%s (%d times)", what, n)
		}
		all = append(all, what)
	}
	return all
}

func badNotebook(format string, args ...any) error {
	return carrel.Errorf(carrel.CodePrecondition, "bad_notebook", format, args...)
}

// parse reads a notebook of any version from 3 on, and repairs what can be repaired.
func parse(data []byte) (*content, []string, error) {
	c, done, err := read(data)
	if err != nil {
		return nil, nil, err
	}
	return c, done.list(), nil
}

// read is parse; cells that had no id are marked.
func read(data []byte) (*content, *repairs, error) {
	if len(strings.TrimSpace(string(data[:min(len(data), 1<<10)]))) == 0 && len(data) <= 1<<10 { // what touch makes
		done := &repairs{}
		done.note("the file was empty")
		return &content{metadata: map[string]any{}, extra: map[string]any{}, minor: "5"}, done, nil
	}
	if !utf8.Valid(data) { // reading would replace what is none, and saving write that
		return nil, nil, badNotebook("the file is no notebook: it is not UTF-8 text. Convert it, or open it as text; it was not changed")
	}
	root, err := decodeObject(data)
	if err != nil {
		return nil, nil, badNotebook("the file is no notebook: %v. Open it as text to repair it; it was not changed", err)
	}
	done := &repairs{}
	major, minor := versionOf(root["nbformat"]), versionOf(root["nbformat_minor"])
	switch {
	case major == 3:
		root = upgrade(root, done)
		minor = 0
	case major > formatMajor:
		return nil, nil, badNotebook("the notebook has format %d, which is newer than the one that is known (%d); it was not changed", major, formatMajor)
	case major < 3:
		return nil, nil, badNotebook("the file is no notebook that is known: its nbformat is not 3 or 4. Open it as text to look at it; it was not changed")
	}
	c := &content{metadata: objectOf(root["metadata"]), extra: map[string]any{}, minor: "5"}
	if minor > formatMinor {
		c.minor = json.Number(fmt.Sprint(minor))
	}
	list, ok := root["cells"].([]any)
	if !ok {
		return nil, nil, badNotebook("the file is no notebook: it has no list of cells. Open it as text to repair it; it was not changed")
	}
	if len(list) > maxNotebookCells {
		return nil, nil, badNotebook("the notebook has %d cells; at most %d can be opened", len(list), maxNotebookCells)
	}
	for name, value := range root {
		switch name {
		case "cells", "metadata", "nbformat", "nbformat_minor":
		default:
			c.extra[name] = value
		}
	}
	for _, name := range []string{"orig_nbformat", "orig_nbformat_minor", "signature"} { // as Jupyter does
		if _, there := c.metadata[name]; there {
			c.metadata = maps.Clone(c.metadata)
			delete(c.metadata, name)
		}
	}
	seen := map[string]bool{}
	for _, value := range list {
		one := parseCell(value, done)
		switch {
		case one.id == "" && minor >= formatMinor:
			done.note("a cell had no id and got one")
		case one.id != "" && seen[one.id]:
			done.note("a cell had the id of another and got one of its own")
			one.id = ""
		case one.id != "" && !cellID.MatchString(one.id):
			done.note("a cell had an id that is none and got another")
			one.id = ""
		}
		for tries := 0; one.id == "" || seen[one.id]; tries++ {
			one.id, one.named = derivedID(len(c.cells), tries, one), true
		}
		seen[one.id] = true
		c.cells = append(c.cells, one)
	}
	return c, done, nil
}

// derivedID gives an id to a cell of which the file has none. The same file always gives the same, so that what the journal tells of a cell is told of the
// same one in the box's next life.
func derivedID(place, tries int, one *cell) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%d %d %s %s", place, tries, one.kind, one.source))
	return hex.EncodeToString(sum[:4])
}

func newCellID() string { return kernel.NewID()[:8] }

func versionOf(value any) int {
	number, _ := value.(json.Number)
	n, err := number.Int64()
	if err != nil || n < 0 || n > 1000 {
		return 0
	}
	return int(n)
}

// parseCell reads a cell, whatever it is; its id may be missing.
func parseCell(value any, done *repairs) *cell {
	fields, ok := value.(map[string]any)
	if !ok {
		done.note("a cell that was none became a raw cell")
		var e encoder
		e.value(value)
		return &cell{kind: "raw", source: e.buf.String(), metadata: map[string]any{}, extra: map[string]any{}}
	}
	one := &cell{metadata: objectOf(fields["metadata"]), extra: map[string]any{}}
	one.id, _ = fields["id"].(string)
	one.kind, _ = fields["cell_type"].(string)
	switch one.kind {
	case "code", "markdown", "raw":
	default:
		done.note("a cell of a kind that is not known became a raw cell")
		one.kind = "raw"
	}
	if one.source, ok = joined(fields["source"]); !ok {
		done.note("a cell had no text")
	}
	if _, there := one.metadata["trusted"]; there {
		one.metadata = maps.Clone(one.metadata)
		delete(one.metadata, "trusted")
	}
	for name, field := range fields {
		switch name {
		case "id", "cell_type", "metadata", "source", "outputs", "execution_count":
		default:
			one.extra[name] = field
		}
	}
	if one.kind != "code" {
		return one
	}
	one.count = countOf(fields["execution_count"])
	one.outputs = &outputs{}
	list, ok := fields["outputs"].([]any)
	if !ok {
		done.note("a cell of code had no list of outputs")
	}
	for _, value := range list {
		if shown := parseOutput(value); shown != nil {
			one.outputs.list = append(one.outputs.list, shown)
		} else {
			done.note("an output that was none was left out")
		}
	}
	return one
}

// parseOutput reads an output; nil: it is none.
func parseOutput(value any) *output {
	fields, ok := value.(map[string]any)
	if !ok {
		return nil
	}
	kind, _ := fields["output_type"].(string)
	switch kind {
	case "stream":
		name, _ := fields["name"].(string)
		text, ok := joined(fields["text"])
		if !ok || len(fields) > 3 { // with fields that are not known it stays as it is
			return other(fields, "text", text, ok)
		}
		if name == "" {
			name = "stdout"
		}
		one := &output{stream: name}
		one.text.WriteString(text)
		return one
	case "display_data", "execute_result":
		data := map[string]any{}
		for mime, content := range objectOf(fields["data"]) {
			if text, ok := joined(content); ok && !isJSONType(mime) {
				data[mime] = text
			} else {
				data[mime] = content
			}
		}
		whole := maps.Clone(fields)
		whole["data"], whole["metadata"] = data, objectOf(fields["metadata"])
		delete(whole, "transient")
		return &output{fields: whole}
	case "":
		return nil
	}
	return &output{fields: fields}
}

func other(fields map[string]any, name, text string, ok bool) *output {
	if !ok {
		return nil
	}
	whole := maps.Clone(fields)
	whole[name] = text
	return &output{fields: whole}
}

// joined gives text that may be a list of lines.
func joined(value any) (string, bool) {
	switch value := value.(type) {
	case string:
		return value, true
	case []any:
		var all strings.Builder
		for _, line := range value {
			text, ok := line.(string)
			if !ok {
				return "", false
			}
			all.WriteString(text)
		}
		return all.String(), true
	}
	return "", false
}

// write makes the file of a notebook.
func (c *content) write() []byte {
	root := maps.Clone(c.extra)
	if root == nil {
		root = map[string]any{}
	}
	list := make([]any, 0, len(c.cells))
	for _, one := range c.cells {
		list = append(list, one.file())
	}
	root["cells"], root["metadata"] = list, c.metadata
	root["nbformat"], root["nbformat_minor"] = json.Number("4"), c.minor
	var e encoder
	e.value(root)
	e.buf.WriteByte('\n')
	return e.buf.Bytes()
}

// file gives a cell as a file has it.
func (c *cell) file() map[string]any {
	fields := c.fields()
	fields["source"] = lines(c.source)
	if c.outputs != nil {
		list := make([]any, 0, len(c.outputs.list))
		for _, one := range c.outputs.list {
			list = append(list, one.file())
		}
		fields["outputs"] = list
	}
	return fields
}

// fields gives what a cell has besides its source and outputs.
func (c *cell) fields() map[string]any {
	fields := maps.Clone(c.extra)
	if fields == nil {
		fields = map[string]any{}
	}
	fields["cell_type"], fields["id"], fields["metadata"] = c.kind, c.id, c.metadata
	if c.kind == "code" {
		fields["execution_count"] = c.count
	}
	return fields
}

// file gives an output as a file has it.
func (o *output) file() map[string]any {
	if o.stream != "" {
		return map[string]any{"output_type": "stream", "name": o.stream, "text": lines(o.said())}
	}
	fields := maps.Clone(o.fields)
	if data, ok := fields["data"].(map[string]any); ok {
		split := make(map[string]any, len(data))
		for mime, value := range data {
			if text, ok := value.(string); ok && !isJSONType(mime) {
				value = lines(text)
			}
			split[mime] = value
		}
		fields["data"] = split
	}
	if text, ok := fields["text"].(string); ok && fields["output_type"] == "stream" {
		fields["text"] = lines(text)
	}
	return fields
}

// snapshot gives a content of its own, which shares what is never changed.
func (c *content) snapshot() *content {
	same := &content{metadata: c.metadata, extra: c.extra, minor: c.minor, cells: make([]*cell, 0, len(c.cells))}
	for _, one := range c.cells {
		copied := *one
		if one.outputs != nil {
			copied.outputs = one.outputs.snapshot()
		}
		same.cells = append(same.cells, &copied)
	}
	return same
}

func (o *outputs) snapshot() *outputs {
	same := &outputs{list: make([]*output, 0, len(o.list))}
	for _, one := range o.list {
		if one.stream == "" {
			same.list = append(same.list, &output{fields: one.fields, display: one.display})
			continue
		}
		same.list = append(same.list, &output{stream: one.stream, fixed: one.said()})
	}
	return same
}

// find gives the place of a cell, -1: there is none.
func (c *content) find(id string) int {
	for i, one := range c.cells {
		if one.id == id {
			return i
		}
	}
	return -1
}
