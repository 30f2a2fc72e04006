package kernel

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"carrel.dev/carrel/internal/carrel"
)

const (
	// redial is the time between attempts to connect to a kernel that is not ready.
	redial = 15 * time.Millisecond
	// nudge is the time after which a kernel is asked again what it is, and twice that then.
	nudge = 300 * time.Millisecond
	// drainTime is how long what a dead kernel has sent is read.
	drainTime = 2 * time.Second
	// maxWaiting is how many messages may wait until a kernel takes them.
	maxWaiting = 1024
)

// run is one process of a kernel.
type run struct {
	process Process
	dir     string
	file    connectionFile
	over    chan struct{} // closed when nothing of the run is left
	readers sync.WaitGroup

	// Guarded by Kernel.mu.
	keys      [][]byte // that messages may be signed with; the first signs ours
	links     map[Channel]*link
	connected bool
	expected  bool // its end was asked for
}

// link is a connection to one of the sockets of a kernel.
type link struct {
	channel Channel
	socket  *socket
	out     chan [][]byte
}

// connectionFile is what a kernel is told where to listen, as Jupyter defines it.
type connectionFile struct {
	Shell     int    `json:"shell_port"`
	IOPub     int    `json:"iopub_port"`
	Stdin     int    `json:"stdin_port"`
	Control   int    `json:"control_port"`
	Heartbeat int    `json:"hb_port"`
	IP        string `json:"ip"`
	Key       string `json:"key"`
	Transport string `json:"transport"`
	Scheme    string `json:"signature_scheme"`
	Kernel    string `json:"kernel_name"`
}

// address gives network and address of a port.
func (c connectionFile) address(port int) (network, address string) {
	if c.Transport == "ipc" {
		return "unix", c.IP + "-" + strconv.Itoa(port)
	}
	return "tcp", net.JoinHostPort(c.IP, strconv.Itoa(port))
}

// begin starts a process for the kernel. k.life is held.
func (k *Kernel) begin(ctx context.Context) error {
	spec := k.Spec()
	k.mu.Lock()
	options := k.options
	k.mu.Unlock()
	runtimeDir, err := k.m.config.RuntimeDir()
	if err != nil {
		return fmt.Errorf("make the runtime directory of kernels: %w", err)
	}
	dir := filepath.Join(runtimeDir, rand.Text()[:12])
	file := connectionFile{IP: "127.0.0.1", Key: NewID(), Transport: "tcp", Scheme: "hmac-sha256", Kernel: spec.Name, Shell: 1, IOPub: 2, Stdin: 3, Control: 4, Heartbeat: 5}
	if spec.overFiles() {
		file.Transport, file.IP = "ipc", filepath.Join(dir, "k")
	} else if err := file.takePorts(); err != nil {
		return err
	}
	path := filepath.Join(dir, "connection.json")
	if err := k.m.config.AsUser(func() error {
		if err := os.Mkdir(dir, 0o700); err != nil {
			return err
		}
		return file.write(path)
	}); err != nil {
		return fmt.Errorf("write the connection file of a kernel: %w", err)
	}
	extra := map[string]string{"JPY_SESSION_NAME": options.Path}
	for name, value := range options.Env {
		extra[name] = value
	}
	args, env := spec.command(path, k.m.config.Env(), extra)
	process, err := k.m.config.Start(ctx, Command{Args: args, Env: env, Cwd: options.Cwd})
	if err != nil {
		k.m.removeDir(dir)
		return err
	}
	r := &run{process: process, dir: dir, file: file, over: make(chan struct{}), keys: [][]byte{[]byte(file.Key)}, links: map[Channel]*link{}}
	k.mu.Lock()
	k.run, k.started, k.silent = r, time.Now(), false
	k.runs++
	k.mu.Unlock()
	k.m.wg.Go(func() { k.live(r) })
	return nil
}

