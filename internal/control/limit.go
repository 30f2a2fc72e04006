package control

import (
	"sync"
	"time"

	"carrel.dev/carrel/internal/carrel"
)

// Generous: a person or a script never meets it, a loop that ran wild does. Each replica counts for itself.
const (
	requestsPerSecond = 500
	requestBurst      = 1000
	maxBuckets        = 10_000
)

// limiter gives each principal a bucket of requests that fills again with time. It is safe for concurrent use.
type limiter struct {
	now func() time.Time

	mu      sync.Mutex // guards buckets
	buckets map[string]*bucket
}

type bucket struct {
	left float64
	at   time.Time
}

func newLimiter(now func() time.Time) *limiter {
	return &limiter{now: now, buckets: map[string]*bucket{}}
}

// take takes one request from the bucket of who.
func (l *limiter) take(who string) error {
	now := l.now()
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.buckets[who]
	if b == nil {
		if len(l.buckets) >= maxBuckets {
			l.forgetFull(now)
		}
		b = &bucket{left: requestBurst, at: now}
		l.buckets[who] = b
	}
	b.left = min(requestBurst, b.left+max(0, now.Sub(b.at).Seconds())*requestsPerSecond)
	b.at = now
	if b.left < 1 {
		e := carrel.Errorf(carrel.CodeExhausted, "rate_limited", "too many requests: more than %d in a second for a while; wait a little", requestsPerSecond)
		e.RetryAfter = time.Second
		return e
	}
	b.left--
	return nil
}

// forgetFull drops the buckets that have filled up: forgetting those changes nothing.
func (l *limiter) forgetFull(now time.Time) {
	for who, b := range l.buckets {
		if b.left+now.Sub(b.at).Seconds()*requestsPerSecond >= requestBurst {
			delete(l.buckets, who)
		}
	}
}
