// Command listen is a program for tests: it listens on the port of loopback that its argument says, prints what the kernel
// says of its capabilities and of those of process 1, and stays.
package main

import (
	"fmt"
	"net"
	"os"
	"strings"
)

func main() {
	listener, err := net.Listen("tcp", "127.0.0.1:"+os.Args[1])
	if err != nil {
		panic(err)
	}
	for _, who := range []string{"self", "1"} {
		status, err := os.ReadFile("/proc/" + who + "/status")
		if err != nil {
			panic(err)
		}
		for line := range strings.Lines(string(status)) {
			if strings.HasPrefix(line, "Cap") {
				fmt.Print(who, " ", line)
			}
		}
	}
	for {
		conn, err := listener.Accept()
		if err != nil {
			panic(err)
		}
		_ = conn.Close()
	}
}
