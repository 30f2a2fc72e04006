//go:build !(linux && amd64)

package vfork

func start(Command) (int, error) { return 0, errNotHere }
