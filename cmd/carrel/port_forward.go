package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/client"
)

func (a *app) portForwardCommand() *cobra.Command {
	var (
		udp     bool
		address string
	)
	cmd := &cobra.Command{
		Use:   "port-forward NAME [LOCAL:]PORT…",
		Short: "Make ports of a box ports of this computer",
		Long: "Make ports of a box ports of this computer until Ctrl-C: whatever connects to LOCAL here is connected to PORT in the\n" +
			"box. Without LOCAL both are the same; LOCAL 0 is any that is free. A connection that breaks is not made again, the\n" +
			"next one is made anew.",
		Example: example("carrel port-forward mybox 8000:8080", "carrel port-forward mybox 5432 6379", "carrel port-forward mybox --udp 5353:53",
			"carrel port-forward mybox --address 0.0.0.0 8080"),
		ValidArgsFunction: a.boxNames(),
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) < 2 {
				return usageError(cmd, "%s is missing", []string{"NAME", "PORT"}[len(args)])
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&udp, "udp", false, "forward datagrams in place of connections")
	cmd.Flags().StringVar(&address, "address", "127.0.0.1", "`ADDRESS` of this computer to listen on")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if net.ParseIP(address) == nil && address != "localhost" {
			return usageError(cmd, "%q is no IP address", address)
		}
		var pairs [][2]int
		for _, text := range args[1:] {
			pair, err := portPair(cmd, text)
			if err != nil {
				return err
			}
			pairs = append(pairs, pair)
		}
		c, err := a.client()
		if err != nil {
			return err
		}
		defer c.Close()
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
		defer stop()
		// Say now what would else be said with the first connection.
		ticket, err := c.Ticket(ctx, args[0])
		if err != nil {
			return err
		}
		return a.forwardPorts(ctx, c, ticket.Box, address, udp, pairs)
	}
	return cmd
}

// portPair reads [LOCAL:]PORT.
func portPair(cmd *cobra.Command, text string) (pair [2]int, err error) {
	local, remote, both := strings.Cut(text, ":")
	if !both {
		remote = local
	}
	if pair[1], err = portNumber(cmd, remote); err != nil {
		return pair, err
	}
	if pair[0], err = strconv.Atoi(local); err != nil || pair[0] < 0 || pair[0] > 65535 {
		return pair, usageError(cmd, "%q is no port; it is a number from 0 to 65535", local)
	}
	return pair, nil
}

// forwardPorts listens on all ports, and only then says so, and carries what comes until ctx ends.
func (a *app) forwardPorts(ctx context.Context, c *client.Client, box, address string, udp bool, pairs [][2]int) error {
	var mu sync.Mutex // of a.stderr
	group, ctx := errgroup.WithContext(ctx)
	var lines []string
	var starts []func() error
	var closers []func() error
	for _, pair := range pairs {
		at := net.JoinHostPort(address, strconv.Itoa(pair[0]))
		forward := client.Forward{Box: box, Port: pair[1], OnError: func(err error) {
			mu.Lock()
			defer mu.Unlock()
			fmt.Fprintf(a.stderr, "carrel: port %d: %s\n", pair[1], printable(err.Error()))
		}}
		var bound net.Addr
		var err error
		if udp {
			var socket net.PacketConn
			if socket, err = new(net.ListenConfig).ListenPacket(ctx, "udp", at); err == nil {
				bound, closers = socket.LocalAddr(), append(closers, socket.Close)
				starts = append(starts, func() error { return c.ForwardUDP(ctx, socket, forward) })
			}
		} else {
			var listener net.Listener
			if listener, err = new(net.ListenConfig).Listen(ctx, "tcp", at); err == nil {
				bound, closers = listener.Addr(), append(closers, listener.Close)
				starts = append(starts, func() error { return c.ForwardTCP(ctx, listener, forward) })
			}
		}
		if err != nil {
			for _, closes := range closers {
				_ = closes()
			}
			return carrel.Errorf(carrel.CodePrecondition, "address_in_use", "this computer does not listen on %s: %v; choose another port, such as 0:%d", at, err, pair[1])
		}
		lines = append(lines, fmt.Sprintf("Forwarding %s to port %d of the box", bound, pair[1]))
	}
	for _, line := range lines {
		fmt.Fprintln(a.stdout, line)
	}
	for _, start := range starts {
		group.Go(start)
	}
	return group.Wait()
}
