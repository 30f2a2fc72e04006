package agent

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"carrel.dev/carrel/internal/carrel"
)

const (
	// maxModes bounds the encoded modes of a terminal, in bytes: every opcode with its argument fits many times.
	maxModes = 4 << 10
	// maxCommandLine is how much of a command line is shown, in bytes.
	maxCommandLine = 200
)

// flag is one bit of a terminal's settings.
type flag struct {
	field func(*unix.Termios) *uint32
	bit   uint32
}

func inputFlag(bit uint32) flag {
	return flag{func(t *unix.Termios) *uint32 { return &t.Iflag }, bit}
}

func outputFlag(bit uint32) flag {
	return flag{func(t *unix.Termios) *uint32 { return &t.Oflag }, bit}
}

func localFlag(bit uint32) flag {
	return flag{func(t *unix.Termios) *uint32 { return &t.Lflag }, bit}
}

func controlFlag(bit uint32) flag {
	return flag{func(t *unix.Termios) *uint32 { return &t.Cflag }, bit}
}

// The opcodes of RFC 4254, section 8, and 42 of RFC 8160. What Linux does not have is left out.
var (
	modeCharacters = map[byte]int{
		1: unix.VINTR, 2: unix.VQUIT, 3: unix.VERASE, 4: unix.VKILL, 5: unix.VEOF, 6: unix.VEOL, 7: unix.VEOL2, 8: unix.VSTART,
		9: unix.VSTOP, 10: unix.VSUSP, 12: unix.VREPRINT, 13: unix.VWERASE, 14: unix.VLNEXT, 16: unix.VSWTC, 18: unix.VDISCARD,
	}
	modeFlags = map[byte]flag{
		30: inputFlag(unix.IGNPAR), 31: inputFlag(unix.PARMRK), 32: inputFlag(unix.INPCK), 33: inputFlag(unix.ISTRIP),
		34: inputFlag(unix.INLCR), 35: inputFlag(unix.IGNCR), 36: inputFlag(unix.ICRNL), 37: inputFlag(unix.IUCLC),
		38: inputFlag(unix.IXON), 39: inputFlag(unix.IXANY), 40: inputFlag(unix.IXOFF), 41: inputFlag(unix.IMAXBEL), 42: inputFlag(unix.IUTF8),
		50: localFlag(unix.ISIG), 51: localFlag(unix.ICANON), 52: localFlag(unix.XCASE), 53: localFlag(unix.ECHO), 54: localFlag(unix.ECHOE),
		55: localFlag(unix.ECHOK), 56: localFlag(unix.ECHONL), 57: localFlag(unix.NOFLSH), 58: localFlag(unix.TOSTOP),
		59: localFlag(unix.IEXTEN), 60: localFlag(unix.ECHOCTL), 61: localFlag(unix.ECHOKE), 62: localFlag(unix.PENDIN),
		70: outputFlag(unix.OPOST), 71: outputFlag(unix.OLCUC), 72: outputFlag(unix.ONLCR), 73: outputFlag(unix.OCRNL),
		74: outputFlag(unix.ONOCR), 75: outputFlag(unix.ONLRET),
		92: controlFlag(unix.PARENB), 93: controlFlag(unix.PARODD),
	}
)

// applyModes changes settings as modes say, encoded as RFC 4254 has it in section 8: opcodes with an argument of four bytes each,
// to the opcode 0. As the RFC says, what is not known is passed over, and reading stops at an opcode from 160 on, whose
// argument nobody knows; it also stops where the data does.
func applyModes(settings *unix.Termios, modes []byte) {
	for len(modes) >= 5 && modes[0] != 0 && modes[0] < 160 {
		opcode, value := modes[0], binary.BigEndian.Uint32(modes[1:5])
		modes = modes[5:]
		if at, ok := modeCharacters[opcode]; ok {
			character := byte(value)
			if value >= 255 { // none; Linux says 0 for that
				character = 0
			}
			settings.Cc[at] = character
		}
		if f, ok := modeFlags[opcode]; ok {
			field := f.field(settings)
			*field &^= f.bit
			if value != 0 {
				*field |= f.bit
			}
		}
		switch {
		case opcode == 90 && value != 0:
			settings.Cflag = settings.Cflag&^unix.CSIZE | unix.CS7
		case opcode == 91 && value != 0:
			settings.Cflag = settings.Cflag&^unix.CSIZE | unix.CS8
		}
	}
}

// setModes applies encoded modes to the terminal that fd is.
func setModes(fd int, modes []byte) error {
	if len(modes) == 0 {
		return nil
	}
	settings, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return err
	}
	applyModes(settings, modes)
	return unix.IoctlSetTermios(fd, unix.TCSETS, settings)
}

