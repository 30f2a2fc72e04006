package main

import (
	"context"
	"strings"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/client"
)

func (a *app) imageCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "image",
		Aliases: []string{"images"},
		Short:   "Root file systems that templates refer to",
		Long:    "Root file systems that templates refer to. They never change and are named by their digest; a name means the\nnewest that is ready.",
		Example: example("carrel image list", "carrel image import app registry.example/team/app:1.4"),
	}
	cmd.AddCommand(a.imageList(), a.imageShow(), a.imageBuild(), a.imageImport(), a.imageDelete())
	return cmd
}

func (a *app) imageList() *cobra.Command {
	return a.shows(&cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List images", Long: "List the images that you can use. One that could not be made is listed for a day, or until another of its name is made.",
		Example: example("carrel image list", "carrel image list -o json"), Args: takes(),
		RunE: a.does(func(ctx context.Context, c *client.Client, _ []string) error {
			list := &carrelv1.ListImagesResponse{}
			req := &carrelv1.ListImagesRequest{}
			for {
				page, err := answer(c.Images.ListImages(ctx, connect.NewRequest(req)))
				if err != nil {
					return err
				}
				list.Images = append(list.Images, page.GetImages()...)
				if req.PageToken = page.GetNextPageToken(); req.PageToken == "" {
					break
				}
			}
			var names []string
			for _, i := range list.Images {
				names = append(names, i.GetName())
			}
			return a.show(list, names, func(t *table) {
				t.row("NAME", "STATE", "SIZE", "SOURCE", "AGE", "DIGEST")
				for _, i := range list.Images {
					t.row(i.GetName(), i.GetState(), size(i.GetSizeBytes()), i.GetSource(), age(i.GetCreateTime()), i.GetDigest())
				}
			})
		}),
	})
}

func (a *app) imageShow() *cobra.Command {
	return a.shows(&cobra.Command{
		Use: "show NAME", Short: "Show an image", Long: "Show an image by name (the newest) or digest.",
		Example: example("carrel image show python"), Args: takes("NAME"),
		RunE: a.does(func(ctx context.Context, c *client.Client, args []string) error {
			i, err := answer(c.Images.GetImage(ctx, connect.NewRequest(&carrelv1.GetImageRequest{Name: args[0]})))
			if err != nil {
				return err
			}
			return a.show(i, []string{i.GetName()}, func(t *table) {
				t.field("Name", i.GetName())
				t.field("State", i.GetState())
				t.field("Failure", failureText(i.GetFailure()))
				t.field("Progress", i.GetProgress())
				t.field("Digest", i.GetDigest())
				t.field("Size", size(i.GetSizeBytes()))
				t.field("Source", i.GetSource())
				t.field("Organisation", i.GetOrgId())
				t.field("Nodes", strings.Join(i.GetNodeIds(), ", "))
				t.field("Created", when(i.GetCreateTime()))
				t.field("Id", i.GetId())
			})
		}),
	})
}

func (a *app) imageBuild() *cobra.Command {
	var wait waitFlags
	cmd := &cobra.Command{
		Use: "build FILE", Short: "Build an image from Debian packages",
		Long:    "Build an image on a node from a YAML file that names packages, files and users; - reads standard input. For\noperators of the platform: packages' scripts run on the node.",
		Example: example("carrel image build images/base.yaml", "carrel image build images/base.yaml --no-wait"),
		Args:    takes("FILE"),
	}
	wait.add(cmd)
	cmd.RunE = a.does(func(ctx context.Context, c *client.Client, args []string) error {
		text, err := a.readText(args[0])
		if err != nil {
			return err
		}
		op, err := answer(c.Images.BuildImage(ctx, connect.NewRequest(&carrelv1.BuildImageRequest{Yaml: text})))
		if err != nil {
			return err
		}
		return a.finish(ctx, c, op, &wait, "")
	})
	return a.shows(cmd)
}

func (a *app) imageImport() *cobra.Command {
	var (
		wait     waitFlags
		platform string
		insecure bool
	)
	cmd := &cobra.Command{
		Use: "import NAME REFERENCE", Short: "Import an OCI image",
		Long:    "Import an image from a registry as NAME. Operators can also name a directory or file on the node: oci:DIR, tar:FILE.",
		Example: example("carrel image import app registry.example/team/app:1.4", "carrel image import app 127.0.0.1:5000/app --insecure"),
		Args:    takes("NAME", "REFERENCE"),
	}
	cmd.Flags().StringVar(&platform, "platform", "", "platform of the image (default \"linux/amd64\")")
	cmd.Flags().BoolVar(&insecure, "insecure", false, "speak plain HTTP to the registry")
	wait.add(cmd)
	cmd.RunE = a.does(func(ctx context.Context, c *client.Client, args []string) error {
		op, err := answer(c.Images.ImportImage(ctx, connect.NewRequest(&carrelv1.ImportImageRequest{Name: args[0], Reference: args[1], Platform: platform, Insecure: insecure})))
		if err != nil {
			return err
		}
		return a.finish(ctx, c, op, &wait, "")
	})
	return a.shows(cmd)
}

func (a *app) imageDelete() *cobra.Command {
	var sure bool
	cmd := &cobra.Command{
		Use: "delete NAME", Aliases: []string{"rm"}, Short: "Delete images that nothing needs",
		Long: "Delete every image called NAME, or one by its digest or id, for good. An image that a box or the newest version of\n" +
			"a template needs is not deleted, and you are told what needs it. Nodes free its room once no box is left of it. On a\n" +
			"terminal it asks first; elsewhere --yes must be said.",
		Example: example("carrel image delete app", "carrel image delete sha256:8f1d… --yes"), Args: takes("NAME"),
	}
	cmd.Flags().BoolVarP(&sure, "yes", "y", false, "do not ask")
	cmd.RunE = a.does(func(ctx context.Context, c *client.Client, args []string) error {
		if !sure {
			if err := a.confirm("Delete image " + args[0] + "?"); err != nil {
				return err
			}
		}
		op, err := answer(c.Images.DeleteImage(ctx, connect.NewRequest(&carrelv1.DeleteImageRequest{Name: args[0]})))
		if err != nil {
			return err
		}
		return a.finish(ctx, c, op, &waitFlags{}, "") // it is done already
	})
	return a.shows(cmd)
}
