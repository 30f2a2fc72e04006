package carreltest_test

import (
	"fmt"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/carreltest"
)

// TestAnImageIsDeleted: imported, used, refused while it is in use, deleted, and gone from the node's disk.
func TestAnImageIsDeleted(t *testing.T) {
	if testing.Short() {
		return // nodes need root
	}
	t.Parallel()
	s := carreltest.Start(t, carreltest.Options{PoolBytes: preparedPool})
	ctx := bounded(t)
	importApp := func() *carrelv1.Image {
		t.Helper()
		op, err := s.Admin.Images.ImportImage(ctx, request(&carrelv1.ImportImageRequest{Name: "app", Reference: "registry.example/app:1"}))
		require.NoError(t, err)
		_, err = s.Admin.WaitOperation(ctx, op.Msg, 0, nil)
		require.NoError(t, err)
		var image *carrelv1.Image
		// A heartbeat from before may say for a moment that the node does not hold it.
		s.Eventually("the node holds the image", func() error {
			answer, err := s.Admin.Images.GetImage(ctx, request(&carrelv1.GetImageRequest{Name: "app"}))
			if err != nil {
				return err
			}
			if image = answer.Msg; len(image.GetNodeIds()) != 1 {
				return fmt.Errorf("%v", image)
			}
			return nil
		})
		return image
	}
	image := importApp()
	files := func() []string {
		var found []string
		for _, ending := range []string{"erofs", "json"} {
			list, err := filepath.Glob(filepath.Join(s.Nodes[0].ImageDir(), "sha256-"+image.GetDigest()[len("sha256:"):]+"."+ending))
			require.NoError(t, err)
			found = append(found, list...)
		}
		return found
	}
	require.Len(t, files(), 2)
	push := func(image string) {
		t.Helper()
		yaml := fmt.Sprintf("name: web\nimage: %s\nresources: {cpu: 0.1, memory: 128MiB, home: 32MiB, root: 32MiB, processes: 64, tmp: 1MiB, shm: 1MiB}\n", image)
		_, err := s.Admin.Templates.PushTemplate(ctx, request(&carrelv1.PushTemplateRequest{Yaml: yaml}))
		require.NoError(t, err)
	}
	remove := func() error {
		return failed(s.Admin.Images.DeleteImage(ctx, request(&carrelv1.DeleteImageRequest{Name: "app"})))
	}
	push("app")
	created, err := s.Admin.Boxes.CreateBox(ctx, request(&carrelv1.CreateBoxRequest{Name: "box", Template: "web"}))
	require.NoError(t, err)
	box := finish(t, s.Admin, created)
	require.Equal(t, image.GetDigest(), box.GetImageDigest())
	verb(t, s.Admin, "pause", "box")

	err = remove()
	require.Equal(t, "image_in_use", reasonOf(err))
	require.ErrorContains(t, err, "the box box and the template web")
	push("base")
	err = remove()
	require.Equal(t, "image_in_use", reasonOf(err))
	require.NotContains(t, err.Error(), "template web")
	verb(t, s.Admin, "resume", "box")
	require.Len(t, files(), 2)

	// It is deleted while the box is going: its file stays until the box is gone, whatever becomes of the node meanwhile.
	require.NoError(t, failed(ask(ctx, s.Admin, "delete", "box", "")))
	require.NoError(t, remove())
	require.NoError(t, s.Nodes[0].Kill())
	require.NoError(t, s.Nodes[0].Start())
	require.Equal(t, carrel.CodeNotFound, codeOf(remove()))
	err = failed(s.Admin.Boxes.CreateBox(ctx, request(&carrelv1.CreateBoxRequest{Name: "late", Template: "web@1"})))
	require.Equal(t, "image_deleted", reasonOf(err))
	s.Eventually("the image's files are gone from the node's disk", func() error {
		if left := files(); len(left) > 0 {
			return fmt.Errorf("%v", left)
		}
		return nil
	})
	s.Eventually("control knows it", func() error {
		nodes, err := s.Admin.Nodes.ListNodes(ctx, request(&carrelv1.ListNodesRequest{}))
		if err == nil && len(nodes.Msg.GetNodes()[0].GetImageDigests()) != 1 {
			err = fmt.Errorf("%v", nodes.Msg.GetNodes()[0].GetImageDigests())
		}
		return err
	})
	create(t, s.Admin, "other")
	verb(t, s.Admin, "delete", "other")

	// The same import gives the same digest again, and the same file.
	require.Equal(t, image.GetDigest(), importApp().GetDigest())
	require.Len(t, files(), 2)
	created, err = s.Admin.Boxes.CreateBox(ctx, request(&carrelv1.CreateBoxRequest{Name: "late", Template: "web@1"}))
	require.NoError(t, err)
	finish(t, s.Admin, created)
	verb(t, s.Admin, "delete", "late")
	clean(t, s)
}