// takePorts finds free ports. Another program may take one before the kernel does: then it dies at its start.
func (c *connectionFile) takePorts() error {
	for _, port := range []*int{&c.Shell, &c.IOPub, &c.Stdin, &c.Control, &c.Heartbeat} {
		listener, err := new(net.ListenConfig).Listen(context.Background(), "tcp", c.IP+":0")
		if err != nil {
			return fmt.Errorf("find a port for a kernel: %w", err)
		}
		defer listener.Close() // all are taken until the last is found
		*port = listener.Addr().(*net.TCPAddr).Port
	}
	return nil
}

func (c connectionFile) write(path string) error {
	data, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return err
	}
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = file.Write(data)
	return errors.Join(err, file.Close())
}

func (m *Manager) removeDir(dir string) {
	if err := m.config.AsUser(func() error { return os.RemoveAll(dir) }); err != nil {
		m.log.Warn("the runtime directory of a kernel could not be removed", "error", err)
	}
}

// live goes with a process from its start to its end.
func (k *Kernel) live(r *run) {
	defer close(r.over)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var parts sync.WaitGroup
	stop := make(chan struct{})
	parts.Go(func() {
		select {
		case <-r.process.Done():
		case <-stop:
		}
		cancel()
	})
	err := k.meet(ctx, r, &parts)
	if err == nil {
		k.change(func() {
			if !r.expected {
				k.phase, k.message = Idle, ""
			}
		})
		<-r.process.Done()
	} else if ctx.Err() == nil { // it runs and is no kernel, or not in time
		k.m.log.Warn("a kernel did not begin to answer", "kernel", k.id, "error", err)
		k.kill(r)
		<-r.process.Done()
	} else {
		err = nil // the process says more
	}
	close(stop)
	drained := make(chan struct{})
	k.m.wg.Go(func() {
		r.readers.Wait()
		close(drained)
	})
	wait(context.Background(), drained, drainTime)
	k.mu.Lock()
	links := r.links
	r.links, r.connected = nil, false
	k.mu.Unlock()
	for _, l := range links {
		l.socket.conn.Close()
	}
	<-drained
	parts.Wait()
	k.m.removeDir(r.dir)
	k.change(func() {
		if !r.expected {
			k.phase, k.message = Dead, epitaph(r, err)
		}
	})
}

// epitaph says why a kernel died.
func epitaph(r *run, err error) string {
	text := "its process ended: " + r.process.Ended()
	if err != nil {
		text = "it was ended because it did not begin to answer: " + err.Error()
	}
	lines := strings.Split(strings.TrimSpace(r.process.Output()), "\n")
	if last := strings.TrimSpace(lines[len(lines)-1]); last != "" {
		text += "; the last that it wrote: " + printable(last)
	}
	return text
}

// printable takes out of a kernel's text what could do something to a terminal or to the direction of text, and bounds it.
func printable(text string) string {
	text = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || (r >= 0x80 && r < 0xa0) || (r >= 0x202a && r <= 0x202e) || (r >= 0x2066 && r <= 0x2069) || r == 0x200e || r == 0x200f {
			return ' '
		}
		return r
	}, text)
	if len(text) > 300 {
		text = strings.ToValidUTF8(text[:300], "") + "…"
	}
	return text
}

func (k *Kernel) kill(r *run) {
	_ = r.process.Signal(9)
}

