package gateway

import (
	"context"
	"encoding/binary"
	"io"
	"net/http"
	"strings"
	"sync"
)

// A box's agent may be anybody's program. What it answers is read by message, each whole: those that are large wait for their turn in what the
// gateway has for such messages, which is divided among organisations and users.

// largeMessage is from what size on a message has to wait, in bytes.
const largeMessage = 64 << 10

// meter is a transport whose answers wait for room in memory before they are read.
type meter struct {
	http.RoundTripper
	gateway *Gateway
	conn    *agentConn
	limit   int64 // of one message, in bytes; nothing larger is read
}

// RoundTrip is part of http.RoundTripper.
func (m *meter) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := m.RoundTripper.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	m.conn.mu.Lock()
	who := m.conn.pass.holder()
	m.conn.mu.Unlock()
	body := &meteredBody{ReadCloser: resp.Body, leave: func() {}}
	body.wait = func(n int64) (func(), error) {
		return m.gateway.memory.wait(r.Context(), who, min(n, m.limit)*messageWeight)
	}
	// A stream's messages come each with its length; any other answer is one message.
	body.stream = strings.HasPrefix(resp.Header.Get("Content-Type"), "application/connect+")
	if !body.stream {
		body.size = resp.ContentLength
		if body.size < 0 {
			body.size = m.limit
		}
		body.kept = keptOf(r.Context())
	}
	resp.Body = body
	return resp, nil
}

// meteredBody is an answer of an agent. It is read by one goroutine.
type meteredBody struct {
	io.ReadCloser
	stream bool
	wait   func(n int64) (leave func(), err error)
	leave  func()
	kept   *kept // has what is held until the request has been answered; nil: until Close

	size int64 // of an answer that is one message
	read int64

	head [5]byte // of a message of a stream: flags and length
	have int
	left int64 // bytes of the message that are still to come
	err  error // why no more is read
}

func (b *meteredBody) Read(p []byte) (int, error) {
	if len(p) == 0 || b.err != nil {
		return 0, b.err
	}
	if !b.stream {
		if b.read == largeMessage && b.size > largeMessage {
			leave, err := b.wait(b.size)
			if err != nil {
				b.err = err
				return 0, err
			}
			if b.kept.add(leave) {
				b.leave = func() {}
			} else {
				b.leave = leave
			}
		}
		if b.read < largeMessage {
			p = p[:min(int64(len(p)), largeMessage-b.read)]
		}
		n, err := b.ReadCloser.Read(p)
		b.read += int64(n)
		return n, err
	}
	if b.left > 0 {
		n, err := b.ReadCloser.Read(p[:min(int64(len(p)), b.left)])
		b.left -= int64(n)
		return n, err
	}
	// Whoever asks for the next message is done with the one before.
	b.leave()
	b.leave = func() {}
	n, err := b.ReadCloser.Read(p[:min(len(p), len(b.head)-b.have)])
	copy(b.head[b.have:], p[:n])
	b.have += n
	if b.have < len(b.head) {
		return n, err
	}
	b.have, b.left = 0, int64(binary.BigEndian.Uint32(b.head[1:]))
	if b.left > largeMessage && err == nil {
		if leave, err := b.wait(b.left); err != nil {
			b.err = err // with the head nobody looks at an error
		} else {
			b.leave = leave
		}
	}
	return n, err
}

// Close is part of io.Closer.
func (b *meteredBody) Close() error {
	err := b.ReadCloser.Close()
	b.leave()
	return err
}

// kept is what a request holds until it has been answered.
type kept struct {
	mu     sync.Mutex // guards what follows
	leaves []func()
	over   bool
}

type keptKey struct{}

func keptOf(ctx context.Context) *kept {
	k, _ := ctx.Value(keptKey{}).(*kept)
	return k
}

// keep has what calls of a request hold kept until release.
func keep(r *http.Request) (request *http.Request, release func()) {
	k := &kept{}
	return r.WithContext(context.WithValue(r.Context(), keptKey{}, k)), k.release
}

// add keeps something; false: there is nothing to keep it with.
func (k *kept) add(leave func()) bool {
	if k == nil {
		return false
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.over {
		k.leaves = append(k.leaves, leave)
	}
	return !k.over
}

func (k *kept) release() {
	k.mu.Lock()
	leaves := k.leaves
	k.leaves, k.over = nil, true
	k.mu.Unlock()
	for _, leave := range leaves {
		leave()
	}
}
