package netpool

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"strconv"
)

// Loopback gives out ports of this machine's loopback interface instead of networks, for a runtime that isolates
// nothing and listens itself. It needs no root and cleans up nothing.
type Loopback struct{}

// Take finds a free port.
func (Loopback) Take(context.Context) (Network, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return Network{}, fmt.Errorf("find a free port: %w", err)
	}
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		return Network{}, err
	}
	number, err := strconv.Atoi(port)
	return Network{ID: rand.Text(), Index: number, Name: "loopback", Host: "127.0.0.1", Box: "127.0.0.1", Port: number}, err
}

// Release does nothing.
func (Loopback) Release(Network) {}

// Run waits for the end of ctx.
func (Loopback) Run(ctx context.Context) error {
	<-ctx.Done()
	return nil
}

// Filtered says that nothing is.
func (Loopback) Filtered() error {
	return errors.New("boxes listen on this machine's loopback interface")
}
