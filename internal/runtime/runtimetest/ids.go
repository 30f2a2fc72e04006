package runtimetest

import "carrel.dev/carrel/internal/carrel"

// NewRun is a new id for a run.
func NewRun() string { return string(carrel.NewRunID()) }
