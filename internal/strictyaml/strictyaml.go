// Package strictyaml reads the small YAML files that people write for Carrel: one document, no unknown
// or repeated fields, no anchors, and every error names the line and the field. It must not know what the
// fields mean. Words: a field is a path such as users[0].name.
package strictyaml

import (
	"bytes"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"unicode"

	"carrel.dev/carrel/internal/carrel"
	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/lexer"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

const (
	// MaxBytes is the largest document that is read, in bytes.
	MaxBytes = 256 << 10
	// maxDepth bounds how deeply values lie in each other: the parser is recursive, and nothing that
	// Carrel reads is deeper than four.
	maxDepth = 32
)

// Document is a parsed file that can say on which line a field stands.
type Document struct {
	kind string
	body ast.Node
}

// Decode reads data into v, a pointer to a struct with yaml tags. kind names the sort of file in messages
// and in the reason of errors, such as "image definition" and bad_image_definition. Every error is
// a *carrel.Error with CodeInvalid, and the keys line and field in its metadata where they are known.
func Decode(kind string, data []byte, v any) (doc *Document, err error) {
	d := &Document{kind: kind}
	defer func() {
		// The parser is not ours and what it reads is a stranger's: a panic in it is one more way to be wrong.
		if p := recover(); p != nil {
			doc, err = nil, d.fail(0, "", "cannot be read as YAML")
		}
	}()
	if len(data) > MaxBytes {
		return nil, d.fail(0, "", "is %d bytes; at most %d are read", len(data), MaxBytes)
	}
	if i := bytes.IndexByte(data, 0); i >= 0 {
		return nil, d.fail(1+bytes.Count(data[:i], []byte("\n")), "", "has a zero byte; it must be text")
	}
	tokens := lexer.Tokenize(string(data))
	if err := d.checkTokens(tokens); err != nil {
		return nil, err
	}
	file, err := parser.Parse(tokens, 0)
	if err != nil {
		return nil, d.convert(err)
	}
	for _, part := range file.Docs {
		if part.Body == nil {
			continue
		}
		if d.body != nil {
			return nil, d.fail(line(part.Body), "", "has a second document; write one per file")
		}
		d.body = part.Body
	}
	if d.body == nil {
		return nil, d.fail(0, "", "is empty")
	}
	if kind := d.body.Type(); kind != ast.MappingType && kind != ast.MappingValueType {
		return nil, d.fail(line(d.body), "", "must be a mapping of fields to values")
	}
	if err := yaml.NodeToValue(d.body, v, yaml.Strict()); err != nil {
		return nil, d.convert(err)
	}
	return d, nil
}

// Errorf makes the error for the value at field, a path such as users[0].name. The message completes
// the sentence that begins with the field's name.
func (d *Document) Errorf(field, format string, args ...any) error {
	return d.fail(d.Line(field), field, format, args...)
}

// Line returns the line of a field, counted from 1, or of its nearest parent that is there; 0 if none is.
func (d *Document) Line(field string) int {
	for field != "" {
		if path, err := yaml.PathString("$." + field); err == nil {
			if node, err := path.FilterNode(d.body); err == nil && node != nil {
				return line(node)
			}
		}
		i := strings.LastIndexAny(field, ".[")
		if i < 0 {
			break
		}
		field = field[:i]
	}
	return line(d.body)
}

func line(node ast.Node) int {
	if node == nil || node.GetToken() == nil || node.GetToken().Position == nil {
		return 0
	}
	// A mapping's token is its first colon, which is on the line of its first key.
	return node.GetToken().Position.Line
}

// checkTokens refuses what would let a small file become a large or deep one, before the parser sees it.
func (d *Document) checkTokens(tokens token.Tokens) error {
	flow, row, onRow := 0, 0, 0
	var columns []int // of the block collections that are open, outermost first
	for _, t := range tokens {
		at := 0
		if t.Position != nil {
			at = t.Position.Line
		}
		if at != row {
			row, onRow = at, 0
		}
		switch t.Type {
		case token.AnchorType, token.AliasType, token.MergeKeyType:
			return d.fail(at, "", "uses %q; anchors, aliases and merge keys are not read, write the value out", t.Value)
		case token.TagType:
			return d.fail(at, "", "uses the tag %q; tags are not read", t.Value)
		case token.MappingStartType, token.SequenceStartType:
			flow++
		case token.MappingEndType, token.SequenceEndType:
			flow--
		case token.SequenceEntryType, token.MappingKeyType, token.MappingValueType:
			onRow++
			if flow == 0 && t.Position != nil {
				for len(columns) > 0 && columns[len(columns)-1] >= t.Position.Column {
					columns = columns[:len(columns)-1]
				}
				columns = append(columns, t.Position.Column)
			}
		}
		// Block entries on one row can lie in each other ("- - - x"); in a flow they are mostly siblings.
		if flow > maxDepth || flow == 0 && onRow > maxDepth || len(columns) > 2*maxDepth {
			return d.fail(at, "", "is nested more than %d deep", maxDepth)
		}
	}
	return nil
}

func (d *Document) convert(err error) error {
	var known yaml.Error
	if !errors.As(err, &known) {
		return d.fail(0, "", "cannot be read: %s", firstLine(err.Error()))
	}
	at := 0
	if t := known.GetToken(); t != nil && t.Position != nil {
		at = t.Position.Line
	}
	var unknown *yaml.UnknownFieldError
	if errors.As(err, &unknown) && unknown.Token != nil {
		return d.fail(at, unknown.Token.Value, "is not a field that exists here; see the spelling")
	}
	if m := repeatedKey.FindStringSubmatch(known.GetMessage()); m != nil {
		return d.fail(at, m[1], "is written twice")
	}
	var wrong *yaml.TypeError
	if errors.As(err, &wrong) && wrong.DstType != nil {
		field := ""
		if wrong.StructFieldName != nil {
			_, name, found := strings.Cut(*wrong.StructFieldName, ".")
			if !found {
				name = *wrong.StructFieldName
			}
			field = strings.ToLower(name)
		}
		return d.fail(at, field, "must be %s", typeName(wrong.DstType.Kind().String()))
	}
	var misplaced *yaml.UnexpectedNodeTypeError
	if errors.As(err, &misplaced) {
		return d.fail(at, "", "has %s where %s belongs", nodeName(misplaced.Actual), nodeName(misplaced.Expected))
	}
	return d.fail(at, "", "cannot be read: %s", firstLine(known.GetMessage()))
}

func nodeName(t ast.NodeType) string {
	switch t {
	case ast.SequenceType:
		return "a list"
	case ast.MappingType, ast.MappingValueType:
		return "a mapping of fields to values"
	case ast.NullType:
		return "nothing"
	}
	return "a single value"
}

func typeName(kind string) string {
	switch kind {
	case "string":
		return "text"
	case "bool":
		return "true or false"
	case "slice", "array":
		return "a list"
	case "map", "struct":
		return "a mapping of fields to values"
	}
	return "a number"
}

// repeatedKey is how the parser says it: it has no type for it.
var repeatedKey = regexp.MustCompile(`^mapping key "(.{1,100})" already defined`)

func firstLine(s string) string {
	s, _, _ = strings.Cut(strings.TrimSpace(s), "\n")
	s = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, s)
	if len(s) > 200 {
		s = s[:200] + "…"
	}
	return s
}

func (d *Document) fail(at int, field, format string, args ...any) error {
	what := fmt.Sprintf(format, args...)
	metadata := map[string]string{}
	message := "the " + d.kind + " "
	if at > 0 {
		metadata["line"] = strconv.Itoa(at)
		message += fmt.Sprintf("is wrong on line %d: ", at)
		if field == "" {
			message += "it "
		}
	} else if field != "" {
		message += "is wrong: "
	}
	if field != "" {
		metadata["field"] = field
		message += field + " "
	}
	e := carrel.Errorf(carrel.CodeInvalid, "bad_"+strings.ReplaceAll(d.kind, " ", "_"), "%s", message+what)
	e.Metadata = metadata
	return e
}
