package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/store/db"
)

// DeleteImage is a request to delete images.
type DeleteImage struct {
	Request Request
	Org     carrel.OrgID // that the images belong to
	Ref     string       // name (every image that has it), digest or id
}

// DeleteImage deletes all images that Ref means, or none.
//
// An organisation has an image while a ready one of its digest belongs to it or to the system organisation. It needs the image for the newest
// version of each of its templates, and for each of its boxes that is not deleted and not about to be, whatever their state: every start
// begins with it. (Older versions of templates need nothing: CreateBox refuses them once their image is gone.) What would leave an
// organisation without an image that it needs is refused with CodePrecondition, image_in_use; the message names a few of those that need
// it, which scope may see. For an image of the system organisation that is asked of every organisation, for others of Org alone. An image that
// is being made is refused with image_building: what a node has begun comes to an end by itself. With nothing that Ref means, the
// answer is CodeNotFound, except that a repeated request gives the first operation. The operation is done at once.
//
// Nodes remove the file when no image of any organisation has its digest and no box is left of it, prepared ones included; see
// DesiredSet.DropImages. Boxes and templates that are made at the same time come before the deletion, which then sees them, or are
// refused with image_deleted.
func (s *Store) DeleteImage(ctx context.Context, scope Scope, del DeleteImage) (*Operation, error) {
	if err := del.Request.check(); err != nil {
		return nil, err
	}
	var op *Operation
	// Whether the user may was decided; who needs an image of the system organisation is for others to know.
	err := s.write(ctx, "DeleteImage", systemFor(scope), func(t *tx) error {
		images, err := t.LockImages(ctx, del.Org, del.Ref)
		if err != nil {
			return fmt.Errorf("lock the images: %w", err)
		}
		if len(images) == 0 {
			op, err = t.formerDelete(ctx, del)
			return err
		}
		op, err = t.openOperation(ctx, del.Request, Operation{
			Org: del.Org, Verb: carrel.VerbDeleteImage, TargetID: string(images[0].ID), TargetName: images[0].Name, Generation: 1,
		})
		if err != nil {
			return err
		}
		if op.Replayed {
			return t.fillOperations(ctx, []*Operation{op})
		}
		ids := make([]string, len(images))
		var digests []string
		for i, image := range images {
			ids[i] = string(image.ID)
			switch image.State {
			case ImageBuilding:
				return carrel.Errorf(carrel.CodePrecondition, "image_building", "image %s is being made; wait until it is ready or has failed (`carrel image show %s`), then delete it", image.Name, image.ID)
			case ImageReady:
				digests = append(digests, image.Digest)
			}
		}
		slices.Sort(digests)
		digests = slices.Compact(digests)
		for _, digest := range digests {
			if err := t.LockImageDigest(ctx, digest); err != nil {
				return fmt.Errorf("lock a digest: %w", err)
			}
		}
		if err := t.checkImageUse(ctx, scope, del.Org, images[0].Name, digests, ids); err != nil {
			return err
		}
		// It is done with this transaction; what the images' other operations tell is written down after it.
		if err := t.settle(ctx, op, carrel.OperationStatus{Done: true, EndedAt: t.now, Progress: "deleted"}); err != nil {
			return err
		}
		if err := t.forgetImages(ctx, ids); err != nil {
			return err
		}
		for _, digest := range digests {
			if err := t.NoteDeletedImage(ctx, digest, t.now); err != nil {
				return fmt.Errorf("note what was deleted: %w", err)
			}
			if err := t.raiseHolders(ctx, digest); err != nil {
				return err
			}
		}
		t.wake(TopicImages)
		return t.audit(ctx, del.Org, string(images[0].ID), fmt.Sprintf("%s: %s", images[0].Name, strings.Join(ids, " ")))
	})
	return op, err
}

// formerDelete is the operation of a repeated request, whose images are gone.
func (t *tx) formerDelete(ctx context.Context, del DeleteImage) (*Operation, error) {
	missing := carrel.NotFound("image", del.Ref)
	if del.Request.ID == "" {
		return nil, missing
	}
	former, err := t.OperationByRequest(ctx, del.Org, t.scope.User, del.Request.Method, del.Request.ID)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, missing
	}
	if err == nil {
		err = replayed(del.Request, former.RequestHash)
	}
	if err != nil {
		return nil, err
	}
	op, err := operationOf(former)
	if err != nil {
		return nil, err
	}
	op.Replayed = true
	return op, t.fillOperations(ctx, []*Operation{op})
}

// checkImageUse refuses when an organisation would be left without an image that it needs.
func (t *tx) checkImageUse(ctx context.Context, scope Scope, org carrel.OrgID, name string, digests, ids []string) error {
	if len(digests) == 0 {
		return nil
	}
	templates, err := t.TemplatesUsingImages(ctx, digests, org, ids)
	if err != nil {
		return fmt.Errorf("look for templates of the images: %w", err)
	}
	boxes, err := t.BoxesUsingImages(ctx, digests, org, ids)
	if err != nil {
		return fmt.Errorf("look for boxes of the images: %w", err)
	}
	if len(templates)+len(boxes) == 0 {
		return nil
	}
	var users, steps []string
	if len(boxes) > 0 {
		users = append(users, listUsers("box", "boxes", scope, boxes))
		steps = append(steps, "delete its boxes")
	}
	if len(templates) > 0 {
		users = append(users, listUsers("template", "templates", scope, templates))
		steps = append(steps, "push its templates with another image")
	}
	advice := strings.Join(steps, " and ") + " first"
	if len(ids) > 1 {
		advice += fmt.Sprintf(", or delete those of the %d images %s that nothing needs by their digests (`carrel image list`)", len(ids), name)
	}
	return carrel.Errorf(carrel.CodePrecondition, "image_in_use", "image %s is needed by %s; %s", name, strings.Join(users, " and "), advice)
}

// mostNamed is how many of those that need an image are named of each kind.
const mostNamed = 3

// listUsers names a few rows that scope may see and counts the others.
func listUsers[R db.TemplatesUsingImagesRow | db.BoxesUsingImagesRow](one, many string, scope Scope, rows []R) string {
	var names []string
	for _, r := range rows {
		row := db.BoxesUsingImagesRow(r)
		if len(names) < mostNamed && (scope.system || scope.Platform || slices.Contains(scope.Orgs, row.OrgID)) {
			names = append(names, row.Name)
		}
	}
	word := many
	if len(rows) == 1 {
		word = one
	}
	switch rest := len(rows) - len(names); {
	case len(names) == 0:
		return fmt.Sprintf("%d %s of other organisations", rest, word)
	case rest > 0:
		return fmt.Sprintf("the %s %s and %d more", word, strings.Join(names, ", "), rest)
	}
	return fmt.Sprintf("the %s %s", word, strings.Join(names, ", "))
}

// raiseHolders has the nodes that hold an image of which one was deleted read anew whether its file is needed.
func (t *tx) raiseHolders(ctx context.Context, digest string) error {
	nodes, err := t.HoldersOfDeleted(ctx, digest)
	if err != nil {
		return fmt.Errorf("find the nodes that hold a deleted image: %w", err)
	}
	for _, node := range nodes {
		t.raise(node)
	}
	return nil
}

// raiseUnneeded does so for everything that no node should hold any more, such as what one that was away for long still has.
func (t *tx) raiseUnneeded(ctx context.Context) error {
	held, err := t.UnneededImages(ctx, "")
	if err != nil {
		return fmt.Errorf("find images that nothing needs: %w", err)
	}
	for _, h := range held {
		t.raise(h.NodeID)
	}
	return nil
}
