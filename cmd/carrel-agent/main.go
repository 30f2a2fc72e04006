// Command carrel-agent is PID 1 of a box. It must need nothing from the box's image: it is static and is mounted
// into the box beside it. Words: see internal/agent.
package main

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"

	"golang.org/x/sys/unix"

	"carrel.dev/carrel/internal/agent"
	"carrel.dev/carrel/internal/agent/identity"
	"carrel.dev/carrel/internal/agent/sftp"
)

// version is set by the linker.
var version = "dev"

// commandOwners is what the agent calls its own program with.
const commandOwners = "owners"

func main() { os.Exit(run(os.Args[1:])) }

func run(args []string) int {
	flags := flag.NewFlagSet("carrel-agent", flag.ContinueOnError)
	listen := flags.String("listen", ":1", "TCP `address` to listen on")
	directory := flags.String("identity", identity.Directory, "`directory` with the identity of the run")
	flags.Usage = func() {
		fmt.Fprintln(flags.Output(), "carrel-agent is PID 1 of a box.\n\nUsage:\n  carrel-agent [flags]\n  carrel-agent sftp     serve files on standard input and output\n  carrel-agent owners INODE…   say which processes have sockets\n  carrel-agent version\n\nFlags:")
		flags.PrintDefaults()
	}
	if err := flags.Parse(args); err != nil {
		return 2
	}
	switch {
	case flags.NArg() == 1 && flags.Arg(0) == "version":
		fmt.Println(version)
		return 0
	case flags.NArg() == 1 && flags.Arg(0) == "sftp":
		return serveFiles()
	case flags.NArg() > 0 && flags.Arg(0) == commandOwners:
		if err := agent.WriteOwners(context.Background(), os.Stdout, flags.Args()[1:]); err != nil {
			return 1
		}
		return 0
	case flags.NArg() > 0:
		flags.Usage()
		return 2
	}
	// A box has many of these and little memory: collect early.
	debug.SetGCPercent(50)
	// The agent mostly waits. With more processors Go wakes threads for each other, which costs more in a sandbox than it
	// gains: twice the CPU time for the same output, measured on gVisor.
	runtime.GOMAXPROCS(1 + runtime.NumCPU()/8)
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))

	// As PID 1 no signal may end the agent by accident. They are noticed, not ignored: commands would inherit that.
	noticed := make(chan os.Signal, 16)
	signal.Notify(noticed, unix.SIGHUP, unix.SIGPIPE, unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2, unix.SIGALRM)
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	defer stop()

	config := agent.Config{Version: version, IdentityDir: *directory, Listen: *listen, Init: os.Getpid() == 1, Env: os.Environ(), Log: log}
	if own, err := os.Executable(); err == nil {
		config.Owners = []string{own, commandOwners}
	}
	box, err := agent.New(config)
	if err != nil {
		log.Error("the agent could not start", "error", err)
		return 1
	}
	if err := box.Run(ctx); err != nil {
		log.Error("the agent failed", "error", err)
		return 1
	}
	return 0
}

// serveFiles is the subsystem sftp of an SSH connection.
func serveFiles() int {
	debug.SetGCPercent(50)
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT, unix.SIGHUP)
	defer stop()
	if err := sftp.Serve(ctx, os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "carrel-agent sftp:", err)
		return 1
	}
	return 0
}
