package gateway

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ssh"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
)

func TestSSHPrefaceNamesABox(t *testing.T) {
	for _, row := range []struct {
		data, box, rest string
		more            bool
	}{
		{"", "", "", true},
		{"CARREL", "", "CARREL", true},
		{"CARREL-BOX dev", "", "CARREL-BOX dev", true},
		{"CARREL-BOX dev.org\r\nSSH-2.0-x\r\n", "dev.org", "SSH-2.0-x\r\n", false},
		{"CARREL-BOX \n", "", "", false},
		{"SSH-2.0-OpenSSH_9.2\r\n", "", "SSH-2.0-OpenSSH_9.2\r\n", false},
		{"C\x00garbage that is long", "", "C\x00garbage that is long", false},
	} {
		box, rest, more := parseSSHPreface([]byte(row.data))
		require.Equal(t, row.box, box, "%q", row.data)
		require.Equal(t, row.rest, string(rest), "%q", row.data)
		require.Equal(t, row.more, more, "%q", row.data)
	}
}

func TestSSHEnvironmentIsChosenByTheUserNotTheIdentity(t *testing.T) {
	for _, name := range []string{"LANG", "LC_ALL", "TERM", "COLORTERM", "GIT_PROTOCOL", "GIT_AUTHOR_NAME", "EDITOR", "TZ"} {
		require.True(t, envAllowed(name, false), name)
	}
	for _, name := range []string{"HOME", "PATH", "LD_PRELOAD", "SSH_CONNECTION", "SSH_AUTH_SOCK", "CARREL_BOX", "USER", "BASH_ENV"} {
		require.False(t, envAllowed(name, false), name)
	}
	require.True(t, envAllowed("GIT_PROTOCOL", true))
	for _, name := range []string{"GIT_SSH_COMMAND", "EDITOR"} {
		require.False(t, envAllowed(name, true), "%s could choose a program where a command is forced", name)
	}
}

func TestSSHTargets(t *testing.T) {
	for _, row := range []struct {
		host   string
		port   uint32
		target string
	}{
		{"localhost", 80, "tcp/localhost:80"},
		{"", 80, "tcp/localhost:80"},
		{"::1", 80, "tcp/[::1]:80"},
		{"[::1]", 80, "tcp/[::1]:80"},
		{"db.internal", 65535, "tcp/db.internal:65535"},
		{"localhost", 0, ""},
		{"localhost", 65536, ""},
		{"a b", 80, ""},
		{"a\nb", 80, ""},
		{strings.Repeat("a", 300), 80, ""},
	} {
		target, err := tcpTarget(row.host, row.port)
		require.Equal(t, row.target, target, "%q", row.host)
		require.Equal(t, row.target == "", err != nil)
	}
	for path, good := range map[string]bool{"/tmp/s": true, "s": false, "/": false, "/a\nb": false, "/" + strings.Repeat("a", 107): false} {
		_, err := socketTarget(path)
		require.Equal(t, good, err == nil, path)
	}
}

func TestReplayAsksTheTerminalNothing(t *testing.T) {
	for shown, output := range map[string]string{
		"plain \x1b[1mbold\x1b[0m":      "plain \x1b[1mbold\x1b[0m",
		"":                              "\x1b[c\x1b[>c\x1b[6n\x1b[?6n\x1b[5n\x1bZ\x05\x1b[18t\x1b[?1$p\x1b[>q\x1b[?u",
		"a":                             "a\x1b]10;?\x07\x1b]11;?\x1b\\\x1bP$qm\x1b\\\x1bP+q544e\x1b\\",
		"\x1b]0;title\x07\x1b[2J\x1b[H": "\x1b]0;title\x07\x1b[2J\x1b[H",
		"\x1b[?1049h\x1b(B\x1b=":        "\x1b[?1049h\x1b(B\x1b=",
	} {
		for _, size := range []int{1, 3, 1000} {
			q := &quietReplay{}
			var got []byte
			for rest := []byte(output); len(rest) > 0; {
				n := min(size, len(rest))
				got = q.filter(got, rest[:n])
				rest = rest[n:]
			}
			require.Equal(t, shown, string(q.rest(got)), "%q in pieces of %d", output, size)
		}
	}
	// What is new is shown as it is, also when it comes with what is old.
	var out bytes.Buffer
	replay := keptShell{from: 10, live: 14}.replay(func(_ carrelv1.Stream, data []byte) error { _, err := out.Write(data); return err })
	require.NoError(t, replay(carrelv1.Stream_STREAM_STDOUT, []byte("\x1b[6nab\x1b[6n")))
	require.Equal(t, "ab\x1b[6n", out.String())
}

