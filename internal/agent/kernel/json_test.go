package kernel

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

var sampleJSON = []string{
	``, ` `, `{}`, ` { } `, `[]`, `[ ]`, `{`, `}`, `[}`, `{]`, `{"a"}`, `{"a":}`, `{"a":1,}`, `{,}`, `[,]`, `[1,]`, `[1 2]`, `{"a":1 "b":2}`, `{a:1}`, `{1:1}`, `{} {}`, `{}x`,
	`null`, `nul`, `true`, `truer`, `false`, `fals`, `0`, `-`, `-0`, `00`, `01`, `1.`, `.1`, `1.5`, `1e`, `1e+`, `1e+5`, `1E-05`, `-1.25e10`, `1.e5`, `+1`, `1e5.5`, `--1`,
	`"`, `""`, `"a`, `"a\"`, `"\x"`, `"\u12"`, `"\u12g4"`, `"\u00e9\ud83d\ude00"`, `"\ud83d"`, `"\ud83dx"`, `"\ude00\ud83d"`, `"\ud83d\ud83d\ude00"`, `"\ud83d\u0041"`, `"\/\b\f\n\r\t\\\""`,
	"\"a\nb\"", "\"12345678\x1f\"", "\"1234567\x00\"", "\"é\xff\"", "\"\xed\xa0\x80\"", "\"\x7f\u2028\"", "\"日本語 и так далее, which is longer than a word\"",
	`{"a":[1,{"b":[[],{},""]},"c"],"d":null}`, "\t{\r\n\"a\" :\t1 }\n", "\v{}", "\ufeff{}",
	`{"name":"stdout","text":"a\nb"}`, `{"text": "\u001b[31mred", "name": "stderr"}`, `{"name":"stdout","text":"a","text":"b"}`, `{"name":"a","name":"b"}`, `{"name":"a"}`,
	`{"Text":"upper","name":"stdout"}`, `{"name":"stdout","text":1}`, `{"name":"stdout","text":null}`, `{"name":"stdout","text":"x","more":{"text":"y"}}`, `{"name":"stdout","text":"bad` + "\xff" + `"}`,
	`{"nam\u0065":"stdout","text":"x"}`, `{"name" : "stdout" , "text" : "x" } `, `{"name":"stdout","text":"` + strings.Repeat("0123456789", 20) + `\n"}`,
}

// agrees holds what is read here to what encoding/json reads.
func agrees(t *testing.T, data []byte) {
	t.Helper()
	valid := json.Valid(data)
	require.Equal(t, valid, isJSON(data), "%q", data)
	trimmed := strings.TrimLeft(string(data), " \t\r\n")
	require.Equal(t, valid && strings.HasPrefix(trimmed, "{"), isObject(data), "%q", data)
	if !isObject(data) {
		return
	}
	var wanted struct {
		Name string `json:"name"`
		Text string `json:"text"`
	}
	err := json.Unmarshal(data, &wanted)
	name, text, ok := (&Message{Content: data, parsed: true}).Stream()
	require.Equal(t, err == nil, ok, "%q", data)
	if ok {
		require.Equal(t, wanted.Name, name, "%q", data)
		require.Equal(t, wanted.Text, text, "%q", data)
	}
}

// What is taken for JSON, and what a stream's text is, are the same as everywhere else.
func TestJSONIsThatOfEncodingJSON(t *testing.T) {
	for _, sample := range sampleJSON {
		agrees(t, []byte(sample))
		// At every distance from a word's border.
		for pad := range 9 {
			agrees(t, fmt.Appendf(nil, `{"name":"%s","text":%s}`, strings.Repeat("p", pad), sample))
		}
	}
	for c := range 256 { // every byte, wherever in a word
		for pad := range 9 {
			agrees(t, fmt.Appendf(nil, `{"name":"n","text":"%s%c%s"}`, strings.Repeat("p", pad), c, strings.Repeat("q", 9)))
			agrees(t, append(append([]byte(`{"name":"n","text":"`+strings.Repeat("p", pad)), byte(c)), strings.Repeat("q", 9)+`"}`...))
			agrees(t, append([]byte(`{"name":"n","text":"`+strings.Repeat("p", pad)+`\`), byte(c), '"', '}'))
		}
	}
	for _, depth := range []int{maxNesting, maxNesting + 1} {
		agrees(t, []byte(strings.Repeat("[", depth)+strings.Repeat("]", depth)))
		agrees(t, []byte(strings.Repeat(`{"a":`, depth)+"1"+strings.Repeat("}", depth)))
	}
}

// The usual message of a stream is read without encoding/json, which would take several times as long.
func TestAStreamIsReadTheQuickWay(t *testing.T) {
	for content, wanted := range map[string]string{
		`{"name": "stdout", "text": "a\nb\t\"\\ \u001b[0m \u00e9 \ud83d\ude00 日本"}`: "a\nb\t\"\\ \x1b[0m é 😀 日本",
		`{"text":"","name":"stdout"}`: "",
	} {
		name, text, ok := streamOf([]byte(content))
		require.True(t, ok, content)
		require.Equal(t, "stdout", name)
		require.Equal(t, wanted, text)
	}
}

func FuzzJSON(f *testing.F) {
	for _, sample := range sampleJSON {
		f.Add([]byte(sample))
	}
	f.Fuzz(agrees)
}

func BenchmarkStreamMessage(b *testing.B) {
	key := []byte(NewID())
	message, err := NewMessage("stream", "session", map[string]string{"name": "stdout", "text": strings.Repeat(strings.Repeat("x", 99)+"\n", 10_000)})
	require.NoError(b, err)
	frames := encode(key, message)
	b.SetBytes(int64(len(message.Content)))
	for b.Loop() {
		got, err := decode([][]byte{key}, frames)
		require.NoError(b, err)
		_, text, ok := got.Stream()
		require.True(b, ok)
		require.Len(b, text, 1_000_000)
	}
}
