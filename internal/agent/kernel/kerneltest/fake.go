package kerneltest

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/go-zeromq/zmq4"
	"golang.org/x/sys/unix"

	"carrel.dev/carrel/internal/agent/kernel"
)

// FakeSpec is a kernelspec for Fake. Its name decides over the transport: kernels whose program is ipykernel are connected to by sockets in
// files, others over TCP.
const FakeSpec = `{"argv": ["%s", "{connection_file}"], "display_name": "Fake", "language": "fake", "interrupt_mode": "%s"}`

// Fake plays kernels within the test.
type Fake struct {
	// Execute is called for each request to execute with its code, and answers with messages; nil: it only replies.
	Execute func(k *FakeKernel, request Parts, code string)

	t       testing.TB
	mu      sync.Mutex
	kernels []*FakeKernel
}

// FakeKernel is one process that is none.
type FakeKernel struct {
	fake *Fake
	key  []byte
	done chan struct{}
	end  context.CancelFunc
	ctx  context.Context
	once sync.Once

	Signals chan unix.Signal
	sockets map[string]zmq4.Socket
	sending sync.Mutex
	deaf    chan struct{} // closed: heartbeats are not answered any more
}

// Parts are the parts of a message as they came, with the identity of who sent it.
type Parts struct {
	Identity                          []byte
	Header, Parent, Metadata, Content json.RawMessage
	Buffers                           [][]byte
}

// NewFake makes one.
func NewFake(t testing.TB) *Fake { return &Fake{t: t} }

// Last gives the newest kernel.
func (f *Fake) Last() *FakeKernel {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.kernels[len(f.kernels)-1]
}

// Start is for kernel.Config.
func (f *Fake) Start(_ context.Context, command kernel.Command) (kernel.Process, error) {
	data, err := os.ReadFile(command.Args[1])
	if err != nil {
		return nil, err
	}
	var file struct {
		Shell, IOPub, Stdin, Control, Heartbeat int
		IP, Key, Transport                      string
	}
	var fields map[string]any
	if err := json.Unmarshal(data, &fields); err != nil {
		return nil, err
	}
	port := func(name string) int { n, _ := fields[name+"_port"].(float64); return int(n) }
	file.IP, _ = fields["ip"].(string)
	file.Key, _ = fields["key"].(string)
	file.Transport, _ = fields["transport"].(string)
	k := &FakeKernel{fake: f, key: []byte(file.Key), done: make(chan struct{}), Signals: make(chan unix.Signal, 16), sockets: map[string]zmq4.Socket{}, deaf: make(chan struct{})}
	k.ctx, k.end = context.WithCancel(context.Background())
	for name, make := range map[string]func(context.Context, ...zmq4.Option) zmq4.Socket{
		"shell": zmq4.NewRouter, "control": zmq4.NewRouter, "stdin": zmq4.NewRouter, "iopub": zmq4.NewPub, "hb": zmq4.NewRouter,
	} {
		socket := make(k.ctx)
		address := fmt.Sprintf("tcp://%s:%d", file.IP, port(name))
		if file.Transport == "ipc" {
			address = fmt.Sprintf("ipc://%s-%d", file.IP, port(name))
		}
		if err := socket.Listen(address); err != nil {
			return nil, fmt.Errorf("listen on %s: %w", address, err)
		}
		if path, is := strings.CutPrefix(address, "ipc://"); is { // it is made by the test, not by the kernels' user
			if err := os.Chmod(path, 0o777); err != nil {
				return nil, err
			}
		}
		k.sockets[name] = socket
	}
	for _, name := range []string{"shell", "control", "hb"} {
		go k.serve(name)
	}
	f.mu.Lock()
	f.kernels = append(f.kernels, k)
	f.mu.Unlock()
	f.t.Cleanup(k.Die)
	return k, nil
}

func (k *FakeKernel) serve(name string) {
	for {
		message, err := k.sockets[name].Recv()
		if err != nil {
			return
		}
		if name == "hb" {
			select {
			case <-k.deaf:
			default:
				_ = k.sockets[name].SendMulti(message)
			}
			continue
		}
		request, kind, err := k.parse(message.Frames)
		if err != nil {
			continue
		}
		switch kind {
		case "kernel_info_request":
			k.Publish("status", request, `{"execution_state": "busy"}`)
			k.Reply(name, "kernel_info_reply", request, `{"status": "ok", "protocol_version": "5.3"}`)
			k.Publish("status", request, `{"execution_state": "idle"}`)
		case "shutdown_request":
			k.Reply(name, "shutdown_reply", request, `{"status": "ok", "restart": false}`)
			go k.Die()
		case "interrupt_request":
			k.Signals <- unix.SIGINT
			k.Reply(name, "interrupt_reply", request, `{"status": "ok"}`)
		case "execute_request":
			var content struct {
				Code string `json:"code"`
			}
			_ = json.Unmarshal(request.Content, &content)
			go k.execute(request, content.Code)
		default:
			k.Reply(name, strings.Replace(kind, "_request", "_reply", 1), request, `{"status": "ok"}`)
		}
	}
}

