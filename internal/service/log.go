package service

import (
	"io"
	"log/slog"
	"strings"

	"carrel.dev/carrel/internal/carrel"
)

// LogConfig says how a process logs.
type LogConfig struct {
	// Level is debug, info, warn or error; empty: info.
	Level string `yaml:"level"`
	// Format is text or json; empty: text.
	Format string `yaml:"format"`
}

// Validate checks the values.
func (c LogConfig) Validate() error {
	var level slog.Level
	if c.Level != "" && level.UnmarshalText([]byte(c.Level)) != nil {
		return carrel.Errorf(carrel.CodeInvalid, "bad_config", "log.level is %q; use debug, info, warn or error", c.Level)
	}
	if c.Format != "" && c.Format != "text" && c.Format != "json" {
		return carrel.Errorf(carrel.CodeInvalid, "bad_config", "log.format is %q; use text or json", c.Format)
	}
	return nil
}

// NewLogger makes the logger of a role that writes to w. c must be valid.
func NewLogger(c LogConfig, role string, w io.Writer) *slog.Logger {
	var level slog.Level
	if c.Level != "" {
		_ = level.UnmarshalText([]byte(strings.ToLower(c.Level)))
	}
	options := &slog.HandlerOptions{Level: level}
	var handler slog.Handler = slog.NewTextHandler(w, options)
	if c.Format == "json" {
		handler = slog.NewJSONHandler(w, options)
	}
	return slog.New(handler).With("role", role)
}
