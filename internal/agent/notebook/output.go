package notebook

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"google.golang.org/protobuf/types/known/structpb"

	"carrel.dev/carrel/internal/agent/kernel"
)

const (
	// maxText is how much text of streams is kept of an execution, in bytes; maxRich is that of one other output and maxAllRich of all of them.
	maxText    = 4 << 20
	maxRich    = 32 << 20
	maxAllRich = 64 << 20
	// maxOutputs of an execution; what comes beyond counts as too much.
	maxOutputs = 10_000
	// maxDepth is how deeply JSON in outputs may be nested.
	maxDepth = 200
)

// output is one output of an execution. A stream's text only grows; all others are replaced whole, and what fields has is never changed.
type output struct {
	stream  string // name of the stream; empty: another kind of output
	text    strings.Builder
	fixed   string // in place of text, in a snapshot
	fields  map[string]any
	display string // its display_id, by which it can be updated
	size    int64
	of      *outputs // that it counts in; nil: none any more
}

// value gives the output as nbformat has it. The caller changes nothing in it.
func (o *output) value() map[string]any {
	if o.stream != "" {
		return map[string]any{"output_type": "stream", "name": o.stream, "text": o.said()}
	}
	return o.fields
}

// said is the text of a stream.
func (o *output) said() string {
	if o.fixed != "" {
		return o.fixed
	}
	return o.text.String()
}

// wire gives the output as watchers get it: with the display_id, which is in no file.
func (o *output) wire() *structpb.Struct {
	value := toStruct(o.value())
	if o.display != "" {
		value.Fields["transient"] = structpb.NewStructValue(&structpb.Struct{Fields: map[string]*structpb.Value{"display_id": structpb.NewStringValue(o.display)}})
	}
	return value
}

// outputs are those of one execution or cell.
type outputs struct {
	list      []*output
	clearNext bool // the next output replaces all
	text      int64
	rich      int64
}

// addText adds to a stream and gives the part that is kept.
func (o *outputs) addText(stream, text string) (kept string) {
	o.settle()
	kept = text
	if room := maxText - o.text; int64(len(text)) > room {
		kept = cutText(text, max(room, 0))
	}
	if kept == "" {
		return ""
	}
	last := len(o.list) - 1
	if last < 0 || o.list[last].stream != stream {
		if len(o.list) >= maxOutputs {
			return ""
		}
		o.list = append(o.list, &output{stream: stream})
		last++
	}
	o.list[last].text.WriteString(kept)
	o.text += int64(len(kept))
	return kept
}

// cutText gives at most limit bytes, whole characters.
func cutText(text string, limit int64) string {
	if int64(len(text)) <= limit {
		return text
	}
	for limit > 0 && !utf8.RuneStart(text[limit]) {
		limit--
	}
	return text[:limit]
}

// add adds an output that is no stream and reports whether it is kept.
func (o *outputs) add(one *output) bool {
	o.settle()
	if one.size > maxRich || o.rich+one.size > maxAllRich || len(o.list) >= maxOutputs {
		return false
	}
	o.list = append(o.list, one)
	o.rich += one.size
	one.of = o
	return true
}

// resized counts that an output is larger or smaller now, and reports whether there is room for that.
func (o *output) resized(size int64) bool {
	if o.of != nil {
		if o.of.rich+size-o.size > maxAllRich {
			return false
		}
		o.of.rich += size - o.size
	}
	o.size = size
	return true
}

// clear empties the outputs, with wait when the next one comes.
func (o *outputs) clear(wait bool) {
	if wait {
		o.clearNext = true
		return
	}
	o.empty()
}

func (o *outputs) settle() {
	if o.clearNext {
		o.empty()
	}
}

func (o *outputs) empty() {
	for _, one := range o.list {
		one.of = nil
	}
	*o = outputs{}
}

// plainText gives the text of all streams.
func (o *outputs) plainText() string {
	var all strings.Builder
	for _, one := range o.list {
		if one.stream != "" {
			all.WriteString(one.said())
		}
	}
	return all.String()
}

