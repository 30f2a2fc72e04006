package control

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"connectrpc.com/connect"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	carrelv1connect "carrel.dev/carrel/api/carrel/v1/carrelv1connect"
	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/store"
)

// defaultTemplate is what a box is made from when nobody says.
const defaultTemplate = "base"

type boxService struct {
	carrelv1connect.UnimplementedBoxServiceHandler
	s *Server
}

// find finds a box by its id, its name, or the id of one of its runs, and asks whether the caller may do this with it.
func (s *Server) find(ctx context.Context, orgRef, ref string) (*store.Box, error) {
	if ref == "" {
		return nil, carrel.Errorf(carrel.CodeInvalid, "box_needed", "say which box is meant: its id or its name")
	}
	var org carrel.OrgID
	kind := carrel.IDKind(ref)
	if orgRef != "" || kind != 'b' && kind != 'r' {
		id, err := s.org(ctx, orgRef)
		if err != nil {
			return nil, err
		}
		org = id
	}
	accessOf(ctx).asked.Store(true)
	box, err := s.store.ResolveBox(ctx, scopeOf(ctx), org, ref)
	if err != nil {
		return nil, seen(err, "box", ref)
	}
	if org != "" && box.Org != org {
		return nil, carrel.NotFound("box", ref)
	}
	if err := allow(ctx, box.Org); err != nil {
		return nil, seen(err, "box", ref)
	}
	return box, nil
}

func (b boxService) CreateBox(ctx context.Context, req *connect.Request[carrelv1.CreateBoxRequest]) (*connect.Response[carrelv1.Operation], error) {
	m := req.Msg
	org, err := b.s.org(ctx, m.GetOrg())
	if err != nil {
		return nil, err
	}
	request, err := requestOf("CreateBox", m.GetRequestId(), m, meant{"org": string(org)})
	if err != nil {
		return nil, err
	}
	template, box, err := b.newBox(ctx, org, m)
	if err != nil {
		// What was made already is not refused because the template, or the machines, are others by now.
		if former, formerErr := b.s.store.FormerOperation(ctx, scopeOf(ctx), org, request); former != nil && formerErr == nil {
			return reply(operationProto(former))
		}
		return nil, err
	}
	box.Request = request
	// A made-up name that is taken already is made up again.
	for attempt := 0; ; attempt++ {
		if m.GetName() == "" {
			box.Name = inventName()
		}
		op, err := b.s.createBox(ctx, template, box)
		if err == nil {
			return reply(operationProto(op))
		}
		if m.GetName() != "" || attempt == 8 || carrel.ReasonOf(err) != "box_name_taken" {
			return nil, fmt.Errorf("create box: %w", err)
		}
	}
}

// newBox checks what is asked for, and gives the box that it means.
func (b boxService) newBox(ctx context.Context, org carrel.OrgID, m *carrelv1.CreateBoxRequest) (store.Template, store.NewBox, error) {
	refuse := func(err error) (store.Template, store.NewBox, error) { return store.Template{}, store.NewBox{}, err }
	if m.GetName() != "" {
		if err := carrel.ValidateName("box", m.GetName()); err != nil {
			return refuse(err)
		}
	}
	if err := carrel.ValidateLabels(m.GetLabels()); err != nil {
		return refuse(err)
	}
	template, err := b.s.findTemplate(ctx, org, m.GetTemplate())
	if err != nil {
		return refuse(err)
	}
	env := maps.Clone(template.Env)
	if env == nil {
		env = map[string]string{}
	}
	maps.Copy(env, m.GetEnv()) // what the request says counts
	if err := carrel.ValidateEnv(env); err != nil {
		return refuse(err)
	}
	resources := complete(resourcesFromProto(m.GetResources()), template.Resources)
	if err := resources.Validate(); err != nil {
		return refuse(err)
	}
	if err := b.s.store.CheckFits(ctx, resources); err != nil {
		return refuse(fmt.Errorf("create box: %w", err))
	}
	idle := idleFromProto(m.GetIdle())
	if err := idle.Validate(); err != nil {
		return refuse(err)
	}
	return template, store.NewBox{
		Idle: idle, Org: org, Name: m.GetName(), TemplateID: template.ID, ImageDigest: template.ImageDigest,
		Resources: resources, Labels: m.GetLabels(), Env: env, MaxBoxes: b.s.config.Quotas.Boxes,
	}, nil
}

// createBox takes a prepared box that waits, or makes one.
func (s *Server) createBox(ctx context.Context, t store.Template, box store.NewBox) (*store.Operation, error) {
	if s.pools.wanted(ctx, t) {
		op, err := s.store.TakeBox(ctx, scopeOf(ctx), t.Recipe, box)
		if op != nil || err != nil {
			return op, err
		}
	}
	return s.store.CreateBox(ctx, scopeOf(ctx), box)
}

