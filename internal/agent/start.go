package agent

import (
	"cmp"
	"context"
	"errors"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/carrel"
)

// maxAbandoned bounds the pipes that are emptied for programs in the background; the oldest is closed for one more.
const maxAbandoned = 256

// startProcess starts a command, or gives the one that the same request id started. With own the viewer from
// offset 0 is also given; it is the process's owner if this call started it. The caller leaves it. user is who asks, of the platform.
func (a *Agent) startProcess(ctx context.Context, request *carrelv1.StartProcessRequest, user string, own bool) (*process, *viewer, error) {
	id := request.GetRequestId()
	if len(id) > 128 {
		return nil, nil, carrel.Errorf(carrel.CodeInvalid, "bad_request_id", "the request id has %d bytes; at most 128 are taken", len(id))
	}
	if id == "" {
		return a.startNew(request, user, own)
	}
	entry, first := a.processes.request(id)
	if first {
		p, v, err := a.startNew(request, user, own)
		a.processes.answer(id, entry, p, err)
		return p, v, err
	}
	select {
	case <-entry.ready:
	case <-ctx.Done():
		return nil, nil, ctx.Err()
	}
	if entry.err != nil || !own {
		return entry.process, nil, entry.err
	}
	v, err := entry.process.view([streams]int64{})
	return entry.process, v, err
}

func (a *Agent) startNew(request *carrelv1.StartProcessRequest, user string, own bool) (_ *process, _ *viewer, err error) {
	if err := a.gate.enter(); err != nil {
		return nil, nil, err
	}
	defer a.gate.leave()
	who, err := a.permit(request.GetUser())
	if err != nil {
		return nil, nil, err
	}
	kind, err := kindOf(request)
	if err != nil {
		return nil, nil, err
	}
	id, base := a.current()
	extra := map[string]string{}
	if name := request.GetAuthSocket(); name != "" {
		path, err := a.forwards.path(name)
		if err != nil {
			return nil, nil, err
		}
		extra["SSH_AUTH_SOCK"] = path
	}
	c, err := prepare(request, who, base, id.Env, extra)
	if err != nil {
		return nil, nil, err
	}
	if err := a.processes.admit(); err != nil {
		return nil, nil, err
	}
	p := &process{
		id: newProcessID(), command: c, started: a.now(), budget: &a.budget, now: a.now,
		kind: kind, user: user, shown: own, patience: a.config.awayPatience,
		limits: [streams]int{a.config.StdoutBytes, a.config.StderrBytes},
		evict:  func(need int64) { a.processes.evict(&a.budget, need) },
	}
	if keep := request.GetKeep(); keep != nil {
		p.keep = keep.AsDuration()
		p.expire = func() { a.expire(p) }
	}
	p.closed[stderr] = c.pty != nil
	var v *viewer
	if own {
		v = &viewer{p: p}
		p.viewers = 1
		if c.pty == nil {
			p.owner = v
			for i := range p.limits {
				p.limits[i] *= ownedFactor
			}
		}
	}
	exited := make(chan struct{})
	files, pid, err := c.spawn(a.reaper, func(status unix.WaitStatus) {
		p.reaped(status, a.now())
		close(exited)
	})
	if err != nil {
		a.processes.release()
		return nil, nil, err
	}
	p.pid = pid
	if c.pty != nil {
		p.input = newInput(files.stdout, true)
	} else if files.stdin != nil {
		p.input = newInput(files.stdin, false)
	}
	p.session.files = files
	if !own {
		p.mu.Lock()
		p.unwatched(p.started)
		p.mu.Unlock()
	}
	a.processes.add(p)
	a.wg.Go(func() { a.keep(p, files, exited) })
	return p, v, nil
}

const (
	maxKind = 32
	maxKeep = 30 * 24 * time.Hour
)

