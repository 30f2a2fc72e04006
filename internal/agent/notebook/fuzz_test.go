package notebook

import (
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

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
