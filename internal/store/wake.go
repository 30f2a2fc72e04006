package store

import (
	"context"

	"carrel.dev/carrel/internal/carrel"
)

// Topics of wake-ups. Every transaction of Store wakes the topics that it concerns by itself, after its commit.
const (
	TopicBoxes  = "boxes"  // a box or a chore became due
	TopicWatch  = "watch"  // a box changed: for watchers and routes
	TopicImages = "images" // an image, a chore or a node's facts changed
)

// TopicNode is woken when the desired set of a node changed.
func TopicNode(id carrel.NodeID) string { return "node:" + string(id) }

// Wake hints to every process that something changed. It never blocks and never fails; repeated calls within moments become one
// notification.
func (s *Store) Wake(topic string) { panic("not yet") }

// Listen subscribes to wake-ups. After Close or the end of ctx C gets nothing any more (it is not closed).
func (s *Store) Listen(ctx context.Context, topics ...string) *Subscription { panic("not yet") }

// Subscription gets wake-ups. C holds one value at most: any number of wake-ups since it was last received
// from. After the connection to PostgreSQL was lost and made again, it gets one.
type Subscription struct {
	C     <-chan struct{}
	close func()
}

// Close ends the subscription. It may be called again.
func (s *Subscription) Close() { s.close() }
