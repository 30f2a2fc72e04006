package store

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"time"

	"github.com/jackc/pgx/v5"

	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/store/db"
)

// PushTemplate keeps the next version of a template. Id, Version and CreatedAt of tpl are ignored. With
// ifChanged, a template equal to the newest version gives that version. An image that was deleted is refused with CodePrecondition,
// reason image_deleted.
func (s *Store) PushTemplate(ctx context.Context, scope Scope, request Request, tpl Template, ifChanged bool) (Template, error) {
	if err := request.check(); err != nil {
		return Template{}, err
	}
	var pushed Template
	err := s.write(ctx, "PushTemplate", scope, func(t *tx) error {
		// One after the other for each name: versions have no gaps and a repeated request finds the first.
		if err := t.LockTemplateName(ctx, string(tpl.Org), tpl.Name); err != nil {
			return fmt.Errorf("lock the template's name: %w", err)
		}
		switch old, err := t.TemplateByRequest(ctx, tpl.Org, scope.User, request.ID); {
		case err == nil:
			if err := replayed(request, old.RequestHash); err != nil {
				return err
			}
			row, err := t.TemplateByID(ctx, old.ID)
			if err != nil {
				return err
			}
			pushed, err = templateOf(templateRow(row))
			return err
		case !errors.Is(err, pgx.ErrNoRows):
			return err
		}
		pushed = tpl
		pushed.ID, pushed.Version, pushed.CreatedAt = carrel.NewTemplateID(), 1, t.now
		pushed.Recipe = recipeOf(tpl)
		switch row, err := t.NewestTemplate(ctx, tpl.Org, tpl.Name, 0); {
		case err == nil:
			newest, err := templateOf(templateRow(row))
			if err != nil {
				return err
			}
			if ifChanged && sameTemplate(newest, tpl) {
				pushed = newest
				return nil
			}
			pushed.Version = newest.Version + 1
		case !errors.Is(err, pgx.ErrNoRows):
			return err
		}
		_, err := t.InsertTemplate(ctx, db.InsertTemplateParams{
			ID: pushed.ID, OrgID: tpl.Org, Name: tpl.Name, Version: pushed.Version, Description: tpl.Description, Image: tpl.Image,
			ImageDigest: tpl.ImageDigest, Resources: encode(tpl.Resources), Env: encodeMap(tpl.Env), Labels: encodeMap(tpl.Labels),
			Sudo: tpl.Sudo, Startup: encodeList(tpl.Startup), CreatedBy: scope.User, CreatedAt: t.now, RequestID: request.ID, RequestHash: request.Hash,
			Idle: encode(tpl.Idle), Prebuild: encodePrebuild(tpl.Prebuild), Recipe: pushed.Recipe,
		})
		if lacksImage(err) {
			return carrel.Errorf(carrel.CodePrecondition, "image_deleted", "the image %s of the template %s was deleted meanwhile; push it again with an image that is there (`carrel image list`)", tpl.Image, tpl.Name)
		}
		if err != nil {
			return fmt.Errorf("insert the template: %w", err)
		}
		if err := t.audit(ctx, tpl.Org, string(pushed.ID), fmt.Sprintf("%s@%d", tpl.Name, pushed.Version)); err != nil {
			return err
		}
		t.wake(TopicPrepare)
		row, err := t.TemplateByID(ctx, pushed.ID)
		if err != nil {
			return fmt.Errorf("read the template again: %w", err)
		}
		pushed, err = templateOf(templateRow(row))
		return err
	})
	return pushed, err
}

// sameTemplate compares what a template says, not when it was pushed.
func sameTemplate(a, b Template) bool {
	plain := func(t Template) Template {
		t.ID, t.Version, t.CreatedAt, t.Recipe = "", 0, a.CreatedAt, ""
		if len(t.Env) == 0 {
			t.Env = nil
		}
		if len(t.Labels) == 0 {
			t.Labels = nil
		}
		if len(t.Startup) == 0 {
			t.Startup = nil
		}
		return t
	}
	return reflect.DeepEqual(plain(a), plain(b))
}

type templateRow db.NewestTemplateRow

