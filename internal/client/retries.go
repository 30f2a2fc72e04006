package client

import (
	"time"

	"github.com/cenkalti/backoff/v5"
)

// retries says how long to wait before what failed is tried again. It belongs to one goroutine.
type retries struct {
	waits   *backoff.ExponentialBackOff
	renewed bool // the last try was made at once, with a new ticket
}

func newRetries() *retries { return &retries{waits: newBackOff(50*time.Millisecond, 2*time.Second)} }

// Reset begins anew: a try got somewhere.
func (r *retries) Reset() {
	r.waits.Reset()
	r.renewed = false
}

// after is the wait after a try that ended with err. A ticket that was refused is followed by a new one at once, since that helps or nothing
// does: after each resume of a box the ticket of its former run is refused like this. Refused again, it waits like any other try.
func (r *retries) after(err error) time.Duration {
	if outdated(err) && !r.renewed {
		r.renewed = true
		return 0
	}
	r.renewed = false
	return r.waits.NextBackOff()
}
