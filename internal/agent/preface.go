package agent

import (
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
)

// maxPreface is the largest first line of a connection, in bytes, its newline included.
const maxPreface = 4096

type targetKind string

const (
	targetAgent   targetKind = "agent"
	targetControl targetKind = "control"
	targetSession targetKind = "session" // package frame
	targetJupyter targetKind = "jupyter" // HTTP/1.1, package jupyter
	targetTCP     targetKind = "tcp"
	targetUnix    targetKind = "unix"
	targetUDP     targetKind = "udp"
	targetAccept  targetKind = "accept"
)

// target is what a connection asks for.
type target struct {
	kind targetKind
	// address is HOST:PORT, a path (one that begins with @ is an abstract socket), or the id of an accepted connection.
	address string
	port    int
}

var errPreface = errors.New("the first line is not \"carrel/1 KEY TARGET\"")

// parsePreface takes the first line of a connection apart, without its newline. The target is not looked at:
// who does not know the key is told nothing about targets.
func parsePreface(line string) (key, targetText string, err error) {
	rest, ok := strings.CutPrefix(line, "carrel/1 ")
	if !ok || len(line) >= maxPreface {
		return "", "", errPreface
	}
	key, targetText, ok = strings.Cut(rest, " ")
	if !ok || key == "" || targetText == "" {
		return "", "", errPreface
	}
	return key, targetText, nil
}

// parseTarget reads agent, control, session, jupyter, tcp/HOST:PORT, udp/HOST:PORT, unix/PATH or accept/ID. The port is a number: a name could stand for
// the agent's own.
func parseTarget(text string) (target, error) {
	for _, r := range text {
		if r < ' ' || r == 0x7f {
			return target{}, errors.New("a target has no control characters")
		}
	}
	if text == string(targetAgent) || text == string(targetControl) || text == string(targetSession) || text == string(targetJupyter) {
		return target{kind: targetKind(text)}, nil
	}
	kind, address, _ := strings.Cut(text, "/")
	switch wanted := targetKind(kind); wanted {
	case targetTCP, targetUDP:
		host, portText, err := net.SplitHostPort(address)
		if err != nil {
			return target{}, fmt.Errorf("a %s target is %s/HOST:PORT", wanted, wanted)
		}
		port, err := strconv.ParseUint(portText, 10, 16)
		if err != nil || port == 0 {
			return target{}, fmt.Errorf("the port of a %s target is a number from 1 to 65535", wanted)
		}
		if host == "" {
			host = "localhost"
		}
		return target{kind: wanted, address: net.JoinHostPort(host, strconv.Itoa(int(port))), port: int(port)}, nil
	case targetUnix:
		// sun_path has 108 bytes.
		if len(address) < 2 || len(address) > 107 || (address[0] != '/' && address[0] != '@') {
			return target{}, errors.New("a unix target is unix/PATH with an absolute path of at most 107 bytes")
		}
		return target{kind: targetUnix, address: address}, nil
	case targetAccept:
		if address == "" || len(address) > 64 {
			return target{}, errors.New("an accept target is accept/ID")
		}
		return target{kind: targetAccept, address: address}, nil
	}
	return target{}, errors.New("the target is not agent, session, jupyter, control, tcp/HOST:PORT, udp/HOST:PORT, unix/PATH or accept/ID")
}

// sameKey compares in a time that tells nothing about either.
func sameKey(a, b string) bool {
	x, y := sha256.Sum256([]byte(a)), sha256.Sum256([]byte(b))
	return subtle.ConstantTimeCompare(x[:], y[:]) == 1
}
