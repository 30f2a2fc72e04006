package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/structpb"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/client"
)

const (
	// writeTime bounds the writing of --output, of which savedTime is for the box to have saved the notebook.
	writeTime = 2 * time.Minute
	savedTime = 30 * time.Second
)

// write writes the notebook that --output asks for.
func (r *runner) write(j *job) error {
	if r.options.output == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), writeTime)
	defer cancel()
	text, err := r.codeNotebook(ctx, j)
	if j.notebook != "" {
		text, err = r.savedNotebook(ctx, j)
	}
	if err != nil {
		return err
	}
	if r.options.output == "-" {
		_, err = r.a.stdout.Write(text)
		return err
	}
	return os.WriteFile(r.options.output, text, 0o644) //nolint:gosec // a notebook is as readable as any file
}

// codeNotebook makes a notebook of one cell from code.
func (r *runner) codeNotebook(ctx context.Context, j *job) ([]byte, error) {
	if j.notebook != "" {
		return nil, nil
	}
	e, err := r.c.GetExecution(ctx, j.box, r.order[0])
	if err != nil {
		return nil, err
	}
	outputs := make([]any, 0, len(e.GetOutputs()))
	for _, output := range e.GetOutputs() {
		outputs = append(outputs, asInFile(output.AsMap()))
	}
	return encodeNotebook(map[string]any{
		"cells": []any{map[string]any{
			"cell_type": "code", "id": e.GetId(), "metadata": map[string]any{}, "execution_count": e.GetExecutionCount(), "outputs": outputs, "source": j.code,
		}},
		"metadata": map[string]any{}, "nbformat": 4, "nbformat_minor": 5,
	})
}

// savedNotebook is the notebook's file, as soon as it has what the box has in memory, which is saved a moment after the end. When
// that cannot be (the box's disk is full, say), it is what the box has in memory.
func (r *runner) savedNotebook(ctx context.Context, j *job) ([]byte, error) {
	deadline := time.Now().Add(savedTime)
	for {
		resp, err := r.c.Notebooks.GetNotebook(ctx, connect.NewRequest(&carrelv1.GetNotebookRequest{Box: j.box, Path: j.notebook}))
		if err != nil {
			return nil, err
		}
		var text bytes.Buffer
		err = r.c.Copy(ctx, client.CopyOptions{From: client.Place{Box: j.box, Path: j.notebook}, To: client.Place{Path: "-"}, Stdout: &text})
		switch {
		case err == nil && hasOutputs(text.Bytes(), resp.Msg.GetContent()):
			return text.Bytes(), nil
		case err != nil && carrel.CodeOf(err) != carrel.CodeNotFound:
			return nil, err
		case resp.Msg.GetUnsaved() != "" || time.Now().After(deadline):
			if reason := resp.Msg.GetUnsaved(); reason != "" {
				r.note(reason)
			}
			return encodeNotebook(asInFile(resp.Msg.GetContent().AsMap()))
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// hasOutputs reports whether a notebook's file has the outputs of the notebook in memory.
func hasOutputs(file []byte, now *structpb.Struct) bool {
	kept := &structpb.Struct{}
	if kept.UnmarshalJSON(file) != nil {
		return false
	}
	cells, want := kept.GetFields()["cells"].GetListValue().GetValues(), now.GetFields()["cells"].GetListValue().GetValues()
	if len(cells) != len(want) {
		return false
	}
	for i := range cells {
		has, wants := cells[i].GetStructValue().GetFields(), want[i].GetStructValue().GetFields()
		if has["execution_count"].GetNumberValue() != wants["execution_count"].GetNumberValue() {
			return false
		}
		outputs, wanted := has["outputs"].GetListValue().GetValues(), wants["outputs"].GetListValue().GetValues()
		if len(outputs) != len(wanted) {
			return false
		}
		for n := range outputs {
			one, other := outputs[n].GetStructValue().GetFields(), wanted[n].GetStructValue().GetFields()
			sameKind := one["output_type"].GetStringValue() == other["output_type"].GetStringValue() && one["name"].GetStringValue() == other["name"].GetStringValue()
			if sameKind && joined(one["text"]) != joined(other["text"]) { // of another kind: too large to be told
				return false
			}
		}
	}
	return true
}

// asInFile takes away what is told of outputs and no part of a notebook's file.
func asInFile(value map[string]any) map[string]any {
	delete(value, "transient")
	cells, _ := value["cells"].([]any)
	for _, cell := range cells {
		fields, _ := cell.(map[string]any)
		outputs, _ := fields["outputs"].([]any)
		for _, output := range outputs {
			if one, ok := output.(map[string]any); ok {
				delete(one, "transient")
			}
		}
	}
	return value
}

func encodeNotebook(document map[string]any) ([]byte, error) {
	var text bytes.Buffer
	encoder := json.NewEncoder(&text)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", " ")
	if err := encoder.Encode(document); err != nil {
		return nil, fmt.Errorf("encode the notebook: %w", err)
	}
	return text.Bytes(), nil
}
