package control

import (
	"context"
	"fmt"

	"connectrpc.com/connect"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	carrelv1connect "carrel.dev/carrel/api/carrel/v1/carrelv1connect"
	"carrel.dev/carrel/internal/carrel"
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
	target := m.GetTarget()
	if kind := carrel.IDKind(target); target != "" && kind != 'b' && kind != 'i' {
		box, err := o.s.find(ctx, m.GetOrg(), target)
		if err != nil {
			return nil, err
		}
		target = string(box.ID)
	}
	p, err := page(m.GetPageSize(), m.GetPageToken())
	if err != nil {
		return nil, err
	}
	ops, next, err := o.s.store.ListOperations(ctx, scopeOf(ctx), org, target, p)
	if err != nil {
		return nil, fmt.Errorf("list operations: %w", err)
	}
	return reply(&carrelv1.ListOperationsResponse{Operations: each(ops, operationProto), NextPageToken: next})
}