// FuzzSSHPayloads: whatever a client sends in requests and channels is refused or understood, and nothing else.
func FuzzSSHPayloads(f *testing.F) {
	f.Add(ssh.Marshal(ptyPayload{Term: "xterm", Columns: 80, Rows: 24, Modes: "\x00"}))
	f.Add(ssh.Marshal(sizePayload{Columns: 80, Rows: 24}))
	f.Add(ssh.Marshal(envPayload{"LANG", "C"}))
	f.Add(ssh.Marshal(textPayload{"sftp"}))
	f.Add(ssh.Marshal(tcpChannel{"localhost", 80, "127.0.0.1", 1}))
	f.Add(ssh.Marshal(socketChannel{Path: "/tmp/s"}))
	f.Add(ssh.Marshal(listenPayload{"", 0}))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, data []byte) {
		s := &sshSession{c: &sshConn{}, closed: make(chan struct{}), env: map[string]string{}}
		for _, kind := range []string{"env", "pty-req", "window-change", "signal", "auth-agent-req@openssh.com", "x11-req", "eow@openssh.com"} {
			s.request(&ssh.Request{Type: kind, Payload: data}, false)
		}
		require.LessOrEqual(t, len(s.env), maxSSHEnv)
		for _, kind := range []string{"exec", "subsystem", "shell"} {
			_, begin := s.request(&ssh.Request{Type: kind, Payload: data}, false)
			require.False(t, begin && strings.ContainsRune(s.command, 0))
		}
		if p, err := parsePayload[ptyPayload](data); err == nil {
			require.NotContains(t, terminalName(p.Term), " ")
			size := terminalSize(p.Rows, p.Columns)
			require.NotZero(t, size[0]*size[1])
		}
		if p, err := parsePayload[tcpChannel](data); err == nil {
			if target, err := tcpTarget(p.Host, p.Port); err == nil {
				require.False(t, strings.ContainsAny(target, " \n\r\x00"), "%q", target)
			}
		}
		if p, err := parsePayload[socketChannel](data); err == nil {
			if target, err := socketTarget(p.Path); err == nil {
				require.False(t, strings.ContainsAny(target, " \n\r\x00"), "%q", target)
			}
		}
		_, _ = parsePayload[listenPayload](data)
		_, _ = parsePayload[socketPayload](data)
		if box, rest, more := parseSSHPreface(data); box == "" && !more && !bytes.HasPrefix(data, []byte(sshPreface)) {
			require.Equal(t, data, rest)
		}
	})
}

// FuzzReplay: what a box wrote never makes the filter grow or lose what is only text.
func FuzzReplay(f *testing.F) {
	f.Add([]byte("a\x1b[6nb\x1b]10;?\x07"))
	f.Add([]byte("\x1bP"))
	f.Fuzz(func(t *testing.T, data []byte) {
		q := &quietReplay{}
		out := q.rest(q.filter(nil, data))
		require.LessOrEqual(t, len(out), len(data))
		if !bytes.ContainsAny(data, "\x1b\x05") {
			require.Equal(t, string(data), string(out))
		}
	})
}

func TestSSHDoorsKeepASilentCrowdFromKeepingOthersOut(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	d := newSSHDoors(func() time.Time { return now })
	crowd := make([]*sshDoor, 0, sshMaxHandshakesPer)
	for range sshMaxHandshakesPer {
		door, err := d.enter(&fakeConn{from: "192.0.2.1:1"})
		require.NoError(t, err)
		crowd = append(crowd, door)
	}
	crowd[0].spoke.Store(true)
	for range 10_000 { // the silent ones have to go, the oldest first
		_, err := d.enter(&fakeConn{from: "192.0.2.1:2"})
		require.NoError(t, err)
		require.LessOrEqual(t, len(d.inside), sshMaxHandshakes)
		require.LessOrEqual(t, d.by[crowd[0].address], sshMaxHandshakesPer)
	}
	require.False(t, crowd[0].Conn.(*fakeConn).closed, "who speaks stays")
	require.True(t, crowd[1].Conn.(*fakeConn).closed)
	_, err := d.enter(&fakeConn{from: "198.51.100.7:1"})
	require.NoError(t, err, "another address")
	for _, one := range d.inside {
		one.spoke.Store(true)
	}
	_, err = d.enter(&fakeConn{from: "192.0.2.1:3"})
	require.ErrorContains(t, err, "Too many connections are logging in")
	for _, one := range append([]*sshDoor{}, d.inside...) {
		d.leave(one, false)
	}
	require.Empty(t, d.by)
}

func TestSSHDoorsSlowDownWhoFails(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	d := newSSHDoors(func() time.Time { return now })
	fail := func() error {
		door, err := d.enter(&fakeConn{from: "[2001:db8::1]:1"})
		if err == nil {
			d.leave(door, true)
		}
		return err
	}
	for range sshFailBurst {
		require.NoError(t, fail())
	}
	require.ErrorContains(t, fail(), "wait a minute")
	_, err := d.enter(&fakeConn{from: "[2001:db8::2]:1"})
	require.ErrorContains(t, err, "wait a minute", "another address of the same network")
	_, err = d.enter(&fakeConn{from: "[2001:db9::1]:1"})
	require.NoError(t, err)
	now = now.Add(sshFailRefill)
	require.NoError(t, fail(), "one more after a while")
	require.Error(t, fail())
	now = now.Add(sshFailBurst * sshFailRefill)
	require.NoError(t, fail())
}
