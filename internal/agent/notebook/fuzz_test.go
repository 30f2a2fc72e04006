package notebook

import (
	"encoding/binary"
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/agent/kernel"
)

// FuzzNotebook opens files of anybody: what is opened is written as a notebook that needs no more repairs, and is the same when it
// is read again.
func FuzzNotebook(f *testing.F) {
	f.Add([]byte(`{"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [{"cell_type": "code", "id": "a", "source": ["a\n", "b"], "metadata": {}, "outputs": [
		{"output_type": "stream", "name": "stdout", "text": ["x"]}, {"output_type": "display_data", "data": {"text/plain": "x", "application/json": [1.50]}, "metadata": {}}]}]}`))
	f.Add([]byte(`{"nbformat": 3, "worksheets": [{"cells": [{"cell_type": "code", "input": "1", "outputs": [{"output_type": "pyout", "text": "2"}]}, {"cell_type": "heading", "level": 9}]}]}`))
	f.Add([]byte(`{"nbformat": 4, "cells": [1, {"cell_type": "code", "outputs": [{"output_type": "stream", "text": "x", "more": 1}]}], "x": "\ud800\u2028"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		first, _, err := parse(data)
		if err != nil {
			return
		}
		written := first.write()
		require.True(t, json.Valid(written))
		second, repaired, err := parse(written)
		require.NoError(t, err)
		require.Empty(t, repaired)
		require.Equal(t, string(written), string(second.write()))
		_, err = proto.Marshal(toStruct(second.snapshot().show()))
		require.NoError(t, err)
	})
}

// FuzzOutput takes outputs of any kernel: what is kept can be told and written.
func FuzzOutput(f *testing.F) {
	f.Add("display_data", []byte(`{"data": {"text/plain": "x"}, "metadata": {}, "transient": {"display_id": "d"}}`))
	f.Add("execute_result", []byte(`{"data": 7, "execution_count": 1e99}`))
	f.Add("error", []byte(`{"ename": "E", "evalue": 1, "traceback": ["a", 2]}`))
	f.Fuzz(func(t *testing.T, kind string, content []byte) {
		header, err := json.Marshal(map[string]string{"msg_type": kind, "msg_id": "x"})
		require.NoError(t, err)
		one, err := richOutput(&kernel.Message{Header: header, Content: content})
		if err != nil {
			return
		}
		_, err = proto.Marshal(one.wire())
		require.NoError(t, err)
		var e encoder
		e.value(one.file())
		require.True(t, json.Valid(e.buf.Bytes()), "%s", e.buf.Bytes())
	})
}

// FuzzRevival has a box's next life read what anybody may have written into its journal: a notebook comes of it, whatever that is.
func FuzzRevival(f *testing.F) {
	const path = "/home/carrel/a.ipynb"
	text := toStruct(map[string]any{"output_type": "stream", "name": "stdout", "text": "x"})
	shown := toStruct(map[string]any{"output_type": "display_data", "data": map[string]any{"text/plain": "x"}, "transient": map[string]any{"display_id": "d"}})
	cell := toStruct(map[string]any{"id": "b", "cell_type": "code", "source": "y"})
	var seed []byte
	for _, event := range []*carrelv1.NotebookEvent{
		{Event: &carrelv1.NotebookEvent_Queued{Queued: &carrelv1.Execution{Id: "e", Code: "x"}}},
		{Event: &carrelv1.NotebookEvent_Started{Started: &carrelv1.ExecutionStarted{ExecutionCount: 1}}},
		{Event: &carrelv1.NotebookEvent_Output{Output: text}},
		{Event: &carrelv1.NotebookEvent_Output{Output: shown}},
		{Event: &carrelv1.NotebookEvent_DisplayUpdate{DisplayUpdate: &carrelv1.DisplayUpdate{DisplayId: "d", Data: text}}},
		{Event: &carrelv1.NotebookEvent_ClearOutput{ClearOutput: &carrelv1.ClearOutput{Wait: true}}},
		{Event: &carrelv1.NotebookEvent_Edited{Edited: &carrelv1.NotebookEdited{Edits: []*carrelv1.NotebookEdit{
			{Edit: &carrelv1.NotebookEdit_Source{Source: &carrelv1.SetCellSource{Cell: "a", Source: "z"}}}, {Edit: &carrelv1.NotebookEdit_Insert{Insert: &carrelv1.InsertCell{After: "a", Cell: cell}}},
			{Edit: &carrelv1.NotebookEdit_Move{Move: &carrelv1.MoveCell{Cell: "a", After: "b"}}}, {Edit: &carrelv1.NotebookEdit_Type{Type: &carrelv1.SetCellType{Cell: "b", Type: "raw"}}},
			{Edit: &carrelv1.NotebookEdit_ClearOutputs{ClearOutputs: "*"}}, {Edit: &carrelv1.NotebookEdit_Remove{Remove: "b"}}, {Edit: &carrelv1.NotebookEdit_Insert{}}, {},
		}}}},
		{Event: &carrelv1.NotebookEvent_Ended{Ended: &carrelv1.Execution{Id: "e", State: lost, ExecutionCount: 2}}},
	} {
		event.Path, event.Cell, event.Execution, event.Kernel = path, "a", "e", "k"
		data, err := proto.Marshal(event)
		require.NoError(f, err)
		seed = append(binary.AppendUvarint(seed, uint64(len(data))), data...)
	}
	for at := range uint64(10) {
		f.Add(seed, at, true)
		f.Add(seed, at, false)
	}
	f.Fuzz(func(t *testing.T, data []byte, at uint64, exact bool) {
		c, _, err := parse([]byte(`{"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [{"cell_type": "code", "id": "a", "source": "x", "metadata": {}, "outputs": []},
			{"cell_type": "markdown", "id": "m", "source": "x", "metadata": {}}]}`))
		require.NoError(t, err)
		r := newRevival(&document{path: path}, c, at)
		r.exact = exact
		for seq := uint64(1); len(data) > 0; seq++ {
			size, n := binary.Uvarint(data)
			if n <= 0 || size > uint64(len(data)-n) {
				break
			}
			event := &carrelv1.NotebookEvent{}
			if proto.Unmarshal(data[n:n+int(size)], event) == nil {
				r.take(seq, event)
			}
			data = data[n+int(size):]
		}
		r.begin()
		r.end()
		require.True(t, json.Valid(r.d.content.write()))
	})
}
