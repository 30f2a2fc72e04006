package control

import (
	"context"
	"fmt"
	"strings"

	"connectrpc.com/connect"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	carrelv1connect "carrel.dev/carrel/api/carrel/v1/carrelv1connect"
	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/image"
	"carrel.dev/carrel/internal/store"
)

type imageService struct {
	carrelv1connect.UnimplementedImageServiceHandler
	s *Server
}

func (i imageService) BuildImage(ctx context.Context, req *connect.Request[carrelv1.BuildImageRequest]) (*connect.Response[carrelv1.Operation], error) {
	m := req.Msg
	org, err := i.s.buildOrg(ctx, m.GetOrg())
	if err != nil {
		return nil, err
	}
	definition, err := image.ParseDefinition([]byte(m.GetYaml()))
	if err != nil {
		return nil, err
	}
	request, err := requestOf("BuildImage", m.GetRequestId(), m, meant{"org": string(org)})
	if err != nil {
		return nil, err
	}
	op, err := i.s.store.CreateImage(ctx, scopeOf(ctx), store.NewImage{
		Request: request, Org: org, Name: definition.Name, Source: "build",
		Chore: store.Chore{Kind: store.ChoreImageBuild, Name: definition.Name, Definition: m.GetYaml()},
	})
	if err != nil {
		return nil, fmt.Errorf("build image: %w", err)
	}
	return reply(operationProto(op))
}

// buildOrg is the organisation that a built image is for: any that an operator names, else their own.
func (s *Server) buildOrg(ctx context.Context, ref string) (carrel.OrgID, error) {
	if ref == "" {
		return s.homeOrg(accessOf(ctx).principal)
	}
	org, err := s.store.GetOrg(ctx, scopeOf(ctx), ref)
	if err != nil {
		return "", seen(err, "organisation", ref)
	}
	return org.ID, nil
}

const maxReference = 1024

func (i imageService) ImportImage(ctx context.Context, req *connect.Request[carrelv1.ImportImageRequest]) (*connect.Response[carrelv1.Operation], error) {
	m := req.Msg
	org, err := i.s.org(ctx, m.GetOrg())
	if err != nil {
		return nil, err
	}
	if err := carrel.ValidateName("image", m.GetName()); err != nil {
		return nil, err
	}
	reference := m.GetReference()
	if reference == "" || len(reference) > maxReference || strings.ContainsFunc(reference, func(r rune) bool { return r <= ' ' || r == 0x7f }) {
		return nil, carrel.Errorf(carrel.CodeInvalid, "bad_reference", "%q is no reference of an image; write for example registry.example/team/app:tag", reference)
	}
	trusted := accessOf(ctx).principal.Operator
	if image.IsLocal(reference) && !trusted {
		return nil, carrel.Errorf(carrel.CodeDenied, "operator_needed", "only an operator may import from a path on a node; use a registry")
	}
	platform := m.GetPlatform()
	if platform == "" {
		platform = "linux/amd64"
	}
	if parts := strings.Split(platform, "/"); len(platform) > 64 || len(parts) < 2 || len(parts) > 3 || parts[0] != "linux" || parts[1] == "" {
		return nil, carrel.Errorf(carrel.CodeInvalid, "bad_platform", "%q is no platform of a box; write for example linux/amd64", platform)
	}
	request, err := requestOf("ImportImage", m.GetRequestId(), m, meant{"org": string(org)})
	if err != nil {
		return nil, err
	}
	op, err := i.s.store.CreateImage(ctx, scopeOf(ctx), store.NewImage{
		Request: request, Org: org, Name: m.GetName(), Source: reference,
		Chore: store.Chore{
			Kind: store.ChoreImageImport, Name: m.GetName(), Reference: reference, Platform: platform, Insecure: m.GetInsecure(), Trusted: trusted,
		},
		MaxImports: i.s.config.Quotas.Imports,
	})
	if err != nil {
		return nil, fmt.Errorf("import image: %w", err)
	}
	return reply(operationProto(op))
}

func (i imageService) GetImage(ctx context.Context, req *connect.Request[carrelv1.GetImageRequest]) (*connect.Response[carrelv1.Image], error) {
	org, err := i.s.org(ctx, req.Msg.GetOrg())
	if err != nil {
		return nil, err
	}
	img, err := i.s.store.GetImage(ctx, scopeOf(ctx), org, req.Msg.GetName())
	if err != nil {
		return nil, fmt.Errorf("get image: %w", seen(err, "image", req.Msg.GetName()))
	}
	return reply(imageProto(img))
}

// DeleteImage deletes images of the organisation, else of the system organisation, as GetImage finds them.
func (i imageService) DeleteImage(ctx context.Context, req *connect.Request[carrelv1.DeleteImageRequest]) (*connect.Response[carrelv1.Operation], error) {
	m := req.Msg
	org, err := i.s.org(ctx, m.GetOrg())
	if err != nil {
		return nil, err
	}
	ref := m.GetName()
	op, err := i.deleteIn(ctx, org, m)
	if carrel.CodeOf(err) == carrel.CodeNotFound && org != i.s.cluster.SystemOrg {
		if allow(ctx, i.s.cluster.SystemOrg) == nil {
			op, err = i.deleteIn(ctx, i.s.cluster.SystemOrg, m)
		} else if shipped, findErr := i.s.store.GetImage(ctx, scopeOf(ctx), org, ref); findErr == nil {
			err = carrel.Errorf(carrel.CodeDenied, "image_shipped", "image %s belongs to the platform, for everybody to use; only its administrators may delete it", shipped.Name)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("delete image: %w", seen(err, "image", ref))
	}
	return reply(operationProto(op))
}

func (i imageService) deleteIn(ctx context.Context, org carrel.OrgID, m *carrelv1.DeleteImageRequest) (*store.Operation, error) {
	request, err := requestOf("DeleteImage", m.GetRequestId(), m, meant{"org": string(org)})
	if err != nil {
		return nil, err
	}
	return i.s.store.DeleteImage(ctx, platformScope(ctx), store.DeleteImage{Request: request, Org: org, Ref: m.GetName()})
}

func (i imageService) ListImages(ctx context.Context, req *connect.Request[carrelv1.ListImagesRequest]) (*connect.Response[carrelv1.ListImagesResponse], error) {
	org, err := i.s.orgs(ctx, req.Msg.GetOrg())
	if err != nil {
		return nil, err
	}
	p, err := page(req.Msg.GetPageSize(), req.Msg.GetPageToken())
	if err != nil {
		return nil, err
	}
	images, next, err := i.s.store.ListImages(ctx, scopeOf(ctx), org, p)
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	return reply(&carrelv1.ListImagesResponse{Images: each(images, imageProto), NextPageToken: next})
}
