package main

import (
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"carrel.dev/carrel/internal/client"
)

func TestPlacesInBoxesAndOnThisMachine(t *testing.T) {
	for text, want := range map[string]client.Place{
		"mybox:":         {Box: "mybox", Path: "."},
		"mybox:a/b":      {Box: "mybox", Path: "a/b"},
		"mybox:/etc/x":   {Box: "mybox", Path: "/etc/x"},
		"mybox:a:b":      {Box: "mybox", Path: "a:b"},
		"-":              {Path: "-"},
		"./with:colon":   {Path: "./with:colon"},
		"/abs/with:this": {Path: "/abs/with:this"},
		"dir/with:colon": {Path: "dir/with:colon"},
		":nothing":       {Path: ":nothing"},
		"plain":          {Path: "plain"},
	} {
		require.Equal(t, want, parsePlace(text), text)
	}
	require.Equal(t, runtime.GOOS == "windows", parsePlace(`C:x`).Box == "")
}

func TestProgressIsOneShortLine(t *testing.T) {
	require.Equal(t, "big.iso  512.0 MiB of 1.0 GiB  50%  100.0 MiB/s  5s left", progressText("big.iso", 512<<20, 1<<30, 100<<20))
	require.Equal(t, "src  1.5 KiB  0 B/s", progressText("src", 1536, 0, 0))
	evil := progressText("a\x1b[2Jb\n"+strings.Repeat("x", 100), 1, 1, 1)
	require.NotContains(t, evil, "\x1b")
	require.NotContains(t, evil, "\n")
	require.Less(t, len(evil), 100)
}
