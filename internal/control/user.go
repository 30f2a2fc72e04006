package control

import (
	"context"
	"fmt"

	"connectrpc.com/connect"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	carrelv1connect "carrel.dev/carrel/api/carrel/v1/carrelv1connect"
	"carrel.dev/carrel/internal/carrel"
)

type userService struct {
	carrelv1connect.UnimplementedUserServiceHandler
	s *Server
}

func (u userService) CreateUser(ctx context.Context, req *connect.Request[carrelv1.CreateUserRequest]) (*connect.Response[carrelv1.User], error) {
	if err := carrel.ValidateName("user", req.Msg.GetName()); err != nil {
		return nil, err
	}
	user, err := u.s.store.CreateUser(ctx, scopeOf(ctx), req.Msg.GetName(), req.Msg.GetOperator())
	if err != nil {
		return nil, fmt.Errorf("create user: %w", err)
	}
	return reply(userProto(user))
}

func (u userService) ListUsers(ctx context.Context, _ *connect.Request[carrelv1.ListUsersRequest]) (*connect.Response[carrelv1.ListUsersResponse], error) {
	users, err := u.s.store.ListUsers(ctx, scopeOf(ctx))
	if err != nil {
		return nil, fmt.Errorf("list users: %w", err)
	}
	return reply(&carrelv1.ListUsersResponse{Users: each(users, userProto)})
}

func (u userService) WhoAmI(ctx context.Context, _ *connect.Request[carrelv1.WhoAmIRequest]) (*connect.Response[carrelv1.WhoAmIResponse], error) {
	p := accessOf(ctx).principal
	user, err := u.s.store.GetUser(ctx, scopeOf(ctx), string(p.User))
	if err != nil {
		return nil, fmt.Errorf("get user: %w", err)
	}
	orgs, err := u.s.store.ListOrgs(ctx, scopeOf(ctx))
	if err != nil {
		return nil, fmt.Errorf("list organisations: %w", err)
	}
	out := &carrelv1.WhoAmIResponse{User: userProto(user), Orgs: each(orgs, orgProto)}
	for _, org := range p.Orgs() {
		out.Memberships = append(out.Memberships, &carrelv1.Member{OrgId: string(org), UserId: string(user.ID), UserName: user.Name, Role: string(p.Roles[org])})
	}
	return reply(out)
}

// user finds the user that a request about tokens names: oneself, or for operators anyone.
func (s *Server) user(ctx context.Context, ref string) (carrel.UserID, error) {
	p := accessOf(ctx).principal
	if ref == "" || ref == string(p.User) || ref == p.UserName {
		return p.User, nil
	}
	if !p.Operator {
		return "", carrel.NotFound("user", ref)
	}
	user, err := s.store.GetUser(ctx, platformScope(ctx), ref)
	if err != nil {
		return "", fmt.Errorf("find user: %w", seen(err, "user", ref))
	}
	return user.ID, nil
}