func templateOf(r templateRow) (Template, error) {
	t := Template{
		ID: r.ID, Org: r.OrgID, Name: r.Name, Version: r.Version, Description: r.Description, Image: r.Image, ImageDigest: r.ImageDigest,
		Sudo: r.Sudo, Recipe: r.Recipe, CreatedAt: r.CreatedAt.UTC(),
	}
	var err error
	if len(r.Prebuild) > 0 {
		t.Prebuild = &carrel.Prebuild{}
		err = decode(r.Prebuild, t.Prebuild, "a prebuild")
	}
	return t, errors.Join(err, decode(r.Resources, &t.Resources, "resources"), decode(r.Env, &t.Env, "env"),
		decode(r.Labels, &t.Labels, "labels"), decode(r.Startup, &t.Startup, "startup commands"), decode(r.Idle, &t.Idle, "an idle policy"))
}

// GetTemplate finds a template by name: of org, else of the system organisation. Version 0 is the newest.
func (s *Store) GetTemplate(ctx context.Context, scope Scope, org carrel.OrgID, name string, version int32) (Template, error) {
	var found Template
	err := s.read(ctx, "GetTemplate", scope, func(t *tx) error {
		return t.ownElseShipped(ctx, org, func(org carrel.OrgID) error {
			row, err := t.NewestTemplate(ctx, org, name, version)
			if err != nil {
				return err
			}
			found, err = templateOf(templateRow(row))
			return err
		}, func() error {
			if version > 0 {
				name = fmt.Sprintf("%s@%d", name, version)
			}
			return carrel.NotFound("template", name)
		})
	})
	return found, err
}

// ownElseShipped looks in org, then in the system organisation.
func (t *tx) ownElseShipped(ctx context.Context, org carrel.OrgID, look func(carrel.OrgID) error, missing func() error) error {
	err := look(org)
	if errors.Is(err, pgx.ErrNoRows) {
		cluster, err := t.GetCluster(ctx)
		if err != nil {
			return fmt.Errorf("read the cluster: %w", err)
		}
		err = look(cluster.SystemOrg)
		if errors.Is(err, pgx.ErrNoRows) {
			return missing()
		}
		return err
	}
	return err
}

// ListTemplates gives a page of the templates of org (empty: of the scope) and of the system
// organisation, by name, newest version first.
func (s *Store) ListTemplates(ctx context.Context, scope Scope, org carrel.OrgID, allVersions bool, page Page) ([]Template, string, error) {
	kind := fmt.Sprint("templates ", org, allVersions)
	size, err := page.size()
	if err != nil {
		return nil, "", err
	}
	params := db.ListTemplatesParams{Org: string(org), AllVersions: allVersions, PageSize: int32(size) + 1}
	if page.Token != "" {
		c, err := parseCursor(page.Token, kind)
		if err != nil {
			return nil, "", err
		}
		params.AfterName, params.AfterOrg, params.AfterVersion = c.Text, c.ID, int32(c.Number)
	}
	var list []Template
	next := ""
	err = s.read(ctx, "ListTemplates", scope, func(t *tx) error {
		list, next = nil, ""
		rows, err := t.ListTemplates(ctx, params)
		if err != nil {
			return err
		}
		for i, r := range rows {
			if i == size {
				last := list[i-1]
				next = (&cursor{Text: last.Name, ID: string(last.Org), Number: -int64(last.Version)}).token(kind)
				break
			}
			tpl, err := templateOf(templateRow(r))
			if err != nil {
				return err
			}
			list = append(list, tpl)
		}
		return nil
	})
	return list, next, err
}

// NewImage is what CreateImage makes.
type NewImage struct {
	Request Request
	Org     carrel.OrgID
	Name    string
	Source  string // "build" or the reference
	// Chore makes it; ID, Org, Image, Node and the times are ignored. Not used with Digest.
	Chore Chore
	// Digest and SizeBytes of an image that nodes have already; it is ready at once.
	Digest    string
	SizeBytes int64
	// MaxImports is how many imports of Org may be under way, this one included; 0: any number. Requests at the same
	// moment do not see each other, so a few more may be let in.
	MaxImports int
}

