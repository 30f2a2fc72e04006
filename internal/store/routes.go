package store

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"carrel.dev/carrel/internal/carrel"
)

// Route says where the live run of a box can be reached, and what gateways need to know of the box.
type Route struct {
	Box          carrel.BoxID
	Org          carrel.OrgID
	Name         string // of the box
	Run          carrel.RunID
	Epoch        int64
	Node         carrel.NodeID
	Phase        carrel.Phase
	ProxyAddress string
	Gone         bool      // the box has no live run: Epoch is that of the last one; Run, Node, Phase and ProxyAddress are empty
	Ports        []BoxPort // that are not private
	Wake         bool      // a login may start the box
	KeepShell    time.Duration
}

// Routes gives the routes of all live runs, and the mark for RoutesSince.
func (s *Store) Routes(ctx context.Context) ([]Route, int64, error) { return s.routes(ctx, 0) }

// RoutesSince gives the routes of the boxes that changed since an earlier answer, gone ones too, and the mark for the next call. A
// route may be given again without having changed; none is left out.
func (s *Store) RoutesSince(ctx context.Context, since int64) ([]Route, int64, error) {
	return s.routes(ctx, since)
}

// RouteOf gives the route of one box, whether it has a run or not.
func (s *Store) RouteOf(ctx context.Context, box carrel.BoxID) (Route, error) {
	var route Route
	err := s.read(ctx, "RouteOf", SystemScope(), func(t *tx) error {
		routes, err := t.routes(ctx, "b.id = $1", box)
		if err != nil {
			return err
		}
		if len(routes) == 0 {
			return carrel.NotFound("box", string(box))
		}
		route = routes[0]
		return nil
	})
	return route, err
}

const selectRoutes = `
select b.id, b.org_id, b.name, coalesce(r.id, ''), coalesce(r.epoch, b.epoch), coalesce(r.node_id, ''), coalesce(r.phase, ''),
	coalesce(n.facts->>'proxy_address', ''), b.idle, t.idle, p.ports
from boxes b
join templates t on t.id = b.template_id
left join runs r on r.box_id = b.id and r.ended_at is null
left join nodes n on n.id = r.node_id
left join lateral (
	select jsonb_agg(jsonb_build_object('port', port, 'visibility', visibility) order by port) as ports
	from box_ports where box_id = b.id and visibility <> 'private'
) p on true
where `

// routes reads the live runs (since is 0), or those and the missing ones of the boxes that changed.
func (s *Store) routes(ctx context.Context, since int64) ([]Route, int64, error) {
	var routes []Route
	var mark int64
	err := s.read(ctx, "Routes", SystemScope(), func(t *tx) error {
		from, next, err := t.mark(ctx, since)
		if err != nil {
			return err
		}
		mark = next
		routes, err = t.routes(ctx, "b.purpose = '' and ((b.changed_xid >= $1 and $1 > 0) or (r.id is not null and $1 = 0))", from)
		return err
	})
	return routes, mark, err
}

func (t *tx) routes(ctx context.Context, condition string, argument any) ([]Route, error) {
	rows, err := t.raw.Query(ctx, selectRoutes+condition+" order by b.id", argument)
	if err != nil {
		return nil, fmt.Errorf("read routes: %w", err)
	}
	return pgx.CollectRows(rows, scanRoute)
}

func scanRoute(row pgx.CollectableRow) (Route, error) {
	var r Route
	var boxIdle, templateIdle, ports []byte
	err := row.Scan(&r.Box, &r.Org, &r.Name, &r.Run, &r.Epoch, &r.Node, &r.Phase, &r.ProxyAddress, &boxIdle, &templateIdle, &ports)
	if err != nil {
		return r, fmt.Errorf("read a route: %w", err)
	}
	r.Gone = r.Run == ""
	policy := loginPolicy{Wake: "yes", KeepShell: 10 * time.Minute}
	for _, text := range [][]byte{templateIdle, boxIdle} { // what the second says replaces what the first did
		if err := decode(text, &policy, "an idle policy"); err != nil {
			return r, err
		}
	}
	r.Wake, r.KeepShell = policy.Wake != "no", policy.KeepShell
	return r, decode(ports, &r.Ports, "ports")
}

// loginPolicy is what of a policy concerns those who log in.
type loginPolicy struct {
	Wake      string        `json:"wake"`
	KeepShell time.Duration `json:"keep_shell"`
}
