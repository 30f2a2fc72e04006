package main

import (
	"os"
	"testing"

	"carrel.dev/carrel/internal/leftover"
	"carrel.dev/carrel/internal/store/storetest"
)

func TestMain(m *testing.M) { os.Exit(leftover.Main(m, storetest.Stop)) }
