package gateway

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"time"

	"connectrpc.com/connect"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
)

const (
	// shellReplay is how much of a kept shell's output is shown again, in bytes.
	shellReplay = 64 << 10
	// shellList bounds the question to the agent, which a login must not wait for.
	shellList = 3 * time.Second
)

// keptShell is a shell that somebody left open by losing the connection to it.
type keptShell struct {
	id   string
	from int64 // the first byte of output that is shown again
	live int64 // the first byte that is new
}

// offerShell asks whether a kept shell of the user's is to be rejoined. typed is what was typed and is not the answer.
func (s *sshSession) offerShell(ctx context.Context, p pass) (kept keptShell, typed []byte, err error) {
	shells := s.keptShells(ctx, p)
	if len(shells) == 0 {
		return keptShell{}, nil, nil
	}
	shell := shells[len(shells)-1]
	running := ""
	if front := printableLine(shell.GetForeground()); front != "" {
		name, _, _ := strings.Cut(front, " ")
		running = " (" + name[strings.LastIndexByte(name, '/')+1:] + ")"
	}
	others := ""
	if n := len(shells) - 1; n > 0 {
		others = fmt.Sprintf(" %d older ones stay as they are.", n)
	}
	_, err = fmt.Fprintf(s.ch, "A shell of yours from %s is still open%s.%s Rejoin it? [Y/n] ", shell.GetStartTime().AsTime().Local().Format("15:04"), running, others)
	if err != nil {
		return keptShell{}, nil, err
	}
	yes, typed, err := s.answer(ctx)
	if err != nil || !yes {
		return keptShell{}, typed, err
	}
	end := shell.GetStdoutBytes()
	return keptShell{id: shell.GetId(), from: max(0, end-shellReplay), live: end}, typed, nil
}

// keptShells are the user's own that nobody looks at, oldest first. An agent that does not answer has none.
func (s *sshSession) keptShells(ctx context.Context, p pass) []*carrelv1.Process {
	ctx, cancel := context.WithTimeout(ctx, shellList)
	defer cancel()
	agent, done := s.c.g.agents.get(p)
	defer done()
	resp, err := agent.List(ctx, connect.NewRequest(&carrelv1.ListProcessesRequest{}))
	if err != nil {
		return nil
	}
	var shells []*carrelv1.Process
	for _, one := range resp.Msg.GetProcesses() {
		if one.GetKind() == "ssh" && one.GetPty() && one.GetRunning() && one.GetViewers() == 0 && one.GetStartedBy() == string(s.c.proof.user) && len(one.GetArgs()) <= 1 {
			shells = append(shells, one)
		}
	}
	return shells
}

// answer reads one key: y, n, Enter or an end. Anything else means no and is typed into the new shell.
func (s *sshSession) answer(ctx context.Context) (yes bool, typed []byte, err error) {
	type read struct {
		data []byte
		err  error
	}
	got := make(chan read, 1)
	go func() { // it ends with the channel at the latest
		buf := make([]byte, 256)
		n, err := s.ch.Read(buf)
		got <- read{buf[:n], err}
	}()
	select {
	case r := <-got:
		if r.err != nil {
			return false, nil, r.err
		}
		text := "no"
		switch {
		case bytes.ContainsAny(r.data[:1], "yY\r\n"):
			yes, text, typed = true, "yes", bytes.TrimLeft(r.data[1:], "\r\n")
		case bytes.ContainsAny(r.data[:1], "nN\x03\x04"):
			typed = bytes.TrimLeft(r.data[1:], "\r\n")
		default:
			typed = r.data
		}
		_, err := fmt.Fprintf(s.ch, "%s\r\n", text)
		return yes, typed, err
	case <-s.closed:
		return false, nil, errSessionOver
	case <-ctx.Done():
		return false, nil, context.Cause(ctx)
	}
}

// replay wraps output: what was written before is shown without the questions in it that the terminal would answer by
// itself, as if somebody typed.
func (k keptShell) replay(output func(carrelv1.Stream, []byte) error) func(carrelv1.Stream, []byte) error {
	left := k.live - k.from
	quiet := &quietReplay{}
	return func(stream carrelv1.Stream, data []byte) error {
		if left <= 0 || stream != carrelv1.Stream_STREAM_STDOUT {
			return output(stream, data)
		}
		old := data[:min(int64(len(data)), left)]
		left -= int64(len(old))
		shown := quiet.filter(nil, old)
		if left <= 0 {
			shown = append(quiet.rest(shown), data[len(old):]...)
		}
		if len(shown) == 0 {
			return nil
		}
		return output(stream, shown)
	}
}

// maxSequence is the longest control sequence that is looked at as a whole, in bytes.
const maxSequence = 4 << 10

// quietReplay takes out of a stream of terminal output what a terminal answers: reports of status, position, attributes,
// colours and settings (ECMA-48, DEC VT220 and xterm's).
type quietReplay struct{ held []byte }

// filter appends to out what of data may be shown.
func (q *quietReplay) filter(out, data []byte) []byte {
	for _, b := range data {
		if len(q.held) == 0 {
			switch b {
			case 0x1b:
				q.held = append(q.held, b)
			case 0x05: // ENQ
			default:
				out = append(out, b)
			}
			continue
		}
		q.held = append(q.held, b)
		if complete(q.held) {
			if !asks(q.held) {
				out = append(out, q.held...)
			}
			q.held = q.held[:0]
		} else if len(q.held) > maxSequence {
			out = append(out, q.held...)
			q.held = q.held[:0]
		}
	}
	return out
}

// rest appends what was held back at the end.
func (q *quietReplay) rest(out []byte) []byte {
	out = append(out, q.held...)
	q.held = nil
	return out
}

// complete reports whether a control sequence is.
func complete(s []byte) bool {
	if len(s) < 2 {
		return false
	}
	last := s[len(s)-1]
	switch s[1] {
	case '[':
		return len(s) > 2 && last >= 0x40 && last <= 0x7e
	case ']', 'P', '_', '^', 'X':
		return last == 0x07 && s[1] == ']' || len(s) > 3 && last == '\\' && s[len(s)-2] == 0x1b
	}
	return last >= 0x30 && last <= 0x7e || len(s) > 3
}

// asks reports whether a terminal answers a sequence.
func asks(s []byte) bool {
	switch s[1] {
	case 'Z':
		return true
	case '[':
		last := s[len(s)-1]
		return last == 'c' || last == 'n' || last == 'x' || last == 't' && !bytes.ContainsRune(s, ';') ||
			last == 'p' && bytes.ContainsRune(s, '$') || last == 'q' && bytes.ContainsRune(s, '>') || last == 'u' && bytes.ContainsRune(s, '?')
	case ']':
		return bytes.ContainsRune(s, '?')
	case 'P':
		return bytes.HasPrefix(s[2:], []byte("$q")) || bytes.HasPrefix(s[2:], []byte("+q"))
	}
	return false
}
