package control

import (
	"context"
	"fmt"

	"connectrpc.com/connect"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	carrelv1connect "carrel.dev/carrel/api/carrel/v1/carrelv1connect"
	"carrel.dev/carrel/internal/auth"
	"carrel.dev/carrel/internal/carrel"
)

type orgService struct {
	carrelv1connect.UnimplementedOrgServiceHandler
	s *Server
}

func (o orgService) CreateOrg(ctx context.Context, req *connect.Request[carrelv1.CreateOrgRequest]) (*connect.Response[carrelv1.Org], error) {
	if err := carrel.ValidateName("organisation", req.Msg.GetName()); err != nil {
		return nil, err
	}
	org, err := o.s.store.CreateOrg(ctx, scopeOf(ctx), req.Msg.GetName(), accessOf(ctx).principal.User)
	if err != nil {
		return nil, fmt.Errorf("create organisation: %w", err)
	}
	return reply(orgProto(org))
}

func (o orgService) GetOrg(ctx context.Context, req *connect.Request[carrelv1.GetOrgRequest]) (*connect.Response[carrelv1.Org], error) {
	id, err := o.s.org(ctx, req.Msg.GetOrg())
	if err != nil {
		return nil, err
	}
	org, err := o.s.store.GetOrg(ctx, scopeOf(ctx), string(id))
	if err != nil {
		return nil, fmt.Errorf("get organisation: %w", seen(err, "organisation", req.Msg.GetOrg()))
	}
	return reply(orgProto(org))
}

func (o orgService) ListOrgs(ctx context.Context, _ *connect.Request[carrelv1.ListOrgsRequest]) (*connect.Response[carrelv1.ListOrgsResponse], error) {
	orgs, err := o.s.store.ListOrgs(ctx, scopeOf(ctx))
	if err != nil {
		return nil, fmt.Errorf("list organisations: %w", err)
	}
	return reply(&carrelv1.ListOrgsResponse{Orgs: each(orgs, orgProto)})
}

func (o orgService) SetMember(ctx context.Context, req *connect.Request[carrelv1.SetMemberRequest]) (*connect.Response[carrelv1.Member], error) {
	id, err := o.s.org(ctx, req.Msg.GetOrg())
	if err != nil {
		return nil, err
	}
	role, err := auth.ParseRole(req.Msg.GetRole())
	if err != nil {
		return nil, err
	}
	if err := o.ownersAreOwners(ctx, id, req.Msg.GetUser(), role); err != nil {
		return nil, err
	}
	member, err := o.s.store.SetMember(ctx, scopeOf(ctx), id, req.Msg.GetUser(), string(role))
	if err != nil {
		return nil, fmt.Errorf("set member: %w", err)
	}
	return reply(memberProto(member))
}

func (o orgService) RemoveMember(ctx context.Context, req *connect.Request[carrelv1.RemoveMemberRequest]) (*connect.Response[carrelv1.RemoveMemberResponse], error) {
	id, err := o.s.org(ctx, req.Msg.GetOrg())
	if err != nil {
		return nil, err
	}
	if err := o.ownersAreOwners(ctx, id, req.Msg.GetUser(), auth.RoleNone); err != nil {
		return nil, err
	}
	if err := o.s.store.RemoveMember(ctx, scopeOf(ctx), id, req.Msg.GetUser()); err != nil {
		return nil, fmt.Errorf("remove member: %w", err)
	}
	return reply(&carrelv1.RemoveMemberResponse{})
}

// ownersAreOwners keeps administrators from making, changing or removing owners.
func (o orgService) ownersAreOwners(ctx context.Context, org carrel.OrgID, user string, to auth.Role) error {
	if user == "" {
		return carrel.Errorf(carrel.CodeInvalid, "user_needed", "say which user is meant: their id or name")
	}
	if accessOf(ctx).principal.Roles[org] == auth.RoleOwner {
		return nil
	}
	denied := carrel.Errorf(carrel.CodeDenied, "owner_needed", "only an owner of the organisation may make, change or remove an owner")
	if to == auth.RoleOwner {
		return denied
	}
	members, err := o.s.store.ListMembers(ctx, scopeOf(ctx), org)
	if err != nil {
		return fmt.Errorf("list members: %w", err)
	}
	for _, m := range members {
		if (string(m.User) == user || m.UserName == user) && auth.Role(m.Role) == auth.RoleOwner {
			return denied
		}
	}
	return nil
}

func (o orgService) ListMembers(ctx context.Context, req *connect.Request[carrelv1.ListMembersRequest]) (*connect.Response[carrelv1.ListMembersResponse], error) {
	id, err := o.s.org(ctx, req.Msg.GetOrg())
	if err != nil {
		return nil, err
	}
	members, err := o.s.store.ListMembers(ctx, scopeOf(ctx), id)
	if err != nil {
		return nil, fmt.Errorf("list members: %w", err)
	}
	return reply(&carrelv1.ListMembersResponse{Members: each(members, memberProto)})
}
