package main

import (
	"context"
	"fmt"
	"strings"
	"sync"

	"connectrpc.com/connect"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/api/carrel/v1/carrelv1connect"
	"carrel.dev/carrel/internal/carrel"
)

// keyServer keeps keys in memory.
type keyServer struct {
	carrelv1connect.UnimplementedSSHServiceHandler

	mu   sync.Mutex
	keys []*carrelv1.SSHKey
}

func (s *keyServer) AddSSHKey(_ context.Context, req *connect.Request[carrelv1.AddSSHKeyRequest]) (*connect.Response[carrelv1.SSHKey], error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	parts := strings.Fields(req.Msg.GetPublicKey())
	if len(parts) < 2 || parts[0] != "ssh-ed25519" {
		return nil, wire(carrel.Errorf(carrel.CodeInvalid, "bad_ssh_key", "this is no public key"))
	}
	name := req.Msg.GetName()
	if name == "" {
		name = strings.Join(parts[2:], " ")
	}
	key := &carrelv1.SSHKey{
		Id: fmt.Sprintf("k%019d", len(s.keys)+1), UserId: "u0000000000000000001", Name: name, PublicKey: parts[0] + " " + parts[1],
		Fingerprint: "SHA256:" + parts[1], CreateTime: serverTime,
	}
	s.keys = append(s.keys, key)
	return connect.NewResponse(key), nil
}

func (s *keyServer) ListSSHKeys(context.Context, *connect.Request[carrelv1.ListSSHKeysRequest]) (*connect.Response[carrelv1.ListSSHKeysResponse], error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return connect.NewResponse(&carrelv1.ListSSHKeysResponse{Keys: s.keys}), nil
}

func (s *keyServer) RemoveSSHKey(_ context.Context, req *connect.Request[carrelv1.RemoveSSHKeyRequest]) (*connect.Response[carrelv1.RemoveSSHKeyResponse], error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, k := range s.keys {
		if ref := req.Msg.GetId(); k.GetId() == ref || k.GetName() == ref || k.GetFingerprint() == ref {
			s.keys = append(s.keys[:i:i], s.keys[i+1:]...)
			return connect.NewResponse(&carrelv1.RemoveSSHKeyResponse{}), nil
		}
	}
	return nil, wire(carrel.Errorf(carrel.CodeNotFound, "ssh_key_not_found", "you have no SSH key %q; those that you have are shown by: carrel key list", req.Msg.GetId()))
}