// CreateImage makes an image, the chore that builds or imports it, and the operation. One import more than Org may have
// under way is refused with CodeExhausted, too_many_imports.
func (s *Store) CreateImage(ctx context.Context, scope Scope, image NewImage) (*Operation, error) {
	if err := image.Request.check(); err != nil {
		return nil, err
	}
	id := carrel.NewImageID()
	verb := carrel.VerbBuildImage
	if image.Chore.Kind == ChoreImageImport {
		verb = carrel.VerbImportImage
	}
	var op *Operation
	err := s.write(ctx, "CreateImage", scope, func(t *tx) error {
		var err error
		op, err = t.openOperation(ctx, image.Request, Operation{Org: image.Org, Verb: verb, TargetID: string(id), TargetName: image.Name, Generation: 1})
		if err != nil {
			return err
		}
		if op.Replayed {
			return t.fillOperations(ctx, []*Operation{op})
		}
		if err := t.checkImports(ctx, image); err != nil {
			return err
		}
		params := db.InsertImageParams{
			ID: id, OrgID: image.Org, Name: image.Name, Digest: image.Digest, SizeBytes: image.SizeBytes, State: ImageBuilding,
			Source: image.Source, CreatedAt: t.now,
		}
		if image.Digest != "" {
			params.State, params.FinishedAt = ImageReady, &t.now
		}
		if err := t.InsertImage(ctx, params); err != nil {
			return fmt.Errorf("insert the image: %w", err)
		}
		if image.Digest == "" {
			c := image.Chore
			err := t.InsertChore(ctx, db.InsertChoreParams{
				ID: carrel.NewChoreID(), OrgID: image.Org, ImageID: id, Kind: c.Kind, Name: image.Name, Definition: c.Definition,
				Reference: c.Reference, Platform: c.Platform, Insecure: c.Insecure, Trusted: c.Trusted, CreatedAt: t.now,
			})
			if err != nil {
				return fmt.Errorf("insert the chore: %w", err)
			}
			t.wake(TopicBoxes)
		}
		if err := t.audit(ctx, image.Org, string(id), image.Name); err != nil {
			return err
		}
		t.wake(TopicImages)
		return t.fillOperations(ctx, []*Operation{op})
	})
	return op, err
}

func (t *tx) checkImports(ctx context.Context, image NewImage) error {
	if image.MaxImports <= 0 || image.Digest != "" || image.Chore.Kind != ChoreImageImport {
		return nil
	}
	open, err := t.CountOpenChores(ctx, image.Org, ChoreImageImport)
	if err != nil {
		return fmt.Errorf("count the imports: %w", err)
	}
	if open < int64(image.MaxImports) {
		return nil
	}
	e := carrel.Errorf(carrel.CodeExhausted, "too_many_imports", "%d imports of this organisation are under way, and no more may be; wait until one has ended (`carrel image list` shows them) and try again", open)
	e.RetryAfter = 10 * time.Second
	return e
}

type imageRow db.FindImageRow

func imageOf(r imageRow) (Image, error) {
	failure, err := decodeFailure(r.Failure)
	return Image{
		ID: r.ID, Org: r.OrgID, Name: r.Name, Digest: r.Digest, SizeBytes: r.SizeBytes, State: r.State, Failure: failure, Source: r.Source,
		Progress: r.Progress, CreatedAt: r.CreatedAt.UTC(), FinishedAt: timeOf(r.FinishedAt), Nodes: fromStrings[carrel.NodeID](r.Nodes),
	}, err
}

// GetImage finds an image of org, else of the system organisation: by id, by digest, or by name (the newest that is ready, else the
// newest).
func (s *Store) GetImage(ctx context.Context, scope Scope, org carrel.OrgID, ref string) (Image, error) {
	var found Image
	err := s.read(ctx, "GetImage", scope, func(t *tx) error {
		return t.ownElseShipped(ctx, org, func(org carrel.OrgID) error {
			row, err := t.FindImage(ctx, org, ref)
			if err != nil {
				return err
			}
			found, err = imageOf(imageRow(row))
			return err
		}, func() error { return carrel.NotFound("image", ref) })
	})
	return found, err
}

// ListImages gives a page of the images of org (empty: of the scope) and of the system organisation, newest first.
func (s *Store) ListImages(ctx context.Context, scope Scope, org carrel.OrgID, page Page) ([]Image, string, error) {
	kind := "images " + string(org)
	size, err := page.size()
	if err != nil {
		return nil, "", err
	}
	after := &cursor{}
	if page.Token != "" {
		if after, err = parseCursor(page.Token, kind); err != nil {
			return nil, "", err
		}
	}
	var list []Image
	next := ""
	err = s.read(ctx, "ListImages", scope, func(t *tx) error {
		list, next = nil, ""
		rows, err := t.ListImages(ctx, string(org), after.ID, after.At, int32(size)+1)
		if err != nil {
			return err
		}
		for i, r := range rows {
			if i == size {
				last := list[i-1]
				next = (&cursor{ID: string(last.ID), At: last.CreatedAt}).token(kind)
				break
			}
			image, err := imageOf(imageRow(r))
			if err != nil {
				return err
			}
			list = append(list, image)
		}
		return nil
	})
	return list, next, err
}
