package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	carrelv1 "carrel.dev/carrel/api/carrel/v1"
)

var outputs = []string{"table", "json", "name"}

// shows gives a command the flag -o.
func (a *app) shows(cmd *cobra.Command) *cobra.Command {
	cmd.Flags().StringVarP(&a.output, "output", "o", "table", "how to show the result: table, json or name")
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(outputs, cobra.ShellCompDirectiveNoFileComp))
	run := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if !slices.Contains(outputs, a.output) {
			return usageError(cmd, "--output is %q; use table, json or name", a.output)
		}
		return run(cmd, args)
	}
	return cmd
}

// show prints a message in the way that was asked for. names are what -o name prints, a line each.
func (a *app) show(message proto.Message, names []string, draw func(*table)) error {
	switch a.output {
	case "json":
		text, err := toJSON(message)
		if err != nil {
			return err
		}
		_, err = a.stdout.Write(text)
		return err
	case "name":
		for _, n := range names {
			if _, err := fmt.Fprintln(a.stdout, n); err != nil {
				return err
			}
		}
		return nil
	}
	t := &table{w: tabwriter.NewWriter(a.stdout, 0, 4, 3, ' ', 0)}
	draw(t)
	return t.w.Flush()
}

// toJSON is the JSON of the REST API: lowerCamelCase names as protobuf's JSON mapping has them, 64 bit
// numbers as strings, and every field present, so that a script can rely on it. The layout is stable,
// which protojson's own is not.
func toJSON(message proto.Message) ([]byte, error) {
	text, err := protojson.MarshalOptions{EmitUnpopulated: true}.Marshal(message)
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", message.ProtoReflect().Descriptor().FullName(), err)
	}
	var compact, out bytes.Buffer
	if err := json.Compact(&compact, text); err != nil {
		return nil, fmt.Errorf("encode: %w", err)
	}
	if err := json.Indent(&out, compact.Bytes(), "", "  "); err != nil {
		return nil, fmt.Errorf("encode: %w", err)
	}
	out.WriteByte('\n')
	return out.Bytes(), nil
}

// table is aligned text.
type table struct{ w *tabwriter.Writer }

func (t *table) row(cells ...string) {
	for i, c := range cells {
		if c == "" {
			c = "-"
		}
		cells[i] = printable(c)
	}
	fmt.Fprintln(t.w, strings.Join(cells, "\t"))
}

// blank is an empty line between two parts.
func (t *table) blank() { fmt.Fprintln(t.w) }

// field is one line of a page about one thing; empty values are left out.
func (t *table) field(name, value string) {
	if value != "" {
		fmt.Fprintf(t.w, "%s\t%s\n", name, printable(value))
	}
}

// printable keeps control characters of what others wrote off the terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 {
			return ' '
		}
		return r
	}, s)
}

func when(t *timestamppb.Timestamp) string {
	if t == nil {
		return ""
	}
	return t.AsTime().Local().Format("2006-01-02 15:04:05")
}

// age is how long ago something was, roughly.
func age(t *timestamppb.Timestamp) string {
	if t == nil {
		return ""
	}
	switch d := time.Since(t.AsTime()); {
	case d < time.Minute:
		return fmt.Sprintf("%ds", max(int(d.Seconds()), 0))
	case d < time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	default:
		return fmt.Sprintf("%dd", int(d.Hours()/24))
	}
}

func stateWord(s carrelv1.State) string { return strings.TrimPrefix(s.String(), "STATE_") }

func size(n int64) string {
	switch {
	case n == 0:
		return ""
	case n%(1<<30) == 0:
		return fmt.Sprintf("%d GiB", n>>30)
	case n >= 10<<30:
		return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
	case n >= 1<<20:
		return fmt.Sprintf("%d MiB", n>>20)
	default:
		return fmt.Sprintf("%d B", n)
	}
}

func cores(millis int64) string {
	if millis == 0 {
		return ""
	}
	return strings.TrimSuffix(strings.TrimRight(fmt.Sprintf("%.3f", float64(millis)/1000), "0"), ".")
}

func pairs(m map[string]string) string {
	var list []string
	for k, v := range m {
		list = append(list, k+"="+v)
	}
	slices.Sort(list)
	return strings.Join(list, " ")
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

func failureText(f *carrelv1.Failure) string {
	if f == nil {
		return ""
	}
	text := f.GetMessage()
	if f.GetNextStep() != "" {
		text += " — " + f.GetNextStep()
	}
	if f.GetTransient() && f.GetRetryTime() != nil {
		text += fmt.Sprintf(" (tried %d times; next at %s)", f.GetAttempts(), when(f.GetRetryTime()))
	}
	return text
}
