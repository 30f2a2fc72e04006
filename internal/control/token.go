package control

import (
	"context"
	"fmt"
	"time"
	"unicode/utf8"

	"connectrpc.com/connect"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	carrelv1connect "carrel.dev/carrel/api/carrel/v1/carrelv1connect"
	"carrel.dev/carrel/internal/auth"
	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/store"
)

const maxDescription = 256

type tokenService struct {
	carrelv1connect.UnimplementedTokenServiceHandler
	s *Server
}

func (t tokenService) CreateToken(ctx context.Context, req *connect.Request[carrelv1.CreateTokenRequest]) (*connect.Response[carrelv1.CreateTokenResponse], error) {
	m := req.Msg
	if len(m.GetDescription()) > maxDescription || !utf8.ValidString(m.GetDescription()) {
		return nil, carrel.Errorf(carrel.CodeInvalid, "bad_description", "a description has at most %d bytes", maxDescription)
	}
	var expires time.Time
	if e := m.GetExpireTime(); e != nil {
		if expires = e.AsTime(); !e.IsValid() || !expires.After(t.s.now()) {
			return nil, carrel.Errorf(carrel.CodeInvalid, "bad_expire_time", "the token would have expired already; give a time to come, or none")
		}
	}
	if m.GetDescription() == store.AdminTokenDescription {
		return nil, carrel.Errorf(carrel.CodeInvalid, "bad_description", "the description %q is kept for the token that the first start makes; take another one", m.GetDescription())
	}
	// A token can't be made to outlive itself.
	if end := accessOf(ctx).principal.Expires; !end.IsZero() && (expires.IsZero() || expires.After(end)) {
		expires = end
	}
	user, err := t.s.user(ctx, m.GetUser())
	if err != nil {
		return nil, err
	}
	secret := auth.NewToken()
	token, err := t.s.store.CreateToken(ctx, platformScope(ctx), store.NewToken{
		ID: secret.ID, User: user, Description: m.GetDescription(), Hash: secret.Hash[:], ExpiresAt: expires,
	})
	if err != nil {
		return nil, fmt.Errorf("create token: %w", err)
	}
	return reply(&carrelv1.CreateTokenResponse{Token: tokenProto(token), Secret: secret.Text})
}

func (t tokenService) ListTokens(ctx context.Context, req *connect.Request[carrelv1.ListTokensRequest]) (*connect.Response[carrelv1.ListTokensResponse], error) {
	user, err := t.s.user(ctx, req.Msg.GetUser())
	if err != nil {
		return nil, err
	}
	tokens, err := t.s.store.ListTokens(ctx, platformScope(ctx), user)
	if err != nil {
		return nil, fmt.Errorf("list tokens: %w", err)
	}
	return reply(&carrelv1.ListTokensResponse{Tokens: each(tokens, tokenProto)})
}

func (t tokenService) RevokeToken(ctx context.Context, req *connect.Request[carrelv1.RevokeTokenRequest]) (*connect.Response[carrelv1.RevokeTokenResponse], error) {
	id := req.Msg.GetId()
	if carrel.IDKind(id) != 't' {
		return nil, carrel.NotFound("token", id)
	}
	if _, err := t.s.store.RevokeToken(ctx, platformScope(ctx), carrel.TokenID(id)); err != nil {
		return nil, fmt.Errorf("revoke token: %w", seen(err, "token", id))
	}
	return reply(&carrelv1.RevokeTokenResponse{})
}
