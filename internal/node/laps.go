package node

import (
	"log/slog"
	"time"
)

// laps takes the times of the parts of a step, for the log.
type laps struct {
	began, last time.Time
	parts       []slog.Attr
}

func newLaps() *laps {
	now := time.Now()
	return &laps{began: now, last: now}
}

// lap says that a part has just ended.
func (l *laps) lap(name string) {
	now := time.Now()
	l.parts = append(l.parts, slog.Duration(name, now.Sub(l.last)))
	l.last = now
}

// LogValue shows the parts and the whole.
func (l *laps) LogValue() slog.Value {
	return slog.GroupValue(append(l.parts, slog.Duration("all", time.Since(l.began)))...)
}
