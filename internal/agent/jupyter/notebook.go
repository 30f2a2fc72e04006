package jupyter

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
)

const (
	// notebookMajor is the one version of the format that is understood; notebookMinor is that of new notebooks.
	notebookMajor = 4
	notebookMinor = 5
	// maxTrusted bounds the notebooks whose trust is remembered.
	maxTrusted = 4096
)

// object is a JSON object whose numbers are kept as they were written.
type object = map[string]any

func newNotebook() object {
	return object{"cells": []any{}, "metadata": object{}, "nbformat": json.Number(fmt.Sprint(notebookMajor)), "nbformat_minor": json.Number(fmt.Sprint(notebookMinor))}
}

// parseNotebook reads a notebook, and says what is wrong with one that can't be read.
func parseNotebook(data []byte) (object, error) {
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.UseNumber()
	var nb object
	if err := decoder.Decode(&nb); err != nil || nb == nil {
		if len(bytes.TrimSpace(data)) == 0 {
			return nil, errors.New("it is empty")
		}
		return nil, errors.New("it is not a JSON object; open it as a text file to see what is in it")
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("something follows the JSON object; open it as a text file to see what is in it")
	}
	return nb, checkFormat(nb)
}

// checkFormat looks whether a notebook is one of the format that is understood, as far as that is needed to walk through it.
func checkFormat(nb object) error {
	if major := fmt.Sprint(nb["nbformat"]); major != fmt.Sprint(notebookMajor) {
		return fmt.Errorf("its format is %s, and only %d can be opened; convert it with `jupyter nbconvert --to notebook`", clip(major), notebookMajor)
	}
	if _, ok := nb["metadata"].(object); !ok {
		return errors.New("it has no metadata")
	}
	cells, ok := nb["cells"].([]any)
	if !ok {
		return errors.New("it has no list of cells")
	}
	for i, one := range cells {
		cell, ok := one.(object)
		if !ok {
			return fmt.Errorf("cell %d is no JSON object", i+1)
		}
		if _, ok := cell["metadata"].(object); !ok {
			cell["metadata"] = object{}
		}
		if _, ok := cell["cell_type"].(string); !ok {
			return fmt.Errorf("cell %d has no type", i+1)
		}
	}
	return nil
}

// complaint says what other programs might not like in a notebook that can be read; empty: nothing.
func complaint(nb object) string {
	const before = "Notebook validation failed: "
	seen := map[string]bool{}
	for i, cell := range cellsOf(nb) {
		kind, _ := cell["cell_type"].(string)
		switch {
		case kind != "code" && kind != "markdown" && kind != "raw":
			return before + fmt.Sprintf("cell %d is of the unknown type %s", i+1, clip(kind))
		case cell["source"] == nil:
			return before + fmt.Sprintf("cell %d has no source", i+1)
		case kind == "code":
			if _, ok := cell["outputs"].([]any); !ok {
				return before + fmt.Sprintf("the code cell %d has no list of outputs", i+1)
			}
		}
		id, ok := cell["id"].(string)
		if ok && seen[id] {
			return before + fmt.Sprintf("two cells have the id %s", clip(id))
		}
		seen[id] = ok
	}
	return ""
}

func cellsOf(nb object) []object {
	var result []object
	list, _ := nb["cells"].([]any)
	for _, one := range list {
		if cell, ok := one.(object); ok {
			result = append(result, cell)
		}
	}
	return result
}

func outputsOf(cell object) []object {
	var result []object
	if cell["cell_type"] != "code" {
		return nil
	}
	list, _ := cell["outputs"].([]any)
	for _, one := range list {
		if output, ok := one.(object); ok {
			result = append(result, output)
		}
	}
	return result
}

// eachText calls change with every place of a notebook where text may be written as a list of lines.
func eachText(nb object, change func(in object, key string)) {
	bundle := func(value any) {
		data, _ := value.(object)
		for key := range data {
			if !isJSONType(key) {
				change(data, key)
			}
		}
	}
	for _, cell := range cellsOf(nb) {
		change(cell, "source")
		attachments, _ := cell["attachments"].(object)
		for _, one := range attachments {
			bundle(one)
		}
		for _, output := range outputsOf(cell) {
			switch output["output_type"] {
			case "execute_result", "display_data":
				bundle(output["data"])
			default:
				change(output, "text")
			}
		}
	}
}

