// Package images holds the definitions of the images that ship with Carrel, one YAML file each, as
// internal/image reads them. It must not do anything but hold them.
package images

import "embed"

// Files has one NAME.yaml for each image.
//
//go:embed *.yaml
var Files embed.FS
