package client

import (
	"testing"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/carrel"
)

// A file that is no text was said to be a server that can't be reached.
func TestTextThatIsNoneIsSaid(t *testing.T) {
	c, err := New(Config{Context: Context{URL: "http://127.0.0.1:1", Token: "carrel_t_s"}})
	require.NoError(t, err)
	defer c.Close()
	_, err = c.Templates.PushTemplate(t.Context(), connect.NewRequest(&carrelv1.PushTemplateRequest{Yaml: "\xff"}))
	err = Error(err)
	require.Equal(t, carrel.CodeInvalid, carrel.CodeOf(err))
	require.Equal(t, "not_text", carrel.ReasonOf(err))
}
