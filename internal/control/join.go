package control

import (
	"context"
	"fmt"
	"os"
	"strings"

	"connectrpc.com/connect"

	linkv1 "carrel.dev/carrel/api/carrel/link/v1"
	"carrel.dev/carrel/api/carrel/link/v1/linkv1connect"
	"carrel.dev/carrel/internal/auth"
	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/store"
)

// minJoinToken is the least length of the text in a join token file.
const minJoinToken = 20

type joinService struct {
	linkv1connect.UnimplementedJoinServiceHandler
	s *Server
}

// Join gives a machine its identity: by a join token that an operator made, by the text of the join token file, or,
// for a proxy, because its node asks for it.
func (j joinService) Join(ctx context.Context, req *connect.Request[linkv1.JoinRequest]) (*connect.Response[linkv1.JoinResponse], error) {
	m := req.Msg
	// A token is used up by a join, so everything else is looked at first.
	csr := []byte(m.GetCsrPem())
	if _, err := auth.ReadCSR(csr); err != nil {
		e := carrel.Errorf(carrel.CodeInvalid, "bad_csr", "the certificate request can't be used; it must be one PEM block for an Ed25519 key")
		e.Cause = err
		return nil, e
	}
	role := auth.PeerRole(m.GetRole())
	if role == auth.PeerProxy {
		return j.joinProxy(ctx, m)
	}
	if role != auth.PeerNode && role != auth.PeerGateway {
		return nil, carrel.Errorf(carrel.CodeInvalid, "bad_role", "%q can't join; node, proxy and gateway can", short(m.GetRole()))
	}
	if err := carrel.ValidateName(string(role), m.GetName()); err != nil {
		return nil, err
	}
	if len(m.GetRegion()) > 64 || len(m.GetNodeId()) > carrel.IDLength {
		return nil, carrel.Errorf(carrel.CodeInvalid, "bad_region", "a region has at most 64 bytes, and an id %d", carrel.IDLength)
	}
	hash, err := j.tokenHash(m.GetToken(), role)
	if err != nil {
		return nil, err
	}
	join := store.Join{TokenHash: hash, Name: m.GetName(), Region: m.GetRegion(), ID: m.GetNodeId()}
	var id string
	if role == auth.PeerNode {
		node, err := j.s.store.JoinNode(ctx, join)
		if err != nil {
			return nil, fmt.Errorf("join node: %w", err)
		}
		id = string(node.ID)
	} else {
		gateway, err := j.s.store.JoinGateway(ctx, join)
		if err != nil {
			return nil, fmt.Errorf("join gateway: %w", err)
		}
		id = string(gateway.ID)
	}
	j.s.log.Info("joined", "role", role, "id", id, "name", m.GetName(), "request", requestID(ctx))
	return j.s.identity(auth.Peer{Role: role, ID: id}, csr)
}

func (j joinService) joinProxy(ctx context.Context, m *linkv1.JoinRequest) (*connect.Response[linkv1.JoinResponse], error) {
	peer := accessOf(ctx).principal.Peer
	if peer.Role != auth.PeerNode {
		return nil, carrel.Errorf(carrel.CodeUnauthorized, "certificate_needed", "a proxy joins through its node, with the node's certificate")
	}
	if m.GetNodeId() != "" && m.GetNodeId() != peer.ID {
		return nil, carrel.Errorf(carrel.CodeDenied, "wrong_peer", "a node may ask for its own proxy only")
	}
	return j.s.identity(auth.Peer{Role: auth.PeerProxy, ID: peer.ID}, []byte(m.GetCsrPem()))
}

// tokenHash is the hash of a token to be used up, or nil when the token is that of the join token file, or what
// auth.RoleJoinToken makes of it for this role.
func (j joinService) tokenHash(token string, role auth.PeerRole) ([]byte, error) {
	if j.s.config.JoinTokenFile != "" {
		text, err := os.ReadFile(j.s.config.JoinTokenFile)
		if err != nil {
			return nil, fmt.Errorf("read join token file: %w", err)
		}
		if known := strings.TrimSpace(string(text)); len(known) >= minJoinToken &&
			(auth.SameText(known, token) || auth.SameText(auth.RoleJoinToken(known, role), token)) {
			return nil, nil
		}
	}
	secret, err := auth.ParseJoinToken(token)
	if err != nil {
		return nil, err
	}
	return secret.Hash[:], nil
}

// identity signs a peer's certificate and tells it all that it needs to know of the cluster.
func (s *Server) identity(peer auth.Peer, csr []byte) (*connect.Response[linkv1.JoinResponse], error) {
	k := s.keys.Load()
	certificate, err := k.ca.SignCSR(csr, peer, auth.Names{}, s.now())
	if err != nil {
		e := carrel.Errorf(carrel.CodeInvalid, "bad_csr", "the certificate request can't be used; it must be one PEM block for an Ed25519 key")
		e.Cause = err
		return nil, e
	}
	return reply(&linkv1.JoinResponse{
		Id: peer.ID, CertificatePem: string(certificate), CaPem: string(k.ca.PEM()), ClusterId: s.cluster.ID, TicketKeys: k.ticketKeys,
	})
}

// renew gives a peer a new certificate for what it is already.
func (s *Server) renew(ctx context.Context, m *linkv1.RenewRequest) (*connect.Response[linkv1.JoinResponse], error) {
	return s.identity(accessOf(ctx).principal.Peer, []byte(m.GetCsrPem()))
}
