package agent

import (
	"bytes"
	"io"
	"net"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// gathered gives both ends of a connection, one of which gathers as soon as the test lets it.
func gathered(t *testing.T, start func(func())) (*gather, net.Conn) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer listener.Close()
	far, err := net.Dial("tcp", listener.Addr().String())
	require.NoError(t, err)
	near, err := listener.Accept()
	require.NoError(t, err)
	g, ok := newGather(near, start).(*gather)
	require.True(t, ok)
	t.Cleanup(func() {
		g.Close()
		far.Close()
	})
	return g, far
}

func TestWhatIsWrittenCloselyLeavesTogether(t *testing.T) {
	var later []func()
	g, far := gathered(t, func(f func()) { later = append(later, f) })
	_, err := g.Write([]byte("at once\n"))
	require.NoError(t, err)
	buf := make([]byte, 100)
	n, err := far.Read(buf)
	require.NoError(t, err)
	require.Equal(t, "at once\n", string(buf[:n]), "nothing is gathered before begin")

	g.begin()
	for i := range 3 {
		_, err := g.Write([]byte(strconv.Itoa(i)))
		require.NoError(t, err)
	}
	require.NoError(t, far.SetReadDeadline(time.Now().Add(10*time.Millisecond)))
	_, err = far.Read(buf)
	require.ErrorIs(t, err, os.ErrDeadlineExceeded, "it waits for whoever starts it")
	require.Len(t, later, 1)
	later[0]()
	require.NoError(t, far.SetReadDeadline(time.Time{}))
	n, err = far.Read(buf)
	require.NoError(t, err)
	require.Equal(t, "012", string(buf[:n]))
}

func TestGatheredBytesKeepTheirOrderAndAreAllThere(t *testing.T) {
	var started sync.WaitGroup
	g, far := gathered(t, started.Go)
	g.begin()
	var want bytes.Buffer
	for i := range 3000 {
		want.Write(bytes.Repeat([]byte{byte(i)}, i%(2*copyBuffer/1000)*37))
	}
	want.Write(make([]byte, 3*copyBuffer)) // larger than what is gathered
	started.Go(func() {
		rest := want.Bytes()
		for i := 0; len(rest) > 0; i++ {
			n := min(len(rest), 1+i%5000)
			if i%1000 == 999 {
				n = min(len(rest), 2*copyBuffer)
			}
			if _, err := g.Write(rest[:n]); err != nil {
				t.Error(err)
			}
			rest = rest[n:]
		}
		if err := g.CloseWrite(); err != nil {
			t.Error(err)
		}
	})
	got, err := io.ReadAll(far)
	require.NoError(t, err)
	require.True(t, bytes.Equal(want.Bytes(), got))
	started.Wait()
}

func TestTheLastWordLeavesBeforeClose(t *testing.T) {
	g, far := gathered(t, func(func()) {})
	g.begin()
	_, err := g.Write([]byte("good-bye"))
	require.NoError(t, err)
	require.NoError(t, g.Close())
	got, err := io.ReadAll(far)
	require.NoError(t, err)
	require.Equal(t, "good-bye", string(got))
	_, err = g.Write([]byte("too late"))
	require.ErrorIs(t, err, net.ErrClosed)
}

// A peer that reads nothing blocks who writes, and Close ends that.
func TestWhoWritesToNobodyWaitsAndIsFreed(t *testing.T) {
	var started sync.WaitGroup
	g, _ := gathered(t, started.Go)
	g.begin()
	failed := make(chan error)
	go func() {
		for {
			if _, err := g.Write(make([]byte, copyBuffer-1)); err != nil {
				failed <- err
				return
			}
		}
	}()
	require.Eventually(t, func() bool {
		if !g.mu.TryLock() {
			return true // held by a write that waits, or by one that soon will
		}
		g.mu.Unlock()
		return false
	}, patience, time.Millisecond)
	require.NoError(t, g.Close())
	require.Error(t, <-failed)
	started.Wait()
}

func TestADirectConnectionIsOneLikeAnyOther(t *testing.T) {
	g, far := gathered(t, func(f func()) { f() })
	data := bytes.Repeat([]byte("0123456789abcdef"), 1<<17) // more than fits on its way
	var both sync.WaitGroup
	both.Go(func() {
		_, _ = far.Write(data)
		far.(*net.TCPConn).CloseWrite()
	})
	got, err := io.ReadAll(g)
	require.NoError(t, err)
	require.True(t, bytes.Equal(data, got))
	both.Wait()
	both.Go(func() {
		n, err := g.Write(data)
		if err != nil || n != len(data) {
			t.Errorf("wrote %d: %v", n, err)
		}
		g.CloseWrite()
	})
	got, err = io.ReadAll(far)
	require.NoError(t, err)
	require.True(t, bytes.Equal(data, got))
	both.Wait()
	n, err := g.Read(nil)
	require.NoError(t, err)
	require.Zero(t, n)
	require.NoError(t, g.SetReadDeadline(time.Now()))
	_, err = g.Read(make([]byte, 1))
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	require.NoError(t, g.Close())
	_, err = g.Read(make([]byte, 1))
	require.ErrorIs(t, err, net.ErrClosed)
	_, err = g.directConn.Write([]byte("x"))
	require.ErrorIs(t, err, net.ErrClosed)
}
