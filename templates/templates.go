// Package templates holds the templates that ship with Carrel, one YAML file each, as internal/template
// reads them. It must not do anything but hold them.
package templates

import "embed"

// Files has one NAME.yaml for each template.
//
//go:embed *.yaml
var Files embed.FS
