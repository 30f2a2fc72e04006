package notebook

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"carrel.dev/carrel/internal/agent/kernel"
)

// newService makes a service that has no kernels. asUser runs whatever touches files.
func newService(t *testing.T, asUser func(func() error) error) *Service {
	t.Helper()
	log, home := slog.New(slog.DiscardHandler), t.TempDir()
	kernels, err := kernel.NewManager(kernel.Config{
		Home: home, RuntimeDir: func() (string, error) { return t.TempDir(), nil }, Log: log,
		Start: func(context.Context, kernel.Command) (kernel.Process, error) {
			return nil, errors.New("there are none")
		},
	})
	require.NoError(t, err)
	s, err := New(Config{Home: home, Kernels: kernels, Owner: func() string { return "box" }, AsUser: asUser, Log: log})
	require.NoError(t, err)
	t.Cleanup(s.Close)
	require.NoError(t, s.open())
	require.NoError(t, s.journal.Flush(context.Background())) // so that it has its file and opens no other
	s.wg.Wait()                                               // for what is done once at the beginning
	return s
}

func display(id string, size int) *output {
	return &output{fields: map[string]any{"output_type": "display_data", "data": map[string]any{"text/plain": strings.Repeat("x", size)}, "metadata": map[string]any{}}, display: id, size: int64(size)}
}

// TestTheNewestDisplaysCanBeUpdated promises that a kernel that has shown much goes on, and that updates obey the limits of outputs.
func TestTheNewestDisplaysCanBeUpdated(t *testing.T) {
	s := newService(t, nil)
	r := &runner{s: s, requests: map[string]*execution{}, displays: map[string][]*output{}}
	s.mu.Lock()
	defer s.mu.Unlock()
	var e *execution
	for i := range keptDisplays + 100 {
		if i%1000 == 0 {
			e = &execution{id: fmt.Sprint("e", i), state: running, outputs: &outputs{}}
		}
		r.show(e, display(fmt.Sprint("d", i), 10))
	}
	last := fmt.Sprint("d", keptDisplays+99)
	r.update(e, &output{fields: map[string]any{"data": map[string]any{"text/plain": "new"}}, display: last, size: 3})
	require.Equal(t, "new", e.outputs.list[len(e.outputs.list)-1].fields["data"].(map[string]any)["text/plain"])
	require.Len(t, r.displays, keptDisplays)

	e = &execution{id: "large", state: running, outputs: &outputs{}}
	for i := range 10 {
		r.show(e, display(fmt.Sprint("small", i), 1))
	}
	for i := range 10 {
		r.update(e, display(fmt.Sprint("small", i), maxRich/2))
	}
	total := 0
	for _, one := range e.outputs.list {
		total += len(one.fields["data"].(map[string]any)["text/plain"].(string))
	}
	require.LessOrEqual(t, total, maxAllRich)
	require.Positive(t, e.truncatedBytes, "what is left out is told")
	require.LessOrEqual(t, r.shownBytes, int64(maxAllRich))
}

// TestWhatIsForgottenIsNotKept promises that executions that are remembered by their requests alone hold none of their outputs.
func TestWhatIsForgottenIsNotKept(t *testing.T) {
	s := newService(t, nil)
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []*execution
	for i := range 20 {
		e := &execution{id: fmt.Sprint("e", i), state: succeeded, outputs: &outputs{}}
		e.outputs.addText("stdout", strings.Repeat("x", maxText))
		s.executions[e.id] = e
		s.remembered(e)
		all = append(all, e)
	}
	held := int64(0)
	for _, e := range all {
		held += e.outputs.text
		require.Equal(t, s.executions[e.id] == nil, e.forgotten)
	}
	require.LessOrEqual(t, held, int64(maxEndedBytes))
	require.Equal(t, held, s.endedBytes)
}

