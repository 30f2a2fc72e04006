package kernel

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"math/bits"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// A kernel that prints much sends messages of many megabytes, each of them one long string of JSON. Package encoding/json looks at every byte through a
// function call, twice to read a message and once to check it: that took more of the agent's time than all else. What is here takes and refuses the same
// (fuzzed against it), and looks at strings eight bytes at once.

// maxNesting is how deep JSON may be nested, as in encoding/json.
const maxNesting = 10_000

// isObject reports whether data is one JSON object and nothing else.
func isObject(data []byte) bool {
	at := skipSpace(data, 0)
	return at < len(data) && data[at] == '{' && isJSON(data)
}

// isJSON reports what json.Valid does.
func isJSON(data []byte) bool {
	var open []byte // the brackets that are open: '{' or '['
	at := 0
	for {
		at = skipSpace(data, at)
		if at >= len(data) {
			return false
		}
		switch data[at] {
		case '{', '[':
			bracket := data[at]
			if open = append(open, bracket); len(open) > maxNesting {
				return false
			}
			at = skipSpace(data, at+1)
			if at < len(data) && data[at] == bracket+2 { // empty: '}' is two behind '{', as ']' is behind '['
				at++
				open = open[:len(open)-1]
				break
			}
			if bracket == '{' {
				if at = skipKey(data, at); at < 0 {
					return false
				}
			}
			continue
		default:
			if at = skipScalar(data, at); at < 0 {
				return false
			}
		}
		for { // behind a value
			at = skipSpace(data, at)
			if len(open) == 0 {
				return at == len(data)
			}
			if at >= len(data) {
				return false
			}
			bracket := open[len(open)-1]
			if data[at] == bracket+2 {
				at++
				open = open[:len(open)-1]
				continue
			}
			if data[at] != ',' {
				return false
			}
			at++
			if bracket == '{' {
				if at = skipKey(data, skipSpace(data, at)); at < 0 {
					return false
				}
			}
			break
		}
	}
}

func skipSpace(data []byte, at int) int {
	for at < len(data) && (data[at] == ' ' || data[at] == '\n' || data[at] == '\t' || data[at] == '\r') {
		at++
	}
	return at
}

// skipKey gives what follows a key and its colon, or -1.
func skipKey(data []byte, at int) int {
	if at >= len(data) || data[at] != '"' {
		return -1
	}
	if at = skipString(data, at); at < 0 {
		return -1
	}
	if at = skipSpace(data, at); at >= len(data) || data[at] != ':' {
		return -1
	}
	return at + 1
}

// skipScalar gives what follows a string, a number, or a word, or -1.
func skipScalar(data []byte, at int) int {
	switch data[at] {
	case '"':
		return skipString(data, at)
	case 't':
		return skipWord(data, at, "true")
	case 'f':
		return skipWord(data, at, "false")
	case 'n':
		return skipWord(data, at, "null")
	}
	return skipNumber(data, at)
}

func skipWord(data []byte, at int, word string) int {
	if len(data)-at < len(word) || string(data[at:at+len(word)]) != word {
		return -1
	}
	return at + len(word)
}

func skipNumber(data []byte, at int) int {
	if at < len(data) && data[at] == '-' {
		at++
	}
	if at < len(data) && data[at] == '0' {
		at++
	} else if at = skipDigits(data, at); at < 0 {
		return -1
	}
	if at < len(data) && data[at] == '.' {
		if at = skipDigits(data, at+1); at < 0 {
			return -1
		}
	}
	if at < len(data) && (data[at] == 'e' || data[at] == 'E') {
		at++
		if at < len(data) && (data[at] == '+' || data[at] == '-') {
			at++
		}
		return skipDigits(data, at)
	}
	return at
}

// skipDigits gives what follows at least one digit, or -1.
func skipDigits(data []byte, at int) int {
	from := at
	for at < len(data) && data[at] >= '0' && data[at] <= '9' {
		at++
	}
	if at == from {
		return -1
	}
	return at
}

// skipString gives what follows the string that begins at a quotation mark, or -1.
func skipString(data []byte, at int) int {
	at++
	for {
		at = special(data, at)
		if at >= len(data) {
			return -1
		}
		switch data[at] {
		case '"':
			return at + 1
		case '\\':
			if at+1 >= len(data) {
				return -1
			}
			switch data[at+1] {
			case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
				at += 2
			case 'u':
				if _, ok := hexRune(data, at); !ok {
					return -1
				}
				at += 6
			default:
				return -1
			}
		default: // a control character
			return -1
		}
	}
}

