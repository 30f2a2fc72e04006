package node

import (
	"context"
	"errors"
)

// Ready answers nil when the node has joined, so that it is known and can be given boxes. Boxes that run do not
// need it.
func (d *Daemon) Ready(context.Context) error {
	d.link.mu.Lock()
	defer d.link.mu.Unlock()
	if !d.link.node.joined() {
		return errors.New("not joined yet")
	}
	return nil
}