// richOutput reads the content of a message with an output that is no stream.
func richOutput(message *kernel.Message) (*output, error) {
	value, err := decodeObject(message.Content)
	if err != nil {
		return nil, err
	}
	one := &output{fields: map[string]any{}, size: int64(len(message.Content))}
	if transient, ok := value["transient"].(map[string]any); ok {
		one.display, _ = transient["display_id"].(string)
	}
	switch kind := message.Head().Type; kind {
	case "display_data", "update_display_data", "execute_result":
		one.fields["output_type"] = kind
		one.fields["data"], one.fields["metadata"] = objectOf(value["data"]), objectOf(value["metadata"])
		if kind == "execute_result" {
			one.fields["execution_count"] = countOf(value["execution_count"])
		}
		if kind == "update_display_data" {
			one.fields["output_type"] = "display_data"
		}
	case "error":
		lines := []any{}
		traceback, _ := value["traceback"].([]any)
		for _, line := range traceback {
			if text, ok := line.(string); ok {
				lines = append(lines, text)
			}
		}
		name, _ := value["ename"].(string)
		what, _ := value["evalue"].(string)
		one.fields = map[string]any{"output_type": "error", "ename": name, "evalue": what, "traceback": lines}
	default:
		return nil, fmt.Errorf("a message %q is no output", kind)
	}
	return one, nil
}

// updated gives the fields of an output with the data of an update.
func (o *output) updated(data, metadata any) {
	fields := map[string]any{}
	for name, value := range o.fields {
		fields[name] = value
	}
	fields["data"], fields["metadata"] = data, metadata
	o.fields = fields
}

func objectOf(value any) map[string]any {
	if object, ok := value.(map[string]any); ok {
		return object
	}
	return map[string]any{}
}

// countOf gives an execution count: a number or nothing.
func countOf(value any) any {
	if number, ok := value.(json.Number); ok {
		if n, err := number.Int64(); err == nil && n >= 0 && n < 1<<31 {
			return number
		}
	}
	return nil
}

// decodeObject reads a JSON object; numbers stay as they are written.
func decodeObject(data []byte) (map[string]any, error) {
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.UseNumber()
	var value map[string]any
	if err := decoder.Decode(&value); err != nil {
		return nil, fmt.Errorf("read JSON: %w", err)
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("read JSON: something follows its end")
	}
	if depth(value) > maxDepth {
		return nil, fmt.Errorf("read JSON: it is nested more than %d deep", maxDepth)
	}
	return value, nil
}

func depth(value any) int {
	deepest := 0
	switch value := value.(type) {
	case map[string]any:
		for _, inner := range value {
			deepest = max(deepest, depth(inner))
		}
	case []any:
		for _, inner := range value {
			deepest = max(deepest, depth(inner))
		}
	default:
		return 0
	}
	return deepest + 1
}

func toStruct(object map[string]any) *structpb.Struct {
	result := &structpb.Struct{Fields: make(map[string]*structpb.Value, len(object))}
	for name, value := range object {
		result.Fields[name] = toValue(value)
	}
	return result
}

// toValue makes of JSON what the protocol has for it. Numbers become 64-bit floating point.
func toValue(value any) *structpb.Value {
	switch value := value.(type) {
	case map[string]any:
		return structpb.NewStructValue(toStruct(value))
	case []any:
		list := &structpb.ListValue{Values: make([]*structpb.Value, 0, len(value))}
		for _, inner := range value {
			list.Values = append(list.Values, toValue(inner))
		}
		return structpb.NewListValue(list)
	case string:
		return structpb.NewStringValue(value)
	case bool:
		return structpb.NewBoolValue(value)
	case json.Number:
		number, err := value.Float64()
		if err != nil { // beyond what fits
			return structpb.NewStringValue(value.String())
		}
		return structpb.NewNumberValue(number)
	case float64:
		return structpb.NewNumberValue(value)
	}
	return structpb.NewNullValue()
}
