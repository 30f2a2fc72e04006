package notebook

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
	"unicode/utf8"
)

// encoder writes JSON as Jupyter writes notebooks: keys sorted, indented by one space, characters as they are. So a
// notebook that both have saved differs only where it was changed.
type encoder struct {
	buf   bytes.Buffer
	depth int
}

func (e *encoder) line() {
	e.buf.WriteByte('\n')
	for range e.depth {
		e.buf.WriteByte(' ')
	}
}

func (e *encoder) value(value any) {
	switch value := value.(type) {
	case map[string]any:
		e.object(value)
	case []any:
		e.list(value)
	case lines:
		e.list(value.list())
	case string:
		e.text(value)
	case json.Number:
		e.buf.WriteString(value.String())
	case bool:
		if value {
			e.buf.WriteString("true")
		} else {
			e.buf.WriteString("false")
		}
	default:
		e.buf.WriteString("null")
	}
}

func (e *encoder) object(object map[string]any) {
	if len(object) == 0 {
		e.buf.WriteString("{}")
		return
	}
	keys := make([]string, 0, len(object))
	for key := range object {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	e.buf.WriteByte('{')
	e.depth++
	for i, key := range keys {
		if i > 0 {
			e.buf.WriteByte(',')
		}
		e.line()
		e.text(key)
		e.buf.WriteString(": ")
		e.value(object[key])
	}
	e.depth--
	e.line()
	e.buf.WriteByte('}')
}

func (e *encoder) list(list []any) {
	if len(list) == 0 {
		e.buf.WriteString("[]")
		return
	}
	e.buf.WriteByte('[')
	e.depth++
	for i, value := range list {
		if i > 0 {
			e.buf.WriteByte(',')
		}
		e.line()
		e.value(value)
	}
	e.depth--
	e.line()
	e.buf.WriteByte(']')
}

const hexDigits = "0123456789abcdef"

func (e *encoder) text(text string) {
	e.buf.WriteByte('"')
	from := 0
	for i := 0; i < len(text); i++ {
		c := text[i]
		if c >= ' ' && c != '"' && c != '\\' {
			continue
		}
		e.buf.WriteString(text[from:i])
		from = i + 1
		switch c {
		case '"', '\\':
			e.buf.WriteByte('\\')
			e.buf.WriteByte(c)
		case '\n':
			e.buf.WriteString(`\n`)
		case '\r':
			e.buf.WriteString(`\r`)
		case '\t':
			e.buf.WriteString(`\t`)
		case '\b':
			e.buf.WriteString(`\b`)
		case '\f':
			e.buf.WriteString(`\f`)
		default:
			e.buf.WriteString(`\u00`)
			e.buf.WriteByte(hexDigits[c>>4])
			e.buf.WriteByte(hexDigits[c&15])
		}
	}
	e.buf.WriteString(text[from:])
	e.buf.WriteByte('"')
}

// lines is text that a notebook has as a list of its lines, each with its end, as Python's str.splitlines gives them.
type lines string

func (l lines) list() []any {
	text := string(l)
	result := []any{}
	for text != "" {
		end := lineEnd(text)
		result = append(result, text[:end])
		text = text[end:]
	}
	return result
}

// lineEnd gives where the first line of text ends, its end included.
func lineEnd(text string) int {
	for at := 0; at < len(text); {
		c, size := rune(text[at]), 1
		if c >= utf8.RuneSelf {
			c, size = utf8.DecodeRuneInString(text[at:])
		}
		at += size
		switch c {
		case '\r':
			if at < len(text) && text[at] == '\n' {
				at++
			}
			return at
		case '\n', '\v', '\f', 0x1c, 0x1d, 0x1e, 0x85, 0x2028, 0x2029:
			return at
		}
	}
	return len(text)
}

// isJSONType reports whether data of a MIME type is JSON, which is not text in lines.
func isJSONType(mime string) bool {
	return mime == "application/json" || strings.HasPrefix(mime, "application/") && strings.HasSuffix(mime, "+json")
}
