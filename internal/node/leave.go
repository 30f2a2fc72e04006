package node

import (
	"context"
	"fmt"
)

// Leave takes back what is only there to make the next box quick, once Run has returned: prepared networks and
// the mounted pool. While any sandbox is left it does nothing, since that sandbox uses them; the next start finds
// everything either way.
func (d *Daemon) Leave(ctx context.Context) error {
	sandboxes, err := d.runtime.List(ctx)
	if err != nil {
		return fmt.Errorf("list sandboxes: %w", err)
	}
	if len(sandboxes) > 0 {
		return nil
	}
	if nets, ok := d.nets.(interface{ Remove(context.Context) error }); ok {
		if err := nets.Remove(ctx); err != nil {
			return fmt.Errorf("remove prepared networks: %w", err)
		}
	}
	if err := d.pool.Unmount(); err != nil {
		return fmt.Errorf("unmount pool: %w", err)
	}
	return nil
}