// TestNobodysWriteIsOverwritten promises that what somebody else writes while a notebook is being saved is in it afterwards, beside what was changed here.
func TestNobodysWriteIsOverwritten(t *testing.T) {
	calls, meddle, armed := 0, func() {}, atomic.Bool{} // what the service does at its beginning is not counted
	s := newService(t, func(f func() error) error {
		if !armed.Load() {
			return f()
		}
		if calls++; calls == 2 { // the first looks whether the file has changed, the second writes
			meddle()
		}
		return f()
	})
	const text = `{"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [
		{"cell_type": "code", "id": "a", "source": "one", "metadata": {}, "outputs": [], "execution_count": null},
		{"cell_type": "code", "id": "b", "source": "two", "metadata": {}, "outputs": [], "execution_count": null}]}`
	path := filepath.Join(s.config.Home, "a.ipynb")
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	d := &document{s: s, path: path, loaded: make(chan struct{}), wake: make(chan struct{}, 1), base: map[string]string{}, outputsOf: map[string]*execution{}}
	require.NoError(t, d.load())
	s.mu.Lock()
	require.NoError(t, d.content.change("a", func(one *cell) { one.source = "ours" }))
	d.changed(saveLater)
	s.mu.Unlock()
	meddle = func() {
		require.NoError(t, os.WriteFile(path+".new", []byte(strings.Replace(text, "two", "theirs", 1)), 0o600))
		require.NoError(t, os.Rename(path+".new", path))
	}
	armed.Store(true)
	require.ErrorIs(t, d.save(), errMeanwhile)
	require.NoError(t, d.save())
	data, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Contains(t, string(data), "ours")
	require.Contains(t, string(data), "theirs")
	require.Empty(t, d.unsaved)
	left, err := filepath.Glob(filepath.Join(s.config.Home, ".carrel-*"))
	require.NoError(t, err)
	require.Empty(t, left)
}

// TestFilesThatAreNotWhollyNotebooksAreRefused promises that nothing of a file is lost by opening and saving it.
func TestFilesThatAreNotWhollyNotebooksAreRefused(t *testing.T) {
	const text = `{"nbformat": 4, "nbformat_minor": 5, "metadata": {"big": 123456789012345678901234567890, "exact": 1.10}, "cells": []}`
	for name, bad := range map[string]string{
		"something behind it":    text + "\n>>>>>>> theirs\n",
		"two of them":            text + text,
		"no UTF-8":               strings.Replace(text, "big", "b\xffg", 1),
		"cut in the middle":      text[:len(text)-5],
		"a character cut in two": strings.Replace(text, "big", "b\xe2\x82", 1),
	} {
		_, _, err := parse([]byte(bad))
		require.ErrorContains(t, err, "not changed", name)
	}
	c, _, err := parse([]byte(text + " \n\n"))
	require.NoError(t, err)
	require.Contains(t, string(c.write()), "123456789012345678901234567890")
	require.Contains(t, string(c.write()), "1.10")
}

// TestCellsAreRecognizedWithoutIDs promises that a file of an older format, which has no ids, is not a notebook of new cells.
func TestCellsAreRecognizedWithoutIDs(t *testing.T) {
	known, _, err := parse([]byte(`{"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [
		{"cell_type": "code", "id": "a", "source": "same", "metadata": {}, "outputs": []}, {"cell_type": "markdown", "id": "m", "source": "same", "metadata": {}},
		{"cell_type": "code", "id": "b", "source": "same", "metadata": {}, "outputs": []}, {"cell_type": "code", "id": "c", "source": "gone", "metadata": {}, "outputs": []}]}`))
	require.NoError(t, err)
	theirs, _, err := read([]byte(`{"nbformat": 4, "nbformat_minor": 4, "metadata": {}, "cells": [
		{"cell_type": "markdown", "source": "new", "metadata": {}}, {"cell_type": "code", "source": "same", "metadata": {}, "outputs": []},
		{"cell_type": "code", "source": "same", "metadata": {}, "outputs": []}, {"cell_type": "markdown", "source": "same", "metadata": {}}, {"cell_type": "code", "source": "same", "metadata": {}, "outputs": []}]}`))
	require.NoError(t, err)
	theirs.recognize(known)
	var ids []string
	for _, one := range theirs.cells {
		ids = append(ids, one.id)
	}
	require.Equal(t, []string{"a", "b", "m"}, ids[1:4])
	require.NotContains(t, []string{"a", "b", "c", "m"}, ids[0])
	require.NotContains(t, []string{"a", "b", "c", "m"}, ids[4])
}
