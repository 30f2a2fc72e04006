package gateway_test

import (
	"net/http"
	"os"
	"testing"

	"carrel.dev/carrel/internal/leftover"
)

// TestMain checks that gateways, clients and sessions leave no goroutine behind.
func TestMain(m *testing.M) {
	os.Exit(leftover.Main(m, func() error {
		http.DefaultClient.CloseIdleConnections()
		return nil
	}))
}
