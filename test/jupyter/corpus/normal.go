package corpus

import (
	"fmt"
	"regexp"
	"strings"
)

// normalHeader leaves of a header what does not depend on the moment: its fields, type and version.
func normalHeader(header map[string]any) map[string]any {
	result := map[string]any{}
	for name, value := range header {
		switch name {
		case "msg_type", "version":
			result[name] = value
		default:
			result[name] = "…"
		}
	}
	return result
}

// changing are parts of texts that are another at every run: addresses, process ids, ids, times.
var changing = []struct {
	pattern *regexp.Regexp
	by      string
}{
	{regexp.MustCompile(`0x[0-9a-f]{6,16}`), "0xADDRESS"},
	{regexp.MustCompile(`ipykernel_[0-9]+/`), "ipykernel_PID/"},
	{regexp.MustCompile(`PID/[0-9]+\.py`), "PID/HASH.py"},
	{regexp.MustCompile(`[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}`), "UUID"},
	{regexp.MustCompile(`[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:.]+(Z|\+00:00)?`), "TIME"},
	// When the Python was built: the machine's may be an update older than a box's.
	{regexp.MustCompile(`main, [A-Z][a-z]{2} +[0-9]+ [0-9]{4}, [0-9:]{8}`), "main, BUILD"},
	{regexp.MustCompile(`kernel-[0-9A-Za-z]+\.json`), "kernel-ID.json"},
}

// normalValue makes the same of what is the same but for ids, times, addresses and the like.
func normalValue(name string, value any) any {
	switch value := value.(type) {
	case map[string]any:
		result := map[string]any{}
		for key, one := range value {
			if key == "_jupyter_types_experimental" { // the types that were found in some tenths of a second
				one = "…"
			}
			result[normalText(key)] = normalValue(key, one)
		}
		return result
	case []any:
		result := make([]any, 0, len(value))
		for _, one := range value {
			result = append(result, normalValue(name, one))
		}
		return result
	case string:
		return normalText(value)
	}
	return value
}

func normalText(text string) string {
	if len(text) > 1<<16 { // nothing of the kind is in these, and looking takes long
		return text
	}
	for _, one := range changing {
		text = one.pattern.ReplaceAllString(text, one.by)
	}
	return text
}

// Differences compares what two servers answered, and gives a text for each step that is not the same.
func Differences(want, got [][]string) []string {
	var result []string
	for i, step := range Steps {
		w, g := at(want, i), at(got, i)
		if strings.Join(w, "\n") == strings.Join(g, "\n") {
			continue
		}
		var b strings.Builder
		fmt.Fprintf(&b, "step %d, %s:\n", i+1, step.Name)
		for n := range max(len(w), len(g)) {
			if x, y := line(w, n), line(g, n); x != y {
				from := max(0, common(x, y)-200)
				fmt.Fprintf(&b, "  real server: %s\n  Carrel:      %s\n", clip(x, from), clip(y, from))
			}
		}
		result = append(result, b.String())
	}
	return result
}

func at(all [][]string, i int) []string {
	if i < len(all) {
		return all[i]
	}
	return nil
}

func line(lines []string, n int) string {
	if n >= len(lines) {
		return "nothing"
	}
	return lines[n]
}

// common is how many bytes two texts have in common at their beginning.
func common(x, y string) int {
	n := 0
	for n < min(len(x), len(y)) && x[n] == y[n] {
		n++
	}
	return n
}

// clip shows some of a text, from a byte on.
func clip(text string, from int) string {
	text = text[min(from, len(text)):]
	return strings.ToValidUTF8(text[:min(len(text), 600)], "")
}
