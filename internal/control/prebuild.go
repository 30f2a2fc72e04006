package control

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"connectrpc.com/connect"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/store"
)

func (t templateService) UpdateTemplatePool(ctx context.Context, req *connect.Request[carrelv1.UpdateTemplatePoolRequest]) (*connect.Response[carrelv1.Template], error) {
	m := req.Msg
	org, err := t.s.org(ctx, m.GetOrg())
	if err != nil {
		return nil, err
	}
	if m.GetSize() < 0 || m.GetSize() > carrel.MaxPool {
		return nil, carrel.Errorf(carrel.CodeInvalid, "bad_pool_size", "a pool has from 0 to %d boxes, not %d", carrel.MaxPool, m.GetSize())
	}
	found, err := t.s.findTemplate(ctx, org, m.GetName())
	if err != nil {
		return nil, err
	}
	if err := t.s.store.SetPool(ctx, scopeOf(ctx), found.Org, found.Name, int(m.GetSize())); err != nil {
		return nil, fmt.Errorf("set the pool of template %s: %w", found.Name, err)
	}
	t.s.pools.forget()
	out, err := t.s.withPools(ctx, templateProto(found))
	if err != nil {
		return nil, err
	}
	return reply(out[0])
}

func (t templateService) ListPrebuilds(ctx context.Context, req *connect.Request[carrelv1.ListPrebuildsRequest]) (*connect.Response[carrelv1.ListPrebuildsResponse], error) {
	m := req.Msg
	org, err := t.s.orgs(ctx, m.GetOrg())
	if err != nil {
		return nil, err
	}
	all, err := t.s.store.ListPrebuilds(ctx)
	if err != nil {
		return nil, fmt.Errorf("list prebuilds: %w", err)
	}
	principal := accessOf(ctx).principal
	mine := principal.Orgs()
	var shown []store.PrebuildState
	for _, p := range all {
		visible := p.Org == t.s.cluster.SystemOrg || p.Org == org || org == "" && (principal.Operator || slices.Contains(mine, p.Org))
		if visible && (m.GetTemplate() == "" || m.GetTemplate() == p.TemplateName) && (m.GetNodeId() == "" || m.GetNodeId() == string(p.Node)) {
			shown = append(shown, p)
		}
	}
	out := each(shown, prebuildProto)
	for i, p := range shown {
		// While another is made at the same place, the one that is ready is the old one.
		replaced := slices.ContainsFunc(shown, func(o store.PrebuildState) bool {
			return o.Org == p.Org && o.TemplateName == p.TemplateName && o.Node == p.Node && o.Snapshot == ""
		})
		if out[i].GetState() == "ready" && replaced {
			out[i].State = "replacing"
		}
	}
	return reply(&carrelv1.ListPrebuildsResponse{Prebuilds: out})
}

// withPools says of templates how large their warm pools are.
func (s *Server) withPools(ctx context.Context, templates ...*carrelv1.Template) ([]*carrelv1.Template, error) {
	pools, err := s.store.Pools(ctx)
	if err != nil {
		return nil, fmt.Errorf("read pools: %w", err)
	}
	for _, t := range templates {
		for _, p := range pools {
			if string(p.Org) == t.GetOrgId() && p.Name == t.GetName() {
				t.PoolSize, t.PoolReady = int32(p.Size), int32(p.Ready)
			}
		}
	}
	return templates, nil
}

// poolAge is how long it may take until a pool that was made by another replica is taken from.
const poolAge = 10 * time.Second

// pools remembers which templates have a warm pool, so that boxes of the others cost nothing more to make.
type pools struct {
	read func(context.Context) ([]store.Pool, error)
	now  func() time.Time

	mu   sync.Mutex // guards what follows
	list []store.Pool
	at   time.Time
}

// wanted reports whether boxes of a template may wait. When that is not known none is taken.
func (p *pools) wanted(ctx context.Context, t store.Template) bool {
	p.mu.Lock()
	list, at := p.list, p.at
	p.mu.Unlock()
	if now := p.now(); at.IsZero() || now.Sub(at) > poolAge {
		fresh, err := p.read(ctx)
		if err != nil {
			return false
		}
		p.mu.Lock()
		p.list, p.at = fresh, now
		p.mu.Unlock()
		list = fresh
	}
	return slices.ContainsFunc(list, func(o store.Pool) bool { return o.Org == t.Org && o.Name == t.Name })
}

func (p *pools) forget() {
	p.mu.Lock()
	p.at = time.Time{}
	p.mu.Unlock()
}
