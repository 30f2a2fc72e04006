package control_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/auth"
	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/store"
)

// TestWhoDeletesAnImage: the administrators of the organisation that it belongs to; what others have is not even known.
func TestWhoDeletesAnImage(t *testing.T) {
	r := newReplica(t)
	r.catalogue()
	ctx := t.Context()
	cl, err := r.store.Cluster(ctx)
	require.NoError(t, err)
	keep := func(org carrel.OrgID, name string) {
		t.Helper()
		_, err := r.store.CreateImage(ctx, store.SystemScope(), store.NewImage{
			Org: org, Name: name, Source: "build", Digest: "sha256:" + strings.Repeat("c", 64), SizeBytes: 1,
		})
		require.NoError(t, err)
	}
	keep(cl.DefaultOrg, "app")
	operator := r.asAdmin()
	member := r.newUser("mia", "default", auth.RoleMember)
	admin := r.newUser("ada", "default", auth.RoleAdmin)
	_, err = operator.orgs.CreateOrg(ctx, req(&carrelv1.CreateOrgRequest{Name: "others"}))
	require.NoError(t, err)
	stranger := r.newUser("sam", "others", auth.RoleOwner)
	del := func(u *user, m *carrelv1.DeleteImageRequest) (*carrelv1.Operation, error) {
		resp, err := u.images.DeleteImage(ctx, req(m))
		if err != nil {
			return nil, err
		}
		return resp.Msg, nil
	}
	_, err = del(member, &carrelv1.DeleteImageRequest{Name: "app"})
	require.Equal(t, carrel.CodeDenied, code(err))
	_, err = del(stranger, &carrelv1.DeleteImageRequest{Name: "app"})
	require.Equal(t, "image_not_found", reason(err))
	_, err = del(stranger, &carrelv1.DeleteImageRequest{Name: "app", Org: "default"})
	require.Equal(t, carrel.CodeNotFound, code(err))
	for _, u := range []*user{admin, stranger} {
		_, err = del(u, &carrelv1.DeleteImageRequest{Name: "base"})
		require.Equal(t, carrel.CodeDenied, code(err))
		require.Equal(t, "image_shipped", reason(err))
	}
	_, err = del(operator, &carrelv1.DeleteImageRequest{Name: "base"})
	require.Equal(t, "image_in_use", reason(err), "the shipped template needs it")
	require.ErrorContains(t, err, "the template base")

	ask := &carrelv1.DeleteImageRequest{Name: "app", RequestId: "d"}
	op, err := del(admin, ask)
	require.NoError(t, err)
	require.True(t, op.GetDone())
	require.Nil(t, op.GetError())
	require.Equal(t, "delete_image app", op.GetVerb()+" "+op.GetTargetName())
	again, err := del(admin, ask)
	require.NoError(t, err)
	require.Equal(t, op.GetId(), again.GetId())
	_, err = del(admin, &carrelv1.DeleteImageRequest{Name: "app"})
	require.Equal(t, "image_not_found", reason(err))
	_, err = admin.images.GetImage(ctx, req(&carrelv1.GetImageRequest{Name: "app"}))
	require.Equal(t, "image_not_found", reason(err))

	// An operator finds what is shipped as everybody does, and may delete it.
	keep(cl.SystemOrg, "tools")
	_, err = del(operator, &carrelv1.DeleteImageRequest{Name: "tools"})
	require.NoError(t, err)

	keep(cl.DefaultOrg, "app")
	image, err := admin.images.GetImage(ctx, req(&carrelv1.GetImageRequest{Name: "app"}))
	require.NoError(t, err)
	status, _, answer := operator.rest("DELETE", "/v1/images/"+image.Msg.GetId(), "")
	require.Equal(t, 200, status, answer)
	require.Equal(t, "delete_image", answer["verb"])
	status, _, answer = operator.rest("DELETE", "/v1/images/app", "")
	require.Equal(t, 404, status, answer)
	status, _, answer = operator.rest("DELETE", "/v1/images/app?force=true", "")
	require.Equal(t, 400, status, answer)
	_, err = del(operator, &carrelv1.DeleteImageRequest{})
	require.Equal(t, carrel.CodeNotFound, code(err))
}
