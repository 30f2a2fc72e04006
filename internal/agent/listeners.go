package agent

import (
	"bufio"
	"cmp"
	"context"
	"encoding/hex"
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
}

// ListListeners reads /proc. A socket whose process is not to be found is shown without.
func (s forwardService) ListListeners(context.Context, *connect.Request[agentv1.ListListenersRequest]) (*connect.Response[agentv1.ListListenersResponse], error) {
	var sockets []socket
	for _, name := range []string{"net/tcp", "net/tcp6"} {
		file, err := os.Open(filepath.Join(procDir, name))
		if err != nil {
			continue // no such addresses in this box
		}
		sockets = append(sockets, readSockets(file)...)
		file.Close()
	}
	owners := socketOwners(sockets)
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
		if !ok || err != nil || err2 != nil || port == 0 {
			continue
		}
		result = append(result, socket{port: int(port), loopback: address.Unmap().IsLoopback(), inode: fields[9]})
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

// socketOwners finds a process for each socket by its inode.
func socketOwners(sockets []socket) map[string]int {
	if len(sockets) == 0 {
		return nil
	}
	wanted := map[string]string{}
	for _, one := range sockets {
		wanted["socket:["+one.inode+"]"] = one.inode
	}
	owners := map[string]int{}
	entries, _ := os.ReadDir(procDir)
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		dir := filepath.Join(procDir, entry.Name(), "fd")
		files, _ := os.ReadDir(dir)
		for _, file := range files {
			link, err := os.Readlink(filepath.Join(dir, file.Name()))
			if inode, ok := wanted[link]; err == nil && ok && owners[inode] == 0 {
				owners[inode] = pid
			}
		}
	}
	return owners
}
