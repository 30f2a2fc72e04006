package agent

import (
	"context"
	"path/filepath"
	"slices"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	agentv1 "carrel.dev/carrel/api/carrel/agent/v1"
	carrelv1 "carrel.dev/carrel/api/carrel/v1"
)

// maxForeground is how many foreground commands are told.
const maxForeground = 32

// shells are the programs that wait for commands when they are on a terminal.
var shells = []string{"sh", "bash", "dash", "ash", "zsh", "fish", "ksh", "mksh", "tcsh", "csh", "nu", "busybox"}

// describe is show with what is in the foreground of the process's terminal.
func (p *process) describe(now *glance) *carrelv1.Process {
	shown := p.show()
	if shown.GetRunning() {
		if group := p.front(now); group != 0 {
			shown.Foreground = commandLine(group)
		}
	}
	return shown
}

// waits reports whether the program of a process is one that waits for commands or requests: then it is no work by itself.
func (p *process) waits() bool {
	args := p.command.args
	program := filepath.Base(args[0])
	if program == "carrel-agent" { // a server of files at the end of somebody's connection
		return true
	}
	return p.command.pty != nil && slices.Contains(shells, program) && !slices.Contains(args[1:], "-c")
}

// foreground gives the command of a process that counts as work in the foreground, and since when; nil: none does.
func (p *process) foreground(now *glance, at time.Time) *agentv1.ForegroundCommand {
	if !p.shown || !p.show().GetRunning() {
		return nil
	}
	command := &agentv1.ForegroundCommand{Process: p.id}
	group := p.front(now)
	p.mu.Lock()
	if group != p.frontGroup {
		p.frontGroup, p.frontSince = group, at
	}
	since := p.frontSince
	p.mu.Unlock()
	switch {
	case group != 0:
		command.Command, command.StartTime = commandLine(group), timestamppb.New(since)
	case !p.waits():
		command.Command, command.StartTime = joinArgs(p.command.args), timestamppb.New(p.started)
	default:
		return nil
	}
	return command
}

func joinArgs(args []string) string {
	text := ""
	for _, arg := range args {
		if len(text) > maxCommandLine {
			break
		}
		if text != "" {
			text += " "
		}
		text += arg
	}
	return printable(text)
}

// noteForeground remembers that a command was in the foreground just now.
func (a *Agent) noteForeground() {
	a.mu.Lock()
	a.lastForeground = a.now()
	a.mu.Unlock()
}

// Activity looks at every process that was started to be looked at. Commands of a shell are noticed at calls only, other commands also
// at their end.
func (s controlService) Activity(context.Context, *connect.Request[agentv1.ActivityRequest]) (*connect.Response[agentv1.ActivityResponse], error) {
	response := &agentv1.ActivityResponse{}
	now, at := &glance{}, s.a.now()
	for _, p := range s.a.processes.list() {
		command := p.foreground(now, at)
		if command != nil {
			s.a.noteForeground()
			if len(response.GetCommands()) < maxForeground {
				response.Commands = append(response.Commands, command)
			}
		}
		p.mu.Lock()
		if !p.ended {
			response.Viewers += int32(p.viewers)
		}
		p.mu.Unlock()
	}
	for _, command := range s.a.notebooks.foreground() {
		if len(response.GetCommands()) < maxForeground {
			response.Commands = append(response.Commands, command)
		}
	}
	s.a.mu.Lock()
	last := s.a.lastForeground
	s.a.mu.Unlock()
	if !last.IsZero() {
		response.CommandTime = timestamppb.New(last)
	}
	return connect.NewResponse(response), nil
}