func checkModes(modes []byte) error {
	if len(modes) > maxModes {
		return carrel.Errorf(carrel.CodeInvalid, "bad_terminal_modes", "the modes of the terminal have %d bytes; at most %d are taken", len(modes), maxModes)
	}
	return nil
}

// glance is what /proc shows of all processes, looked at once and only when somebody asks.
type glance struct {
	once sync.Once
	all  []memoryProcess
}

// session gives the processes of a session.
func (g *glance) session(id int) []memoryProcess {
	g.once.Do(func() { g.all, _ = listMemory() })
	var result []memoryProcess
	for _, one := range g.all {
		if one.session == id {
			result = append(result, one)
		}
	}
	return result
}

// front gives the process group in the foreground of a process's terminal when that is not the process itself, else 0.
//
// gVisor tells the foreground group only to processes of that terminal. There it is inferred: a shell that
// reads a command line has taken lines and the quoting character (LNEXT) from the terminal, as readline and its like do; when the
// shell does not and its session has another group, the newest such group is taken for the one in the foreground.
func (p *process) front(now *glance) int {
	if p.command.pty == nil || p.input == nil {
		return 0
	}
	raw, err := p.input.file.SyscallConn()
	if err != nil {
		return 0
	}
	group, known, editing := 0, false, false
	_ = raw.Control(func(fd uintptr) {
		if value, err := unix.IoctlGetInt(int(fd), unix.TIOCGPGRP); err == nil {
			group, known = value, true
			return
		}
		if settings, err := unix.IoctlGetTermios(int(fd), unix.TCGETS); err == nil {
			editing = settings.Lflag&unix.ICANON == 0 && settings.Cc[unix.VLNEXT] == 0
		}
	})
	if known {
		if group == p.pid {
			return 0
		}
		return group
	}
	if editing {
		return 0
	}
	for _, one := range now.session(p.pid) {
		if one.group != p.pid && one.group > group {
			group = one.group
		}
	}
	return group
}

// commandLine is the command of a process, at most maxCommandLine bytes of it; empty when it is gone.
func commandLine(pid int) string {
	dir := filepath.Join(procDir, strconv.Itoa(pid))
	file, err := os.Open(filepath.Join(dir, "cmdline"))
	if err != nil {
		return ""
	}
	defer file.Close()
	buf := make([]byte, maxCommandLine)
	n, _ := file.Read(buf)
	text := string(bytes.ReplaceAll(bytes.TrimRight(buf[:n], "\x00"), []byte{0}, []byte{' '}))
	if text == "" {
		name, _ := os.ReadFile(filepath.Join(dir, "comm"))
		text = string(bytes.TrimSpace(name))
	}
	return printable(text)
}

// printable makes text fit to be shown on one line.
func printable(text string) string {
	text = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(text, "?"))
	if len(text) > maxCommandLine {
		text = strings.ToValidUTF8(text[:maxCommandLine], "")
	}
	return text
}

// hangUp tells every process of a session that its terminal is gone. gVisor does not do so when the terminal is closed.
func (a *Agent) hangUp(p *process) error {
	if err := a.reaper.signal(p.pid, unix.SIGHUP); err != nil {
		return err
	}
	now := &glance{}
	for _, one := range now.session(p.pid) {
		if one.group != p.pid {
			_ = unix.Kill(one.pid, unix.SIGHUP)
		}
		_ = unix.Kill(one.pid, unix.SIGCONT)
	}
	return nil
}

// expire hangs up a process that nobody has looked at for as long as it was to be kept.
func (a *Agent) expire(p *process) {
	a.log.Info("hangs up a process that nobody came back to", "process", p.id, "kept", p.keep.String())
	if err := a.hangUp(p); err == nil && p.command.pty != nil {
		p.input.file.Close()
	}
}

// watched and unwatched are called with p.mu held when the first viewer comes and the last has left.
func (p *process) watched() {
	p.alone = time.Time{}
	if p.hangUp != nil {
		p.hangUp.Stop()
		p.hangUp = nil
	}
}

func (p *process) unwatched(now time.Time) {
	if p.ended {
		return
	}
	p.alone = now
	if p.expire == nil {
		return
	}
	var timer *time.Timer
	timer = time.AfterFunc(p.keep, func() {
		p.mu.Lock()
		due := p.hangUp == timer && !p.ended
		if due {
			p.hangUp = nil
		}
		p.mu.Unlock()
		if due {
			p.expire()
		}
	})
	p.hangUp = timer
}

// resumed begins the time anew that a process waits for those whom a pause of the box took away.
func (p *process) resumed(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.awayOwner() {
		p.owner.away = now
	}
	if p.hangUp != nil && p.hangUp.Stop() {
		p.hangUp = nil
		p.unwatched(now)
	}
}
