package jupyter

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"carrel.dev/carrel/internal/agent/kernel"
)

// stream is output of a kernel, of about n bytes.
func stream(number, n int) item {
	content, _ := json.Marshal(map[string]any{"name": "stdout", "text": fmt.Sprint(number, strings.Repeat("x", n))})
	return item{kernel.IOPub, &kernel.Message{
		Header: json.RawMessage(fmt.Sprintf(`{"msg_id":"%d","msg_type":"stream"}`, number)), Parent: json.RawMessage(`{"msg_id":"request"}`), Content: content,
	}}
}

func reply(kind string) item {
	return item{kernel.Shell, &kernel.Message{Header: json.RawMessage(`{"msg_id":"r","msg_type":"` + kind + `"}`), Content: json.RawMessage(`{}`)}}
}

func newViewer(t *testing.T) *viewer {
	t.Helper()
	r := newRig(t, nil)
	return &viewer{server: r.s, changed: make(chan struct{}, 1), ended: make(chan struct{})}
}

func (v *viewer) all(t *testing.T, c *socket) (kinds []string, first string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	v.mu.Lock()
	v.over = errOver
	v.mu.Unlock()
	for {
		one, err := v.next(ctx, c)
		if err != nil {
			require.ErrorIs(t, err, errOver)
			return kinds, first
		}
		if first == "" {
			first = string(one.message.Content) + string(one.message.Parent)
		}
		kinds = append(kinds, one.message.Head().Type)
	}
}

func TestWhatComesWhileAClientIsAwayIsKept(t *testing.T) {
	v := newViewer(t)
	for i := range 10 {
		v.put(stream(i, 100))
	}
	v.put(reply("execute_reply"))
	c := &socket{cancel: func(error) {}}
	require.True(t, v.take(c))
	kinds, first := v.all(t, c)
	require.Len(t, kinds, 11)
	require.Equal(t, "execute_reply", kinds[10])
	require.Contains(t, first, `"0x`)
}

func TestTheOldestOutputGoesFirstAndTheClientIsTold(t *testing.T) {
	v := newViewer(t)
	v.put(reply("the_first_reply"))
	for i := range 40 {
		v.put(stream(i, 1<<20))
	}
	v.put(reply("execute_reply"))
	v.mu.Lock()
	require.LessOrEqual(t, v.size, int64(awayBytes))
	dropped := v.dropped
	v.mu.Unlock()
	require.Positive(t, dropped)
	c := &socket{cancel: func(error) {}}
	require.True(t, v.take(c))
	kinds, first := v.all(t, c)
	require.Contains(t, first, fmt.Sprintf("[%d messages of the kernel were dropped", dropped))
	require.Contains(t, first, `"msg_id":"request"`, "it is shown where the output was")
	require.Len(t, kinds, 40-dropped+3)
	require.Contains(t, kinds, "the_first_reply", "replies are kept: a client waits for them")
	require.Equal(t, "execute_reply", kinds[len(kinds)-1])
}

func TestASlowClientIsCutAndAKernelNeverWaits(t *testing.T) {
	v := newViewer(t)
	var cut error
	c := &socket{cancel: func(why error) { cut = why }}
	require.True(t, v.take(c))
	for i := range 80 { // nobody takes anything, and put answers at once
		v.put(stream(i, 1<<20))
	}
	require.ErrorIs(t, cut, errSlow)
	v.mu.Lock()
	require.LessOrEqual(t, v.size, int64(awayBytes))
	v.mu.Unlock()
	_, err := v.next(t.Context(), c)
	require.ErrorIs(t, err, errStale)
}

func TestAClientThatConnectsAgainTakesItsOwnPlace(t *testing.T) {
	v := newViewer(t)
	var cut error
	first, second := &socket{cancel: func(why error) { cut = why }}, &socket{cancel: func(error) {}}
	require.True(t, v.take(first))
	v.put(stream(1, 1))
	require.True(t, v.take(second))
	require.ErrorIs(t, cut, errStale)
	v.leave(first) // which is late, and takes nothing away
	_, err := v.next(t.Context(), first)
	require.ErrorIs(t, err, errStale)
	one, err := v.next(t.Context(), second)
	require.NoError(t, err)
	require.Equal(t, "stream", one.message.Head().Type)
	v.leave(second)
	v.mu.Lock()
	defer v.mu.Unlock()
	require.False(t, v.left.IsZero())
}