// special gives where the next byte is that means something in a string: a quotation mark, a backslash, or a control character; or the length of data.
func special(data []byte, at int) int {
	const ones, highs = 0x0101010101010101, 0x8080808080808080
	for ; len(data)-at >= 8; at += 8 {
		word := binary.LittleEndian.Uint64(data[at:])
		// The highest bit of each byte that is less than a space, or nothing after the exclusive or with what is looked for. A borrow can set that
		// of bytes behind the first such byte, never of one before it.
		found := ((word - ' '*ones) | ((word ^ '"'*ones) - ones) | ((word ^ '\\'*ones) - ones)) &^ word & highs
		if found != 0 {
			return at + bits.TrailingZeros64(found)/8
		}
	}
	for at < len(data) && data[at] >= ' ' && data[at] != '"' && data[at] != '\\' {
		at++
	}
	return at
}

// hexRune reads the \uXXXX that begins at a backslash.
func hexRune(data []byte, at int) (r rune, ok bool) {
	if len(data)-at < 6 || data[at] != '\\' || data[at+1] != 'u' {
		return 0, false
	}
	for _, c := range data[at+2 : at+6] {
		switch {
		case c >= '0' && c <= '9':
			c -= '0'
		case c >= 'a' && c <= 'f':
			c -= 'a' - 10
		case c >= 'A' && c <= 'F':
			c -= 'A' - 10
		default:
			return 0, false
		}
		r = r<<4 | rune(c)
	}
	return r, true
}

// Stream reads the content of a message of the type "stream": the stream's name and the text. ok is false for what is none.
func (m *Message) Stream() (name, text string, ok bool) {
	if m.parsed { // and so known to be an object
		if name, text, ok = streamOf(m.Content); ok {
			return name, text, true
		}
	}
	var content struct {
		Name string `json:"name"`
		Text string `json:"text"`
	}
	err := json.Unmarshal(m.Content, &content)
	return content.Name, content.Text, err == nil
}

// streamOf reads an object that has a name and a text, each once, and nothing else: what every kernel sends. ok is false for any other.
func streamOf(data []byte) (name, text string, ok bool) {
	var hasName, hasText bool
	at := skipSpace(data, 0) + 1
	for {
		from := skipSpace(data, at)
		if at = skipKey(data, from); at < 0 {
			return "", "", false
		}
		key := data[from:at]
		from = skipSpace(data, at)
		if from >= len(data) || data[from] != '"' {
			return "", "", false
		}
		if at = skipString(data, from); at < 0 {
			return "", "", false
		}
		var value string
		if value, ok = unquote(data[from+1 : at-1]); !ok {
			return "", "", false
		}
		switch {
		case bytes.HasPrefix(key, []byte(`"name"`)) && !hasName:
			name, hasName = value, true
		case bytes.HasPrefix(key, []byte(`"text"`)) && !hasText:
			text, hasText = value, true
		default:
			return "", "", false
		}
		if at = skipSpace(data, at); at >= len(data) || data[at] != ',' {
			return name, text, hasName && hasText && at < len(data) && data[at] == '}'
		}
		at++
	}
}

// unquote gives what a string of JSON says that skipString took, without its quotation marks. ok is false if it is not UTF-8.
func unquote(data []byte) (text string, ok bool) {
	if !utf8.Valid(data) {
		return "", false
	}
	var b strings.Builder
	b.Grow(len(data))
	for {
		at := bytes.IndexByte(data, '\\')
		if at < 0 {
			b.Write(data)
			return b.String(), true
		}
		b.Write(data[:at])
		size := 2
		switch c := data[at+1]; c {
		case 'n':
			b.WriteByte('\n')
		case 't':
			b.WriteByte('\t')
		case 'r':
			b.WriteByte('\r')
		case 'b':
			b.WriteByte('\b')
		case 'f':
			b.WriteByte('\f')
		case 'u':
			size = 6
			r, _ := hexRune(data, at)
			if utf16.IsSurrogate(r) {
				second, found := hexRune(data, at+6)
				if r = utf16.DecodeRune(r, second); found && r != utf8.RuneError {
					size = 12
				}
			}
			b.WriteRune(r) // of half a pair: U+FFFD
		default: // itself
			b.WriteByte(c)
		}
		data = data[at+size:]
	}
}
