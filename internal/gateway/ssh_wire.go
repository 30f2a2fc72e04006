package gateway

import (
	"net"
	"strconv"
	"strings"

	"golang.org/x/crypto/ssh"

	"carrel.dev/carrel/internal/carrel"
)

// The payloads of requests and channels, as RFC 4254 and OpenSSH's PROTOCOL have them.
type (
	ptyPayload struct {
		Term          string
		Columns, Rows uint32
		Width, Height uint32
		Modes         string
	}
	sizePayload struct{ Columns, Rows, Width, Height uint32 }
	envPayload  struct{ Name, Value string }
	textPayload struct{ Text string } // exec, subsystem, signal

	tcpChannel struct {
		Host       string
		Port       uint32
		OriginHost string
		OriginPort uint32
	}
	socketChannel struct {
		Path     string
		Reserved string
		Number   uint32
	}
	listenPayload struct {
		Host string
		Port uint32
	}
	listenAnswer    struct{ Port uint32 }
	socketPayload   struct{ Path string }
	forwardedSocket struct{ Path, Reserved string }
	exitStatus      struct{ Status uint32 }
	exitSignal      struct {
		Signal   string
		Core     bool
		Message  string
		Language string
	}
)

const (
	maxSSHText  = 256 << 10 // a command, in bytes
	maxSSHEnv   = 64        // variables
	maxSSHValue = 8 << 10   // a variable, in bytes
)

// parsePayload reads a payload to its last byte.
func parsePayload[T any](payload []byte) (T, error) {
	var value T
	err := ssh.Unmarshal(payload, &value)
	return value, err
}

// size is what a terminal of this size is made with; nonsense becomes 24 by 80.
func terminalSize(rows, columns uint32) [2]uint16 {
	if rows == 0 || columns == 0 || rows > 1<<15 || columns > 1<<15 {
		return [2]uint16{24, 80}
	}
	return [2]uint16{uint16(rows), uint16(columns)}
}

// terminalName is what TERM may be set to.
func terminalName(term string) string {
	if term == "" || len(term) > 64 || strings.ContainsFunc(term, func(r rune) bool { return r <= ' ' || r > '~' || r == '/' }) {
		return "xterm"
	}
	return term
}

// envAllowed says which variables a client may set. They may shape a session, not who it is, where its programs come from, or
// what the platform says; with a forced command they may not even choose programs.
func envAllowed(name string, forced bool) bool {
	if name == "LANG" || name == "LANGUAGE" || name == "TERM" || name == "COLORTERM" || name == "NO_COLOR" || name == "TZ" ||
		name == "GIT_PROTOCOL" || strings.HasPrefix(name, "LC_") {
		return true
	}
	if forced {
		return false
	}
	return name == "EDITOR" || name == "VISUAL" || name == "TERM_PROGRAM" || name == "TERM_PROGRAM_VERSION" ||
		strings.HasPrefix(name, "GIT_") || strings.HasPrefix(name, "VSCODE_")
}

// tcpTarget is where a forward leads to in the box.
func tcpTarget(host string, port uint32) (string, error) {
	if port == 0 || port > 65535 {
		return "", carrel.Errorf(carrel.CodeInvalid, "bad_port", "%d is no port", port)
	}
	if host == "" || host == "*" {
		host = "localhost"
	}
	if len(host) > 255 || strings.ContainsFunc(host, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
		return "", carrel.Errorf(carrel.CodeInvalid, "bad_host", "the name of the host is not usable")
	}
	return "tcp/" + net.JoinHostPort(strings.Trim(host, "[]"), strconv.Itoa(int(port))), nil
}

// socketTarget is the target of a Unix socket in the box.
func socketTarget(path string) (string, error) {
	if len(path) < 2 || len(path) > 107 || path[0] != '/' || strings.ContainsFunc(path, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
		return "", carrel.Errorf(carrel.CodeInvalid, "bad_path", "the path of a socket must be absolute and at most 107 printable bytes")
	}
	return "unix/" + path, nil
}

// sshSignals are those that RFC 4254 has a name for; others are OpenSSH's.
var sshSignals = map[string]bool{
	"ABRT": true, "ALRM": true, "FPE": true, "HUP": true, "ILL": true, "INT": true, "KILL": true, "PIPE": true, "QUIT": true, "SEGV": true,
	"TERM": true, "USR1": true, "USR2": true,
}

// signalFromWire is the name of a signal that a client sends, without SIG; empty: none that there is.
func signalFromWire(name string) string {
	name = strings.TrimPrefix(strings.TrimSuffix(name, "@openssh.com"), "SIG")
	if name == "" || len(name) > 16 || strings.ContainsFunc(name, func(r rune) bool { return (r < 'A' || r > 'Z') && (r < '0' || r > '9') }) {
		return ""
	}
	return name
}

func signalToWire(name string) string {
	if sshSignals[name] {
		return name
	}
	return name + "@openssh.com"
}
