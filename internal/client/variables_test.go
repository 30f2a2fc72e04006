package client

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestAMisspeltVariableIsFound(t *testing.T) {
	for name, meant := range map[string]string{
		"CARREL_TOKN": EnvToken, "CARREL_TKOEN": EnvToken, "CARREL_TOKENS": EnvToken, "CARRELD_TOKEN": EnvToken, "carrel_token": EnvToken, "CARREL_TOXXN": EnvToken,
		"CARREL_TXXXN": "", "CARREL_ULR": EnvURL, "CARREL_UXX": "", "CARREL_SSH": "", "CARREL": "", "CARREL_SERVICE_HOST": "", "CARRELORG": EnvOrg,
	} {
		require.Equal(t, []UnreadVariable{{name, meant}}, UnreadVariables([]string{name + "=x"}, Variables), name)
	}
	require.Empty(t, UnreadVariables([]string{"CARREL_TOKEN=x", "CAROL=x", "", "TOKEN=CARREL_X", "=CARREL_X"}, Variables))
	found := UnreadVariables([]string{"CARREL_Z=x", "CARREL_A=CARREL_URL", "CARREL_" + strings.Repeat("URL", 10_000)}, Variables)
	require.Len(t, found, 3)
	require.Equal(t, "CARREL_A is set in the environment, and Carrel reads no such variable", found[0].String())
	require.Equal(t, "CARREL_TOKN is set in the environment, and Carrel reads no such variable; did you mean CARREL_TOKEN?",
		UnreadVariables([]string{"CARREL_TOKN"}, Variables)[0].String())
}
