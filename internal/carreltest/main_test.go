package carreltest_test

import (
	"os"
	"testing"

	"carrel.dev/carrel/internal/carreltest"
)

func TestMain(m *testing.M) { os.Exit(carreltest.Main(m)) }
