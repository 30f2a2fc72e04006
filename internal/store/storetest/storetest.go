// Package storetest gives tests a real PostgreSQL: one server for a test binary, one database for each
// test. It must not be imported outside tests.
package storetest

import (
	"testing"
	"time"

	"carrel.dev/carrel/internal/store"
)

// New gives a store on a database of its own, migrated and bootstrapped, closed at the end of the test.
func New(t testing.TB) *store.Store {
	return NewAt(t, time.Now)
}

// NewAt is New with a clock.
func NewAt(t testing.TB, now func() time.Time) *store.Store {
	panic("not yet")
}