func isJSONType(key string) bool {
	return key == "application/json" || strings.HasPrefix(key, "application/") && strings.HasSuffix(key, "+json")
}

// join makes one text of a list of lines.
func join(in object, key string) {
	lines, ok := in[key].([]any)
	if !ok {
		return
	}
	var b strings.Builder
	for _, line := range lines {
		text, ok := line.(string)
		if !ok {
			return
		}
		b.WriteString(text)
	}
	in[key] = b.String()
}

// split makes a list of lines of a text, for the sake of whoever compares versions of a file.
func split(in object, key string) {
	text, ok := in[key].(string)
	if !ok || strings.Contains(key, "/") && !strings.HasPrefix(key, "text/") && key != "application/javascript" && key != "image/svg+xml" {
		return
	}
	lines := []any{}
	for len(text) > 0 {
		n := lineEnd(text)
		lines = append(lines, text[:n])
		text = text[n:]
	}
	in[key] = lines
}

// lineEnd is where the first line of a text ends, its break included. Breaks are those of Python's splitlines.
func lineEnd(text string) int {
	for i, r := range text {
		switch r {
		case '\r':
			if strings.HasPrefix(text[i:], "\r\n") {
				return i + 2
			}
			return i + 1
		case '\n', '\v', '\f', 0x1c, 0x1d, 0x1e, 0x85, 0x2028, 0x2029:
			return i + len(string(r))
		}
	}
	return len(text)
}

// strip takes away what is never in a file.
func strip(nb object) {
	if metadata, ok := nb["metadata"].(object); ok {
		for _, key := range []string{"orig_nbformat", "orig_nbformat_minor", "signature"} {
			delete(metadata, key)
		}
	}
	for _, cell := range cellsOf(nb) {
		if metadata, ok := cell["metadata"].(object); ok {
			delete(metadata, "trusted")
		}
	}
}

// writeNotebook is a notebook as it is in files.
func writeNotebook(nb object) ([]byte, error) {
	eachText(nb, split)
	var b bytes.Buffer
	encoder := json.NewEncoder(&b)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", " ")
	if err := encoder.Encode(nb); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// fillNotebook adds a notebook's content to its model.
func (s *Server) fillNotebook(m *model, data []byte) error {
	nb, err := parseNotebook(data)
	if err != nil {
		return refuse(http.StatusBadRequest, "Unreadable Notebook: %s: %v", clip(m.Path), err)
	}
	eachText(nb, join)
	strip(nb)
	trusted := s.trust.has(nb)
	for _, cell := range cellsOf(nb) {
		if metadata, ok := cell["metadata"].(object); ok && cell["cell_type"] == "code" {
			metadata["trusted"] = trusted
		}
	}
	m.Content, m.Format, m.Message = nb, ref(formatJSON), complaint(nb)
	return nil
}

// trust remembers which notebooks were saved by somebody who had seen their outputs made, so that clients may show what runs in them. It
// is in memory, which pausing a box keeps.
type trust struct {
	mu    sync.Mutex // guards what follows
	known map[[sha256.Size]byte]bool
	order [][sha256.Size]byte
}

func newTrust() *trust { return &trust{known: map[[sha256.Size]byte]bool{}} }

// fingerprint is of a notebook whose texts are joined and that is stripped.
func fingerprint(nb object) [sha256.Size]byte {
	data, err := json.Marshal(nb)
	if err != nil {
		return [sha256.Size]byte{}
	}
	return sha256.Sum256(data)
}

func (t *trust) has(nb object) bool {
	print := fingerprint(nb)
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.known[print]
}

func (t *trust) add(nb object) {
	print := fingerprint(nb)
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.known[print] {
		return
	}
	if len(t.order) >= maxTrusted {
		delete(t.known, t.order[0])
		t.order = t.order[1:]
	}
	t.known[print] = true
	t.order = append(t.order, print)
}

// trusted reports whether every code cell is said to be trusted, or has no output that could run anything.
func trusted(nb object) bool {
	for _, cell := range cellsOf(nb) {
		if metadata, ok := cell["metadata"].(object); ok && metadata["trusted"] == true {
			continue
		}
		for _, output := range outputsOf(cell) {
			if kind := output["output_type"]; kind != "execute_result" && kind != "display_data" {
				continue
			}
			for key := range output {
				if key != "output_type" && key != "execution_count" && key != "metadata" {
					return false
				}
			}
		}
	}
	return true
}
