package carrel

import (
	"strings"
	"unicode/utf8"
)

// Names of files are bytes, and text in the API is UTF-8. A byte b of a name that is not UTF-8 is shown as the character
// fileNameBase+b (in Unicode's last private plane), and taken back so in requests. Names that have such characters themselves are
// shown byte by byte too, so that there is exactly one text for every name.
const fileNameBase = 0x10FF00

// EncodeFileName makes text of a path; for UTF-8 it is the path itself.
func EncodeFileName(path string) string {
	if utf8.ValidString(path) && !strings.ContainsFunc(path, isFileNameByte) {
		return path
	}
	var b strings.Builder
	for len(path) > 0 {
		r, size := utf8.DecodeRuneInString(path)
		if r == utf8.RuneError && size == 1 || isFileNameByte(r) {
			for _, c := range []byte(path[:size]) {
				b.WriteRune(fileNameBase + rune(c))
			}
		} else {
			b.WriteString(path[:size])
		}
		path = path[size:]
	}
	return b.String()
}

// DecodeFileName is the path that a text stands for. It takes every text; bytes that are not UTF-8 stay as they are.
func DecodeFileName(text string) string {
	if !strings.ContainsFunc(text, isFileNameByte) {
		return text
	}
	var b strings.Builder
	for len(text) > 0 {
		r, size := utf8.DecodeRuneInString(text)
		if isFileNameByte(r) {
			b.WriteByte(byte(r - fileNameBase))
		} else {
			b.WriteString(text[:size])
		}
		text = text[size:]
	}
	return b.String()
}

func isFileNameByte(r rune) bool { return r >= fileNameBase+0x80 && r <= fileNameBase+0xff }