func (k *FakeKernel) execute(request Parts, code string) {
	k.Publish("status", request, `{"execution_state": "busy"}`)
	k.Publish("execute_input", request, `{"code": "", "execution_count": 1}`)
	if k.fake.Execute != nil {
		k.fake.Execute(k, request, code)
	}
	k.Reply("shell", "execute_reply", request, `{"status": "ok", "execution_count": 1}`)
	k.Publish("status", request, `{"execution_state": "idle"}`)
}

func (k *FakeKernel) parse(frames [][]byte) (Parts, string, error) {
	for i, frame := range frames {
		if string(frame) == "<IDS|MSG>" && len(frames) >= i+6 {
			p := Parts{Header: frames[i+2], Parent: frames[i+3], Metadata: frames[i+4], Content: frames[i+5], Buffers: frames[i+6:]}
			if i > 0 {
				p.Identity = frames[0]
			}
			if string(frames[i+1]) != k.sign(p) {
				return Parts{}, "", errors.New("a wrong signature")
			}
			var header struct {
				Type string `json:"msg_type"`
			}
			return p, header.Type, errors.Join(json.Unmarshal(p.Header, &header))
		}
	}
	return Parts{}, "", errors.New("no message")
}

func (k *FakeKernel) sign(p Parts) string {
	mac := hmac.New(sha256.New, k.key)
	for _, part := range [][]byte{p.Header, p.Parent, p.Metadata, p.Content} {
		mac.Write(part)
	}
	return hex.EncodeToString(mac.Sum(nil))
}

// Publish sends on iopub.
func (k *FakeKernel) Publish(kind string, request Parts, content string, buffers ...[]byte) {
	k.send("iopub", kind, request, content, buffers...)
}

// Reply sends on another channel to who made the request.
func (k *FakeKernel) Reply(channel, kind string, request Parts, content string, buffers ...[]byte) {
	k.send(channel, kind, request, content, buffers...)
}

func (k *FakeKernel) send(channel, kind string, request Parts, content string, buffers ...[]byte) {
	header, _ := json.Marshal(map[string]string{"msg_id": kernel.NewID(), "msg_type": kind, "session": "fake", "username": "fake", "version": "5.3", "date": ""})
	p := Parts{Header: header, Parent: request.Header, Metadata: []byte("{}"), Content: []byte(content)}
	k.SendRaw(channel, request.Identity, k.sign(p), p, buffers...)
}

// SendRaw sends parts with any signature.
func (k *FakeKernel) SendRaw(channel string, identity []byte, signature string, p Parts, buffers ...[]byte) {
	frames := [][]byte{[]byte("<IDS|MSG>"), []byte(signature), p.Header, p.Parent, p.Metadata, p.Content}
	if channel == "iopub" {
		frames = append([][]byte{[]byte("topic")}, frames...)
	} else {
		frames = append([][]byte{identity}, frames...)
	}
	k.sending.Lock()
	defer k.sending.Unlock()
	if err := k.sockets[channel].SendMulti(zmq4.NewMsgFrom(append(frames, buffers...)...)); err != nil && k.ctx.Err() == nil {
		k.fake.t.Errorf("send on %s: %v", channel, err)
	}
}

// Deafen has heartbeats not answered any more.
func (k *FakeKernel) Deafen() { close(k.deaf) }

// Die ends the kernel.
func (k *FakeKernel) Die() {
	k.once.Do(func() {
		k.end()
		for _, socket := range k.sockets {
			_ = socket.Close()
		}
		close(k.done)
	})
}

func (k *FakeKernel) Pid() int { return 4711 }

// Signal notes a signal; KILL and TERM end the kernel.
func (k *FakeKernel) Signal(number unix.Signal) error {
	if number == unix.SIGKILL || number == unix.SIGTERM {
		k.Die()
		return nil
	}
	k.Signals <- number
	return nil
}

func (k *FakeKernel) Done() <-chan struct{} { return k.done }
func (k *FakeKernel) Ended() string         { return "exit code 3" }
func (k *FakeKernel) Output() string        { return "first line\nlast \x1b[31mline\n" }