// meet connects to all sockets, and asks the kernel what it is until it has answered on shell and iopub: only then nothing that it
// says is missed.
func (k *Kernel) meet(ctx context.Context, r *run, parts *sync.WaitGroup) error {
	ctx, cancel := context.WithTimeout(ctx, k.m.config.StartTimeout)
	defer cancel()
	for _, one := range []struct {
		channel Channel
		kind    string
		port    int
	}{{Shell, "DEALER", r.file.Shell}, {Stdin, "DEALER", r.file.Stdin}, {Control, "DEALER", r.file.Control}, {IOPub, "SUB", r.file.IOPub}} {
		s, err := k.dial(ctx, r, one.port, one.kind)
		if err != nil {
			return err
		}
		l := &link{channel: one.channel, socket: s, out: make(chan [][]byte, maxWaiting)}
		k.mu.Lock()
		r.links[one.channel] = l
		k.mu.Unlock()
		if one.channel == IOPub {
			if err := s.send([][]byte{{1}}); err != nil { // subscribe to everything
				return err
			}
		} else {
			parts.Go(func() { k.write(r, l) })
		}
		r.readers.Go(func() { k.read(r, l) })
	}
	heart, err := k.dial(ctx, r, r.file.Heartbeat, "REQ")
	if err != nil {
		return err
	}
	probe, err := k.Connect(ClientConfig{Session: k.session})
	if err != nil {
		heart.conn.Close()
		return err
	}
	defer probe.Close()
	k.mu.Lock()
	r.connected = true
	k.mu.Unlock()
	if err := k.introduce(ctx, probe); err != nil {
		heart.conn.Close()
		return err
	}
	parts.Go(func() { k.beat(r, heart) })
	return nil
}

// introduce asks until the kernel has answered on both channels, and has nothing more to say to it: whoever connects next gets
// the rest of no answer.
func (k *Kernel) introduce(ctx context.Context, probe *Client) error {
	for patience := nudge; ; patience *= 2 {
		message, err := NewMessage("kernel_info_request", k.session, map[string]any{})
		if err != nil {
			return err
		}
		if err := probe.Send(Shell, message); err != nil {
			return err
		}
		soon, cancel := context.WithTimeout(ctx, patience)
		replied, heard := false, false
		for !replied || !heard {
			got, err := probe.Receive(soon)
			if err != nil {
				break
			}
			if got.Channel == State || got.Message.ParentHead().ID != message.Head().ID {
				continue // of what was asked before
			}
			replied = replied || got.Channel == Shell
			heard = heard || got.Channel == IOPub && got.Message.Head().Type == "status" && statusOf(got.Message) == "idle"
		}
		cancel()
		if replied && heard {
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("wait for the kernel's first answer: %w", ctx.Err())
		}
	}
}

func (k *Kernel) dial(ctx context.Context, r *run, port int, kind string) (*socket, error) {
	network, address := r.file.address(port)
	for {
		var conn net.Conn
		err := k.m.config.AsUser(func() (err error) {
			conn, err = new(net.Dialer).DialContext(ctx, network, address)
			return err
		})
		if err == nil {
			return handshake(conn, kind, k.session)
		}
		timer := time.NewTimer(redial)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil, fmt.Errorf("connect to a kernel: %w", errors.Join(ctx.Err(), err))
		}
	}
}

// write gives the kernel what waits for it.
func (k *Kernel) write(r *run, l *link) {
	for {
		select {
		case frames := <-l.out:
			if err := l.socket.send(frames); err != nil {
				l.socket.conn.Close()
				return
			}
		case <-r.process.Done():
			return
		}
	}
}

// send is Client.Send.
func (k *Kernel) send(c *Client, channel Channel, message Message) error {
	id := message.Head().ID
	if id == "" {
		return carrel.Errorf(carrel.CodeInvalid, "bad_message", "the message has no header with a msg_id")
	}
	k.mu.Lock()
	r := k.run
	if k.phase == Gone || r == nil || !r.connected {
		phase := k.phase
		k.mu.Unlock()
		e := carrel.Errorf(carrel.CodeUnavailable, "kernel_not_ready", "the kernel is %s and takes no messages now", phase)
		e.RetryAfter = time.Second
		return e
	}
	if channel == Shell || channel == Control {
		k.routes.add(id, route{client: c, channel: channel})
	}
	k.mu.Unlock()
	return k.sendTo(r, channel, message)
}

