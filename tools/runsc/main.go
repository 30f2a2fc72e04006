// Command runsc is gVisor's sandbox runtime, built by Carrel from the Go module pinned in go.mod
// so that an installation needs no prebuilt binary and every snapshot can name the exact version.
// It adds three things to it: see advertise.go, clock.go and hostname.go.
package main

import (
	"os"
	"runtime"

	"gvisor.dev/gvisor/pkg/sentry/syscalls/linux"
	"gvisor.dev/gvisor/runsc/cli/maincli"
	"gvisor.dev/gvisor/runsc/version"
)

// The linker sets version.version only where something refers to the package.
var _ = version.Version

func main() {
	letInitSetHostname(linux.AMD64, linux.ARM64)
	calibrateSoon(linux.AMD64, linux.ARM64)
	os.Args = advertise(os.Args, runtime.NumCPU(), os.ReadFile)
	maincli.Main()
}
