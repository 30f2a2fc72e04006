package kernel

import (
	"context"
	"slices"
	"sync"

	"carrel.dev/carrel/internal/carrel"
)

const (
	// defaultQueue is how much may wait for a client, in bytes.
	defaultQueue = 32 << 20
	// maxRoutes is how many requests are remembered; the oldest is forgotten for one more. keptRoutes of them may have a reply.
	maxRoutes  = 8192
	keptRoutes = 256
)

// Received is one message for a client, or on the channel State how the kernel is from now on.
type Received struct {
	Channel Channel
	Message *Message
	Info    Info
}

// ClientConfig says who uses a kernel.
type ClientConfig struct {
	// Session is the client's name in the messages that the platform makes for it; messages of its own have their own.
	Session string
	// QueueBytes is how much may wait for the client; 0: 32 MiB. A client that is behind by more is cut off.
	QueueBytes int64
	// Patient has the kernel wait for the client instead. For clients of which it is known that they take what comes.
	Patient bool
}

// Client is one that uses a kernel. Send and Close may be called by several at once, Receive by one.
type Client struct {
	k      *Kernel
	config ClientConfig

	mu     sync.Mutex // guards what follows
	queue  []Received
	size   int64
	err    error
	filled chan struct{} // has one when something was put into an empty queue
	room   chan struct{} // has one when something was taken
	closed chan struct{}
}

func newClient(k *Kernel, config ClientConfig) *Client {
	if config.QueueBytes <= 0 {
		config.QueueBytes = defaultQueue
	}
	return &Client{k: k, config: config, filled: make(chan struct{}, 1), room: make(chan struct{}, 1), closed: make(chan struct{})}
}

var errSlow = carrel.Errorf(carrel.CodeExhausted, "client_too_slow", "more of the kernel's messages wait for this client than are kept; connect again")

// Send gives the kernel a request, or on Stdin an answer. It does not wait for the kernel; while that is not connected it is an error with the
// reason "kernel_not_ready".
func (c *Client) Send(channel Channel, message Message) error { return c.k.send(c, channel, message) }

// Receive waits for what comes next. After an error nothing comes any more: the client was too slow or closed, or the kernel shut down.
func (c *Client) Receive(ctx context.Context) (Received, error) {
	for {
		c.mu.Lock()
		if len(c.queue) > 0 {
			next := c.queue[0]
			c.queue[0] = Received{}
			c.queue = c.queue[1:]
			if len(c.queue) == 0 {
				c.queue = nil
			}
			if next.Message != nil {
				c.size -= next.Message.Size()
			}
			c.mu.Unlock()
			signal(c.room)
			return next, nil
		}
		err := c.err
		c.mu.Unlock()
		if err != nil {
			return Received{}, err
		}
		select {
		case <-c.filled:
		case <-c.closed:
		case <-ctx.Done():
			return Received{}, ctx.Err()
		}
	}
}

// Close ends the client. What waited for it is still received.
func (c *Client) Close() {
	c.cut(carrel.Errorf(carrel.CodePrecondition, "client_closed", "the connection to the kernel was closed"))
}

func (c *Client) cut(err error) {
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return
	}
	c.err = err
	close(c.closed)
	c.mu.Unlock()
	c.k.leave(c)
}

// put gives the client a message. Only a patient client is waited for.
func (c *Client) put(next Received) {
	size := int64(0)
	if next.Message != nil {
		size = next.Message.Size()
	}
	for {
		c.mu.Lock()
		if c.err != nil {
			c.mu.Unlock()
			return
		}
		if len(c.queue) == 0 || size == 0 || c.size+size <= c.config.QueueBytes {
			c.queue = append(c.queue, next)
			c.size += size
			c.mu.Unlock()
			signal(c.filled)
			return
		}
		c.mu.Unlock()
		if !c.config.Patient {
			c.cut(errSlow)
			return
		}
		select {
		case <-c.room:
		case <-c.closed:
			return
		}
	}
}

func signal(to chan struct{}) {
	select {
	case to <- struct{}{}:
	default:
	}
}

// routes remember who made a request.
type routes struct {
	byID     map[string]route
	order    []string // oldest first
	answered []string // of those with a reply, oldest first: what else answers them may come behind it, on another channel
}

type route struct {
	client  *Client
	channel Channel
}

func (r *routes) add(id string, to route) {
	if r.byID == nil {
		r.byID = map[string]route{}
	}
	if _, again := r.byID[id]; !again {
		r.order = append(r.order, id)
	}
	r.byID[id] = to
	for len(r.byID) > maxRoutes {
		delete(r.byID, r.order[0])
		r.order = r.order[1:]
	}
	if len(r.order) > 2*maxRoutes { // most of it was answered
		r.order = slices.DeleteFunc(r.order, func(id string) bool { _, ok := r.byID[id]; return !ok })
	}
}

// replied notes that a request has its reply.
func (r *routes) replied(id string) {
	r.answered = append(r.answered, id)
	if len(r.answered) > keptRoutes {
		delete(r.byID, r.answered[0])
		r.answered = r.answered[1:]
	}
}

func (r *routes) drop(c *Client) {
	for id, to := range r.byID {
		if to.client == c {
			delete(r.byID, id)
		}
	}
}
