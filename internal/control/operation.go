package control

import (
	"context"
	"fmt"

	"connectrpc.com/connect"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	carrelv1connect "carrel.dev/carrel/api/carrel/v1/carrelv1connect"
	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/store"
)

type operationService struct {
	carrelv1connect.UnimplementedOperationServiceHandler
	s *Server
}

func (o operationService) GetOperation(ctx context.Context, req *connect.Request[carrelv1.GetOperationRequest]) (*connect.Response[carrelv1.Operation], error) {
	id := req.Msg.GetId()
	accessOf(ctx).asked.Store(true)
	if carrel.IDKind(id) != 'p' {
		return nil, carrel.NotFound("operation", id)
	}
	op, err := o.s.store.GetOperation(ctx, scopeOf(ctx), carrel.OperationID(id))
	if err != nil {
		return nil, fmt.Errorf("get operation: %w", seen(err, "operation", id))
	}
	if err := allow(ctx, op.Org); err != nil {
		return nil, seen(err, "operation", id)
	}
	return reply(operationProto(op))
}

func (o operationService) ListOperations(ctx context.Context, req *connect.Request[carrelv1.ListOperationsRequest]) (*connect.Response[carrelv1.ListOperationsResponse], error) {
	m := req.Msg
	org, err := o.s.orgs(ctx, m.GetOrg())
	if err != nil {
		return nil, err
	}
	list := store.ListOperations{Org: org, Target: m.GetTarget()}
	if kind := carrel.IDKind(list.Target); list.Target != "" && kind != 'b' && kind != 'i' {
		if err := o.byName(ctx, m.GetOrg(), &list); err != nil {
			return nil, err
		}
	}
	if list.Page, err = page(m.GetPageSize(), m.GetPageToken()); err != nil {
		return nil, err
	}
	ops, next, err := o.s.store.ListOperations(ctx, scopeOf(ctx), list)
	if err != nil {
		return nil, fmt.Errorf("list operations: %w", err)
	}
	return reply(&carrelv1.ListOperationsResponse{Operations: each(ops, operationProto), NextPageToken: next})
}

// byName narrows a list to the box, else the images, that its target names.
func (o operationService) byName(ctx context.Context, orgRef string, list *store.ListOperations) error {
	name := list.Target
	box, err := o.s.find(ctx, orgRef, name)
	if err == nil {
		list.Target = string(box.ID)
		return nil
	}
	if carrel.CodeOf(err) != carrel.CodeNotFound {
		return err
	}
	org, orgErr := o.s.org(ctx, orgRef)
	if orgErr != nil {
		return orgErr
	}
	if _, err := o.s.store.GetImage(ctx, scopeOf(ctx), org, name); err != nil {
		if carrel.CodeOf(err) == carrel.CodeNotFound {
			return carrel.Errorf(carrel.CodeNotFound, "target_not_found", "there is no box and no image %q (or you may not see it)", name)
		}
		return fmt.Errorf("find image: %w", err)
	}
	list.Target, list.Image = "", name
	return nil
}
