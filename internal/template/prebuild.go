package template

import (
	"errors"

	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/strictyaml"
)

// prebuild is what the file has done before boxes are cloned.
type prebuild struct {
	Setup   []string `yaml:"setup"`
	Kernel  string   `yaml:"kernel"`
	Imports string   `yaml:"imports"`
	Timeout scalar   `yaml:"timeout"`
}

// read answers nil when the file says nothing.
func (p *prebuild) read(doc *strictyaml.Document) (*carrel.Prebuild, error) {
	if p == nil {
		return nil, nil //nolint:nilnil // nothing is said
	}
	out := &carrel.Prebuild{Setup: p.Setup, Kernel: p.Kernel, Imports: p.Imports}
	timeout, err := ParsePeriod(string(p.Timeout))
	if err != nil {
		return nil, doc.Errorf("prebuild.timeout", "%s", message(err))
	}
	out.Timeout = timeout
	if err := out.Validate(); err != nil {
		field := "prebuild"
		var known *carrel.Error
		if errors.As(err, &known) {
			field += "." + known.Metadata["field"]
		}
		return nil, doc.Errorf(field, "%s", message(err))
	}
	return out, nil
}