func (k *Kernel) sendTo(r *run, channel Channel, message Message) error {
	k.mu.Lock()
	l := r.links[channel]
	key := r.keys[0]
	k.mu.Unlock()
	if l == nil || channel == IOPub {
		return carrel.Errorf(carrel.CodeInvalid, "bad_channel", "messages are sent on shell, control or stdin, not on %q", printable(string(channel)))
	}
	select {
	case l.out <- encode(key, message):
		return nil
	default:
		return carrel.Errorf(carrel.CodeExhausted, "kernel_takes_nothing", "%d messages wait for the kernel, which takes none; interrupt or restart it", maxWaiting)
	}
}

// read takes what comes on a link to its end, and gives it to whom it is for.
func (k *Kernel) read(r *run, l *link) {
	bad := 0
	for {
		frames, size, err := l.socket.receive(k.m.config.MaxMessage)
		if err != nil {
			if !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) && !errors.Is(err, os.ErrDeadlineExceeded) {
				k.m.log.Debug("a connection to a kernel ended", "kernel", k.id, "channel", string(l.channel), "error", err)
			}
			return
		}
		if frames == nil {
			k.m.log.Warn("a message of a kernel was passed over because it is too large", "kernel", k.id, "channel", string(l.channel), "bytes", size)
			continue
		}
		k.mu.Lock()
		keys := r.keys
		k.mu.Unlock()
		message, err := decode(keys, frames)
		if err != nil {
			if bad++; bad == 1 {
				k.m.log.Warn("a message of a kernel was not understood; more of them are not logged", "kernel", k.id, "channel", string(l.channel), "error", err)
			}
			continue
		}
		k.deliver(l.channel, &message)
	}
}

func (k *Kernel) deliver(channel Channel, message *Message) {
	parent := message.ParentHead().ID
	var to []*Client
	k.mu.Lock()
	k.activity = time.Now()
	asked, known := k.routes.byID[parent]
	switch {
	case channel == IOPub:
		for c := range k.clients {
			to = append(to, c)
		}
	case known:
		to = []*Client{asked.client}
		if channel != Stdin {
			k.routes.replied(parent)
		}
	}
	k.mu.Unlock()
	if channel == IOPub && message.Head().Type == "status" && asked.channel != Control && !asksOnly[message.ParentHead().Type] {
		if phase := phaseOf(statusOf(message)); phase != "" {
			k.change(func() {
				if k.phase == Idle || k.phase == Busy {
					k.phase = phase
				}
			})
		}
	}
	for _, c := range to {
		c.put(Received{Channel: channel, Message: message})
	}
}

// asksOnly has the requests that execute nothing and that people make while they write: a kernel that answers one is not called busy.
var asksOnly = map[string]bool{"complete_request": true, "inspect_request": true}

func statusOf(message *Message) string {
	var content struct {
		State string `json:"execution_state"`
	}
	_ = json.Unmarshal(message.Content, &content)
	return content.State
}

func phaseOf(status string) Phase {
	switch status {
	case "busy":
		return Busy
	case "idle":
		return Idle
	}
	return ""
}

// beat sends heartbeats and notices when the kernel misses them. What counts is beats, not time, so that a box that was paused is not
// taken for a kernel that hangs.
func (k *Kernel) beat(r *run, heart *socket) {
	defer heart.conn.Close()
	answers := make(chan struct{}, 1)
	var reading sync.WaitGroup
	defer reading.Wait()
	defer heart.conn.Close()
	reading.Go(func() {
		for {
			if _, _, err := heart.receive(1 << 20); err != nil {
				return
			}
			signal(answers)
		}
	})
	tick := time.NewTicker(k.m.config.Heartbeat)
	defer tick.Stop()
	missed, waiting := 0, false
	for {
		select {
		case <-tick.C:
			if waiting {
				if missed++; missed >= 3 {
					k.change(func() { k.silent = true })
				}
				continue
			}
			_ = heart.conn.SetWriteDeadline(time.Now().Add(k.m.config.Heartbeat))
			if err := heart.send([][]byte{nil, []byte("beat")}); err != nil {
				return
			}
			waiting = true
		case <-answers:
			missed, waiting = 0, false
			k.change(func() { k.silent = false })
		case <-r.process.Done():
			return
		}
	}
}
