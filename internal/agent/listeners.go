package agent

import (
	"bufio"
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"connectrpc.com/connect"

	agentv1 "carrel.dev/carrel/api/carrel/agent/v1"
)

const (
	// maxSockets is how many lines are read of /proc/net/tcp and tcp6 each, maxShown how many listeners are told.
	maxSockets = 16 << 10
	maxShown   = 1024
	// tcpListen is the state of a listening socket, as Linux numbers them.
	tcpListen = "0A"
)

// socket is one listening TCP socket.
type socket struct {
	port     int
	loopback bool
	inode    string
	uid      uint32
}

// ListListeners reads /proc. A socket whose process is not to be found is shown without.
func (s forwardService) ListListeners(ctx context.Context, _ *connect.Request[agentv1.ListListenersRequest]) (*connect.Response[agentv1.ListListenersResponse], error) {
	var sockets []socket
	for _, name := range []string{"net/tcp", "net/tcp6"} {
		file, err := os.Open(filepath.Join(procDir, name))
		if err != nil {
			continue // no such addresses in this box
		}
		sockets = append(sockets, readSockets(file)...)
		file.Close()
	}
	owners := s.a.socketOwners(ctx, sockets)
	byPort := map[int]*agentv1.Listener{}
	for _, one := range sockets {
		pid := owners[one.inode]
		if one.port == s.a.port || pid == os.Getpid() {
			continue
		}
		known := byPort[one.port]
		if known == nil {
			known = &agentv1.Listener{Port: uint32(one.port), Loopback: true}
			byPort[one.port] = known
		}
		known.Loopback = known.GetLoopback() && one.loopback
		if known.GetPid() == 0 && pid != 0 {
			known.Pid, known.Process = int32(pid), commandLine(pid)
		}
	}
	response := &agentv1.ListListenersResponse{}
	for _, one := range byPort {
		response.Listeners = append(response.Listeners, one)
	}
	slices.SortFunc(response.Listeners, func(x, y *agentv1.Listener) int { return cmp.Compare(x.GetPort(), y.GetPort()) })
	response.Listeners = response.Listeners[:min(len(response.GetListeners()), maxShown)]
	return connect.NewResponse(response), nil
}

// readSockets reads the listening sockets of a file such as /proc/net/tcp. Lines that are not as expected are passed over.
func readSockets(from io.Reader) []socket {
	var result []socket
	lines := bufio.NewScanner(from)
	for n := 0; n < maxSockets && lines.Scan(); n++ {
		fields := strings.Fields(lines.Text())
		if len(fields) < 10 || fields[3] != tcpListen {
			continue
		}
		host, portText, ok := strings.Cut(fields[1], ":")
		port, err := strconv.ParseUint(portText, 16, 16)
		address, err2 := parseProcAddress(host)
		uid, err3 := strconv.ParseUint(fields[7], 10, 32)
		if _, err4 := strconv.ParseUint(fields[9], 10, 64); !ok || port == 0 || errors.Join(err, err2, err3, err4) != nil {
			continue
		}
		result = append(result, socket{port: int(port), loopback: address.Unmap().IsLoopback(), inode: fields[9], uid: uint32(uid)})
	}
	return result
}

// parseProcAddress reads an address as /proc writes it: words of 32 bits in the order of a little-endian machine.
func parseProcAddress(text string) (netip.Addr, error) {
	raw, err := hex.DecodeString(text)
	if err != nil {
		return netip.Addr{}, err
	}
	if len(raw)%4 == 0 {
		for word := raw; len(word) > 0; word = word[4:] {
			slices.Reverse(word[:4])
		}
	}
	address, ok := netip.AddrFromSlice(raw)
	if !ok {
		return netip.Addr{}, strconv.ErrSyntax
	}
	return address, nil
}
