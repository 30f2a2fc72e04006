package notebook

import (
	"maps"
	"strings"
)

// oldTypes are the names that data had in format 3.
var oldTypes = map[string]string{
	"text": "text/plain", "html": "text/html", "svg": "image/svg+xml", "png": "image/png", "jpeg": "image/jpeg", "latex": "text/latex",
	"json": "application/json", "javascript": "application/javascript", "pdf": "application/pdf",
}

// upgrade makes of a notebook of format 3 one of format 4, as nbformat does.
func upgrade(root map[string]any, done *repairs) map[string]any {
	done.note("the notebook had format 3 and was converted; the file is when it is changed")
	next := maps.Clone(root)
	delete(next, "worksheets")
	cells := []any{}
	sheets, _ := root["worksheets"].([]any)
	for _, sheet := range sheets {
		list, _ := objectOf(sheet)["cells"].([]any)
		for _, value := range list {
			if fields, ok := value.(map[string]any); ok {
				value = upgradeCell(fields)
			}
			cells = append(cells, value)
		}
	}
	metadata := maps.Clone(objectOf(root["metadata"]))
	delete(metadata, "name")
	next["cells"], next["metadata"] = cells, metadata
	return next
}

func upgradeCell(old map[string]any) map[string]any {
	fields := maps.Clone(old)
	metadata := maps.Clone(objectOf(old["metadata"]))
	fields["metadata"] = metadata
	switch old["cell_type"] {
	case "code":
		delete(fields, "language")
		delete(fields, "input")
		delete(fields, "prompt_number")
		if collapsed, there := old["collapsed"]; there {
			metadata["collapsed"] = collapsed
			delete(fields, "collapsed")
		}
		fields["source"] = old["input"]
		if fields["source"] == nil {
			fields["source"] = ""
		}
		fields["execution_count"] = countOf(old["prompt_number"])
		list := []any{}
		outputs, _ := old["outputs"].([]any)
		for _, value := range outputs {
			if output, ok := value.(map[string]any); ok {
				list = append(list, upgradeOutput(output))
			}
		}
		fields["outputs"] = list
	case "heading":
		level := max(1, min(6, versionOf(old["level"])))
		text, _ := joined(old["source"])
		fields["cell_type"] = "markdown"
		fields["source"] = strings.Repeat("#", level) + " " + strings.Join(strings.Fields(text), " ")
		delete(fields, "level")
	case "html":
		fields["cell_type"] = "markdown"
	}
	return fields
}

func upgradeOutput(old map[string]any) map[string]any {
	fields := map[string]any{}
	data := map[string]any{}
	for name, value := range old {
		if mime, known := oldTypes[name]; known && old["output_type"] != "stream" && old["output_type"] != "pyerr" {
			data[mime] = value
			continue
		}
		fields[name] = value
	}
	switch old["output_type"] {
	case "pyout":
		fields["output_type"], fields["execution_count"], fields["data"] = "execute_result", countOf(old["prompt_number"]), data
		delete(fields, "prompt_number")
		fields["metadata"] = objectOf(old["metadata"])
	case "display_data":
		fields["data"], fields["metadata"] = data, objectOf(old["metadata"])
	case "pyerr":
		fields["output_type"] = "error"
	case "stream":
		name, _ := old["stream"].(string)
		if name == "" {
			name = "stdout"
		}
		fields["name"] = name
		delete(fields, "stream")
		delete(fields, "metadata")
	}
	return fields
}
