package store_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"carrel.dev/carrel/internal/store/storetest"
)

func TestSmoke(t *testing.T) {
	s := storetest.New(t)
	require.NoError(t, s.Ping(t.Context()))
}
