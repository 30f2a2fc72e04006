package netpool

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"strconv"
)

// Loopback gives out addresses of this machine's loopback interface instead of networks, for a runtime that isolates
// nothing and listens itself. It needs no root and cleans up nothing.
type Loopback struct{}

// Take finds a free port.
func (Loopback) Take(context.Context) (Network, error) {
	// An address of its own for each, so that two that are taken at once do not get the same port.
	var b [3]byte
	_, _ = rand.Read(b[:]) // never fails
	address := net.IPv4(127, b[0]|1, b[1], b[2]|1).String()
	l, err := net.Listen("tcp", net.JoinHostPort(address, "0"))
	if err != nil {
		return Network{}, fmt.Errorf("find a free port: %w", err)
	}
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		return Network{}, err
	}
	number, err := strconv.Atoi(port)
	return Network{ID: rand.Text(), Index: number, Name: "loopback", Host: "127.0.0.1", Box: address, Port: number}, err
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
