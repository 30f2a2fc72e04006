package store

import (
	"context"

	"carrel.dev/carrel/internal/carrel"
)

// PushTemplate keeps the next version of a template. Id, Version and CreatedAt of t are ignored. With
// ifChanged, a template equal to the newest version gives that version.
func (s *Store) PushTemplate(ctx context.Context, scope Scope, request Request, t Template, ifChanged bool) (Template, error) {
	panic("not yet")
}

// GetTemplate finds a template by name: of org, else of the system organisation. Version 0 is the newest.
func (s *Store) GetTemplate(ctx context.Context, scope Scope, org carrel.OrgID, name string, version int32) (Template, error) {
	panic("not yet")
}

// ListTemplates gives a page of the templates of org (empty: of the scope) and of the system
// organisation, by name, newest version first.
func (s *Store) ListTemplates(ctx context.Context, scope Scope, org carrel.OrgID, allVersions bool, page Page) ([]Template, string, error) {
	panic("not yet")
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
}

// CreateImage makes an image, the chore that builds or imports it, and the operation.
func (s *Store) CreateImage(ctx context.Context, scope Scope, image NewImage) (*Operation, error) {
	panic("not yet")
}

// GetImage finds an image of org, else of the system organisation: by id, by digest, or by name (the newest that is ready, else the
// newest).
func (s *Store) GetImage(ctx context.Context, scope Scope, org carrel.OrgID, ref string) (Image, error) {
	panic("not yet")
}

// ListImages gives a page of the images of org (empty: of the scope) and of the system organisation, newest first.
func (s *Store) ListImages(ctx context.Context, scope Scope, org carrel.OrgID, page Page) ([]Image, string, error) {
	panic("not yet")
}