// complete fills what a request leaves out: from the template, then from the defaults. What counts as memory shrinks
// with the memory where nobody asked for its size.
func complete(asked, template carrel.Resources) carrel.Resources {
	r := asked.Or(template).Or(carrel.DefaultResources)
	if asked.TmpBytes == 0 && r.TmpBytes > r.MemoryBytes/2 {
		r.TmpBytes = max(carrel.MinResources.TmpBytes, r.MemoryBytes/2)
	}
	if asked.ShmBytes == 0 && r.ShmBytes > r.MemoryBytes/4 {
		r.ShmBytes = max(carrel.MinResources.ShmBytes, r.MemoryBytes/4)
	}
	return r
}

// findTemplate finds NAME or NAME@VERSION for a box of org.
func (s *Server) findTemplate(ctx context.Context, org carrel.OrgID, ref string) (store.Template, error) {
	if ref == "" {
		ref = defaultTemplate
	}
	name, version, err := parseTemplateRef(ref)
	if err != nil {
		return store.Template{}, err
	}
	t, err := s.store.GetTemplate(ctx, scopeOf(ctx), org, name, version)
	if err != nil {
		if carrel.CodeOf(err) == carrel.CodeNotFound {
			e := carrel.NotFound("template", ref)
			e.Message += "; `carrel template list` shows those that are there"
			return store.Template{}, e
		}
		return store.Template{}, fmt.Errorf("find template: %w", err)
	}
	return t, nil
}

// parseTemplateRef reads NAME or NAME@VERSION; version 0 is the newest.
func parseTemplateRef(ref string) (string, int32, error) {
	name, text, pinned := strings.Cut(ref, "@")
	if err := carrel.ValidateName("template", name); err != nil {
		return "", 0, err
	}
	if !pinned {
		return name, 0, nil
	}
	version, err := strconv.ParseInt(text, 10, 32)
	if err != nil || version < 1 {
		return "", 0, carrel.Errorf(carrel.CodeInvalid, "bad_version", "%q is no version of a template: write NAME@3, or NAME for the newest", ref)
	}
	return name, int32(version), nil
}

func (b boxService) GetBox(ctx context.Context, req *connect.Request[carrelv1.GetBoxRequest]) (*connect.Response[carrelv1.Box], error) {
	box, err := b.s.find(ctx, req.Msg.GetOrg(), req.Msg.GetId())
	if err != nil {
		return nil, err
	}
	return reply(boxProto(box))
}

func (b boxService) ListBoxes(ctx context.Context, req *connect.Request[carrelv1.ListBoxesRequest]) (*connect.Response[carrelv1.ListBoxesResponse], error) {
	m := req.Msg
	org, err := b.s.orgs(ctx, m.GetOrg())
	if err != nil {
		return nil, err
	}
	p, err := page(m.GetPageSize(), m.GetPageToken())
	if err != nil {
		return nil, err
	}
	if err := checkOrder(m.GetOrderBy()); err != nil {
		return nil, err
	}
	list := store.ListBoxes{Org: org, OrderBy: m.GetOrderBy(), ShowDeleted: m.GetShowDeleted(), Page: p}
	if err := parseFilter(m.GetFilter(), &list); err != nil {
		return nil, err
	}
	boxes, next, err := b.s.store.ListBoxes(ctx, scopeOf(ctx), list)
	if err != nil {
		return nil, fmt.Errorf("list boxes: %w", err)
	}
	return reply(&carrelv1.ListBoxesResponse{Boxes: each(boxes, boxProto), NextPageToken: next})
}

func (b boxService) UpdateBox(ctx context.Context, req *connect.Request[carrelv1.UpdateBoxRequest]) (*connect.Response[carrelv1.Box], error) {
	m := req.Msg
	box, err := b.s.find(ctx, m.GetOrg(), m.GetId())
	if err != nil {
		return nil, err
	}
	if m.GetBox() == nil {
		return nil, carrel.Errorf(carrel.CodeInvalid, "box_needed", "say what to change: box has the new values, update_mask names them")
	}
	update, notice, err := planUpdate(m, box)
	if err != nil {
		return nil, err
	}
	if update.Resources != nil {
		if err := b.s.store.CheckFits(ctx, *update.Resources); err != nil {
			return nil, fmt.Errorf("update box: %w", err)
		}
	}
	changed, err := b.s.store.UpdateBox(ctx, scopeOf(ctx), update)
	if err != nil {
		return nil, fmt.Errorf("update box: %w", err)
	}
	out := boxProto(changed)
	if notice != "" {
		out.Notice = notice
	}
	return reply(out)
}

// updatePaths are the fields that UpdateBox can change, and for those without a mask whether they are given.
var updatePaths = map[string]func(*carrelv1.Box) bool{
	"name":      func(b *carrelv1.Box) bool { return b.GetName() != "" },
	"labels":    func(b *carrelv1.Box) bool { return len(b.GetLabels()) > 0 },
	"env":       func(b *carrelv1.Box) bool { return len(b.GetEnv()) > 0 },
	"resources": func(b *carrelv1.Box) bool { return b.GetResources() != nil },
	"idle":      func(b *carrelv1.Box) bool { return b.GetIdle() != nil },
}

