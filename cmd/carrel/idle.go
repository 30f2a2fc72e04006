package main

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
	"carrel.dev/carrel/internal/carrel"
)

// idleFlags are --idle, --idle-action, --max-run, --ttl, --busy-cpu, --wake and --keep-shell. "template" for a value means: what the
// template says.
type idleFlags struct{ after, action, maxRun, ttl, busyCPU, wake, keepShell string }

const fromTemplate = "template"

func (f *idleFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&f.after, "idle", "", "how long nobody may use it before the idle action, such as 30m")
	flags.StringVar(&f.action, "idle-action", "", "what becomes of it then: pause, stop or nothing")
	flags.StringVar(&f.maxRun, "max-run", "", "how long one run may last, used or not, such as 12h, or never")
	flags.StringVar(&f.ttl, "ttl", "", "how long after it was made it is deleted, such as 7d, or never")
	flags.StringVar(&f.busyCPU, "busy-cpu", "", "cores above which it counts as used, such as 0.2, or never")
	flags.StringVar(&f.wake, "wake", "", "whether a login or a request starts it: yes or no")
	flags.StringVar(&f.keepShell, "keep-shell", "", "how long a shell outlives its connection, such as 10m")
}

// parse reads the flags that were given, and names the fields that they set.
func (f *idleFlags) parse(cmd *cobra.Command) (*carrelv1.IdlePolicy, []string, error) {
	p := &carrelv1.IdlePolicy{}
	var fields []string
	for _, t := range []struct {
		flag, text, field string
		into              **durationpb.Duration
	}{
		{"idle", f.after, "after", &p.After}, {"max-run", f.maxRun, "max_run", &p.MaxRun}, {"ttl", f.ttl, "ttl", &p.Ttl},
		{"keep-shell", f.keepShell, "keep_shell", &p.KeepShell},
	} {
		if t.text == "" {
			continue
		}
		fields = append(fields, t.field)
		if t.text == fromTemplate {
			continue
		}
		if t.text == "never" {
			*t.into = durationpb.New(-time.Second)
			continue
		}
		d, err := carrel.ParsePeriod(t.text)
		if err != nil {
			return nil, nil, usageError(cmd, "--%s %s", t.flag, plain(err))
		}
		*t.into = durationpb.New(d)
	}
	for _, t := range []struct {
		text, field string
		into        *string
	}{{f.action, "action", &p.Action}, {f.wake, "wake", &p.Wake}} {
		if t.text == "" {
			continue
		}
		fields = append(fields, t.field)
		if t.text != fromTemplate {
			*t.into = t.text
		}
	}
	if f.busyCPU != "" {
		fields = append(fields, "busy_cpu_millis")
		switch f.busyCPU {
		case fromTemplate:
		case "never":
			p.BusyCpuMillis = carrel.NeverCPU
		default:
			n, err := strconv.ParseFloat(f.busyCPU, 64)
			if err != nil || n <= 0 || n > 1e6 {
				return nil, nil, usageError(cmd, "--busy-cpu is %q; it is a number of cores such as 0.2, or never", f.busyCPU)
			}
			p.BusyCpuMillis = int64(math.Round(n * 1000))
		}
	}
	return p, fields, nil
}

// plain is the part of an error that is for people.
func plain(err error) string {
	var known *carrel.Error
	if asError(err, &known) {
		return known.Message
	}
	return err.Error()
}

// idleText says a policy in one line.
func idleText(p *carrelv1.IdlePolicy) string {
	if p == nil {
		return ""
	}
	var parts []string
	period := func(format string, d *durationpb.Duration) {
		if d.AsDuration() > 0 {
			parts = append(parts, fmt.Sprintf(format, carrel.FormatPeriod(d.AsDuration())))
		}
	}
	if p.GetAction() != "" {
		parts = append(parts, p.GetAction())
	}
	period("after %s", p.GetAfter())
	period("at most %s in one run", p.GetMaxRun())
	period("deleted after %s", p.GetTtl())
	switch {
	case p.GetBusyCpuMillis() > 0:
		parts = append(parts, "busy above "+cores(p.GetBusyCpuMillis())+" cores")
	case p.GetBusyCpuMillis() < 0:
		parts = append(parts, "CPU does not count")
	}
	if p.GetWake() != "" {
		parts = append(parts, "wake "+p.GetWake())
	}
	period("shells kept %s", p.GetKeepShell())
	return strings.Join(parts, ", ")
}
