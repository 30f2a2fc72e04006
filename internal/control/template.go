package control

import (
	"context"
	"fmt"

	"connectrpc.com/connect"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	carrelv1connect "carrel.dev/carrel/api/carrel/v1/carrelv1connect"
	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/store"
	"carrel.dev/carrel/internal/template"
)

type templateService struct {
	carrelv1connect.UnimplementedTemplateServiceHandler
	s *Server
}

func (t templateService) PushTemplate(ctx context.Context, req *connect.Request[carrelv1.PushTemplateRequest]) (*connect.Response[carrelv1.Template], error) {
	m := req.Msg
	org, err := t.s.org(ctx, m.GetOrg())
	if err != nil {
		return nil, err
	}
	parsed, err := template.Parse([]byte(m.GetYaml()))
	if err != nil {
		return nil, err
	}
	image, err := t.s.store.GetImage(ctx, scopeOf(ctx), org, parsed.Image)
	if carrel.CodeOf(err) == carrel.CodeNotFound {
		return nil, carrel.Errorf(carrel.CodeNotFound, "image_not_found", "the template %s wants the image %q, and there is none (or you may not see it); `carrel image list` shows those that are there", parsed.Name, parsed.Image)
	}
	if err != nil {
		return nil, fmt.Errorf("find image: %w", err)
	}
	if image.State != store.ImageReady {
		return nil, carrel.Errorf(carrel.CodePrecondition, "image_not_ready", "the image %s of the template %s is %s, not ready; wait until it is, and push again", parsed.Image, parsed.Name, image.State)
	}
	request, err := requestOf("PushTemplate", m.GetRequestId(), m, meant{"org": string(org)})
	if err != nil {
		return nil, err
	}
	pushed, err := t.s.store.PushTemplate(ctx, scopeOf(ctx), request, store.Template{
		Org: org, Name: parsed.Name, Description: parsed.Description, Image: parsed.Image, ImageDigest: image.Digest,
		Resources: parsed.Resources, Env: parsed.Env, Labels: parsed.Labels, Sudo: parsed.Sudo, Startup: parsed.Startup,
		Idle: parsed.Idle, Prebuild: parsed.Prebuild,
	}, false)
	if err != nil {
		return nil, fmt.Errorf("push template: %w", err)
	}
	return reply(templateProto(pushed))
}

func (t templateService) GetTemplate(ctx context.Context, req *connect.Request[carrelv1.GetTemplateRequest]) (*connect.Response[carrelv1.Template], error) {
	org, err := t.s.org(ctx, req.Msg.GetOrg())
	if err != nil {
		return nil, err
	}
	found, err := t.s.findTemplate(ctx, org, req.Msg.GetName())
	if err != nil {
		return nil, err
	}
	out, err := t.s.withPools(ctx, templateProto(found))
	if err != nil {
		return nil, err
	}
	return reply(out[0])
}

func (t templateService) ListTemplates(ctx context.Context, req *connect.Request[carrelv1.ListTemplatesRequest]) (*connect.Response[carrelv1.ListTemplatesResponse], error) {
	m := req.Msg
	org, err := t.s.orgs(ctx, m.GetOrg())
	if err != nil {
		return nil, err
	}
	p, err := page(m.GetPageSize(), m.GetPageToken())
	if err != nil {
		return nil, err
	}
	templates, next, err := t.s.store.ListTemplates(ctx, scopeOf(ctx), org, m.GetAllVersions(), p)
	if err != nil {
		return nil, fmt.Errorf("list templates: %w", err)
	}
	out, err := t.s.withPools(ctx, each(templates, templateProto)...)
	if err != nil {
		return nil, err
	}
	return reply(&carrelv1.ListTemplatesResponse{Templates: out, NextPageToken: next})
}
