package runtimetest

import (
	"slices"

	"github.com/stretchr/testify/require"

	"carrel.dev/carrel/internal/runtime"
	"carrel.dev/carrel/internal/runtime/runtimetest/probe"
)

// upgraded: what a former version began goes on with it, what begins anew has the new one, and a version stays for as
// long as it is needed and no longer.
func upgraded(b *bench) {
	keeper, is := b.rt.(runtime.Keeper)
	if !is {
		require.Nil(b, b.h.Upgrade)
		return
	}
	version := func(run string) string {
		v, err := keeper.VersionOf(run)
		require.NoError(b, err)
		return v
	}
	old := b.rt.Capabilities().Version
	require.Empty(b, b.rt.Capabilities().Former)
	paused, spec := b.h.Spec(b.T), b.h.Spec(b.T)
	b.start(paused)
	pausedNonce := b.nonce(paused.Run)
	b.write(paused.Run, "/opt/b", "root")
	pausedDir, pausedHome := b.capture(paused, true)
	b.start(spec)
	nonce := b.nonce(spec.Run)
	require.Equal(b, old, version(spec.Run))

	b.rt = b.h.Upgrade(b.T)
	keeper = b.rt.(runtime.Keeper)
	require.NotEqual(b, old, b.rt.Capabilities().Version)
	require.Equal(b, []string{old}, b.rt.Capabilities().Former)
	kept := func() bool { return slices.Contains(b.rt.Capabilities().Former, old) }
	_, err := keeper.VersionOf(NewRun())
	require.ErrorIs(b, err, runtime.ErrNotFound)

	// The one that ran goes on, and what is saved of it is of its own version.
	require.Equal(b, old, version(spec.Run))
	require.Equal(b, nonce, b.nonce(spec.Run))
	require.NoError(b, b.rt.Freeze(b.ctx(), spec.Run))
	require.NoError(b, b.rt.Thaw(b.ctx(), spec.Run))
	require.EqualValues(b, 1, b.ask(spec.Run, probe.Request{Op: "next"}).N)
	require.NoError(b, keeper.Sweep(nil))
	require.True(b, kept(), "the version of a sandbox was removed")
	dir, home := b.capture(spec, true)
	require.NoError(b, keeper.Sweep([]string{dir}))
	require.True(b, kept(), "the version of a capture was removed")
	spec = b.next(spec, dir, home, true)
	b.start(spec)
	require.Equal(b, nonce, b.nonce(spec.Run))
	require.EqualValues(b, 2, b.ask(spec.Run, probe.Request{Op: "next"}).N)
	require.Equal(b, old, version(spec.Run))

	// So does the one that was paused before.
	resumed := b.next(paused, pausedDir, pausedHome, true)
	b.start(resumed)
	require.Equal(b, pausedNonce, b.nonce(resumed.Run))
	require.Equal(b, old, version(resumed.Run))
	require.NoError(b, b.rt.Destroy(b.ctx(), resumed.Run))

	// A cold start has the new version, also of what is saved of it.
	dir, home = b.capture(spec, false)
	require.NoError(b, keeper.Sweep([]string{pausedDir, dir}))
	require.True(b, kept())
	spec = b.next(spec, dir, home, false)
	b.start(spec)
	require.Equal(b, b.rt.Capabilities().Version, version(spec.Run))
	nonce = b.nonce(spec.Run)
	dir, home = b.capture(spec, true)
	spec = b.next(spec, dir, home, true)
	b.start(spec)
	require.Equal(b, b.rt.Capabilities().Version, version(spec.Run))
	require.Equal(b, nonce, b.nonce(spec.Run))

	// Without its version a capture is good for its files alone.
	require.NoError(b, keeper.Sweep([]string{dir}))
	require.False(b, kept(), "a version was kept that nothing needs")
	late := b.next(resumed, pausedDir, pausedHome, true)
	require.ErrorIs(b, b.rt.Start(b.ctx(), late), runtime.ErrIncompatible)
	require.Empty(b, b.state(late.Run))
	late.WithMemory = false
	b.start(late)
	require.NotEqual(b, pausedNonce, b.nonce(late.Run))
	require.Equal(b, "root", b.read(late.Run, "/opt/b"))
}