// kindOf checks what a process is said to be, and for how long it is to be kept.
func kindOf(request *carrelv1.StartProcessRequest) (string, error) {
	kind := cmp.Or(request.GetKind(), "exec")
	if len(kind) > maxKind || strings.ContainsFunc(kind, func(r rune) bool { return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' }) {
		return "", carrel.Errorf(carrel.CodeInvalid, "bad_kind", "the kind of a process has at most %d of a-z, 0-9 and -", maxKind)
	}
	if keep := request.GetKeep(); keep != nil && (!keep.IsValid() || keep.AsDuration() < 0 || keep.AsDuration() > maxKeep) {
		return "", carrel.Errorf(carrel.CodeInvalid, "bad_keep", "a process is kept from 0 seconds to %d days when nobody looks", int(maxKeep.Hours()/24))
	}
	return kind, nil
}

// permit finds the user that a command is to run as and checks that it may.
func (a *Agent) permit(name string) (account, error) {
	id, _ := a.current()
	if name != "" && name != boxUser && !id.Sudo {
		return account{}, carrel.Errorf(carrel.CodeDenied, "user_not_allowed", "commands in this box run as %s; its template does not allow another user", boxUser)
	}
	who, err := lookupUser(a.config.Root, name)
	if err != nil {
		return account{}, err
	}
	if who.name == boxUser {
		who.home = a.config.Home
	}
	return who, nil
}

// keep goes with a process to its end.
func (a *Agent) keep(p *process, files spawned, exited <-chan struct{}) {
	var pumps sync.WaitGroup // not done with the files, but with what is in them
	outputs := []*os.File{stdout: files.stdout, stderr: files.stderr}
	var open atomic.Int32
	for stream, file := range outputs {
		if file != nil {
			open.Add(1)
			pumps.Add(1)
			a.wg.Go(func() {
				left := p.pump(stream, file)
				if open.Add(-1) == 0 {
					a.reaper.look() // nobody has its output open any more: most likely it has ended
				}
				pumps.Done()
				switch {
				case p.command.pty != nil: // stays open for its input
				case left:
					a.abandon(file)
				default:
					runtime.Gosched() // first who waits for the end hears of it
					file.Close()
				}
			})
		}
	}
	<-exited
	for _, file := range outputs {
		if file != nil && open.Load() > 0 {
			_ = file.SetReadDeadline(time.Now().Add(lingerTime))
		}
	}
	pumps.Wait()
	if files.stdin != nil {
		files.stdin.Close()
	}
	if p.command.pty != nil {
		files.stdout.Close()
	}
	p.finished()
	if p.shown && !p.waits() {
		a.noteForeground()
	}
	a.processes.over(p, a.now())
}

// abandon empties a pipe that programs in the background have open, until they close it.
func (a *Agent) abandon(file *os.File) {
	a.mu.Lock()
	if a.stopping {
		a.mu.Unlock()
		file.Close()
		return
	}
	a.abandoned = append(a.abandoned, file)
	if len(a.abandoned) > maxAbandoned {
		a.abandoned[0].Close()
		a.abandoned = a.abandoned[1:]
	}
	a.mu.Unlock()
	a.wg.Go(func() {
		defer a.forget(file)
		_ = file.SetReadDeadline(time.Time{})
		raw, err := file.SyscallConn()
		for err == nil {
			var readErr error
			err = raw.Read(func(fd uintptr) bool {
				buf := chunks.Get().(*[chunkSize]byte)
				defer chunks.Put(buf)
				_, readErr = readOnce(int(fd), buf[:])
				return !errors.Is(readErr, unix.EAGAIN)
			})
			if err == nil {
				err = readErr
			}
		}
	})
}

func (a *Agent) forget(file *os.File) {
	file.Close()
	a.mu.Lock()
	defer a.mu.Unlock()
	for i, f := range a.abandoned {
		if f == file {
			a.abandoned = append(a.abandoned[:i:i], a.abandoned[i+1:]...)
			return
		}
	}
}