// planUpdate turns a request into what to change, and says what of it waits for a cold start.
func planUpdate(m *carrelv1.UpdateBoxRequest, box *store.Box) (store.UpdateBox, string, error) {
	update := store.UpdateBox{Box: box.ID, ETag: m.GetEtag()}
	if update.ETag == "" {
		update.ETag = m.GetBox().GetEtag()
	}
	paths := slices.Clone(m.GetUpdateMask().GetPaths())
	if len(paths) == 0 {
		for _, path := range slices.Sorted(maps.Keys(updatePaths)) {
			if updatePaths[path](m.GetBox()) {
				paths = append(paths, path)
			}
		}
	}
	var one *carrel.Resources   // changed one by one
	var idle *carrel.IdlePolicy // too
	notice := ""
	for _, path := range paths {
		switch head, field, _ := strings.Cut(path, "."); {
		case path == "name":
			name := m.GetBox().GetName()
			if err := carrel.ValidateName("box", name); err != nil {
				return update, "", err
			}
			update.Name = &name
		case path == "labels":
			labels := m.GetBox().GetLabels()
			if err := carrel.ValidateLabels(labels); err != nil {
				return update, "", err
			}
			update.Labels = &labels
		case path == "env":
			env := m.GetBox().GetEnv()
			if err := carrel.ValidateEnv(env); err != nil {
				return update, "", err
			}
			update.Env = &env
			notice = laterNotice(box, "environment")
		case head == "resources":
			if one == nil {
				copied := box.Resources
				one = &copied
			}
			if err := changeResources(one, field, resourcesFromProto(m.GetBox().GetResources()), path); err != nil {
				return update, "", err
			}
			notice = laterNotice(box, "resources")
		case head == "idle":
			if idle == nil {
				copied := box.Idle
				idle = &copied
			}
			if err := changeIdle(idle, field, idleFromProto(m.GetBox().GetIdle()), path); err != nil {
				return update, "", err
			}
		default:
			return update, "", carrel.Errorf(carrel.CodeInvalid, "bad_update_mask", "%q can't be changed; what can be is name, labels, env, resources, resources.FIELD, idle and idle.FIELD", path)
		}
	}
	if idle != nil {
		if err := idle.Validate(); err != nil {
			return update, "", err
		}
		update.Idle = idle
	}
	if one != nil {
		if err := one.Validate(); err != nil {
			return update, "", err
		}
		if one.HomeBytes != box.Resources.HomeBytes && box.Epoch > 0 {
			return update, "", carrel.Errorf(carrel.CodePrecondition, "home_size_fixed", "the home of box %s has its size since it was first started; make a new box with the size you need", box.Name)
		}
		update.Resources = one
	}
	return update, notice, nil
}

// laterNotice says when a change that is only read at a cold start holds.
func laterNotice(box *store.Box, what string) string {
	switch {
	case box.Live():
		return fmt.Sprintf("the new %s hold from the next cold start; restart it with: carrel restart %s", what, box.Name)
	case box.StartsWithMemory():
		return fmt.Sprintf("the new %s hold from the next cold start, not when its memory is resumed; give the memory up with: carrel start %s --cold", what, box.Name)
	}
	return ""
}

func changeResources(r *carrel.Resources, field string, to carrel.Resources, path string) error {
	switch field {
	case "":
		*r = to.Or(*r)
	case "cpu_millis":
		r.CPUMillis = to.CPUMillis
	case "memory_bytes":
		r.MemoryBytes = to.MemoryBytes
	case "home_bytes":
		r.HomeBytes = to.HomeBytes
	case "root_bytes":
		r.RootBytes = to.RootBytes
	case "processes":
		r.Processes = to.Processes
	case "tmp_bytes":
		r.TmpBytes = to.TmpBytes
	case "shm_bytes":
		r.ShmBytes = to.ShmBytes
	default:
		return carrel.Errorf(carrel.CodeInvalid, "bad_update_mask", "there is no %q in a box", path)
	}
	return nil
}

func (b boxService) ListBoxEvents(ctx context.Context, req *connect.Request[carrelv1.ListBoxEventsRequest]) (*connect.Response[carrelv1.ListBoxEventsResponse], error) {
	m := req.Msg
	box, err := b.s.find(ctx, m.GetOrg(), m.GetId())
	if err != nil {
		return nil, err
	}
	p, err := page(m.GetPageSize(), m.GetPageToken())
	if err != nil {
		return nil, err
	}
	events, next, err := b.s.store.ListEvents(ctx, scopeOf(ctx), box.ID, p)
	if err != nil {
		return nil, fmt.Errorf("list events: %w", err)
	}
	return reply(&carrelv1.ListBoxEventsResponse{Events: each(events, eventProto), NextPageToken: next})
}

func (b boxService) GetRun(ctx context.Context, req *connect.Request[carrelv1.GetRunRequest]) (*connect.Response[carrelv1.Run], error) {
	id := req.Msg.GetId()
	accessOf(ctx).asked.Store(true)
	if carrel.IDKind(id) != 'r' {
		return nil, carrel.NotFound("run", id)
	}
	run, err := b.s.store.GetRun(ctx, scopeOf(ctx), carrel.RunID(id))
	if err != nil {
		return nil, seen(err, "run", id)
	}
	if err := allow(ctx, run.Org); err != nil {
		return nil, seen(err, "run", id)
	}
	return reply(runProto(run))
}
