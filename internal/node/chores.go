package node

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"

	linkv1 "carrel.dev/carrel/api/carrel/link/v1"
	"carrel.dev/carrel/internal/carrel"
)

// chores makes images, one at a time: a build takes a whole core. A chore that was begun and not told is begun again
// after a restart; whoever makes images finds what is there already. It also removes the images that control names, between chores: never one
// that is being made anew.
type chores struct {
	d    *Daemon
	wake chan struct{}

	mu    sync.Mutex // guards what follows
	queue []*linkv1.Chore
	known map[string]*linkv1.ChoreReport // nil: not done yet
	drops map[string]bool                // digests of images to be removed, as the newest desired set names them
}

func newChores(d *Daemon) *chores {
	return &chores{d: d, wake: make(chan struct{}, 1), known: map[string]*linkv1.ChoreReport{}}
}

// apply takes the chores of a desired set, and the images to be removed. A chore that is done and still named was not heard of: its report is
// sent again.
func (c *chores) apply(list []*linkv1.Chore, drops []string) {
	var again []*linkv1.ChoreReport
	c.mu.Lock()
	c.drops = make(map[string]bool, len(drops))
	for _, digest := range drops {
		c.drops[digest] = true
	}
	for _, chore := range list {
		report, known := c.known[chore.GetId()]
		switch {
		case carrel.IDKind(chore.GetId()) != 'c':
			c.d.log.Error("a chore without an id is refused", "chore", chore.GetId())
		case !known:
			c.known[chore.GetId()] = nil
			c.queue = append(c.queue, chore)
		case report != nil:
			again = append(again, report)
		}
	}
	c.mu.Unlock()
	for _, report := range again {
		c.d.reporter.chore(report)
	}
	c.poke()
}

// poke has it look for something to do.
func (c *chores) poke() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// dropImages removes the images that control names. What something on this node still needs, or what cannot be removed, is tried again with
// the next heartbeat; after a crash, control names again what is still here.
func (c *chores) dropImages() {
	if !c.d.link.isFresh() {
		return // what was wanted before this process began may be wanted no more
	}
	c.mu.Lock()
	digests := slices.Sorted(maps.Keys(c.drops))
	c.mu.Unlock()
	removed := false
	for _, digest := range digests {
		if user := c.d.manager.whoNeeds(digest); user != "" {
			c.d.log.Debug("an image that is to be removed is still needed and is kept for now", "image", digest, "user", user)
			continue
		}
		if !c.drop(digest) {
			continue
		}
		c.d.log.Info("an image was removed", "image", digest)
		removed = true
	}
	if removed {
		c.d.reporter.beat()
	}
}

// drop removes one image if it still is to be removed.
func (c *chores) drop(digest string) bool {
	c.mu.Lock()
	wanted := c.drops[digest]
	c.mu.Unlock()
	if !wanted {
		return false
	}
	if err := c.d.pool.RemoveImage(digest); err != nil {
		c.d.log.Error("an image could not be removed; it is tried again", "image", digest, "error", err)
		return false
	}
	c.mu.Lock()
	delete(c.drops, digest)
	c.mu.Unlock()
	return true
}

func (c *chores) run(ctx context.Context) error {
	for {
		c.dropImages()
		c.mu.Lock()
		var next *linkv1.Chore
		if len(c.queue) > 0 {
			next, c.queue = c.queue[0], c.queue[1:]
		}
		c.mu.Unlock()
		if next == nil {
			select {
			case <-c.wake:
				continue
			case <-ctx.Done():
				return nil
			}
		}
		report := c.do(ctx, next)
		select {
		case <-ctx.Done():
			return nil // the next process begins again
		default:
		}
		c.mu.Lock()
		c.known[next.GetId()] = report
		c.mu.Unlock()
		c.d.reporter.chore(report)
	}
}

func (c *chores) do(ctx context.Context, chore *linkv1.Chore) *linkv1.ChoreReport {
	id := chore.GetId()
	progress := func(text string) {
		c.d.reporter.chore(&linkv1.ChoreReport{ChoreId: id, Progress: clip(text)})
	}
	digest, size, err := c.make(ctx, chore, progress)
	if err == nil {
		if _, ok := c.d.pool.ImagePath(digest); !ok {
			err = errors.New("the image is not where it should be")
		}
	}
	if err == nil {
		return &linkv1.ChoreReport{ChoreId: id, Done: true, Digest: digest, SizeBytes: size, Progress: "done"}
	}
	c.d.log.Error("a chore failed", "chore", id, "kind", chore.GetKind(), "error", err)
	report := &linkv1.ChoreReport{ChoreId: id, Done: true, ErrorReason: "image_failed", ErrorMessage: "The node could not make the image: " + cause(err) + "."}
	var known *carrel.Error
	if errors.As(err, &known) {
		report.ErrorReason, report.ErrorMessage = known.Reason, known.Message
	}
	return report
}

func (c *chores) make(ctx context.Context, chore *linkv1.Chore, progress func(string)) (string, int64, error) {
	if c.d.cfg.Images == nil {
		return "", 0, carrel.Errorf(carrel.CodePrecondition, "images_unsupported", "this node makes no images")
	}
	if err := c.d.pool.Admit(); err != nil {
		return "", 0, err
	}
	switch chore.GetKind() {
	case "image_build":
		return c.d.cfg.Images.Build(ctx, chore.GetDefinition(), progress)
	case "image_import":
		return c.d.cfg.Images.Import(ctx, ImportSource{
			Reference: chore.GetReference(), Platform: chore.GetPlatform(), Insecure: chore.GetInsecure(), Trusted: chore.GetTrusted(),
		}, progress)
	}
	return "", 0, carrel.Errorf(carrel.CodeInvalid, "unknown_chore", "this node does not know chores of the kind %q; it may be older than control", chore.GetKind())
}
