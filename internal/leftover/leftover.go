// Package leftover tells tests whether goroutines are left when what they started has ended. Goroutines that are about to end are
// given as long as a loaded machine may need, so that only what never ends is a leftover. The product must not import it.
package leftover

import (
	"fmt"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// patience is how long goroutines may take to end.
const patience = time.Minute

// Find waits, for a minute at most, until no goroutine but those of options and of the runtime is there, and says which are then.
func Find(options ...goleak.Option) error {
	for limit := time.Now().Add(patience); ; {
		err := goleak.Find(options...) // takes its time by itself
		if err == nil || time.Now().After(limit) {
			return err
		}
	}
}

// None fails a test that leaves goroutines.
func None(t testing.TB, options ...goleak.Option) {
	t.Helper()
	if err := Find(options...); err != nil {
		t.Errorf("whoever starts a goroutine waits for it: %v", err)
	}
}

// Main runs the tests of a package, then ends what all of them used, and fails if an error is given or goroutines are left. It is
// all that TestMain has to do: os.Exit(leftover.Main(m)).
func Main(m *testing.M, end ...func() error) int {
	code := m.Run()
	for _, f := range end {
		if err := f(); err != nil {
			fmt.Fprintln(os.Stderr, "after the tests:", err)
			code = 1
		}
	}
	if code != 0 {
		return code // they have said enough
	}
	if err := Find(); err != nil {
		fmt.Fprintln(os.Stderr, "whoever starts a goroutine waits for it:", err)
		return 1
	}
	return code
}
