package template

import (
	"errors"
	"strings"
	"time"

	"carrel.dev/carrel/internal/carrel"
	"carrel.dev/carrel/internal/strictyaml"
)

// idle is what the file says of boxes that nobody uses.
type idle struct {
	After     scalar `yaml:"after"`
	Action    string `yaml:"action"`
	MaxRun    scalar `yaml:"max_run"`
	TTL       scalar `yaml:"ttl"`
	BusyCPU   scalar `yaml:"busy_cpu"`
	Wake      scalar `yaml:"wake"`
	KeepShell scalar `yaml:"keep_shell"`
}

// never is written for a limit that does not hold.
const never = "never"

func (i *idle) read(doc *strictyaml.Document) (carrel.IdlePolicy, error) {
	p := carrel.IdlePolicy{Action: carrel.IdleAction(i.Action)}
	for _, f := range []struct {
		name string
		text scalar
		to   *time.Duration
	}{{"after", i.After, &p.After}, {"max_run", i.MaxRun, &p.MaxRun}, {"ttl", i.TTL, &p.TTL}, {"keep_shell", i.KeepShell, &p.KeepShell}} {
		d, err := ParsePeriod(string(f.text))
		if err != nil {
			return p, doc.Errorf("idle."+f.name, "%s", message(err))
		}
		*f.to = d
	}
	switch i.BusyCPU {
	case "":
	case never:
		p.BusyCPUMillis = carrel.NeverCPU
	default:
		n, err := ParseCPU(string(i.BusyCPU))
		if err == nil && n == 0 {
			err = carrel.Errorf(carrel.CodeInvalid, "bad_cpu", "is 0; write cores such as 0.2, or never")
		}
		if err != nil {
			return p, doc.Errorf("idle.busy_cpu", "%s", message(err))
		}
		p.BusyCPUMillis = n
	}
	switch i.Wake {
	case "true": // as YAML reads yes
		p.Wake = "yes"
	case "false":
		p.Wake = "no"
	default:
		p.Wake = string(i.Wake)
	}
	var bad *carrel.Error
	if errors.As(p.Validate(), &bad) {
		field := "idle." + bad.Metadata["field"]
		return p, doc.Errorf(field, "%s", strings.TrimPrefix(bad.Message, field+" "))
	}
	return p, nil
}

// ParsePeriod reads a time such as 90s, 30m, 12h or 7d, and never; empty is 0, which says nothing. The error is that of
// carrel.ParsePeriod.
func ParsePeriod(text string) (time.Duration, error) {
	switch text {
	case "":
		return 0, nil
	case never:
		return carrel.Never, nil
	}
	d, err := carrel.ParsePeriod(text)
	if err == nil && d == 0 {
		return 0, carrel.Errorf(carrel.CodeInvalid, "bad_period", "is %q; leave it out, or write a time such as 30m", text)
	}
	return d, err
}
