package store

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"carrel.dev/carrel/internal/carrel"
)

// Topics of wake-ups. Every transaction of Store wakes the topics that it concerns by itself, after its commit.
const (
	TopicBoxes  = "boxes"  // a box or a chore became due, or a node has more to give
	TopicWatch  = "watch"  // a box changed: for watchers and routes
	TopicImages = "images" // an image, a chore or what nodes hold changed
	TopicAccess = "access" // a user, a membership, a token or an SSH key changed
)

// TopicNode is woken when the desired set of a node changed.
func TopicNode(id carrel.NodeID) string { return "node:" + string(id) }

const (
	channel = "carrel"
	// topicAll stands for every topic, when more are pending than are kept apart.
	topicAll   = "*"
	maxPending = 4096
	// How long the listening connection may be silent before it is tried.
	listenSilence = 30 * time.Second
	wakeTimeout   = 5 * time.Second
)

// Wake hints to every process that something changed. It never blocks and never fails; repeated calls within moments become one
// notification.
func (s *Store) Wake(topic string) { s.wake.notify(topic) }

// Listen subscribes to wake-ups. After Close or the end of ctx C gets nothing any more (it is not closed).
func (s *Store) Listen(ctx context.Context, topics ...string) *Subscription {
	return s.wake.subscribe(ctx, topics)
}

// Subscription gets wake-ups. C holds one value at most: any number of wake-ups since it was last received
// from. After the connection to PostgreSQL was lost and made again, it gets one.
type Subscription struct {
	C     <-chan struct{}
	close func()
}

// Close ends the subscription. It may be called again.
func (s *Subscription) Close() { s.close() }

// waker sends notifications outside of users' transactions, many in one, and receives them over one connection.
type waker struct {
	log     *slog.Logger
	pool    *pgxpool.Pool
	url     string
	stop    context.CancelFunc
	done    sync.WaitGroup
	trigger chan struct{}

	mu      sync.Mutex // guards what follows
	pending map[string]bool
	subs    map[string]map[chan struct{}]bool
	backend uint32 // process id of the listening connection's server process, for tests
	sender  uint32 // and of the one that has notified last; 0: none since listen connected
}

func newWaker(log *slog.Logger, pool *pgxpool.Pool, url string) *waker {
	ctx, stop := context.WithCancel(context.Background())
	w := &waker{
		log: log, pool: pool, url: url, stop: stop, trigger: make(chan struct{}, 1),
		pending: map[string]bool{}, subs: map[string]map[chan struct{}]bool{},
	}
	w.done.Go(func() { w.send(ctx) })
	w.done.Go(func() { w.listen(ctx) })
	return w
}

func (w *waker) close() {
	w.stop()
	w.done.Wait()
}

// notify wakes who listens in this process at once, and the others by way of the server.
func (w *waker) notify(topic string) {
	w.deliver(topic)
	w.mu.Lock()
	if len(w.pending) >= maxPending {
		clear(w.pending)
		topic = topicAll
	}
	w.pending[topic] = true
	w.mu.Unlock()
	poke(w.trigger)
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// send notifies of all that is pending with one statement, again and again. What fails is dropped: the receivers look by
// themselves too.
func (w *waker) send(ctx context.Context) {
	var conn *pgxpool.Conn // kept, so that listen knows what is of this process
	release := func() {
		if conn != nil {
			conn.Release()
			conn = nil
		}
	}
	defer release()
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.trigger:
		}
		w.mu.Lock()
		topics := sortedKeys(w.pending)
		clear(w.pending)
		w.mu.Unlock()
		call, cancel := context.WithTimeout(ctx, wakeTimeout)
		err := w.sendOnce(call, &conn, topics)
		cancel()
		if err != nil {
			release()
			if ctx.Err() == nil {
				w.log.Warn("wake-ups were not sent", "topics", len(topics), "error", err)
			}
		}
	}
}

// sendOnce notifies over conn, or over a new connection if that is none, or has died while nothing was sent.
func (w *waker) sendOnce(ctx context.Context, conn **pgxpool.Conn, topics []string) error {
	for {
		kept := *conn != nil
		if !kept {
			fresh, err := w.pool.Acquire(ctx)
			if err != nil {
				return err
			}
			*conn = fresh
		}
		w.mu.Lock()
		w.sender = (*conn).Conn().PgConn().PID()
		w.mu.Unlock()
		// A notification need not be on disk before it is sent on.
		_, err := (*conn).Exec(ctx, `select set_config('synchronous_commit', 'off', true), pg_notify($1, topic) from unnest($2::text[]) topic`, channel, topics)
		if err == nil || !kept || ctx.Err() != nil || !(*conn).Conn().IsClosed() {
			return err
		}
		(*conn).Release()
		*conn = nil
		w.pool.Reset() // what cut this one has cut others
	}
}

// listen receives notifications, over a new connection whenever one is lost.
func (w *waker) listen(ctx context.Context) {
	wait := 50 * time.Millisecond
	for ctx.Err() == nil {
		connected, err := w.listenOnce(ctx)
		if ctx.Err() != nil {
			return
		}
		if connected {
			wait = 50 * time.Millisecond
		}
		w.log.Warn("the connection for wake-ups is lost", "error", err, "again_in", wait)
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
		}
		wait = min(2*wait, 2*time.Second)
	}
}

func (w *waker) listenOnce(ctx context.Context) (connected bool, err error) {
	cfg, err := pgx.ParseConfig(w.url)
	if err != nil {
		return false, err
	}
	cfg.ConnectTimeout = connectTimeout
	cfg.RuntimeParams["application_name"] = "carrel listen"
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return false, err
	}
	defer func() {
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = conn.Close(closing)
	}()
	if _, err := conn.Exec(ctx, "listen "+channel); err != nil {
		return false, err
	}
	w.mu.Lock()
	w.backend, w.sender = conn.PgConn().PID(), 0 // numbers of another server may be anybody's
	w.mu.Unlock()
	w.deliver(topicAll) // whatever came while nobody listened
	for {
		call, cancel := context.WithTimeout(ctx, listenSilence)
		n, err := conn.WaitForNotification(call)
		silent := call.Err() != nil
		cancel()
		switch {
		case err == nil:
			w.mu.Lock()
			own := n.PID == w.sender
			w.mu.Unlock()
			if !own { // whom it concerns here was woken when it was sent
				w.deliver(n.Payload)
			}
		case ctx.Err() != nil:
			return true, ctx.Err()
		case silent:
			call, cancel := context.WithTimeout(ctx, connectTimeout)
			err := conn.Ping(call)
			cancel()
			if err != nil {
				return true, err
			}
		default:
			return true, err
		}
	}
}

func (w *waker) deliver(topic string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if topic != topicAll {
		for c := range w.subs[topic] {
			poke(c)
		}
		return
	}
	for _, subs := range w.subs {
		for c := range subs {
			poke(c)
		}
	}
}

func (w *waker) subscribe(ctx context.Context, topics []string) *Subscription {
	topics = slices.Clone(topics)
	c := make(chan struct{}, 1)
	w.mu.Lock()
	for _, topic := range topics {
		if w.subs[topic] == nil {
			w.subs[topic] = map[chan struct{}]bool{}
		}
		w.subs[topic][c] = true
	}
	w.mu.Unlock()
	remove := func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		for _, topic := range topics {
			delete(w.subs[topic], c)
			if len(w.subs[topic]) == 0 {
				delete(w.subs, topic)
			}
		}
	}
	stop := context.AfterFunc(ctx, remove)
	return &Subscription{C: c, close: func() { stop(); remove() }}
}
