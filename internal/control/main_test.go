package control_test

import (
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"

	"carrel.dev/carrel/internal/store/storetest"
)

func TestMain(m *testing.M) {
	code := m.Run()
	if err := storetest.Stop(); err != nil {
		fmt.Fprintln(os.Stderr, "stop PostgreSQL for tests:", err)
		code = 1
	}
	if err := goleak.Find(); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, "whoever starts a goroutine waits for it:", err)
		code = 1
	}
	os.Exit(code)
}
